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
        Ok(text) if is_printable_ascii(name) => Cow::Borrowed(text),
        _ => {
            let mut escaped = Vec::new();
            escape(&mut escaped, name, false);
            Cow::Owned(String::from_utf8_lossy(&escaped).into_owned())
        }
    }
}

/// Looks at all bytes, whatever it finds: so many are looked at at once.
fn is_printable_ascii(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .fold(true, |all, byte| all & matches!(byte, b' '..=b'~'))
}

/// Copies runs of harmless ASCII at once, and looks at what is between them one by one.
fn escape(out: &mut Vec<u8>, mut rest: &[u8], line_breaks: bool) {
    let escapes = if line_breaks { &IN_PAYLOAD } else { &IN_NAME };
    loop {
        rest = copy_harmless(out, rest, line_breaks);
        if rest.is_empty() {
            return;
        }
        rest = escape_some(out, rest, line_breaks, escapes);
    }
}

/// Escapes some bytes at the beginning, and returns what is behind them. What a byte becomes is looked up,
/// because in binary payloads no branch can be predicted.
fn escape_some<'a>(
    out: &mut Vec<u8>,
    bytes: &'a [u8],
    line_breaks: bool,
    escapes: &[Escape; 256],
) -> &'a [u8] {
    const AT_ONCE: usize = 64;

    let mut escaped = [0; AT_ONCE * 4];
    let mut filled = 0;
    let end = bytes.len().min(AT_ONCE);
    let mut position = 0;
    while position < end {
        let byte = bytes[position];
        let next = bytes.get(position + 1).copied().unwrap_or_default();
        // A character has no more bytes than an escape has, so there is room for it.
        if (byte >= 0xc2) & (next & 0xc0 == 0x80)
            && let Some(c) = first_char(&bytes[position..])
        {
            if is_printable(c) {
                filled += c.encode_utf8(&mut escaped[filled..]).len();
            } else {
                out.extend_from_slice(&escaped[..filled]);
                out.extend(c.escape_unicode().map(|ascii| ascii as u8));
                filled = 0;
            }
            position += c.len_utf8();
            continue;
        }
        if !((byte == b'\r') & (next == b'\n') & line_breaks) {
            let escape = &escapes[usize::from(byte)];
            escaped[filled..filled + 4].copy_from_slice(&escape.bytes);
            filled += usize::from(escape.length);
        }
        position += 1;
    }
    out.extend_from_slice(&escaped[..filled]);
    &bytes[position..]
}

/// What a byte becomes that does not begin a character of several bytes.
#[derive(Clone, Copy)]
struct Escape {
    bytes: [u8; 4],
    length: u8,
}

static IN_PAYLOAD: [Escape; 256] = escapes(true);
static IN_NAME: [Escape; 256] = escapes(false);

const fn escapes(line_breaks: bool) -> [Escape; 256] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    let mut escapes = [Escape {
        bytes: [0; 4],
        length: 0,
    }; 256];
    let mut byte = 0;
    while byte < 256 {
        let (bytes, length) = match byte as u8 {
            b'\n' | b'\t' if line_breaks => ([byte as u8, 0, 0, 0], 1),
            b' '..=b'~' => ([byte as u8, 0, 0, 0], 1),
            b'\n' => (*b"\\n\0\0", 2),
            b'\r' => (*b"\\r\0\0", 2),
            b'\t' => (*b"\\t\0\0", 2),
            _ => ([b'\\', b'x', DIGITS[byte >> 4], DIGITS[byte & 15]], 4),
        };
        escapes[byte] = Escape { bytes, length };
        byte += 1;
    }
    escapes
}

/// Copies what is harmless at the beginning, and returns what is behind it.
fn copy_harmless<'a>(out: &mut Vec<u8>, bytes: &'a [u8], line_breaks: bool) -> &'a [u8] {
    let run = if line_breaks {
        harmless_run(bytes, is_harmless, harmless_blocks)
    } else {
        harmless_run(bytes, is_graphic, |blocks| {
            count_harmless(blocks, is_graphic)
        })
    };
    out.extend_from_slice(&bytes[..run]);
    &bytes[run..]
}

/// Printable ASCII, the blank included. One comparison, as `count_harmless` needs it to be.
fn is_graphic(byte: u8) -> bool {
    byte.wrapping_sub(b' ') < 0x7f - b' '
}

/// What needs no escape in a payload.
fn is_harmless(byte: u8) -> bool {
    is_graphic(byte) | (byte == b'\n') | (byte == b'\t')
}

/// What is looked at without a branch, which the compiler turns into vector instructions.
type Block = [u8; 64];

/// How many bytes at the beginning are harmless. Behind a few bytes, whole blocks are looked at.
fn harmless_run(
    bytes: &[u8],
    harmless: impl Fn(u8) -> bool,
    harmless_blocks: impl Fn(&[Block]) -> usize,
) -> usize {
    const SHORT: usize = 16;

    let end = |bytes: &[u8]| bytes.iter().position(|&byte| !harmless(byte));
    let (head, tail) = bytes.split_at(bytes.len().min(SHORT));
    if let Some(end) = end(head) {
        return end;
    }
    let (blocks, _) = tail.as_chunks();
    let whole = harmless_blocks(blocks).min(blocks.len()) * size_of::<Block>();
    let rest = &tail[whole..];
    head.len() + whole + end(rest).unwrap_or(rest.len())
}

/// How many blocks at the beginning of a payload are harmless. This is where most of the time for large
/// payloads goes, so it is there for processors with wider vectors, too.
#[multiversion::multiversion(targets("x86_64+avx2"))]
fn harmless_blocks(blocks: &[Block]) -> usize {
    count_harmless(blocks, is_harmless)
}

#[inline(always)]
fn count_harmless(blocks: &[Block], harmless: impl Fn(u8) -> bool) -> usize {
    blocks
        .iter()
        .take_while(|block| block.iter().fold(true, |all, &byte| all & harmless(byte)))
        .count()
}

/// The first character, if the bytes begin with valid UTF-8 of several bytes.
fn first_char(bytes: &[u8]) -> Option<char> {
    let length = match bytes.first()? {
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
        let run = |bytes: &[u8]| harmless_run(bytes, is_harmless, harmless_blocks);
        for length in 0..200 {
            let mut bytes = vec![b'x'; length];
            assert_eq!(run(&bytes), length);
            for end in 0..length {
                for other in [0x1f, 0x7f, 0x80, 0xff] {
                    bytes[end] = other;
                    assert_eq!(run(&bytes), end);
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

    /// The same without any haste.
    fn escaped_one_by_one(payload: &[u8]) -> String {
        let mut out = String::new();
        for chunk in payload.utf8_chunks() {
            let text = chunk.valid().replace("\r\n", "\n");
            for c in text.chars() {
                match c {
                    '\n' | '\t' | ' '..='~' => out.push(c),
                    '\r' => out.push_str("\\r"),
                    c if c.is_ascii() => out += &format!("\\x{:02x}", c as u8),
                    c if is_printable(c) => out.push(c),
                    c => out.extend(c.escape_unicode()),
                }
            }
            for byte in chunk.invalid() {
                out += &format!("\\x{byte:02x}");
            }
        }
        out
    }

    proptest! {
        #[test]
        fn haste_makes_no_difference(
            parts in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..100),
                    "\\PC{0,40}".prop_map(String::into_bytes),
                    "[a-z \r\n\t\u{80}\u{301}\u{202e}]{0,200}".prop_map(String::into_bytes),
                ],
                0..6,
            ),
        ) {
            let payload = parts.concat();
            prop_assert_eq!(escaped(&payload), escaped_one_by_one(&payload));
        }

        #[test]
        fn output_is_always_free_of_controls(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let shown = escaped(&payload);
            prop_assert!(shown.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
            let name = escape_name(&payload);
            prop_assert!(name.chars().all(|c| !c.is_control()));
        }
    }
}
