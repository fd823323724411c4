use proptest::prelude::*;

use super::*;
use crate::event::{Field, RequestHead, ResponseHead, Version};

mod model;

use model::{Conversation, Plan, Play};

/// An event that owns its bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Seen {
    Request(StreamId, RequestHead),
    Response(StreamId, ResponseHead),
    Body(StreamId, Side, Vec<u8>),
    Missing(StreamId, Side, u64),
    Trailers(StreamId, Side, Vec<Field>),
    End(StreamId, Side),
    Switched(StreamId, Vec<u8>),
    Trouble(Option<StreamId>, Side, u64, Trouble),
}

/// Collects events; neighbouring bytes of a body become one event.
pub(super) fn collect(seen: &mut Vec<Seen>, event: HttpEvent<'_>) {
    let event = match event {
        HttpEvent::Request(id, head) => Seen::Request(id, head),
        HttpEvent::Response(id, head) => Seen::Response(id, head),
        HttpEvent::Body(id, side, bytes) => {
            if let Some(Seen::Body(last, from, body)) = seen.last_mut()
                && (*last, *from) == (id, side)
            {
                return body.extend(bytes);
            }
            Seen::Body(id, side, bytes.to_vec())
        }
        HttpEvent::Missing(id, side, bytes, _) => Seen::Missing(id, side, bytes),
        HttpEvent::Trailers(id, side, fields) => Seen::Trailers(id, side, fields),
        HttpEvent::End(id, side) => Seen::End(id, side),
        HttpEvent::Switched(id, protocol) => Seen::Switched(id, protocol),
        HttpEvent::Trouble(id, side, offset, why) => Seen::Trouble(id, side, offset, why),
        HttpEvent::Reset(..) => panic!("HTTP/1 has no resets"),
    };
    seen.push(event);
}

/// Decodes what both sides say in turn.
fn decode(turns: &[(Side, &[u8])]) -> Vec<Seen> {
    decode_by(&mut Http1::new(true), turns)
}

fn decode_by(decoder: &mut Http1, turns: &[(Side, &[u8])]) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut offsets = [0; 2];
    for (side, bytes) in turns {
        let offset = &mut offsets[side.index()];
        decoder.data(*side, *offset, bytes, &mut |event| {
            collect(&mut seen, event)
        });
        *offset += bytes.len() as u64;
    }
    decoder.close(&mut |event| collect(&mut seen, event));
    seen
}

/// One line for each event.
fn summary(seen: &[Seen]) -> Vec<String> {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let known = |bytes: &Option<Vec<u8>>| bytes.as_deref().map(text).unwrap_or_default();
    let line = |event: &Seen| match event {
        Seen::Request(id, head) => {
            format!("{} {} {}", id.0, known(&head.method), known(&head.target))
        }
        Seen::Response(id, head) => {
            let status = head.status.unwrap_or_default();
            format!("{} {status} {}", id.0, text(&head.reason))
                .trim_end()
                .to_string()
        }
        Seen::Body(id, side, bytes) => format!("{} {side:?} {}", id.0, text(bytes)),
        Seen::Missing(id, side, bytes) => format!("{} {side:?} misses {bytes}", id.0),
        Seen::Trailers(id, side, fields) => format!("{} {side:?} {} trailers", id.0, fields.len()),
        Seen::End(id, side) => format!("{} {side:?} ends", id.0),
        Seen::Switched(id, protocol) => format!("{} switches to {}", id.0, text(protocol)),
        Seen::Trouble(Some(id), side, offset, why) => {
            format!("{} {side:?} at {offset}: {why}", id.0)
        }
        Seen::Trouble(None, side, offset, why) => format!("{side:?} at {offset}: {why}"),
    };
    seen.iter().map(line).collect()
}

const CURL: &[u8] =
    b"GET /a?b HTTP/1.1\r\nHost: example.org\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n";
const CADDY: &[u8] =
    b"HTTP/1.1 200 OK\r\nAlt-Svc: h3=\":443\"; ma=2592000\r\nContent-Length: 5\r\n\
    Content-Type: text/plain; charset=utf-8\r\nServer: Caddy\r\n\r\nhello";

#[test]
fn curl_and_caddy() {
    let seen = decode(&[(Side::Client, CURL), (Side::Server, CADDY)]);
    assert_eq!(
        summary(&seen),
        [
            "1 GET /a?b",
            "1 Client ends",
            "1 200 OK",
            "1 Server hello",
            "1 Server ends"
        ]
    );
    let Seen::Request(_, head) = &seen[0] else {
        panic!("no request")
    };
    assert_eq!(head.authority.as_deref(), Some(&b"example.org"[..]));
    assert_eq!(head.version, Version::Http11);
    assert_eq!(head.wire_length, CURL.len() as u64);
    assert_eq!(head.fields.len(), 3);
}

#[test]
fn continue_and_early_hints_precede_the_response() {
    let seen = decode(&[
        (Side::Client, b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"),
        (Side::Server, b"HTTP/1.1 100 Continue\r\n\r\n"),
        (Side::Client, b"ab"),
        (Side::Server, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"),
    ]);
    assert_eq!(
        summary(&seen),
        [
            "1 POST /",
            "1 100 Continue",
            "1 Client ab",
            "1 Client ends",
            "1 103 Early Hints",
            "1 201 Created",
            "1 Server ends"
        ]
    );
}

#[test]
fn a_body_may_last_until_the_connection_ends() {
    let seen = decode(&[
        (Side::Client, b"GET / HTTP/1.0\r\n\r\n"),
        (Side::Server, b"HTTP/1.0 200 OK\r\n\r\na"),
        (Side::Server, b"HTTP/1.1 200 OK\r\n\r\n"),
    ]);
    assert_eq!(
        summary(&seen)[2..],
        [
            "1 200 OK",
            "1 Server aHTTP/1.1 200 OK\\r\\n\\r\\n",
            "1 Server ends"
        ]
    );
}

#[test]
fn line_feeds_alone_and_empty_lines_are_tolerated() {
    let seen = decode(&[
        (Side::Client, b"\r\n\nGET / HTTP/1.1\nHost: a\n\n"),
        (Side::Server, b"HTTP/1.1 200\nContent-Length: 1\n\nx"),
    ]);
    assert_eq!(
        summary(&seen),
        [
            "1 GET /",
            "1 Client ends",
            "1 200",
            "1 Server x",
            "1 Server ends"
        ]
    );
}

const UPGRADE: &[u8] =
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[test]
fn behind_an_upgrade_everything_is_opaque() {
    let seen = decode(&[
        (Side::Client, UPGRADE),
        (Side::Client, b"\x81\x80mask"),
        (
            Side::Server,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x01a",
        ),
        (Side::Client, b"GET / HTTP/1.1\r\n\r\n"),
    ]);
    assert_eq!(
        summary(&seen),
        [
            "1 GET /ws",
            "1 101 Switching Protocols",
            "1 switches to websocket",
            "1 Client \\x81\\x80mask",
            "1 Server \\x81\\x01a",
            "1 Client GET / HTTP/1.1\\r\\n\\r\\n",
            "1 Client ends",
            "1 Server ends"
        ]
    );
}

#[test]
fn a_refused_upgrade_is_a_request_like_others() {
    let seen = decode(&[
        (Side::Client, UPGRADE),
        (Side::Client, b"GET /next HTTP/1.1\r\n\r\n"),
        (
            Side::Server,
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        ),
        (Side::Server, b"HTTP/1.1 204 No Content\r\n\r\n"),
    ]);
    assert_eq!(
        summary(&seen),
        [
            "1 GET /ws",
            "1 404 Not Found",
            "1 Client ends",
            "2 GET /next",
            "2 Client ends",
            "1 Server ends",
            "2 204 No Content",
            "2 Server ends"
        ]
    );
}

#[test]
fn connect_opens_a_tunnel() {
    let seen = decode(&[
        (
            Side::Client,
            b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n\x16\x03\x01",
        ),
        (
            Side::Server,
            b"HTTP/1.1 200 Connection established\r\nContent-Length: 3\r\n\r\n\x16\x03\x03",
        ),
    ]);
    assert_eq!(
        summary(&seen)[1..],
        [
            "1 200 Connection established",
            "1 switches to CONNECT",
            "1 Client \\x16\\x03\\x01",
            "1 Server \\x16\\x03\\x03",
            "1 Client ends",
            "1 Server ends"
        ]
    );
}

#[test]
fn smuggling_is_reported() {
    let seen = decode(&[(
        Side::Client,
        b"POST / HTTP/1.1\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    )]);
    assert_eq!(
        summary(&seen),
        [
            "1 POST /",
            "1 Client at 0: malformed: both Transfer-Encoding and Content-Length",
            "1 Client ends",
            "Client at 72: malformed: the connection ended within a message"
        ]
    );
    let seen = decode(&[(
        Side::Client,
        b"POST / HTTP/1.1\r\nContent-Length: 6\r\nContent-Length: 7\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    )]);
    assert_eq!(
        summary(&seen),
        [
            "1 POST /",
            "1 Client at 0: malformed: conflicting Content-Length"
        ]
    );
}

#[test]
fn a_response_to_an_unseen_request_is_nobodys() {
    let mut decoder = Http1::new(false);
    let seen = decode_by(
        &mut decoder,
        &[
            (
                Side::Server,
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            ),
            (Side::Client, CURL),
            (Side::Server, CADDY),
        ],
    );
    assert_eq!(
        summary(&seen),
        [
            "1 200 OK",
            "1 Server at 0: the connection was first seen in the middle",
            "1 Server x",
            "1 Server ends",
            "2 GET /a?b",
            "2 Client ends",
            "2 200 OK",
            "2 Server hello",
            "2 Server ends"
        ]
    );
}

#[test]
fn the_rest_of_an_unseen_response_is_skipped() {
    let mut decoder = Http1::new(false);
    let seen = decode_by(
        &mut decoder,
        &[
            (Side::Server, b"rest of a body"),
            (Side::Server, b"more HTTP/1.1 200 OK\r\n\r\n"),
            (Side::Client, CURL),
            (Side::Server, CADDY),
        ],
    );
    assert_eq!(
        summary(&seen),
        [
            "Server at 0: the connection was first seen in the middle",
            "1 GET /a?b",
            "1 Client ends",
            "1 200 OK",
            "1 Server hello",
            "1 Server ends"
        ]
    );
}

#[test]
fn an_unseen_head_request_does_not_swallow_the_next_response() {
    let mut decoder = Http1::new(false);
    let seen = decode_by(
        &mut decoder,
        &[
            (
                Side::Server,
                b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            ),
            (Side::Client, CURL),
            (Side::Server, CADDY),
            (Side::Client, CURL),
            (Side::Server, CADDY),
        ],
    );
    let lines = summary(&seen);
    assert_eq!(
        lines[3],
        "2 Client at 0: the connection was first seen in the middle"
    );
    assert_eq!(lines[lines.len() - 5..][0], "4 GET /a?b");
    assert_eq!(
        lines[lines.len() - 3..],
        ["4 200 OK", "4 Server hello", "4 Server ends"]
    );
}

/// The response to the first request may be the one to what was lost.
#[test]
fn a_second_request_behind_a_loss_does_not_speak_of_the_middle() {
    let mut decoder = Http1::behind_gap();
    let seen = decode_by(&mut decoder, &[(Side::Client, CURL), (Side::Client, CURL)]);
    assert_eq!(
        summary(&seen),
        [
            "1 GET /a?b",
            "1 Client ends",
            "1 Client at 78: it is not certain which response belongs to which request",
            "2 GET /a?b",
            "2 Client at 78: it is not certain which response belongs to which request",
            "2 Client ends",
        ]
    );
}

#[test]
fn missing_bytes_of_a_known_length_are_counted() {
    let mut decoder = Http1::new(true);
    let mut seen = Vec::new();
    let sink: &mut HttpSink<'_> = &mut |event| collect(&mut seen, event);
    decoder.data(Side::Client, 0, CURL, sink);
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab";
    decoder.data(Side::Server, 0, head, sink);
    decoder.gap(Side::Server, head.len() as u64, 5, sink);
    decoder.data(Side::Server, head.len() as u64 + 5, b"cde", sink);
    assert_eq!(
        summary(&seen)[3..],
        [
            "1 Server ab",
            "1 Server misses 5",
            "1 Server cde",
            "1 Server ends"
        ]
    );
}

/// What a lost record in a download costs: that download, and nothing behind it.
#[test]
fn a_gap_in_a_chunked_response_spares_the_next_exchange() {
    let mut decoder = Http1::new(true);
    let mut seen = Vec::new();
    let sink: &mut HttpSink<'_> = &mut |event| collect(&mut seen, event);
    decoder.data(Side::Client, 0, CURL, sink);
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab";
    decoder.data(Side::Server, 0, head, sink);
    decoder.gap(Side::Server, 100, 20, sink);
    decoder.data(Side::Server, 120, b"5\r\nhello\r\n", sink);
    decoder.gap(Side::Server, 130, 20, sink);
    decoder.data(Side::Server, 150, b"0\r\n\r\n", sink);
    decoder.data(Side::Client, CURL.len() as u64, CURL, sink);
    decoder.data(Side::Server, 155, CADDY, sink);
    assert_eq!(
        summary(&seen)[3..],
        [
            "1 Server ab",
            "1 Server at 100: 20 bytes are missing",
            "Server at 130: 20 bytes are missing",
            "2 GET /a?b",
            "2 Client ends",
            "2 200 OK",
            "2 Server hello",
            "2 Server ends"
        ]
    );
}

/// What is missing of requests is not missing from the response behind it.
#[test]
fn a_request_that_was_lost_is_missing_from_the_client() {
    let mut decoder = Http1::new(true);
    let mut seen = Vec::new();
    let sink: &mut HttpSink<'_> = &mut |event| collect(&mut seen, event);
    decoder.data(Side::Client, 0, &CURL[..20], sink);
    decoder.gap(Side::Client, 20, 30, sink);
    decoder.gap(Side::Client, 50, 22, sink);
    for turn in 0..2 {
        decoder.data(Side::Server, turn * CADDY.len() as u64, CADDY, sink);
    }
    let unpaired = "it is not certain which response belongs to which request";
    assert_eq!(
        summary(&seen),
        [
            "Client at 20: 30 bytes are missing",
            "Client at 50: 22 bytes are missing",
            "1 200 OK",
            &format!("1 Server at 0: {unpaired}"),
            "1 Client at 20: 52 bytes are missing",
            "1 Server hello",
            "1 Server ends",
            "2 200 OK",
            &format!("2 Server at {}: {unpaired}", CADDY.len()),
            "2 Server hello",
            "2 Server ends",
        ]
    );
}

/// That a request was lost is known when the next one comes.
#[test]
fn a_response_to_a_lost_request_is_not_malformed() {
    let mut decoder = Http1::new(true);
    let mut seen = Vec::new();
    let sink: &mut HttpSink<'_> = &mut |event| collect(&mut seen, event);
    decoder.data(Side::Server, 0, CADDY, sink);
    decoder.gap(Side::Client, 0, CURL.len() as u64, sink);
    decoder.data(Side::Client, CURL.len() as u64, CURL, sink);
    let lines = summary(&seen);
    assert_eq!(
        lines[1],
        "1 Server at 0: it is not certain which response belongs to which request"
    );
    assert!(lines.iter().all(|line| !line.contains("malformed")));
}

/// A lost response that is noticed only when the next one comes.
#[test]
fn a_response_behind_a_gap_is_not_paired_by_guess() {
    let mut decoder = Http1::new(true);
    let mut seen = Vec::new();
    let sink: &mut HttpSink<'_> = &mut |event| collect(&mut seen, event);
    for offset in 0..2 {
        decoder.data(Side::Client, offset * CURL.len() as u64, CURL, sink);
    }
    decoder.gap(Side::Server, 0, CADDY.len() as u64, sink);
    decoder.data(Side::Server, CADDY.len() as u64, CADDY, sink);
    for turn in 2..4 {
        decoder.data(Side::Client, turn * CURL.len() as u64, CURL, sink);
        decoder.data(Side::Server, turn * CADDY.len() as u64, CADDY, sink);
    }
    let lines = summary(&seen);
    assert_eq!(
        lines[4],
        "1 Server at 0: 143 bytes are missing".replace("143", &CADDY.len().to_string())
    );
    assert!(lines[5].starts_with("2 Server at 0"));
    assert_eq!(lines[6], "3 200 OK");
    assert_eq!(lines[lines.len() - 5..][0], "5 GET /a?b");
    assert_eq!(lines[lines.len() - 1], "5 Server ends");
}

#[test]
fn endless_heads_are_given_up() {
    let mut decoder = Http1::new(true);
    let mut seen = Vec::new();
    decoder.data(Side::Client, 0, b"GET / HTTP/1.1\r\n", &mut |event| {
        collect(&mut seen, event)
    });
    for at in 0..HEAD_MAX / 1000 + 1 {
        let line = [&b"A: "[..], &[b'a'; 995], b"\r\n"].concat();
        decoder.data(Side::Client, at as u64, &line, &mut |event| {
            collect(&mut seen, event)
        });
        assert!(decoder.streams[0].buffer.len() <= HEAD_MAX);
    }
    assert_eq!(
        summary(&seen),
        ["Client at 0: bytes of a head: more than the limit of 262144"]
    );
}

#[test]
fn requests_that_nobody_answers_are_bounded() {
    let mut decoder = Http1::new(true);
    let mut troubles = 0;
    for at in 0..3 * OUTSTANDING_MAX as u64 {
        decoder.data(
            Side::Client,
            at * 18,
            b"GET / HTTP/1.1\r\n\r\n",
            &mut |event| {
                troubles += usize::from(matches!(event, HttpEvent::Trouble(Some(_), ..)));
            },
        );
        assert!(decoder.pairing.outstanding() <= OUTSTANDING_MAX);
    }
    assert_eq!(troubles, 3 * OUTSTANDING_MAX);
}

#[test]
fn a_single_gap_anywhere_never_misleads() {
    let plans: Vec<_> = [
        (0, 0),
        (3, 1),
        (1, 2),
        (2, 3),
        (4, 1),
        (2, 1),
        (0, 1),
        (0, 0),
    ]
    .into_iter()
    .map(|(request, response)| Plan {
        request,
        request_length: 30,
        response,
        response_length: 40,
        chunk: 13,
        pipelined: false,
        interim: request == 1,
    })
    .collect();
    for pipelined in [false, true] {
        let mut plans = plans.clone();
        for (number, plan) in plans.iter_mut().enumerate() {
            plan.pipelined = pipelined && number % 3 != 0;
        }
        let conversation = Conversation::new(&plans);
        for side in [Side::Client, Side::Server] {
            for length in [1, 2, 7, 40, 90, 250, 700] {
                for begin in 0..conversation.length(side) {
                    let mut play = Play::default();
                    play.gaps[side.index()].push(begin..begin + length);
                    conversation.check(&conversation.play(&mut Http1::new(true), &play));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_is_said_is_decoded(plans in model::plans()) {
        let conversation = Conversation::new(&plans);
        let seen = conversation.play(&mut Http1::new(true), &Play::default());
        conversation.check_all(&seen);
    }

    #[test]
    fn where_calls_end_does_not_matter(plans in model::plans(), cuts in model::cuts()) {
        let conversation = Conversation::new(&plans);
        let play = Play { cuts, ..Play::default() };
        let seen = conversation.play(&mut Http1::new(true), &play);
        conversation.check_all(&seen);
        let whole = conversation.play(&mut Http1::new(true), &Play::default());
        for side in [Side::Client, Side::Server] {
            prop_assert_eq!(model::of_side(&seen, side), model::of_side(&whole, side));
        }
    }

    #[test]
    fn gaps_never_mislead(plans in model::plans(), cuts in model::cuts(), gaps in model::gaps()) {
        let conversation = Conversation::new(&plans);
        let play = Play { cuts, gaps, ..Play::default() };
        conversation.check(&conversation.play(&mut Http1::new(true), &play));
    }

    #[test]
    fn lost_calls_never_mislead(
        plans in model::plans(),
        cuts in prop::collection::vec(1_usize..400, 0..20),
        lost_calls in model::lost_calls(),
    ) {
        let conversation = Conversation::new(&plans);
        let play = Play { cuts, lost_calls, by_message: true, ..Play::default() };
        conversation.check(&conversation.play(&mut Http1::new(true), &play));
    }

    #[test]
    fn a_connection_seen_from_the_middle_on_never_misleads(
        plans in model::plans(),
        cuts in model::cuts(),
        client in 0_usize..2000,
        server in 0_usize..2000,
    ) {
        let plans: Vec<_> = plans.into_iter().map(|plan| Plan { pipelined: false, ..plan }).collect();
        let conversation = Conversation::new(&plans);
        let play = Play { cuts, ..Play::default() };
        conversation.check(&conversation.play_from(&mut Http1::new(false), &play, [client, server]));
    }

    #[test]
    fn changed_bytes_do_no_harm(
        plans in model::plans(),
        cuts in model::cuts(),
        changes in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut conversation = Conversation::new(&plans);
        conversation.change(&changes);
        conversation.play(&mut Http1::new(true), &Play { cuts, ..Play::default() });
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        from_beginning: bool,
        begin in prop_oneof![Just(0), Just(u64::MAX - 100)],
        calls in prop::collection::vec((any::<bool>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..60)), 0..40),
    ) {
        let mut decoder = Http1::new(from_beginning);
        let mut offset: u64 = begin;
        for (client, gap, bytes) in calls {
            let side = if client { Side::Client } else { Side::Server };
            if gap {
                decoder.gap(side, offset, bytes.len() as u64, &mut |_| {});
            } else {
                decoder.data(side, offset, &bytes, &mut |_| {});
            }
            offset = offset.saturating_add(bytes.len() as u64);
        }
        decoder.close(&mut |_| {});
    }
}
