//! WebSocket: whatever is sent does no harm, and how it is cut makes no difference.

use protocol::websocket::{MESSAGE_MAX, WebSocketEvent};
use protocol::{Cause, Side, WebSocket};

use crate::connection::{self, Step, in_parts, is_complete, steps};

const EXTENSIONS: [&[u8]; 4] = [
    b"",
    b"permessage-deflate",
    b"permessage-deflate; client_no_context_takeover; server_no_context_takeover",
    b"permessage-deflate; client_max_window_bits=9; server_max_window_bits=15",
];

/// Options (bits 0 and 1: the extension; the others: how to cut), and steps.
pub fn run(bytes: &[u8]) {
    let Some((&options, bytes)) = bytes.split_first() else {
        return;
    };
    let steps = steps(bytes);
    let extension = EXTENSIONS[usize::from(options & 3)];
    let all = decoded(extension, &steps);
    if is_complete(&steps) {
        let length = usize::from(options >> 2) + 1;
        assert_eq!(all, decoded(extension, &in_parts(&steps, length)));
    }
}

fn decoded(extension: &[u8], steps: &[Step<'_>]) -> Vec<String> {
    let mut socket = WebSocket::new(extension);
    let mut said = Vec::new();
    let mut note = |event: WebSocketEvent<'_>| {
        if let WebSocketEvent::Message(_, message) = &event {
            assert!(message.payload.len() <= MESSAGE_MAX);
            let length = message.length.unwrap_or(u64::MAX);
            assert!(message.payload.len() as u64 <= length, "more than there is");
        }
        said.push(match event {
            // Where decompression fails depends on what comes at once.
            WebSocketEvent::Trouble(side, _, why) => format!("{side:?}: {why}"),
            // Of what a mistake ends, as much as the decompressor hands out at once is certain.
            WebSocketEvent::Message(side, mut message) if message.length.is_none() => {
                message.payload = &message.payload[..message.payload.len().min(8192)];
                format!("{side:?} {message:?}")
            }
            event => format!("{event:?}"),
        });
    };
    let side = |server| if server { Side::Server } else { Side::Client };
    for step in steps {
        match step {
            Step::Data(server, data) => socket.data(side(*server), data, &mut note),
            Step::Lost(server, data) => {
                let bytes = data.len() as u64;
                socket.missing(side(*server), bytes, Cause::LeftOut, &mut note)
            }
            Step::Missing(server, bytes) => {
                socket.missing(side(*server), *bytes, Cause::Lost, &mut note)
            }
        }
    }
    socket.close(&mut note);
    said
}

pub fn seeds() -> Vec<Vec<u8>> {
    // RFC 6455 section 5.7 and RFC 7692 section 7.2.3.
    let frames: [&[u8]; 7] = [
        b"\x81\x05\x48\x65\x6c\x6c\x6f",
        b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
        b"\x01\x03\x48\x65\x6c\x80\x02\x6c\x6f",
        b"\x89\x05\x48\x65\x6c\x6c\x6f\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
        b"\x82\x7e\x00\x05abcde\x82\x7f\0\0\0\0\0\0\0\x05abcde",
        b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00\xc1\x05\xf2\x00\x11\x00\x00",
        b"\x41\x03\xf2\x48\xcd\x80\x04\xc9\xc9\x07\x00\x88\x05\x03\xe8bye",
    ];
    let mut seeds = Vec::new();
    for frame in frames {
        for options in [0, 1, 2, 9] {
            let steps = [Step::Data(false, frame), Step::Data(true, frame)];
            seeds.push([&[options], &connection::input(&steps)[..]].concat());
            let (before, behind) = frame.split_at(3);
            let steps = [Step::Data(true, before), Step::Lost(true, behind)];
            seeds.push([&[options], &connection::input(&steps)[..]].concat());
        }
    }
    seeds
}
