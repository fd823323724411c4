//! HTTP/1.0 and HTTP/1.1 (RFC 9112, RFC 9110).
//!
//! Bodies are handed on as they come; of heads up to [`HEAD_MAX`] bytes are held, for each side, and
//! nothing else that is larger. What is missing inside a body or chunk whose length is known is counted
//! and decoding goes on exactly. Elsewhere that side waits until a call of [`Decoder::data`] begins with
//! a whole request line of a well-known method, or a status line. `pairing.rs` says when requests and
//! responses still belong together.

mod chunked;
mod head;
mod loss;
mod pairing;
mod start_line;
mod switching;

pub use chunked::{CHUNK_LINE_MAX, TRAILERS_MAX};
pub use head::{FIELDS_MAX, HEAD_MAX};
pub use pairing::OUTSTANDING_MAX;
pub(crate) use start_line::{Match, certain_start_line, request_line, status_line};

use std::mem;

use chunked::Step;
use head::{Asked, Framing};
use pairing::Pairing;
use start_line::start_line;
use switching::switches_to;

use crate::event::{Cause, Decoder, HttpEvent, HttpSink, Side, StreamId, Trouble};

/// Bytes that are held of what a client sends behind a `CONNECT` or `Upgrade` before it is answered.
pub const HELD_MAX: usize = 64 << 10;

/// Decodes an HTTP/1 connection. Exchanges are numbered from 1 on.
#[derive(Debug)]
pub struct Http1 {
    /// Indexed by [`Side::index`].
    streams: [Stream; 2],
    pairing: Pairing,
    /// The connection carries something else behind the client's current request.
    switched: Option<StreamId>,
}

/// What one side sends.
#[derive(Debug)]
struct Stream {
    state: State,
    /// Bytes whose meaning is not known yet.
    buffer: Vec<u8>,
    /// Where they begin.
    buffer_offset: u64,
    /// How many of them are known not to contain the end of a head.
    scanned: usize,
    /// The connection was first seen in the middle, and nothing of this side yet.
    unseen: bool,
    /// What follows the current request depends on its response.
    may_switch: bool,
    /// Offset behind all that was seen.
    end: u64,
}

#[derive(Debug)]
enum State {
    /// Between messages, or in a head.
    Head,
    Body(StreamId, Framing),
    /// Behind the head of a response to an unknown request: a body, or the next response if the
    /// request was a HEAD.
    BodyOrHead(StreamId, Framing),
    /// Behind a request that may turn the connection into something else.
    Held(StreamId),
    /// Opaque.
    Tunnel(StreamId),
    /// Waits for a message to begin.
    Lost,
}

/// What [`Http1`] is fed piece by piece.
#[derive(Clone, Copy)]
struct Input<'a> {
    side: Side,
    offset: u64,
    bytes: &'a [u8],
    /// A call begins here.
    begins: bool,
}

impl Stream {
    fn held(&self) -> usize {
        let trailers = match &self.state {
            State::Body(_, Framing::Chunked(chunked))
            | State::BodyOrHead(_, Framing::Chunked(chunked)) => chunked.held(),
            _ => 0,
        };
        self.buffer.capacity() + trailers
    }
}

impl Http1 {
    /// A decoder of a connection that is seen from its beginning, or not.
    pub fn new(from_beginning: bool) -> Self {
        let stream = || Stream {
            state: if from_beginning {
                State::Head
            } else {
                State::Lost
            },
            buffer: Vec::new(),
            buffer_offset: 0,
            scanned: 0,
            unseen: !from_beginning,
            may_switch: false,
            end: 0,
        };
        Self {
            streams: [stream(), stream()],
            pairing: Pairing::new(from_beginning),
            switched: None,
        }
    }

    /// A decoder of a connection of which something is missing before the first byte that it gets.
    pub fn behind_gap() -> Self {
        let mut decoder = Self {
            pairing: Pairing::behind_gap(),
            ..Self::new(false)
        };
        for stream in &mut decoder.streams {
            stream.unseen = false;
        }
        decoder
    }

    fn stream(&mut self, side: Side) -> &mut Stream {
        &mut self.streams[side.index()]
    }

    fn feed(&mut self, mut input: Input<'_>, sink: &mut HttpSink<'_>) {
        while !input.bytes.is_empty() {
            let taken = match self.stream(input.side).state {
                State::Head => self.head(input, sink),
                State::Body(..) => self.body(input, sink),
                State::BodyOrHead(..) => self.body_or_head(input, sink),
                State::Held(id) => self.hold(id, input, sink),
                State::Tunnel(id) => {
                    sink(HttpEvent::Body(id, input.side, input.bytes));
                    input.bytes.len()
                }
                State::Lost => self.find_head(input, sink),
            };
            // Nothing is taken only when the state has become one that takes something.
            input.bytes = &input.bytes[taken..];
            input.offset = input.offset.saturating_add(taken as u64);
            input.begins &= taken == 0;
        }
    }

    /// Collects a head. Returns how many bytes were taken, like all of these.
    fn head(&mut self, input: Input<'_>, sink: &mut HttpSink<'_>) -> usize {
        let stream = self.stream(input.side);
        if stream.buffer.is_empty() {
            let empty_lines = input.bytes.iter().take_while(|byte| b"\r\n".contains(byte));
            let empty_lines = empty_lines.count();
            if empty_lines > 0 {
                return empty_lines;
            }
            stream.buffer_offset = input.offset;
            if let Some(length) =
                head::head_length(input.bytes, 0).filter(|length| *length <= HEAD_MAX)
            {
                self.message(input.side, input.offset, &input.bytes[..length], sink);
                return length;
            }
        }
        let before = stream.buffer.len();
        let room = HEAD_MAX - before;
        stream
            .buffer
            .extend(&input.bytes[..room.min(input.bytes.len())]);
        if let Some(length) = head::head_length(&stream.buffer, stream.scanned) {
            let offset = stream.buffer_offset;
            let mut head = stream.take_buffer();
            head.truncate(length);
            self.message(input.side, offset, &head, sink);
            return length - before;
        }
        let started = stream.scanned > 0 && stream.buffer[..stream.scanned].contains(&b'\n');
        stream.scanned = stream.buffer.len();
        if !started && start_line(input.side, &stream.buffer) == Match::No {
            self.malformed_head(input.side, Trouble::Malformed("not a start line"), sink);
        } else if self.stream(input.side).buffer.len() == HEAD_MAX {
            self.malformed_head(
                input.side,
                Trouble::TooMuch("bytes of a head", HEAD_MAX),
                sink,
            );
        }
        input.bytes.len()
    }

    fn malformed_head(&mut self, side: Side, why: Trouble, sink: &mut HttpSink<'_>) {
        let offset = self.stream(side).buffer_offset;
        self.lose(side, None, offset, why, sink);
    }

    /// A head is complete.
    fn message(&mut self, side: Side, offset: u64, head: &[u8], sink: &mut HttpSink<'_>) {
        self.stream(side).buffer_offset = offset;
        if start_line(side, head) != Match::Yes {
            return self.malformed_head(side, Trouble::Malformed("not a start line"), sink);
        }
        match side {
            Side::Client => self.request(offset, head, sink),
            Side::Server => self.response(offset, head, sink),
        }
    }

    fn request(&mut self, offset: u64, head: &[u8], sink: &mut HttpSink<'_>) {
        let head = match head::parse_request(head) {
            Ok(head) => head,
            Err(why) => return self.malformed_head(Side::Client, why, sink),
        };
        let asked = Asked::of(&head);
        let framing = head::request_framing(&head);
        let between = self.stream(Side::Server).is_between();
        let asking = self.pairing.request(asked, between);
        let id = asking.id;
        if let Some((ids, why)) = asking.given_up {
            self.give_up(ids, Side::Client, offset, &why, sink);
        }
        sink(HttpEvent::Request(id, head));
        let held = asking.doubt.is_none() && asked.may_switch();
        if let Some(doubt) = asking.doubt {
            sink(HttpEvent::Trouble(Some(id), Side::Client, offset, doubt));
        }
        let framing = match framing {
            // Whoever asks for a tunnel sends no body (RFC 9110 section 9.3.6).
            _ if asked == Asked::Connect => Framing::Length(0),
            Ok((framing, doubt)) => {
                if let Some(doubt) = doubt {
                    sink(HttpEvent::Trouble(Some(id), Side::Client, offset, doubt));
                }
                framing
            }
            Err(why) => return self.lose(Side::Client, Some(id), offset, why, sink),
        };
        self.stream(Side::Client).may_switch = held;
        self.begin_body(Side::Client, id, framing, sink);
    }

    fn response(&mut self, offset: u64, head: &[u8], sink: &mut HttpSink<'_>) {
        let head = match head::parse_response(head) {
            Ok(head) => head,
            Err(why) => return self.malformed_head(Side::Server, why, sink),
        };
        let interim = matches!(head.status, Some(100 | 102..=199));
        let answer = self.pairing.response(!interim);
        let id = answer.id;
        let framing = head::response_framing(&head, answer.asked);
        let protocol = switches_to(&head, answer.asked);
        sink(HttpEvent::Response(id, head));
        let known = answer.doubt.is_none();
        if let Some(doubt) = answer.doubt {
            sink(HttpEvent::Trouble(Some(id), Side::Server, offset, doubt));
        }
        if let Some((offset, why)) = answer.missed {
            sink(HttpEvent::Trouble(Some(id), Side::Client, offset, why));
        }
        if interim {
            self.stream(Side::Server).state = State::Head;
            return;
        }
        match protocol {
            Ok(None) => {}
            Ok(Some(protocol)) => return self.switch(id, protocol, sink),
            Err(why) => return self.lose(Side::Server, Some(id), offset, why, sink),
        }
        self.release(id, sink);
        match framing {
            Ok((framing, doubt)) => {
                if let Some(doubt) = doubt {
                    sink(HttpEvent::Trouble(Some(id), Side::Server, offset, doubt));
                }
                if known || matches!(framing, Framing::Length(0)) {
                    self.begin_body(Side::Server, id, framing, sink);
                } else {
                    self.stream(Side::Server).state = State::BodyOrHead(id, framing);
                }
            }
            Err(why) => self.lose(Side::Server, Some(id), offset, why, sink),
        }
    }

    fn begin_body(&mut self, side: Side, id: StreamId, framing: Framing, sink: &mut HttpSink<'_>) {
        if matches!(framing, Framing::Length(0)) {
            self.end(side, id, sink);
        } else {
            self.stream(side).state = State::Body(id, framing);
        }
    }

    fn body(&mut self, input: Input<'_>, sink: &mut HttpSink<'_>) -> usize {
        let State::Body(id, framing) = &mut self.stream(input.side).state else {
            return 0;
        };
        let id = *id;
        let mut rest = input.bytes;
        match framing {
            Framing::Length(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                *left -= length as u64;
                let complete = *left == 0;
                sink(HttpEvent::Body(id, input.side, &rest[..length]));
                if complete {
                    self.end(input.side, id, sink);
                }
                return length;
            }
            Framing::UntilClose => {
                sink(HttpEvent::Body(id, input.side, rest));
                return rest.len();
            }
            Framing::Chunked(chunked) => match chunked.step(&mut rest) {
                Ok(Step::More) => {}
                Ok(Step::Data(data)) => sink(HttpEvent::Body(id, input.side, data)),
                Ok(Step::End(fields)) => {
                    if !fields.is_empty() {
                        sink(HttpEvent::Trailers(id, input.side, fields));
                    }
                    self.end(input.side, id, sink);
                }
                Err(why) => {
                    let taken = (input.bytes.len() - rest.len()) as u64;
                    let offset = input.offset.saturating_add(taken.saturating_sub(1));
                    self.lose(input.side, Some(id), offset, why, sink);
                }
            },
        }
        input.bytes.len() - rest.len()
    }

    /// A message is complete.
    fn end(&mut self, side: Side, id: StreamId, sink: &mut HttpSink<'_>) {
        let may_switch = mem::take(&mut self.stream(side).may_switch);
        if side == Side::Client {
            if let Some(switched) = self.switched {
                if switched != id {
                    sink(HttpEvent::End(id, side));
                }
                self.stream(side).state = State::Tunnel(switched);
                return;
            }
            if may_switch && self.pairing.awaits(id) {
                self.stream(side).state = State::Held(id);
                return;
            }
        }
        sink(HttpEvent::End(id, side));
        self.stream(side).state = State::Head;
        if side == Side::Server {
            self.pairing.answered(id);
        }
    }

    fn close_side(&mut self, side: Side, sink: &mut HttpSink<'_>) {
        let stream = self.stream(side);
        let offset = stream.end;
        let bytes = stream.take_buffer();
        let state = mem::replace(&mut stream.state, State::Lost);
        let (id, complete) = match state {
            State::Head if bytes.is_empty() => return,
            State::Lost => return,
            State::Head => (None, false),
            State::Held(id) => (Some(id), true),
            State::Tunnel(id) | State::Body(id, Framing::UntilClose) => (Some(id), true),
            // There may be no body, if the request was a HEAD, and the bytes may begin a head.
            State::BodyOrHead(id, _) => (Some(id), bytes.is_empty()),
            State::Body(id, _) => (Some(id), false),
        };
        match id {
            Some(id) if complete => sink(HttpEvent::End(id, side)),
            id => {
                let why = Trouble::Malformed("the connection ended within a message");
                sink(HttpEvent::Trouble(id, side, offset, why));
            }
        }
    }
}

impl Decoder for Http1 {
    fn data(&mut self, side: Side, offset: u64, bytes: &[u8], sink: &mut HttpSink<'_>) {
        self.stream(side).end = offset.saturating_add(bytes.len() as u64);
        let input = Input {
            side,
            offset,
            bytes,
            begins: true,
        };
        self.feed(input, sink);
    }

    fn missing(
        &mut self,
        side: Side,
        offset: u64,
        bytes: u64,
        cause: Cause,
        sink: &mut HttpSink<'_>,
    ) {
        if bytes > 0 {
            self.stream(side).end = offset.saturating_add(bytes);
            self.gap_in(side, offset, bytes, cause, sink);
        }
    }

    fn close(&mut self, sink: &mut HttpSink<'_>) {
        self.close_side(Side::Client, sink);
        self.close_side(Side::Server, sink);
    }

    fn held(&self) -> usize {
        let streams: usize = self.streams.iter().map(Stream::held).sum();
        streams + self.pairing.held()
    }
}

impl Stream {
    /// Whether no message is under way, as far as is known.
    fn is_between(&self) -> bool {
        matches!(self.state, State::Head | State::Lost) && self.buffer.is_empty()
    }

    fn take_buffer(&mut self) -> Vec<u8> {
        self.scanned = 0;
        mem::take(&mut self.buffer)
    }
}

#[cfg(test)]
mod tests;
