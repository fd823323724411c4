//! The HTTP/2 decoder against real connections between an `h2` client and server: what it decodes is
//! what both programs saw, and whatever part of a connection is missing, nothing it shows is wrong.

mod recording;

use std::collections::BTreeMap;

use protocol::{
    Decoder, Field, Http2, HttpEvent, RequestHead, ResponseHead, Side, StreamId, Trouble,
};
use recording::{Fields, Message, Passed, Plan, record};

/// What was decoded of one stream.
#[derive(Debug, Default, PartialEq)]
struct Exchange {
    request: Option<RequestHead>,
    response: Option<ResponseHead>,
    /// Of each side; a new piece begins where something is missing.
    bodies: [Vec<Vec<u8>>; 2],
    trailers: [Option<Vec<Field>>; 2],
    ended: [bool; 2],
    reset: Option<(Side, u32)>,
}

#[derive(Debug, Default, PartialEq)]
struct Decoded {
    exchanges: BTreeMap<u64, Exchange>,
    troubles: Vec<Trouble>,
    /// Bytes of bodies.
    missing: u64,
}

impl Decoded {
    fn on(&mut self, id: StreamId) -> &mut Exchange {
        self.exchanges.entry(id.0).or_default()
    }

    fn add(&mut self, event: HttpEvent<'_>) {
        match event {
            HttpEvent::Request(id, head) => {
                assert!(
                    self.on(id).request.replace(head).is_none(),
                    "two requests on {id:?}"
                );
            }
            HttpEvent::Response(id, head) => {
                assert!(
                    self.on(id).response.replace(head).is_none(),
                    "two responses on {id:?}"
                );
            }
            HttpEvent::Body(id, side, bytes) => {
                let pieces = &mut self.on(id).bodies[side.index()];
                match pieces.last_mut() {
                    Some(piece) => piece.extend(bytes),
                    None => pieces.push(bytes.to_vec()),
                }
            }
            HttpEvent::Missing(id, side, bytes, _) => {
                self.on(id).bodies[side.index()].push(Vec::new());
                self.missing += bytes;
            }
            HttpEvent::Trailers(id, side, fields) => {
                self.on(id).trailers[side.index()] = Some(fields);
            }
            HttpEvent::End(id, side) => self.on(id).ended[side.index()] = true,
            HttpEvent::Reset(id, side, code) => self.on(id).reset = Some((side, code)),
            HttpEvent::Switched(..) => panic!("nothing switches here"),
            HttpEvent::Trouble(id, side, _, trouble) => {
                if let (Some(id), Trouble::Gap { .. } | Trouble::Unseen) = (id, &trouble) {
                    self.on(id).bodies[side.index()].push(Vec::new());
                }
                // Everything of this side may go on behind a gap.
                if id.is_none() {
                    for exchange in self.exchanges.values_mut() {
                        exchange.bodies[side.index()].push(Vec::new());
                    }
                }
                self.troubles.push(trouble);
            }
        }
    }

    fn finish(mut self, mut decoder: Http2) -> Self {
        decoder.close(&mut |event| self.add(event));
        self
    }
}

fn decode_all(passed: &Passed, piece: usize) -> Decoded {
    let (mut decoder, mut decoded) = (Http2::new(), Decoded::default());
    let mut offsets = [0; 2];
    for (side, bytes) in passed {
        for piece in bytes.chunks(piece) {
            let offset = &mut offsets[side.index()];
            decoder.data(*side, *offset, piece, &mut |event| decoded.add(event));
            *offset += piece.len() as u64;
        }
    }
    decoded.finish(decoder)
}

fn sorted(fields: &[Field]) -> Fields {
    let own = |field: &Field| (field.name.clone(), field.value.clone().unwrap());
    let mut fields: Fields = fields.iter().map(own).collect();
    fields.sort();
    fields
}

fn text(bytes: &Option<Vec<u8>>) -> &str {
    std::str::from_utf8(bytes.as_deref().unwrap()).unwrap()
}

/// The messages as the programs should have seen them.
fn messages(exchange: &Exchange) -> [Message; 2] {
    let message = |side: Side, line: String, fields: &[Field]| Message {
        line,
        fields: sorted(fields),
        body: exchange.bodies[side.index()].concat(),
        trailers: exchange.trailers[side.index()]
            .as_deref()
            .map(sorted)
            .unwrap_or_default(),
        reset: None,
    };
    let request = exchange.request.as_ref().unwrap();
    let [scheme, authority] = [text(&request.scheme), text(&request.authority)];
    let [method, target] = [text(&request.method), text(&request.target)];
    let line = format!("{method} {scheme}://{authority}{target}");
    let request = message(Side::Client, line, &request.fields);
    let response = match &exchange.response {
        Some(head) => message(Side::Server, head.status.unwrap().to_string(), &head.fields),
        None => Message::default(),
    };
    [request, response]
}

fn assert_decoded_is_what_was_seen(plan: &Plan) {
    let (passed, seen) = record(plan);
    let decoded = decode_all(&passed, usize::MAX);
    assert_eq!(decoded.troubles, []);
    assert_eq!(decoded.exchanges.len(), plan.exchanges);
    let (mut resets, mut trailers) = ([0, 0], 0);
    for (id, exchange) in &decoded.exchanges {
        let [request, response] = messages(exchange);
        let Some((side, code)) = exchange.reset else {
            assert_eq!([request, response], seen[id], "stream {id}");
            assert_eq!(exchange.ended, [true, true], "stream {id}");
            trailers += exchange.trailers.iter().flatten().count();
            continue;
        };
        resets[side.index()] += 1;
        let [server_saw, client_saw] = &seen[id];
        assert_eq!(client_saw.reset, Some(code), "stream {id}");
        if side == Side::Server {
            assert_eq!(&request, server_saw, "stream {id}");
        }
    }
    assert!(resets[0] > 0 && resets[1] > 0 && trailers > plan.exchanges / 2);
}

#[test]
fn two_hundred_streams_at_a_time_are_what_client_and_server_saw() {
    assert_decoded_is_what_was_seen(&Plan {
        exchanges: 600,
        concurrent: 200,
        longest: 20_000,
        huge: 60_000,
        table: 4096,
    });
}

#[test]
fn thousands_of_streams_with_tables_of_all_sizes_are_what_client_and_server_saw() {
    for table in [0, 100, 16_384, 1 << 20] {
        assert_decoded_is_what_was_seen(&Plan {
            exchanges: 1000,
            concurrent: 10,
            longest: 300,
            huge: 20_000,
            table,
        });
    }
}

fn small_recording(table: u32) -> Passed {
    let plan = Plan {
        exchanges: 70,
        concurrent: 8,
        longest: 200,
        huge: 600,
        table,
    };
    record(&plan).0
}

#[test]
fn bytes_one_by_one_are_the_same() {
    let passed = small_recording(4096);
    let (whole, single) = (decode_all(&passed, usize::MAX), decode_all(&passed, 1));
    assert_eq!(whole, single);
}

/// Asserts that `part` was sent.
fn assert_among(part: &[Field], whole: &[Field], context: &str) {
    let mut rest = whole.to_vec();
    for field in part {
        let place = rest.iter().position(|other| other == field);
        let place = place.unwrap_or_else(|| panic!("{context}: {field:?} was not sent"));
        rest.remove(place);
    }
}

/// Asserts that nothing is shown that was not sent, and returns how many heads are shown.
fn assert_sound(partial: &Decoded, whole: &Decoded, context: &str) -> usize {
    let mut heads = 0;
    for (id, exchange) in &partial.exchanges {
        let context = format!("{context}, stream {id}");
        let sent = whole
            .exchanges
            .get(id)
            .unwrap_or_else(|| panic!("{context}: never was"));
        if let Some(head) = &exchange.request {
            let sent = sent.request.as_ref().unwrap();
            assert!(
                head.method.is_none() || head.method == sent.method,
                "{context}"
            );
            assert!(
                head.scheme.is_none() || head.scheme == sent.scheme,
                "{context}"
            );
            assert!(
                head.authority.is_none() || head.authority == sent.authority,
                "{context}"
            );
            assert!(
                head.target.is_none() || head.target == sent.target,
                "{context}"
            );
            assert_among(&head.fields, &sent.fields, &context);
            heads += 1;
        }
        if let Some(head) = &exchange.response {
            let sent = sent.response.as_ref().unwrap();
            assert!(
                head.status.is_none() || head.status == sent.status,
                "{context}"
            );
            assert_among(&head.fields, &sent.fields, &context);
            heads += 1;
        }
        for side in [0, 1] {
            if let Some(fields) = &exchange.trailers[side] {
                let sent = sent.trailers[side].as_deref();
                assert_among(fields, sent.unwrap_or_default(), &context);
                assert!(sent.is_some(), "{context}: no trailers were sent");
            }
            let sent_body = sent.bodies[side].concat();
            for piece in exchange.bodies[side]
                .iter()
                .filter(|piece| !piece.is_empty())
            {
                let inside = sent_body
                    .windows(piece.len())
                    .any(|window| window == &piece[..]);
                assert!(inside, "{context}: a body that was not sent");
            }
            assert!(sent.ended[side] || !exchange.ended[side], "{context}");
        }
        assert!(
            exchange.reset.is_none() || exchange.reset == sent.reset,
            "{context}"
        );
    }
    heads
}

#[test]
fn joined_anywhere_nothing_is_shown_that_was_not_sent() {
    for table in [4096, 200] {
        let passed = small_recording(table);
        let whole = decode_all(&passed, usize::MAX);
        let total: usize = passed.iter().map(|(_, bytes)| bytes.len()).sum();
        let heads_behind = heads_behind_pieces(&passed);
        let mut complete = 0;
        for join in 1..total {
            let (mut decoder, mut decoded) = (Http2::joined(), Decoded::default());
            let (mut before, mut offsets, mut pieces_before) = (0, [0u64; 2], 0);
            for (side, bytes) in &passed {
                let skipped = join.saturating_sub(before).min(bytes.len());
                pieces_before += usize::from(skipped > 0);
                before += bytes.len();
                let offset = offsets[side.index()] + skipped as u64;
                offsets[side.index()] += bytes.len() as u64;
                if skipped < bytes.len() {
                    let bytes = &bytes[skipped..];
                    decoder.data(*side, offset, bytes, &mut |event| decoded.add(event));
                }
            }
            let heads = assert_sound(
                &decoded.finish(decoder),
                &whole,
                &format!("joined at {join}"),
            );
            complete += usize::from(heads + 2 >= heads_behind[pieces_before]);
        }
        // A piece of a frame may look like the beginning of a long one for a while.
        assert!(complete > total * 9 / 10, "{complete} of {total}");
    }
}

/// How many heads complete in each piece and those behind it.
fn heads_behind_pieces(passed: &Passed) -> Vec<usize> {
    let mut decoder = Http2::new();
    let in_piece = |(side, bytes): &(Side, Vec<u8>)| {
        let mut heads = 0;
        decoder.data(*side, 0, bytes, &mut |event| {
            heads += usize::from(matches!(
                event,
                HttpEvent::Request(..) | HttpEvent::Response(..)
            ));
        });
        heads
    };
    let mut heads: Vec<usize> = passed.iter().map(in_piece).collect();
    heads.push(0);
    for piece in (0..heads.len() - 1).rev() {
        heads[piece] += heads[piece + 1];
    }
    heads
}

#[test]
fn with_any_gap_nothing_is_shown_that_was_not_sent() {
    let passed = small_recording(4096);
    let whole = decode_all(&passed, usize::MAX);
    for side in [Side::Client, Side::Server] {
        let sent = passed.iter().filter(|(from, _)| *from == side);
        let total: usize = sent.map(|(_, bytes)| bytes.len()).sum();
        for length in [1, 9, 40, 1000] {
            for begin in (0..total - length).step_by(7) {
                let lost = begin..begin + length;
                let decoded = decode_without(&passed, side, lost);
                let context = format!("{length} bytes at {begin} of the {side:?} missing");
                assert_sound(&decoded, &whole, &context);
                let said = !decoded.troubles.is_empty() || decoded.missing > 0;
                // Or else nobody misses it, such as what is in a PING.
                assert!(said || decoded == whole, "{context}: nothing was said");
            }
        }
    }
}

/// Decodes all but a part of what `side` sent.
fn decode_without(passed: &Passed, side: Side, lost: std::ops::Range<usize>) -> Decoded {
    let (mut decoder, mut decoded) = (Http2::new(), Decoded::default());
    let mut offsets = [0; 2];
    for (from, bytes) in passed {
        let offset = offsets[from.index()];
        offsets[from.index()] += bytes.len();
        let mut data = |at: usize, bytes: &[u8]| {
            if !bytes.is_empty() {
                let at = (offset + at) as u64;
                decoder.data(*from, at, bytes, &mut |event| decoded.add(event));
            }
        };
        if *from != side {
            data(0, bytes);
            continue;
        }
        let begin = lost.start.saturating_sub(offset).min(bytes.len());
        let end = lost.end.saturating_sub(offset).min(bytes.len());
        data(0, &bytes[..begin]);
        if begin < end {
            let (at, count) = ((offset + begin) as u64, (end - begin) as u64);
            decoder.gap(side, at, count, &mut |event| decoded.add(event));
        }
        let mut data = |at: usize, bytes: &[u8]| {
            let at = (offset + at) as u64;
            decoder.data(*from, at, bytes, &mut |event| decoded.add(event));
        };
        data(end, &bytes[end..]);
    }
    decoded.finish(decoder)
}
