//! HTTP/2 of which parts are lost, or that is first seen in the middle: what is shown was sent.
//!
//! The connection is one that real programs could have; a fuzzer chooses what is in it and what of it is
//! seen. Bodies are of bytes that can't be taken for frames: a peer that sends HTTP/2 within a body can
//! deceive whoever joins in the middle.

use std::collections::{BTreeSet, VecDeque};

use arbitrary::{Arbitrary, Unstructured};
use protocol::http2::PREFACE;
use protocol::{Decoder, Field, Http2, HttpEvent, Side};

use crate::connection::frame;

/// What one side does next.
#[derive(Arbitrary, Debug)]
enum Action {
    /// A request or, from the server, the response to the oldest request without one.
    Head {
        fields: Vec<Representation>,
        end: bool,
        split: Option<u8>,
        padding: Option<u8>,
    },
    /// Part of a body, on one of the latest streams.
    Body {
        back: u8,
        length: u16,
        padding: Option<u8>,
    },
    Trailers {
        back: u8,
        fields: Vec<Representation>,
    },
    Reset {
        back: u8,
        code: u8,
    },
    Settings,
    Window {
        increment: u16,
    },
    Ping,
    /// The table becomes smaller with the next head.
    Resize(u16),
}

/// How a field is written (RFC 7541 section 6).
#[derive(Arbitrary, Debug)]
enum Representation {
    /// One that is in the table, if there is one.
    Indexed(u8),
    /// One whose name is in the table, if there is one; to be added or not.
    NameIndexed(u8, Adding),
    New(u8, Adding),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Adding {
    Added,
    NotAdded,
    Never,
}

/// What of a frame is seen.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Seen {
    All,
    /// In two parts.
    Cut(u8),
    /// Not from here on, for so many bytes of its side.
    Lost(u8, u16),
}

#[derive(Arbitrary, Debug)]
struct Plan {
    /// So many bytes of each side passed before the capture began, if it didn't begin with the connection.
    before: Option<[u16; 2]>,
    actions: Vec<(bool, Action, Seen)>,
}

/// A plan of a connection and of what is seen of it.
pub fn run(bytes: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(bytes)) else {
        return;
    };
    let mut connection = Connection::new();
    let mut frames = vec![
        (false, [PREFACE, &frame(4, 0, 0, b"")].concat(), Seen::All),
        (true, frame(4, 0, 0, b""), Seen::All),
    ];
    for (server, action, seen) in &plan.actions {
        if let Some(bytes) = connection.action(*server, action) {
            frames.push((*server, bytes, *seen));
        }
    }
    let all = frames
        .iter()
        .map(|(server, bytes, _)| (*server, &bytes[..], false));
    let (shown, trouble) = shown(Http2::new(), all);
    assert!(trouble.is_empty(), "{trouble:?}");
    assert_eq!(shown, connection.sent, "decoded from the beginning");

    let decoder = match plan.before {
        None => Http2::new(),
        Some(_) => Http2::joined(),
    };
    let (shown, _) = self::shown(decoder, parts(&frames, plan.before).into_iter());
    for one in &shown {
        assert!(connection.sent.contains(one), "never sent: {one:?}");
    }
}

/// Side, bytes, and whether they are lost; without those from before the capture began.
fn parts(frames: &[(bool, Vec<u8>, Seen)], before: Option<[u16; 2]>) -> Vec<(bool, &[u8], bool)> {
    let mut before = before.unwrap_or_default().map(usize::from);
    let mut lost = [0; 2];
    let mut parts = Vec::new();
    for (server, bytes, seen) in frames {
        let before = &mut before[usize::from(*server)];
        let lost = &mut lost[usize::from(*server)];
        let bytes = &bytes[take(before, bytes.len())..];
        let (missing, bytes) = bytes.split_at(take(lost, bytes.len()));
        parts.push((*server, missing, true));
        let cut = match *seen {
            Seen::All => bytes.len(),
            Seen::Cut(at) | Seen::Lost(at, _) => bytes.len().min(at.into()),
        };
        let (first, rest) = bytes.split_at(cut);
        parts.push((*server, first, false));
        if let Seen::Lost(_, length) = *seen {
            *lost += usize::from(length);
        }
        let (missing, rest) = rest.split_at(take(lost, rest.len()));
        parts.push((*server, missing, true));
        parts.push((*server, rest, false));
    }
    parts
}

/// Takes as much of what is left as there is, up to a limit.
fn take(left: &mut usize, limit: usize) -> usize {
    let taken = limit.min(*left);
    *left -= taken;
    taken
}

/// A field of a head or of trailers: stream, index of the side, name and value.
type Sent = (u64, usize, Vec<u8>, Vec<u8>);

/// The fields that a decoder shows, pseudo-header fields among them, and what it complains of.
fn shown<'a>(
    mut decoder: Http2,
    parts: impl Iterator<Item = (bool, &'a [u8], bool)>,
) -> (BTreeSet<Sent>, Vec<String>) {
    let (mut shown, mut trouble) = (BTreeSet::new(), Vec::new());
    let mut note = |event: HttpEvent<'_>| {
        let (id, side, fields, pseudo) = match event {
            HttpEvent::Request(id, head) => {
                let pseudo = [
                    (":method", head.method),
                    (":scheme", head.scheme),
                    (":authority", head.authority),
                    (":path", head.target),
                ];
                (id, Side::Client, head.fields, pseudo.to_vec())
            }
            HttpEvent::Response(id, head) => {
                let status = head.status.map(|status| status.to_string().into_bytes());
                (id, Side::Server, head.fields, vec![(":status", status)])
            }
            HttpEvent::Trailers(id, side, fields) => (id, side, fields, Vec::new()),
            HttpEvent::Trouble(_, _, _, why) => return trouble.push(why.to_string()),
            _ => return,
        };
        for (name, value) in pseudo {
            shown.extend(value.map(|value| (id.0, side.index(), name.into(), value)));
        }
        for Field { name, value } in fields {
            shown.extend(value.map(|value| (id.0, side.index(), name, value)));
        }
    };
    let mut offsets = [0; 2];
    for (server, bytes, lost) in parts {
        let offset = &mut offsets[usize::from(server)];
        let side = side(server);
        match lost {
            false => decoder.data(side, *offset, bytes, &mut note),
            true => decoder.gap(side, *offset, bytes.len() as u64, &mut note),
        }
        *offset += bytes.len() as u64;
    }
    decoder.close(&mut note);
    (shown, trouble)
}

fn side(server: bool) -> Side {
    match server {
        false => Side::Client,
        true => Side::Server,
    }
}

/// Two programs that speak HTTP/2.
struct Connection {
    encoders: [Encoder; 2],
    /// By side, the streams on which it may send a body or trailers.
    open: [Vec<u32>; 2],
    unanswered: VecDeque<u32>,
    last_stream: u32,
    sent: BTreeSet<Sent>,
}

impl Connection {
    fn new() -> Self {
        Self {
            encoders: [Encoder::new(), Encoder::new()],
            open: Default::default(),
            unanswered: VecDeque::new(),
            last_stream: 0,
            sent: BTreeSet::new(),
        }
    }

    /// What is sent, if that is possible now.
    fn action(&mut self, server: bool, action: &Action) -> Option<Vec<u8>> {
        let index = usize::from(server);
        let stream = |back: u8| {
            let open = &self.open[index];
            let latest = open.len().checked_sub(1)?;
            Some(open[latest - usize::from(back) % open.len()])
        };
        Some(match action {
            Action::Head {
                fields,
                end,
                split,
                padding,
            } => {
                let stream = match server {
                    false => {
                        self.last_stream += if self.last_stream == 0 { 1 } else { 2 };
                        self.unanswered.push_back(self.last_stream);
                        self.last_stream
                    }
                    true => self.unanswered.pop_front()?,
                };
                let block = self.block(server, stream, true, fields);
                if !end {
                    self.open[index].push(stream);
                }
                head(stream, &block, *end, *split, *padding)
            }
            Action::Body {
                back,
                length,
                padding,
            } => {
                let body = vec![0xaa; usize::from(*length % 4096)];
                let (flags, payload) = padded(*padding, &body);
                frame(0, flags, stream(*back)?, &payload)
            }
            Action::Trailers { back, fields } => {
                let stream = stream(*back)?;
                self.open[index].retain(|&open| open != stream);
                let block = self.block(server, stream, false, fields);
                head(stream, &block, true, None, None)
            }
            Action::Reset { back, code } => {
                let stream = stream(*back)?;
                self.open
                    .iter_mut()
                    .for_each(|open| open.retain(|&open| open != stream));
                self.unanswered.retain(|&open| open != stream);
                frame(3, 0, stream, &u32::from(*code % 14).to_be_bytes())
            }
            Action::Settings => frame(4, 0, 0, b"\0\x04\0\x01\0\0"),
            Action::Window { increment } => {
                frame(8, 0, 0, &(u32::from(*increment) + 1).to_be_bytes())
            }
            Action::Ping => frame(6, 0, 0, &[0; 8]),
            Action::Resize(size) => {
                let size = usize::from(*size) % 4097;
                self.encoders[index].resize = Some(size);
                return None;
            }
        })
    }

    fn block(
        &mut self,
        server: bool,
        stream: u32,
        is_head: bool,
        fields: &[Representation],
    ) -> Vec<u8> {
        let encoder = &mut self.encoders[usize::from(server)];
        let (block, fields) = encoder.block(server, is_head, fields);
        let id = u64::from(stream);
        let sent = fields
            .into_iter()
            .map(|(name, value)| (id, side(server).index(), name, value));
        self.sent.extend(sent);
        block
    }
}

/// HEADERS, maybe with CONTINUATION.
fn head(stream: u32, block: &[u8], end: bool, split: Option<u8>, padding: Option<u8>) -> Vec<u8> {
    let end = u8::from(end);
    let (first, rest) = match split {
        Some(at) => block.split_at(block.len().min(at.into())),
        None => (block, &[][..]),
    };
    let (flags, payload) = padded(padding, first);
    if split.is_none() {
        return frame(1, 4 | end | flags, stream, &payload);
    }
    [
        frame(1, end | flags, stream, &payload),
        frame(9, 4, stream, rest),
    ]
    .concat()
}

/// Flags and payload of a frame with padding (RFC 9113 section 6.1).
fn padded(padding: Option<u8>, payload: &[u8]) -> (u8, Vec<u8>) {
    match padding {
        None => (0, payload.to_vec()),
        Some(padding) => {
            let zeros = vec![0; padding.into()];
            (8, [&[padding], payload, &zeros].concat())
        }
    }
}

/// One side's HPACK encoder.
struct Encoder {
    /// The dynamic table, latest first.
    table: VecDeque<(Vec<u8>, Vec<u8>)>,
    size: usize,
    limit: usize,
    resize: Option<usize>,
    /// No value is sent twice, except from the table: so a wrong one is noticed.
    values: u32,
}

impl Encoder {
    const STATIC: usize = 61;

    fn new() -> Self {
        Self {
            table: VecDeque::new(),
            size: 0,
            limit: 4096,
            resize: None,
            values: 0,
        }
    }

    /// A header block and what is in it.
    fn block(
        &mut self,
        server: bool,
        is_head: bool,
        representations: &[Representation],
    ) -> (Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>) {
        let mut block = Vec::new();
        if let Some(limit) = self.resize.take() {
            integer(&mut block, 0x20, 5, limit);
            self.limit = limit;
            self.evict();
        }
        let mut fields: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let pseudo: &[(u8, &str, &str)] = match (is_head, server) {
            (false, _) => &[],
            (true, false) => &[
                (2, ":method", "GET"),
                (7, ":scheme", "https"),
                (4, ":path", "/"),
            ],
            (true, true) => &[(8, ":status", "200")],
        };
        for (index, name, value) in pseudo {
            block.push(0x80 | index);
            fields.push((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        }
        for representation in representations {
            fields.push(self.field(&mut block, representation));
        }
        (block, fields)
    }

    fn field(
        &mut self,
        block: &mut Vec<u8>,
        representation: &Representation,
    ) -> (Vec<u8>, Vec<u8>) {
        let (number, adding) = match representation {
            Representation::Indexed(index) => {
                if let Some(at) = usize::from(*index).checked_rem(self.table.len()) {
                    integer(block, 0x80, 7, Self::STATIC + 1 + at);
                    return self.table[at].clone();
                }
                (*index, Adding::Added)
            }
            Representation::NameIndexed(number, adding) | Representation::New(number, adding) => {
                (*number, *adding)
            }
        };
        let (first, prefix) = match adding {
            Adding::Added => (0x40, 6),
            Adding::NotAdded => (0, 4),
            Adding::Never => (0x10, 4),
        };
        let from_table = matches!(representation, Representation::NameIndexed(..))
            .then(|| usize::from(number).checked_rem(self.table.len()))
            .flatten();
        let name = match from_table {
            Some(at) => {
                integer(block, first, prefix, Self::STATIC + 1 + at);
                self.table[at].0.clone()
            }
            None => {
                let name = format!("x-{}", number % 16).into_bytes();
                block.push(first);
                string(block, &name);
                name
            }
        };
        self.values += 1;
        let value = format!("value {}", self.values).into_bytes();
        string(block, &value);
        if matches!(adding, Adding::Added) {
            self.size += name.len() + value.len() + 32;
            self.table.push_front((name.clone(), value.clone()));
            self.evict();
        }
        (name, value)
    }

    fn evict(&mut self) {
        while self.size > self.limit
            && let Some((name, value)) = self.table.pop_back()
        {
            self.size -= name.len() + value.len() + 32;
        }
    }
}

/// RFC 7541 section 5.1.
fn integer(block: &mut Vec<u8>, first: u8, prefix: u32, value: usize) {
    let full = (1 << prefix) - 1;
    if value < full {
        block.push(first | value as u8);
        return;
    }
    block.push(first | full as u8);
    let mut rest = value - full;
    while rest >= 0x80 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// RFC 7541 section 5.2.
fn string(block: &mut Vec<u8>, bytes: &[u8]) {
    integer(block, 0, 7, bytes.len());
    block.extend(bytes);
}

pub fn seeds() -> Vec<Vec<u8>> {
    // Structured input: any bytes are a plan. These make long ones.
    (1..20u32)
        .map(|seed| {
            let mut state = seed;
            let next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            };
            std::iter::repeat_with(next).take(1000).collect()
        })
        .collect()
}
