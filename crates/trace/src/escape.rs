//! Payloads as text that is safe for a terminal.
//!
//! Printable UTF-8 goes through as it is, tab and line feed too, and CR LF becomes a line break.
//! Everything else is written as an escape in Rust's notation: control characters, so that nothing
//! moves the cursor or sets a title; invalid UTF-8; and the characters that make text look like what
//! it is not, such as bidirectional overrides and invisible ones.

use std::borrow::Cow;
use std::io::{self, Write};

/// Writes a payload as text.
pub fn write_escaped(out: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    for chunk in payload.utf8_chunks() {
        write_valid(out, chunk.valid(), true)?;
        for byte in chunk.invalid() {
            write!(out, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

/// A name for a header line, without a line break: that of a thread or a file.
pub fn escape_name(name: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(name) {
        Ok(name) if name.bytes().all(|byte| (0x20..0x7f).contains(&byte)) => Cow::Borrowed(name),
        _ => {
            let mut escaped = Vec::new();
            for chunk in name.utf8_chunks() {
                // Writing to a vector does not fail.
                let _ = write_valid(&mut escaped, chunk.valid(), false);
                for byte in chunk.invalid() {
                    let _ = write!(escaped, "\\x{byte:02x}");
                }
            }
            Cow::Owned(String::from_utf8_lossy(&escaped).into_owned())
        }
    }
}

/// Writes runs of harmless characters at once, the others one by one.
fn write_valid(out: &mut impl Write, text: &str, line_breaks: bool) -> io::Result<()> {
    let mut written = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((position, c)) = chars.next() {
        if is_harmless(c, line_breaks) {
            continue;
        }
        out.write_all(&text.as_bytes()[written..position])?;
        written = position + c.len_utf8();
        let before_line_feed = matches!(chars.peek(), Some((_, '\n')));
        match c {
            '\r' if line_breaks && before_line_feed => {}
            '\r' => out.write_all(b"\\r")?,
            '\n' => out.write_all(b"\\n")?,
            '\t' => out.write_all(b"\\t")?,
            c if c.is_ascii() => write!(out, "\\x{:02x}", u32::from(c))?,
            c => write!(out, "{}", c.escape_unicode())?,
        }
    }
    out.write_all(&text.as_bytes()[written..])
}

fn is_harmless(c: char, line_breaks: bool) -> bool {
    match c {
        ' '..='~' => true,
        '\t' | '\n' => line_breaks,
        c if c.is_ascii() => false,
        c => is_printable(c),
    }
}

/// Whether a character beyond ASCII shows as itself: neither control nor format character, nor a
/// separator other than the blank, nor private or unassigned.
fn is_printable(c: char) -> bool {
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
        write_escaped(&mut out, payload).unwrap();
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
