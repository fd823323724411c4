use events::Direction::{Read, Write};
use proptest::prelude::*;

use super::*;

/// What was told, in short.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    protocols: Vec<Protocol>,
    requests: usize,
    responses: usize,
    troubles: usize,
    raw: [Vec<u8>; 2],
    bodies: [Vec<u8>; 2],
}

impl Told {
    fn take(&mut self, event: ConversationEvent<'_>) {
        match event {
            ConversationEvent::Protocol(protocol, _) => self.protocols.push(protocol),
            ConversationEvent::Raw(direction, offset, bytes) => {
                let raw = &mut self.raw[direction.index()];
                assert_eq!(offset, raw.len() as u64);
                raw.extend(bytes);
            }
            ConversationEvent::RawMissing(direction, _, bytes) => {
                let raw = &mut self.raw[direction.index()];
                raw.resize(raw.len() + usize::try_from(bytes).unwrap(), 0);
            }
            ConversationEvent::Http(HttpEvent::Request(..)) => self.requests += 1,
            ConversationEvent::Http(HttpEvent::Response(..)) => self.responses += 1,
            ConversationEvent::Http(HttpEvent::Trouble(..)) => self.troubles += 1,
            ConversationEvent::Http(HttpEvent::Body(_, side, bytes)) => {
                self.bodies[side.index()].extend(bytes);
            }
            ConversationEvent::Http(_) => {}
        }
    }
}

fn hint(role: Option<Side>, alpn: &str, from_beginning: bool) -> Hint {
    Hint {
        role,
        alpn: (!alpn.is_empty()).then(|| alpn.as_bytes().to_vec()),
        from_beginning,
    }
}

fn talk(hint: Hint, calls: &[(Direction, &[u8])]) -> (Conversation, Told) {
    let mut conversation = Conversation::new(hint);
    let mut told = Told::default();
    let mut offsets = [0; 2];
    for (direction, bytes) in calls {
        let offset = &mut offsets[direction.index()];
        conversation.data(*direction, *offset, bytes, &mut |event| told.take(event));
        *offset += bytes.len() as u64;
    }
    (conversation, told)
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

#[test]
fn the_request_line_tells_who_is_the_client() {
    for (client, server, role) in [(Write, Read, Side::Client), (Read, Write, Side::Server)] {
        let calls = [
            (client, &REQUEST[..5]),
            (client, &REQUEST[5..]),
            (server, RESPONSE),
        ];
        for known in [None, Some(role)] {
            let (conversation, told) = talk(hint(known, "", true), &calls);
            assert_eq!(told.protocols, [Protocol::Http1]);
            assert_eq!((told.requests, told.responses, told.troubles), (1, 1, 0));
            assert_eq!(told.bodies[1], b"hi");
            assert_eq!(told.raw, [b"", b""]);
            assert_eq!(conversation.side(client), Some(Side::Client));
        }
    }
}

#[test]
fn other_protocols_stay_raw() {
    let greeting: &[u8] = b"220 mail.example.org ESMTP\r\n";
    for (alpn, calls) in [
        ("", &[(Read, greeting), (Write, b"EHLO a\r\n")][..]),
        (
            "",
            &[(Write, b"\x10\x0e\0\x04MQTT"), (Read, b"\x20\x02\0\0")],
        ),
        ("", &[(Write, b"GET key\r\n"), (Read, b"+OK\r\n")]),
        (
            "",
            &[
                (Write, b"OPTIONS rtsp://a/b RTSP/1.0\r\n"),
                (Read, b"RTSP/1.0 200 OK\r\n"),
            ],
        ),
        ("acme-tls/1", &[(Write, REQUEST), (Read, RESPONSE)]),
        (
            "http/1.1",
            &[(Write, b"\x16\x03\x01"), (Read, b"\x16\x03\x03")],
        ),
        ("h2", &[(Write, REQUEST), (Read, RESPONSE)]),
    ] {
        for role in [None, Some(Side::Client)] {
            let (_, told) = talk(hint(role, alpn, true), calls);
            let sent = |direction| -> Vec<u8> {
                let calls = calls.iter().filter(|call| call.0 == direction);
                calls.flat_map(|call| call.1).copied().collect()
            };
            assert_eq!(told.protocols, [Protocol::Other], "{alpn} {calls:?}");
            assert_eq!(told.raw, [sent(Write), sent(Read)]);
            assert_eq!(told.requests + told.responses + told.troubles, 0);
        }
    }
}

#[test]
fn a_server_that_sends_requests_is_not_http() {
    let (_, told) = talk(hint(Some(Side::Client), "", true), &[(Read, REQUEST)]);
    assert_eq!(told.protocols, [Protocol::Other]);
}

#[test]
fn in_the_middle_bytes_are_raw_until_a_message_begins() {
    let calls = [
        (Read, &b"rest of a body"[..]),
        (Write, REQUEST),
        (Read, RESPONSE),
    ];
    let (_, told) = talk(hint(None, "", false), &calls);
    assert_eq!(told.protocols, [Protocol::Http1]);
    assert_eq!(told.raw[1], b"rest of a body");
    assert_eq!((told.requests, told.responses, told.troubles), (1, 1, 0));
    let (_, told) = talk(hint(Some(Side::Client), "http/1.1", false), &calls);
    assert_eq!(told.protocols, [Protocol::Http1]);
    assert_eq!((told.requests, told.responses, told.troubles), (1, 1, 1));
}

#[test]
fn waiting_for_a_message_in_the_middle_ends() {
    let body = vec![b'x'; 16 << 10];
    let calls = vec![(Read, &body[..]); 80];
    let (_, told) = talk(hint(None, "", false), &calls);
    assert_eq!(told.protocols, [Protocol::Other]);
    assert_eq!(told.raw[1].len(), 80 * body.len());
}

#[test]
fn what_was_lost_at_the_beginning_is_a_connection_seen_in_the_middle() {
    let mut conversation = Conversation::new(hint(None, "", true));
    let mut told = Told::default();
    let sink: &mut ConversationSink<'_> = &mut |event| told.take(event);
    conversation.missing(Write, 0, 10, Cause::Lost, sink);
    conversation.data(Write, 10, REQUEST, sink);
    conversation.data(Read, 0, RESPONSE, sink);
    assert_eq!(told.protocols, [Protocol::Http1]);
    assert_eq!((told.requests, told.responses), (1, 1));
}

#[test]
fn a_server_may_send_its_settings_first() {
    let settings: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
    let mut conversation = Conversation::new(hint(None, "", true));
    let mut told = Told::default();
    conversation.data(Read, 0, settings, &mut |event| told.take(event));
    assert_eq!(conversation.protocol(), None);
    assert_eq!(told, Told::default());
    conversation.data(Write, 0, b"EHLO a\r\n", &mut |event| told.take(event));
    assert_eq!(conversation.protocol(), Some(Protocol::Other));
    assert_eq!(told.raw, [&b"EHLO a\r\n"[..], settings]);
}

#[test]
fn settings_of_a_server_that_agreed_on_http2_decide() {
    let settings: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
    let decided = |role, alpn, direction| {
        let (mut conversation, mut told) = talk(hint(role, alpn, true), &[(direction, settings)]);
        let decided = conversation.protocol();
        // Nobody reads the preface any more.
        conversation.close(&mut |event| told.take(event));
        assert_eq!(told.raw.concat().is_empty(), decided.is_some());
        decided
    };
    let http2 = Some(Protocol::Http2);
    assert_eq!(decided(Some(Side::Server), "h2", Write), http2);
    assert_eq!(decided(Some(Side::Client), "h2", Read), http2);
    assert_eq!(decided(Some(Side::Server), "", Write), None);
    assert_eq!(decided(None, "h2", Write), None);
    // What they look like to whom only a client could have sent them.
    let other = talk(hint(Some(Side::Client), "h2", true), &[(Write, settings)]);
    assert_eq!(other.0.protocol(), Some(Protocol::Other));
}

#[test]
fn what_is_held_is_bounded() {
    let mut conversation = Conversation::new(hint(None, "", true));
    let mut told = Told::default();
    let sink: &mut ConversationSink<'_> = &mut |event| told.take(event);
    conversation.data(Write, 0, b"GET /", sink);
    let mut offset = 5;
    for _ in 0..100 {
        conversation.data(Write, offset, &[b'a'; 1000], sink);
        offset += 1000;
        assert!(conversation.held() <= UNDECIDED_MAX);
    }
    assert_eq!(told.protocols, [Protocol::Other]);
    assert_eq!(told.raw[0].len() as u64, offset);
}

proptest! {
    /// Whatever comes is either decoded or handed on raw, and one protocol is named at most.
    #[test]
    fn arbitrary_bytes_do_no_harm(
        role in prop_oneof![Just(None), Just(Some(Side::Client)), Just(Some(Side::Server))],
        alpn in prop_oneof![Just(""), Just("h2"), Just("http/1.1"), Just("x")],
        from_beginning: bool,
        calls in prop::collection::vec(
            (any::<bool>(), prop_oneof![
                prop::collection::vec(any::<u8>(), 1..40),
                (0..REQUEST.len()).prop_map(|at| REQUEST[at..].to_vec()),
                (0..RESPONSE.len()).prop_map(|at| RESPONSE[at..].to_vec()),
                Just(PREFACE.to_vec()),
            ]),
            0..20,
        ),
    ) {
        let calls: Vec<_> = calls
            .iter()
            .map(|(write, bytes)| (if *write { Write } else { Read }, &bytes[..]))
            .collect();
        let (mut conversation, mut told) = talk(hint(role, alpn, from_beginning), &calls);
        conversation.close(&mut |event| told.take(event));
        prop_assert!(told.protocols.len() <= 1);
        if told.protocols == [Protocol::Other] {
            let sent: usize = calls.iter().map(|call| call.1.len()).sum();
            prop_assert_eq!(told.raw[0].len() + told.raw[1].len(), sent);
        }
    }
}
