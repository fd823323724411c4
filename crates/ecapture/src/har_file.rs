//! `--har`: a file of HTTP exchanges.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;

use events::Record;
use trace::{HarSink, Sink, Timestamp};

use crate::args::OutputArgs;
use crate::decoding::{Decoding, Events};
use crate::failure::Failure;
use crate::pipeline::{Destination, Ending, Output};
use crate::secret_file::{Place, empty, open};

/// A HAR file, which is complete however the capture ends, unless the program is killed.
pub(crate) struct HarFile {
    stream: Events<HarSink<BufWriter<File>>>,
    destination: Destination,
    /// Nothing more may be written.
    over: bool,
}

impl HarFile {
    /// Opens the file, or standard output for `-`.
    pub(crate) fn open(path: &Path) -> Result<(Destination, File), Failure> {
        open(path, Destination::Har, Place::create)
    }

    /// Drops what was in the file.
    pub(crate) fn begin(
        (destination, file): (Destination, File),
        args: &OutputArgs,
    ) -> io::Result<Self> {
        if destination != Destination::Stdout {
            empty(&file)?;
        }
        let sink = HarSink::new(BufWriter::new(file));
        Ok(Self {
            stream: Events::new(sink, Decoding::always(args)),
            destination,
            over: false,
        })
    }

    /// Acts, unless writing has failed before or is over.
    fn unless_over(&mut self, act: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        if self.over {
            return Ok(());
        }
        let result = act(self);
        self.over |= result.is_err();
        result
    }

    /// Completes the file.
    fn complete(&mut self) -> io::Result<()> {
        self.unless_over(|har| {
            let sink = har.stream.sink_mut();
            sink.finish()?;
            sink.flush()
        })?;
        self.over = true;
        Ok(())
    }
}

impl Output for HarFile {
    fn destination(&self) -> &Destination {
        &self.destination
    }

    fn record(&mut self, record: &Record<'_>, realtime_offset_ns: i64) -> io::Result<()> {
        self.unless_over(|har| har.stream.record(record, realtime_offset_ns))
    }

    fn finish(&mut self, now: Timestamp, ending: &Ending) -> io::Result<()> {
        self.unless_over(|har| har.stream.finish(now, ending))?;
        self.complete()
    }

    fn turn(&mut self, busy: bool, now_ns: u64) -> io::Result<()> {
        self.unless_over(|har| har.stream.turn(busy, now_ns))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_over(|har| har.stream.sink_mut().flush())
    }

    fn summary(&self, _ending: &Ending) -> String {
        let entries = self.stream.sink().entries();
        let plural = if entries == 1 { "" } else { "s" };
        format!("{entries} exchange{plural} in {}", self.destination)
    }
}

impl Drop for HarFile {
    /// Another output may have failed first, and then nobody is left to be told of a failure here.
    fn drop(&mut self) {
        let _ = self.complete();
    }
}
