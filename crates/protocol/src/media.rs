//! What kind of thing a body is, by its media type (RFC 9110 section 8.3) or, without one, its bytes.

use std::borrow::Cow;

/// The longest delimiter of parts (RFC 2046 section 5.1.1).
const BOUNDARY_MAX: usize = 70;

/// How a body or message is to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text of any sort, form fields among it.
    Text,
    /// JSON.
    Json,
    /// Parts with heads of their own, between lines with this delimiter (RFC 2046 section 5.1).
    Multipart(Vec<u8>),
    /// A message in the wire format of Protocol Buffers.
    Protobuf,
    /// None of these.
    Binary,
}

impl Kind {
    /// The kind of a body that begins with these bytes.
    pub fn of(content_type: Option<&[u8]>, content: &[u8]) -> Self {
        let named = content_type.and_then(Self::named);
        match named {
            Some(kind) => kind,
            None if is_text(content) => Self::Text,
            None => Self::Binary,
        }
    }

    /// The kind that a media type names; `None` if it names none that we know.
    fn named(content_type: &[u8]) -> Option<Self> {
        let essence = essence(content_type);
        let (kind, subtype) = essence.split_once('/')?;
        let suffix = subtype.rsplit_once('+').map(|(_, suffix)| suffix);
        Some(match (kind, subtype, suffix.unwrap_or(subtype)) {
            (_, _, "json") => Self::Json,
            ("text", ..) => Self::Text,
            ("multipart", ..) => match parameter(content_type, "boundary") {
                Some(boundary) if boundary.len() <= BOUNDARY_MAX => Self::Multipart(boundary),
                _ => return None,
            },
            (_, _, "xml" | "yaml" | "x-yaml" | "toml" | "javascript" | "ecmascript")
            | (_, "x-javascript" | "x-www-form-urlencoded" | "graphql" | "sql", _)
            | (_, "x-ndjson" | "ndjson" | "jsonlines" | "x-jsonlines" | "json-seq", _)
            | (_, "problem+json" | "x-sh" | "jwt" | "x-pem-file", _) => Self::Text,
            (_, "protobuf" | "x-protobuf" | "vnd.google.protobuf" | "proto", _)
            | (_, _, "proto" | "protobuf") => Self::Protobuf,
            ("image" | "audio" | "video" | "font", ..) => Self::Binary,
            _ => return None,
        })
    }

    /// The kind of gRPC's messages, by the type of the body that they are in.
    pub fn of_grpc(content_type: Option<&[u8]>, content: &[u8]) -> Self {
        let essence = content_type.map(essence).unwrap_or_default();
        match essence.rsplit_once('+') {
            Some((_, "json")) => Self::Json,
            Some((_, suffix)) if suffix != "proto" => Self::of(None, content),
            _ => Self::Protobuf,
        }
    }
}

/// Type and subtype in lower case, without parameters.
pub(crate) fn essence(content_type: &[u8]) -> String {
    let essence = content_type.split(|&byte| byte == b';').next();
    let essence = essence.unwrap_or_default().trim_ascii();
    String::from_utf8_lossy(essence).to_ascii_lowercase()
}

/// The value of a parameter, without its quotation marks.
fn parameter(content_type: &[u8], name: &str) -> Option<Vec<u8>> {
    let parameters = content_type.split(|&byte| byte == b';').skip(1);
    parameters.map(<[u8]>::trim_ascii).find_map(|parameter| {
        let equals = parameter.iter().position(|&byte| byte == b'=')?;
        let (found, value) = (&parameter[..equals], &parameter[equals + 1..]);
        let quoted = value
            .strip_prefix(b"\"")
            .and_then(|value| value.strip_suffix(b"\""));
        let value = quoted.unwrap_or(value);
        let matches = found.eq_ignore_ascii_case(name.as_bytes()) && !value.is_empty();
        matches.then(|| value.to_vec())
    })
}

/// Whether these bytes, which may end within a character, are text.
pub fn is_text(content: &[u8]) -> bool {
    let text = match str::from_utf8(content) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            str::from_utf8(&content[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.contains(|c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r'))
}

/// Text as UTF-8: as it is, unless its type says that it is Latin-1.
pub fn to_utf8<'a>(content_type: Option<&[u8]>, content: &'a [u8]) -> Cow<'a, [u8]> {
    const LATIN_1: [&str; 4] = ["iso-8859-1", "latin1", "windows-1252", "us-ascii"];

    let charset = content_type.and_then(|value| parameter(value, "charset"));
    let charset = String::from_utf8_lossy(charset.as_deref().unwrap_or_default()).to_lowercase();
    if !LATIN_1.contains(&charset.as_str()) || content.is_ascii() {
        return Cow::Borrowed(content);
    }
    let text: String = content.iter().map(|&byte| char::from(byte)).collect();
    Cow::Owned(text.into_bytes())
}

/// A part of a multipart body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultipartPart<'a> {
    /// Its header lines.
    pub head: &'a [u8],
    /// Its content; the last part of a body that was cut is cut too.
    pub content: &'a [u8],
}

impl MultipartPart<'_> {
    /// Its `Content-Type`.
    pub fn content_type(&self) -> Option<&[u8]> {
        let lines = self.head.split(|&byte| byte == b'\n');
        lines.map(<[u8]>::trim_ascii).find_map(|line| {
            let (name, value) = line.split_at_checked(b"content-type:".len())?;
            let matches = name.eq_ignore_ascii_case(b"content-type:");
            matches.then(|| value.trim_ascii())
        })
    }
}

/// The first 100 parts of a multipart body.
pub fn multipart_parts<'a>(content: &'a [u8], boundary: &[u8]) -> Vec<MultipartPart<'a>> {
    const PARTS_MAX: usize = 100;

    let delimiter = [b"--", boundary].concat();
    let mut parts = Vec::new();
    let mut rest = match find(content, &delimiter) {
        Some(at) => &content[at + delimiter.len()..],
        None => return parts,
    };
    while parts.len() < PARTS_MAX && !rest.starts_with(b"--") {
        let (part, behind) = match find(rest, &delimiter) {
            Some(at) => (&rest[..at], Some(&rest[at + delimiter.len()..])),
            None => (rest, None),
        };
        let part = without_line_break(part, behind.is_some());
        let (head, content) = match find(part, b"\r\n\r\n") {
            Some(at) => (&part[..at], &part[at + 4..]),
            None => part
                .strip_prefix(b"\r\n")
                .map_or((part, &part[..0]), |content| (&part[..0], content)),
        };
        if !part.is_empty() {
            parts.push(MultipartPart { head, content });
        }
        match behind {
            Some(behind) => rest = behind,
            None => break,
        }
    }
    parts
}

/// A part begins behind its delimiter's line break, and ends before that of the next delimiter.
fn without_line_break(part: &[u8], ended: bool) -> &[u8] {
    let part = part.strip_prefix(b"\r\n").unwrap_or(part);
    match part.strip_suffix(b"\r\n") {
        Some(shorter) if ended => shorter,
        _ => part,
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|&byte| byte == first) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn media_types_say_what_a_body_is() {
        let boundary = || Kind::Multipart(b"x y".to_vec());
        for (content_type, expected) in [
            ("application/json", Kind::Json),
            ("Application/Problem+JSON; charset=utf-8", Kind::Json),
            ("text/html; charset=utf-8", Kind::Text),
            ("image/svg+xml", Kind::Text),
            ("application/x-www-form-urlencoded", Kind::Text),
            ("multipart/form-data; boundary=\"x y\"", boundary()),
            ("application/x-protobuf", Kind::Protobuf),
            ("image/png", Kind::Binary),
            ("application/octet-stream", Kind::Binary),
            ("nonsense", Kind::Binary),
        ] {
            let found = Kind::of(Some(content_type.as_bytes()), b"\x01\x02");
            assert_eq!(found, expected, "{content_type}");
        }
    }

    #[test]
    fn without_a_type_the_bytes_decide() {
        assert_eq!(Kind::of(None, "Grüße\r\n".as_bytes()), Kind::Text);
        assert_eq!(Kind::of(None, &"Grü".as_bytes()[..3]), Kind::Text);
        assert_eq!(Kind::of(None, b"Gr\xfc\xdfe"), Kind::Binary);
        assert_eq!(Kind::of(None, b"\x1b[2J"), Kind::Binary);
        assert_eq!(
            Kind::of(Some(b"application/octet-stream"), b"text"),
            Kind::Text
        );
    }

    #[test]
    fn latin_1_becomes_utf_8() {
        let utf8 = |content_type: &str, content| to_utf8(Some(content_type.as_bytes()), content);
        assert_eq!(
            *utf8("text/plain; charset=ISO-8859-1", b"Gr\xfc\xdfe"),
            *"Grüße".as_bytes()
        );
        assert_eq!(*utf8("text/plain", b"Gr\xfc\xdfe"), *b"Gr\xfc\xdfe");
    }

    #[test]
    fn a_form_with_a_file_comes_apart() {
        let form = b"--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n\
            --XX\r\nContent-Disposition: form-data; name=\"f\"\r\ncontent-type:  image/png\r\n\r\n\
            \x89PNG\r\n\r\n--XX--\r\n";
        let parts = multipart_parts(form, b"XX");
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0].content, b"1");
        assert_eq!(parts[0].content_type(), None);
        assert_eq!(parts[1].content, b"\x89PNG\r\n");
        assert_eq!(parts[1].content_type(), Some(&b"image/png"[..]));
        // Cut within the second part.
        let parts = multipart_parts(&form[..form.len() - 12], b"XX");
        assert_eq!(parts[1].content, b"\x89PNG");
    }

    proptest! {
        #[test]
        fn random_bytes_do_no_harm(
            content in "[-X\r\n:a]{0,100}",
            content_type in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            for part in multipart_parts(content.as_bytes(), b"X") {
                part.content_type();
            }
            Kind::of(Some(&content_type), content.as_bytes());
            to_utf8(Some(&content_type), content.as_bytes());
        }
    }
}
