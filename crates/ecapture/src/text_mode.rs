//! `-m text`: the plaintext, on standard output.

use std::io;

use events::Record;
use trace::{Sink, Timestamp, Totals, Tracker};

use crate::output::StdoutSink;
use crate::pipeline::{Destination, Ending, Output};

/// Turns records into events and writes them.
#[derive(Debug)]
pub(crate) struct Plaintext {
    tracker: Tracker,
    sink: StdoutSink,
}

impl Plaintext {
    pub(crate) fn new(sink: StdoutSink) -> Self {
        Self {
            tracker: Tracker::new(),
            sink,
        }
    }
}

impl Output for Plaintext {
    fn destination(&self) -> &Destination {
        &Destination::Stdout
    }

    fn record(&mut self, record: &Record<'_>, realtime_offset_ns: i64) -> io::Result<()> {
        self.tracker
            .record(record, realtime_offset_ns, &mut self.sink)
    }

    fn finish(&mut self, now: Timestamp, ending: &Ending) -> io::Result<()> {
        let counters = &ending.counters;
        let (records, bytes) = (counters.lost_records, counters.lost_bytes);
        self.tracker.finish(now, records, bytes, &mut self.sink)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }

    fn summary(&self, ending: &Ending) -> String {
        plaintext_summary(self.tracker.totals(), ending)
    }
}

/// What became of plaintext, for the closing line.
pub(crate) fn plaintext_summary(totals: Totals, ending: &Ending) -> String {
    let counters = &ending.counters;
    let mut summary = format!(
        "{} events, {} bytes on {} connections; lost: {} events, {} bytes; \
         unreadable: {} events, {} bytes",
        totals.records,
        totals.bytes,
        totals.connections,
        counters.lost_records,
        counters.lost_bytes,
        counters.unreadable_records,
        counters.unreadable_bytes,
    );
    if counters.too_long_bytes > 0 {
        summary += &format!("; too long to copy: {} bytes", counters.too_long_bytes);
    }
    summary
}
