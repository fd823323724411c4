//! An HTTP exchange: a request with its response, and what can be said about both.

use std::collections::VecDeque;

use crate::body::Body;
use crate::budget::{Budget, Reservation};
use crate::event::{Field, RequestHead, ResponseHead, Side, StreamId, Trouble};
use crate::grpc::Grpc;
use crate::media::Kind;

/// A point in time by two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// ns by a clock that nobody sets, since some beginning, the same for all of a run.
    pub clock_ns: i64,
    /// ns by the wall clock, since 1970-01-01 UTC.
    pub wall_ns: i64,
}

impl Time {
    /// The point at `wall_ns` by the wall clock, which is `realtime_offset_ns` ahead of the other one.
    pub fn at(wall_ns: i64, realtime_offset_ns: i64) -> Self {
        Self {
            clock_ns: wall_ns.saturating_sub(realtime_offset_ns),
            wall_ns,
        }
    }

    /// How many ns lie between an earlier point and this one, whatever the wall clock was set to meanwhile.
    pub fn since(self, earlier: Self) -> u64 {
        u64::try_from(self.clock_ns.saturating_sub(earlier.clock_ns)).unwrap_or(0)
    }
}

/// A request with its response, finished or not.
#[derive(Debug)]
pub struct Exchange {
    /// Which one of its connection.
    pub stream: StreamId,
    /// What the client sent.
    pub request: Sent<RequestHead>,
    /// What the server sent.
    pub response: Sent<ResponseHead>,
    /// Responses with a status of 1xx before the response; no more than [`Self::INTERIM_MAX`] are kept.
    pub interim: Vec<ResponseHead>,
    /// Messages within the bodies, in order: of gRPC, WebSocket and server-sent events. No more than
    /// [`Self::MESSAGES_MAX`] are kept.
    pub messages: Vec<Message>,
    /// How many there were from client and server ([`Side::index`]).
    pub messages_seen: [u64; 2],
    /// The gRPC call that this is.
    pub grpc: Option<Grpc>,
    /// What both sides agreed to speak from the response's head on: `websocket`, for example.
    pub switched: Option<Vec<u8>>,
    /// What could not be decoded; no more than [`Self::TROUBLE_MAX`] are kept.
    pub trouble: Vec<(Side, Trouble)>,
    /// How it ended; `None` as long as it goes on.
    pub ending: Option<Ending>,
    /// If it was made known before its end, because it lasts: which sides ([`Side::index`]) had said all
    /// by then.
    pub announced: Option<[bool; 2]>,
    pub(crate) reservation: Reservation,
}

/// One side of an exchange.
#[derive(Debug)]
pub struct Sent<H> {
    /// What stands before the body; `None` if it was not seen.
    pub head: Option<H>,
    /// When the call was made that brought the (last byte of the) head, or the first byte seen.
    pub began: Option<Time>,
    /// When the call was made that brought the last byte so far.
    pub latest: Option<Time>,
    /// The body.
    pub body: Body,
    /// The fields behind the body.
    pub trailers: Vec<Field>,
    /// Whether all of it was sent: its end was seen, or, of a connection that ended, as many bytes of a body
    /// as `Content-Length` says.
    pub complete: bool,
    /// `Content-Length`, also if that is redacted in the head.
    pub content_length: Option<u64>,
    /// `Content-Type`, also if that is redacted in the head.
    pub content_type: Option<Vec<u8>>,
    /// `Content-Encoding`, also if that is redacted in the head.
    pub content_encoding: Option<Vec<u8>>,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Both sides said all that they had to say.
    Complete,
    /// A side gave it up, with an error code of HTTP/2 (RFC 9113 section 7).
    Reset(Side, u32),
    /// The connection was closed before.
    ConnectionClosed,
    /// The capture ended before.
    CaptureEnded,
    /// It was given up here, in favour of newer ones: too many were open.
    Displaced,
}

/// A message within a body.
#[derive(Debug)]
pub struct Message {
    /// When the call was made that brought its last byte.
    pub time: Time,
    /// Who sent it.
    pub side: Side,
    /// What kind of message.
    pub kind: MessageKind,
    /// Its bytes; their length is that on the wire, without framing.
    pub body: Body,
}

/// Kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// Of gRPC.
    Grpc,
    /// A server-sent event.
    Event,
    /// Text of a WebSocket (RFC 6455 section 5.6).
    Text,
    /// Bytes of a WebSocket.
    Binary,
    /// A WebSocket's ping (RFC 6455 section 5.5.2).
    Ping,
    /// A WebSocket's pong.
    Pong,
    /// A WebSocket's closing message.
    Close,
    /// The next bytes of a body that is being sent for a while. These are not kept as messages.
    Piece,
}

impl MessageKind {
    /// The name in outputs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Event => "event",
            Self::Text => "text",
            Self::Binary => "binary",
            Self::Ping => "ping",
            Self::Pong => "pong",
            Self::Close => "close",
            Self::Piece => "piece",
        }
    }
}

impl<H> Sent<H> {
    fn new(budget: &Budget) -> Self {
        Self {
            head: None,
            began: None,
            latest: None,
            body: Body::new(budget),
            trailers: Vec::new(),
            complete: false,
            content_length: None,
            content_type: None,
            content_encoding: None,
        }
    }

    /// Whether anything of this side was seen.
    pub fn is_seen(&self) -> bool {
        self.began.is_some()
    }

    pub(crate) fn touch(&mut self, time: Time) {
        self.began.get_or_insert(time);
        self.latest = Some(time);
    }

    /// Nothing follows, also not the end: one who has all bytes that `Content-Length` promised (RFC 9110 section
    /// 8.6) may close the connection ahead of HTTP/2's END_STREAM.
    pub(crate) fn cease(&mut self) {
        self.complete |= self.content_length == Some(self.body.length);
    }
}

impl Exchange {
    /// Interim responses that are kept.
    pub const INTERIM_MAX: usize = 8;
    /// Messages that are kept.
    pub const MESSAGES_MAX: usize = 1000;
    /// Troubles that are kept.
    pub const TROUBLE_MAX: usize = 8;

    /// An exchange that takes its memory from `budget`; `None` if that has none.
    pub(crate) fn new(stream: StreamId, budget: &Budget) -> Option<Self> {
        let mut reservation = Reservation::none(budget);
        reservation.grow(size_of::<Self>()).then(|| Self {
            stream,
            request: Sent::new(budget),
            response: Sent::new(budget),
            interim: Vec::new(),
            messages: Vec::new(),
            messages_seen: [0; 2],
            grpc: None,
            switched: None,
            trouble: Vec::new(),
            ending: None,
            announced: None,
            reservation,
        })
    }

    /// When it was first seen.
    pub fn began(&self) -> Option<Time> {
        match (self.request.began, self.response.began) {
            (Some(request), Some(response)) => Some(request.min(response)),
            (request, response) => request.or(response),
        }
    }

    /// When it was last seen.
    pub fn latest(&self) -> Option<Time> {
        self.request.latest.max(self.response.latest)
    }

    /// How many ns passed from the request's beginning to the response's end, as far as both are known.
    pub fn duration(&self) -> Option<u64> {
        let ended = self.response.latest.filter(|_| self.response.complete)?;
        Some(ended.since(self.request.began?))
    }

    /// How many ns the client waited: from the request's last byte to the response's head. 0 if the
    /// response came before the request was complete.
    pub fn latency(&self) -> Option<u64> {
        self.response.head.as_ref()?;
        Some(self.response.began?.since(self.request_ended()?))
    }

    /// When the request's last byte passed.
    pub fn request_ended(&self) -> Option<Time> {
        self.request.latest.filter(|_| self.request.complete)
    }

    /// The body that a side sent.
    pub fn body(&self, side: Side) -> &Body {
        match side {
            Side::Client => &self.request.body,
            Side::Server => &self.response.body,
        }
    }

    /// The type of the body that a side sent.
    pub fn content_type(&self, side: Side) -> Option<&[u8]> {
        match side {
            Side::Client => self.request.content_type.as_deref(),
            Side::Server => self.response.content_type.as_deref(),
        }
    }

    /// Whether it became a WebSocket.
    pub fn is_web_socket(&self) -> bool {
        let protocol = self.switched.as_deref();
        protocol.is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
    }

    /// Whether all was said; a request that was not seen is over with its response.
    pub(crate) fn is_whole(&self) -> bool {
        self.response.complete && (self.request.complete || !self.request.is_seen())
    }

    /// Whether this side was complete.
    pub fn is_complete(&self, side: Side) -> bool {
        match side {
            Side::Client => self.request.complete,
            Side::Server => self.response.complete,
        }
    }

    /// Whether the body that a side sends can be shown piece by piece: it is text, and as it is.
    pub fn is_shown_in_pieces(&self, side: Side) -> bool {
        let coding = match side {
            Side::Client => &self.request.content_encoding,
            Side::Server => &self.response.content_encoding,
        };
        // Bytes alone would make it binary.
        let kind = Kind::of(self.content_type(side), b"\0");
        coding.is_none() && matches!(kind, Kind::Text | Kind::Json)
    }

    /// What is missing or went wrong, in words; nothing if all of it is there.
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        if self.request.head.is_none() {
            gaps.push("the request was not seen".to_owned());
        }
        if self.response.head.is_none() {
            gaps.push("no response was seen".to_owned());
        }
        for (name, side) in [("request", Side::Client), ("response", Side::Server)] {
            let missing = self.body(side).missing;
            for (bytes, what) in [
                (missing.lost(), "are missing"),
                (missing.left_out, "were not captured (--tsize)"),
            ] {
                if bytes > 0 {
                    gaps.push(format!("{bytes} bytes of the {name} body {what}"));
                }
            }
        }
        for (name, complete) in [
            (
                "request",
                self.request.head.is_none() || self.request.complete,
            ),
            (
                "response",
                self.response.head.is_none() || self.response.complete,
            ),
        ] {
            if !complete && self.ending.is_some() && self.switched.is_none() {
                gaps.push(format!("the {name}'s end was not seen"));
            }
        }
        let unknown = self
            .request
            .head
            .as_ref()
            .map_or(0, |head| unknown(&head.fields) + head.unknown_fields)
            + self
                .response
                .head
                .as_ref()
                .map_or(0, |head| unknown(&head.fields) + head.unknown_fields);
        if unknown > 0 {
            gaps.push(format!(
                "{unknown} header fields refer to what was not seen"
            ));
        }
        // That is the reason for what was said of an unseen request.
        let known = self.request.head.is_some();
        let trouble = self.trouble.iter();
        let trouble = trouble.filter(|(_, trouble)| known || *trouble != Trouble::Unpaired);
        gaps.extend(trouble.map(|(side, trouble)| match (trouble, side) {
            (Trouble::Unpaired, _) => trouble.to_string(),
            (_, Side::Client) => format!("in the request: {trouble}"),
            (_, Side::Server) => format!("in the response: {trouble}"),
        }));
        match self.ending {
            None | Some(Ending::Complete) => {}
            Some(Ending::Reset(side, code)) => {
                let who = match side {
                    Side::Client => "client",
                    Side::Server => "server",
                };
                gaps.push(format!("reset by the {who}: {}", reset_name(code)));
            }
            Some(Ending::ConnectionClosed) if self.switched.is_some() => {}
            Some(Ending::ConnectionClosed) => gaps.push("the connection was closed".to_owned()),
            Some(Ending::CaptureEnded) => gaps.push("the capture ended".to_owned()),
            Some(Ending::Displaced) => gaps.push("given up: too many exchanges at once".to_owned()),
        }
        gaps
    }
}

/// Fields whose value is unknown.
fn unknown(fields: &[Field]) -> usize {
    fields.iter().filter(|field| field.value.is_none()).count()
}

/// HTTP/2's error codes (RFC 9113 section 7).
pub fn reset_name(code: u32) -> String {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    let name = usize::try_from(code).ok().and_then(|code| NAMES.get(code));
    name.map_or_else(|| format!("error code {code:#x}"), |&name| name.to_owned())
}

/// The value of the first field of this name, which is in lower case.
pub fn field_value<'a>(fields: &'a [Field], name: &str) -> Option<&'a [u8]> {
    let matches = |field: &&Field| field.name.eq_ignore_ascii_case(name.as_bytes());
    fields.iter().find(matches)?.value.as_deref()
}

/// Header fields whose values are not shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redaction {
    names: Vec<Vec<u8>>,
}

impl Redaction {
    /// What stands in the place of a value.
    pub const MASK: &'static [u8] = b"[redacted]";

    /// Fields that carry credentials.
    pub const DEFAULT: [&'static str; 8] = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-api-key",
        "x-auth-token",
        "x-csrf-token",
        "x-amz-security-token",
    ];

    /// Masks fields of these names, in any case.
    pub fn new<N: AsRef<[u8]>>(names: impl IntoIterator<Item = N>) -> Self {
        let lower = |name: N| name.as_ref().to_ascii_lowercase();
        Self {
            names: names.into_iter().map(lower).collect(),
        }
    }

    pub(crate) fn apply(&self, fields: &mut [Field]) {
        if self.names.is_empty() {
            return;
        }
        for field in fields {
            if self.names.contains(&field.name.to_ascii_lowercase()) && field.value.is_some() {
                field.value = Some(Self::MASK.to_vec());
            }
        }
    }
}

/// Streams that ended while one side may still be sending.
#[derive(Debug, Default)]
pub(crate) struct Ended(VecDeque<StreamId>);

impl Ended {
    /// As many streams as a connection commonly has at a time.
    const MAX: usize = 256;

    pub(crate) fn insert(&mut self, stream: StreamId) {
        if self.0.len() == Self::MAX {
            self.0.pop_front();
        }
        self.0.push_back(stream);
    }

    pub(crate) fn contains(&self, stream: StreamId) -> bool {
        self.0.contains(&stream)
    }
}
