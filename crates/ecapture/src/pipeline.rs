//! From a record's bytes to every output: the same for a capture and for a recording.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use capture::{Counters, InterfaceStatistics};
use events::Record;
use serde::{Deserialize, Serialize};
use trace::Timestamp;

use crate::event_output::EventAddress;
use crate::places::Places;
use crate::recorder::Recorder;

/// What becomes of records.
pub(crate) trait Output: Send {
    /// Where it ends up.
    fn destination(&self) -> &Destination;

    /// Takes one record. `realtime_offset_ns` leads from the records' clock to the wall clock.
    fn record(&mut self, record: &Record<'_>, realtime_offset_ns: i64) -> io::Result<()>;

    /// Is told at the end what was lost.
    fn finish(&mut self, now: Timestamp, ending: &Ending) -> io::Result<()>;

    /// Is told after each look at the readers. `busy` says whether there was anything, and all records
    /// up to `now_ns` (CLOCK_MONOTONIC) have been taken from all readers but the first.
    fn turn(&mut self, busy: bool, now_ns: u64) -> io::Result<()> {
        let _ = now_ns;
        if busy { self.flush() } else { Ok(()) }
    }

    /// Hands everything taken so far on.
    fn flush(&mut self) -> io::Result<()>;

    /// Whether it gives files other names on the way, maybe in somebody else's directory.
    fn renames_files(&self) -> bool {
        false
    }

    /// Its part of the closing line.
    fn summary(&self, ending: &Ending) -> String;
}

/// Where an output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// The capture ends when nobody reads it any more.
    Stdout,
    KeyLog(PathBuf),
    Packets(PathBuf),
    Recording(PathBuf),
    Har(PathBuf),
    /// The address of a server, or a file.
    Events(EventAddress),
}

impl Destination {
    /// The file, if it is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Events(EventAddress::File(path)) => Some(path),
            Self::Stdout | Self::Events(_) => None,
            Self::KeyLog(path) | Self::Packets(path) | Self::Recording(path) | Self::Har(path) => {
                Some(path)
            }
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::KeyLog(path) => write!(f, "key log {}", path.display()),
            Self::Packets(path) => write!(f, "capture file {}", path.display()),
            Self::Recording(path) => write!(f, "recording {}", path.display()),
            Self::Har(path) => write!(f, "HAR file {}", path.display()),
            Self::Events(EventAddress::File(path)) => write!(f, "event file {}", path.display()),
            Self::Events(address) => write!(f, "event address {address}"),
        }
    }
}

/// What is known at the end of a capture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ending {
    /// What was lost.
    pub(crate) counters: Counters,
    /// How the packets of the interfaces fared, in the order of the interfaces.
    pub(crate) interfaces: Vec<InterfaceStatistics>,
}

impl Ending {
    /// How many packets were lost.
    pub(crate) fn lost_packets(&self) -> u64 {
        self.interfaces.iter().map(|found| found.dropped).sum()
    }

    /// How many keys were lost, where nothing but keys and packets was captured: both ring buffers count
    /// what they had no room for; of packets the interfaces do, too.
    pub(crate) fn lost_keys(&self) -> u64 {
        let records = self.counters.lost_records;
        records.saturating_sub(self.lost_packets())
    }
}

/// Writing failed, and where.
#[derive(Debug)]
pub(crate) struct WriteError {
    pub(crate) destination: Destination,
    pub(crate) error: io::Error,
}

/// All that is made of records.
pub(crate) struct Pipeline {
    outputs: Vec<Box<dyn Output>>,
    recorder: Option<Recorder>,
    /// Looks up where processes run, in a live capture.
    places: Option<Places>,
    pub(crate) undecodable: u64,
    pub(crate) unknown_kinds: u64,
}

impl Pipeline {
    pub(crate) fn new(outputs: Vec<Box<dyn Output>>, recorder: Option<Recorder>) -> Self {
        Self {
            outputs,
            recorder,
            places: None,
            undecodable: 0,
            unknown_kinds: 0,
        }
    }

    /// Tells the outputs where processes run, ahead of their connections.
    pub(crate) fn with_places(mut self, places: Places) -> Self {
        self.places = Some(places);
        self
    }

    /// Where it all goes.
    pub(crate) fn destinations(&self) -> Vec<Destination> {
        let outputs = self.outputs.iter().map(|output| output.destination());
        let recording = self.recorder.iter().map(Recorder::destination);
        outputs.chain(recording).cloned().collect()
    }

    /// Whether any output gives files other names on the way.
    pub(crate) fn renames_files(&self) -> bool {
        self.outputs.iter().any(|output| output.renames_files())
    }

    /// Takes one record as it came from the ring buffer.
    pub(crate) fn record(
        &mut self,
        bytes: &[u8],
        realtime_offset_ns: i64,
    ) -> Result<(), WriteError> {
        match Record::decode_prefix(bytes) {
            Ok((record, length)) => {
                self.place(&record, realtime_offset_ns)?;
                self.recorded(|recorder| {
                    recorder.record(&bytes[..length], &record, realtime_offset_ns)
                })?;
                self.each(|output| output.record(&record, realtime_offset_ns))
            }
            Err(error) => {
                if error.is_unknown_kind() {
                    self.unknown_kinds += 1;
                } else {
                    self.undecodable += 1;
                }
                self.recorded(|recorder| recorder.undecodable(bytes, realtime_offset_ns))
            }
        }
    }

    /// Says where the process runs whose connection is about to be told of, if that is news.
    fn place(&mut self, record: &Record<'_>, realtime_offset_ns: i64) -> Result<(), WriteError> {
        let (Some(places), Record::Connection(connection)) = (&mut self.places, record) else {
            return Ok(());
        };
        let Some(news) = places.news(&connection.header) else {
            return Ok(());
        };
        // A record that does not come from the ring buffer, but goes the same way.
        self.record(&news, realtime_offset_ns)
    }

    /// Everything up to `now_ns` has been taken; see [`Output::turn`].
    pub(crate) fn turn(&mut self, busy: bool, now_ns: u64) -> Result<(), WriteError> {
        self.each(|output| output.turn(busy, now_ns))?;
        self.recorded(|recorder| recorder.turn(busy, now_ns))
    }

    /// Nothing follows.
    pub(crate) fn finish(
        &mut self,
        now_ns: u64,
        realtime_offset_ns: i64,
        ending: &Ending,
    ) -> Result<(), WriteError> {
        let now = Timestamp::from_monotonic(now_ns, realtime_offset_ns);
        self.each(|output| {
            output.finish(now, ending)?;
            output.flush()
        })?;
        self.recorded(|recorder| recorder.finish(now_ns, realtime_offset_ns, ending))
    }

    /// The closing line, without what all modes have.
    pub(crate) fn summary(&self, ending: &Ending) -> String {
        let mut parts: Vec<_> = self
            .outputs
            .iter()
            .map(|output| output.summary(ending))
            .collect();
        if let Some(recorder) = &self.recorder {
            parts.push(recorder.summary(ending, self.outputs.is_empty()));
        }
        parts.join("; ")
    }

    fn each(
        &mut self,
        mut act: impl FnMut(&mut Box<dyn Output>) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        for output in &mut self.outputs {
            act(output).map_err(|error| WriteError {
                destination: output.destination().clone(),
                error,
            })?;
        }
        Ok(())
    }

    fn recorded(
        &mut self,
        act: impl FnOnce(&mut Recorder) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let Some(recorder) = &mut self.recorder else {
            return Ok(());
        };
        act(recorder).map_err(|error| WriteError {
            destination: recorder.destination().clone(),
            error,
        })
    }
}
