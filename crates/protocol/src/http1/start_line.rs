//! Whether bytes begin with a message: its start line (RFC 9112 sections 3 and 4).

use crate::event::Side;

/// Bytes of a start line that are held to tell whether it is one.
const START_LINE_MAX: usize = 64 << 10;

/// Bytes of a method; the longest that is registered has 17.
const METHOD_MAX: usize = 32;

/// Whether bytes begin with something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    Yes,
    /// Too few bytes to tell.
    Partial,
    No,
}

/// Whether `bytes` begin with the start line that `side` sends.
pub(crate) fn start_line(side: Side, bytes: &[u8]) -> Match {
    match side {
        Side::Client => request_line(bytes),
        Side::Server => status_line(bytes),
    }
}

/// Methods that are known behind missing bytes, where any other might be the end of one. None is the
/// end of another that is registered.
const KNOWN_METHODS: [&[u8]; 16] = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"CONNECT",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"PROPFIND",
    b"PROPPATCH",
    b"MKCOL",
    b"COPY",
    b"MOVE",
    b"SEARCH",
    b"REPORT",
];

/// Like [`start_line`], where the bytes before are not known.
pub(crate) fn certain_start_line(side: Side, bytes: &[u8]) -> Match {
    let found = start_line(side, bytes);
    let is_known = |method: &[u8]| KNOWN_METHODS.contains(&method);
    match bytes.iter().position(|byte| *byte == b' ') {
        Some(length) if side == Side::Client && !is_known(&bytes[..length]) => Match::No,
        _ => found,
    }
}

/// Whether `bytes` begin with `METHOD SP target SP HTTP/1.x` and the end of the line.
pub(crate) fn request_line(bytes: &[u8]) -> Match {
    let limited = &bytes[..bytes.len().min(START_LINE_MAX)];
    let partial = if bytes.len() < START_LINE_MAX {
        Match::Partial
    } else {
        Match::No
    };
    let method = limited.iter().take_while(|byte| is_token(**byte)).count();
    if method > METHOD_MAX {
        return Match::No;
    }
    let Some(rest) = limited.get(method..).filter(|rest| !rest.is_empty()) else {
        return partial;
    };
    let Some(rest) = rest.strip_prefix(b" ").filter(|_| method > 0) else {
        return Match::No;
    };
    let target = rest.iter().take_while(|byte| is_target(**byte)).count();
    let rest = &rest[target..];
    if rest.is_empty() {
        return partial;
    }
    if target == 0 {
        return Match::No;
    }
    match like(rest, b" HTTP/1.d\r\n") {
        Match::No => like(rest, b" HTTP/1.d\n"),
        found => found,
    }
}

/// Whether `bytes` begin with `HTTP/1.x SP NNN` and a space or the end of the line.
pub(crate) fn status_line(bytes: &[u8]) -> Match {
    [b"HTTP/1.d ddd ", b"HTTP/1.d ddd\r", b"HTTP/1.d ddd\n"]
        .into_iter()
        .map(|pattern| like(bytes, pattern))
        .find(|found| *found != Match::No)
        .unwrap_or(Match::No)
}

/// Compares with a pattern in which `d` stands for a digit.
fn like(bytes: &[u8], pattern: &[u8]) -> Match {
    let same = bytes
        .iter()
        .zip(pattern)
        .all(|(byte, expected)| match expected {
            b'd' => byte.is_ascii_digit(),
            expected => byte == expected,
        });
    match same {
        false => Match::No,
        true if bytes.len() < pattern.len() => Match::Partial,
        true => Match::Yes,
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_target(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_request_lines_are_certain() {
        assert_eq!(request_line(b"GET / HTTP/1.1\r\n"), Match::Yes);
        assert_eq!(request_line(b"GET / HTTP/1.0\n"), Match::Yes);
        assert_eq!(request_line(b"M-SEARCH * HTTP/1.1\r\nHost"), Match::Yes);
        assert_eq!(request_line(b"GET / HTTP/1.1"), Match::Partial);
        assert_eq!(request_line(b"GE"), Match::Partial);
        assert_eq!(request_line(b""), Match::Partial);
        for other in [
            &b"PRI * HTTP/2.0\r\n"[..],
            b"OPTIONS rtsp://a RTSP/1.0\r\n",
            b"GET  / HTTP/1.1\r\n",
            b"GET / HTTP/1.1 \r\n",
            b" GET / HTTP/1.1\r\n",
            b"\x16\x03\x01",
            b"EHLO example.org\r\n",
            b"{\"a\": 1}",
        ] {
            assert_eq!(request_line(other), Match::No, "{}", other.escape_ascii());
        }
        assert_eq!(request_line(&[b'A'; 33]), Match::No);
        let endless = [&b"GET /"[..], &vec![b'a'; START_LINE_MAX]].concat();
        assert_eq!(request_line(&endless), Match::No);
    }

    #[test]
    fn status_lines_need_no_reason() {
        assert_eq!(status_line(b"HTTP/1.1 200 OK"), Match::Yes);
        assert_eq!(status_line(b"HTTP/1.1 200\r\n"), Match::Yes);
        assert_eq!(status_line(b"HTTP/1.1 200\n"), Match::Yes);
        assert_eq!(status_line(b"HTTP/1.1 20"), Match::Partial);
        assert_eq!(status_line(b"HTTP/1.1 2000"), Match::No);
        assert_eq!(status_line(b"HTTP/2 200 OK"), Match::No);
        assert_eq!(status_line(b"220 mail.example.org"), Match::No);
    }
}
