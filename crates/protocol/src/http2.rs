//! HTTP/2 (RFC 9113): from the bytes of a connection to the messages on its streams.
//!
//! [`Http2`] observes; it is no peer. It follows a connection from its beginning or joins in the middle
//! (`sync.rs`), and what it can't know it says (`hpack.rs`). Bodies are handed on as they come; only
//! header blocks are held. The limits per connection: [`MAX_HEADER_BLOCK`] and [`MAX_WINDOW`] for each
//! direction, never both full at a time; [`MAX_TABLE`] for each direction; [`MAX_STREAMS`] streams of
//! about 100 bytes; [`MAX_HEADER_LIST`] while a head is handed on.

mod frame;
mod head;
mod streams;
mod sync;

use frame::{DEFAULT_MAX_LENGTH, FrameHeader, HEADER_LENGTH, flag, fragment, kind};
use head::FieldBlock;
pub use head::MAX_HEADER_LIST;
pub use streams::MAX_STREAMS;
use streams::{Place, Streams};
pub use sync::MAX_WINDOW;
use sync::{Found, Search, Work};

pub use crate::hpack::MAX_TABLE;
use crate::hpack::{self, DEFAULT_TABLE};
use crate::{Cause, Decoder, HttpEvent, HttpSink, Side, Trouble};

/// What a client sends first (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How many bytes of a header block are held, over all its frames. Without a longer one, what the dynamic
/// table holds is not known any more.
pub const MAX_HEADER_BLOCK: usize = 256 << 10;

/// How much more than its fragment a frame with one may hold: padding and priority.
const MAX_BESIDE_FRAGMENT: usize = 1 + 5 + 255;

/// How many bytes of a SETTINGS frame are looked at.
const MAX_SETTINGS: usize = 6 * 64;

/// Memory that a direction keeps for the next frame.
const SPARE: usize = 4 << 10;

/// Whether a client's first bytes are those of HTTP/2, as far as they go: `None` if they are too few to
/// tell.
pub fn looks_like_preface(bytes: &[u8]) -> Option<bool> {
    if bytes.len() >= PREFACE.len() {
        return Some(bytes.starts_with(PREFACE));
    }
    (!PREFACE.starts_with(bytes)).then_some(false)
}

/// A decoder of one HTTP/2 connection.
#[derive(Debug)]
pub struct Http2 {
    halves: [Half; 2],
    shared: Shared,
}

impl Http2 {
    /// For a connection that is seen from its beginning, in both directions.
    pub fn new() -> Self {
        Self {
            halves: [
                Half::new(Side::Client, State::Preface(0)),
                Half::new(Side::Server, State::FRAME),
            ],
            shared: Shared {
                streams: Streams::new(),
                agreed: [Agreed::DEFAULT; 2],
            },
        }
    }

    /// For a connection that is first seen in the middle.
    pub fn joined() -> Self {
        let mut decoder = Self::behind_gap();
        for half in &mut decoder.halves {
            half.joined = true;
        }
        decoder.shared.streams.joined = true;
        decoder
    }

    /// For a connection of which something is missing before the first byte that it gets.
    pub fn behind_gap() -> Self {
        let half = |side| Half {
            hpack: hpack::Decoder::joined(),
            ..Half::new(side, State::Lost(Search::new(side, None)))
        };
        Self {
            halves: [half(Side::Client), half(Side::Server)],
            shared: Shared {
                streams: Streams::behind_gap(),
                agreed: [Agreed::UNKNOWN; 2],
            },
        }
    }
}

impl Default for Http2 {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder for Http2 {
    fn data(&mut self, side: Side, offset: u64, bytes: &[u8], sink: &mut HttpSink<'_>) {
        self.halves[side.index()].data(offset, bytes, &mut self.shared, sink);
    }

    fn missing(
        &mut self,
        side: Side,
        offset: u64,
        bytes: u64,
        cause: Cause,
        sink: &mut HttpSink<'_>,
    ) {
        self.halves[side.index()].missing(offset, bytes, cause, &mut self.shared, sink);
    }

    fn close(&mut self, sink: &mut HttpSink<'_>) {
        for half in &mut self.halves {
            half.settle(&mut self.shared, sink);
        }
    }
    fn held(&self) -> usize {
        let halves: usize = self.halves.iter().map(Half::held).sum();
        halves + self.shared.streams.held()
    }
}

/// What both directions have to do with.
#[derive(Debug)]
struct Shared {
    streams: Streams,
    /// What each side has announced.
    agreed: [Agreed; 2],
}

/// The largest values that a side has announced in its settings; `None` if some may have been missed.
#[derive(Clone, Copy, Debug)]
struct Agreed {
    max_frame: Option<u32>,
    max_table: Option<u32>,
}

impl Agreed {
    /// What holds without any settings (RFC 9113 section 6.5.2).
    const DEFAULT: Self = Self {
        max_frame: Some(DEFAULT_MAX_LENGTH),
        max_table: Some(DEFAULT_TABLE as u32),
    };
    const UNKNOWN: Self = Self {
        max_frame: None,
        max_table: None,
    };

    /// The payload of a SETTINGS frame (RFC 9113 section 6.5.1).
    fn settings(&mut self, payload: &[u8]) {
        for setting in payload.chunks_exact(6) {
            let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
            let place = match [setting[0], setting[1]] {
                [0, 1] => &mut self.max_table,
                [0, 5] => &mut self.max_frame,
                _ => continue,
            };
            *place = place.map(|largest| largest.max(value));
        }
    }
}

/// One direction.
#[derive(Debug)]
struct Half {
    side: Side,
    /// It was first seen in the middle, and that has not been said yet.
    joined: bool,
    state: State,
    hpack: hpack::Decoder,
    /// What has come of the frame's payload and is needed as a whole.
    payload: Vec<u8>,
    /// The header block that is not complete yet.
    block: Option<Block>,
    work: Work,
}

/// What the next byte is.
#[derive(Debug)]
enum State {
    /// Part of the preface, of which so many bytes have come.
    Preface(usize),
    /// Part of a frame's header, of which so many bytes have come.
    Header([u8; HEADER_LENGTH], usize),
    /// Part of a frame's payload.
    Payload(Payload),
    /// Not known.
    Lost(Search),
}

impl State {
    /// The next byte is the first one of a frame.
    const FRAME: Self = Self::Header([0; HEADER_LENGTH], 0);
}

/// Where we are in a frame's payload.
#[derive(Clone, Copy, Debug)]
struct Payload {
    frame: FrameHeader,
    /// Offset of the frame.
    offset: u64,
    /// How many bytes are still to come.
    remaining: u32,
    /// How many bytes of all are kept.
    keep: usize,
    /// For DATA: how many of the remaining bytes are padding; `None` if the next byte says so.
    padding: Option<u32>,
    /// For DATA: somebody wants it.
    wanted: bool,
    /// Bytes of it are missing.
    damaged: bool,
}

/// A header block (RFC 9113 section 4.3) while it comes.
#[derive(Debug)]
struct Block {
    /// The stream of its message, and the offset of its first frame.
    place: Place,
    /// The stream of its frames: that of `place`, unless this is a promise of another one.
    frame_stream: u32,
    push: bool,
    end_stream: bool,
    bytes: Vec<u8>,
    wire_length: u64,
    /// Why it can't be decoded.
    trouble: Option<Trouble>,
}

impl Half {
    fn new(side: Side, state: State) -> Self {
        Self {
            side,
            joined: false,
            state,
            hpack: hpack::Decoder::new(),
            payload: Vec::new(),
            block: None,
            work: Work::new(),
        }
    }

    fn held(&self) -> usize {
        let block = self
            .block
            .as_ref()
            .map_or(0, |block| block.bytes.capacity());
        let search = match &self.state {
            State::Lost(search) => search.held(),
            _ => 0,
        };
        self.payload.capacity() + block + search + self.hpack.held()
    }

    fn data(
        &mut self,
        mut offset: u64,
        mut bytes: &[u8],
        shared: &mut Shared,
        sink: &mut HttpSink<'_>,
    ) {
        if std::mem::take(&mut self.joined) {
            sink(HttpEvent::Trouble(
                None,
                self.side,
                offset,
                Trouble::MidStream,
            ));
        }
        self.work.earn(bytes.len());
        while !bytes.is_empty() {
            let taken = if let State::Lost(search) = &mut self.state {
                let (taken, found) = search.data(offset, bytes, &mut self.work);
                self.resume(found, shared, sink);
                taken
            } else {
                self.frames(offset, bytes, shared, sink)
            };
            bytes = &bytes[taken..];
            offset = offset.saturating_add(taken as u64);
        }
    }

    /// Goes on at a frame that was found in the middle.
    fn resume(&mut self, found: Option<Found>, shared: &mut Shared, sink: &mut HttpSink<'_>) {
        let mut next = found;
        while let Some(mut found) = next.take() {
            self.state = State::FRAME;
            let offset = found.offset.saturating_add(found.at as u64);
            found.at += self.frames(offset, &found.window[found.at..], shared, sink);
            if let State::Lost(search) = &mut self.state {
                next = search.look(found, &mut self.work);
            }
        }
    }

    /// Nothing follows for now: decides about what is held.
    fn settle(&mut self, shared: &mut Shared, sink: &mut HttpSink<'_>) {
        if let State::Lost(search) = &mut self.state {
            let found = search.settle(&mut self.work);
            self.resume(found, shared, sink);
        }
    }

    fn missing(
        &mut self,
        offset: u64,
        bytes: u64,
        cause: Cause,
        shared: &mut Shared,
        sink: &mut HttpSink<'_>,
    ) {
        self.settle(shared, sink);
        let mut inside = 0;
        if let State::Payload(payload) = &mut self.state {
            inside = bytes.min(payload.remaining.into());
            let mut payload = *payload;
            self.payload_missing(&mut payload, offset, inside, cause, sink);
            self.payload_done(payload, shared, sink);
        }
        if bytes > inside {
            let trouble = cause.trouble(bytes - inside);
            self.lose(offset.saturating_add(inside), trouble, shared, sink);
        }
    }

    /// The next bytes of a frame's payload are missing.
    fn payload_missing(
        &mut self,
        payload: &mut Payload,
        offset: u64,
        bytes: u64,
        cause: Cause,
        sink: &mut HttpSink<'_>,
    ) {
        let place = Place {
            side: self.side,
            stream: payload.frame.stream,
            offset,
        };
        payload.damaged = true;
        if let (Some(padding), true) = (payload.padding, payload.wanted) {
            let missing = bytes.min((payload.remaining - padding).into());
            if missing > 0 {
                sink(HttpEvent::Missing(place.id(), self.side, missing, cause));
            }
        } else if payload.wanted {
            // What of the frame is padding was said in the first missing byte.
            payload.padding = Some(payload.remaining - bytes as u32);
            sink(place.trouble(cause.trouble(bytes)));
        }
        if let Some(block) = &mut self.block {
            block.trouble = Some(cause.trouble(bytes));
        }
        payload.remaining -= bytes as u32;
        if let Some(padding) = &mut payload.padding {
            *padding = payload.remaining.min(*padding);
        }
    }

    /// What comes next can't be told apart until a boundary is found, and header blocks may be missed.
    fn lose(
        &mut self,
        offset: u64,
        trouble: Trouble,
        shared: &mut Shared,
        sink: &mut HttpSink<'_>,
    ) {
        sink(HttpEvent::Trouble(None, self.side, offset, trouble));
        self.block = None;
        self.payload = Vec::new();
        self.hpack.forget();
        shared.streams.forget(self.side);
        let max_frame = shared.agreed[self.side.other().index()].max_frame;
        shared.agreed[self.side.index()] = Agreed::UNKNOWN;
        self.state = State::Lost(Search::new(self.side, max_frame));
    }

    /// Takes bytes while the boundaries of frames are known. Returns how many.
    fn frames(
        &mut self,
        offset: u64,
        bytes: &[u8],
        shared: &mut Shared,
        sink: &mut HttpSink<'_>,
    ) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let (here, rest) = (offset.saturating_add(at as u64), &bytes[at..]);
            at += match &mut self.state {
                State::Preface(have) => {
                    let part = &PREFACE[*have..];
                    let same = part.iter().zip(rest).take_while(|(a, b)| a == b);
                    let count = same.count();
                    *have += count;
                    if count < part.len().min(rest.len()) {
                        let here = here.saturating_add(count as u64);
                        let trouble = Trouble::Malformed("HTTP/2 preface");
                        self.lose(here, trouble, shared, sink);
                    } else if *have == PREFACE.len() {
                        self.state = State::FRAME;
                    }
                    count
                }
                State::Header(header, have) => {
                    let count = (HEADER_LENGTH - *have).min(rest.len());
                    header[*have..][..count].copy_from_slice(&rest[..count]);
                    *have += count;
                    if *have == HEADER_LENGTH {
                        let begin = here
                            .saturating_add(count as u64)
                            .saturating_sub(HEADER_LENGTH as u64);
                        let frame = FrameHeader::parse(header);
                        self.frame(frame, begin, shared, sink);
                    }
                    count
                }
                State::Payload(payload) => {
                    let mut payload = *payload;
                    let count = self.payload(&mut payload, here, rest, sink);
                    self.payload_done(payload, shared, sink);
                    count
                }
                State::Lost(_) => break,
            };
        }
        at
    }

    /// A frame's header is complete.
    fn frame(
        &mut self,
        frame: FrameHeader,
        offset: u64,
        shared: &mut Shared,
        sink: &mut HttpSink<'_>,
    ) {
        let place = Place {
            side: self.side,
            stream: frame.stream,
            offset,
        };
        if let Err(what) = self.expect(&frame) {
            self.lose(offset, Trouble::Malformed(what), shared, sink);
            return;
        }
        let mut keep = 0;
        let mut wanted = false;
        match frame.kind {
            kind::DATA => wanted = shared.streams.data(place, sink),
            kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION => {
                keep = self.block_frame(&frame, place);
            }
            kind::SETTINGS => keep = MAX_SETTINGS,
            kind::RST_STREAM => keep = 4,
            kind::GOAWAY => keep = 8,
            _ => {}
        }
        let payload = Payload {
            frame,
            offset,
            remaining: frame.length,
            keep,
            padding: (frame.kind != kind::DATA || !frame.has(flag::PADDED)).then_some(0),
            wanted,
            damaged: false,
        };
        self.payload_done(payload, shared, sink);
    }

    /// Whether this frame may stand here (RFC 9113 sections 4.3 and 6.10).
    fn expect(&self, frame: &FrameHeader) -> Result<(), &'static str> {
        let continues = frame.kind == kind::CONTINUATION;
        match &self.block {
            Some(block) if !continues || block.frame_stream != frame.stream => {
                Err("HTTP/2 header block without its end")
            }
            None if continues => Err("HTTP/2 header block without its beginning"),
            _ => frame.check(self.side),
        }
    }

    /// A frame with a part of a header block begins. Returns how much of it to keep.
    fn block_frame(&mut self, frame: &FrameHeader, place: Place) -> usize {
        let block = self.block.get_or_insert_with(|| Block {
            place,
            frame_stream: frame.stream,
            push: frame.kind == kind::PUSH_PROMISE,
            end_stream: frame.kind == kind::HEADERS && frame.has(flag::END_STREAM),
            bytes: Vec::new(),
            wire_length: 0,
            trouble: None,
        });
        block.wire_length += HEADER_LENGTH as u64 + u64::from(frame.length);
        let room = MAX_HEADER_BLOCK - block.bytes.len() + MAX_BESIDE_FRAGMENT;
        if frame.length as usize > room {
            block.trouble = Some(Trouble::TooMuch("HTTP/2 header block", MAX_HEADER_BLOCK));
        }
        if block.trouble.is_some() { 0 } else { room }
    }

    /// Takes bytes of a frame's payload. Returns how many.
    fn payload(
        &mut self,
        payload: &mut Payload,
        offset: u64,
        bytes: &[u8],
        sink: &mut HttpSink<'_>,
    ) -> usize {
        let place = Place {
            side: self.side,
            stream: payload.frame.stream,
            offset,
        };
        let Some(padding) = payload.padding else {
            payload.remaining -= 1;
            payload.padding = Some(payload.remaining.min(bytes[0].into()));
            if u32::from(bytes[0]) > payload.remaining {
                sink(place.trouble(Trouble::Malformed("HTTP/2 padding longer than its frame")));
            }
            return 1;
        };
        let content = payload.remaining - padding;
        let until = if content > 0 { content } else { padding };
        let count = bytes.len().min(until as usize);
        if payload.wanted && content > 0 {
            sink(HttpEvent::Body(place.id(), self.side, &bytes[..count]));
        }
        let room = payload.keep.saturating_sub(self.payload.len());
        self.payload.extend_from_slice(&bytes[..count.min(room)]);
        payload.remaining -= count as u32;
        payload.padding = Some(padding.min(payload.remaining));
        count
    }

    /// Finishes the frame if nothing of it is to come.
    fn payload_done(&mut self, payload: Payload, shared: &mut Shared, sink: &mut HttpSink<'_>) {
        if payload.remaining > 0 {
            self.state = State::Payload(payload);
            return;
        }
        self.state = State::FRAME;
        let kept = std::mem::take(&mut self.payload);
        self.frame_done(&payload, &kept, shared, sink);
        if kept.capacity() <= SPARE {
            self.payload = kept;
            self.payload.clear();
        }
    }

    /// A frame is complete.
    fn frame_done(
        &mut self,
        payload: &Payload,
        kept: &[u8],
        shared: &mut Shared,
        sink: &mut HttpSink<'_>,
    ) {
        let frame = &payload.frame;
        let place = Place {
            side: self.side,
            stream: frame.stream,
            offset: payload.offset,
        };
        let number = |at: usize| {
            let number = kept.get(at..)?.first_chunk()?;
            (!payload.damaged).then_some(u32::from_be_bytes(*number))
        };
        match frame.kind {
            kind::DATA if payload.wanted && frame.has(flag::END_STREAM) => {
                shared.streams.end(place, sink);
            }
            kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION => {
                self.fragment(frame, kept, shared, sink);
            }
            kind::RST_STREAM => shared.streams.reset(place, number(0), sink),
            kind::GOAWAY => {
                if let (Some(last), Some(code)) = (number(0), number(4)) {
                    let last = last & 0x7fff_ffff;
                    shared.streams.go_away(self.side, last, code, sink);
                }
            }
            kind::SETTINGS if !frame.has(flag::ACK) => {
                let agreed = &mut shared.agreed[self.side.index()];
                if payload.damaged || frame.length as usize > MAX_SETTINGS {
                    *agreed = Agreed::UNKNOWN;
                } else {
                    agreed.settings(kept);
                }
            }
            _ => {}
        }
    }

    /// A frame with a part of a header block is complete.
    fn fragment(
        &mut self,
        frame: &FrameHeader,
        payload: &[u8],
        shared: &mut Shared,
        sink: &mut HttpSink<'_>,
    ) {
        let Some(mut block) = self.block.take() else {
            return;
        };
        if block.trouble.is_none() {
            match fragment(frame, payload) {
                Ok((fragment, promised)) => {
                    block.place.stream = promised.unwrap_or(block.place.stream);
                    block.bytes.extend_from_slice(fragment);
                }
                Err(what) => block.trouble = Some(Trouble::Malformed(what)),
            }
        }
        if block.trouble.is_none() && block.bytes.len() > MAX_HEADER_BLOCK {
            block.trouble = Some(Trouble::TooMuch("HTTP/2 header block", MAX_HEADER_BLOCK));
        }
        if block.trouble.is_some() {
            block.bytes = Vec::new();
        }
        if frame.has(flag::END_HEADERS) {
            self.block_done(block, shared, sink);
        } else {
            self.block = Some(block);
        }
    }

    /// A header block is complete.
    fn block_done(&mut self, mut block: Block, shared: &mut Shared, sink: &mut HttpSink<'_>) {
        let allowed = shared.agreed[self.side.other().index()].max_table;
        self.hpack.allow(allowed);
        let fields = match block.trouble.take() {
            Some(trouble) => Err(trouble),
            None => FieldBlock::decode(&mut self.hpack, &block.bytes).map_err(Trouble::Malformed),
        };
        let fields = fields
            .map_err(|trouble| {
                self.hpack.forget();
                sink(block.place.trouble(trouble));
            })
            .ok();
        let (place, length) = (block.place, block.wire_length);
        match block.push {
            false => {
                let end = block.end_stream;
                shared.streams.headers(place, fields, end, length, sink);
            }
            // Otherwise the promised stream may not be known either.
            true if place.stream != block.frame_stream => {
                shared.streams.promise(place, fields, length, sink);
            }
            true => {}
        }
    }
}

#[cfg(test)]
mod tests;
