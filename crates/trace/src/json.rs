//! JSON lines: one object per event, for scripts. docs/json-lines.md describes the fields; they are
//! never renamed, only added to.

use std::fmt;
use std::io::{self, Write};

use base64_simd::{Out, STANDARD};

use crate::event::{Data, Event, Lost, Sink};
use crate::time::{TimeFormat, Timestamp};

/// Bytes that are encoded at once: a multiple of 3, so that only the last ones need padding.
const ENCODED_AT_ONCE: usize = 3 * 1024;

/// Writes events as JSON lines.
#[derive(Debug)]
pub struct JsonSink<W> {
    out: W,
    time: TimeFormat,
    /// Room for [`ENCODED_AT_ONCE`] bytes in base64.
    encoded: Box<[u8]>,
}

// Lines are put together by hand: a serializer would walk through every payload character by
// character, to escape what needs no escaping.
impl<W: Write> JsonSink<W> {
    /// A sink that writes to `out`, which ought to be buffered.
    pub fn new(out: W) -> Self {
        Self {
            out,
            time: TimeFormat::rfc3339(),
            encoded: vec![0; ENCODED_AT_ONCE / 3 * 4].into(),
        }
    }

    fn data(&mut self, data: &Data<'_>) -> io::Result<()> {
        self.begin("data", data.time)?;
        write!(
            self.out,
            r#","pid":{},"tid":{},"comm":{},"conn":{},"direction":"{}","offset":{},"length":{},"call_offset":{},"call_length":{}"#,
            data.pid,
            data.tid,
            Text(data.comm),
            data.connection,
            data.direction,
            data.stream_offset,
            data.payload.len(),
            data.call_offset,
            data.call_length,
        )?;
        if data.truncated > 0 {
            write!(self.out, r#","truncated":{}"#, data.truncated)?;
        }
        self.out.write_all(br#","data_base64":""#)?;
        self.base64(data.payload)?;
        self.out.write_all(b"\"}\n")
    }

    fn lost(&mut self, lost: &Lost<'_>) -> io::Result<()> {
        self.begin("lost", lost.time)?;
        if let Some(place) = lost.place {
            write!(
                self.out,
                r#","pid":{},"comm":{},"conn":{},"direction":"{}","offset":{}"#,
                place.pid,
                Text(place.comm),
                place.connection,
                place.direction,
                place.stream_offset,
            )?;
        }
        writeln!(
            self.out,
            r#","reason":"{}","bytes":{},"records":{}}}"#,
            lost.reason.name(),
            lost.bytes,
            lost.records,
        )
    }

    fn begin(&mut self, kind: &str, time: Timestamp) -> io::Result<()> {
        let (second, nanoseconds) = self.time.second(time);
        write!(
            self.out,
            r#"{{"type":"{kind}","time":"{second}.{nanoseconds:09}Z""#
        )
    }

    fn base64(&mut self, payload: &[u8]) -> io::Result<()> {
        for part in payload.chunks(ENCODED_AT_ONCE) {
            let encoded = STANDARD.encode(part, Out::from_slice(&mut self.encoded));
            self.out.write_all(encoded)?;
        }
        Ok(())
    }
}

impl<W: Write> Sink for JsonSink<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Data(data) => self.data(data),
            Event::Lost(lost) => self.lost(lost),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A JSON string. A thread's name is bytes, but JSON has only text: what is not UTF-8 becomes U+FFFD.
struct Text<'a>(&'a [u8]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(self.0);
        let plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        if text.bytes().all(plain) {
            return write!(f, "\"{text}\"");
        }
        let text = serde_json::to_string(&text).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use events::Direction;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::event::{Loss, Place};

    fn line(event: &Event<'_>) -> Value {
        let mut out = Vec::new();
        JsonSink::new(&mut out).event(event).unwrap();
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1);
        serde_json::from_slice(&out).unwrap()
    }

    proptest! {
        #[test]
        fn every_event_is_one_line_of_json_that_gives_it_back(
            payload in proptest::collection::vec(any::<u8>(), 1..10_000),
            comm in proptest::collection::vec(any::<u8>(), 0..16),
            truncated in 0..2u64,
        ) {
            let found = line(&Event::Data(Data {
                time: Timestamp(1_795_379_103_123_456_789),
                pid: 42,
                tid: 43,
                comm: &comm,
                connection: 7,
                direction: Direction::Read,
                stream_offset: 100,
                call_length: 20_000,
                call_offset: 50,
                truncated,
                payload: &payload,
            }));
            let mut expected = serde_json::json!({
                "type": "data",
                "time": "2026-11-22T20:25:03.123456789Z",
                "pid": 42,
                "tid": 43,
                "comm": String::from_utf8_lossy(&comm),
                "conn": 7,
                "direction": "read",
                "offset": 100,
                "length": payload.len(),
                "call_offset": 50,
                "call_length": 20_000,
                "data_base64": STANDARD.encode(&payload),
            });
            if truncated > 0 {
                expected["truncated"] = truncated.into();
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn an_apostrophe_in_a_name_needs_no_escape() {
        assert_eq!(Text(b"it's").to_string(), "\"it's\"");
    }

    #[test]
    fn a_loss_says_where_if_that_is_known() {
        let mut lost = Lost {
            time: Timestamp(0),
            place: None,
            bytes: 16384,
            records: 1,
            reason: Loss::BufferFull,
        };
        let mut expected = serde_json::json!({
            "type": "lost", "time": "1970-01-01T00:00:00.000000000Z",
            "reason": "buffer_full", "bytes": 16384, "records": 1,
        });
        assert_eq!(line(&Event::Lost(lost)), expected);

        lost.place = Some(Place {
            pid: 1,
            comm: b"a\"b\\",
            connection: 2,
            direction: Direction::Write,
            stream_offset: 3,
        });
        for (key, value) in [("pid", 1), ("conn", 2), ("offset", 3)] {
            expected[key] = value.into();
        }
        expected["comm"] = "a\"b\\".into();
        expected["direction"] = "write".into();
        assert_eq!(line(&Event::Lost(lost)), expected);
    }
}
