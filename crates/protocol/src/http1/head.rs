//! Message heads: where they end, what they say, and how the body behind them is framed (RFC 9112
//! sections 2 to 6). The syntax is the `httparse` crate's.

use std::borrow::Cow;

use super::chunked::Chunked;
use crate::event::{Field, RequestHead, ResponseHead, Trouble, Version};

/// Bytes of a head that are held until it is complete. Go's `net/http` allows 1 MiB by default, other
/// servers 8 to 64 KiB.
pub const HEAD_MAX: usize = 256 << 10;

/// Fields in a head or trailer section.
pub const FIELDS_MAX: usize = 1000;

/// Length of the head that `bytes` begin with, up to and with its empty line; `scanned` bytes are
/// known not to have one.
pub(super) fn head_length(bytes: &[u8], scanned: usize) -> Option<usize> {
    let from = scanned.saturating_sub(3);
    let line_ends = memchr::memchr_iter(b'\n', bytes.get(from..).unwrap_or_default());
    let mut line_ends = line_ends.map(|at| from + at);
    line_ends.find_map(|at| match bytes[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// What the request before asked for, as far as the framing of the response depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Head,
    Connect,
    /// With an `Upgrade` field.
    Upgrade,
    Other,
}

impl Asked {
    /// Of a request.
    pub(super) fn of(head: &RequestHead) -> Self {
        match head.method.as_deref() {
            Some(b"HEAD") => Self::Head,
            Some(b"CONNECT") => Self::Connect,
            _ if values(&head.fields, "upgrade").next().is_some() => Self::Upgrade,
            _ => Self::Other,
        }
    }

    /// Whether the connection may become something else behind the request.
    pub(super) fn may_switch(self) -> bool {
        matches!(self, Self::Connect | Self::Upgrade)
    }
}

/// How the end of a body is found.
#[derive(Debug)]
pub(super) enum Framing {
    /// Bytes that are still to come.
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

/// Parses a complete request head.
pub(super) fn parse_request(bytes: &[u8]) -> Result<RequestHead, Trouble> {
    let lines = Lines::of(bytes);
    let mut fields = vec![httparse::EMPTY_HEADER; field_slots(&lines.sent)];
    let mut request = httparse::Request::new(&mut fields);
    request.parse(&lines.parsable).map_err(trouble)?;
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Trouble::Malformed("request head"));
    };
    let fields = lines.owned(request.headers);
    let host = values(&fields, "host").next().map(<[u8]>::to_vec);
    let target = Target::of(method, target.as_bytes());
    Ok(RequestHead {
        version: version_of(version),
        method: Some(method.as_bytes().to_vec()),
        scheme: Some(target.scheme.unwrap_or(b"https").to_vec()),
        authority: target.authority.map(<[u8]>::to_vec).or(host),
        target: Some(target.path.to_vec()),
        fields,
        unknown_fields: 0,
        wire_length: bytes.len() as u64,
    })
}

/// Parses a complete response head.
pub(super) fn parse_response(bytes: &[u8]) -> Result<ResponseHead, Trouble> {
    let lines = Lines::of(bytes);
    let mut fields = vec![httparse::EMPTY_HEADER; field_slots(&lines.sent)];
    let mut response = httparse::Response::new(&mut fields);
    httparse::ParserConfig::default()
        .allow_spaces_after_header_name_in_responses(true)
        .parse_response(&mut response, &lines.parsable)
        .map_err(trouble)?;
    let (Some(status), Some(version)) = (response.code, response.version) else {
        return Err(Trouble::Malformed("response head"));
    };
    if status < 100 {
        return Err(Trouble::Malformed("status code below 100"));
    }
    Ok(ResponseHead {
        version: version_of(version),
        status: Some(status),
        reason: reason(&lines.sent),
        fields: lines.owned(response.headers),
        unknown_fields: 0,
        wire_length: bytes.len() as u64,
    })
}

/// Parses a trailer section with its empty line.
pub(super) fn parse_trailers(bytes: &[u8]) -> Result<Vec<Field>, Trouble> {
    let lines = Lines::of(bytes);
    let mut fields = vec![httparse::EMPTY_HEADER; field_slots(&lines.sent)];
    match httparse::parse_headers(&lines.parsable, &mut fields) {
        Ok(httparse::Status::Complete((_, fields))) => Ok(lines.owned(fields)),
        Ok(httparse::Status::Partial) => Err(Trouble::Malformed("trailer section")),
        Err(error) => Err(trouble(error)),
    }
}

/// How a request's body is framed (RFC 9112 section 6.3), and what is wrong with it although it can
/// be decoded.
pub(super) fn request_framing(head: &RequestHead) -> Result<(Framing, Option<Trouble>), Trouble> {
    match coding(head.version, &head.fields)? {
        Some((Coding::Chunked, doubt)) => Ok((Framing::Chunked(Chunked::new()), doubt)),
        Some((Coding::Other, _)) => Err(Trouble::Malformed(
            "Transfer-Encoding of a request does not end with chunked",
        )),
        None => Ok((
            Framing::Length(content_length(&head.fields)?.unwrap_or(0)),
            None,
        )),
    }
}

/// How a response's body is framed (RFC 9112 section 6.3); `asked` is what the request was, if known.
pub(super) fn response_framing(
    head: &ResponseHead,
    asked: Option<Asked>,
) -> Result<(Framing, Option<Trouble>), Trouble> {
    if asked == Some(Asked::Head) || matches!(head.status, Some(100..=199 | 204 | 304)) {
        return Ok((Framing::Length(0), None));
    }
    match coding(head.version, &head.fields)? {
        Some((Coding::Chunked, doubt)) => Ok((Framing::Chunked(Chunked::new()), doubt)),
        Some((Coding::Other, doubt)) => Ok((Framing::UntilClose, doubt)),
        None => Ok(match content_length(&head.fields)? {
            Some(length) => (Framing::Length(length), None),
            None => (Framing::UntilClose, None),
        }),
    }
}

/// Values of the fields of a name, which is given in lower case.
pub(super) fn values<'a>(fields: &'a [Field], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name.as_bytes()))
        .filter_map(|field| field.value.as_deref())
}

/// The final transfer coding.
enum Coding {
    Chunked,
    Other,
}

fn coding(
    version: Version,
    fields: &[Field],
) -> Result<Option<(Coding, Option<Trouble>)>, Trouble> {
    let codings = values(fields, "transfer-encoding")
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|coding| !coding.is_empty());
    let Some(last) = codings.last() else {
        return Ok(None);
    };
    if version == Version::Http10 {
        // RFC 9112 section 6.1; Go ignores the field, others do not.
        return Err(Trouble::Malformed("Transfer-Encoding in HTTP/1.0"));
    }
    let coding = if last.eq_ignore_ascii_case(b"chunked") {
        Coding::Chunked
    } else {
        Coding::Other
    };
    let both = values(fields, "content-length").next().is_some();
    let doubt = both.then_some(Trouble::Malformed(
        "both Transfer-Encoding and Content-Length",
    ));
    Ok(Some((coding, doubt)))
}

/// The same value several times is one (RFC 9110 section 8.6).
fn content_length(fields: &[Field]) -> Result<Option<u64>, Trouble> {
    let mut length = None;
    for value in
        values(fields, "content-length").flat_map(|value| value.split(|byte| *byte == b','))
    {
        let value = decimal(value.trim_ascii()).ok_or(Trouble::Malformed("Content-Length"))?;
        if length.is_some_and(|length| length != value) {
            return Err(Trouble::Malformed("conflicting Content-Length"));
        }
        length = Some(value);
    }
    Ok(length)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The parts of a request target (RFC 9112 section 3.2).
struct Target<'a> {
    scheme: Option<&'a [u8]>,
    authority: Option<&'a [u8]>,
    path: &'a [u8],
}

impl<'a> Target<'a> {
    fn of(method: &str, target: &'a [u8]) -> Self {
        if method == "CONNECT" {
            return Self {
                scheme: None,
                authority: Some(target),
                path: target,
            };
        }
        Self::absolute(target).unwrap_or(Self {
            scheme: None,
            authority: None,
            path: target,
        })
    }

    /// `scheme://authority/path?query`.
    fn absolute(target: &'a [u8]) -> Option<Self> {
        let scheme = target.iter().position(|byte| *byte == b':')?;
        let rest = target[scheme..].strip_prefix(b"://")?;
        if scheme == 0
            || !target[..scheme]
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric())
        {
            return None;
        }
        let path = rest.iter().position(|byte| b"/?".contains(byte));
        let (authority, path) = rest.split_at(path.unwrap_or(rest.len()));
        Some(Self {
            scheme: Some(&target[..scheme]),
            authority: Some(authority),
            path: if path.is_empty() { b"/" } else { path },
        })
    }
}

fn version_of(minor: u8) -> Version {
    if minor == 0 {
        Version::Http10
    } else {
        Version::Http11
    }
}

/// The lines of a head. Go's client accepts control characters in the values of fields, which are invalid
/// (RFC 9110 section 5.5): who looks on has to see what it sees.
struct Lines<'a> {
    /// As they were sent, but unfolded.
    sent: Cow<'a, [u8]>,
    /// The same with something else in the place of control characters, which `httparse` refuses.
    parsable: Cow<'a, [u8]>,
}

impl<'a> Lines<'a> {
    fn of(head: &'a [u8]) -> Self {
        let sent = unfold(head);
        let parsable = without_control_characters(&sent).map_or_else(|| sent.clone(), Cow::Owned);
        Self { sent, parsable }
    }

    fn owned(&self, fields: &[httparse::Header<'_>]) -> Vec<Field> {
        let field = |field: &httparse::Header<'_>| Field {
            name: field.name.as_bytes().to_vec(),
            value: Some(self.as_sent(field.value).trim_ascii().to_vec()),
        };
        fields.iter().map(field).collect()
    }

    /// What was sent in the place of a part of `parsable`.
    fn as_sent<'b>(&'b self, part: &'b [u8]) -> &'b [u8] {
        let at = part
            .as_ptr()
            .addr()
            .checked_sub(self.parsable.as_ptr().addr());
        at.and_then(|at| self.sent.get(at..at + part.len()))
            .unwrap_or(part)
    }
}

/// A copy with question marks for the control characters in values of fields and in the reason phrase, if
/// there are any.
fn without_control_characters(head: &[u8]) -> Option<Vec<u8>> {
    // Without branches, so that it is done for many bytes at once; `unfold` likewise.
    let is_control = |byte: &u8| {
        (*byte < b' ') & (*byte != b'\t') & (*byte != b'\r') & (*byte != b'\n') | (*byte == 0x7f)
    };
    if !head.iter().fold(false, |any, byte| any | is_control(byte)) {
        return None;
    }
    let mut copy = head.to_vec();
    for line in copy.split_mut(|byte| *byte == b'\n') {
        let from = free_text(line);
        let text = line.get_mut(from..).unwrap_or_default();
        text.iter_mut()
            .filter(|byte| is_control(byte))
            .for_each(|byte| *byte = b'?');
    }
    Some(copy)
}

/// Where in a line begins what is no syntax: behind the name of a field, or behind the status code.
fn free_text(line: &[u8]) -> usize {
    if line.starts_with(b"HTTP/") {
        return "HTTP/1.1 200".len();
    }
    match line.iter().position(|byte| b": \t".contains(byte)) {
        Some(end) if line[end] == b':' => end + 1,
        _ => line.len(),
    }
}

/// What follows the status code; `httparse` gives an empty one if it is not ASCII.
fn reason(head: &[u8]) -> Vec<u8> {
    let line = head.trim_ascii_start();
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    line.get("HTTP/1.1 200".len()..)
        .unwrap_or_default()
        .trim_ascii()
        .to_vec()
}

/// One slot for every line, up to the limit.
fn field_slots(head: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', head).count().min(FIELDS_MAX)
}

/// Replaces obsolete line folding by spaces (RFC 9112 section 5.2).
fn unfold(head: &[u8]) -> Cow<'_, [u8]> {
    let is_fold = |first: u8, second: u8| (first == b'\n') & ((second == b' ') | (second == b'\t'));
    let pairs = head.iter().zip(head.get(1..).unwrap_or_default());
    if !pairs.fold(false, |any, (first, second)| any | is_fold(*first, *second)) {
        return Cow::Borrowed(head);
    }
    let mut unfolded = head.to_vec();
    for at in 0..head.len() - 1 {
        if is_fold(head[at], head[at + 1]) {
            unfolded[at] = b' ';
            if at > 0 && head[at - 1] == b'\r' {
                unfolded[at - 1] = b' ';
            }
        }
    }
    Cow::Owned(unfolded)
}

fn trouble(error: httparse::Error) -> Trouble {
    match error {
        httparse::Error::TooManyHeaders => Trouble::TooMuch("fields", FIELDS_MAX),
        httparse::Error::HeaderName => Trouble::Malformed("field name"),
        httparse::Error::HeaderValue => Trouble::Malformed("field value"),
        httparse::Error::NewLine => Trouble::Malformed("end of a line"),
        httparse::Error::Status => Trouble::Malformed("status line"),
        httparse::Error::Token => Trouble::Malformed("request line"),
        httparse::Error::Version => Trouble::Malformed("HTTP version"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_lines_become_one() {
        let head = parse_request(b"GET / HTTP/1.1\r\nA: b\r\n\tc\r\nD:  e \r\n\r\n").unwrap();
        assert_eq!(values(&head.fields, "a").next(), Some(&b"b  \tc"[..]));
        assert_eq!(values(&head.fields, "d").next(), Some(&b"e"[..]));
    }

    #[test]
    fn control_characters_in_values_are_kept() {
        let head = b"HTTP/1.1 200 O\x1b[2JK\r\nA: b\x1bc\x00\x7f\r\nD: \xe9\r\n\r\n";
        let head = parse_response(head).unwrap();
        assert_eq!(head.reason, b"O\x1b[2JK");
        assert_eq!(
            values(&head.fields, "a").next(),
            Some(&b"b\x1bc\x00\x7f"[..])
        );
        assert_eq!(values(&head.fields, "d").next(), Some(&b"\xe9"[..]));
        let trailers = parse_trailers(b"A: \x07\r\n\r\n").unwrap();
        assert_eq!(values(&trailers, "a").next(), Some(&b"\x07"[..]));
        for wrong in [
            "HTTP/1.1 200 OK\r\nA\x1b: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
            "HTTP/1.1 2\x1b0 OK\r\n\r\n",
        ] {
            assert!(parse_response(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        assert!(parse_request(b"GET http:\x1b HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn absolute_targets_are_taken_apart() {
        let head = parse_request(b"GET http://a:1/b?c HTTP/1.1\r\nHost: d\r\n\r\n").unwrap();
        assert_eq!(head.scheme.as_deref(), Some(&b"http"[..]));
        assert_eq!(head.authority.as_deref(), Some(&b"a:1"[..]));
        assert_eq!(head.target.as_deref(), Some(&b"/b?c"[..]));
        let head = parse_request(b"OPTIONS http://a HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(head.target.as_deref(), Some(&b"/"[..]));
    }

    #[test]
    fn conflicting_lengths_are_malformed() {
        let framing = |fields: &str| {
            let head = format!("POST / HTTP/1.1\r\n{fields}\r\n");
            request_framing(&parse_request(head.as_bytes()).unwrap())
        };
        assert!(matches!(
            framing("Content-Length: 5, 5\r\n"),
            Ok((Framing::Length(5), None))
        ));
        assert!(framing("Content-Length: 5\r\nContent-Length: 6\r\n").is_err());
        for wrong in ["-1", "+1", "1x", "", "99999999999999999999"] {
            assert!(
                framing(&format!("Content-Length: {wrong}\r\n")).is_err(),
                "{wrong}"
            );
        }
        let both = framing("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n");
        assert!(matches!(
            both,
            Ok((Framing::Chunked(_), Some(Trouble::Malformed(_))))
        ));
        assert!(framing("Transfer-Encoding: chunked, gzip\r\n").is_err());
        assert!(matches!(
            framing("Transfer-Encoding: gzip, Chunked\r\n"),
            Ok((Framing::Chunked(_), None))
        ));
    }

    #[test]
    fn too_many_fields_are_refused() {
        let head = |fields: usize| {
            let fields = "A: b\r\n".repeat(fields);
            format!("GET / HTTP/1.1\r\n{fields}\r\n").into_bytes()
        };
        assert!(parse_request(&head(FIELDS_MAX)).is_ok());
        assert_eq!(
            parse_request(&head(FIELDS_MAX + 1)),
            Err(Trouble::TooMuch("fields", FIELDS_MAX))
        );
    }
}
