//! What passes on a connection, as a fuzzer can change it: a list of steps.

/// One step, of the client (`false`) or the server (`true`).
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// It sends this.
    Data(bool, &'a [u8]),
    /// It sends this, which gets lost.
    Lost(bool, &'a [u8]),
    /// So many bytes are said to be missing.
    Missing(bool, u64),
}

const SERVER: u8 = 1;
const LOST: u8 = 2;
const MISSING: u8 = 4;

/// The steps in an input: flags, length (16 bits, little-endian), bytes; or flags and a number (64 bits).
pub fn steps(mut bytes: &[u8]) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    while let Some((&flags, rest)) = bytes.split_first() {
        let server = flags & SERVER != 0;
        if flags & MISSING != 0 {
            let Some((number, rest)) = rest.split_first_chunk() else {
                break;
            };
            bytes = rest;
            steps.push(Step::Missing(server, u64::from_le_bytes(*number)));
            continue;
        }
        let Some((length, rest)) = rest.split_first_chunk() else {
            break;
        };
        let length = rest.len().min(u16::from_le_bytes(*length).into());
        let (data, rest) = rest.split_at(length);
        bytes = rest;
        steps.push(match flags & LOST {
            0 => Step::Data(server, data),
            _ => Step::Lost(server, data),
        });
    }
    steps
}

/// The input of these steps, for seeds.
pub fn input(steps: &[Step<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for step in steps {
        match step {
            Step::Data(server, data) | Step::Lost(server, data) => {
                let lost = if matches!(step, Step::Lost(..)) {
                    LOST
                } else {
                    0
                };
                bytes.push(u8::from(*server) | lost);
                bytes.extend((data.len() as u16).to_le_bytes());
                bytes.extend(*data);
            }
            Step::Missing(server, number) => {
                bytes.push(u8::from(*server) | MISSING);
                bytes.extend(number.to_le_bytes());
            }
        }
    }
    bytes
}

/// The same steps with the data in parts of `length` bytes.
pub fn in_parts<'a>(steps: &[Step<'a>], length: usize) -> Vec<Step<'a>> {
    let mut parts = Vec::new();
    for step in steps {
        match *step {
            Step::Data(server, data) if !data.is_empty() => {
                parts.extend(data.chunks(length).map(|part| Step::Data(server, part)));
            }
            other => parts.push(other),
        }
    }
    parts
}

/// Whether nothing is missing.
pub fn is_complete(steps: &[Step<'_>]) -> bool {
    steps.iter().all(|step| matches!(step, Step::Data(..)))
}

/// Requests and responses of HTTP/1, of all kinds.
pub const HTTP1: &[(&str, &str)] = &[
    (
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    ),
    (
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5;x=y\r\ndefgh\r\n0\r\nX-T: 1\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n1\r\na\r\n0\r\n\r\n",
    ),
    (
        "HEAD /h HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nHTTP/1.1 304 Not Modified\r\n\r\n",
    ),
    (
        "GET /old HTTP/1.0\r\n\r\n",
        "HTTP/1.0 404 Not Found\r\nContent-Type: text/html\r\n\r\n<p>until the end",
    ),
    (
        "CONNECT b:443 HTTP/1.1\r\nHost: b\r\n\r\ntunnel",
        "HTTP/1.1 200 OK\r\n\r\nback",
    ),
    (
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n\u{1}\u{2}hi",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n\u{1}\u{2}yo",
    ),
    (
        "GET /h2 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n\0\0\0\u{4}\0\0\0\0\0",
    ),
    (
        "GET /e HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\ndata: 2\n\n",
    ),
    (
        "POST /f HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=X\r\nContent-Length: 52\r\nExpect: 100-continue\r\n\r\n--X\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--X--\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"a\":[1,null]}",
    ),
];

/// A frame of HTTP/2 (RFC 9113 section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let stream = stream.to_be_bytes();
    [&length[1..], &[kind, flags], &stream, payload].concat()
}

/// What client and server send on a small connection of HTTP/2, in turns.
pub fn http2() -> Vec<(bool, Vec<u8>)> {
    let request = b"\x82\x87\x84\x41\x01a\x40\x01x\x03abc";
    let again = b"\x83\x87\x84\xbf\xbe";
    let response = b"\x88\x5f\x10application/grpc";
    let trailers = b"\x40\x0bgrpc-status\x010";
    vec![
        (
            false,
            [
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
                frame(4, 0, 0, b"\0\x01\0\0\x10\0"),
            ]
            .concat(),
        ),
        (
            true,
            [frame(4, 0, 0, b"\0\x03\0\0\0\x64"), frame(4, 1, 0, b"")].concat(),
        ),
        (
            false,
            [
                frame(1, 5, 1, request),
                frame(1, 4, 3, again),
                frame(0, 1, 3, b"\0\0\0\0\x02\x08\x01"),
            ]
            .concat(),
        ),
        (
            true,
            [frame(1, 4, 1, b"\x88"), frame(0, 9, 1, b"\x02body\0\0")].concat(),
        ),
        (
            true,
            [
                frame(1, 0, 3, &response[..4]),
                frame(9, 4, 3, &response[4..]),
            ]
            .concat(),
        ),
        (
            true,
            [
                frame(0, 0, 3, b"\0\0\0\0\x02\x08\x02"),
                frame(1, 5, 3, trailers),
            ]
            .concat(),
        ),
        (
            false,
            [
                frame(8, 0, 0, b"\0\0\x10\0"),
                frame(6, 0, 0, b"12345678"),
                frame(1, 0x25, 5, b"\0\0\0\0\x10\x82\x87\x84\xbe"),
            ]
            .concat(),
        ),
        (
            true,
            [
                frame(5, 4, 5, b"\0\0\0\x02\x82\x87\x84\x41\x01b"),
                frame(3, 0, 5, b"\0\0\0\x08"),
            ]
            .concat(),
        ),
        (true, frame(7, 0, 0, b"\0\0\0\x05\0\0\0\0bye")),
    ]
}
