//! HTTP/1: whatever is sent does no harm, and how it is cut makes no difference.

use protocol::{Decoder, Http1, HttpEvent, Side, StreamId};

use crate::connection::{self, HTTP1, Step, in_parts, is_complete, steps};

/// Options (bit 0: first seen in the middle; the others: how to cut), and steps.
pub fn run(bytes: &[u8]) {
    let Some((&options, bytes)) = bytes.split_first() else {
        return;
    };
    let steps = steps(bytes);
    let decoder = || Http1::new(options & 1 == 0);
    let all = decoded(&mut decoder(), &steps);
    if is_complete(&steps) {
        let length = usize::from(options >> 1) + 1;
        let cut = decoded(&mut decoder(), &in_parts(&steps, length));
        assert_same(&all, &cut);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let exchanges = HTTP1.iter().map(|(request, response)| {
        let steps = [
            Step::Data(false, request.as_bytes()),
            Step::Data(true, response.as_bytes()),
        ];
        connection::input(&steps)
    });
    let gaps = HTTP1.iter().map(|(request, response)| {
        let (head, rest) = response.as_bytes().split_at(response.len() / 2);
        let (lost, rest) = rest.split_at(rest.len() / 2);
        let steps = [
            Step::Data(false, request.as_bytes()),
            Step::Data(true, head),
            Step::Lost(true, lost),
            Step::Data(true, rest),
            Step::Missing(true, 1 << 40),
            Step::Data(true, response.as_bytes()),
        ];
        connection::input(&steps)
    });
    let options = [0, 1, 2, 9];
    let inputs: Vec<_> = exchanges.chain(gaps).collect();
    let with = |option| move |input: &Vec<u8>| [&[option], &input[..]].concat();
    options
        .iter()
        .flat_map(|&option| inputs.iter().map(with(option)))
        .collect()
}

/// What a decoder said, with the parts of a body put together.
#[derive(Debug, PartialEq)]
pub enum Said {
    Body(StreamId, Side, Vec<u8>),
    Event(HttpEvent<'static>),
}

/// Feeds a decoder, checks what holds always, and returns what it said.
pub fn decoded(decoder: &mut dyn Decoder, steps: &[Step<'_>]) -> Vec<Said> {
    let mut said = Vec::new();
    let (mut ends, mut sent, mut missing) = ([0u64; 2], [0u64; 2], [0u64; 2]);
    for step in steps {
        let (server, length) = match step {
            Step::Data(server, data) | Step::Lost(server, data) => (*server, data.len() as u64),
            Step::Missing(server, length) => (*server, *length),
        };
        let side = if server { Side::Server } else { Side::Client };
        let end = &mut ends[side.index()];
        let offset = *end;
        *end = end.saturating_add(length);
        if let Step::Data(_, data) = step {
            sent[side.index()] += length;
            decoder.data(side, offset, data, &mut |event| note(&mut said, event));
        } else {
            let missing = &mut missing[side.index()];
            *missing = missing.saturating_add(length);
            decoder.gap(side, offset, length, &mut |event| note(&mut said, event));
        }
    }
    decoder.close(&mut |event| note(&mut said, event));
    for side in [Side::Client, Side::Server] {
        let index = side.index();
        let (mut bodies, mut gaps) = (0u64, 0u64);
        for one in &said {
            match one {
                Said::Body(_, from, bytes) if *from == side => bodies += bytes.len() as u64,
                Said::Event(HttpEvent::Missing(_, from, bytes, _)) if *from == side => {
                    gaps = gaps.saturating_add(*bytes);
                }
                Said::Event(HttpEvent::Trouble(_, from, offset, _)) if *from == side => {
                    assert!(
                        *offset <= ends[index],
                        "trouble at {offset} of {}",
                        ends[index]
                    );
                }
                _ => {}
            }
        }
        assert!(bodies <= sent[index], "more in bodies than was sent");
        assert!(gaps <= missing[index], "more is missing than was lost");
    }
    said
}

fn note(said: &mut Vec<Said>, event: HttpEvent<'_>) {
    use HttpEvent::*;

    let event = match event {
        Body(id, side, bytes) => {
            if let Some(Said::Body(before, from, body)) = said.last_mut()
                && (*before, *from) == (id, side)
            {
                body.extend(bytes);
            } else {
                said.push(Said::Body(id, side, bytes.to_vec()));
            }
            return;
        }
        Request(id, head) => Request(id, head),
        Response(id, head) => Response(id, head),
        Missing(id, side, bytes, cause) => Missing(id, side, bytes, cause),
        Trailers(id, side, fields) => Trailers(id, side, fields),
        End(id, side) => End(id, side),
        Reset(id, side, code) => Reset(id, side, code),
        Switched(id, protocol) => Switched(id, protocol),
        Trouble(id, side, offset, why) => Trouble(id, side, offset, why),
    };
    said.push(Said::Event(event));
}

/// Up to the first trouble, behind which it matters where calls begin.
pub fn assert_same(all: &[Said], cut: &[Said]) {
    let trouble = |one: &Said| matches!(one, Said::Event(HttpEvent::Trouble(..)));
    let until = |said: &[Said]| said.iter().position(trouble);
    match (until(all), until(cut)) {
        (None, None) => assert_eq!(all, cut),
        (Some(one), Some(other)) => assert_eq!(all[..=one], cut[..=other]),
        _ => panic!("trouble only if cut, or if not:\n{all:?}\n{cut:?}"),
    }
}
