//! Key log lines: the NSS key log format, which Wireshark, tshark and curl know as SSLKEYLOGFILE
//! (RFC 9850): `LABEL client_random secret`, the latter two in hexadecimal.

use std::io::{self, Write};
use std::num::NonZeroUsize;

use events::KeyRecord;
use lru::LruCache;

/// Bytes of lines that are put together before they are written.
const BUFFER: usize = 64 * 1024;

/// What passed through a [`KeyLog`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyTotals {
    /// Lines written.
    pub keys: u64,
    /// Keys left out because they had been written before.
    pub duplicates: u64,
    /// Keys whose label is none.
    pub malformed: u64,
}

/// Turns secrets into lines of a key log, each once.
#[derive(Debug)]
pub struct KeyLines {
    lines: Vec<u8>,
    seen: LruCache<Key, ()>,
    totals: KeyTotals,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    label: Box<[u8]>,
    client_random: [u8; 32],
}

impl Default for KeyLines {
    fn default() -> Self {
        Self::new()
    }
}

impl KeyLines {
    /// How many keys are remembered, to leave out what was written before: a TLS 1.2 handshake gives
    /// the same key up to twice, one right after the other.
    pub const REMEMBERED: usize = 16384;

    /// No lines.
    pub fn new() -> Self {
        // One that is bounded from the start takes all its memory at once.
        let mut seen = LruCache::unbounded();
        seen.resize(NonZeroUsize::new(Self::REMEMBERED).unwrap_or(NonZeroUsize::MIN));
        Self {
            lines: Vec::new(),
            seen,
            totals: KeyTotals::default(),
        }
    }

    /// What passed so far.
    pub fn totals(&self) -> KeyTotals {
        self.totals
    }

    /// Whole lines that were not cleared yet.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// Forgets the lines, not what was in them.
    pub fn clear(&mut self) {
        self.lines.clear();
    }

    /// Adds a key's line, unless it is known.
    pub fn key(&mut self, key: &KeyRecord<'_>) {
        // All labels are of this kind; anything else would break the line, or a reader.
        let is_label = |byte: &u8| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_');
        if !key.label.iter().all(is_label) {
            self.totals.malformed += 1;
            return;
        }
        let seen = Key {
            label: key.label.into(),
            client_random: *key.client_random,
        };
        if self.seen.put(seen, ()).is_some() {
            self.totals.duplicates += 1;
            return;
        }
        self.lines.extend_from_slice(key.label);
        self.lines.push(b' ');
        push_hex(&mut self.lines, key.client_random);
        self.lines.push(b' ');
        push_hex(&mut self.lines, key.secret);
        self.lines.push(b'\n');
        self.totals.keys += 1;
    }
}

/// Writes each secret once, as a line of a key log. Lines are written whole.
#[derive(Debug)]
pub struct KeyLog<W> {
    out: W,
    lines: KeyLines,
    /// How many of them have been written.
    written: u64,
}

impl<W: Write> KeyLog<W> {
    /// A key log that writes to `out`, which needs no buffer.
    pub fn new(out: W) -> Self {
        Self {
            out,
            lines: KeyLines::new(),
            written: 0,
        }
    }

    /// What passed so far. Keys count once they have been written.
    pub fn totals(&self) -> KeyTotals {
        KeyTotals {
            keys: self.written,
            ..self.lines.totals()
        }
    }

    /// Takes one key.
    pub fn key(&mut self, key: &KeyRecord<'_>) -> io::Result<()> {
        self.lines.key(key);
        if self.lines.lines().len() >= BUFFER {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Writes all lines.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.lines.lines().is_empty() {
            return Ok(());
        }
        let lines = self.lines.lines();
        let count = lines.iter().filter(|&&byte| byte == b'\n').count();
        let result = self.out.write_all(lines);
        self.lines.clear();
        result?;
        self.out.flush()?;
        self.written += count as u64;
        Ok(())
    }
}

fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

#[cfg(test)]
mod tests {
    use events::Header;

    use super::*;

    fn record<'a>(label: &'a [u8], random: &'a [u8; 32], secret: &'a [u8]) -> KeyRecord<'a> {
        let header = Header {
            time_ns: 0,
            conn: 0,
            first_seen_ns: 0,
            pid: 1,
            tid: 1,
            comm: [0; 16],
        };
        KeyRecord {
            header,
            label,
            client_random: random,
            secret,
        }
    }

    #[test]
    fn each_key_is_one_line_and_written_once() {
        let mut out = Vec::new();
        let mut log = KeyLog::new(&mut out);
        for (label, random, secret) in [
            (&b"CLIENT_RANDOM"[..], [0xab; 32], &[0x01, 0xff][..]),
            (b"CLIENT_RANDOM", [0xab; 32], &[0x01, 0xff]),
            (b"SERVER_TRAFFIC_SECRET_0", [0xab; 32], &[2]),
            (b"CLIENT_RANDOM", [0xac; 32], &[3]),
        ] {
            log.key(&record(label, &random, secret)).unwrap();
        }
        log.flush().unwrap();
        assert_eq!(
            log.totals(),
            KeyTotals {
                keys: 3,
                duplicates: 1,
                malformed: 0
            }
        );
        let (ab, ac) = ("ab".repeat(32), "ac".repeat(32));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!(
                "CLIENT_RANDOM {ab} 01ff\nSERVER_TRAFFIC_SECRET_0 {ab} 02\nCLIENT_RANDOM {ac} 03\n"
            )
        );
    }

    /// The disk is full.
    #[test]
    fn what_could_not_be_written_does_not_count() {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut log = KeyLog::new(full.unwrap());
        log.key(&record(b"CLIENT_RANDOM", &[0; 32], &[1])).unwrap();
        log.flush().unwrap_err();
        assert_eq!(log.totals(), KeyTotals::default());
    }

    #[test]
    fn what_is_no_label_breaks_no_line() {
        let mut out = Vec::new();
        let mut log = KeyLog::new(&mut out);
        for label in [&b"A B"[..], b"A\n", b"\xff", b"a"] {
            log.key(&record(label, &[0; 32], &[1])).unwrap();
        }
        log.flush().unwrap();
        assert_eq!(log.totals().malformed, 4);
        assert!(out.is_empty());
    }

    #[test]
    fn memory_of_what_was_written_is_bounded() {
        let mut log = KeyLines::new();
        for number in 0..KeyLines::REMEMBERED as u64 + 10 {
            let mut random = [0; 32];
            random[..8].copy_from_slice(&number.to_le_bytes());
            log.key(&record(b"CLIENT_RANDOM", &random, &[1]));
            log.clear();
        }
        assert_eq!(log.seen.len(), KeyLines::REMEMBERED);
    }
}
