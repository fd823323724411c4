//! Exchanges as they come out of the events of a decoder.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;
use crate::event::Version;

const ONE: StreamId = StreamId(1);

/// Feeds events and writes down what comes of them.
struct Bench {
    exchanges: Exchanges,
    total: Budget,
    now: i64,
    log: Vec<String>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Limits::default(), Redaction::default())
    }

    fn with(limits: Limits, redaction: Redaction) -> Self {
        let total = Budget::new(limits.total);
        Self {
            exchanges: Exchanges::new(limits, &total, Arc::new(redaction)),
            total,
            now: 0,
            log: Vec::new(),
        }
    }

    fn event(&mut self, event: HttpEvent<'_>) -> &mut Self {
        self.now += 1_000_000;
        let (now, log) = (Time::at(self.now, 0), &mut self.log);
        self.exchanges
            .event(now, event, &mut |notice| log.push(described(&notice)));
        self
    }

    fn request(&mut self, stream: StreamId, target: &str, fields: &[(&str, &str)]) -> &mut Self {
        self.event(HttpEvent::Request(
            stream,
            RequestHead {
                version: Version::Http2,
                method: Some(b"POST".to_vec()),
                scheme: Some(b"https".to_vec()),
                authority: Some(b"h".to_vec()),
                target: Some(target.into()),
                fields: headers(fields),
                unknown_fields: 0,
                wire_length: 10,
            },
        ))
    }

    fn response(&mut self, stream: StreamId, status: u16, fields: &[(&str, &str)]) -> &mut Self {
        self.event(HttpEvent::Response(
            stream,
            ResponseHead {
                version: Version::Http2,
                status: Some(status),
                reason: Vec::new(),
                fields: headers(fields),
                unknown_fields: 0,
                wire_length: 10,
            },
        ))
    }

    fn body(&mut self, stream: StreamId, side: Side, bytes: &[u8]) -> &mut Self {
        self.event(HttpEvent::Body(stream, side, bytes))
    }

    fn end(&mut self, stream: StreamId, side: Side) -> &mut Self {
        self.event(HttpEvent::End(stream, side))
    }

    fn close(&mut self, ending: Ending) -> &mut Self {
        let (now, log) = (Time::at(self.now, 0), &mut self.log);
        self.exchanges
            .close(now, ending, &mut |notice| log.push(described(&notice)));
        self
    }

    fn tick(&mut self, seconds: i64) -> &mut Self {
        self.now += seconds * 1_000_000_000;
        let (now, log) = (Time::at(self.now, 0), &mut self.log);
        self.exchanges
            .tick(now, &mut |notice| log.push(described(&notice)));
        self
    }

    #[track_caller]
    fn says(&mut self, expected: &[&str]) {
        assert_eq!(self.log, expected);
        self.log.clear();
    }
}

fn headers(fields: &[(&str, &str)]) -> Vec<Field> {
    let field = |(name, value): &(&str, &str)| Field {
        name: name.as_bytes().to_vec(),
        value: Some(value.as_bytes().to_vec()),
    };
    fields.iter().map(field).collect()
}

fn described(notice: &Notice<'_>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match notice {
        Notice::Began(exchange) => format!("{} began", exchange.stream.0),
        Notice::Response(exchange) => format!("{} response", exchange.stream.0),
        Notice::Message(exchange, message) => format!(
            "{} {:?} {} {:?}",
            exchange.stream.0,
            message.side,
            message.kind.name(),
            text(message.body.content()),
        ),
        Notice::Finished(exchange) => {
            let head = exchange.request.head.as_ref();
            let target = head.and_then(|head| head.target.as_deref());
            let status = exchange.response.head.as_ref().and_then(|head| head.status);
            let mut line = format!(
                "{} {} {:?} {:?} {status:?} {:?}",
                exchange.stream.0,
                text(target.unwrap_or(b"?")),
                text(exchange.request.body.content()),
                text(exchange.response.body.content()),
                exchange.ending.unwrap(),
            );
            for gap in exchange.gaps() {
                line += "; ";
                line += &gap;
            }
            line
        }
        Notice::Trouble(side, offset, trouble) => format!("{side:?} {offset}: {trouble}"),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn grpc(flags: u8, message: &[u8]) -> Vec<u8> {
    [&[flags], &(message.len() as u32).to_be_bytes()[..], message].concat()
}

#[test]
fn a_request_is_paired_with_its_response_and_bodies_are_decoded() {
    let mut bench = Bench::new();
    let zipped = gzip(b"hello");
    bench
        .request(ONE, "/one", &[])
        .request(StreamId(3), "/three", &[("Content-Encoding", "gzip")])
        .body(StreamId(3), Side::Client, &zipped[..7])
        .body(StreamId(3), Side::Client, &zipped[7..])
        .end(StreamId(3), Side::Client)
        .end(ONE, Side::Client)
        .response(StreamId(3), 204, &[])
        .end(StreamId(3), Side::Server)
        .response(ONE, 100, &[])
        .response(ONE, 200, &[])
        .body(ONE, Side::Server, b"a")
        .body(ONE, Side::Server, b"b")
        .end(ONE, Side::Server);
    bench.says(&[
        "3 /three \"hello\" \"\" Some(204) Complete",
        "1 /one \"\" \"ab\" Some(200) Complete",
    ]);
    assert_eq!(bench.total.used(), 0);
}

#[test]
fn times_are_those_of_heads_and_last_bytes() {
    let mut bench = Bench::new();
    bench
        .request(ONE, "/", &[])
        .body(ONE, Side::Client, b"x")
        .end(ONE, Side::Client)
        .response(ONE, 200, &[])
        .body(ONE, Side::Server, b"y");
    let mut found = None;
    let end = HttpEvent::End(ONE, Side::Server);
    bench
        .exchanges
        .event(Time::at(9_000_000, 0), end, &mut |notice| {
            if let Notice::Finished(exchange) = notice {
                found = Some((exchange.began(), exchange.latency(), exchange.duration()));
            }
        });
    let expected = (
        Some(Time::at(1_000_000, 0)),
        Some(1_000_000),
        Some(8_000_000),
    );
    assert_eq!(found, Some(expected));
}

#[test]
fn what_is_open_at_the_end_is_handed_out_with_what_is_missing() {
    let mut bench = Bench::new();
    bench
        .request(ONE, "/a", &[])
        .end(ONE, Side::Client)
        .request(StreamId(3), "/b", &[])
        .body(StreamId(3), Side::Client, b"begin")
        .event(HttpEvent::Missing(
            StreamId(3),
            Side::Client,
            7,
            Cause::Lost,
        ))
        .body(StreamId(3), Side::Client, b"never shown")
        .response(StreamId(5), 200, &[])
        .close(Ending::CaptureEnded);
    bench.says(&[
        "1 /a \"\" \"\" None CaptureEnded; no response was seen; the capture ended",
        "3 /b \"begin\" \"\" None CaptureEnded; no response was seen; 7 bytes of the request body \
         are missing; the request's end was not seen; the capture ended",
        "5 ? \"\" \"\" Some(200) CaptureEnded; the request was not seen; the response's end was not \
         seen; the capture ended",
    ]);
}

#[test]
fn what_is_missing_of_an_unseen_request_is_said_of_the_request() {
    let mut bench = Bench::new();
    let unpaired = HttpEvent::Trouble(Some(ONE), Side::Server, 0, Trouble::Unpaired);
    let gap = Trouble::Gap { bytes: 52 };
    bench
        .response(ONE, 200, &[])
        .event(unpaired)
        .event(HttpEvent::Trouble(Some(ONE), Side::Client, 150, gap))
        .end(ONE, Side::Server);
    bench.says(&[
        "1 ? \"\" \"\" Some(200) Complete; the request was not seen; in the request: 52 bytes \
         are missing",
    ]);
}

#[test]
fn a_response_whose_request_was_not_seen_ends_alone_and_only_once() {
    let mut bench = Bench::new();
    bench
        .response(ONE, 200, &[])
        .end(ONE, Side::Server)
        .body(ONE, Side::Client, b"late")
        .close(Ending::ConnectionClosed);
    bench.says(&["1 ? \"\" \"\" Some(200) Complete; the request was not seen"]);
}

#[test]
fn a_body_as_long_as_promised_is_complete_though_its_end_was_not_seen() {
    for (promised, complete) in [("4", true), ("5", false), ("4, 4", false)] {
        let mut bench = Bench::new();
        bench
            .request(ONE, "/", &[("content-length", "2")])
            .body(ONE, Side::Client, b"hi")
            .response(ONE, 200, &[("content-length", promised)])
            .body(ONE, Side::Server, b"body")
            .close(Ending::ConnectionClosed);
        bench.says(&[if complete {
            "1 / \"hi\" \"body\" Some(200) Complete"
        } else {
            "1 / \"hi\" \"body\" Some(200) ConnectionClosed; the response's end was not seen; \
             the connection was closed"
        }]);
    }
}

#[test]
fn a_reset_ends_an_exchange_for_good() {
    let mut bench = Bench::new();
    bench
        .request(ONE, "/", &[])
        .event(HttpEvent::Reset(ONE, Side::Client, 8))
        .response(ONE, 200, &[])
        .body(ONE, Side::Server, b"on its way")
        .close(Ending::ConnectionClosed);
    bench.says(&[
        "1 / \"\" \"\" None Reset(Client, 8); no response was seen; the request's end was not seen; \
         reset by the client: CANCEL",
    ]);
}

#[test]
fn grpc_messages_of_a_stream_are_shown_as_they_pass() {
    let mut bench = Bench::new();
    let request = [
        ("content-type", "application/grpc"),
        ("grpc-encoding", "gzip"),
    ];
    bench
        .request(ONE, "/etcdserverpb.Watch/Watch", &request)
        .body(ONE, Side::Client, &grpc(1, &gzip(b"watch")))
        .response(ONE, 200, &[("content-type", "application/grpc+proto")])
        .body(ONE, Side::Server, &grpc(0, b"created")[..6])
        .body(ONE, Side::Server, &grpc(0, b"created")[6..]);
    bench.says(&[]);
    bench.body(ONE, Side::Server, &grpc(0, b"event"));
    bench.says(&[
        "1 began",
        "1 Client grpc \"watch\"",
        "1 Server grpc \"created\"",
        "1 Server grpc \"event\"",
    ]);
    bench.body(ONE, Side::Server, &[grpc(0, b"a"), grpc(0, b"b")].concat());
    bench.says(&["1 Server grpc \"a\"", "1 Server grpc \"b\""]);
    bench.event(HttpEvent::Reset(ONE, Side::Client, 8));
    assert_eq!(bench.log.len(), 1);
    assert_eq!(bench.total.used(), 0);
}

#[test]
fn the_outcome_of_a_grpc_call_is_in_its_trailers_or_its_only_head() {
    for only_head in [false, true] {
        let mut bench = Bench::new();
        let kind = ("content-type", "application/grpc");
        let outcome = [("grpc-status", "5"), ("grpc-message", "no%20such")];
        bench.request(ONE, "/a.B/C", &[kind]).end(ONE, Side::Client);
        if only_head {
            bench.response(ONE, 200, &[kind, outcome[0], outcome[1]]);
        } else {
            bench.response(ONE, 200, &[kind]);
            bench.event(HttpEvent::Trailers(ONE, Side::Server, headers(&outcome)));
        }
        let mut call = None;
        let end = HttpEvent::End(ONE, Side::Server);
        bench.exchanges.event(Time::at(1, 0), end, &mut |notice| {
            if let Notice::Finished(exchange) = notice {
                call = exchange.grpc.clone();
            }
        });
        let expected = Grpc {
            service: b"a.B".to_vec(),
            method: b"C".to_vec(),
            status: Some(5),
            message: Some(b"no such".to_vec()),
        };
        assert_eq!(call, Some(expected));
    }
}

#[test]
fn server_sent_events_are_shown_as_they_pass() {
    let mut bench = Bench::new();
    bench
        .request(ONE, "/events", &[])
        .end(ONE, Side::Client)
        .response(
            ONE,
            200,
            &[("Content-Type", "text/event-stream; charset=utf-8")],
        )
        .body(ONE, Side::Server, b"data: 1\n\ndata: ")
        .body(ONE, Side::Server, b"2\n\n")
        .end(ONE, Side::Server);
    bench.says(&[
        "1 began",
        "1 Server event \"data: 1\\n\"",
        "1 Server event \"data: 2\\n\"",
        "1 /events \"\" \"data: 1\\n\\ndata: 2\\n\\n\" Some(200) Complete",
    ]);
}

#[test]
fn what_takes_long_is_announced_with_what_there_is_of_it() {
    let mut bench = Bench::new();
    let json = [("Content-Type", "application/json")];
    bench
        .request(ONE, "/watch", &[])
        .end(ONE, Side::Client)
        .tick(0);
    bench.says(&[]);
    bench.tick(1);
    bench.says(&["1 began"]);
    bench
        .response(ONE, 200, &json)
        .body(ONE, Side::Server, b"{}");
    bench.says(&["1 response", "1 Server piece \"{}\""]);
    bench.tick(1).says(&[]);

    let three = StreamId(3);
    bench
        .request(three, "/slow", &[])
        .response(three, 200, &json);
    bench.body(three, Side::Server, b"[1,").tick(2);
    bench.says(&["3 began", "3 Server piece \"[1,\""]);
}

#[test]
fn header_values_are_masked_everywhere_and_decoding_still_works() {
    let redaction = Redaction::new(["Authorization", "content-encoding", "set-cookie"]);
    let mut bench = Bench::with(Limits::default(), redaction);
    bench
        .request(ONE, "/", &[("AUTHORIZATION", "secret"), ("a", "b")])
        .end(ONE, Side::Client)
        .response(ONE, 103, &[("Set-Cookie", "secret")])
        .response(
            ONE,
            200,
            &[("set-cookie", "secret"), ("Content-Encoding", "gzip")],
        )
        .body(ONE, Side::Server, &gzip(b"hello"));
    let trailers = headers(&[("Authorization", "secret")]);
    bench.event(HttpEvent::Trailers(ONE, Side::Server, trailers));
    let end = HttpEvent::End(ONE, Side::Server);
    let mut seen = String::new();
    bench.exchanges.event(Time::at(1, 0), end, &mut |notice| {
        let Notice::Finished(exchange) = notice else {
            return;
        };
        assert_eq!(exchange.response.body.content(), b"hello");
        let (request, response) = (&exchange.request, &exchange.response);
        let mut fields = request.head.as_ref().unwrap().fields.clone();
        fields.extend(response.head.as_ref().unwrap().fields.clone());
        fields.extend(exchange.interim[0].fields.clone());
        fields.extend(response.trailers.clone());
        for field in fields {
            seen += str::from_utf8(&field.value.unwrap()).unwrap();
            seen += " ";
        }
    });
    let mask = "[redacted]";
    assert_eq!(seen, format!("{mask} b {mask} {mask} {mask} {mask} "));
}

#[test]
fn a_websocket_that_both_sides_closed_is_complete_whatever_becomes_of_the_connection() {
    for sides in [&[Side::Client, Side::Server][..], &[Side::Server]] {
        for ending in [Ending::ConnectionClosed, Ending::CaptureEnded] {
            let mut bench = Bench::new();
            let stream = StreamId(1);
            bench.request(stream, "/", &[]);
            bench.response(stream, 101, &[]);
            bench.event(HttpEvent::Switched(stream, b"websocket".to_vec()));
            for &side in sides {
                // A closing message without a reason: RFC 6455 section 5.5.1.
                let frame = match side {
                    Side::Client => &[0x88, 0x80, 1, 2, 3, 4][..],
                    Side::Server => &[0x88, 0],
                };
                bench.body(stream, side, frame);
            }
            bench.close(ending);
            let said = bench.log.last().unwrap();
            let expected = match (sides.len(), ending) {
                (2, _) => "Complete",
                (_, Ending::CaptureEnded) => "CaptureEnded; the capture ended",
                _ => "ConnectionClosed",
            };
            assert!(said.ends_with(expected), "{sides:?} {ending:?}: {said}");
        }
    }
}

#[test]
fn too_many_exchanges_displace_the_oldest() {
    let mut bench = Bench::new();
    for stream in 0..=Exchanges::OPEN_MAX as u64 {
        bench.request(StreamId(stream), "/", &[]);
    }
    assert_eq!(bench.log.len(), 1);
    assert!(
        bench.log[0].contains("given up: too many exchanges at once"),
        "{}",
        bench.log[0]
    );
}

#[test]
fn memory_stays_within_its_limits_and_what_is_left_out_is_said() {
    let limits = Limits {
        body: 1000,
        connection: 50_000,
        total: 60_000,
    };
    let mut bench = Bench::with(limits, Redaction::default());
    let long = "x".repeat(500);
    for stream in 0..200 {
        let stream = StreamId(stream);
        bench.request(stream, &long, &[("content-type", &long)]);
        for side in [Side::Client, Side::Server] {
            for _ in 0..10 {
                bench.body(stream, side, &[7; 300]);
                assert!(bench.total.used() <= limits.connection);
            }
        }
    }
    bench.close(Ending::CaptureEnded);
    assert_eq!(bench.log.len(), 200);
    assert_eq!(bench.total.used(), 0);
}

/// What may follow what, in no order at all.
fn any_event() -> impl Strategy<Value = (u64, u8, bool, Vec<u8>)> {
    (
        0..4u64,
        0..9u8,
        any::<bool>(),
        proptest::collection::vec(any::<u8>(), 0..40),
    )
}

proptest! {
    #[test]
    fn no_order_of_events_does_harm_and_every_exchange_ends_once(
        events in proptest::collection::vec(any_event(), 0..60)
    ) {
        const TYPES: [&str; 4] =
            ["application/grpc", "text/event-stream", "text/plain", "multipart/mixed"];
        let limits = Limits { body: 100, connection: 20_000, total: 20_000 };
        let mut bench = Bench::with(limits, Redaction::default());
        for (stream, step, client, bytes) in &events {
            let id = StreamId(*stream);
            let side = if *client { Side::Client } else { Side::Server };
            let kind = ("content-type", TYPES[bytes.len() % 4]);
            match step {
                0 => bench.request(id, "/", &[kind, ("content-encoding", "gzip")]),
                1 => bench.response(id, if *client { 200 } else { 101 }, &[kind]),
                2..=4 => bench.body(id, side, bytes),
                5 => bench.event(HttpEvent::Missing(id, side, bytes.len() as u64, Cause::Lost)),
                6 => bench.event(HttpEvent::Trouble(Some(id), side, 0, Trouble::MidStream)),
                7 => bench.end(id, side),
                _ => bench.event(HttpEvent::Switched(id, bytes.clone())),
            };
            bench.tick(i64::from(bytes.len() == 3));
            prop_assert!(bench.total.used() <= limits.total);
        }
        bench.close(Ending::ConnectionClosed);
        prop_assert!(bench.exchanges.is_idle());
        prop_assert_eq!(bench.total.used(), 0);
    }
}
