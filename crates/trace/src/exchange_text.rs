//! HTTP exchanges as text for people: a line that says what became of it, the heads, the bodies.

use std::borrow::Cow;

use events::Direction;
use protocol::{
    Ending, Exchange, Field, Kind, Message, MessageKind, Notice, RequestHead, ResponseHead, Side,
};

use crate::body_text::{BodyText, note, text};
use crate::escape::escape_name;
use crate::event::opposite;
use crate::text::Palette;
use crate::units::{Size, Span};

/// Writes exchanges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExchangeText {
    pub(crate) body: BodyText,
    pub(crate) palette: Palette,
}

impl ExchangeText {
    /// Appends a notice, behind the time and the name of who said it. `requests` is the direction in
    /// which requests go.
    pub(crate) fn notice(
        self,
        out: &mut Vec<u8>,
        requests: Option<Direction>,
        notice: &Notice<'_>,
    ) {
        match notice {
            Notice::Began(exchange) => {
                self.line(out, exchange, requests, "not finished");
                self.request(out, exchange);
                self.response(out, exchange);
            }
            Notice::Response(exchange) => {
                self.line(out, exchange, requests, "not finished");
                self.response(out, exchange);
            }
            Notice::Message(exchange, message) => self.message(out, exchange, requests, message),
            Notice::Finished(exchange) if exchange.announced.is_some() => {
                self.line(out, exchange, requests, "");
                self.rest(out, exchange);
                self.gaps(out, exchange);
            }
            Notice::Finished(exchange) => {
                self.line(out, exchange, requests, "");
                self.request(out, exchange);
                self.response(out, exchange);
                self.gaps(out, exchange);
            }
            Notice::Trouble(side, offset, trouble) => {
                let side = side_name(*side);
                let line = format!("HTTP: from byte {offset} of the {side} on: {trouble}");
                out.extend_from_slice(line.as_bytes());
                self.end_line(out);
            }
        }
    }

    /// `#1/5 → GET https://host/path → 200 OK, 1.2 kB, 3.4 ms`
    fn line(
        self,
        out: &mut Vec<u8>,
        exchange: &Exchange,
        requests: Option<Direction>,
        remark: &str,
    ) {
        let mut line = format!(
            "/{} {}{} → {}",
            exchange.stream.0,
            arrow(requests),
            request_line(exchange),
            outcome(exchange)
        );
        if let Some(grpc) = &exchange.grpc {
            line += ", grpc ";
            line += &match (grpc.status, grpc.status_name()) {
                (_, Some(name)) => name.to_owned(),
                (Some(status), None) => format!("status {status}"),
                (None, None) => "without a status".to_owned(),
            };
            if let Some(message) = grpc
                .message
                .as_deref()
                .filter(|message| !message.is_empty())
            {
                line += &format!(" ({})", escape_name(message));
            }
        }
        let messages: u64 = exchange.messages_seen.iter().sum();
        if messages > 0 {
            let plural = if messages == 1 { "" } else { "s" };
            line += &format!(", {messages} message{plural}");
        } else if exchange.response.is_seen() {
            line += &format!(", {}", Size(exchange.response.body.length));
            if let Some(coding) = &exchange.response.content_encoding {
                line += &format!(" {}", escape_name(coding));
            }
        }
        if let Some(duration) = exchange.duration().filter(|_| exchange.ending.is_some()) {
            line += &format!(", {}", Span(duration));
        }
        if !remark.is_empty() {
            line += &format!(", {remark}");
        }
        out.extend_from_slice(line.as_bytes());
        self.end_line(out);
    }

    fn end_line(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.palette.reset.as_bytes());
        out.push(b'\n');
    }

    fn request(self, out: &mut Vec<u8>, exchange: &Exchange) {
        let Some(head) = &exchange.request.head else {
            return;
        };
        let method = head
            .method
            .as_deref()
            .map_or("(unknown)".into(), escape_name);
        let target = head
            .target
            .as_deref()
            .map_or("(unknown)".into(), escape_name);
        out.extend_from_slice(format!("{method} {target} {}\n", head.version).as_bytes());
        fields(out, &head.fields, head.unknown_fields);
        self.body(out, exchange, Side::Client);
        fields(out, &exchange.request.trailers, 0);
        for head in &exchange.interim {
            out.push(b'\n');
            self.status(out, head);
        }
    }

    fn response(self, out: &mut Vec<u8>, exchange: &Exchange) {
        let Some(head) = &exchange.response.head else {
            return;
        };
        if exchange.request.head.is_some() {
            out.push(b'\n');
        }
        self.status(out, head);
        self.body(out, exchange, Side::Server);
        fields(out, &exchange.response.trailers, 0);
    }

    fn status(self, out: &mut Vec<u8>, head: &ResponseHead) {
        out.extend_from_slice(format!("{} {}\n", head.version, status(head)).as_bytes());
        fields(out, &head.fields, head.unknown_fields);
    }

    /// The body, or its messages. Those of an exchange that was announced are shown as they pass, and
    /// so is text, unless all of it was there before.
    fn body(self, out: &mut Vec<u8>, exchange: &Exchange, side: Side) {
        if exchange.grpc.is_some() || exchange.switched.is_some() {
            if exchange.announced.is_none() {
                self.messages(out, exchange, side);
            }
            return;
        }
        if exchange.is_complete(side) || exchange.ending.is_some() {
            self.whole_body(out, exchange, side);
        }
    }

    fn whole_body(self, out: &mut Vec<u8>, exchange: &Exchange, side: Side) {
        let (body, media_type) = (exchange.body(side), exchange.content_type(side));
        if body.length > 0 {
            out.push(b'\n');
            let kind = Kind::of(media_type, body.content());
            self.body.body(out, body, &kind, media_type);
        }
    }

    fn messages(self, out: &mut Vec<u8>, exchange: &Exchange, side: Side) {
        let kept = exchange
            .messages
            .iter()
            .filter(|message| message.side == side);
        for message in kept {
            out.push(b'\n');
            let remark = format!("[message of {}]\n", Size(message.body.length));
            out.extend_from_slice(remark.as_bytes());
            self.payload(out, exchange, message);
        }
        let kept = exchange
            .messages
            .iter()
            .filter(|message| message.side == side);
        let left_out = exchange.messages_seen[side.index()].saturating_sub(kept.count() as u64);
        if left_out > 0 {
            out.extend_from_slice(format!("[{left_out} more messages]\n").as_bytes());
        }
    }

    /// `#1/5 → message of 12 bytes`, and the message.
    fn message(
        self,
        out: &mut Vec<u8>,
        exchange: &Exchange,
        requests: Option<Direction>,
        message: &Message,
    ) {
        let arrow = match message.side {
            Side::Client => arrow(requests),
            Side::Server => arrow(requests.map(opposite)),
        };
        let what = match message.kind {
            MessageKind::Grpc => "message of ",
            MessageKind::Event => "event of ",
            MessageKind::Text => "text message of ",
            MessageKind::Binary => "binary message of ",
            MessageKind::Ping => "ping with ",
            MessageKind::Pong => "pong with ",
            MessageKind::Close => "close with ",
            MessageKind::Piece => "",
        };
        let size = Size(message.body.length);
        let line = format!("/{} {arrow}{what}{size}", exchange.stream.0);
        out.extend_from_slice(line.as_bytes());
        self.end_line(out);
        self.payload(out, exchange, message);
    }

    fn payload(self, out: &mut Vec<u8>, exchange: &Exchange, message: &Message) {
        let content = message.body.content();
        let media_type = exchange.content_type(message.side);
        let kind = match message.kind {
            MessageKind::Grpc => Kind::of_grpc(media_type, content),
            MessageKind::Event | MessageKind::Piece => Kind::Text,
            MessageKind::Text if content.starts_with(b"{") => Kind::Json,
            MessageKind::Text => Kind::Text,
            _ => Kind::of(None, content),
        };
        self.body.body(out, &message.body, &kind, None);
    }

    /// What an announced exchange has not shown yet.
    fn rest(self, out: &mut Vec<u8>, exchange: &Exchange) {
        let Some(shown) = exchange.announced else {
            return;
        };
        let messages = exchange.grpc.is_some() || exchange.switched.is_some();
        for side in [Side::Client, Side::Server] {
            if messages || shown[side.index()] {
                continue;
            }
            if exchange.is_shown_in_pieces(side) {
                note(out, exchange.body(side));
            } else {
                self.whole_body(out, exchange, side);
            }
        }
        fields(out, &exchange.response.trailers, 0);
    }

    /// `[incomplete: …]`
    fn gaps(self, out: &mut Vec<u8>, exchange: &Exchange) {
        let gaps = exchange.gaps();
        if gaps.is_empty() {
            return;
        }
        let (colour, reset) = (self.palette.lost, self.palette.reset);
        let line = format!("{colour}[incomplete: {}]{reset}\n", gaps.join("; "));
        out.extend_from_slice(line.as_bytes());
    }
}

fn arrow(direction: Option<Direction>) -> &'static str {
    match direction {
        Some(Direction::Write) => "→ ",
        Some(Direction::Read) => "← ",
        None => "",
    }
}

pub(crate) fn side_name(side: Side) -> &'static str {
    match side {
        Side::Client => "client",
        Side::Server => "server",
    }
}

fn request_line(exchange: &Exchange) -> String {
    let Some(head) = &exchange.request.head else {
        return "(request not seen)".to_owned();
    };
    let method = head
        .method
        .as_deref()
        .map_or("(unknown)".into(), escape_name);
    format!("{method} {}", escape_name(&url(head)))
}

/// The URL of a request; what is not known of it says so.
fn url(head: &RequestHead) -> Cow<'_, [u8]> {
    url_with(head, head.target.as_deref().unwrap_or(b"/(unknown)"))
}

/// The URL of a request whose target is known.
pub(crate) fn known_url(head: &RequestHead) -> Option<Cow<'_, [u8]>> {
    Some(url_with(head, head.target.as_deref()?))
}

fn url_with<'a>(head: &'a RequestHead, target: &'a [u8]) -> Cow<'a, [u8]> {
    // RFC 9112 section 3.2: the absolute form is a URL, the authority form stands for itself.
    let origin_form = target.starts_with(b"/") || target == b"*";
    if !origin_form || head.method.as_deref() == Some(b"CONNECT") {
        return Cow::Borrowed(target);
    }
    let scheme = head.scheme.as_deref().unwrap_or(b"https");
    let authority = head.authority.as_deref().unwrap_or(b"(unknown)");
    let separator: &[u8] = if target == b"*" { b"/" } else { b"" };
    Cow::Owned([scheme, b"://", authority, separator, target].concat())
}

fn outcome(exchange: &Exchange) -> String {
    match (&exchange.response.head, exchange.ending) {
        (Some(head), _) => status(head),
        (None, Some(Ending::Reset(..))) => "reset".to_owned(),
        (None, Some(_)) => "no response".to_owned(),
        (None, None) => "…".to_owned(),
    }
}

/// `200 OK`; HTTP/2 has no reason phrase, so the registered one stands in.
fn status(head: &ResponseHead) -> String {
    let Some(status) = head.status else {
        return "(unknown status)".to_owned();
    };
    let reason = match &head.reason[..] {
        [] => reason_phrase(status).into(),
        reason => escape_name(reason),
    };
    let blank = if reason.is_empty() { "" } else { " " };
    format!("{status}{blank}{reason}")
}

/// The reason phrases of RFC 9110 section 15, and of a few others in IANA's registry.
fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// `name: value` lines.
fn fields(out: &mut Vec<u8>, fields: &[Field], unknown: usize) {
    for field in fields {
        let value = field
            .value
            .as_deref()
            .map_or("(unknown)".into(), escape_name);
        for part in [&escape_name(&field.name), ": ", &value, "\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    if unknown > 0 {
        text(out, format!("[{unknown} unknown header fields]").as_bytes());
    }
}
