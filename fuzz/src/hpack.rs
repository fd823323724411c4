//! HPACK: header blocks, compared with another decoder.

use protocol::{Decoder, Http2, HttpEvent, RequestHead, Side};

use crate::connection::frame;

/// Header blocks, each behind its length (16 bits, little-endian).
pub fn run(mut bytes: &[u8]) {
    let mut ours = Http2::new();
    let mut other = fluke_hpack::Decoder::new();
    other.set_max_allowed_table_size(4096);
    let mut offset = protocol::http2::PREFACE.len() as u64;
    ours.data(Side::Client, 0, protocol::http2::PREFACE, &mut |_| {});
    let mut stream = 1;
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        // As long as a frame may be without a setting.
        let length = usize::from(u16::from_le_bytes(*length)) % (16 << 10);
        let (block, rest) = rest.split_at(rest.len().min(length));
        bytes = rest;
        let frame = frame(1, 5, stream, block);
        let (mut head, mut trouble) = (None, false);
        ours.data(Side::Client, offset, &frame, &mut |event| match event {
            HttpEvent::Request(_, request) => head = Some(request),
            HttpEvent::Trouble(..) => trouble = true,
            _ => {}
        });
        offset += frame.len() as u64;
        stream += 2;
        // The other one panics at some mistakes, so it gets what we accept.
        let Some(head) = head.filter(|_| !trouble) else {
            return;
        };
        let Ok(expected) = other.decode(block) else {
            return;
        };
        compare(&head, &expected);
    }
}

fn compare(head: &RequestHead, expected: &[(Vec<u8>, Vec<u8>)]) {
    assert_eq!(head.unknown_fields, 0);
    let is_pseudo = |name: &[u8]| name.starts_with(b":");
    let found = head
        .fields
        .iter()
        .map(|field| (&field.name, field.value.as_ref()));
    let others = expected.iter().filter(|(name, _)| !is_pseudo(name));
    assert!(
        found.eq(others.map(|(name, value)| (name, Some(value)))),
        "{head:?}: {expected:?}"
    );
    for (name, value) in expected {
        let found = match &name[..] {
            b":method" => &head.method,
            b":scheme" => &head.scheme,
            b":path" => &head.target,
            b":authority" => &head.authority,
            _ => continue,
        };
        assert_eq!(found.as_ref(), Some(value));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    // RFC 7541 appendices C.3, C.4 and C.5 with another request line, and size updates.
    let blocks: [&[&[u8]]; 4] = [
        &[
            b"\x82\x86\x84\x41\x0fwww.example.com",
            b"\x82\x86\x84\xbe\x58\x08no-cache",
            b"\x82\x87\x85\xbf\x40\x0acustom-key\x0ccustom-value",
        ],
        &[
            b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
            b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf",
        ],
        &[
            b"\x3f\xe1\x1f\x82\x84\x87\x10\x01x\x01y",
            b"\x20\x82\x84\x87\x0f\x13\x01z",
        ],
        &[
            b"\x20\x3f\x1f\x82\x84\x87\x40\x01a\x01b\x40\x01c\x01d\xbe\xbf",
            b"\x82\x84\x87\xbf",
        ],
    ];
    let with_length = |block: &&[u8]| [&(block.len() as u16).to_le_bytes(), *block].concat();
    blocks
        .iter()
        .map(|blocks| blocks.iter().flat_map(with_length).collect())
        .collect()
}
