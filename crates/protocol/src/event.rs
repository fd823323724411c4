//! What the decoders of HTTP/1, HTTP/2 and WebSocket report: the same vocabulary for all of them.

use std::fmt;

/// Which end of a connection sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The end that asks.
    Client,
    /// The end that answers.
    Server,
}

impl Side {
    /// The other end.
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// Index of what this end sends in a pair.
    pub fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }
}

/// Number of an exchange within a connection: the stream identifier in HTTP/2 (RFC 9113 section
/// 5.1.1), the number of the request from 1 on in HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// Version of HTTP, as the message names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// RFC 1945.
    Http10,
    /// RFC 9112.
    Http11,
    /// RFC 9113.
    Http2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        })
    }
}

/// A header or trailer field. Name and value are what was sent, without the white space around the
/// value; in HTTP/2 names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Field {
    /// The name; not necessarily text.
    pub name: Vec<u8>,
    /// The value; not necessarily text. `None` if it stands in a part of the HPACK dynamic table that
    /// we did not see being sent.
    pub value: Option<Vec<u8>>,
}

/// A request without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Which HTTP.
    pub version: Version,
    /// The method; `None` if it is not known (see [`Field::value`]).
    pub method: Option<Vec<u8>>,
    /// Scheme, `https` unless the request says otherwise.
    pub scheme: Option<Vec<u8>>,
    /// `:authority`, or the `Host` field.
    pub authority: Option<Vec<u8>>,
    /// The request target: path and query; `None` if it is not known.
    pub target: Option<Vec<u8>>,
    /// All fields in order, without HTTP/2's pseudo-header fields.
    pub fields: Vec<Field>,
    /// How many fields there were of which neither name nor value is known (HTTP/2 only).
    pub unknown_fields: usize,
    /// Bytes of this head on the wire.
    pub wire_length: u64,
}

/// A response without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Which HTTP.
    pub version: Version,
    /// The status code; `None` if it is not known (see [`Field::value`]).
    pub status: Option<u16>,
    /// The reason phrase of HTTP/1.
    pub reason: Vec<u8>,
    /// All fields in order, without HTTP/2's pseudo-header fields.
    pub fields: Vec<Field>,
    /// How many fields there were of which neither name nor value is known (HTTP/2 only).
    pub unknown_fields: usize,
    /// Bytes of this head on the wire.
    pub wire_length: u64,
}

/// Why something could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Bytes are missing (lost or unreadable), and what follows could not be told apart
    /// from them. Decoding goes on as soon as a message begins.
    Gap {
        /// How many.
        bytes: u64,
    },
    /// So many bytes are missing because the user asked for no more of each call; else like
    /// [`Trouble::Gap`].
    LeftOut {
        /// How many.
        bytes: u64,
    },
    /// Which response belongs to which request is not certain: a request or a response was not seen.
    Unpaired,
    /// The connection was first seen in the middle.
    MidStream,
    /// What came before on this stream may have been missed.
    Unseen,
    /// The bytes are not what the protocol prescribes.
    Malformed(&'static str),
    /// So many fields' names or values are not known, because they refer to what we did not see (see
    /// [`Field::value`]), and no head says so.
    UnknownFields(usize),
    /// More than we are ready to hold: what, and the limit.
    TooMuch(&'static str, usize),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gap { bytes } => write!(f, "{bytes} bytes are missing"),
            Self::LeftOut { bytes } => write!(f, "{bytes} bytes were not captured (--tsize)"),
            Self::Unpaired => {
                f.write_str("it is not certain which response belongs to which request")
            }
            Self::MidStream => f.write_str("the connection was first seen in the middle"),
            Self::Unseen => f.write_str("its beginning was not seen"),
            Self::Malformed(what) => write!(f, "malformed: {what}"),
            Self::UnknownFields(count) => {
                write!(f, "{count} header fields refer to what was not seen")
            }
            Self::TooMuch(what, limit) => write!(f, "{what}: more than the limit of {limit}"),
        }
    }
}

/// How many bytes of something are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// For any cause.
    pub bytes: u64,
    /// How many of them for [`Cause::LeftOut`].
    pub left_out: u64,
}

impl Missing {
    /// So many more are.
    pub(crate) fn add(&mut self, bytes: u64, cause: Cause) {
        self.bytes = self.bytes.saturating_add(bytes);
        if cause == Cause::LeftOut {
            self.left_out = self.left_out.saturating_add(bytes);
        }
    }

    /// How many were lost, or could not be read.
    pub fn lost(self) -> u64 {
        self.bytes - self.left_out
    }
}

/// Why bytes are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// They were lost, or could not be read.
    Lost,
    /// The user asked for no more of each call.
    LeftOut,
}

impl Cause {
    /// That `bytes` bytes are missing.
    pub(crate) fn trouble(self, bytes: u64) -> Trouble {
        match self {
            Self::Lost => Trouble::Gap { bytes },
            Self::LeftOut => Trouble::LeftOut { bytes },
        }
    }
}

/// One step of an HTTP conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpEvent<'a> {
    /// A request begins.
    Request(StreamId, RequestHead),
    /// A response begins. One with a status of 1xx other than 101 is followed by another.
    Response(StreamId, ResponseHead),
    /// Bytes of a body, in order, transfer coding and framing removed, content coding not. After
    /// [`HttpEvent::Switched`]: bytes of what the connection or stream carries now.
    Body(StreamId, Side, &'a [u8]),
    /// Bytes of a body that are missing here.
    Missing(StreamId, Side, u64, Cause),
    /// The fields behind a body.
    Trailers(StreamId, Side, Vec<Field>),
    /// This side's message is complete.
    End(StreamId, Side),
    /// The exchange was given up by this side, with HTTP/2's error code (RFC 9113 section 7).
    Reset(StreamId, Side, u32),
    /// Both sides agreed to speak something else from here on: the value of `Upgrade` (101), or of
    /// `:protocol` (RFC 8441), or `CONNECT`.
    Switched(StreamId, Vec<u8>),
    /// Something could not be decoded, at this offset of what the side sent: the exchange it belongs
    /// to, if that is known, is incomplete.
    Trouble(Option<StreamId>, Side, u64, Trouble),
}

/// Takes the events of a decoder.
pub type HttpSink<'s> = dyn FnMut(HttpEvent<'_>) + 's;

/// A decoder of one connection's two byte streams.
pub trait Decoder {
    /// Takes the next bytes that `side` sent; they begin at `offset` of its stream.
    fn data(&mut self, side: Side, offset: u64, bytes: &[u8], sink: &mut HttpSink<'_>);

    /// The next `bytes` bytes that `side` sent, from `offset` on, are missing.
    fn missing(
        &mut self,
        side: Side,
        offset: u64,
        bytes: u64,
        cause: Cause,
        sink: &mut HttpSink<'_>,
    );

    /// The same, of bytes that were lost.
    fn gap(&mut self, side: Side, offset: u64, bytes: u64, sink: &mut HttpSink<'_>) {
        self.missing(side, offset, bytes, Cause::Lost, sink);
    }

    /// Neither side sends any more.
    fn close(&mut self, sink: &mut HttpSink<'_>);

    /// Bytes of memory that it holds beyond its own size.
    fn held(&self) -> usize;
}
