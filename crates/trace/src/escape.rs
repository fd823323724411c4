//! Payloads as text that is safe for a terminal.
//!
//! Printable UTF-8 goes through as it is, tab and line feed too, and CR LF becomes a line break.
//! Everything else is written as an escape in Rust's notation: control characters, so that nothing
//! moves the cursor or sets a title; invalid UTF-8; and the characters that make text look like what
//! it is not, such as bidirectional overrides and invisible ones.

use std::borrow::Cow;

/// Appends a payload as text.
pub fn escape_payload(out: &mut Vec<u8>, payload: &[u8]) {
    escape(out, payload, true);
}

/// A name for a header line or a message, without a line break: that of a thread or a file.
pub fn escape_name(name: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(name) {
        Ok(name) if name.bytes().all(|byte| matches!(byte, b' '..=b'~')) => Cow::Borrowed(name),
        _ => {
            let mut escaped = Vec::new();
            escape(&mut escaped, name, false);
            Cow::Owned(String::from_utf8_lossy(&escaped).into_owned())
        }
    }
}

/// Copies runs of harmless ASCII at once, and looks at everything else one by one.
fn escape(out: &mut Vec<u8>, mut rest: &[u8], line_breaks: bool) {
    let harmless = |byte: &u8| match byte {
        b' '..=b'~' => true,
        b'\n' | b'\t' => line_breaks,
        _ => false,
    };
    loop {
        let run = rest
            .iter()
            .position(|byte| !harmless(byte))
            .unwrap_or(rest.len());
        out.extend_from_slice(&rest[..run]);
        rest = &rest[run..];
        let done = match rest {
            [] => return,
            [b'\r', b'\n', ..] if line_breaks => 1,
            [b'\r', ..] => push(out, b"\\r"),
            [b'\n', ..] => push(out, b"\\n"),
            [b'\t', ..] => push(out, b"\\t"),
            [byte, ..] => match first_char(rest) {
                Some(c) if is_printable(c) => {
                    out.extend_from_slice(&rest[..c.len_utf8()]);
                    c.len_utf8()
                }
                Some(c) if !c.is_ascii() => {
                    out.extend(c.escape_unicode().map(|ascii| ascii as u8));
                    c.len_utf8()
                }
                _ => push_hex(out, *byte),
            },
        };
        rest = &rest[done..];
    }
}

/// Appends the escape of one byte, and says that one byte is done.
fn push(out: &mut Vec<u8>, escape: &[u8]) -> usize {
    out.extend_from_slice(escape);
    1
}

fn push_hex(out: &mut Vec<u8>, byte: u8) -> usize {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let (high, low) = (
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    );
    push(out, &[b'\\', b'x', high, low])
}

/// The first character, if the bytes begin with valid UTF-8.
fn first_char(bytes: &[u8]) -> Option<char> {
    let length = match bytes.first()? {
        0x00..=0x7f => 1,
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    std::str::from_utf8(bytes.get(..length)?)
        .ok()?
        .chars()
        .next()
}

/// Whether a character shows as itself: neither control nor format character, nor a separator other
/// than the blank, nor private or unassigned.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return matches!(c, ' '..='~');
    }
    // The standard library keeps such a table for `Debug`. Behind another character it leaves
    // combining ones alone, which are printable.
    let mut utf8 = [0; 5];
    utf8[0] = b'a';
    let length = 1 + c.encode_utf8(&mut utf8[1..]).len();
    let text = std::str::from_utf8(&utf8[..length]).unwrap_or_default();
    let mut shown = text.escape_debug().skip(1);
    shown.next() == Some(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(payload: &[u8]) -> String {
        let mut out = Vec::new();
        escape_payload(&mut out, payload);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn printable_text_in_any_script_stays_as_it_is() {
        for text in [
            "GET / HTTP/1.1\nHost: a\tb",
            "Grüße, Ελλάδα, 日本語, नमस्ते, 🦀, e\u{301}",
        ] {
            assert_eq!(escaped(text.as_bytes()), text);
        }
    }

    #[test]
    fn nothing_that_a_terminal_obeys_comes_through() {
        for (payload, expected) in [
            (&b"\x1b]0;owned\x07"[..], "\\x1b]0;owned\\x07"),
            (b"\x1b[2J", "\\x1b[2J"),
            (b"a\rb", "a\\rb"),
            (b"a\r\nb\r", "a\nb\\r"),
            (b"\x00\x7f\x08", "\\x00\\x7f\\x08"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"), // CSI as one character
            ("\u{202e}txt.exe".as_bytes(), "\\u{202e}txt.exe"), // right-to-left override
            ("a\u{200b}b\u{feff}".as_bytes(), "a\\u{200b}b\\u{feff}"), // invisible
            ("\u{2028}\u{e000}".as_bytes(), "\\u{2028}\\u{e000}"),
            (b"\xff\xc3", "\\xff\\xc3"),
            (b"\x9b31m", "\\x9b31m"),
        ] {
            assert_eq!(escaped(payload), expected);
        }
    }

    #[test]
    fn names_stay_on_their_line() {
        assert_eq!(escape_name(b"caddy"), "caddy");
        assert_eq!(
            escape_name(b"a\nb\r\n\t\x1b\xff"),
            "a\\nb\\r\\n\\t\\x1b\\xff"
        );
    }

    proptest! {
        #[test]
        fn output_is_always_free_of_controls(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let shown = escaped(&payload);
            prop_assert!(shown.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
            let name = escape_name(&payload);
            prop_assert!(name.chars().all(|c| !c.is_control()));
        }
    }
}
