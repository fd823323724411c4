//! HAR 1.2: HTTP exchanges as an archive that the developer tools of browsers load
//! (<http://www.softwareishard.com/blog/har-12-spec/>).
//!
//! Entries are written as exchanges end, so that memory doesn't grow with the capture. What follows
//! the last entry is written with [`HarSink::finish`].

use std::borrow::Cow;
use std::io::{self, Write};

use base64_simd::STANDARD;
use events::Direction;
use protocol::{
    Body, Exchange, Field, Message, MessageKind, Notice, RequestHead, ResponseHead, Sent, Side,
    Time, field_value,
};
use serde::Serialize;

use crate::event::{Event, Http, Sink};
use crate::exchange_json::{lossy, text_of};
use crate::exchange_text::known_url;
use crate::time::rfc3339;

/// Writes a HAR file.
#[derive(Debug)]
pub struct HarSink<W> {
    out: W,
    begun: bool,
    /// Exchanges.
    written: u64,
    /// How many of them have been handed on.
    flushed: u64,
}

impl<W: Write> HarSink<W> {
    /// A sink that writes to `out`, which ought to be buffered.
    pub fn new(out: W) -> Self {
        Self {
            out,
            begun: false,
            written: 0,
            flushed: 0,
        }
    }

    /// How many exchanges were written. They count once they have been handed on.
    pub fn entries(&self) -> u64 {
        self.flushed
    }

    /// Writes what belongs behind the last exchange. Nothing may be written afterwards.
    pub fn finish(&mut self) -> io::Result<()> {
        self.begin()?;
        self.out.write_all(b"\n]}}\n")?;
        self.hand_on()
    }

    fn hand_on(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.flushed = self.written;
        Ok(())
    }

    fn begin(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(());
        }
        let version = env!("CARGO_PKG_VERSION");
        write!(
            self.out,
            r#"{{"log":{{"version":"1.2","creator":{{"name":"ecapture","version":"{version}"}},"pages":[],"entries":["#
        )
    }

    fn entry(&mut self, http: &Http<'_>, exchange: &Exchange) -> io::Result<()> {
        self.begin()?;
        let separator: &[u8] = if self.written == 0 { b"\n" } else { b",\n" };
        self.out.write_all(separator)?;
        self.written += 1;
        serde_json::to_writer(&mut self.out, &Entry::new(http, exchange)).map_err(io::Error::from)
    }
}

impl<W: Write> Sink for HarSink<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Http(http) => match http.notice {
                Notice::Finished(exchange) => self.entry(http, exchange),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.begin()?;
        self.hand_on()
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    started_date_time: String,
    time: f64,
    request: Request<'a>,
    response: Response<'a>,
    cache: Cache,
    timings: Timings,
    connection: String,
    #[serde(rename = "_stream")]
    stream: u64,
    #[serde(rename = "_pid")]
    pid: u32,
    #[serde(rename = "_comm")]
    comm: Cow<'a, str>,
    #[serde(rename = "_role", skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(rename = "_incomplete", skip_serializing_if = "Vec::is_empty")]
    incomplete: Vec<String>,
    #[serde(rename = "_resourceType", skip_serializing_if = "Option::is_none")]
    resource_type: Option<&'static str>,
    #[serde(rename = "_webSocketMessages", skip_serializing_if = "Option::is_none")]
    web_socket_messages: Option<Vec<WebSocketMessage<'a>>>,
    #[serde(rename = "_grpcMessages", skip_serializing_if = "Vec::is_empty")]
    grpc_messages: Vec<GrpcMessage>,
}

#[derive(Debug, Serialize)]
struct Cache {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    method: Cow<'a, str>,
    url: String,
    http_version: String,
    cookies: Vec<Pair<'a>>,
    headers: Vec<Pair<'a>>,
    query_string: Vec<Pair<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    post_data: Option<PostData<'a>>,
    headers_size: i64,
    body_size: i64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PostData<'a> {
    mime_type: Cow<'a, str>,
    text: Cow<'a, str>,
    #[serde(rename = "_encoding", skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    status: u16,
    status_text: Cow<'a, str>,
    http_version: String,
    cookies: Vec<Pair<'a>>,
    headers: Vec<Pair<'a>>,
    content: Content<'a>,
    #[serde(rename = "redirectURL")]
    redirect_url: Cow<'a, str>,
    headers_size: i64,
    body_size: i64,
    #[serde(rename = "_error", skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Content<'a> {
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression: Option<i64>,
    mime_type: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Pair<'a> {
    name: Cow<'a, str>,
    value: Cow<'a, str>,
}

/// In ms; -1 for what does not apply.
#[derive(Debug, Serialize)]
struct Timings {
    blocked: f64,
    dns: f64,
    connect: f64,
    send: f64,
    wait: f64,
    receive: f64,
    ssl: f64,
}

/// As Chromium's developer tools have it: time in s, the opcode of RFC 6455.
#[derive(Debug, Serialize)]
struct WebSocketMessage<'a> {
    #[serde(rename = "type")]
    direction: &'static str,
    time: f64,
    opcode: u8,
    data: Cow<'a, str>,
}

#[derive(Debug, Serialize)]
struct GrpcMessage {
    #[serde(rename = "type")]
    direction: &'static str,
    time: f64,
    length: u64,
    data: String,
}

impl<'a> Entry<'a> {
    fn new(http: &Http<'a>, exchange: &'a Exchange) -> Self {
        let began = exchange.began().unwrap_or(Time::at(http.time.0, 0));
        let timings = Timings::new(exchange);
        let web_socket = exchange.is_web_socket();
        Self {
            started_date_time: rfc3339(began.wall_ns),
            time: timings.send + timings.wait + timings.receive,
            request: Request::new(&exchange.request),
            response: Response::new(&exchange.response),
            cache: Cache {},
            timings,
            connection: http.connection.to_string(),
            stream: exchange.stream.0,
            pid: http.pid,
            comm: lossy(http.comm),
            role: http.requests.map(|direction| match direction {
                Direction::Write => "client",
                Direction::Read => "server",
            }),
            incomplete: exchange.gaps(),
            resource_type: web_socket.then_some("websocket"),
            web_socket_messages: web_socket.then(|| {
                let messages = exchange.messages.iter();
                messages.filter_map(WebSocketMessage::new).collect()
            }),
            grpc_messages: exchange
                .messages
                .iter()
                .filter_map(GrpcMessage::new)
                .collect(),
        }
    }
}

impl<'a> Request<'a> {
    fn new(sent: &'a Sent<RequestHead>) -> Self {
        let head = sent.head.as_ref();
        let fields = head.map_or(&[][..], |head| &head.fields);
        // A viewer wants a URL, and this host is one that can't exist (RFC 6761 section 6.4).
        let url = head.and_then(known_url).map_or_else(
            || "https://unknown.invalid/".to_owned(),
            |url| lossy(&url).into_owned(),
        );
        let media_type = sent.content_type.as_deref();
        Self {
            method: head
                .and_then(|head| head.method.as_deref())
                .map_or("UNKNOWN".into(), lossy),
            query_string: query_string(&url),
            url,
            http_version: head
                .map_or_else(|| "unknown".to_owned(), |head| head.version.to_string()),
            cookies: request_cookies(fields),
            headers: fields.iter().map(Pair::of).collect(),
            post_data: (!sent.body.content().is_empty()).then(|| {
                let (text, encoding) = text_or_base64(&sent.body, media_type);
                PostData {
                    mime_type: media_type.map(lossy).unwrap_or_default(),
                    text,
                    encoding,
                }
            }),
            headers_size: head.map_or(-1, |head| size(head.wire_length)),
            body_size: size(sent.body.length),
        }
    }
}

impl<'a> Response<'a> {
    fn new(sent: &'a Sent<ResponseHead>) -> Self {
        let head = sent.head.as_ref();
        let fields = head.map_or(&[][..], |head| &head.fields);
        let status = head.and_then(|head| head.status);
        Self {
            // What browsers write for a request that got no response.
            status: status.unwrap_or(0),
            status_text: head.map(|head| lossy(&head.reason)).unwrap_or_default(),
            http_version: head
                .map_or_else(|| "unknown".to_owned(), |head| head.version.to_string()),
            cookies: response_cookies(fields),
            headers: fields.iter().map(Pair::of).collect(),
            content: Content::new(sent),
            redirect_url: field_value(fields, "location")
                .map(lossy)
                .unwrap_or_default(),
            headers_size: head.map_or(-1, |head| size(head.wire_length)),
            body_size: size(sent.body.length),
            error: head.is_none().then_some("no response was seen"),
        }
    }
}

impl<'a> Content<'a> {
    fn new(sent: &'a Sent<ResponseHead>) -> Self {
        let (body, media_type) = (&sent.body, sent.content_type.as_deref());
        let decoded = body.content().len() as u64;
        let (text, encoding) = match decoded {
            0 => (None, None),
            _ => {
                let (text, encoding) = text_or_base64(body, media_type);
                (Some(text), encoding)
            }
        };
        Self {
            size: decoded.max(if body.is_decoded() { 0 } else { body.length }),
            compression: body.is_decoded().then(|| size(decoded) - size(body.length)),
            mime_type: media_type.map_or("x-unknown".into(), lossy),
            text,
            encoding,
        }
    }
}

impl<'a> Pair<'a> {
    fn of(field: &'a Field) -> Self {
        Self {
            name: lossy(&field.name),
            value: field.value.as_deref().map_or("(unknown)".into(), lossy),
        }
    }
}

impl Timings {
    fn new(exchange: &Exchange) -> Self {
        let ms = |earlier: Option<Time>, later: Option<Time>| match (earlier, later) {
            (Some(earlier), Some(later)) => later.since(earlier) as f64 / 1e6,
            _ => 0.0,
        };
        let (request, response) = (&exchange.request, &exchange.response);
        // A response may come before the request is complete.
        let sent = match (request.latest, response.began) {
            (Some(sent), Some(began)) => Some(sent.min(began)),
            (sent, _) => sent,
        };
        Self {
            blocked: -1.0,
            dns: -1.0,
            connect: -1.0,
            send: ms(request.began, sent),
            wait: ms(sent, response.began),
            receive: ms(response.began, response.latest),
            ssl: -1.0,
        }
    }
}

impl<'a> WebSocketMessage<'a> {
    fn new(message: &'a Message) -> Option<Self> {
        let opcode = match message.kind {
            MessageKind::Text => 1,
            MessageKind::Binary => 2,
            MessageKind::Close => 8,
            MessageKind::Ping => 9,
            MessageKind::Pong => 10,
            _ => return None,
        };
        let content = message.body.content();
        Some(Self {
            direction: direction(message.side),
            time: message.time.wall_ns as f64 / 1e9,
            opcode,
            data: match message.kind {
                MessageKind::Text => lossy(content),
                _ => STANDARD.encode_to_string(content).into(),
            },
        })
    }
}

impl GrpcMessage {
    fn new(message: &Message) -> Option<Self> {
        (message.kind == MessageKind::Grpc).then(|| Self {
            direction: direction(message.side),
            time: message.time.wall_ns as f64 / 1e9,
            length: message.body.length,
            data: STANDARD.encode_to_string(message.body.content()),
        })
    }
}

fn direction(side: Side) -> &'static str {
    match side {
        Side::Client => "send",
        Side::Server => "receive",
    }
}

fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn text_or_base64<'a>(
    body: &'a Body,
    media_type: Option<&[u8]>,
) -> (Cow<'a, str>, Option<&'static str>) {
    match text_of(body, media_type) {
        Some(text) => (text, None),
        None => (
            STANDARD.encode_to_string(body.content()).into(),
            Some("base64"),
        ),
    }
}

fn query_string(url: &str) -> Vec<Pair<'static>> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Pair {
                name: name.to_owned().into(),
                value: value.to_owned().into(),
            }
        })
        .collect()
}

/// The pairs of `Cookie` (RFC 6265 section 4.2).
fn request_cookies(fields: &[Field]) -> Vec<Pair<'_>> {
    let values = values(fields, "cookie");
    values
        .flat_map(|value| value.split(|&byte| byte == b';'))
        .filter_map(cookie)
        .collect()
}

/// The pairs of `Set-Cookie`, without their attributes.
fn response_cookies(fields: &[Field]) -> Vec<Pair<'_>> {
    let values = values(fields, "set-cookie");
    values
        .filter_map(|value| cookie(value.split(|&byte| byte == b';').next()?))
        .collect()
}

fn values<'a>(fields: &'a [Field], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let named = |field: &&Field| field.name.eq_ignore_ascii_case(name.as_bytes());
    fields
        .iter()
        .filter(named)
        .filter_map(|field| field.value.as_deref())
}

fn cookie(pair: &[u8]) -> Option<Pair<'_>> {
    let equals = pair.iter().position(|&byte| byte == b'=')?;
    Some(Pair {
        name: lossy(pair[..equals].trim_ascii()),
        value: lossy(pair[equals + 1..].trim_ascii()),
    })
}
