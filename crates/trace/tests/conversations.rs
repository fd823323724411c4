//! Plaintext in, conversations out: as text, as JSON lines and as HAR.

use std::time::Duration;

use events::{Agreed, CloseCause, Direction, Role};
use protocol::Notice;
use serde_json::Value;
use trace::{
    Closed, ConversationOptions, Conversations, Data, Event, HarSink, JsonSink, LineType, Opened,
    Palette, PayloadStyle, Redaction, Sink, TextSink, Timestamp,
};

/// What each end of connection 1 sends, in turn.
const REQUEST: &[u8] =
    b"POST /greet?a=1&b=%20 HTTP/1.1\r\nHost: h.test\r\nAuthorization: Bearer secret\r\n\
    Cookie: x=secret; y=2\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nX-Trick: \x1b[2J\r\n\
    Content-Length: 4\r\n\r\n\x89PNG";
/// Its end is never seen.
const UNANSWERED: &[u8] = b"GET /slow HTTP/1.1\r\nHost: h.test\r\n\r\n";

/// Feeds calls of connections to a sink, ends the capture, and hands the sink back.
fn fed<S: Sink>(
    sink: S,
    redaction: Redaction,
    calls: &[(u64, Direction, &[u8])],
) -> Conversations<S> {
    let options = ConversationOptions {
        redaction,
        ..ConversationOptions::default()
    };
    let mut conversations = Conversations::new(sink, options);
    let mut offsets = std::collections::HashMap::new();
    let mut time = Timestamp(1_795_379_103_000_000_000);
    for &(connection, direction, payload) in calls {
        time.0 += 1_500_000;
        let offset = offsets.entry((connection, direction)).or_insert(0);
        let data = call(time, connection, direction, *offset, payload);
        *offset += payload.len() as u64;
        conversations.event(&data).unwrap();
    }
    conversations.finish(time).unwrap();
    conversations
}

fn call(
    time: Timestamp,
    connection: u64,
    direction: Direction,
    stream_offset: u64,
    payload: &[u8],
) -> Event<'_> {
    Event::Data(Data {
        time,
        pid: 42,
        tid: 43,
        comm: b"server",
        connection,
        direction,
        stream_offset,
        call_length: payload.len() as u64,
        call_offset: 0,
        truncated: 0,
        goroutine: None,
        payload,
    })
}

fn calls() -> Vec<(u64, Direction, &'static [u8])> {
    vec![
        (1, Direction::Read, &REQUEST[..60]),
        (1, Direction::Read, &REQUEST[60..]),
        (2, Direction::Read, b"\x05hello"),
        (1, Direction::Write, RESPONSE),
        (1, Direction::Read, UNANSWERED),
    ]
}

fn text(redaction: Redaction) -> String {
    let mut out = Vec::new();
    let utc = jiff::tz::TimeZone::UTC;
    let sink = TextSink::new(&mut out, PayloadStyle::Text, Palette::PLAIN, utc);
    fed(sink, redaction, &calls()).flush().unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn text_is_a_conversation_and_what_is_not_http_stays_as_it_is() {
    let expected = "\
20:25:03.004500 server[42] #2 ← read 6 bytes
\\x05hello
20:25:03.003000 server[42] #1/1 ← POST https://h.test/greet?a=1&b=%20 → 200 OK, 4 bytes, 3.0 ms
POST /greet?a=1&b=%20 HTTP/1.1
Host: h.test
Authorization: Bearer secret
Cookie: x=secret; y=2
Content-Type: application/json
Content-Length: 7

{\"a\":1}

HTTP/1.1 200 OK
Content-Type: image/png
X-Trick: \\x1b[2J
Content-Length: 4

[4 bytes of image/png: 89 50 4e 47]
20:25:03.007500 server[42] #1/2 ← GET https://h.test/slow → no response
GET /slow HTTP/1.1
Host: h.test
[incomplete: no response was seen; the capture ended]
";
    let found = text(Redaction::default());
    assert_eq!(found, expected, "{found}");
}

/// What connections show of calls of which only the first `kept` bytes are captured; all of them agreed on
/// `protocol`.
fn text_of_cut(protocol: &'static [u8], kept: usize, calls: &[(Direction, &[u8])]) -> String {
    let mut out = Vec::new();
    let utc = jiff::tz::TimeZone::UTC;
    let sink = TextSink::new(&mut out, PayloadStyle::Text, Palette::PLAIN, utc);
    let mut conversations = Conversations::new(sink, ConversationOptions::default());
    let time = Timestamp(1_795_379_103_000_000_000);
    let opened = Event::Opened(Opened {
        time,
        pid: 42,
        tid: 43,
        comm: b"server",
        connection: 1,
        from_start: true,
        fd: None,
        local: None,
        remote: None,
        agreed: Some(Agreed {
            role: Role::Server,
            version: 0x0304,
            cipher_suite: 0x1301,
            resumed: false,
            server_name: None,
            protocol: Some(protocol),
        }),
        container: None,
    });
    conversations.event(&opened).unwrap();
    let mut offsets = [0; 2];
    for (direction, bytes) in calls {
        let offset = &mut offsets[direction.index()];
        let payload = &bytes[..bytes.len().min(kept)];
        let Event::Data(data) = call(time, 1, *direction, *offset, payload) else {
            unreachable!()
        };
        let truncated = (bytes.len() - payload.len()) as u64;
        let call_length = bytes.len() as u64;
        let data = Data {
            call_length,
            truncated,
            ..data
        };
        conversations.event(&Event::Data(data)).unwrap();
        *offset += bytes.len() as u64;
    }
    conversations.finish(time).unwrap();
    conversations.flush().unwrap();
    drop(conversations);
    let text = String::from_utf8(out).unwrap();
    let (_, rest) = text.split_once('\n').unwrap();
    rest.replace("20:25:03.000000 server[42] ", "")
}

#[test]
fn heads_that_are_cut_are_shown_as_they_came() {
    let calls = [(Direction::Read, REQUEST), (Direction::Write, RESPONSE)];
    let expected = "\
#1 HTTP: from byte 70 of the client on: 89 bytes were not captured (--tsize)
#1 ← read 70 bytes, 0-70 of 159, the rest not captured (--tsize)
POST /greet?a=1&b=%20 HTTP/1.1
Host: h.test
Authorization: Bearer se
#1 HTTP: from byte 70 of the server on: 12 bytes were not captured (--tsize)
#1 → write 70 bytes, 0-70 of 82, the rest not captured (--tsize)
HTTP/1.1 200 OK
Content-Type: image/png
X-Trick: \\x1b[2J
Content-Lengt
";
    let found = text_of_cut(b"http/1.1", 70, &calls);
    assert_eq!(found, expected, "{found}");
}

#[test]
fn bodies_that_are_cut_are_not_called_lost() {
    let request = [
        &b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n"[..],
        &[b'x'; 100],
    ]
    .concat();
    let calls = [
        (Direction::Read, &request[..]),
        (
            Direction::Write,
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
    ];
    let expected = "\
#1/1 ← POST https://h/ → 200 OK, 2 bytes, 0 ns
POST / HTTP/1.1
Host: h
Content-Length: 100

xxxxxxxxxxxxxxx
[the first 15 bytes; 85 bytes of the body's 100 bytes were not captured (--tsize)]

HTTP/1.1 200 OK
Content-Length: 2

ok
[incomplete: 85 bytes of the request body were not captured (--tsize)]
";
    let found = text_of_cut(b"http/1.1", 64, &calls);
    assert_eq!(found, expected, "{found}");
}

/// Nothing was sent before the capture began.
#[test]
fn what_follows_a_cut_preface_was_not_joined_in_the_middle() {
    let settings: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", settings].concat();
    let request: &[u8] = b"\0\0\x05\x01\x05\0\0\0\x01\x82\x87\x84\xbe\xbf";
    let calls = [
        (Direction::Read, &preface[..]),
        (Direction::Read, request),
        (Direction::Write, b"\0\0\x01\x01\x05\0\0\0\x01\x88"),
    ];
    let expected = "\
#1 ← read 20 bytes, 0-20 of 39, the rest not captured (--tsize)
PRI * HTTP/2.0

SM
#1/1 ← GET https://(unknown)/ → 200 OK, 0 bytes, 0 ns
GET / HTTP/2
[2 unknown header fields]

HTTP/2 200 OK
[incomplete: 2 header fields refer to what was not seen]
";
    let found = text_of_cut(b"h2", 20, &calls);
    assert_eq!(found, expected, "{found}");
}

#[test]
fn what_is_read_after_the_end_is_no_new_conversation() {
    let time = Timestamp(1_795_379_103_000_000_000);
    let (head, rest) = RESPONSE.split_at(RESPONSE.len() - 2);
    let closed = Event::Closed(Closed {
        time,
        pid: 42,
        tid: 43,
        comm: b"client",
        connection: 1,
        bytes: [REQUEST.len() as u64, head.len() as u64],
        duration: Duration::from_secs(1),
        cause: CloseCause::Called,
    });
    let late = call(time, 1, Direction::Read, head.len() as u64, rest);
    let events = [
        call(time, 1, Direction::Write, 0, REQUEST),
        call(time, 1, Direction::Read, 0, head),
        closed,
        late,
    ];
    let mut out = Vec::new();
    let utc = jiff::tz::TimeZone::UTC;
    let sink = TextSink::new(&mut out, PayloadStyle::Text, Palette::PLAIN, utc);
    let mut conversations = Conversations::new(sink, ConversationOptions::default());
    for event in &events {
        conversations.event(event).unwrap();
    }
    conversations.finish(time).unwrap();
    conversations.flush().unwrap();
    drop(conversations);
    let found = String::from_utf8(out).unwrap();
    let (_, end) = found.split_once("[incomplete: ").unwrap();
    let expected =
        "the response's end was not seen; in the response: malformed: the connection ended \
within a message; the connection was closed]
20:25:03.000000 client[42] #1 closed after 1.000 s: 159 bytes written, 80 bytes read
20:25:03.000000 server[42] #1 ← read 2 bytes
NG
";
    assert_eq!(end, expected, "{found}");
}

#[test]
fn masked_values_are_not_in_the_text() {
    let found = text(Redaction::new(Redaction::DEFAULT));
    assert!(!found.contains("secret"), "{found}");
    assert!(found.contains("Authorization: [redacted]\n"), "{found}");
}

#[test]
fn json_lines_tell_the_same() {
    let mut out = Vec::new();
    let sink = JsonSink::new(&mut out).only(vec![LineType::Http]);
    drop(fed(sink, Redaction::default(), &calls()));
    let text = String::from_utf8(out).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    let expected = serde_json::json!({
        "type": "http", "time": "2026-11-22T20:25:03.003000000Z", "pid": 42, "comm": "server",
        "conn": 1, "stream": 1, "role": "server", "ending": "complete", "complete": true,
        "latency_ns": 3_000_000, "duration_ns": 3_000_000,
        "request": {
            "version": "HTTP/1.1", "method": "POST", "url": "https://h.test/greet?a=1&b=%20",
            "headers": [
                ["Host", "h.test"], ["Authorization", "Bearer secret"],
                ["Cookie", "x=secret; y=2"], ["Content-Type", "application/json"],
                ["Content-Length", "7"],
            ],
            "time": "2026-11-22T20:25:03.003000000Z", "end_time": "2026-11-22T20:25:03.003000000Z",
            "complete": true, "body": {"length": 7, "state": "whole", "text": "{\"a\":1}"},
        },
        "response": {
            "version": "HTTP/1.1", "status": 200, "reason": "OK",
            "headers": [
                ["Content-Type", "image/png"], ["X-Trick", "\u{1b}[2J"], ["Content-Length", "4"],
            ],
            "time": "2026-11-22T20:25:03.006000000Z", "end_time": "2026-11-22T20:25:03.006000000Z",
            "complete": true, "body": {"length": 4, "state": "whole", "data_base64": "iVBORw=="},
        },
    });
    assert_eq!(lines[0], expected);
    assert_eq!(lines[1]["ending"], "capture_ended");
}

/// The disk is full.
#[test]
fn exchanges_that_could_not_be_written_do_not_count() {
    let full = std::fs::File::options().write(true).open("/dev/full");
    let out = std::io::BufWriter::with_capacity(1 << 20, full.unwrap());
    let mut conversations = fed(HarSink::new(out), Redaction::default(), &calls());
    conversations.sink_mut().flush().unwrap_err();
    assert_eq!(conversations.sink().entries(), 0);
}

#[test]
fn har_files_follow_the_schema() {
    let schema: Value = serde_json::from_str(include_str!("har-1.2.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for calls in [Vec::new(), calls()] {
        let mut out = Vec::new();
        let mut conversations = fed(HarSink::new(&mut out), Redaction::default(), &calls);
        conversations.sink_mut().finish().unwrap();
        drop(conversations);
        let har: Value = serde_json::from_slice(&out).unwrap();
        let errors: Vec<_> = validator
            .iter_errors(&har)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{errors:?}: {har:#}");

        let entries = har["log"]["entries"].as_array().unwrap();
        if calls.is_empty() {
            assert!(entries.is_empty());
            continue;
        }
        let (request, response) = (&entries[0]["request"], &entries[0]["response"]);
        assert_eq!(
            request["queryString"][1],
            serde_json::json!({"name": "b", "value": "%20"})
        );
        assert_eq!(
            request["cookies"][1],
            serde_json::json!({"name": "y", "value": "2"})
        );
        assert_eq!(request["postData"]["text"], "{\"a\":1}");
        let content = serde_json::json!({
            "size": 4, "mimeType": "image/png", "text": "iVBORw==", "encoding": "base64",
        });
        assert_eq!(response["content"], content);
        assert_eq!(entries[0]["timings"]["wait"], 3.0);
        assert_eq!(entries[1]["response"]["status"], 0);
        // The schema would notice: a required member less, or one that the format doesn't know.
        let mut wrong = har.clone();
        wrong["log"]["entries"][0]["unknown"] = 1.into();
        assert!(!validator.is_valid(&wrong));
    }
}

/// Which exchanges were announced, and how long those took that ended, in ns.
#[derive(Default)]
struct Lasting {
    began: Vec<i64>,
    took: Vec<Option<u64>>,
}

impl Sink for Lasting {
    fn event(&mut self, event: &Event<'_>) -> std::io::Result<()> {
        if let Event::Http(http) = event {
            match http.notice {
                Notice::Began(_) => self.began.push(http.time.0),
                Notice::Finished(exchange) => self.took.push(exchange.duration()),
                _ => {}
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An exchange is announced after a second, and takes as long as it does, whatever the wall clock is set to
/// meanwhile.
#[test]
fn steps_of_the_clock_change_times_and_no_durations() {
    const SECOND: i64 = 1_000_000_000;
    const BEGIN: i64 = 1_795_379_103 * SECOND;

    for step in [-3600 * SECOND, 0, 3600 * SECOND] {
        let mut conversations =
            Conversations::new(Lasting::default(), ConversationOptions::default());
        conversations.set_realtime_offset(BEGIN);
        assert!(conversations.tick(Timestamp(BEGIN)).unwrap());
        let request = call(Timestamp(BEGIN), 1, Direction::Read, 0, UNANSWERED);
        conversations.event(&request).unwrap();

        let after = |seconds| Timestamp(BEGIN + step + seconds * SECOND);
        conversations.set_realtime_offset(BEGIN + step);
        assert!(!conversations.tick(after(0)).unwrap(), "{step}");
        assert!(conversations.tick(after(2)).unwrap(), "{step}");
        assert_eq!(conversations.sink().began, [BEGIN], "{step}");
        let response = b"HTTP/1.1 204 No Content\r\n\r\n";
        let response = call(after(3), 1, Direction::Write, 0, response);
        conversations.event(&response).unwrap();
        assert_eq!(conversations.sink().took, [Some(3_000_000_000)], "{step}");
    }
}
