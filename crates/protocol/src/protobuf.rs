//! Protocol Buffers without their schema: field numbers and what the wire format alone says
//! (<https://protobuf.dev/programming-guides/encoding/>).
//!
//! A length-delimited field may be text, bytes or a message, and the wire does not say which. Text is
//! what is valid UTF-8 without control characters; a message is what parses as one to its last byte,
//! and nearly always holds control characters, because tags and lengths are small numbers.

/// Messages within messages.
const DEPTH_MAX: usize = 16;

/// Fields of a message with all that is in it.
const FIELDS_MAX: usize = 10_000;

/// The largest field number.
const NUMBER_MAX: u64 = (1 << 29) - 1;

/// A field.
#[derive(Clone, Debug, PartialEq)]
pub struct ProtobufField<'a> {
    /// Its number in the schema.
    pub number: u32,
    /// What it holds.
    pub value: ProtobufValue<'a>,
}

/// What a field holds, as far as the wire format tells.
#[derive(Clone, Debug, PartialEq)]
pub enum ProtobufValue<'a> {
    /// An integer, a boolean or an enumeration; `sint` types are zigzag-encoded in it.
    Varint(u64),
    /// `fixed64`, `sfixed64` or `double`.
    Fixed64(u64),
    /// `fixed32`, `sfixed32` or `float`.
    Fixed32(u32),
    /// A string, most likely.
    Text(&'a str),
    /// Bytes, or a packed repeated field.
    Bytes(&'a [u8]),
    /// A message, most likely; or a group.
    Message(Vec<ProtobufField<'a>>),
}

/// Parses a message; `None` if it is none, or has more fields than we are ready to hold.
pub fn parse_protobuf(message: &[u8]) -> Option<Vec<ProtobufField<'_>>> {
    let mut parser = Parser {
        fields_left: FIELDS_MAX,
    };
    let mut rest = message;
    let fields = parser.fields(&mut rest, None, 0)?;
    rest.is_empty().then_some(fields)
}

struct Parser {
    fields_left: usize,
}

impl Parser {
    /// The fields up to the end, or up to the end of the group with this number.
    fn fields<'a>(
        &mut self,
        rest: &mut &'a [u8],
        group: Option<u32>,
        depth: usize,
    ) -> Option<Vec<ProtobufField<'a>>> {
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let tag = varint(rest)?;
            let number = u32::try_from(tag >> 3)
                .ok()
                .filter(|&number| (1..=NUMBER_MAX).contains(&u64::from(number)))?;
            let value = match tag & 7 {
                0 => ProtobufValue::Varint(varint(rest)?),
                1 => ProtobufValue::Fixed64(u64::from_le_bytes(array(rest)?)),
                2 => {
                    let length = usize::try_from(varint(rest)?).ok()?;
                    self.delimited(take(rest, length)?, depth)
                }
                3 if depth < DEPTH_MAX => {
                    ProtobufValue::Message(self.fields(rest, Some(number), depth + 1)?)
                }
                4 if group == Some(number) => return Some(fields),
                5 => ProtobufValue::Fixed32(u32::from_le_bytes(array(rest)?)),
                _ => return None,
            };
            self.fields_left = self.fields_left.checked_sub(1)?;
            fields.push(ProtobufField { number, value });
        }
        group.is_none().then_some(fields)
    }

    fn delimited<'a>(&mut self, bytes: &'a [u8], depth: usize) -> ProtobufValue<'a> {
        let text = std::str::from_utf8(bytes).ok();
        if let Some(text) = text.filter(|text| !text.contains(char::is_control)) {
            return ProtobufValue::Text(text);
        }
        if depth < DEPTH_MAX {
            let (mut rest, fields_left) = (bytes, self.fields_left);
            match self.fields(&mut rest, None, depth + 1) {
                Some(fields) => return ProtobufValue::Message(fields),
                None => self.fields_left = fields_left,
            }
        }
        let layout = |c: char| matches!(c, '\t' | '\n' | '\r');
        match text.filter(|text| !text.contains(|c: char| c.is_control() && !layout(c))) {
            Some(text) => ProtobufValue::Text(text),
            None => ProtobufValue::Bytes(bytes),
        }
    }
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, behind) = rest.split_first()?;
        *rest = behind;
        // What goes beyond 64 bits of the tenth byte is dropped, as all implementations do.
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    take(rest, N)?.try_into().ok()
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::ProtobufValue::*;
    use super::*;

    fn field(number: u32, value: ProtobufValue<'_>) -> ProtobufField<'_> {
        ProtobufField { number, value }
    }

    fn encode_varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    fn encode(fields: &[ProtobufField<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        for field in fields {
            let tag = |wire_type| u64::from(field.number) << 3 | wire_type;
            let mut delimited = |bytes: &[u8]| {
                encode_varint(&mut out, tag(2));
                encode_varint(&mut out, bytes.len() as u64);
                out.extend_from_slice(bytes);
            };
            match &field.value {
                Text(text) => delimited(text.as_bytes()),
                Bytes(bytes) => delimited(bytes),
                Message(fields) => delimited(&encode(fields)),
                Varint(value) => {
                    encode_varint(&mut out, tag(0));
                    encode_varint(&mut out, *value);
                }
                Fixed64(value) => {
                    encode_varint(&mut out, tag(1));
                    out.extend_from_slice(&value.to_le_bytes());
                }
                Fixed32(value) => {
                    encode_varint(&mut out, tag(5));
                    out.extend_from_slice(&value.to_le_bytes());
                }
            }
        }
        out
    }

    #[test]
    fn the_documentations_examples_parse() {
        let parse = |bytes| parse_protobuf(bytes).unwrap();
        assert_eq!(parse(b"\x08\x96\x01"), [field(1, Varint(150))]);
        assert_eq!(parse(b"\x12\x07testing"), [field(2, Text("testing"))]);
        let inner = vec![field(1, Varint(150))];
        assert_eq!(parse(b"\x1a\x03\x08\x96\x01"), [field(3, Message(inner))]);
    }

    #[test]
    fn etcds_put_request_parses() {
        let put = b"\x0a\x03foo\x12\x05hello\x18\x80\x80\x01";
        assert_eq!(
            parse_protobuf(put).unwrap(),
            [
                field(1, Text("foo")),
                field(2, Text("hello")),
                field(3, Varint(16384))
            ]
        );
    }

    #[test]
    fn groups_end_with_their_own_number() {
        let group = field(1, Message(vec![field(2, Varint(3))]));
        assert_eq!(parse_protobuf(b"\x0b\x10\x03\x0c").unwrap(), [group]);
        assert_eq!(parse_protobuf(b"\x0b\x10\x03\x14"), None);
        assert_eq!(parse_protobuf(b"\x0b\x10\x03"), None);
        assert_eq!(parse_protobuf(b"\x0c"), None);
    }

    #[test]
    fn what_is_no_message_is_none() {
        for bytes in [
            &b"\x00\x01"[..],
            b"\x08",
            b"\x12\x05four",
            b"\x0f",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert_eq!(parse_protobuf(bytes), None, "{bytes:x?}");
        }
    }

    #[test]
    fn deep_and_long_messages_are_bounded() {
        let mut deep = b"\x08\x01".to_vec();
        for _ in 0..1000 {
            let mut outer = vec![0x0a];
            encode_varint(&mut outer, deep.len() as u64);
            outer.append(&mut deep);
            deep = outer;
        }
        assert!(parse_protobuf(&deep).is_some());
        assert_eq!(parse_protobuf(&b"\x0b".repeat(1_000_000)), None);
        assert_eq!(parse_protobuf(&b"\x08\x01".repeat(1_000_000)), None);
    }

    proptest! {
        #[test]
        fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = parse_protobuf(&bytes);
        }

        #[test]
        fn what_was_encoded_is_found(
            numbers in proptest::collection::vec((1..=NUMBER_MAX as u32, any::<u64>()), 1..20),
            text in "[ -~]{0,40}",
        ) {
            let mut inner: Vec<_> =
                numbers.iter().map(|&(number, value)| field(number, Varint(value))).collect();
            inner.push(field(7, Fixed64(u64::MAX)));
            let message = vec![
                field(1, Text(&text)),
                field(2, Fixed32(9)),
                field(3, Message(inner)),
                field(4, Bytes(b"\xff\xfe\x00")),
            ];
            let encoded = encode(&message);
            prop_assert_eq!(parse_protobuf(&encoded), Some(message));
        }
    }
}
