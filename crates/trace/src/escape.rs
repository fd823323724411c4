//! Payloads as text that is safe for a terminal.
//!
//! Printable UTF-8 goes through as it is, tab and line feed too, and CR LF becomes a line break.
//! Everything else is written as an escape in Rust's notation: control characters, so that nothing
//! moves the cursor or sets a title; invalid UTF-8; and the characters that make text look like what
//! it is not, such as bidirectional overrides and invisible ones.

use std::borrow::Cow;

use unicode_general_category::{GeneralCategory, get_general_category};

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
fn escape(out: &mut Vec<u8>, payload: &[u8], line_breaks: bool) {
    // Payloads that are harmless all through need not be checked for being UTF-8.
    let rest = copy_harmless(out, payload, line_breaks);
    for chunk in rest.utf8_chunks() {
        escape_text(out, chunk.valid(), line_breaks);
        for &byte in chunk.invalid() {
            push_hex(out, byte);
        }
    }
}

fn escape_text(out: &mut Vec<u8>, mut text: &str, line_breaks: bool) {
    while let Some(c) = text.chars().next() {
        let mut length = c.len_utf8();
        match c {
            '\r' if line_breaks && text.starts_with("\r\n") => {}
            '\r' => out.extend_from_slice(b"\\r"),
            '\n' if !line_breaks => out.extend_from_slice(b"\\n"),
            '\t' if !line_breaks => out.extend_from_slice(b"\\t"),
            ' '..='~' | '\n' | '\t' => {
                let rest = copy_harmless(out, text.as_bytes(), line_breaks).len();
                length = text.len() - rest;
            }
            c if c.is_ascii() => push_hex(out, c as u8),
            c if is_printable(c) => out.extend_from_slice(&text.as_bytes()[..length]),
            c => out.extend(c.escape_unicode().map(|ascii| ascii as u8)),
        }
        text = &text[length..];
    }
}

/// Copies what is harmless at the beginning, and returns what is behind it.
fn copy_harmless<'a>(out: &mut Vec<u8>, bytes: &'a [u8], line_breaks: bool) -> &'a [u8] {
    let run = if line_breaks {
        harmless_run(bytes, |byte| {
            is_graphic(byte) | (byte == b'\n') | (byte == b'\t')
        })
    } else {
        harmless_run(bytes, is_graphic)
    };
    out.extend_from_slice(&bytes[..run]);
    &bytes[run..]
}

/// Printable ASCII, the blank included. One comparison, as `harmless_run` needs it to be.
fn is_graphic(byte: u8) -> bool {
    byte.wrapping_sub(b' ') < 0x7f - b' '
}

/// How many bytes at the beginning are harmless. Behind a few bytes, whole blocks are looked at without
/// a branch, which the compiler turns into vector instructions.
fn harmless_run(bytes: &[u8], harmless: impl Fn(u8) -> bool) -> usize {
    const SHORT: usize = 16;
    const BLOCK: usize = 64;

    let end = |bytes: &[u8]| bytes.iter().position(|&byte| !harmless(byte));
    let (head, tail) = bytes.split_at(bytes.len().min(SHORT));
    if let Some(end) = end(head) {
        return end;
    }
    let (blocks, _) = tail.as_chunks::<BLOCK>();
    let whole = blocks
        .iter()
        .take_while(|block| block.iter().fold(true, |all, &byte| all & harmless(byte)))
        .count();
    let rest = &tail[whole * BLOCK..];
    head.len() + whole * BLOCK + end(rest).unwrap_or(rest.len())
}

fn push_hex(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let (high, low) = (
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    );
    out.extend_from_slice(&[b'\\', b'x', high, low]);
}

/// Whether a character that is not ASCII shows as itself: neither control nor format character, nor a
/// separator, nor private or unassigned.
fn is_printable(c: char) -> bool {
    use GeneralCategory::*;

    !matches!(
        get_general_category(c),
        Control
            | Format
            | Surrogate
            | PrivateUse
            | Unassigned
            | LineSeparator
            | ParagraphSeparator
            | SpaceSeparator
    )
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

    #[test]
    fn a_harmless_run_ends_at_the_first_other_byte() {
        for length in 0..200 {
            let mut bytes = vec![b'x'; length];
            assert_eq!(harmless_run(&bytes, is_graphic), length);
            for end in 0..length {
                for other in [0x1f, 0x7f, 0x80, 0xff] {
                    bytes[end] = other;
                    assert_eq!(harmless_run(&bytes, is_graphic), end);
                }
                bytes[end] = b'~';
            }
        }
    }

    /// The standard library has its own table for `Debug`, which may be of another version of Unicode.
    #[test]
    fn the_standard_library_agrees_about_what_is_printable() {
        let differs = |&c: &char| {
            let escaped = c.escape_debug().count() > 1;
            // It escapes combining characters, which need another one before them.
            is_printable(c) == escaped && !is_mark(c)
        };
        let all = ('\u{80}'..=char::MAX).filter(differs).count();
        assert!(all < 5_000, "{all} characters");
        let known = ('\u{80}'..'\u{2fff}').filter(differs).count();
        assert!(known < 50, "{known} characters");
    }

    fn is_mark(c: char) -> bool {
        let category = get_general_category(c).abbreviation();
        category.starts_with('M')
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
