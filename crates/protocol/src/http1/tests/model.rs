//! Conversations that are made up, written as bytes, and compared with what is decoded.
//!
//! Every request and response carries its number in a field, so that a wrong pair is seen.

use std::collections::HashMap;
use std::ops::Range;

use proptest::prelude::*;

use super::{Seen, collect};
use crate::event::{Decoder, Field, Side, StreamId, Trouble};
use crate::http1::head::values;

/// One exchange to be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Index of a method and framing.
    pub(super) request: u8,
    pub(super) request_length: usize,
    /// Index of a framing.
    pub(super) response: u8,
    pub(super) response_length: usize,
    /// Bytes of a chunk.
    pub(super) chunk: usize,
    /// The request is sent before the previous one is answered.
    pub(super) pipelined: bool,
    /// 103 comes first.
    pub(super) interim: bool,
}

pub(super) fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let plan = (
        0_u8..6,
        0_usize..80,
        0_u8..6,
        0_usize..120,
        1_usize..30,
        any::<bool>(),
        any::<bool>(),
    );
    let plan = plan.prop_map(
        |(request, request_length, response, response_length, chunk, pipelined, interim)| Plan {
            request,
            request_length,
            response,
            response_length,
            chunk,
            pipelined,
            interim,
        },
    );
    (prop::collection::vec(plan, 1..9), 0..4).prop_map(|(mut plans, alternating)| {
        for plan in &mut plans {
            plan.pipelined &= alternating == 0;
        }
        plans
    })
}

/// Where calls end, as distances.
pub(super) fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1_usize..60, 1..20)
}

pub(super) fn gaps() -> impl Strategy<Value = [Vec<Range<usize>>; 2]> {
    let gap = || (0_usize..1500, 1_usize..200).prop_map(|(begin, length)| begin..begin + length);
    let gaps = || prop::collection::vec(gap(), 0..4);
    (gaps(), gaps()).prop_map(|(client, server)| [client, server])
}

/// How a conversation reaches the decoder.
#[derive(Clone, Debug, Default)]
pub(super) struct Play {
    /// Lengths of calls, again and again; whole turns if empty.
    pub(super) cuts: Vec<usize>,
    /// What is missing of each side; indexed by [`Side::index`].
    pub(super) gaps: [Vec<Range<usize>>; 2],
    /// Calls end where messages do, too.
    pub(super) by_message: bool,
    /// Which calls are missing, again and again; none if empty.
    pub(super) lost_calls: Vec<bool>,
}

/// Every third call or so.
pub(super) fn lost_calls() -> impl Strategy<Value = Vec<bool>> {
    prop::collection::vec(prop::bool::weighted(0.3), 1..40)
}

/// A message as it was meant.
#[derive(Clone, Debug, PartialEq)]
struct Message {
    start: Vec<u8>,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
    trailers: Vec<(String, String)>,
    interim: bool,
}

/// The truth and its bytes.
#[derive(Debug)]
pub(super) struct Conversation {
    turns: Vec<(Side, Vec<u8>)>,
    requests: Vec<Message>,
    responses: Vec<Message>,
    /// Where messages end; indexed by [`Side::index`].
    message_ends: [Vec<usize>; 2],
}

impl Conversation {
    pub(super) fn new(plans: &[Plan]) -> Self {
        let mut conversation = Self {
            turns: Vec::new(),
            requests: Vec::new(),
            responses: Vec::new(),
            message_ends: [Vec::new(), Vec::new()],
        };
        let mut first = 0;
        while first < plans.len() {
            let more = plans[first + 1..].iter().take_while(|plan| plan.pipelined);
            let batch = first..first + 1 + more.count();
            let mut turns = [Vec::new(), Vec::new()];
            for number in batch.clone() {
                let plan = &plans[number];
                let request = request(number, plan);
                let last = number + 1 == plans.len();
                let response = response(number, plan, last);
                for (side, bytes) in [&request.1, &response.1].into_iter().enumerate() {
                    turns[side].extend(bytes);
                    let ends = &mut conversation.message_ends[side];
                    ends.push(ends.last().unwrap_or(&0) + bytes.len());
                }
                conversation.requests.push(request.0);
                conversation.responses.push(response.0);
            }
            let [client, server] = turns;
            conversation.turns.push((Side::Client, client));
            conversation.turns.push((Side::Server, server));
            first = batch.end;
        }
        conversation
    }

    pub(super) fn length(&self, side: Side) -> usize {
        let turns = self.turns.iter().filter(|(from, _)| *from == side);
        turns.map(|(_, bytes)| bytes.len()).sum()
    }

    /// Overwrites bytes.
    pub(super) fn change(&mut self, changes: &[(bool, prop::sample::Index, u8)]) {
        for (client, at, byte) in changes {
            let turn = usize::from(!client);
            let at = at.index(self.turns[turn].1.len());
            self.turns[turn].1[at] = *byte;
        }
    }

    pub(super) fn play(&self, decoder: &mut dyn Decoder, play: &Play) -> Vec<Seen> {
        self.play_from(decoder, play, [0, 0])
    }

    /// Plays what comes behind these many bytes of each side. Gaps become known late, with the next
    /// bytes of the side.
    pub(super) fn play_from(
        &self,
        decoder: &mut dyn Decoder,
        play: &Play,
        skip: [usize; 2],
    ) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut offsets = [0_usize; 2];
        let mut missing = [0_u64; 2];
        let mut cuts = play.cuts.iter().copied().cycle();
        let mut lost_calls = play.lost_calls.iter().copied().cycle();
        // What is skipped comes before everything else: a side's bytes are not seen while the
        // other's are.
        let skipped_turns = self.turns_behind(skip);
        for (turn, (side, bytes)) in self.turns.iter().enumerate() {
            let index = side.index();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let offset = offsets[index];
                let gap = play.gaps[index].iter().find(|gap| gap.contains(&offset));
                let next = play.gaps[index]
                    .iter()
                    .map(|gap| gap.start)
                    .filter(|at| *at > offset);
                let until = gap.map_or_else(|| next.min().unwrap_or(usize::MAX), |gap| gap.end);
                let cut = cuts.next().unwrap_or(usize::MAX);
                let ends = self.message_ends[index]
                    .iter()
                    .filter(|end| play.by_message && **end > offset);
                let end = ends.min().map_or(usize::MAX, |end| end - offset);
                let length = rest.len().min(until - offset).min(cut).min(end);
                let (piece, behind) = rest.split_at(length);
                rest = behind;
                offsets[index] += length;
                if turn < skipped_turns.0
                    || turn == skipped_turns.0 && offsets[index] <= skipped_turns.1
                {
                    continue;
                }
                if gap.is_some() || lost_calls.next().unwrap_or(false) {
                    missing[index] += length as u64;
                    continue;
                }
                let lost = std::mem::take(&mut missing[index]);
                decoder.gap(*side, offset as u64 - lost, lost, &mut |event| {
                    collect(&mut seen, event)
                });
                decoder.data(*side, offset as u64, piece, &mut |event| {
                    collect(&mut seen, event)
                });
            }
        }
        decoder.close(&mut |event| collect(&mut seen, event));
        seen
    }

    /// The turn in which watching begins, and the offset in its side's stream.
    fn turns_behind(&self, skip: [usize; 2]) -> (usize, usize) {
        let mut offsets = [0; 2];
        for (turn, (side, bytes)) in self.turns.iter().enumerate() {
            let index = side.index();
            offsets[index] += bytes.len();
            if offsets[index] > skip[index] {
                return (turn, skip[index]);
            }
        }
        (0, 0)
    }

    /// Everything is decoded, in order, and nothing is wrong.
    pub(super) fn check_all(&self, seen: &[Seen]) {
        self.check(seen);
        for (number, (request, response)) in self.requests.iter().zip(&self.responses).enumerate() {
            let id = StreamId(number as u64 + 1);
            for (side, message) in [(Side::Client, request), (Side::Server, response)] {
                let (body, missing) = body_of(seen, id, side);
                assert_eq!(
                    body,
                    message.body.iter().copied().map(Some).collect::<Vec<_>>()
                );
                assert!(!missing);
                let ends = seen.iter().filter(|event| **event == Seen::End(id, side));
                assert_eq!(ends.count(), 1, "{id:?} {side:?}");
                let trailers = seen.iter().any(
                    |event| matches!(event, Seen::Trailers(of, from, _) if (*of, *from) == (id, side)),
                );
                assert_eq!(trailers, !message.trailers.is_empty());
            }
            let heads = seen
                .iter()
                .filter(|event| matches!(event, Seen::Response(of, _) if *of == id));
            assert_eq!(heads.count(), 1 + usize::from(response.interim));
        }
        let troubles = seen
            .iter()
            .filter(|event| matches!(event, Seen::Trouble(..)));
        assert_eq!(troubles.count(), 0, "{seen:?}");
    }

    /// What is decoded is true, and pairs are pairs.
    pub(super) fn check(&self, seen: &[Seen]) {
        let mut numbers: HashMap<(StreamId, Side), usize> = HashMap::new();
        for event in seen {
            match event {
                Seen::Request(id, head) => {
                    let number = number_of(&head.fields);
                    let truth = &self.requests[number];
                    let method = head.method.clone().unwrap_or_default();
                    let target = head.target.clone().unwrap_or_default();
                    assert_eq!([&method[..], b" ", &target].concat(), truth.start);
                    assert_fields(&head.fields, &truth.fields);
                    assert_eq!(numbers.insert((*id, Side::Client), number), None);
                }
                Seen::Response(id, head) => {
                    let number = number_of(&head.fields);
                    let truth = &self.responses[number];
                    if head.status != Some(103) {
                        let status = head.status.unwrap_or_default().to_string();
                        assert_eq!(status.as_bytes(), truth.start);
                        assert_fields(&head.fields, &truth.fields);
                    }
                    let before = numbers.insert((*id, Side::Server), number);
                    assert!(before.is_none_or(|before| before == number), "{seen:?}");
                }
                Seen::Trailers(id, side, fields) => {
                    let truth = &self.message(&numbers, *id, *side).trailers;
                    assert_fields(fields, truth);
                }
                // What was sent is in order, whatever is missing of it.
                Seen::Trouble(_, _, _, why @ Trouble::Malformed(what)) => {
                    let ended = "the connection ended within a message";
                    assert_eq!(*what, ended, "{why:?}: {seen:?}");
                }
                _ => {}
            }
        }
        for ((id, side), number) in &numbers {
            if let Some(other) = numbers.get(&(*id, side.other())) {
                assert_eq!(number, other, "{id:?} is not a pair: {seen:?}");
            }
            let truth = &self.message(&numbers, *id, *side).body;
            let (body, _) = body_of(seen, *id, *side);
            assert!(body.len() <= truth.len(), "{id:?} {side:?}: {seen:?}");
            for (at, byte) in body.iter().enumerate() {
                assert!(
                    byte.is_none_or(|byte| byte == truth[at]),
                    "{id:?} {side:?} at {at}"
                );
            }
            if seen.contains(&Seen::End(*id, *side))
                && !is_until_close(self.message(&numbers, *id, *side))
            {
                let headless = body.is_empty() && *side == Side::Server;
                assert!(
                    headless || body.len() == truth.len(),
                    "{id:?} {side:?}: {seen:?}"
                );
            }
        }
    }

    fn message(
        &self,
        numbers: &HashMap<(StreamId, Side), usize>,
        id: StreamId,
        side: Side,
    ) -> &Message {
        let number = numbers[&(id, side)];
        match side {
            Side::Client => &self.requests[number],
            Side::Server => &self.responses[number],
        }
    }
}

/// What one side's events are.
pub(super) fn of_side(seen: &[Seen], side: Side) -> Vec<Seen> {
    let mut own: Vec<Seen> = Vec::new();
    for event in seen {
        let from = match event {
            Seen::Request(..) => Side::Client,
            Seen::Response(..) | Seen::Switched(..) => Side::Server,
            Seen::Body(_, side, _)
            | Seen::Missing(_, side, _)
            | Seen::Trailers(_, side, _)
            | Seen::End(_, side)
            | Seen::Trouble(_, side, ..) => *side,
        };
        if from != side {
            continue;
        }
        match (own.last_mut(), event) {
            (Some(Seen::Body(id, _, body)), Seen::Body(next, _, bytes)) if id == next => {
                body.extend(bytes);
            }
            _ => own.push(event.clone()),
        }
    }
    own
}

/// Body bytes in their places; `None` where they are missing.
fn body_of(seen: &[Seen], id: StreamId, side: Side) -> (Vec<Option<u8>>, bool) {
    let mut body = Vec::new();
    let mut missing = false;
    for event in seen {
        match event {
            Seen::Body(of, from, bytes) if (*of, *from) == (id, side) => {
                body.extend(bytes.iter().copied().map(Some));
            }
            Seen::Missing(of, from, bytes) if (*of, *from) == (id, side) => {
                missing = true;
                body.extend(std::iter::repeat_n(None, *bytes as usize));
            }
            _ => {}
        }
    }
    (body, missing)
}

fn is_until_close(message: &Message) -> bool {
    let framed = |name: &str| name == "Content-Length" || name == "Transfer-Encoding";
    !message.fields.iter().any(|(name, _)| framed(name))
}

fn number_of(fields: &[Field]) -> usize {
    let number = values(fields, "x-number")
        .next()
        .expect("every head has its number");
    std::str::from_utf8(number).unwrap().parse().unwrap()
}

fn assert_fields(fields: &[Field], truth: &[(String, String)]) {
    let fields: Vec<_> = fields
        .iter()
        .map(|field| {
            (
                field.name.as_slice(),
                field.value.as_deref().unwrap_or_default(),
            )
        })
        .collect();
    let truth: Vec<_> = truth
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .collect();
    assert_eq!(fields, truth);
}

fn request(number: usize, plan: &Plan) -> (Message, Vec<u8>) {
    let (method, framing) = [
        ("GET", Framing::None),
        ("POST", Framing::Length),
        ("PUT", Framing::Chunked),
        ("HEAD", Framing::None),
        ("DELETE", Framing::None),
        ("POST", Framing::ChunkedWithTrailers),
    ][usize::from(plan.request % 6)];
    let start = format!("{method} /{number}/GET");
    let body = body(number, plan.request_length);
    message(
        number,
        plan,
        &start,
        &format!("{start} HTTP/1.1"),
        framing,
        body,
    )
}

fn response(number: usize, plan: &Plan, last: bool) -> (Message, Vec<u8>) {
    let (status, mut framing) = [
        (200, Framing::Length),
        (404, Framing::Chunked),
        (200, Framing::ChunkedWithTrailers),
        (204, Framing::None),
        (304, Framing::LengthOnly),
        (500, Framing::UntilClose),
    ][usize::from(plan.response % 6)];
    if matches!(framing, Framing::UntilClose) && !last {
        framing = Framing::Length;
    }
    if plan.request % 6 == 3 && !matches!(framing, Framing::None) {
        framing = Framing::LengthOnly;
    }
    let line = format!("HTTP/1.1 {status} Reason {number}");
    let body = body(number + 7, plan.response_length);
    let (mut truth, mut bytes) = message(number, plan, &status.to_string(), &line, framing, body);
    if plan.interim {
        truth.interim = true;
        let interim = format!("HTTP/1.1 103 Early Hints\r\nX-Number: {number}\r\n\r\n");
        bytes.splice(0..0, interim.into_bytes());
    }
    (truth, bytes)
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    None,
    Length,
    /// As in responses to HEAD.
    LengthOnly,
    Chunked,
    ChunkedWithTrailers,
    UntilClose,
}

fn message(
    number: usize,
    plan: &Plan,
    start: &str,
    line: &str,
    framing: Framing,
    body: Vec<u8>,
) -> (Message, Vec<u8>) {
    let field = |name: &str, value: String| (name.to_string(), value);
    let mut fields = vec![field("X-Number", number.to_string())];
    let mut trailers = Vec::new();
    let sent = match framing {
        Framing::None => Vec::new(),
        Framing::Length => {
            fields.push(field("Content-Length", body.len().to_string()));
            body.clone()
        }
        Framing::LengthOnly => {
            fields.push(field("Content-Length", "1234".to_string()));
            Vec::new()
        }
        Framing::Chunked | Framing::ChunkedWithTrailers => {
            fields.push(field("Transfer-Encoding", "chunked".to_string()));
            if matches!(framing, Framing::ChunkedWithTrailers) {
                trailers.push(field("X-Checksum", format!("sum {number}")));
            }
            chunks(&body, plan.chunk, &trailers)
        }
        Framing::UntilClose => body.clone(),
    };
    fields.push(field("X-Last", format!("value of {number}")));
    let mut bytes = format!("{line}\r\n").into_bytes();
    bytes.extend(lines(&fields));
    bytes.extend(&sent);
    let has_body = !matches!(framing, Framing::None | Framing::LengthOnly);
    let truth = Message {
        start: start.as_bytes().to_vec(),
        fields,
        body: if has_body { body } else { Vec::new() },
        trailers,
        interim: false,
    };
    (truth, bytes)
}

fn lines(fields: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.extend(format!("{name}: {value}\r\n").bytes());
    }
    bytes.extend(b"\r\n");
    bytes
}

fn chunks(body: &[u8], length: usize, trailers: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(length) {
        bytes.extend(format!("{:x};ext=\"{length}\"\r\n", chunk.len()).bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n");
    bytes.extend(lines(trailers));
    bytes
}

/// Bytes that look like framing now and then, and tell their place.
fn body(seed: usize, length: usize) -> Vec<u8> {
    let filler = b"0\r\n\r\nabcdefghijklmnop:5\r\n";
    (0..length)
        .map(|at| filler[(at * 7 + seed * 3) % filler.len()])
        .collect()
}
