//! Bodies and the messages in them: content codings and their bombs, gRPC, server-sent events, forms.

use std::io::Write;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use protocol::{
    Body, Budget, Cause, Ending, Exchanges, Field, HttpEvent, Limits, Notice, Redaction,
    RequestHead, ResponseHead, Side, StreamId, Time, Version,
};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use trace::{Event, Http, Sink, Timestamp};

use crate::connection::{self, Step, steps};
use crate::outputs::Outputs;

const TYPES: [&str; 16] = [
    "",
    "text/plain",
    "text/html; charset=latin1",
    "application/json",
    "application/grpc",
    "application/grpc+json",
    "application/grpc-web+proto",
    "application/x-protobuf",
    "text/event-stream",
    "multipart/form-data; boundary=X",
    "multipart/mixed; boundary=\"a b\"",
    "application/x-www-form-urlencoded",
    "image/png",
    "application/x-ndjson",
    "text/css; charset=utf-8",
    "\u{1b}[2J",
];

const CODINGS: [&str; 8] = [
    "",
    "gzip",
    "deflate",
    "br",
    "zstd",
    "gzip, br",
    "zstd, deflate, gzip",
    "identity, x-gzip",
];

const LIMITS: Limits = Limits {
    body: 16 << 10,
    connection: 128 << 10,
    total: 192 << 10,
};

/// Types of both bodies (4 bits each), their coding (3 bits), and the bodies as steps.
pub fn run(bytes: &[u8]) {
    let Some((&[types, coding], bytes)) = bytes.split_first_chunk() else {
        return;
    };
    let total = Budget::new(LIMITS.total);
    let mut exchanges = Exchanges::new(LIMITS, &total, Arc::new(Redaction::default()));
    let mut outputs = Outputs::new();
    let mut now = Time::at(0, 0);
    let mut feed = |event: HttpEvent<'_>| {
        now = Time::at(now.wall_ns + 333_000_000, 0);
        let mut sink = |notice: Notice<'_>| {
            check(&notice);
            show(&notice, now, &mut outputs);
        };
        exchanges.event(now, event, &mut sink);
        exchanges.tick(now, &mut sink);
        assert!(total.used() <= LIMITS.total);
    };
    let id = StreamId(1);
    let coding = CODINGS[usize::from(coding & 7)];
    let request = fields(TYPES[usize::from(types >> 4)], coding);
    feed(HttpEvent::Request(id, request_head(request)));
    let response = fields(TYPES[usize::from(types & 15)], coding);
    feed(HttpEvent::Response(id, response_head(response)));
    for step in steps(bytes) {
        let side = |server| if server { Side::Server } else { Side::Client };
        feed(match step {
            Step::Data(server, data) => HttpEvent::Body(id, side(server), data),
            Step::Lost(server, data) => {
                HttpEvent::Missing(id, side(server), data.len() as u64, Cause::LeftOut)
            }
            Step::Missing(server, bytes) => {
                HttpEvent::Missing(id, side(server), bytes, Cause::Lost)
            }
        });
    }
    for side in [Side::Client, Side::Server] {
        feed(HttpEvent::End(id, side));
    }
    exchanges.close(now, Ending::CaptureEnded, &mut |notice| {
        check(&notice);
        show(&notice, now, &mut outputs);
    });
    assert_eq!(total.used(), 0, "memory is not given back");
    outputs.check();
}

fn fields(media_type: &str, coding: &str) -> Vec<Field> {
    let field = |name: &str, value: &str| Field {
        name: name.into(),
        value: Some(value.into()),
    };
    let mut fields = Vec::new();
    if !media_type.is_empty() {
        fields.push(field("content-type", media_type));
    }
    if !coding.is_empty() {
        fields.push(field("content-encoding", coding));
        // What its messages are compressed with.
        fields.push(field("grpc-encoding", coding));
    }
    fields
}

fn request_head(fields: Vec<Field>) -> RequestHead {
    RequestHead {
        version: Version::Http2,
        method: Some(b"POST".to_vec()),
        scheme: Some(b"https".to_vec()),
        authority: Some(b"a\x1b".to_vec()),
        target: Some(b"/pkg.Service/Method?a=%1b&b=\x1b".to_vec()),
        fields,
        unknown_fields: 0,
        wire_length: 10,
    }
}

fn response_head(fields: Vec<Field>) -> ResponseHead {
    ResponseHead {
        version: Version::Http2,
        status: Some(200),
        reason: Vec::new(),
        fields,
        unknown_fields: 0,
        wire_length: 10,
    }
}

/// No body is longer than it may be.
fn check(notice: &Notice<'_>) {
    let short = |body: &Body| assert!(body.content().len() <= LIMITS.body);
    match notice {
        Notice::Message(_, message) => short(&message.body),
        Notice::Finished(exchange) => {
            short(&exchange.request.body);
            short(&exchange.response.body);
            exchange.messages.iter().for_each(|one| short(&one.body));
        }
        Notice::Began(_) | Notice::Response(_) | Notice::Trouble(..) => {}
    }
}

fn show(notice: &Notice<'_>, now: Time, outputs: &mut Outputs) {
    let http = Http {
        time: Timestamp(now.wall_ns),
        pid: 1,
        comm: b"fuzz",
        connection: 1,
        requests: None,
        notice,
    };
    outputs
        .event(&Event::Http(http))
        .expect("writing to memory");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let json = br#"{"name":"value","list":[1,2.5e3,null,true],"text":"\u00fc\n"}"#;
    let form = b"--X\r\nContent-Disposition: form-data; name=\"a\"\r\nContent-Type: application/json\r\n\r\n{}\r\n--X--\r\n";
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(json).expect("writing to memory");
    zlib.write_all(&[b'a'; 100_000]).expect("writing to memory");
    let (gzip, zlib) = (gzip.finish(), zlib.finish());
    let (gzip, zlib) = (gzip.expect("in memory"), zlib.expect("in memory"));
    let zstd = compress_to_vec(&json[..], CompressionLevel::Fastest);
    let grpc = b"\0\0\0\0\x05\x12\x03abc\x01\0\0\0\x02zz";
    let in_grpc = [&[1], &(gzip.len() as u32).to_be_bytes()[..], &gzip].concat();
    let bodies: [(u8, u8, &[u8]); 12] = [
        (0x33, 0, json),
        (0x31, 1, &gzip),
        (0x11, 2, &zlib),
        (0x33, 3, b"\x0b\x02\x80hello\x03"),
        (0x33, 4, &zstd),
        (0x44, 0, grpc),
        (0x55, 1, &in_grpc),
        (0x77, 0, b"\x08\x96\x01\x12\x07testing\x1a\x03\x08\x96\x01"),
        (0x88, 0, b"event: x\r\ndata: 1\r\n\r\ndata: 2\n\ndata"),
        (0x99, 0, form),
        (0x22, 0, b"Gr\xfc\xdfe\x1b[2J"),
        (0x00, 7, &gzip),
    ];
    let mut seeds = Vec::new();
    for (types, coding, body) in bodies {
        let (before, behind) = body.split_at(body.len() / 2);
        let whole = [
            Step::Data(false, body),
            Step::Data(true, before),
            Step::Data(true, behind),
        ];
        let lost = [
            Step::Data(true, before),
            Step::Lost(true, &behind[..1]),
            Step::Data(true, &behind[1..]),
        ];
        for steps in [&whole, &lost] {
            seeds.push([&[types, coding], &connection::input(steps)[..]].concat());
        }
    }
    seeds
}
