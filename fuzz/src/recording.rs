//! Recordings: what can be read of a file can be written again, and its records go to every output.

use trace::{Entry, RecordingReader, RecordingWriter};

use crate::records;

/// A file.
pub fn run(bytes: &[u8]) {
    let entries = read(bytes);
    let mut written = Vec::new();
    let mut writer = RecordingWriter::new(&mut written, b"{}").expect("writing to memory");
    let (mut clock, mut expected, mut list) = (0, Vec::new(), Vec::new());
    for entry in entries {
        match &entry {
            Read::Clock(offset) => {
                clock = *offset;
                continue;
            }
            Read::Record(record) => {
                writer.record(record, clock).expect("writing to memory");
                if let Ok(length) = u16::try_from(record.len()) {
                    list.extend(length.to_le_bytes());
                    list.extend(record);
                }
            }
            Read::Turn(now, busy) => writer.turn(*busy, *now).expect("writing to memory"),
            Read::End(end) => writer.end(end).expect("writing to memory"),
            Read::Context => continue,
        }
        expected.push(entry);
    }
    let mut again = read(&written);
    again.retain(|entry| !matches!(entry, Read::Context | Read::Clock(_)));
    assert_eq!(again, expected);
    records::run(&list);
}

#[derive(Debug, PartialEq)]
enum Read {
    Context,
    Clock(i64),
    Record(Vec<u8>),
    Turn(u64, bool),
    End(Vec<u8>),
}

/// All entries up to the end, or to what can't be read.
fn read(bytes: &[u8]) -> Vec<Read> {
    let mut entries = Vec::new();
    let Ok(mut reader) = RecordingReader::new(bytes) else {
        return entries;
    };
    while let Ok(Some(entry)) = reader.next_entry() {
        entries.push(match entry {
            Entry::Context(_) => Read::Context,
            Entry::Clock(offset) => Read::Clock(offset),
            Entry::Record(record) => Read::Record(record.to_vec()),
            Entry::Turn { now_ns, busy } => Read::Turn(now_ns, busy),
            Entry::End(end) => Read::End(end.to_vec()),
        });
    }
    entries
}

pub fn seeds() -> Vec<Vec<u8>> {
    let recording = |list: Vec<u8>| {
        let mut file = Vec::new();
        let mut writer = RecordingWriter::new(&mut file, b"{}").expect("writing to memory");
        let mut rest = &list[..];
        while let Some((length, behind)) = rest.split_first_chunk() {
            let (record, behind) = behind.split_at(u16::from_le_bytes(*length).into());
            writer.record(record, 1_000_000).expect("writing to memory");
            writer.turn(true, 5).expect("writing to memory");
            rest = behind;
        }
        writer.end(b"{}").expect("writing to memory");
        file
    };
    records::seeds().into_iter().map(recording).collect()
}
