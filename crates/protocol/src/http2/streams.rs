//! The streams of a connection: which part of which message a frame belongs to (RFC 9113 sections 5.1,
//! 8.1 and 8.4; RFC 8441 for what CONNECT switches to).

use std::collections::{HashMap, VecDeque};

use super::head::FieldBlock;
use crate::{HttpEvent, HttpSink, Side, StreamId, Trouble};

/// How many streams are followed at a time; of more, those that were quiet for longest are given up.
pub const MAX_STREAMS: usize = 4096;

/// How many are given up together: finding them costs a look at all.
const GIVEN_UP_TOGETHER: usize = MAX_STREAMS / 16;

/// How many streams' ends are remembered, because frames sent before the other side knew may follow.
const MAX_CLOSED: usize = 1024;

/// Longest name of a protocol that a stream can switch to.
const MAX_PROTOCOL: usize = 64;

/// How far one side's message on a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was sent yet (or informational responses only).
    Idle,
    /// Something may have been sent that we did not see.
    Unknown,
    /// A head was sent whose status is not known: it may be informational.
    Started,
    /// The head was sent, or given up as unknown.
    Body,
    /// All was sent.
    Done,
}

#[derive(Debug)]
struct Stream {
    phases: [Phase; 2],
    /// What the stream carries once the server agrees: the request's `:protocol`, or `CONNECT`.
    connect: Option<Box<[u8]>>,
    /// Why something of it was not seen, if that is so.
    unseen: Trouble,
    /// When it was used last, in frames of the connection.
    used: u64,
}

/// Where an event belongs: who sent it, on which stream, and the frame's offset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) side: Side,
    pub(super) stream: u32,
    pub(super) offset: u64,
}

impl Place {
    pub(super) fn id(self) -> StreamId {
        StreamId(self.stream.into())
    }

    pub(super) fn trouble<'a>(self, trouble: Trouble) -> HttpEvent<'a> {
        HttpEvent::Trouble(Some(self.id()), self.side, self.offset, trouble)
    }
}

/// What a header block turned out to be.
enum Meaning {
    Head,
    Trailers,
    Unclear,
}

/// All streams that are not closed.
#[derive(Debug)]
pub(super) struct Streams {
    live: HashMap<u32, Stream>,
    /// Streams that ended, latest last.
    closed: VecDeque<u32>,
    /// The highest of the client's streams so far.
    highest: u32,
    /// From this one on, every stream of the client's was seen when it began.
    certain_from: Option<u32>,
    /// The connection was first seen in the middle; else something is missing of it, if anything.
    pub(super) joined: bool,
    frames: u64,
}

impl Streams {
    /// Bytes of memory.
    pub(super) fn held(&self) -> usize {
        self.live.capacity() * size_of::<(u32, Stream)>()
            + self.closed.capacity() * size_of::<u32>()
    }

    /// Of a connection that is seen from its beginning.
    pub(super) fn new() -> Self {
        Self {
            live: HashMap::new(),
            closed: VecDeque::new(),
            highest: 0,
            certain_from: Some(1),
            joined: false,
            frames: 0,
        }
    }

    /// Of a connection of which something is missing before.
    pub(super) fn behind_gap() -> Self {
        Self {
            certain_from: None,
            ..Self::new()
        }
    }

    /// Frames of this side may have been missed.
    pub(super) fn forget(&mut self, side: Side) {
        for stream in self.live.values_mut() {
            let phase = &mut stream.phases[side.index()];
            if *phase == Phase::Idle {
                *phase = Phase::Unknown;
            }
        }
        if side == Side::Client {
            self.certain_from = None;
        }
    }

    /// A whole header block of HEADERS and CONTINUATION frames, `wire_length` bytes long with the
    /// frames' headers. `None`: it could not be decoded.
    pub(super) fn headers(
        &mut self,
        place: Place,
        block: Option<FieldBlock>,
        end: bool,
        wire_length: u64,
        sink: &mut HttpSink<'_>,
    ) {
        let Some(stream) = self.find(place, sink) else {
            return;
        };
        let side = place.side;
        let phase = &mut stream.phases[side.index()];
        if *phase == Phase::Done {
            sink(place.trouble(Trouble::Malformed(
                "HTTP/2 HEADERS behind the end of a message",
            )));
            return;
        }
        match block {
            None => *phase = Phase::Unknown,
            Some(mut block) => {
                let meaning = meaning(*phase, &block, end);
                if let Some(trouble) = block.trouble.take() {
                    sink(place.trouble(trouble));
                }
                match meaning {
                    Meaning::Head if side == Side::Client => {
                        stream.request(place, block, wire_length, sink);
                        if self.certain_from.is_none() && place.stream >= self.highest {
                            self.certain_from = Some(place.stream);
                        }
                    }
                    Meaning::Head => stream.response(place, block, wire_length, sink),
                    Meaning::Trailers => stream.trailers(place, block, end, sink),
                    Meaning::Unclear => {
                        sink(
                            place.trouble(Trouble::UnknownFields(
                                block.unknown + block.fields.len(),
                            )),
                        );
                        *phase = Phase::Body;
                    }
                }
            }
        }
        if end {
            self.end(place, sink);
        }
    }

    /// A whole header block of PUSH_PROMISE and CONTINUATION frames: the request that the server
    /// answers unasked. `place` names the promised stream.
    pub(super) fn promise(
        &mut self,
        place: Place,
        block: Option<FieldBlock>,
        wire_length: u64,
        sink: &mut HttpSink<'_>,
    ) {
        let client = Place {
            side: Side::Client,
            ..place
        };
        if place.stream == 0
            || !place.stream.is_multiple_of(2)
            || self.live.contains_key(&place.stream)
        {
            sink(place.trouble(Trouble::Malformed("HTTP/2 PUSH_PROMISE of a wrong stream")));
            return;
        }
        let stream = self.open(client, [Phase::Idle, Phase::Idle], sink);
        if let Some(mut block) = block {
            if let Some(trouble) = block.trouble.take() {
                sink(place.trouble(trouble));
            }
            // The offset is one of what the server sent.
            stream.request(client, block, wire_length, &mut |event| {
                sink(match event {
                    HttpEvent::Trouble(id, _, offset, why) => {
                        HttpEvent::Trouble(id, place.side, offset, why)
                    }
                    event => event,
                });
            });
        }
        stream.phases[Side::Client.index()] = Phase::Body;
        self.end(client, sink);
    }

    /// A DATA frame begins. False if nobody wants it.
    pub(super) fn data(&mut self, place: Place, sink: &mut HttpSink<'_>) -> bool {
        let Some(stream) = self.find(place, sink) else {
            return false;
        };
        let phase = &mut stream.phases[place.side.index()];
        match *phase {
            Phase::Idle => sink(place.trouble(Trouble::Malformed("HTTP/2 DATA ahead of HEADERS"))),
            Phase::Unknown => sink(place.trouble(stream.unseen.clone())),
            Phase::Started | Phase::Body => {}
            Phase::Done => {
                sink(place.trouble(Trouble::Malformed(
                    "HTTP/2 DATA behind the end of a message",
                )));
                return false;
            }
        }
        *phase = Phase::Body;
        true
    }

    /// A frame with END_STREAM is complete.
    pub(super) fn end(&mut self, place: Place, sink: &mut HttpSink<'_>) {
        let Some(stream) = self.live.get_mut(&place.stream) else {
            return;
        };
        stream.phases[place.side.index()] = Phase::Done;
        if stream.phases == [Phase::Done, Phase::Done] {
            self.close(place.stream);
        }
        sink(HttpEvent::End(place.id(), place.side));
    }

    /// RST_STREAM; `None` if its code is missing.
    pub(super) fn reset(&mut self, place: Place, code: Option<u32>, sink: &mut HttpSink<'_>) {
        if self.find(place, sink).is_none() {
            return;
        }
        self.close(place.stream);
        match code {
            Some(code) => sink(HttpEvent::Reset(place.id(), place.side, code)),
            None => sink(place.trouble(Trouble::Gap { bytes: 4 })),
        }
    }

    /// GOAWAY: streams of the other side's beyond `last` were not looked at (RFC 9113 section 6.8).
    pub(super) fn go_away(&mut self, side: Side, last: u32, code: u32, sink: &mut HttpSink<'_>) {
        let parity = if side == Side::Server { 1 } else { 0 };
        let mut refused: Vec<u32> = self.live.keys().copied().collect();
        refused.retain(|&id| id > last && id % 2 == parity);
        refused.sort_unstable();
        for id in refused {
            self.close(id);
            sink(HttpEvent::Reset(StreamId(id.into()), side, code));
        }
    }

    /// The stream that a frame belongs to; `None` if it is closed.
    fn find(&mut self, place: Place, sink: &mut HttpSink<'_>) -> Option<&mut Stream> {
        let id = place.stream;
        if self.live.contains_key(&id) {
            self.frames += 1;
            let frames = self.frames;
            let stream = self.live.get_mut(&id)?;
            stream.used = frames;
            return Some(stream);
        }
        let certain = self.certain_from.is_some_and(|from| id >= from);
        let phase = match certain {
            true if id % 2 == 1 && id > self.highest => Phase::Idle,
            false if !self.closed.contains(&id) => Phase::Unknown,
            _ => return None,
        };
        Some(self.open(place, [phase; 2], sink))
    }

    fn open(&mut self, place: Place, phases: [Phase; 2], sink: &mut HttpSink<'_>) -> &mut Stream {
        if self.live.len() >= MAX_STREAMS {
            self.give_up(place, sink);
        }
        if place.stream % 2 == 1 {
            self.highest = self.highest.max(place.stream);
        }
        self.frames += 1;
        let used = self.frames;
        self.live.entry(place.stream).or_insert(Stream {
            phases,
            connect: None,
            unseen: match self.joined {
                true => Trouble::MidStream,
                false => Trouble::Unseen,
            },
            used,
        })
    }

    /// Gives up the streams that were quiet for longest.
    fn give_up(&mut self, place: Place, sink: &mut HttpSink<'_>) {
        let mut ages: Vec<(u64, u32)> = self.live.iter().map(|(id, s)| (s.used, *id)).collect();
        ages.sort_unstable();
        for &(_, stream) in ages.iter().take(GIVEN_UP_TOGETHER) {
            self.close(stream);
            let trouble = Trouble::TooMuch("HTTP/2 streams at a time", MAX_STREAMS);
            sink(Place { stream, ..place }.trouble(trouble));
        }
    }

    fn close(&mut self, id: u32) {
        self.live.remove(&id);
        if self.closed.len() == MAX_CLOSED {
            self.closed.pop_front();
        }
        self.closed.push_back(id);
    }

    /// How many streams are followed.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.live.len()
    }
}

impl Stream {
    fn request(
        &mut self,
        place: Place,
        mut block: FieldBlock,
        wire_length: u64,
        sink: &mut HttpSink<'_>,
    ) {
        self.phases[Side::Client.index()] = Phase::Body;
        if block.unknown == 0 && block.method.is_none() {
            sink(place.trouble(Trouble::Malformed("HTTP/2 request without a method")));
        }
        if block.method.as_deref() == Some(b"CONNECT") {
            let ordinary = block.scheme.is_none() && block.path.is_none() && block.unknown == 0;
            self.connect = match block.protocol.take() {
                Some(protocol) if protocol.len() <= MAX_PROTOCOL => Some(protocol.into()),
                None if ordinary => Some(b"CONNECT".as_slice().into()),
                _ => None,
            };
        }
        sink(HttpEvent::Request(
            place.id(),
            block.into_request(wire_length),
        ));
    }

    fn response(
        &mut self,
        place: Place,
        block: FieldBlock,
        wire_length: u64,
        sink: &mut HttpSink<'_>,
    ) {
        let status = block.status();
        if status.is_none() && (block.status.is_some() || block.unknown == 0) {
            sink(place.trouble(Trouble::Malformed("HTTP/2 response without a status")));
        }
        if self.phases[Side::Client.index()] == Phase::Unknown {
            sink(place.trouble(self.unseen.clone()));
        }
        self.phases[Side::Server.index()] = match status {
            Some(100..=199) => Phase::Idle,
            Some(_) => Phase::Body,
            None => Phase::Started,
        };
        sink(HttpEvent::Response(
            place.id(),
            block.into_response(wire_length),
        ));
        if let (Some(200..=299), Some(protocol)) = (status, self.connect.take()) {
            sink(HttpEvent::Switched(place.id(), protocol.into()));
        }
    }

    fn trailers(&mut self, place: Place, block: FieldBlock, end: bool, sink: &mut HttpSink<'_>) {
        let phase = &mut self.phases[place.side.index()];
        if *phase == Phase::Unknown {
            sink(place.trouble(self.unseen.clone()));
        }
        *phase = Phase::Body;
        if block.is_head() || !end {
            sink(place.trouble(Trouble::Malformed("HTTP/2 trailers")));
        }
        if block.unknown > 0 {
            sink(place.trouble(Trouble::UnknownFields(block.unknown)));
        }
        sink(HttpEvent::Trailers(place.id(), place.side, block.fields));
    }
}

/// Whether a header block is a head or trailers. On a stream whose beginning we saw that is certain.
/// Otherwise: pseudo-header fields come first and are in heads only, and trailers end a message.
fn meaning(phase: Phase, block: &FieldBlock, end: bool) -> Meaning {
    match phase {
        Phase::Idle => Meaning::Head,
        Phase::Body | Phase::Done => Meaning::Trailers,
        Phase::Unknown | Phase::Started if block.is_head() || !end => Meaning::Head,
        Phase::Unknown | Phase::Started if block.unknown_first => Meaning::Unclear,
        Phase::Unknown | Phase::Started => Meaning::Trailers,
    }
}
