//! Frames: their header and what can be said of it alone (RFC 9113 sections 4.1 and 6).

use crate::Side;

/// Length of a frame's header.
pub(super) const HEADER_LENGTH: usize = 9;

/// The receiver allows frames up to this long unless its settings say more (RFC 9113 section 4.2).
pub(super) const DEFAULT_MAX_LENGTH: u32 = 1 << 14;

/// Frame types (RFC 9113 section 6; RFC 7838, RFC 8336 and RFC 9218 for the last three). Not an enum,
/// because unknown types are valid.
pub(super) mod kind {
    pub(in crate::http2) const DATA: u8 = 0;
    pub(in crate::http2) const HEADERS: u8 = 1;
    pub(in crate::http2) const PRIORITY: u8 = 2;
    pub(in crate::http2) const RST_STREAM: u8 = 3;
    pub(in crate::http2) const SETTINGS: u8 = 4;
    pub(in crate::http2) const PUSH_PROMISE: u8 = 5;
    pub(in crate::http2) const PING: u8 = 6;
    pub(in crate::http2) const GOAWAY: u8 = 7;
    pub(in crate::http2) const WINDOW_UPDATE: u8 = 8;
    pub(in crate::http2) const CONTINUATION: u8 = 9;
    pub(in crate::http2) const ALTSVC: u8 = 10;
    pub(in crate::http2) const ORIGIN: u8 = 12;
    pub(in crate::http2) const PRIORITY_UPDATE: u8 = 16;
}

/// Flags. `END_STREAM` and `ACK` are the same bit, for different types.
pub(super) mod flag {
    pub(in crate::http2) const END_STREAM: u8 = 0x1;
    pub(in crate::http2) const ACK: u8 = 0x1;
    pub(in crate::http2) const END_HEADERS: u8 = 0x4;
    pub(in crate::http2) const PADDED: u8 = 0x8;
    pub(in crate::http2) const PRIORITY: u8 = 0x20;
}

/// A frame's header (RFC 9113 section 4.1).
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameHeader {
    /// Length of the payload in bytes, below 2^24.
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// The bit that senders leave unset and receivers ignore.
    pub(super) reserved: bool,
    /// The stream; 0 is the connection.
    pub(super) stream: u32,
}

impl FrameHeader {
    pub(super) fn parse(bytes: &[u8; HEADER_LENGTH]) -> Self {
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = *bytes;
        let stream = u32::from_be_bytes([s1, s2, s3, s4]);
        Self {
            length: u32::from_be_bytes([0, l1, l2, l3]),
            kind,
            flags,
            reserved: stream >> 31 != 0,
            stream: stream & 0x7fff_ffff,
        }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// What makes this frame a connection error when `side` sends it, if its header alone tells
    /// (RFC 9113 sections 5.1.1 and 6).
    pub(super) fn check(&self, side: Side) -> Result<(), &'static str> {
        let on_stream = self.stream != 0;
        match self.kind {
            kind::DATA | kind::HEADERS | kind::CONTINUATION if !on_stream => {
                Err("HTTP/2 message frame without a stream")
            }
            kind::DATA | kind::HEADERS if side == Side::Client && self.stream.is_multiple_of(2) => {
                Err("HTTP/2 request on a stream of the server's")
            }
            kind::PRIORITY if !on_stream || self.length != 5 => Err("HTTP/2 PRIORITY frame"),
            kind::RST_STREAM if !on_stream || self.length != 4 => Err("HTTP/2 RST_STREAM frame"),
            kind::SETTINGS if on_stream || !self.length.is_multiple_of(6) => {
                Err("HTTP/2 SETTINGS frame")
            }
            kind::SETTINGS if self.has(flag::ACK) && self.length != 0 => {
                Err("HTTP/2 SETTINGS frame")
            }
            kind::PUSH_PROMISE if side == Side::Client || self.stream.is_multiple_of(2) => {
                Err("HTTP/2 PUSH_PROMISE frame")
            }
            kind::PING if on_stream || self.length != 8 => Err("HTTP/2 PING frame"),
            kind::GOAWAY if on_stream || self.length < 8 => Err("HTTP/2 GOAWAY frame"),
            kind::WINDOW_UPDATE if self.length != 4 => Err("HTTP/2 WINDOW_UPDATE frame"),
            _ => Ok(()),
        }
    }

    /// The flags that are defined for this type; `None` for a type that we don't know.
    pub(super) fn defined_flags(&self) -> Option<u8> {
        use flag::*;
        Some(match self.kind {
            kind::DATA => END_STREAM | PADDED,
            kind::HEADERS => END_STREAM | END_HEADERS | PADDED | PRIORITY,
            kind::SETTINGS | kind::PING => ACK,
            kind::PUSH_PROMISE => END_HEADERS | PADDED,
            kind::CONTINUATION => END_HEADERS,
            kind::PRIORITY
            | kind::RST_STREAM
            | kind::GOAWAY
            | kind::WINDOW_UPDATE
            | kind::ALTSVC
            | kind::ORIGIN
            | kind::PRIORITY_UPDATE => 0,
            _ => return None,
        })
    }
}

/// The header block fragment in the payload of a HEADERS, PUSH_PROMISE or CONTINUATION frame, and the
/// promised stream of a PUSH_PROMISE (RFC 9113 sections 6.2, 6.6, 6.10).
pub(super) fn fragment<'p>(
    frame: &FrameHeader,
    payload: &'p [u8],
) -> Result<(&'p [u8], Option<u32>), &'static str> {
    const SHORT: &str = "HTTP/2 frame shorter than its fields";
    let mut rest = payload;
    let mut take = |count: usize| {
        let (taken, behind) = rest.split_at_checked(count).ok_or(SHORT)?;
        rest = behind;
        Ok::<_, &'static str>(taken)
    };
    let mut padding = 0;
    if frame.kind != kind::CONTINUATION && frame.has(flag::PADDED) {
        padding = usize::from(take(1)?[0]);
    }
    let mut promised = None;
    if frame.kind == kind::PUSH_PROMISE {
        let id = take(4)?
            .first_chunk()
            .map_or(0, |id| u32::from_be_bytes(*id));
        promised = Some(id & 0x7fff_ffff);
    }
    if frame.kind == kind::HEADERS && frame.has(flag::PRIORITY) {
        take(5)?;
    }
    let length = rest
        .len()
        .checked_sub(padding)
        .ok_or("HTTP/2 padding longer than its frame")?;
    Ok((&rest[..length], promised))
}
