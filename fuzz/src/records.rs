//! Records of the ring buffer, up to what a user sees.

use events::Record;
use jiff::tz::TimeZone;
use trace::{JsonSink, KeyLog, Palette, PayloadStyle, TextSink, Timestamp, Tracker};

/// A list of records, each behind its length (16 bits, little-endian), through every output.
pub fn records(mut bytes: &[u8]) {
    let mut out = Vec::new();
    let mut text = TextSink::new(&mut out, PayloadStyle::Hex, Palette::PLAIN, TimeZone::UTC);
    let mut json_out = Vec::new();
    let mut json = JsonSink::new(&mut json_out);
    let mut keys = KeyLog::new(Vec::new());
    let (mut for_text, mut for_json) = (Tracker::new(), Tracker::new());
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let (record, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        bytes = rest;
        let Ok(record) = Record::decode(record) else {
            continue;
        };
        for_text
            .record(&record, 0, &mut text)
            .expect("writing to memory");
        for_json
            .record(&record, 0, &mut json)
            .expect("writing to memory");
        if let Record::Key(key) = &record {
            keys.key(key).expect("writing to memory");
        }
    }
    for_text
        .finish(Timestamp(0), 1, 1, &mut text)
        .expect("writing to memory");
    drop(text);
    // Nothing of a record reaches a terminal as it is.
    assert!(
        out.iter()
            .all(|&byte| byte >= b' ' || byte == b'\n' || byte == b'\t')
    );
    drop(json);
    for line in json_out
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        serde_json::from_slice::<serde_json::Value>(line).expect("a line of JSON");
    }
}
