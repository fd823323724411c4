//! Which protocol a connection speaks: bytes that aren't decoded are handed on as they came.

use events::Direction;
use protocol::{Cause, Conversation, ConversationEvent, Hint, Protocol, Side};

use crate::connection::{self, HTTP1, Step, is_complete, steps};

/// What a decoder may hold: two windows of HTTP/2 or heads of HTTP/1, tables and streams.
const HELD_MAX: usize = 2 << 20;

/// What is known of a connection beforehand, by one byte.
pub fn hint(options: u8) -> Hint {
    Hint {
        role: [None, Some(Side::Client), Some(Side::Server), None][usize::from(options & 3)],
        alpn: [None, Some("h2"), Some("http/1.1"), Some("x")][usize::from(options >> 2 & 3)]
            .map(|name| name.as_bytes().to_vec()),
        from_beginning: options & 16 == 0,
    }
}

/// A hint, and steps; the client of the steps is who writes.
pub fn run(bytes: &[u8]) {
    let Some((&options, bytes)) = bytes.split_first() else {
        return;
    };
    let steps = steps(bytes);
    let mut conversation = Conversation::new(hint(options));
    let mut protocols = 0;
    let mut raw: [Vec<u8>; 2] = Default::default();
    let mut note = |event: ConversationEvent<'_>| match event {
        ConversationEvent::Protocol(..) => protocols += 1,
        ConversationEvent::Raw(direction, _, bytes) => raw[direction.index()].extend(bytes),
        ConversationEvent::Http(_) | ConversationEvent::RawMissing(..) => {}
    };
    let mut sent: [Vec<u8>; 2] = Default::default();
    let mut ends = [0u64; 2];
    for step in &steps {
        let (server, length) = match step {
            Step::Data(server, data) | Step::Lost(server, data) => (*server, data.len() as u64),
            Step::Missing(server, length) => (*server, *length),
        };
        let direction = match server {
            false => Direction::Write,
            true => Direction::Read,
        };
        let end = &mut ends[direction.index()];
        let offset = *end;
        *end = end.saturating_add(length);
        if let Step::Data(_, data) = step {
            sent[direction.index()].extend(*data);
            conversation.data(direction, offset, data, &mut note);
        } else {
            conversation.missing(direction, offset, length, Cause::Lost, &mut note);
        }
        let held = conversation.held();
        assert!(held <= HELD_MAX, "{held} bytes are held");
    }
    conversation.close(&mut note);
    assert!(protocols <= 1);
    if conversation.protocol() == Some(Protocol::Other) {
        assert_eq!(raw, sent, "not handed on as it came");
    } else if is_complete(&steps) {
        assert!(
            raw.iter()
                .zip(&sent)
                .all(|(raw, sent)| sent.starts_with(raw))
        );
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (request, response) in HTTP1 {
        let steps = [
            Step::Data(false, request.as_bytes()),
            Step::Data(true, response.as_bytes()),
        ];
        seeds.push([&[1], &connection::input(&steps)[..]].concat());
        seeds.push([&[16], &connection::input(&steps)[..]].concat());
    }
    let http2 = connection::http2();
    let steps: Vec<_> = http2
        .iter()
        .map(|(server, bytes)| Step::Data(*server, bytes))
        .collect();
    seeds.push([&[4 + 1], &connection::input(&steps)[..]].concat());
    seeds.push([&[16 + 4 + 1], &connection::input(&steps[3..])[..]].concat());
    seeds
}
