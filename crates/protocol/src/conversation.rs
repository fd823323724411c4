//! Which protocol a connection's plaintext is, and its decoder.
//!
//! What was negotiated (ALPN) says which protocol to expect, what is sent has to prove it: a request
//! or status line for HTTP/1, for HTTP/2 the client's connection preface, or the server's settings if
//! HTTP/2 was negotiated. On a connection that is first seen in the middle, nothing is held: bytes are
//! reported raw until a call begins with a start line, or for good behind [`RAW_MAX`] bytes.

use events::Direction;

use crate::event::{Cause, Decoder, HttpEvent, HttpSink, Side};
use crate::http1::{Http1, Match, certain_start_line, request_line, status_line};
use crate::http2::Http2;

/// Bytes of both sides that are held until the protocol is known.
pub const UNDECIDED_MAX: usize = 64 << 10;

/// Bytes that may pass on a connection that is first seen in the middle before it is known not to be
/// HTTP.
pub const RAW_MAX: u64 = 1 << 20;

/// Parts in which they may come, of alternating sides.
const PIECES_MAX: usize = 64;

/// The client's connection preface (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is known about a connection before its first byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// Which end the program is.
    pub role: Option<Side>,
    /// The protocol that was negotiated by ALPN (RFC 7301); `None` or empty if none was, or if it is
    /// not known.
    pub alpn: Option<Vec<u8>>,
    /// Offset 0 is where the connection begins.
    pub from_beginning: bool,
}

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Nothing that we decode, or nothing that we can be sure of.
    Other,
}

/// One step of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConversationEvent<'a> {
    /// The connection carries this from here on, and this end of it is the program, if that is known;
    /// comes once.
    Protocol(Protocol, Option<Side>),
    /// Something of HTTP.
    Http(HttpEvent<'a>),
    /// Bytes at this offset that are not decoded.
    Raw(Direction, u64, &'a [u8]),
    /// Bytes from this offset on that are missing, and would not have been decoded.
    RawMissing(Direction, u64, u64),
}

/// Takes the events of a [`Conversation`].
pub type ConversationSink<'s> = dyn FnMut(ConversationEvent<'_>) + 's;

/// The two byte streams of a connection.
pub struct Conversation {
    /// Which end writes, as far as is known.
    role: Option<Side>,
    expected: Expected,
    from_beginning: bool,
    /// It was seen from its beginning, but something is missing.
    damaged: bool,
    /// Bytes that were passed on raw.
    passed: u64,
    speaks: Speaks,
}

/// What may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Http1,
    Http2,
    Either,
    Neither,
}

enum Speaks {
    Undecided(Vec<Piece>),
    Http1(Box<UpgradableHttp1>),
    Http2(Box<dyn Decoder + Send>),
    Other,
}

struct Piece {
    direction: Direction,
    offset: u64,
    bytes: Vec<u8>,
}

/// What the bytes so far say.
enum Verdict {
    Wait,
    /// Not HTTP up to here, but it may become.
    Pass,
    Is(Protocol),
}

impl Conversation {
    /// A conversation of which nothing was seen yet.
    pub fn new(hint: Hint) -> Self {
        let expected = match hint.alpn.as_deref() {
            None | Some(b"") => Expected::Either,
            Some(b"h2") => Expected::Http2,
            Some(b"http/1.1" | b"http/1.0") => Expected::Http1,
            Some(_) => Expected::Neither,
        };
        Self {
            role: hint.role,
            expected,
            from_beginning: hint.from_beginning,
            damaged: false,
            passed: 0,
            speaks: Speaks::Undecided(Vec::new()),
        }
    }

    /// Which end sends in this direction, as far as is known.
    pub fn side(&self, direction: Direction) -> Option<Side> {
        self.role.map(|role| match direction {
            Direction::Write => role,
            Direction::Read => role.other(),
        })
    }

    /// What the connection carries, if that is decided.
    pub fn protocol(&self) -> Option<Protocol> {
        match self.speaks {
            Speaks::Undecided(_) => None,
            Speaks::Http1(_) => Some(Protocol::Http1),
            Speaks::Http2(_) => Some(Protocol::Http2),
            Speaks::Other => Some(Protocol::Other),
        }
    }

    /// Takes the next bytes of this direction; they begin at `offset`.
    pub fn data(
        &mut self,
        direction: Direction,
        offset: u64,
        bytes: &[u8],
        sink: &mut ConversationSink<'_>,
    ) {
        if bytes.is_empty() {
            return;
        }
        if let Speaks::Undecided(held) = &mut self.speaks {
            hold(held, direction, offset, bytes);
            self.judge(direction, sink);
        } else {
            self.decode(direction, offset, bytes, sink);
        }
    }

    /// The next `bytes` bytes of this direction, from `offset` on, are missing.
    pub fn missing(
        &mut self,
        direction: Direction,
        offset: u64,
        bytes: u64,
        cause: Cause,
        sink: &mut ConversationSink<'_>,
    ) {
        let side = self.side(direction);
        match (&mut self.speaks, side) {
            (Speaks::Http1(decoder), Some(side)) => {
                decoder.missing(side, offset, bytes, cause, sink);
            }
            (Speaks::Http2(decoder), Some(side)) => {
                decoder.missing(side, offset, bytes, cause, &mut |event| {
                    sink(ConversationEvent::Http(event));
                });
            }
            _ => {
                // What is held began before: it is no beginning of anything that we could decode.
                self.pass(sink);
                self.damaged |= self.from_beginning;
                self.from_beginning = false;
                sink(ConversationEvent::RawMissing(direction, offset, bytes));
            }
        }
    }

    /// Nothing is sent any more.
    pub fn close(&mut self, sink: &mut ConversationSink<'_>) {
        match &mut self.speaks {
            Speaks::Undecided(_) => self.decide(Protocol::Other, sink),
            Speaks::Http1(decoder) => decoder.close(sink),
            Speaks::Http2(decoder) => {
                decoder.close(&mut |event| sink(ConversationEvent::Http(event)));
            }
            Speaks::Other => {}
        }
    }

    /// Looks at what is held, of which the last came in this direction.
    fn judge(&mut self, direction: Direction, sink: &mut ConversationSink<'_>) {
        let verdict = if self.from_beginning {
            self.judge_beginning()
        } else {
            self.judge_middle(direction)
        };
        match verdict {
            Verdict::Is(protocol) => self.decide(protocol, sink),
            Verdict::Pass => self.pass(sink),
            Verdict::Wait => {}
        }
        if self.held() > UNDECIDED_MAX || self.pieces() > PIECES_MAX || self.passed > RAW_MAX {
            self.decide(Protocol::Other, sink);
        }
    }

    fn judge_beginning(&mut self) -> Verdict {
        for direction in [Direction::Write, Direction::Read] {
            let sent = self.sent(direction);
            if sent.is_empty() {
                continue;
            }
            match self.beginning_of(direction, &sent) {
                Beginning::Of(protocol, side) => {
                    self.learn(direction, side);
                    return Verdict::Is(protocol);
                }
                Beginning::Nothing => return Verdict::Is(Protocol::Other),
                Beginning::Open => {}
            }
        }
        Verdict::Wait
    }

    fn beginning_of(&self, direction: Direction, sent: &[u8]) -> Beginning {
        let side = self.side(direction);
        let client = side != Some(Side::Server);
        let server = side != Some(Side::Client);
        let http1 = matches!(self.expected, Expected::Http1 | Expected::Either);
        let http2 = matches!(self.expected, Expected::Http2 | Expected::Either);
        let request = match self.from_beginning {
            true => request_line(sent),
            false => certain_start_line(Side::Client, sent),
        };
        let agreed = (self.expected == Expected::Http2 && side == Some(Side::Server))
            .then_some((Protocol::Http2, Side::Server));
        let mut open = false;
        let candidates = [
            (
                client && http1,
                request,
                Some((Protocol::Http1, Side::Client)),
            ),
            (
                client && http2,
                begins_with(sent, PREFACE),
                Some((Protocol::Http2, Side::Client)),
            ),
            (
                server && http1,
                status_line(sent),
                Some((Protocol::Http1, Side::Server)),
            ),
            // A server may send its settings before it has read the preface, which decides unless HTTP/2
            // was agreed on.
            (server && http2, settings(sent), agreed),
        ];
        for (possible, found, decision) in candidates {
            match (possible, found, decision) {
                (true, Match::Yes, Some((protocol, side))) => return Beginning::Of(protocol, side),
                (true, Match::Yes | Match::Partial, _) => open = true,
                _ => {}
            }
        }
        if open {
            Beginning::Open
        } else {
            Beginning::Nothing
        }
    }

    fn judge_middle(&mut self, direction: Direction) -> Verdict {
        match (self.expected, self.role) {
            (Expected::Neither, _) => return Verdict::Is(Protocol::Other),
            (Expected::Http1, Some(_)) => return Verdict::Is(Protocol::Http1),
            (Expected::Http2, Some(_)) => return Verdict::Is(Protocol::Http2),
            // Frames do not tell who sent them.
            (Expected::Http2, None) => return Verdict::Is(Protocol::Other),
            (Expected::Http1 | Expected::Either, _) => {}
        }
        let sent = self.sent(direction);
        match self.beginning_of(direction, &sent) {
            Beginning::Of(protocol, side) => {
                // The preface comes first of all.
                self.from_beginning |= protocol == Protocol::Http2;
                self.learn(direction, side);
                Verdict::Is(protocol)
            }
            Beginning::Open => Verdict::Wait,
            Beginning::Nothing => Verdict::Pass,
        }
    }

    fn learn(&mut self, direction: Direction, side: Side) {
        self.role = Some(match direction {
            Direction::Write => side,
            Direction::Read => side.other(),
        });
    }

    fn decide(&mut self, protocol: Protocol, sink: &mut ConversationSink<'_>) {
        let speaks = match protocol {
            Protocol::Http1 => {
                let decoder = match (self.from_beginning, self.damaged) {
                    (false, true) => Http1::behind_gap(),
                    (from_beginning, _) => Http1::new(from_beginning),
                };
                Speaks::Http1(Box::new(UpgradableHttp1::new(decoder)))
            }
            Protocol::Http2 => Speaks::Http2(Box::new(match (self.from_beginning, self.damaged) {
                (true, _) => Http2::new(),
                (false, true) => Http2::behind_gap(),
                (false, false) => Http2::joined(),
            })),
            Protocol::Other => Speaks::Other,
        };
        let held = match std::mem::replace(&mut self.speaks, speaks) {
            Speaks::Undecided(held) => held,
            _ => return,
        };
        if let Some(protocol) = self.protocol() {
            sink(ConversationEvent::Protocol(protocol, self.role));
        }
        for piece in held {
            self.decode(piece.direction, piece.offset, &piece.bytes, sink);
        }
    }

    fn decode(
        &mut self,
        direction: Direction,
        offset: u64,
        bytes: &[u8],
        sink: &mut ConversationSink<'_>,
    ) {
        let side = self.side(direction);
        match (&mut self.speaks, side) {
            (Speaks::Http1(decoder), Some(side)) => decoder.data(side, offset, bytes, sink),
            (Speaks::Http2(decoder), Some(side)) => {
                decoder.data(side, offset, bytes, &mut |event| {
                    sink(ConversationEvent::Http(event));
                });
            }
            _ => sink(ConversationEvent::Raw(direction, offset, bytes)),
        }
    }

    /// Hands what is held on, raw.
    fn pass(&mut self, sink: &mut ConversationSink<'_>) {
        if let Speaks::Undecided(held) = &mut self.speaks {
            for piece in std::mem::take(held) {
                self.passed += piece.bytes.len() as u64;
                sink(ConversationEvent::Raw(
                    piece.direction,
                    piece.offset,
                    &piece.bytes,
                ));
            }
        }
    }

    /// What is held of this direction.
    fn sent(&self, direction: Direction) -> Vec<u8> {
        let Speaks::Undecided(held) = &self.speaks else {
            return Vec::new();
        };
        let pieces = held.iter().filter(|piece| piece.direction == direction);
        pieces.flat_map(|piece| &piece.bytes).copied().collect()
    }

    /// Bytes of memory that are held beyond its own size.
    pub fn held(&self) -> usize {
        match &self.speaks {
            Speaks::Undecided(held) => held.iter().map(|piece| piece.bytes.len()).sum(),
            Speaks::Http1(decoder) => decoder.held(),
            Speaks::Http2(decoder) => decoder.held(),
            Speaks::Other => 0,
        }
    }

    fn pieces(&self) -> usize {
        match &self.speaks {
            Speaks::Undecided(held) => held.len(),
            _ => 0,
        }
    }
}

/// What a direction's first bytes are.
enum Beginning {
    Of(Protocol, Side),
    /// Too little to tell.
    Open,
    Nothing,
}

/// HTTP/1, which may become HTTP/2 (`Upgrade: h2c`, RFC 7540 section 3.2).
struct UpgradableHttp1 {
    decoder: Http1,
    http2: Option<Upgraded>,
}

struct Upgraded {
    decoder: Box<dyn Decoder + Send>,
    /// Bytes that were passed on; indexed by [`Side::index`].
    passed: [u64; 2],
}

impl UpgradableHttp1 {
    fn new(decoder: Http1) -> Self {
        Self {
            decoder,
            http2: None,
        }
    }

    fn data(&mut self, side: Side, offset: u64, bytes: &[u8], sink: &mut ConversationSink<'_>) {
        let http2 = &mut self.http2;
        let sink = &mut |event: HttpEvent<'_>| pass_on(http2, event, sink);
        self.decoder.data(side, offset, bytes, sink);
    }

    fn missing(
        &mut self,
        side: Side,
        offset: u64,
        bytes: u64,
        cause: Cause,
        sink: &mut ConversationSink<'_>,
    ) {
        let http2 = &mut self.http2;
        let sink = &mut |event: HttpEvent<'_>| pass_on(http2, event, sink);
        self.decoder.missing(side, offset, bytes, cause, sink);
    }

    fn held(&self) -> usize {
        let upgraded = self.http2.as_ref();
        self.decoder.held() + upgraded.map_or(0, |upgraded| upgraded.decoder.held())
    }

    fn close(&mut self, sink: &mut ConversationSink<'_>) {
        if let Some(upgraded) = &mut self.http2 {
            let sink: &mut HttpSink<'_> = &mut |event| sink(ConversationEvent::Http(event));
            return upgraded.decoder.close(sink);
        }
        self.decoder
            .close(&mut |event| sink(ConversationEvent::Http(event)));
    }
}

/// Hands an event of HTTP/1 on, or to HTTP/2.
fn pass_on(upgraded: &mut Option<Upgraded>, event: HttpEvent<'_>, sink: &mut ConversationSink<'_>) {
    if let Some(Upgraded { decoder, passed }) = upgraded {
        let sink: &mut HttpSink<'_> = &mut |event| sink(ConversationEvent::Http(event));
        match event {
            HttpEvent::Body(_, side, bytes) => {
                decoder.data(side, passed[side.index()], bytes, sink);
                let passed = &mut passed[side.index()];
                *passed = passed.saturating_add(bytes.len() as u64);
                return;
            }
            HttpEvent::Missing(_, side, bytes, cause) => {
                decoder.missing(side, passed[side.index()], bytes, cause, sink);
                let passed = &mut passed[side.index()];
                *passed = passed.saturating_add(bytes);
                return;
            }
            event => return sink(event),
        }
    }
    if matches!(&event, HttpEvent::Switched(_, protocol) if protocol.eq_ignore_ascii_case(b"h2c")) {
        *upgraded = Some(Upgraded {
            decoder: Box::new(Http2::new()),
            passed: [0; 2],
        });
    }
    sink(ConversationEvent::Http(event));
}

/// Adds to what is held.
fn hold(held: &mut Vec<Piece>, direction: Direction, offset: u64, bytes: &[u8]) {
    match held.last_mut() {
        Some(last) if last.direction == direction => last.bytes.extend(bytes),
        _ => held.push(Piece {
            direction,
            offset,
            bytes: bytes.to_vec(),
        }),
    }
}

fn begins_with(bytes: &[u8], prefix: &[u8]) -> Match {
    let common = bytes.len().min(prefix.len());
    match bytes[..common] == prefix[..common] {
        false => Match::No,
        true if common < prefix.len() => Match::Partial,
        true => Match::Yes,
    }
}

/// Whether the bytes begin with a server's first frame: SETTINGS without acknowledgement, on stream
/// 0, of at most 32 settings (RFC 9113 sections 3.4, 4.1 and 6.5).
fn settings(bytes: &[u8]) -> Match {
    let Some(header) = bytes.first_chunk::<9>() else {
        return begins_with(bytes, &[0, 0]).max_partial();
    };
    let length = usize::from(header[2]);
    let is_settings = header[..2] == [0, 0]
        && length % 6 == 0
        && length <= 32 * 6
        && header[3..] == [4, 0, 0, 0, 0, 0];
    if is_settings { Match::Yes } else { Match::No }
}

impl Match {
    /// What a part of something can say.
    fn max_partial(self) -> Self {
        match self {
            Self::Yes => Self::Partial,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests;
