//! JSON lines: one object per event, for scripts. docs/json-lines.md describes the fields; they are
//! never renamed, only added to.

use std::io::{self, Write};

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};

use crate::event::{Data, Event, Lost, Sink};
use crate::time::{TimeFormat, Timestamp};

/// Writes events as JSON lines.
#[derive(Debug)]
pub struct JsonSink<W> {
    out: W,
    time: TimeFormat,
}

impl<W: Write> JsonSink<W> {
    /// A sink that writes to `out`, which ought to be buffered.
    pub fn new(out: W) -> Self {
        Self {
            out,
            time: TimeFormat::rfc3339(),
        }
    }
}

impl<W: Write> Sink for JsonSink<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        let line = match event {
            Event::Data(data) => Line::data(data, Rfc3339::new(&mut self.time, data.time)),
            Event::Lost(lost) => Line::lost(lost, Rfc3339::new(&mut self.time, lost.time)),
        };
        serde_json::to_writer(&mut self.out, &line)?;
        self.out.write_all(b"\n")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The schema.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Data {
        time: Rfc3339<'a>,
        pid: u32,
        tid: u32,
        comm: Comm<'a>,
        conn: u64,
        direction: &'static str,
        offset: u64,
        length: usize,
        call_offset: u64,
        call_length: u64,
        #[serde(skip_serializing_if = "is_zero")]
        truncated: u64,
        data_base64: Base64<'a>,
    },
    Lost {
        time: Rfc3339<'a>,
        #[serde(flatten)]
        place: Option<PlaceFields<'a>>,
        reason: &'static str,
        bytes: u64,
        records: u64,
    },
}

#[derive(Serialize)]
struct PlaceFields<'a> {
    pid: u32,
    comm: Comm<'a>,
    conn: u64,
    direction: &'static str,
    offset: u64,
}

impl<'a> Line<'a> {
    fn data(data: &Data<'a>, time: Rfc3339<'a>) -> Self {
        Self::Data {
            time,
            pid: data.pid,
            tid: data.tid,
            comm: Comm(data.comm),
            conn: data.connection,
            direction: direction(data.direction),
            offset: data.stream_offset,
            length: data.payload.len(),
            call_offset: data.call_offset,
            call_length: data.call_length,
            truncated: data.truncated,
            data_base64: Base64(data.payload),
        }
    }

    fn lost(lost: &Lost<'a>, time: Rfc3339<'a>) -> Self {
        Self::Lost {
            time,
            place: lost.place.map(|place| PlaceFields {
                pid: place.pid,
                comm: Comm(place.comm),
                conn: place.connection,
                direction: direction(place.direction),
                offset: place.stream_offset,
            }),
            reason: lost.reason.name(),
            bytes: lost.bytes,
            records: lost.records,
        }
    }
}

fn direction(direction: events::Direction) -> &'static str {
    match direction {
        events::Direction::Write => "write",
        events::Direction::Read => "read",
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

struct Rfc3339<'a> {
    second: &'a str,
    nanoseconds: u32,
}

impl<'a> Rfc3339<'a> {
    fn new(format: &'a mut TimeFormat, time: Timestamp) -> Self {
        let (second, nanoseconds) = format.second(time);
        Self {
            second,
            nanoseconds,
        }
    }
}

impl Serialize for Rfc3339<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}.{:09}Z", self.second, self.nanoseconds))
    }
}

/// A thread's name is bytes; JSON has only text.
struct Comm<'a>(&'a [u8]);

impl Serialize for Comm<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(name) => serializer.serialize_str(name),
            Err(_) => serializer.collect_str(&String::from_utf8_lossy(self.0)),
        }
    }
}

struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}
