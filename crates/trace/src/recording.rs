//! Recordings: the records of a capture in a file, as they came, so that any output can be made of them
//! later. docs/recording.md describes the format.
//!
//! A recording is untrusted input like any other file: a damaged one gives an error that says where, and
//! one that was cut off gives everything up to there.

use std::io::{self, Read, Write};

/// What a recording begins with. Like PNG's (RFC 2083 section 3.1), it doesn't survive a transfer that
/// takes the file for text.
const MAGIC: [u8; 8] = *b"\x89ECR\r\n\x1a\n";

/// Version of the file's structure. A reader of another version refuses the file.
const VERSION: u16 = 1;

/// How integers in records are stored: that of the machine that made them.
const LITTLE_ENDIAN: u8 = 1;

/// Bytes of the file header, and of what every entry begins with.
const FILE_HEADER: usize = 16;
const ENTRY_HEADER: usize = 8;

const CONTEXT: u8 = 1;
const CLOCK: u8 = 2;
const RECORD: u8 = 3;
const TURN: u8 = 4;
const END: u8 = 5;

/// The longest entry: four times the longest record, which is one of a packet.
const ENTRY_MAX: usize = 1024 * 1024;

/// What a recording consists of, in the order in which it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// What was captured and where: a JSON object.
    Context(&'a [u8]),
    /// What leads from the clock of the following records (CLOCK_MONOTONIC) to the wall clock, in ns.
    Clock(i64),
    /// One record of the ring buffer, for [`events::Record::decode`].
    Record(&'a [u8]),
    /// All records up to this time of their clock, in ns, have been taken, and there were any (`busy`) or
    /// not.
    Turn {
        /// CLOCK_MONOTONIC, in ns.
        now_ns: u64,
        /// Whether there were records since the last turn.
        busy: bool,
    },
    /// The capture's end, and what was lost: a JSON object.
    End(&'a [u8]),
}

/// Writes a recording.
#[derive(Debug)]
pub struct RecordingWriter<W> {
    out: W,
    clock: Option<i64>,
}

impl<W: Write> RecordingWriter<W> {
    /// Begins a recording. `context` is a JSON object.
    pub fn new(out: W, context: &[u8]) -> io::Result<Self> {
        let mut writer = Self { out, clock: None };
        let mut header = [0; FILE_HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[10..12].copy_from_slice(&events::LAYOUT_VERSION.to_le_bytes());
        header[12] = LITTLE_ENDIAN;
        writer.out.write_all(&header)?;
        writer.entry(CONTEXT, context)?;
        Ok(writer)
    }

    /// Adds a record. `realtime_offset_ns` leads from its clock to the wall clock.
    pub fn record(&mut self, bytes: &[u8], realtime_offset_ns: i64) -> io::Result<()> {
        if self.clock != Some(realtime_offset_ns) {
            self.entry(CLOCK, &realtime_offset_ns.to_le_bytes())?;
            self.clock = Some(realtime_offset_ns);
        }
        self.entry(RECORD, bytes)
    }

    /// Notes that all records up to a time have been taken.
    pub fn turn(&mut self, busy: bool, now_ns: u64) -> io::Result<()> {
        let mut body = [0; 9];
        body[..8].copy_from_slice(&now_ns.to_le_bytes());
        body[8] = busy.into();
        self.entry(TURN, &body)
    }

    /// Ends the recording. `end` is a JSON object.
    pub fn end(&mut self, end: &[u8]) -> io::Result<()> {
        self.entry(END, end)?;
        self.flush()
    }

    /// Hands everything written so far on.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn entry(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        if body.len() > ENTRY_MAX {
            return Err(io::Error::other("an entry of more than 1 MiB"));
        }
        let mut header = [0; ENTRY_HEADER];
        header[0] = kind;
        header[4..].copy_from_slice(&(body.len() as u32).to_le_bytes());
        self.out.write_all(&header)?;
        self.out.write_all(body)
    }
}

/// Why a file can't be read as a recording, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// Another kind of file.
    #[error("not a recording: it does not begin like what `--record` writes")]
    NotARecording,
    /// Made by a program whose files, or records, are structured differently.
    #[error(
        "{what} of version {found}, but this program reads version {known}: \
         replay it with the version of ecapture that made it"
    )]
    OtherVersion {
        /// What is structured differently.
        what: &'static str,
        /// The version in the file.
        found: u16,
        /// The version that can be read.
        known: u16,
    },
    /// From a machine whose integers are stored the other way round.
    #[error("a recording from a machine with the unknown byte order {0}")]
    ByteOrder(u8),
    /// The file ends in the middle: the capture was killed, the disk was full.
    #[error("cut off at byte {offset}")]
    CutOff {
        /// Where the incomplete entry begins.
        offset: u64,
    },
    /// An entry that can't be.
    #[error("damaged at byte {offset}: {what}")]
    Damaged {
        /// Where the entry begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a recording. Holds one entry at a time, of up to 1 MiB.
#[derive(Debug)]
pub struct RecordingReader<R> {
    input: R,
    body: Vec<u8>,
    offset: u64,
    unknown: u64,
}

impl<R: Read> RecordingReader<R> {
    /// Reads the header. `input` ought to be buffered.
    pub fn new(input: R) -> Result<Self, RecordingError> {
        let mut reader = Self {
            input,
            body: Vec::new(),
            offset: 0,
            unknown: 0,
        };
        let mut header = [0; FILE_HEADER];
        let length = reader.fill(&mut header)?;
        if length < FILE_HEADER || header[..8] != MAGIC {
            return Err(RecordingError::NotARecording);
        }
        for (what, at, known) in [
            ("a recording", 8, VERSION),
            ("a recording with records", 10, events::LAYOUT_VERSION),
        ] {
            let found = u16::from_le_bytes([header[at], header[at + 1]]);
            if found != known {
                return Err(RecordingError::OtherVersion { what, found, known });
            }
        }
        if header[12] != LITTLE_ENDIAN {
            return Err(RecordingError::ByteOrder(header[12]));
        }
        reader.offset = FILE_HEADER as u64;
        Ok(reader)
    }

    /// Entries of kinds that this version doesn't know, so far. They were left out.
    pub fn unknown_entries(&self) -> u64 {
        self.unknown
    }

    /// The next entry, `None` at the end of the file.
    pub fn next_entry(&mut self) -> Result<Option<Entry<'_>>, RecordingError> {
        let (kind, offset) = loop {
            let offset = self.offset;
            match self.read_entry()? {
                None => return Ok(None),
                Some(kind @ CONTEXT..=END) => break (kind, offset),
                Some(_) => self.unknown += 1,
            }
        };
        let damaged = |what| RecordingError::Damaged { offset, what };
        let body = self.body.as_slice();
        Ok(Some(match kind {
            CONTEXT => Entry::Context(body),
            CLOCK => {
                let bytes = body
                    .try_into()
                    .map_err(|_| damaged("a time of no 8 bytes"))?;
                Entry::Clock(i64::from_le_bytes(bytes))
            }
            RECORD => Entry::Record(body),
            TURN => {
                let (now, busy) = body
                    .split_first_chunk()
                    .ok_or_else(|| damaged("a turn of less than 8 bytes"))?;
                Entry::Turn {
                    now_ns: u64::from_le_bytes(*now),
                    busy: busy.first().is_some_and(|&busy| busy != 0),
                }
            }
            _ => Entry::End(body),
        }))
    }

    /// Reads an entry's body and returns its kind.
    fn read_entry(&mut self) -> Result<Option<u8>, RecordingError> {
        let offset = self.offset;
        let mut header = [0; ENTRY_HEADER];
        match self.fill(&mut header)? {
            0 => return Ok(None),
            ENTRY_HEADER => {}
            _ => return Err(RecordingError::CutOff { offset }),
        }
        let [kind, _, _, _, length @ ..] = header;
        let length = u32::from_le_bytes(length) as usize;
        if length > ENTRY_MAX {
            let what = "an entry of more than 1 MiB";
            return Err(RecordingError::Damaged { offset, what });
        }
        let mut body = std::mem::take(&mut self.body);
        body.resize(length, 0);
        let filled = self.fill(&mut body);
        self.body = body;
        if filled? < length {
            return Err(RecordingError::CutOff { offset });
        }
        self.offset += (ENTRY_HEADER + length) as u64;
        Ok(Some(kind))
    }

    /// Reads as much as there is.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn recording() -> Vec<u8> {
        let mut file = Vec::new();
        let mut writer = RecordingWriter::new(&mut file, b"{}").unwrap();
        writer.record(b"first", 5).unwrap();
        writer.record(b"second", 5).unwrap();
        writer.turn(true, 99).unwrap();
        writer.record(b"", -6).unwrap();
        writer.end(b"{\"a\":1}").unwrap();
        file
    }

    /// The entries of a file as text, what ended it, and how many were unknown.
    fn read(file: &[u8]) -> (Vec<String>, Result<u64, RecordingError>) {
        let mut entries = Vec::new();
        let mut reader = match RecordingReader::new(file) {
            Ok(reader) => reader,
            Err(error) => return (entries, Err(error)),
        };
        loop {
            match reader.next_entry() {
                Ok(Some(entry)) => entries.push(format!("{entry:?}")),
                Ok(None) => return (entries, Ok(reader.unknown_entries())),
                Err(error) => return (entries, Err(error)),
            }
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let mut reader = RecordingReader::new(&*recording().leak()).unwrap();
        for expected in [
            Entry::Context(b"{}"),
            Entry::Clock(5),
            Entry::Record(b"first"),
            Entry::Record(b"second"),
            Entry::Turn {
                now_ns: 99,
                busy: true,
            },
            Entry::Clock(-6),
            Entry::Record(b""),
            Entry::End(b"{\"a\":1}"),
        ] {
            assert_eq!(reader.next_entry().unwrap(), Some(expected));
        }
        assert_eq!(reader.next_entry().unwrap(), None);
    }

    #[test]
    fn one_that_was_cut_off_gives_what_is_there_and_says_so() {
        let file = recording();
        let (all, _) = read(&file);
        let mut ends = 0;
        for length in FILE_HEADER..file.len() {
            let (entries, result) = read(&file[..length]);
            assert_eq!(entries, all[..entries.len()]);
            match result {
                Ok(_) => ends += 1, // between two entries
                Err(RecordingError::CutOff { offset }) => assert!(offset < length as u64),
                Err(error) => panic!("{length}: {error}"),
            }
        }
        assert_eq!(ends, all.len());
        for length in 0..FILE_HEADER {
            let error = RecordingReader::new(&file[..length]).unwrap_err();
            assert!(matches!(error, RecordingError::NotARecording), "{error}");
        }
    }

    #[test]
    fn entries_of_an_unknown_kind_are_counted_and_left_out() {
        let mut file = recording();
        let (all, _) = read(&file);
        file.extend([200, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3]);
        let (entries, result) = read(&file);
        assert_eq!(entries, all);
        assert_eq!(result.unwrap(), 1);
    }

    #[test]
    fn files_that_this_version_cannot_read_are_refused_with_the_reason() {
        for (at, says) in [
            (0, "not a recording"),
            (
                8,
                "a recording of version 255, but this program reads version 1",
            ),
            (10, "with records of version 255"),
            (12, "byte order 255"),
        ] {
            let mut file = recording();
            file[at] = 255;
            let error = RecordingReader::new(&*file).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let mut file = recording();
        file[FILE_HEADER + 7] = 1; // 16 MiB
        let (_, result) = read(&file);
        let error = result.unwrap_err().to_string();
        assert_eq!(error, "damaged at byte 16: an entry of more than 1 MiB");
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(mut tail in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..200) {
            let mut file = recording();
            file.truncate(at.max(FILE_HEADER));
            file.append(&mut tail);
            let _ = read(&file);
        }
    }
}
