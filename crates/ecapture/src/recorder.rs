//! `--record`: everything that comes out of the ring buffers, and what else replaying needs, in a file.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;

use capture::{PacketCapture, monotonic_ns, realtime_offset_ns};
use events::Record;
use serde::{Deserialize, Serialize};
use trace::{Interface, RecordingWriter, Timestamp};

use crate::args::Mode;
use crate::failure::Failure;
use crate::pipeline::{Destination, Ending};
use crate::secret_file::{Place, empty, open};

/// What was captured, where and how: all that outputs need to know besides records. docs/recording.md
/// describes the fields; they are only added to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Context {
    /// The program that captured, with its version.
    pub(crate) application: String,
    /// The machine's architecture.
    pub(crate) hardware: String,
    /// Operating system and kernel.
    pub(crate) os: String,
    /// What was captured.
    pub(crate) mode: Mode,
    /// The executable's path, as far as it is text.
    pub(crate) executable: String,
    /// By what it was built.
    pub(crate) go_version: String,
    /// `amd64` or `arm64`.
    pub(crate) architecture: String,
    /// Only this process.
    pub(crate) pid: Option<u32>,
    /// Only processes of this user.
    pub(crate) uid: Option<u32>,
    /// Only so many bytes of each call.
    pub(crate) bytes_per_call: Option<u64>,
    /// When the capture began: ns since 1970-01-01 UTC.
    pub(crate) started_ns: i64,
    /// The interfaces whose packets were captured, in the order of their indexes.
    #[serde(default)]
    pub(crate) interfaces: Vec<CapturedInterface>,
}

/// An interface whose packets were captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CapturedInterface {
    pub(crate) name: String,
    /// LINKTYPE number.
    pub(crate) link_type: u16,
    /// Packets were cut to this many bytes.
    pub(crate) snaplen: u32,
    /// In libpcap's syntax.
    pub(crate) filter: Option<String>,
}

impl CapturedInterface {
    /// The interfaces of a capture.
    pub(crate) fn all(packets: &PacketCapture, snaplen: u32) -> Vec<Self> {
        let described = packets.interfaces().iter().map(|found| Self {
            name: found.name.to_string(),
            link_type: found.link_type.number(),
            snaplen,
            filter: found.filter.as_deref().map(str::to_owned),
        });
        described.collect()
    }

    /// Its description in a pcapng file.
    pub(crate) fn describe(&self) -> Interface<'_> {
        Interface {
            name: &self.name,
            link_type: self.link_type,
            snaplen: self.snaplen,
            filter: self.filter.as_deref(),
        }
    }
}

impl Context {
    /// When the capture began.
    pub(crate) fn started(&self) -> Timestamp {
        Timestamp(self.started_ns)
    }
}

/// The present time, for [`Context::started_ns`].
pub(crate) fn now_ns() -> i64 {
    Timestamp::from_monotonic(monotonic_ns(), realtime_offset_ns()).0
}

/// What the last entry of a recording says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RecordedEnd {
    /// When it ended: CLOCK_MONOTONIC, in ns.
    pub(crate) time_ns: u64,
    /// From there to the wall clock.
    pub(crate) realtime_offset_ns: i64,
    #[serde(flatten)]
    pub(crate) ending: Ending,
}

/// Writes a recording.
#[derive(Debug)]
pub(crate) struct Recorder {
    writer: RecordingWriter<BufWriter<File>>,
    destination: Destination,
    /// Packets wait for keys, until a time that only the turns tell.
    turns: bool,
    records: u64,
    bytes: u64,
}

/// Opens the file, before anything is attached.
pub(crate) fn open_recording(path: &Path) -> Result<(Destination, File), Failure> {
    open(path, Destination::Recording, Place::create)
}

impl Recorder {
    /// Begins the recording.
    pub(crate) fn begin(
        (destination, file): (Destination, File),
        context: &Context,
    ) -> io::Result<Self> {
        if destination != Destination::Stdout {
            empty(&file)?;
        }
        let out = BufWriter::with_capacity(256 * 1024, file);
        let mut writer = RecordingWriter::new(out, &serde_json::to_vec(context)?)?;
        writer.flush()?;
        Ok(Self {
            writer,
            destination,
            turns: context.mode == Mode::Pcap,
            records: 0,
            bytes: 0,
        })
    }

    pub(crate) fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Takes a record's bytes, and what they mean.
    pub(crate) fn record(
        &mut self,
        bytes: &[u8],
        record: &Record<'_>,
        realtime_offset_ns: i64,
    ) -> io::Result<()> {
        self.records += 1;
        self.bytes += match record {
            Record::Data(data) => data.payload.len() as u64,
            Record::Packet(packet) => packet.bytes.len() as u64,
            _ => 0,
        };
        self.writer.record(bytes, realtime_offset_ns)
    }

    /// Takes bytes of which nobody knows what they mean.
    pub(crate) fn undecodable(&mut self, bytes: &[u8], realtime_offset_ns: i64) -> io::Result<()> {
        self.records += 1;
        self.writer.record(bytes, realtime_offset_ns)
    }

    pub(crate) fn turn(&mut self, busy: bool, now_ns: u64) -> io::Result<()> {
        if busy || self.turns {
            self.writer.turn(busy, now_ns)?;
        }
        if busy { self.writer.flush() } else { Ok(()) }
    }

    pub(crate) fn finish(
        &mut self,
        time_ns: u64,
        realtime_offset_ns: i64,
        ending: &Ending,
    ) -> io::Result<()> {
        let end = RecordedEnd {
            time_ns,
            realtime_offset_ns,
            ending: ending.clone(),
        };
        self.writer.end(&serde_json::to_vec(&end)?)
    }

    /// Its part of the closing line; `alone` if there is no other.
    pub(crate) fn summary(&self, ending: &Ending, alone: bool) -> String {
        let (records, bytes) = (self.records, self.bytes);
        if !alone {
            return format!("recorded: {records} records, {bytes} bytes");
        }
        let counters = &ending.counters;
        format!(
            "{records} records, {bytes} bytes recorded; lost: {} records, {} bytes; \
             unreadable: {} records, {} bytes",
            counters.lost_records,
            counters.lost_bytes,
            counters.unreadable_records,
            counters.unreadable_bytes,
        )
    }
}
