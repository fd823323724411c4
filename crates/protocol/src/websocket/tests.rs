use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use super::*;

/// An event that owns its bytes.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Message(Side, MessageKind, Vec<u8>, Option<u64>, u64),
    Control(Side, u8, Option<u16>, Vec<u8>),
    Trouble(Side, Trouble),
}

fn collect(seen: &mut Vec<Seen>, event: WebSocketEvent<'_>) {
    seen.push(match event {
        WebSocketEvent::Message(side, message) => {
            let payload = message.payload.to_vec();
            Seen::Message(
                side,
                message.kind,
                payload,
                message.length,
                message.missing.bytes,
            )
        }
        WebSocketEvent::Ping(side, data) => Seen::Control(side, opcode::PING, None, data.to_vec()),
        WebSocketEvent::Pong(side, data) => Seen::Control(side, opcode::PONG, None, data.to_vec()),
        WebSocketEvent::Close(side, code, reason) => {
            Seen::Control(side, opcode::CLOSE, code, reason.to_vec())
        }
        WebSocketEvent::Trouble(side, _, why) => Seen::Trouble(side, why),
    });
}

fn decode(extensions: &str, side: Side, calls: &[&[u8]]) -> Vec<Seen> {
    let mut decoder = WebSocket::new(extensions.as_bytes());
    let mut seen = Vec::new();
    for bytes in calls {
        decoder.data(side, bytes, &mut |event| collect(&mut seen, event));
    }
    decoder.close(&mut |event| collect(&mut seen, event));
    seen
}

fn text(side: Side, payload: &[u8]) -> Seen {
    let length = Some(payload.len() as u64);
    Seen::Message(side, MessageKind::Text, payload.to_vec(), length, 0)
}

fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(masked | length as u8),
        length @ 126..0x10000 => {
            bytes.push(masked | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(masked | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    bytes.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    bytes
}

/// Compresses a message like a sender (RFC 7692 section 7.2.1).
fn deflate(compress: &mut Compress, payload: &[u8]) -> Vec<u8> {
    let mut output = Vec::with_capacity(2 * payload.len() + 1000);
    compress
        .compress_vec(payload, &mut output, FlushCompress::Sync)
        .unwrap();
    assert!(output.ends_with(&[0, 0, 0xff, 0xff]));
    output.truncate(output.len() - 4);
    output
}

/// RFC 6455 section 5.7.
#[test]
fn the_rfcs_examples() {
    let masked = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    assert_eq!(
        decode("", Side::Client, &[masked]),
        [text(Side::Client, b"Hello")]
    );
    let fragments: [&[u8]; 3] = [b"\x01\x03Hel", b"\x89\x05Hello", b"\x80\x02lo"];
    let ping = Seen::Control(Side::Server, opcode::PING, None, b"Hello".to_vec());
    assert_eq!(
        decode("", Side::Server, &fragments),
        [ping, text(Side::Server, b"Hello")]
    );
}

/// RFC 7692 section 7.2.3.
#[test]
fn the_rfcs_compressed_examples() {
    let one = b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00";
    let again = b"\xc1\x05\xf2\x00\x11\x00\x00";
    let fragments = b"\x41\x03\xf2\x48\xcd\x80\x04\xc9\xc9\x07\x00";
    let stored = b"\xc1\x0b\x00\x05\x00\xfa\xffHello\x00";
    let hello = text(Side::Server, b"Hello");
    for calls in [&[&one[..], again][..], &[fragments], &[stored]] {
        let seen = decode("permessage-deflate", Side::Server, calls);
        assert_eq!(seen, vec![hello.clone(); calls.len()]);
    }
    // A final block.
    let last = b"\xc1\x08\xf3\x48\xcd\xc9\xc9\x07\x00\x00";
    assert_eq!(decode("permessage-deflate", Side::Server, &[last]), [hello]);
}

#[test]
fn what_stands_before_a_mistake_of_compression_is_shown_however_it_is_cut() {
    let wrong = b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\xff\xc0\x05\xf2\x00\x11\x00\x00";
    let whole = decode("permessage-deflate", Side::Client, &[wrong]);
    let held = |seen: &Seen| matches!(seen, Seen::Message(_, _, held, None, _) if held == b"Hello");
    assert!(whole.iter().any(held), "{whole:?}");
    for length in 1..wrong.len() {
        let calls: Vec<_> = wrong.chunks(length).collect();
        assert_eq!(decode("permessage-deflate", Side::Client, &calls), whole);
    }
}

#[test]
fn a_close_has_a_code_and_a_reason() {
    let closing = frame(0x88, b"\x03\xe8bye", None);
    assert_eq!(
        decode("", Side::Server, &[&closing]),
        [Seen::Control(
            Side::Server,
            opcode::CLOSE,
            Some(1000),
            b"bye".to_vec()
        )]
    );
}

#[test]
fn long_messages_are_cut_and_counted() {
    let payload = vec![b'x'; MESSAGE_MAX + 5];
    let long = frame(0x82, &payload, Some([1, 2, 3, 4]));
    let seen = decode("", Side::Client, &[&long]);
    let [Seen::Message(_, MessageKind::Binary, held, length, 0)] = &seen[..] else {
        panic!("{} events", seen.len())
    };
    assert_eq!(held[..], payload[..MESSAGE_MAX]);
    assert_eq!(*length, Some(payload.len() as u64));
}

#[test]
fn bombs_are_given_up() {
    let mut compress = Compress::new(Compression::best(), false);
    let bomb = deflate(&mut compress, &vec![0; INFLATED_MAX + 1]);
    let bomb = frame(0xc2, &bomb, None);
    let seen = decode("permessage-deflate", Side::Server, &[&bomb]);
    assert!(matches!(seen[0], Seen::Trouble(_, Trouble::TooMuch(..))));
    assert!(matches!(&seen[1], Seen::Message(_, _, held, None, _) if held.len() == MESSAGE_MAX));
}

#[test]
fn what_is_no_frame_stops_that_side() {
    for wrong in [
        &b"\x91\x00"[..],
        b"\xc1\x00",
        b"\x80\x00",
        b"\x83\x00",
        b"\x09\x00",
        b"\x89\x7e\x00\x80",
        b"\x82\x7f\x80\0\0\0\0\0\0\0",
        b"\x01\x00\x81\x00",
    ] {
        let mut bytes = wrong.to_vec();
        bytes.extend(frame(0x81, b"behind", None));
        let seen = decode("", Side::Server, &[&bytes]);
        assert!(
            matches!(seen.last(), Some(Seen::Trouble(_, Trouble::Malformed(_)))),
            "{wrong:?}"
        );
        assert!(!seen.contains(&text(Side::Server, b"behind")));
    }
}

#[test]
fn why_payload_is_missing_is_said_of_its_message() {
    let mut decoder = WebSocket::new(b"");
    let mut missing = Vec::new();
    let sink: &mut WebSocketSink<'_> = &mut |event| match event {
        WebSocketEvent::Message(_, message) => missing.push(message.missing),
        event => panic!("{event:?}"),
    };
    decoder.data(Side::Server, b"\x82\x0aab", sink);
    decoder.missing(Side::Server, 3, Cause::LeftOut, sink);
    decoder.missing(Side::Server, 5, Cause::Lost, sink);
    assert_eq!(missing.len(), 1);
    assert_eq!((missing[0].left_out, missing[0].lost()), (3, 5));
}

#[test]
fn missing_payload_is_counted() {
    let whole = frame(0x81, b"Hello, world", Some([9, 8, 7, 6]));
    let next = frame(0x81, b"next", Some([9, 8, 7, 5]));
    let mut decoder = WebSocket::new(b"");
    let mut seen = Vec::new();
    let sink: &mut WebSocketSink<'_> = &mut |event| collect(&mut seen, event);
    decoder.data(Side::Client, &whole[..8], sink);
    decoder.missing(Side::Client, 3, Cause::Lost, sink);
    decoder.data(Side::Client, &whole[11..], sink);
    decoder.data(Side::Client, &next, sink);
    decoder.missing(Side::Client, 1, Cause::Lost, sink);
    decoder.data(Side::Client, &next, sink);
    assert_eq!(
        seen,
        [
            Seen::Message(Side::Client, MessageKind::Text, b"He".to_vec(), Some(12), 3),
            text(Side::Client, b"next"),
            Seen::Trouble(Side::Client, Trouble::Gap { bytes: 1 }),
        ]
    );
}

#[test]
fn lengths_beyond_all_counting_do_no_harm() {
    let mut decoder = WebSocket::new(b"");
    let mut seen = Vec::new();
    let sink: &mut WebSocketSink<'_> = &mut |event| collect(&mut seen, event);
    for first in [1, 0, 0, 0x80] {
        decoder.data(
            Side::Server,
            &[first, 127, 0x7f, 255, 255, 255, 255, 255, 255, 255],
            sink,
        );
        decoder.missing(Side::Server, u64::MAX >> 1, Cause::Lost, sink);
    }
    decoder.missing(Side::Server, u64::MAX, Cause::Lost, sink);
    assert_eq!(seen.len(), 2);
    assert!(matches!(seen[0], Seen::Message(.., u64::MAX)));
}

/// Behind a gap, messages that refer to what was lost are not shown.
#[test]
fn a_gap_in_a_compressed_message_spoils_the_context() {
    for (extensions, recovers) in [
        ("permessage-deflate", false),
        ("permessage-deflate; server_no_context_takeover", true),
    ] {
        let mut compress = Compress::new(Compression::default(), false);
        let first = frame(0xc1, &deflate(&mut compress, b"the quick brown fox"), None);
        if recovers {
            compress.reset();
        }
        let second = frame(0xc1, &deflate(&mut compress, b"the quick brown fox"), None);
        let mut decoder = WebSocket::new(extensions.as_bytes());
        let mut seen = Vec::new();
        let sink: &mut WebSocketSink<'_> = &mut |event| collect(&mut seen, event);
        decoder.data(Side::Server, &first[..6], sink);
        decoder.missing(Side::Server, 2, Cause::Lost, sink);
        decoder.data(Side::Server, &first[8..], sink);
        decoder.data(Side::Server, &second, sink);
        assert_eq!(
            seen[0],
            Seen::Trouble(Side::Server, Trouble::Gap { bytes: 2 })
        );
        let expected = match recovers {
            true => text(Side::Server, b"the quick brown fox"),
            false => Seen::Message(Side::Server, MessageKind::Text, Vec::new(), None, 0),
        };
        assert_eq!(seen[2], expected);
        assert_eq!(seen.len(), 3);
    }
}

/// A message to be: text, payload, compressed, mask, bytes of a fragment.
type Plan = (bool, Vec<u8>, bool, Option<[u8; 4]>, usize);

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        prop::collection::vec(b'a'..b'd', 0..3000),
        (0_usize..80_000).prop_map(|length| vec![b'z'; length]),
    ];
    let plan = (
        any::<bool>(),
        payload,
        any::<bool>(),
        any::<Option<[u8; 4]>>(),
        1_usize..5000,
    );
    prop::collection::vec(plan, 1..6)
}

fn write(plans: &[Plan], takeover: bool) -> Vec<u8> {
    let mut compress = Compress::new(Compression::default(), false);
    let mut bytes = Vec::new();
    for (is_text, payload, compressed, mask, fragment) in plans {
        if !takeover {
            compress.reset();
        }
        let sent = match compressed {
            true => deflate(&mut compress, payload),
            false => payload.clone(),
        };
        let count = sent.len().div_ceil(*fragment).max(1);
        for number in 0..count {
            let part = &sent[number * fragment..sent.len().min((number + 1) * fragment)];
            let opcode = match (number, is_text) {
                (0, true) => opcode::TEXT,
                (0, false) => opcode::BINARY,
                _ => opcode::CONTINUATION,
            };
            let last = if number + 1 == count { 0x80 } else { 0 };
            let rsv1 = if *compressed && number == 0 { 0x40 } else { 0 };
            bytes.extend(frame(last | rsv1 | opcode, part, *mask));
            if last == 0 && number < 3 {
                bytes.extend(frame(0x89, b"between", *mask));
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_sent_is_decoded(plans in plans(), takeover: bool, call in 1_usize..3000) {
        let bytes = write(&plans, takeover);
        let extensions = match takeover {
            true => "permessage-deflate",
            false => "permessage-deflate; client_no_context_takeover",
        };
        let calls: Vec<_> = bytes.chunks(call).collect();
        let mut seen = decode(extensions, Side::Client, &calls);
        seen.retain(|event| !matches!(event, Seen::Control(..)));
        let truth: Vec<_> = plans
            .iter()
            .map(|(is_text, payload, ..)| {
                let kind = if *is_text { MessageKind::Text } else { MessageKind::Binary };
                Seen::Message(Side::Client, kind, payload.clone(), Some(payload.len() as u64), 0)
            })
            .collect();
        prop_assert_eq!(seen, truth);
    }

    #[test]
    fn gaps_never_mislead(plans in plans(), begin: prop::sample::Index, length in 1_usize..4000) {
        let bytes = write(&plans, true);
        let begin = begin.index(bytes.len());
        let end = bytes.len().min(begin + length);
        let mut decoder = WebSocket::new(b"permessage-deflate");
        let mut seen = Vec::new();
        let sink: &mut WebSocketSink<'_> = &mut |event| collect(&mut seen, event);
        decoder.data(Side::Client, &bytes[..begin], sink);
        decoder.missing(Side::Client, (end - begin) as u64, Cause::Lost, sink);
        decoder.data(Side::Client, &bytes[end..], sink);
        decoder.close(sink);
        let messages = seen.iter().filter(|event| matches!(event, Seen::Message(..)));
        for (event, (is_text, payload, ..)) in messages.zip(&plans) {
            let Seen::Message(_, kind, shown, length, missing) = event else {
                continue;
            };
            prop_assert_eq!(*kind == MessageKind::Text, *is_text);
            prop_assert!(payload.starts_with(shown));
            prop_assert!(length.is_none_or(|length| length == payload.len() as u64));
            prop_assert!(shown == payload || length.is_none() || *missing > 0);
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        calls in prop::collection::vec((any::<bool>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
    ) {
        let mut decoder = WebSocket::new(b"permessage-deflate");
        for (client, gap, bytes) in calls {
            let side = if client { Side::Client } else { Side::Server };
            if gap {
                decoder.missing(side, bytes.len() as u64, Cause::Lost, &mut |_| {});
            } else {
                decoder.data(side, &bytes, &mut |_| {});
            }
        }
        decoder.close(&mut |_| {});
    }

    #[test]
    fn changed_bytes_do_no_harm(
        plans in plans(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..10),
    ) {
        let mut bytes = write(&plans, true);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        decode("permessage-deflate", Side::Client, &[&bytes]);
    }
}
