//! Protocol Buffers without their schema.

use protocol::{ProtobufField, ProtobufValue, parse_protobuf};

/// A message.
pub fn run(bytes: &[u8]) {
    if let Some(fields) = parse_protobuf(bytes) {
        let (count, depth) = size(&fields);
        assert!(count <= bytes.len() && count <= 10_000, "{count} fields");
        assert!(depth <= 18, "{depth} deep");
    }
}

/// How many fields there are with those inside of others, and how deep.
fn size(fields: &[ProtobufField<'_>]) -> (usize, usize) {
    let mut total = (fields.len(), 1);
    for field in fields {
        if let ProtobufValue::Message(inner) = &field.value {
            let (count, depth) = size(inner);
            total = (total.0 + count, total.1.max(depth + 1));
        }
    }
    total
}

pub fn seeds() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 5] = [
        b"\x08\x96\x01",
        b"\x12\x07testing\x1a\x03\x08\x96\x01",
        b"\x22\x06\x03\x8e\x02\x9e\xa7\x05\x0d\x01\x02\x03\x04\x11\x01\x02\x03\x04\x05\x06\x07\x08",
        b"\x0b\x08\x01\x13\x08\x02\x14\x0c",
        b"\x0a\x02\x0a\x00\xf8\xff\xff\xff\x0f\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ];
    seeds.map(<[u8]>::to_vec).to_vec()
}
