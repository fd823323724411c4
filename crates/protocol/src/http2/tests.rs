use proptest::prelude::*;

use super::*;
use crate::{Field, RequestHead, ResponseHead, StreamId};
use Side::{Client, Server};

/// An event that owns its bytes; adjacent pieces of a body are one.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Request(u64, RequestHead),
    Response(u64, ResponseHead),
    Body(u64, Side, Vec<u8>),
    Missing(u64, Side, u64),
    Trailers(u64, Side, Vec<Field>),
    End(u64, Side),
    Reset(u64, Side, u32),
    Switched(u64, Vec<u8>),
    Trouble(Option<u64>, Side, u64, Trouble),
}

fn add(seen: &mut Vec<Seen>, event: HttpEvent<'_>) {
    let event = match event {
        HttpEvent::Request(StreamId(id), head) => Seen::Request(id, head),
        HttpEvent::Response(StreamId(id), head) => Seen::Response(id, head),
        HttpEvent::Body(StreamId(id), side, bytes) => {
            if let Some(Seen::Body(last, last_side, body)) = seen.last_mut()
                && (*last, *last_side) == (id, side)
            {
                body.extend(bytes);
                return;
            }
            Seen::Body(id, side, bytes.to_vec())
        }
        HttpEvent::Missing(StreamId(id), side, bytes, _) => Seen::Missing(id, side, bytes),
        HttpEvent::Trailers(StreamId(id), side, fields) => Seen::Trailers(id, side, fields),
        HttpEvent::End(StreamId(id), side) => Seen::End(id, side),
        HttpEvent::Reset(StreamId(id), side, code) => Seen::Reset(id, side, code),
        HttpEvent::Switched(StreamId(id), protocol) => Seen::Switched(id, protocol),
        HttpEvent::Trouble(id, side, offset, trouble) => {
            Seen::Trouble(id.map(|id| id.0), side, offset, trouble)
        }
    };
    seen.push(event);
}

/// A decoder and what it has reported.
struct Watch {
    decoder: Http2,
    offsets: [u64; 2],
    seen: Vec<Seen>,
}

impl Watch {
    fn on(decoder: Http2) -> Self {
        Self {
            decoder,
            offsets: [0; 2],
            seen: Vec::new(),
        }
    }

    /// At a connection whose prefaces have passed.
    fn new() -> Self {
        let mut watch = Self::on(Http2::new());
        watch.send(Client, PREFACE);
        watch.send(Client, &frame(kind::SETTINGS, 0, 0, &[]));
        watch.send(Server, &frame(kind::SETTINGS, 0, 0, &[]));
        assert_eq!(watch.seen, []);
        watch
    }

    fn joined() -> Self {
        Self::on(Http2::joined())
    }

    fn send(&mut self, side: Side, bytes: &[u8]) -> &mut Self {
        let offset = &mut self.offsets[side.index()];
        self.decoder.data(side, *offset, bytes, &mut |event| {
            add(&mut self.seen, event)
        });
        *offset += bytes.len() as u64;
        self
    }

    fn gap(&mut self, side: Side, bytes: u64) -> &mut Self {
        let offset = &mut self.offsets[side.index()];
        self.decoder.gap(side, *offset, bytes, &mut |event| {
            add(&mut self.seen, event)
        });
        *offset += bytes;
        self
    }

    fn take(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.seen)
    }

    /// The only event since the last look.
    fn one(&mut self) -> Seen {
        let mut seen = self.take();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    }

    fn troubles(&mut self) -> Vec<Trouble> {
        let troubles = self.take().into_iter().filter_map(|seen| match seen {
            Seen::Trouble(.., trouble) => Some(trouble),
            _ => None,
        });
        troubles.collect()
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A frame with a whole header block.
fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, flags | flag::END_HEADERS, stream, block)
}

fn data(flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(kind::DATA, flags, stream, payload)
}

/// `:method: GET`, `:scheme: https`, `:path: /`.
const GET: &[u8] = &[0x82, 0x87, 0x84];
/// `:method: POST`, `:scheme: https`, `:path: /`.
const POST: &[u8] = &[0x83, 0x87, 0x84];
/// `:status: 200`.
const OK: &[u8] = &[0x88];
const END: u8 = flag::END_STREAM;

/// A literal field; `0x40` inserts it into the dynamic table, `0` does not.
fn literal(pattern: u8, name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![pattern, name.len() as u8];
    bytes.extend(name.as_bytes());
    bytes.push(value.len() as u8);
    bytes.extend(value.as_bytes());
    bytes
}

fn field(name: &str, value: &str) -> Field {
    Field {
        name: name.into(),
        value: Some(value.into()),
    }
}

fn request(seen: &Seen) -> &RequestHead {
    match seen {
        Seen::Request(_, head) => head,
        other => panic!("{other:?}"),
    }
}

fn response(seen: &Seen) -> &ResponseHead {
    match seen {
        Seen::Response(_, head) => head,
        other => panic!("{other:?}"),
    }
}

#[test]
fn preface_is_recognised_from_its_first_byte_that_differs() {
    assert_eq!(looks_like_preface(b""), None);
    assert_eq!(looks_like_preface(b"PRI * HT"), None);
    assert_eq!(looks_like_preface(b"PRINT"), Some(false));
    assert_eq!(looks_like_preface(PREFACE), Some(true));
    assert_eq!(
        looks_like_preface(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        Some(false)
    );
}

#[test]
fn a_wrong_preface_is_wrong_at_its_first_byte_that_differs() {
    let mut bytes = PREFACE.to_vec();
    bytes[21] = b'?';
    for length in [1, 3, 24] {
        let mut decoder = Http2::new();
        let mut found = Vec::new();
        for (number, part) in bytes.chunks(length).enumerate() {
            let offset = (number * length) as u64;
            decoder.data(Client, offset, part, &mut |event| match event {
                HttpEvent::Trouble(_, _, offset, _) => found.push(offset),
                event => panic!("{event:?}"),
            });
        }
        assert_eq!(found, [21], "in parts of {length} bytes");
    }
}

#[test]
fn exchange_with_bodies_and_trailers() {
    let mut watch = Watch::new();
    let mut block = POST.to_vec();
    block.extend(literal(0x40, ":authority", "a.example"));
    block.extend(literal(0, "te", "trailers"));
    watch.send(Client, &headers(0, 1, &block));
    let seen = watch.one();
    let head = request(&seen);
    assert_eq!(head.method.as_deref(), Some(b"POST".as_slice()));
    assert_eq!(head.authority.as_deref(), Some(b"a.example".as_slice()));
    assert_eq!(head.target.as_deref(), Some(b"/".as_slice()));
    assert_eq!(head.fields, [field("te", "trailers")]);
    assert_eq!(head.wire_length, 9 + block.len() as u64);
    watch.send(Client, &data(END, 1, b"ping"));
    watch.send(Server, &headers(0, 1, &[0x48, 3, b'1', b'0', b'3']));
    watch.send(Server, &headers(0, 1, OK));
    watch.send(Server, &data(0, 1, b"pong"));
    watch.send(Server, &headers(END, 1, &literal(0, "grpc-status", "0")));
    let seen = watch.take();
    assert_eq!(
        seen[..2],
        [Seen::Body(1, Client, b"ping".into()), Seen::End(1, Client)]
    );
    assert_eq!(response(&seen[2]).status, Some(103));
    assert_eq!(response(&seen[3]).status, Some(200));
    assert_eq!(
        seen[4..],
        [
            Seen::Body(1, Server, b"pong".into()),
            Seen::Trailers(1, Server, vec![field("grpc-status", "0")]),
            Seen::End(1, Server),
        ]
    );
    assert_eq!(watch.decoder.shared.streams.len(), 0);
}

#[test]
fn padding_priority_and_continuation_are_not_content() {
    let mut watch = Watch::new();
    let flags = flag::PADDED | flag::PRIORITY;
    let first = [&[3, 0x80, 0, 0, 0, 16][..], &GET[..1], &[0; 3]].concat();
    let mut bytes = frame(kind::HEADERS, flags | END, 1, &first);
    bytes.extend(frame(kind::CONTINUATION, 0, 1, &GET[1..2]));
    bytes.extend(frame(kind::CONTINUATION, flag::END_HEADERS, 1, &GET[2..]));
    watch.send(Client, &bytes);
    let seen = watch.take();
    assert_eq!(request(&seen[0]).target.as_deref(), Some(b"/".as_slice()));
    assert_eq!(request(&seen[0]).wire_length, bytes.len() as u64);
    assert_eq!(seen[1..], [Seen::End(1, Client)]);
    watch.send(Server, &headers(0, 1, OK));
    watch.take();
    watch.send(Server, &data(flag::PADDED, 1, &[4, b'h', b'i', 0, 0, 0, 0]));
    assert_eq!(watch.one(), Seen::Body(1, Server, b"hi".into()));
    watch.send(Server, &data(flag::PADDED | END, 1, &[1, 0]));
    assert_eq!(watch.one(), Seen::End(1, Server));
}

#[test]
fn body_comes_as_its_bytes_come() {
    let mut watch = Watch::new();
    watch.send(Client, &headers(0, 1, POST));
    watch.take();
    let frame = data(0, 1, b"abcdef");
    watch.send(Client, &frame[..11]);
    assert_eq!(watch.one(), Seen::Body(1, Client, b"ab".into()));
    watch.send(Client, &frame[11..]);
    assert_eq!(watch.one(), Seen::Body(1, Client, b"cdef".into()));
}

#[test]
fn unknown_and_connection_frames_are_passed_over() {
    let mut watch = Watch::new();
    for (kind, flags, stream, payload) in [
        (0xbe, 0xff, 7, &[1; 300][..]),
        (kind::PING, 0, 0, &[0; 8]),
        (kind::WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]),
        (kind::SETTINGS, flag::ACK, 0, &[]),
        (kind::PRIORITY, 0, 9, &[0, 0, 0, 0, 1]),
    ] {
        watch.send(Client, &frame(kind, flags, stream, payload));
    }
    watch.send(Client, &headers(END, 1, GET));
    assert_eq!(watch.take().len(), 2);
}

#[test]
fn reset_ends_the_exchange_and_late_frames_are_not_shown() {
    let mut watch = Watch::new();
    watch.send(Client, &headers(0, 1, POST)).take();
    watch.send(Server, &frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]));
    assert_eq!(watch.one(), Seen::Reset(1, Server, 8));
    watch.send(Client, &data(0, 1, b"late"));
    watch.send(Client, &headers(END, 1, &literal(0x40, "late", "too")));
    assert_eq!(watch.take(), []);
    // The late block's entry is in the table all the same.
    watch.send(Client, &headers(END, 3, &[GET, &[0xbe]].concat()));
    assert_eq!(request(&watch.take()[0]).fields, [field("late", "too")]);
}

#[test]
fn go_away_resets_the_streams_that_were_not_looked_at() {
    let mut watch = Watch::new();
    for stream in [1, 3, 5] {
        watch.send(Client, &headers(0, stream, POST));
    }
    watch.take();
    watch.send(
        Server,
        &frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 2, b'x']),
    );
    assert_eq!(
        watch.take(),
        [Seen::Reset(3, Server, 2), Seen::Reset(5, Server, 2)]
    );
}

#[test]
fn trouble_with_a_promised_request_is_where_the_server_sent_it() {
    let mut decoder = Http2::new();
    decoder.data(Client, 0, PREFACE, &mut |_| {});
    // A scheme alone.
    let incomplete = [&[0, 0, 0, 2][..], &[0x87]].concat();
    let promise = frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &incomplete);
    let mut found = Vec::new();
    decoder.data(
        Server,
        0,
        &frame(kind::SETTINGS, 0, 0, &[0; 60]),
        &mut |_| {},
    );
    decoder.data(Server, 69, &promise, &mut |event| {
        if let HttpEvent::Trouble(_, side, offset, _) = event {
            found.push((side, offset));
        }
    });
    assert!(found.contains(&(Server, 69)), "{found:?}");
    assert!(found.iter().all(|(side, _)| *side == Server), "{found:?}");
}

#[test]
fn pushed_exchange_is_one_like_others() {
    let mut watch = Watch::new();
    watch.send(Client, &headers(END, 1, GET)).take();
    let promise = [&[0, 0, 0, 2], GET].concat();
    watch.send(
        Server,
        &frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &promise),
    );
    watch.send(Server, &headers(END, 2, OK));
    let seen = watch.take();
    assert!(matches!(&seen[0], Seen::Request(2, _)));
    assert_eq!(seen[1], Seen::End(2, Client));
    assert!(matches!(&seen[2], Seen::Response(2, _)));
    assert_eq!(seen[3], Seen::End(2, Server));
}

#[test]
fn connect_switches_to_what_was_asked_for_when_it_is_granted() {
    let connect = literal(0, ":method", "CONNECT");
    let websocket = [
        &connect[..],
        &literal(0, ":protocol", "websocket"),
        &GET[1..],
    ]
    .concat();
    let tunnel = [connect, literal(0, ":authority", "a.example:443")].concat();
    for (block, protocol) in [(websocket, "websocket"), (tunnel, "CONNECT")] {
        let mut watch = Watch::new();
        watch.send(Client, &headers(0, 1, &block)).take();
        watch.send(Server, &headers(0, 1, OK));
        assert_eq!(watch.take()[1], Seen::Switched(1, protocol.into()));
        watch.send(Client, &headers(0, 3, &block)).take();
        watch.send(Server, &headers(0, 3, &[0x8d]));
        assert_eq!(response(&watch.one()).status, Some(404));
    }
}

#[test]
fn gap_inside_data_loses_only_these_bytes() {
    let mut watch = Watch::new();
    let block = [POST, &literal(0x40, "a", "b")].concat();
    watch.send(Client, &headers(0, 1, &block)).take();
    let bytes = data(END, 1, b"0123456789");
    watch
        .send(Client, &bytes[..11])
        .gap(Client, 3)
        .send(Client, &bytes[14..]);
    assert_eq!(
        watch.take(),
        [
            Seen::Body(1, Client, b"01".into()),
            Seen::Missing(1, Client, 3),
            Seen::Body(1, Client, b"56789".into()),
            Seen::End(1, Client),
        ]
    );
    // Up to the very end of a frame.
    watch.send(Client, &headers(0, 3, &[POST, &[0xbe]].concat()));
    assert_eq!(request(&watch.one()).fields, [field("a", "b")]);
    watch
        .send(Client, &data(END, 3, b"0123")[..11])
        .gap(Client, 2);
    assert_eq!(
        watch.take()[1..],
        [Seen::Missing(3, Client, 2), Seen::End(3, Client)]
    );
    watch.send(Client, &headers(END, 5, &[GET, &[0xbe]].concat()));
    assert_eq!(request(&watch.take()[0]).fields, [field("a", "b")]);
}

#[test]
fn gap_beyond_a_frame_makes_the_table_unknown() {
    let mut watch = Watch::new();
    let block = [POST, &literal(0x40, "a", "b")].concat();
    watch.send(Client, &headers(0, 1, &block)).take();
    watch
        .send(Client, &data(0, 1, b"0123")[..11])
        .gap(Client, 50);
    assert_eq!(
        watch.take()[1..],
        [
            Seen::Missing(1, Client, 2),
            Seen::Trouble(
                None,
                Client,
                watch.offsets[0] - 48,
                Trouble::Gap { bytes: 48 }
            ),
        ]
    );
    watch.send(
        Client,
        &headers(END, 7, &[GET, &[0xbe], &literal(0x40, "c", "d")].concat()),
    );
    let seen = watch.take();
    assert_eq!(request(&seen[0]).fields, [field("c", "d")]);
    assert_eq!(request(&seen[0]).unknown_fields, 1);
    watch.send(Client, &headers(END, 9, &[GET, &[0xbe, 0xbf]].concat()));
    let seen = watch.take();
    assert_eq!(request(&seen[0]).fields, [field("c", "d")]);
    assert_eq!(request(&seen[0]).unknown_fields, 1);
}

#[test]
fn gap_inside_a_header_block_loses_the_block_and_the_table() {
    let mut watch = Watch::new();
    let bytes = headers(END, 1, &[GET, &literal(0, "name", "value")].concat());
    watch
        .send(Client, &bytes[..14])
        .gap(Client, 4)
        .send(Client, &bytes[18..]);
    assert_eq!(
        watch.take(),
        [
            Seen::Trouble(Some(1), Client, 24 + 9, Trouble::Gap { bytes: 4 }),
            Seen::End(1, Client),
        ]
    );
    watch.send(Client, &headers(END, 3, &[GET, &[0xbe]].concat()));
    assert_eq!(request(&watch.take()[0]).unknown_fields, 1);
}

#[test]
fn joined_connection_shows_what_is_certain() {
    let mut watch = Watch::joined();
    watch.send(Client, &headers(END, 101, &[GET, &[0xc5]].concat()));
    let seen = watch.take();
    assert_eq!(seen[0], Seen::Trouble(None, Client, 0, Trouble::MidStream));
    assert_eq!(request(&seen[1]).method.as_deref(), Some(b"GET".as_slice()));
    assert_eq!(request(&seen[1]).unknown_fields, 1);
    assert_eq!(seen[2], Seen::End(101, Client));
    // A response whose request was not seen, and trailers of one whose head was not seen either.
    let bytes = [headers(0, 99, OK), data(END, 99, b"x"), data(0, 97, b"y")].concat();
    watch.send(Server, &bytes);
    watch.send(
        Server,
        &headers(END, 97, &[literal(0x40, "a", "b"), vec![0xbf]].concat()),
    );
    let seen = watch.take();
    assert_eq!(seen[0], Seen::Trouble(None, Server, 0, Trouble::MidStream));
    assert!(matches!(
        seen[1],
        Seen::Trouble(Some(99), Server, _, Trouble::MidStream)
    ));
    assert!(matches!(seen[2], Seen::Response(99, _)));
    assert!(matches!(
        seen[5],
        Seen::Trouble(Some(97), Server, _, Trouble::MidStream)
    ));
    assert!(matches!(
        seen[7],
        Seen::Trouble(Some(97), Server, _, Trouble::UnknownFields(1))
    ));
    assert_eq!(seen[8], Seen::Trailers(97, Server, vec![field("a", "b")]));
}

#[test]
fn joined_connection_does_not_take_trailers_for_a_head_or_the_other_way_round() {
    let mut watch = Watch::joined();
    watch.send(Server, &frame(kind::PING, 0, 0, &[7; 8]));
    watch.send(Server, &frame(kind::PING, 0, 0, &[7; 8])).take();
    watch.send(Server, &headers(END, 5, &[0xbe, 0xbf]));
    let seen = watch.take();
    assert!(matches!(
        seen[0],
        Seen::Trouble(Some(5), Server, _, Trouble::UnknownFields(2))
    ));
    assert_eq!(seen[1..], [Seen::End(5, Server)]);
}

#[test]
fn joined_in_the_middle_of_a_body_waits_for_a_frame() {
    let mut watch = Watch::joined();
    let text: Vec<u8> = b"All work and no play. ".repeat(100);
    watch.send(Client, &text);
    watch.send(Client, &headers(END, 3, GET));
    let seen = watch.take();
    assert_eq!(seen.len(), 3);
    assert_eq!(request(&seen[1]).method.as_deref(), Some(b"GET".as_slice()));
}

#[test]
fn weak_evidence_is_enough_at_the_end() {
    let mut watch = Watch::joined();
    watch.send(Server, &headers(END, 0x12_3457, &[0xbe, 0xbf]));
    assert_eq!(watch.take().len(), 1);
    let seen = &mut watch.seen;
    watch.decoder.close(&mut |event| add(seen, event));
    assert_eq!(watch.take().len(), 2);
}

#[test]
fn what_no_peer_accepts_is_said_and_passed_over() {
    let cases = [
        data(0, 0, b"x"),
        data(0, 2, b"x"),
        headers(0, 0, GET),
        frame(kind::CONTINUATION, flag::END_HEADERS, 1, GET),
        [frame(kind::HEADERS, 0, 1, GET), data(0, 1, b"x")].concat(),
        frame(
            kind::PUSH_PROMISE,
            flag::END_HEADERS,
            1,
            &[0, 0, 0, 2, 0x82],
        ),
        frame(kind::PING, 0, 0, b"short"),
        frame(kind::SETTINGS, 0, 0, b"12345"),
        frame(kind::SETTINGS, flag::ACK, 0, b"123456"),
        frame(kind::WINDOW_UPDATE, 0, 0, b"12345"),
        headers(0, 1, &[0xbe]),
        headers(flag::PADDED, 1, &[200, 0x82]),
    ];
    for bytes in cases {
        let mut watch = Watch::new();
        watch.send(Client, &bytes);
        let troubles = watch.troubles();
        assert!(
            matches!(troubles[..], [Trouble::Malformed(_)]),
            "{bytes:?}: {troubles:?}"
        );
        watch.send(Client, &headers(END, 11, GET));
        let seen = watch.take();
        assert!(
            seen.iter().any(|seen| matches!(seen, Seen::Request(11, _))),
            "{bytes:?}"
        );
    }
    let mut watch = Watch::on(Http2::new());
    watch.send(Client, b"PRI * HTTP/3.0\r\n\r\n");
    assert_eq!(watch.troubles(), [Trouble::Malformed("HTTP/2 preface")]);
}

#[test]
fn malformed_messages_are_shown_as_far_as_they_go() {
    let cases = [
        (Client, [GET, GET].concat()),
        (Client, [&literal(0, "a", "b"), GET].concat()),
        (Client, literal(0, ":method", "PUT")),
        (Server, literal(0, ":status", "20")),
        (Server, literal(0, "a", "b")),
    ];
    let mut malformed = 0;
    for (side, block) in cases {
        let mut watch = Watch::new();
        watch.send(Client, &headers(END, 1, GET)).take();
        let stream = if side == Client { 3 } else { 1 };
        watch.send(side, &headers(END, stream, &block));
        let seen = watch.take();
        malformed += usize::from(matches!(
            seen[0],
            Seen::Trouble(Some(_), _, _, Trouble::Malformed(_))
        ));
        assert!(matches!(seen.last(), Some(Seen::End(..))));
    }
    assert_eq!(malformed, 4, "all but a request that merely lacks its path");
}

#[test]
fn header_bombs_are_cut_off_and_the_table_stays_right() {
    let mut watch = Watch::new();
    let value = "x".repeat(100);
    let mut block = [GET, &literal(0x40, "bomb", &value)].concat();
    block.resize(60_000, 0xbe);
    let mut bytes = frame(kind::HEADERS, END, 1, &block[..16_000]);
    for part in block[16_000..].chunks(16_000) {
        bytes.extend(frame(kind::CONTINUATION, 0, 1, part));
    }
    let last = literal(0x40, "last", "one");
    bytes.extend(frame(kind::CONTINUATION, flag::END_HEADERS, 1, &last));
    watch.send(Client, &bytes);
    let seen = watch.take();
    let too_much = Trouble::TooMuch("decoded header fields", MAX_HEADER_LIST);
    assert_eq!(seen[0], Seen::Trouble(Some(1), Client, 33, too_much));
    let size: usize = request(&seen[1])
        .fields
        .iter()
        .map(|field| field.name.len() + 132)
        .sum();
    assert!(size <= MAX_HEADER_LIST);
    watch.send(Client, &headers(END, 3, &[GET, &[0xbe]].concat()));
    assert_eq!(request(&watch.take()[0]).fields, [field("last", "one")]);
}

#[test]
fn header_block_beyond_the_limit_is_not_held() {
    let mut watch = Watch::new();
    watch.send(Client, &frame(kind::HEADERS, END, 1, GET));
    let part = frame(kind::CONTINUATION, 0, 1, &[0x82; 16_000]);
    for _ in 0..100 {
        watch.send(Client, &part);
        let half = &watch.decoder.halves[0];
        let held = half.block.as_ref().map_or(0, |block| block.bytes.len());
        assert!(held + half.payload.len() <= MAX_HEADER_BLOCK + MAX_BESIDE_FRAGMENT);
    }
    watch.send(
        Client,
        &frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[]),
    );
    let too_much = Trouble::TooMuch("HTTP/2 header block", MAX_HEADER_BLOCK);
    assert_eq!(watch.troubles(), [too_much]);
    watch.send(Client, &headers(END, 3, &[GET, &[0xbe]].concat()));
    assert_eq!(request(&watch.take()[0]).unknown_fields, 1);
}

#[test]
fn streams_beyond_the_limit_are_given_up_the_quiet_ones_first() {
    let mut watch = Watch::new();
    for number in 0..MAX_STREAMS as u32 {
        watch.send(Client, &headers(0, 2 * number + 1, POST));
    }
    watch.send(Client, &data(0, 1, b"busy")).take();
    watch.send(Client, &headers(0, 2 * MAX_STREAMS as u32 + 1, POST));
    let seen = watch.take();
    assert!(matches!(
        seen[0],
        Seen::Trouble(Some(3), Client, _, Trouble::TooMuch(..))
    ));
    assert!(watch.decoder.shared.streams.len() <= MAX_STREAMS);
    watch.send(Client, &data(END, 1, b"still"));
    assert_eq!(
        watch.take(),
        [Seen::Body(1, Client, b"still".into()), Seen::End(1, Client)]
    );
}

#[test]
fn thousands_of_streams_are_forgotten_when_they_close() {
    let mut watch = Watch::new();
    for number in 0..10_000 {
        watch.send(Client, &headers(END, 2 * number + 1, GET));
        watch.send(Server, &headers(END, 2 * number + 1, OK));
        assert_eq!(watch.take().len(), 4);
    }
    assert_eq!(watch.decoder.shared.streams.len(), 0);
}

/// A valid or random frame.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let block = prop_oneof![
        Just(GET.to_vec()),
        Just(OK.to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
        prop::collection::vec(0xbe..0xc8u8, 0..8),
        "[a-z]{1,5}".prop_map(|name| literal(0x40, &name, &name)),
    ];
    prop_oneof![
        8 => (0..10u8, any::<u8>(), 0..20u32, block)
            .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload)),
        1 => prop::collection::vec(any::<u8>(), 0..64),
    ]
}

/// What one side sends: bytes, or that some are missing.
fn traffic() -> impl Strategy<Value = Vec<(bool, Vec<u8>, Option<u64>)>> {
    let gap = prop_oneof![9 => Just(None), 1 => (0..100u64).prop_map(Some)];
    prop::collection::vec((any::<bool>(), any_frame(), gap), 0..60)
}

/// What is held for one direction.
fn held(half: &Half) -> usize {
    let search = match &half.state {
        State::Lost(search) => search.held(),
        _ => 0,
    };
    search + half.payload.len() + half.block.as_ref().map_or(0, |block| block.bytes.len())
}

fn watch_pieces(
    decoder: Http2,
    traffic: &[(bool, Vec<u8>, Option<u64>)],
    piece: usize,
) -> Vec<Seen> {
    let mut watch = Watch::on(decoder);
    for (client, bytes, gap) in traffic {
        let side = if *client { Client } else { Server };
        for piece in bytes.chunks(piece) {
            watch.send(side, piece);
        }
        if let Some(gap) = gap {
            watch.gap(side, *gap);
        }
        for half in &watch.decoder.halves {
            assert!(held(half) <= 2 * MAX_WINDOW);
        }
        assert!(watch.decoder.shared.streams.len() <= MAX_STREAMS);
    }
    let seen = &mut watch.seen;
    watch.decoder.close(&mut |event| add(seen, event));
    watch.seen
}

proptest! {
    #[test]
    fn chunks_make_no_difference(traffic in traffic(), piece in 1..20usize, whole in any::<bool>()) {
        let begin = || if whole { Http2::new() } else { Http2::joined() };
        let mut traffic = traffic;
        if whole {
            traffic.insert(0, (true, PREFACE.to_vec(), None));
        }
        let at_once = watch_pieces(begin(), &traffic, usize::MAX);
        prop_assert_eq!(at_once, watch_pieces(begin(), &traffic, piece));
    }

    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..2000), Just(None)), 0..20),
        whole in any::<bool>(),
    ) {
        let begin = if whole { Http2::new() } else { Http2::joined() };
        watch_pieces(begin, &bytes, 700);
    }
}
