//! Finding the boundary of a frame in the middle of a connection.
//!
//! Frames have no mark. Programs write whole frames most of the time, so that the first bytes we see of a
//! connection are probably a frame; but they may as well be the middle of a body. So a place is a
//! boundary if what follows is a chain of frames as strict senders write them (types, flags, lengths and
//! streams that fit together, header blocks that decode), long enough to be no accident. Evidence is
//! counted roughly in bits: a place in random bytes passes with a probability of 2^-40. The first frame
//! has to be convincing by itself (`alone`): what follows does not vouch for it, because a
//! wrong length often enough leads to the beginning of a real frame. Only a body that contains HTTP/2
//! itself can look like one.

use super::frame::{DEFAULT_MAX_LENGTH, FrameHeader, HEADER_LENGTH, flag, fragment, kind};
use super::head::FieldBlock;
use crate::Side;
use crate::hpack::Decoder;

/// How many bytes are held in search of a boundary. A chain whose beginning is longer is not found.
pub const MAX_WINDOW: usize = 128 << 10;

/// Evidence that is enough, in bits, for the first frame and for the chain.
const ENOUGH: u32 = 40;

/// What a frame's header proves by itself, in bits: how unlikely random bytes are to be one.
fn alone(frame: &FrameHeader) -> u32 {
    match frame.kind {
        kind::DATA => 14 + zeros(frame),
        kind::HEADERS | kind::PUSH_PROMISE => 12 + zeros(frame),
        // Their lengths are free, and they are rare.
        kind::ALTSVC | kind::ORIGIN | kind::PRIORITY_UPDATE => 0,
        _ => ENOUGH,
    }
}

/// Leading zeros of a frame's length and stream.
fn zeros(frame: &FrameHeader) -> u32 {
    frame.length.leading_zeros() - 8 + frame.stream.leading_zeros()
}

/// Longest GOAWAY and SETTINGS frame that a search believes in.
const MAX_GOAWAY: u32 = 1024;
const MAX_SETTINGS: u32 = 6 * 32;

/// Header blocks longer than this are not taken for evidence.
const MAX_BLOCK: u32 = 16 << 10;

/// Work on header blocks is limited to so many times the bytes that are searched, in case that many
/// places look like the beginning of a long one.
const WORK_PER_BYTE: usize = 8;

/// Work that is granted ahead, in bytes.
const FIRST_WORK: usize = 256 << 10;

/// What a place is.
enum Verdict {
    Boundary,
    No,
    /// It may be one: this many bytes from there on will tell more. `complete`: so far it is a chain of
    /// whole frames.
    Perhaps {
        need: usize,
        complete: bool,
    },
}

/// How much work one direction may still make.
#[derive(Debug)]
pub(super) struct Work(usize);

impl Work {
    pub(super) fn new() -> Self {
        Self(FIRST_WORK)
    }

    /// So many bytes have come.
    pub(super) fn earn(&mut self, bytes: usize) {
        self.0 = (self.0 + bytes.saturating_mul(WORK_PER_BYTE)).min(FIRST_WORK);
    }

    fn spend(&mut self, bytes: usize) -> Option<()> {
        self.0 = self.0.checked_sub(bytes)?;
        Some(())
    }
}

/// A search for a boundary in what one side sends.
#[derive(Debug)]
pub(super) struct Search {
    side: Side,
    /// The longest frame to believe in.
    max_length: u32,
    window: Vec<u8>,
    /// Offset of the window in what the side sent.
    offset: u64,
    /// How many bytes there must be before another look makes sense.
    need: usize,
}

/// Bytes that were held, their offset in what the side sent, and where in them a frame begins.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) window: Vec<u8>,
    pub(super) offset: u64,
    pub(super) at: usize,
}

impl Search {
    /// Bytes of memory.
    pub(super) fn held(&self) -> usize {
        self.window.capacity()
    }

    /// A search in what `side` sends. `max_length` is the longest frame that the other side allows; if
    /// that is not known, what all allow has to do: a wrong length must not hold up the search for long.
    pub(super) fn new(side: Side, max_length: Option<u32>) -> Self {
        Self {
            side,
            max_length: max_length.unwrap_or(DEFAULT_MAX_LENGTH),
            window: Vec::new(),
            offset: 0,
            need: 0,
        }
    }

    /// Takes bytes. Returns how many, and a boundary if there is one.
    pub(super) fn data(
        &mut self,
        offset: u64,
        bytes: &[u8],
        work: &mut Work,
    ) -> (usize, Option<Found>) {
        if self.window.is_empty() {
            self.offset = offset;
        }
        let taken = bytes.len().min(2 * MAX_WINDOW - self.window.len());
        self.window.extend_from_slice(&bytes[..taken]);
        if self.window.len() < self.need {
            return (taken, None);
        }
        let held = Found {
            window: std::mem::take(&mut self.window),
            offset: self.offset,
            at: 0,
        };
        (taken, self.look(held, work))
    }

    /// Looks for a boundary in `held`, from `held.at` on. Keeps what may be one.
    pub(super) fn look(&mut self, mut held: Found, work: &mut Work) -> Option<Found> {
        while held.at < held.window.len() {
            match self.judge(&held.window[held.at..], work) {
                Verdict::Boundary => return Some(held),
                Verdict::Perhaps { need, .. } if need <= MAX_WINDOW => {
                    self.need = need;
                    break;
                }
                _ => held.at += 1,
            }
        }
        self.window = held.window.split_off(held.at);
        self.offset = held.offset.saturating_add(held.at as u64);
        None
    }

    /// Nothing follows what is held: whole frames up to here are evidence enough.
    pub(super) fn settle(&mut self, work: &mut Work) -> Option<Found> {
        self.need = 0;
        let window = std::mem::take(&mut self.window);
        let verdict = self.judge(&window, work);
        matches!(verdict, Verdict::Perhaps { complete: true, .. }).then_some(Found {
            window,
            offset: self.offset,
            at: 0,
        })
    }

    /// Whether a chain of frames begins with `bytes`.
    fn judge(&self, bytes: &[u8], work: &mut Work) -> Verdict {
        let mut at = 0;
        let mut evidence = 0;
        let mut block: Option<(FrameHeader, Vec<u8>)> = None;
        loop {
            let perhaps = |need, complete| Verdict::Perhaps { need, complete };
            let rest = &bytes[at..];
            let Some((header, rest)) = rest.split_first_chunk::<HEADER_LENGTH>() else {
                let complete = at > 0 && rest.is_empty() && block.is_none();
                return perhaps(at + HEADER_LENGTH, complete);
            };
            let frame = FrameHeader::parse(header);
            let expected = match &block {
                Some((first, _)) => {
                    frame.kind == kind::CONTINUATION && frame.stream == first.stream
                }
                None => frame.kind != kind::CONTINUATION,
            };
            let convincing = at > 0 || alone(&frame) >= ENOUGH;
            if !expected || !convincing || !self.plausible(&frame) {
                return Verdict::No;
            }
            let end = at + HEADER_LENGTH + frame.length as usize;
            let payload = rest.get(..frame.length as usize);
            let weight = if frame.kind == kind::DATA {
                Some((14 + zeros(&frame) / 2).min(20))
            } else {
                let Some(payload) = payload else {
                    return perhaps(end, false);
                };
                match frame.kind {
                    kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION => {
                        match self.add_fragment(&frame, payload, &mut block, work) {
                            Some(None) => {
                                at = end;
                                continue;
                            }
                            weight => weight.flatten(),
                        }
                    }
                    _ => control_weight(&frame, payload),
                }
            };
            match weight {
                Some(weight) => evidence += weight,
                None => return Verdict::No,
            }
            if evidence >= ENOUGH {
                return Verdict::Boundary;
            }
            if payload.is_none() {
                return perhaps(end + HEADER_LENGTH, false);
            }
            at = end;
        }
    }

    /// Whether a strict sender writes such a header.
    fn plausible(&self, frame: &FrameHeader) -> bool {
        let flags = frame.defined_flags();
        !frame.reserved
            && frame.check(self.side).is_ok()
            && flags.is_some_and(|defined| frame.flags & !defined == 0)
            && frame.length <= self.max_length
            && match frame.kind {
                kind::DATA => frame.length > 0 || frame.has(flag::END_STREAM),
                kind::HEADERS | kind::PUSH_PROMISE => (1..=MAX_BLOCK).contains(&frame.length),
                kind::CONTINUATION => frame.length <= MAX_BLOCK,
                kind::GOAWAY => frame.length <= MAX_GOAWAY,
                kind::SETTINGS => frame.length <= MAX_SETTINGS,
                _ => true,
            }
    }

    /// Adds to a header block; `None` if it is none. At its end: what it proves.
    fn add_fragment(
        &self,
        frame: &FrameHeader,
        payload: &[u8],
        block: &mut Option<(FrameHeader, Vec<u8>)>,
        work: &mut Work,
    ) -> Option<Option<u32>> {
        work.spend(payload.len())?;
        let (fragment, _) = fragment(frame, payload).ok()?;
        let (first, mut bytes) = block.take().unwrap_or((*frame, Vec::new()));
        bytes.extend_from_slice(fragment);
        if bytes.len() > MAX_BLOCK as usize {
            return None;
        }
        if frame.has(flag::END_HEADERS) {
            return self.block_weight(&first, &bytes).map(Some);
        }
        *block = Some((first, bytes));
        Some(None)
    }

    /// What a header block proves: more with every pseudo-header field. `None` if it is none.
    fn block_weight(&self, first: &FrameHeader, bytes: &[u8]) -> Option<u32> {
        let block = FieldBlock::decode(&mut Decoder::joined(), bytes).ok()?;
        let asks = self.side == Side::Client || first.kind == kind::PUSH_PROMISE;
        let wrong_side = if asks {
            block.status.is_some() || block.protocol.is_some() && block.method.is_none()
        } else {
            block.request_fields() > 0 || block.protocol.is_some()
        };
        let status = block.status();
        let lower_case = |name: &[u8]| {
            let valid = |&byte: &u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase();
            !name.is_empty() && name.iter().all(valid)
        };
        if block.trouble.is_some()
            || wrong_side
            || block.status.is_some() && status.is_none()
            || !block.fields.iter().all(|field| lower_case(&field.name))
        {
            return None;
        }
        let pseudo = block.request_fields() as u32 + u32::from(status.is_some());
        Some(12 + zeros(first) / 2 + 8 * pseudo)
    }
}

/// What a frame of another type adds to a chain, less than by itself, because other data are not random;
/// `None` if its payload is not valid.
fn control_weight(frame: &FrameHeader, payload: &[u8]) -> Option<u32> {
    let number = payload
        .first_chunk()
        .map_or(0, |first| u32::from_be_bytes(*first));
    match frame.kind {
        kind::SETTINGS if payload.is_empty() => frame.has(flag::ACK).then_some(20),
        kind::SETTINGS => {
            let known = |setting: &[u8]| setting[0] == 0 && (1..=16).contains(&setting[1]);
            payload.chunks(6).all(known).then_some(40)
        }
        kind::RST_STREAM => (number <= 13).then_some(36),
        kind::WINDOW_UPDATE => (number != 0 && number >> 31 == 0).then_some(24),
        kind::PING | kind::GOAWAY => Some(32),
        kind::PRIORITY => Some(16),
        _ => Some(8),
    }
}
