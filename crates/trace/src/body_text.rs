//! Bodies and messages as text for people: text as it is, everything else as what it is.

use protocol::{
    Body, ContentState, Kind, MultipartPart, ProtobufField, ProtobufValue, multipart_parts,
    parse_protobuf, to_utf8,
};

use crate::escape::{escape_name, escape_payload};
use crate::hexdump::write_hexdump;
use crate::text::PayloadStyle;
use crate::units::Size;

/// Bytes of something binary that are shown.
const BINARY_SHOWN: usize = 32;

/// Text that a message of Protocol Buffers is shown as.
const PROTOBUF_SHOWN: usize = 256 << 10;

/// How bodies are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BodyText {
    pub(crate) style: PayloadStyle,
    /// Whether JSON is indented.
    pub(crate) indent: bool,
}

impl BodyText {
    /// Appends what is kept of a body of this kind, and a line that says what is not; nothing for an
    /// empty one.
    pub(crate) fn body(
        self,
        out: &mut Vec<u8>,
        body: &Body,
        kind: &Kind,
        media_type: Option<&[u8]>,
    ) {
        if body.state() == ContentState::UnknownCoding {
            self.binary(out, body.content(), media_type);
        } else {
            self.content(out, body.content(), kind, media_type);
        }
        note(out, body);
    }

    fn content(self, out: &mut Vec<u8>, content: &[u8], kind: &Kind, media_type: Option<&[u8]>) {
        if content.is_empty() {
            return;
        }
        if self.style == PayloadStyle::Hex {
            // Writing to a vector does not fail.
            let _ = write_hexdump(out, content, 0);
            return;
        }
        match kind {
            Kind::Json if self.indent => text(out, &indented(content)),
            Kind::Text | Kind::Json => text(out, &to_utf8(media_type, content)),
            Kind::Multipart(boundary) => {
                let parts = multipart_parts(content, boundary);
                if parts.is_empty() {
                    self.binary(out, content, media_type);
                }
                for part in parts {
                    self.part(out, part);
                }
            }
            Kind::Protobuf => match parse_protobuf(content) {
                Some(fields) => protobuf(out, &fields, 0),
                None => self.binary(out, content, media_type),
            },
            Kind::Binary => self.binary(out, content, media_type),
        }
    }

    fn part(self, out: &mut Vec<u8>, part: MultipartPart<'_>) {
        out.extend_from_slice(b"[part]\n");
        text(out, part.head);
        let kind = match Kind::of(part.content_type(), part.content) {
            // Within each other they could be without end.
            Kind::Multipart(_) => Kind::Binary,
            kind => kind,
        };
        if !part.content.is_empty() {
            out.push(b'\n');
        }
        self.content(out, part.content, &kind, part.content_type());
    }

    /// `[1.2 MB of image/png: 89 50 4e 47 …]`
    fn binary(self, out: &mut Vec<u8>, content: &[u8], media_type: Option<&[u8]>) {
        if self.style == PayloadStyle::Hex {
            let _ = write_hexdump(out, content, 0);
            return;
        }
        let size = Size(content.len() as u64);
        let media_type = media_type.map(escape_name).unwrap_or_default();
        let of = if media_type.is_empty() { "" } else { " of " };
        out.extend_from_slice(format!("[{size}{of}{media_type}:").as_bytes());
        for byte in content.iter().take(BINARY_SHOWN) {
            out.extend_from_slice(format!(" {byte:02x}").as_bytes());
        }
        let more = if content.len() > BINARY_SHOWN {
            " …"
        } else {
            ""
        };
        out.extend_from_slice(format!("{more}]\n").as_bytes());
    }
}

/// Says what of a body is not there.
pub(crate) fn note(out: &mut Vec<u8>, body: &Body) {
    let shown = body.content().len() as u64;
    let line = match body.state() {
        ContentState::Whole => return,
        ContentState::Cut if body.missing.bytes > 0 => format!(
            "[the first {}; {} of the body's {} {}]",
            Size(shown),
            Size(body.missing.bytes),
            Size(body.length),
            if body.missing.lost() > 0 {
                "are missing"
            } else {
                "were not captured (--tsize)"
            }
        ),
        ContentState::Cut if body.length > 0 => {
            format!(
                "[the first {} of a body of {}]",
                Size(shown),
                Size(body.length)
            )
        }
        ContentState::Cut => return,
        ContentState::Undecodable(coding) => format!("[not valid {} from here on]", coding.name()),
        ContentState::UnknownCoding => "[in a content coding that is not known]".to_owned(),
    };
    out.extend_from_slice(line.as_bytes());
    out.push(b'\n');
}

/// Text, which ends with its line.
pub(crate) fn text(out: &mut Vec<u8>, content: &[u8]) {
    escape_payload(out, content);
    if !content.is_empty() && !out.ends_with(b"\n") {
        out.push(b'\n');
    }
}

/// Fields as `protoc --decode_raw` writes them.
fn protobuf(out: &mut Vec<u8>, fields: &[ProtobufField<'_>], depth: usize) {
    for field in fields {
        if out.len() > PROTOBUF_SHOWN {
            out.extend_from_slice("…\n".as_bytes());
            return;
        }
        out.extend_from_slice("  ".repeat(depth).as_bytes());
        out.extend_from_slice(field.number.to_string().as_bytes());
        let value = match &field.value {
            ProtobufValue::Message(fields) => {
                out.extend_from_slice(b" {\n");
                protobuf(out, fields, depth + 1);
                out.extend_from_slice("  ".repeat(depth).as_bytes());
                out.extend_from_slice(b"}\n");
                continue;
            }
            ProtobufValue::Varint(value) => value.to_string(),
            ProtobufValue::Fixed64(value) => format!("{value:#018x}"),
            ProtobufValue::Fixed32(value) => format!("{value:#010x}"),
            ProtobufValue::Text(text) => {
                let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
                format!("\"{}\"", escape_name(quoted.as_bytes()))
            }
            ProtobufValue::Bytes(bytes) => hex(bytes),
        };
        out.extend_from_slice(format!(": {value}\n").as_bytes());
    }
}

/// `[40 bytes: 01 02 …]`
fn hex(bytes: &[u8]) -> String {
    let shown = bytes.iter().take(BINARY_SHOWN);
    let digits: String = shown.map(|byte| format!(" {byte:02x}")).collect();
    let more = if bytes.len() > BINARY_SHOWN {
        " …"
    } else {
        ""
    };
    format!("[{}:{digits}{more}]", Size(bytes.len() as u64))
}

/// JSON with a line for each member, two blanks for each level. Nothing is changed within strings and
/// numbers, and JSON that was cut or is none comes out with all that it has. What would become much
/// longer, because it is deep and holds little else, is left as it is.
fn indented(json: &[u8]) -> Vec<u8> {
    const DEPTH_MAX: usize = 40;
    const GROWTH_MAX: usize = 16;

    let mut out = Vec::with_capacity(2 * json.len());
    let mut depth: usize = 0;
    let mut bytes = json.iter().copied().peekable();
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.resize(out.len() + 2 * depth.min(DEPTH_MAX), b' ');
    };
    while let Some(byte) = bytes.next() {
        if out.len() > GROWTH_MAX * (json.len() + 100) {
            return json.to_vec();
        }
        match byte {
            b'"' => {
                out.push(byte);
                while let Some(byte) = bytes.next() {
                    out.push(byte);
                    match byte {
                        b'\\' => out.extend(bytes.next()),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            b' ' | b'\t' | b'\r' => {}
            // Between the values of newline-delimited JSON.
            b'\n' if depth == 0 && !out.is_empty() && bytes.peek().is_some() => out.push(byte),
            b'\n' => {}
            b'{' | b'[' => {
                out.push(byte);
                while bytes.next_if(u8::is_ascii_whitespace).is_some() {}
                match bytes.next_if(|&next| next == b'}' || next == b']') {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        line(&mut out, depth);
                    }
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            _ => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn shown(style: PayloadStyle, content: &[u8], media_type: &str) -> String {
        let media_type = Some(media_type.as_bytes());
        let text = BodyText {
            style,
            indent: true,
        };
        let mut out = Vec::new();
        text.content(
            &mut out,
            content,
            &Kind::of(media_type, content),
            media_type,
        );
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn bodies_are_shown_as_what_they_are() {
        for (content, media_type, expected) in [
            (&b"plain\x1b[2J"[..], "text/plain", "plain\\x1b[2J\n"),
            (b"Gr\xfc\xdfe", "text/plain; charset=latin1", "Grüße\n"),
            (b"Gr\xfc\xdfe", "text/plain", "Gr\\xfc\\xdfe\n"),
            (
                b"a=1&b=%20",
                "application/x-www-form-urlencoded",
                "a=1&b=%20\n",
            ),
            (
                b"\x89PNG\r\n\x1a\n",
                "image/png",
                "[8 bytes of image/png: 89 50 4e 47 0d 0a 1a 0a]\n",
            ),
            (
                b"{\"a\":[1,{}],\"b\":\"x: {\\\",}\"}",
                "application/json",
                "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": \"x: {\\\",}\"\n}\n",
            ),
            (
                b"\x0a\x03foo\x12\x04\x08\x01\x10\x02\x1a\x02\xff\xfe\x25\x01\0\0\0",
                "application/x-protobuf",
                "1: \"foo\"\n2 {\n  1: 1\n  2: 2\n}\n3: [2 bytes: ff fe]\n4: 0x00000001\n",
            ),
            (
                b"--X\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--X--\r\n",
                "multipart/form-data; boundary=X",
                "[part]\nContent-Disposition: form-data; name=\"a\"\n\n1\n",
            ),
            (b"", "text/plain", ""),
        ] {
            assert_eq!(shown(PayloadStyle::Text, content, media_type), expected);
        }
        let dump = shown(PayloadStyle::Hex, b"text", "text/plain");
        assert!(dump.starts_with("00000000  74 65 78 74 "), "{dump}");
    }

    #[test]
    fn deep_json_does_not_grow_without_bounds() {
        let deep = b"[".repeat(1 << 20);
        assert!(indented(&deep) == deep);
    }

    proptest! {
        #[test]
        fn nothing_that_a_terminal_obeys_comes_through(
            content in proptest::collection::vec(any::<u8>(), 0..500),
            media_type in 0..6usize,
        ) {
            const TYPES: [&str; 6] = ["text/plain", "text/plain; charset=latin1", "application/json",
                "application/x-protobuf", "multipart/mixed; boundary=a", ""];
            let text = shown(PayloadStyle::Text, &content, TYPES[media_type]);
            prop_assert!(text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
        }

        #[test]
        fn indenting_keeps_the_meaning(
            names in proptest::collection::vec(".{0,10}", 0..6), number in any::<i64>(),
        ) {
            let mut value = serde_json::json!({"numbers": [number, 1, []], "nested": {"x": {}}});
            for name in names {
                value = serde_json::json!({ name: [value, null] });
            }
            for json in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                let found: Value = serde_json::from_slice(&indented(json.as_bytes())).unwrap();
                prop_assert_eq!(&found, &value);
                prop_assert_eq!(
                    String::from_utf8(indented(json.as_bytes())).unwrap(),
                    serde_json::to_string_pretty(&value).unwrap()
                );
            }
        }
    }
}
