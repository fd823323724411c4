//! WebSocket (RFC 6455) with permessage-deflate (RFC 7692).
//!
//! Made for the bytes behind [`HttpEvent::Switched`](crate::HttpEvent::Switched), whether they come
//! from a connection (HTTP/1) or from a stream (RFC 8441): whoever sees `Switched` with `websocket`
//! makes a [`WebSocket`] from the response's `Sec-WebSocket-Extensions` and passes the stream's
//! `Body`, `Missing` and final `End` on.
//!
//! Frames of which payload is missing are counted; when a frame's header is missing, that side cannot
//! be understood any more and says so once. Masks are removed where there are some; that clients have
//! to mask and servers must not is left to the peers.

mod deflate;

use deflate::{Extension, Inflater};

use crate::event::{Cause, Missing, Side, Trouble};

pub use deflate::INFLATED_MAX;

/// Bytes of a message's payload that are held and handed on; the rest is counted.
pub const MESSAGE_MAX: usize = 1 << 20;

/// Bytes of a control frame's payload (RFC 6455 section 5.5).
const CONTROL_MAX: u64 = 125;

/// Bytes of the longest frame header: two, a length of eight, a mask of four.
const HEADER_MAX: usize = 14;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// UTF-8, says the sender.
    Text,
    /// Anything.
    Binary,
}

/// A whole message, of one frame or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Text or binary.
    pub kind: MessageKind,
    /// The payload, unmasked and decompressed, up to [`MESSAGE_MAX`] or to the first byte that is
    /// missing.
    pub payload: &'a [u8],
    /// Bytes of the whole payload; `None` if the message is incomplete or could not be decompressed.
    pub length: Option<u64>,
    /// Bytes of the frames' payload that are missing.
    pub missing: Missing,
    /// Bytes of the frames' payload, with those that are missing.
    pub wire_length: u64,
    /// How many frames it came in.
    pub frames: u64,
    /// It was compressed.
    pub compressed: bool,
}

/// What one side of a WebSocket did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WebSocketEvent<'a> {
    /// A message.
    Message(Side, Message<'a>),
    /// A ping and its application data.
    Ping(Side, &'a [u8]),
    /// A pong and its application data.
    Pong(Side, &'a [u8]),
    /// The closing handshake: status code (RFC 6455 section 7.4) if there is one, and reason.
    Close(Side, Option<u16>, &'a [u8]),
    /// Something could not be decoded, at this offset of the bytes that this side sent over the
    /// WebSocket.
    Trouble(Side, u64, Trouble),
}

/// Takes the events of a [`WebSocket`].
pub type WebSocketSink<'s> = dyn FnMut(WebSocketEvent<'_>) + 's;

/// Decodes both directions of a WebSocket. Holds up to [`MESSAGE_MAX`] bytes for each, and a window
/// for decompression if that was agreed on.
#[derive(Debug)]
pub struct WebSocket {
    /// Indexed by [`Side::index`].
    ends: [End; 2],
}

impl WebSocket {
    /// A decoder behind the opening handshake. `extensions` is the value of the response's
    /// `Sec-WebSocket-Extensions`, several joined by commas; empty if there is none.
    pub fn new(extensions: &[u8]) -> Self {
        let extension = Extension::parse(extensions);
        let end = |side| {
            End::new(
                side,
                extension.map(|extension| Inflater::new(side, extension)),
            )
        };
        Self {
            ends: [end(Side::Client), end(Side::Server)],
        }
    }

    /// Takes the next bytes that `side` sent.
    pub fn data(&mut self, side: Side, bytes: &[u8], sink: &mut WebSocketSink<'_>) {
        self.ends[side.index()].data(bytes, sink);
    }

    /// The next `bytes` bytes that `side` sent are missing.
    pub fn missing(&mut self, side: Side, bytes: u64, cause: Cause, sink: &mut WebSocketSink<'_>) {
        self.ends[side.index()].missing(bytes, cause, sink);
    }

    /// Bytes of memory that are held beyond its own size.
    pub fn held(&self) -> usize {
        self.ends.iter().map(End::held).sum()
    }

    /// Nothing comes any more: what there is of incomplete messages is handed on.
    pub fn close(&mut self, sink: &mut WebSocketSink<'_>) {
        for end in &mut self.ends {
            end.give_up_message(sink);
            end.state = State::Stopped;
        }
    }
}

/// One direction.
#[derive(Debug)]
struct End {
    side: Side,
    offset: u64,
    state: State,
    /// The part of a frame's header that was seen.
    header: Vec<u8>,
    /// Unless a whole message was handed on.
    message: Option<Collected>,
    control: Vec<u8>,
    inflater: Option<Inflater>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    Payload(Frame),
    Stopped,
}

/// A frame of whose payload something is still to come.
#[derive(Clone, Copy, Debug)]
struct Frame {
    last: bool,
    opcode: u8,
    left: u64,
    mask: Option<[u8; 4]>,
    /// Bytes of the payload so far, as far as the mask cares.
    position: usize,
    /// Some of the payload is missing.
    holed: bool,
}

/// A message so far.
#[derive(Debug)]
struct Collected {
    kind: MessageKind,
    payload: Vec<u8>,
    /// Bytes of the payload, decompressed.
    length: u64,
    missing: Missing,
    wire_length: u64,
    frames: u64,
    compressed: bool,
    /// Decompression failed.
    broken: bool,
}

impl End {
    fn new(side: Side, inflater: Option<Inflater>) -> Self {
        Self {
            side,
            offset: 0,
            state: State::Header,
            header: Vec::with_capacity(HEADER_MAX),
            message: None,
            control: Vec::new(),
            inflater,
        }
    }

    fn held(&self) -> usize {
        let message = self.message.as_ref();
        let payload = message.map_or(0, |message| message.payload.capacity());
        let inflater = self.inflater.as_ref().map_or(0, Inflater::held);
        self.header.capacity() + self.control.capacity() + payload + inflater
    }

    fn data(&mut self, mut bytes: &[u8], sink: &mut WebSocketSink<'_>) {
        while !bytes.is_empty() {
            let taken = match self.state {
                State::Stopped => return,
                State::Header => {
                    self.header.push(bytes[0]);
                    self.begin_frame(sink);
                    1
                }
                State::Payload(frame) => self.payload(frame, bytes, sink),
            };
            bytes = &bytes[taken..];
            self.offset = self.offset.saturating_add(taken as u64);
        }
    }

    /// Looks whether the header is complete.
    fn begin_frame(&mut self, sink: &mut WebSocketSink<'_>) {
        let parsed = match Header::parse(&self.header) {
            None => return,
            Some(parsed) => parsed.and_then(|header| self.check(&header).map(|()| header)),
        };
        let header = match parsed {
            Ok(header) => header,
            Err(what) => return self.stop(Trouble::Malformed(what), sink),
        };
        self.header.clear();
        self.control.clear();
        match header.frame.opcode {
            opcode::CONTINUATION => {
                if let Some(message) = &mut self.message {
                    message.frames += 1;
                }
            }
            opcode::TEXT => self.begin_message(MessageKind::Text, header.compressed),
            opcode::BINARY => self.begin_message(MessageKind::Binary, header.compressed),
            _ => {}
        }
        self.state = State::Payload(header.frame);
        if header.frame.left == 0 {
            self.end_frame(header.frame, sink);
        }
    }

    /// RFC 6455 sections 5.2, 5.4 and 5.5; RFC 7692 section 6.
    fn check(&self, header: &Header) -> Result<(), &'static str> {
        let frame = header.frame;
        match frame.opcode {
            opcode::CLOSE | opcode::PING | opcode::PONG => match frame {
                Frame { last: false, .. } => Err("a fragmented control frame"),
                _ if frame.left > CONTROL_MAX => Err("a control frame of more than 125 bytes"),
                _ if header.compressed => Err("a compressed control frame"),
                _ => Ok(()),
            },
            opcode::CONTINUATION if self.message.is_none() => Err("a continuation of no message"),
            opcode::CONTINUATION if header.compressed => Err("a reserved bit of a continuation"),
            opcode::TEXT | opcode::BINARY if self.message.is_some() => {
                Err("a message within a message")
            }
            opcode::CONTINUATION | opcode::TEXT | opcode::BINARY => {
                if header.compressed && self.inflater.is_none() {
                    return Err("compressed, although that was not agreed on");
                }
                Ok(())
            }
            _ => Err("unknown opcode"),
        }
    }

    fn begin_message(&mut self, kind: MessageKind, compressed: bool) {
        let broken = match &mut self.inflater {
            Some(inflater) if compressed => !inflater.begin(),
            _ => false,
        };
        self.message = Some(Collected {
            kind,
            payload: Vec::new(),
            length: 0,
            missing: Missing::default(),
            wire_length: 0,
            frames: 1,
            compressed,
            broken,
        });
    }

    /// Takes bytes of a frame's payload and returns how many.
    fn payload(&mut self, mut frame: Frame, bytes: &[u8], sink: &mut WebSocketSink<'_>) -> usize {
        let mut scratch = [0; 4096];
        let length = usize::try_from(frame.left)
            .unwrap_or(usize::MAX)
            .min(bytes.len())
            .min(scratch.len());
        let plain = &mut scratch[..length];
        plain.copy_from_slice(&bytes[..length]);
        if let Some(mask) = frame.mask {
            for (at, byte) in plain.iter_mut().enumerate() {
                *byte ^= mask[(frame.position + at) % 4];
            }
        }
        frame.left -= length as u64;
        frame.position = (frame.position + length) % 4;
        self.state = State::Payload(frame);
        if opcode::is_control(frame.opcode) {
            self.control.extend(&*plain);
        } else {
            self.collect(plain, sink);
        }
        if frame.left == 0 {
            self.end_frame(frame, sink);
        }
        length
    }

    /// Takes unmasked payload of a message.
    fn collect(&mut self, bytes: &[u8], sink: &mut WebSocketSink<'_>) {
        let Some(message) = &mut self.message else {
            return;
        };
        message.wire_length = message.wire_length.saturating_add(bytes.len() as u64);
        if !message.compressed {
            message.append(bytes);
        } else if let Some(inflater) = self.inflater.as_mut().filter(|_| !message.broken) {
            let inflated = inflater.inflate(bytes, &mut |plain| message.append(plain));
            if let Err(why) = inflated {
                message.broken = true;
                sink(WebSocketEvent::Trouble(self.side, self.offset, why));
            }
        }
    }

    fn end_frame(&mut self, frame: Frame, sink: &mut WebSocketSink<'_>) {
        self.state = State::Header;
        if !opcode::is_control(frame.opcode) {
            if frame.last {
                self.end_message(sink);
            }
            return;
        }
        if frame.holed {
            return;
        }
        let payload = &self.control;
        sink(match (frame.opcode, payload.as_slice()) {
            (opcode::PING, payload) => WebSocketEvent::Ping(self.side, payload),
            (opcode::PONG, payload) => WebSocketEvent::Pong(self.side, payload),
            (_, [high, low, reason @ ..]) => {
                let code = u16::from_be_bytes([*high, *low]);
                WebSocketEvent::Close(self.side, Some(code), reason)
            }
            (_, reason) => WebSocketEvent::Close(self.side, None, reason),
        });
    }

    fn end_message(&mut self, sink: &mut WebSocketSink<'_>) {
        if self
            .message
            .as_ref()
            .is_some_and(|message| message.compressed)
        {
            let wire_length = self
                .message
                .as_ref()
                .map_or(0, |message| message.wire_length);
            // The sender leaves the end of the last block off (RFC 7692 section 7.2.1).
            self.collect(&[0, 0, 0xff, 0xff], sink);
            if let Some(message) = &mut self.message {
                message.wire_length = wire_length;
            }
        }
        if let Some(message) = self.message.take() {
            let length = (!message.broken).then_some(message.length);
            sink(WebSocketEvent::Message(self.side, message.view(length)));
        }
    }

    fn give_up_message(&mut self, sink: &mut WebSocketSink<'_>) {
        if let Some(message) = self.message.take() {
            sink(WebSocketEvent::Message(self.side, message.view(None)));
        }
    }

    fn missing(&mut self, bytes: u64, cause: Cause, sink: &mut WebSocketSink<'_>) {
        let why = cause.trouble(bytes);
        match self.state {
            State::Stopped => return,
            State::Payload(frame) if frame.left >= bytes => self.hole(frame, bytes, cause, sink),
            State::Header | State::Payload(_) => self.stop(why, sink),
        }
        self.offset = self.offset.saturating_add(bytes);
    }

    /// Bytes of this frame's payload are missing, and nothing else.
    fn hole(&mut self, mut frame: Frame, bytes: u64, cause: Cause, sink: &mut WebSocketSink<'_>) {
        frame.left -= bytes;
        frame.position = (frame.position + (bytes % 4) as usize) % 4;
        frame.holed = true;
        self.state = State::Payload(frame);
        let mut lost = opcode::is_control(frame.opcode);
        if let Some(message) = self.message.as_mut().filter(|_| !lost) {
            message.missing.add(bytes, cause);
            message.wire_length = message.wire_length.saturating_add(bytes);
            if !message.compressed {
                message.length = message.length.saturating_add(bytes);
            } else if !message.broken {
                message.broken = true;
                lost = true;
                if let Some(inflater) = &mut self.inflater {
                    inflater.lose();
                }
            }
        }
        if lost {
            let why = cause.trouble(bytes);
            sink(WebSocketEvent::Trouble(self.side, self.offset, why));
        }
        if frame.left == 0 {
            self.end_frame(frame, sink);
        }
    }

    fn stop(&mut self, why: Trouble, sink: &mut WebSocketSink<'_>) {
        self.state = State::Stopped;
        self.give_up_message(sink);
        sink(WebSocketEvent::Trouble(self.side, self.offset, why));
    }
}

impl Collected {
    fn append(&mut self, bytes: &[u8]) {
        self.length = self.length.saturating_add(bytes.len() as u64);
        if self.missing.bytes == 0 {
            let room = MESSAGE_MAX - self.payload.len();
            self.payload.extend(&bytes[..room.min(bytes.len())]);
        }
    }

    fn view(&self, length: Option<u64>) -> Message<'_> {
        Message {
            kind: self.kind,
            payload: &self.payload,
            length,
            missing: self.missing,
            wire_length: self.wire_length,
            frames: self.frames,
            compressed: self.compressed,
        }
    }
}

/// RFC 6455 section 11.8.
mod opcode {
    pub(super) const CONTINUATION: u8 = 0;
    pub(super) const TEXT: u8 = 1;
    pub(super) const BINARY: u8 = 2;
    pub(super) const CLOSE: u8 = 8;
    pub(super) const PING: u8 = 9;
    pub(super) const PONG: u8 = 10;

    pub(super) fn is_control(opcode: u8) -> bool {
        opcode >= CLOSE
    }
}

/// A frame's header (RFC 6455 section 5.2).
#[derive(Debug)]
struct Header {
    frame: Frame,
    /// RSV1: compressed, on the first frame of a message.
    compressed: bool,
}

impl Header {
    /// `None` while it is incomplete.
    fn parse(bytes: &[u8]) -> Option<Result<Self, &'static str>> {
        let [first, second, rest @ ..] = bytes else {
            return None;
        };
        if first & 0x30 != 0 {
            return Some(Err("a reserved bit"));
        }
        let (left, rest) = match second & 0x7f {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            short => (u64::from(short), rest),
        };
        if left >> 63 != 0 {
            return Some(Err("a frame of more than 2^63 bytes"));
        }
        let mask = match second & 0x80 {
            0 => None,
            _ => Some(*rest.first_chunk()?),
        };
        Some(Ok(Self {
            frame: Frame {
                last: first & 0x80 != 0,
                opcode: first & 0x0f,
                left,
                mask,
                position: 0,
                holed: false,
            },
            compressed: first & 0x40 != 0,
        }))
    }
}

#[cfg(test)]
mod tests;
