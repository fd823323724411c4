//! Payloads as a hex dump, in the format of `hexdump -C`.

use std::io::{self, Write};

/// Writes 16 bytes a line: offset, hex, ASCII. `first` is the offset of the first byte.
pub fn write_hexdump(out: &mut impl Write, payload: &[u8], first: u64) -> io::Result<()> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    let mut offset = first;
    for row in payload.chunks(16) {
        // Three columns for each byte, one more between the halves, and the bytes themselves.
        let mut line = [b' '; 3 * 16 + 1 + 3 + 16 + 1];
        let text = 3 * 16 + 1 + 1;
        line[text] = b'|';
        for (index, &byte) in row.iter().enumerate() {
            let column = 3 * index + usize::from(index >= 8);
            line[column] = DIGITS[usize::from(byte >> 4)];
            line[column + 1] = DIGITS[usize::from(byte & 15)];
            let printable = (0x20..0x7f).contains(&byte);
            line[text + 1 + index] = if printable { byte } else { b'.' };
        }
        line[text + 1 + row.len()] = b'|';
        write!(out, "{offset:08x}  ")?;
        out.write_all(&line[..text + 2 + row.len()])?;
        out.write_all(b"\n")?;
        offset = offset.saturating_add(row.len() as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_like_hexdump_c() {
        let payload: Vec<u8> = (0x18..0x18 + 19).chain([0xff]).collect();
        let mut out = Vec::new();
        write_hexdump(&mut out, &payload, 0x10).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "00000010  18 19 1a 1b 1c 1d 1e 1f  20 21 22 23 24 25 26 27  |........ !\"#$%&'|\n\
             00000020  28 29 2a ff                                       |()*.|\n"
        );
    }
}
