//! HTTP exchanges and their messages as JSON; docs/json-lines.md describes the fields.

use std::borrow::Cow;

use base64_simd::STANDARD;
use events::Direction;
use protocol::{
    Body, ContentState, Ending, Exchange, Field, Kind, Message, RequestHead, ResponseHead, Sent,
    Side, Time, is_text, to_utf8,
};
use serde::{Serialize, Serializer};

use crate::exchange_text::{known_url, side_name};
use crate::time::rfc3339;

/// Everything of an exchange.
#[derive(Debug, Serialize)]
pub(crate) struct ExchangeJson<'a> {
    stream: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    ending: &'static str,
    /// Whether all of it was seen and decoded.
    complete: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    incomplete: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<RequestJson<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interim: Vec<StatusJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<ResponseJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    switched: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc: Option<GrpcJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages_seen: Option<MessagesSeen>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    messages: Vec<MessageJson<'a>>,
}

#[derive(Debug, Serialize)]
struct RequestJson<'a> {
    #[serde(flatten)]
    head: Option<RequestHeadJson<'a>>,
    #[serde(flatten)]
    sent: SentJson<'a>,
}

#[derive(Debug, Serialize)]
struct RequestHeadJson<'a> {
    version: String,
    method: Option<Cow<'a, str>>,
    url: Option<Cow<'a, str>>,
    headers: Vec<FieldJson<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    unknown_headers: usize,
}

#[derive(Debug, Serialize)]
struct ResponseJson<'a> {
    #[serde(flatten)]
    head: Option<StatusJson<'a>>,
    #[serde(flatten)]
    sent: SentJson<'a>,
}

#[derive(Debug, Serialize)]
struct StatusJson<'a> {
    version: String,
    status: Option<u16>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: Cow<'a, str>,
    headers: Vec<FieldJson<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    unknown_headers: usize,
}

#[derive(Debug, Serialize)]
struct SentJson<'a> {
    #[serde(serialize_with = "time")]
    time: Option<Time>,
    #[serde(serialize_with = "time")]
    end_time: Option<Time>,
    complete: bool,
    body: BodyJson<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trailers: Vec<FieldJson<'a>>,
}

/// Name and value; `null` for a value that is not known.
type FieldJson<'a> = (Cow<'a, str>, Option<Cow<'a, str>>);

#[derive(Debug, Serialize)]
struct BodyJson<'a> {
    length: u64,
    #[serde(skip_serializing_if = "is_none")]
    missing: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    coding: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(flatten)]
    content: Option<ContentJson<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum ContentJson<'a> {
    Text(Cow<'a, str>),
    DataBase64(String),
}

#[derive(Debug, Serialize)]
struct GrpcJson<'a> {
    service: Cow<'a, str>,
    method: Cow<'a, str>,
    status: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Cow<'a, str>>,
}

#[derive(Debug, Serialize)]
struct MessagesSeen {
    client: u64,
    server: u64,
}

/// A message, within its exchange or alone.
#[derive(Debug, Serialize)]
pub(crate) struct MessageJson<'a> {
    #[serde(serialize_with = "time", skip_serializing_if = "Option::is_none")]
    time: Option<Time>,
    from: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    body: BodyJson<'a>,
}

impl<'a> ExchangeJson<'a> {
    pub(crate) fn new(exchange: &'a Exchange, requests: Option<Direction>) -> Self {
        let in_messages = exchange.grpc.is_some();
        let [client, server] = exchange.messages_seen;
        let incomplete = exchange.gaps();
        Self {
            stream: exchange.stream.0,
            role: requests.map(|direction| match direction {
                Direction::Write => "client",
                Direction::Read => "server",
            }),
            ending: ending(exchange.ending),
            complete: incomplete.is_empty(),
            incomplete,
            latency_ns: exchange.latency(),
            duration_ns: exchange.duration(),
            request: exchange.request.is_seen().then(|| RequestJson {
                head: exchange.request.head.as_ref().map(RequestHeadJson::new),
                sent: SentJson::new(&exchange.request, in_messages),
            }),
            interim: exchange.interim.iter().map(StatusJson::new).collect(),
            response: exchange.response.is_seen().then(|| ResponseJson {
                head: exchange.response.head.as_ref().map(StatusJson::new),
                sent: SentJson::new(&exchange.response, in_messages),
            }),
            switched: exchange.switched.as_deref().map(lossy),
            grpc: exchange.grpc.as_ref().map(|grpc| GrpcJson {
                service: lossy(&grpc.service),
                method: lossy(&grpc.method),
                status: grpc.status,
                status_name: grpc.status_name(),
                message: grpc.message.as_deref().map(lossy),
            }),
            messages_seen: (client + server > 0).then_some(MessagesSeen { client, server }),
            messages: exchange.messages.iter().map(MessageJson::new).collect(),
        }
    }
}

impl<'a> RequestHeadJson<'a> {
    fn new(head: &'a RequestHead) -> Self {
        Self {
            version: head.version.to_string(),
            method: head.method.as_deref().map(lossy),
            url: known_url(head).map(|url| lossy_cow(url)),
            headers: fields(&head.fields),
            unknown_headers: head.unknown_fields,
        }
    }
}

impl<'a> StatusJson<'a> {
    fn new(head: &'a ResponseHead) -> Self {
        Self {
            version: head.version.to_string(),
            status: head.status,
            reason: lossy(&head.reason),
            headers: fields(&head.fields),
            unknown_headers: head.unknown_fields,
        }
    }
}

impl<'a> SentJson<'a> {
    fn new<H>(sent: &'a Sent<H>, in_messages: bool) -> Self {
        let media_type = sent.content_type.as_deref();
        let mut body = BodyJson::new(&sent.body, media_type);
        body.coding = sent.content_encoding.as_deref().map(lossy);
        if in_messages {
            (body.content, body.state) = (None, None);
        }
        Self {
            time: sent.began,
            end_time: sent.latest.filter(|_| sent.complete),
            complete: sent.complete,
            body,
            trailers: fields(&sent.trailers),
        }
    }
}

impl<'a> BodyJson<'a> {
    fn new(body: &'a Body, media_type: Option<&[u8]>) -> Self {
        Self {
            length: body.length,
            missing: body.missing.bytes,
            coding: None,
            state: (body.length > 0).then(|| state(body.state())),
            content: (!body.content().is_empty()).then(|| content(body, media_type)),
        }
    }
}

impl<'a> MessageJson<'a> {
    fn new(message: &'a Message) -> Self {
        Self {
            time: Some(message.time),
            ..Self::alone(message)
        }
    }

    /// Without its time.
    pub(crate) fn alone(message: &'a Message) -> Self {
        Self {
            time: None,
            from: side_name(message.side),
            kind: message.kind.name(),
            body: BodyJson::new(&message.body, None),
        }
    }
}

/// Text if it is meant as text and is UTF-8, or can be made so; else base64.
fn content<'a>(body: &'a Body, media_type: Option<&[u8]>) -> ContentJson<'a> {
    match text_of(body, media_type) {
        Some(text) => ContentJson::Text(text),
        None => ContentJson::DataBase64(STANDARD.encode_to_string(body.content())),
    }
}

/// A body as text, if it is text from beginning to end.
pub(crate) fn text_of<'a>(body: &'a Body, media_type: Option<&[u8]>) -> Option<Cow<'a, str>> {
    let content = body.content();
    let kind = Kind::of(media_type, content);
    if body.state() == ContentState::UnknownCoding
        || !matches!(kind, Kind::Text | Kind::Json | Kind::Multipart(_))
    {
        return None;
    }
    let text = match to_utf8(media_type, content) {
        Cow::Borrowed(bytes) => Cow::Borrowed(str::from_utf8(bytes).ok()?),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).ok()?),
    };
    is_text(text.as_bytes()).then_some(text)
}

fn state(state: ContentState) -> &'static str {
    match state {
        ContentState::Whole => "whole",
        ContentState::Cut => "cut",
        ContentState::Undecodable(_) => "undecodable",
        ContentState::UnknownCoding => "unknown_coding",
    }
}

fn ending(ending: Option<Ending>) -> &'static str {
    match ending {
        None => "open",
        Some(Ending::Complete) => "complete",
        Some(Ending::Reset(Side::Client, _)) => "reset_by_client",
        Some(Ending::Reset(Side::Server, _)) => "reset_by_server",
        Some(Ending::ConnectionClosed) => "connection_closed",
        Some(Ending::CaptureEnded) => "capture_ended",
        Some(Ending::Displaced) => "displaced",
    }
}

fn fields(fields: &[Field]) -> Vec<FieldJson<'_>> {
    fields.iter().map(pair).collect()
}

fn pair(field: &Field) -> FieldJson<'_> {
    (lossy(&field.name), field.value.as_deref().map(lossy))
}

/// Bytes as text: what is not UTF-8 becomes U+FFFD.
pub(crate) fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn lossy_cow(bytes: Cow<'_, [u8]>) -> Cow<'_, str> {
    match bytes {
        Cow::Borrowed(bytes) => lossy(bytes),
        Cow::Owned(bytes) => Cow::Owned(lossy(&bytes).into_owned()),
    }
}

fn time<S: Serializer>(time: &Option<Time>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.serialize_str(&rfc3339(time.wall_ns)),
        None => serializer.serialize_none(),
    }
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn is_none(bytes: &u64) -> bool {
    *bytes == 0
}
