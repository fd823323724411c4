//! `-m plain`: the plaintext as packets, in a pcapng file that Wireshark reads without keys.

use std::fs::File;
use std::io::{self, BufWriter};

use events::Record;
use trace::{PcapngWriter, PlaintextPackets, Timestamp, Tracker};

use crate::pcap_mode::section;
use crate::pipeline::{Destination, Ending, Output};
use crate::recorder::Context;
use crate::secret_file::empty;

/// Where the plaintext goes unless `-w` says otherwise.
pub(crate) const DEFAULT_FILE: &str = "ecapture_gotls_plain.pcapng";

/// Writes plaintext as packets.
#[derive(Debug)]
pub(crate) struct PlainFile {
    tracker: Tracker,
    sink: PlaintextPackets<BufWriter<File>>,
    destination: Destination,
}

impl PlainFile {
    /// Begins the file, so that even one without a connection is a complete one.
    pub(crate) fn begin(
        (destination, file): (Destination, File),
        context: &Context,
    ) -> io::Result<Self> {
        if destination != Destination::Stdout {
            empty(&file)?;
        }
        let out = BufWriter::with_capacity(256 * 1024, file);
        let interface = PlaintextPackets::<BufWriter<File>>::INTERFACE;
        let writer = PcapngWriter::new(out, &section(context), &[interface])?;
        let mut output = Self {
            tracker: Tracker::new(),
            sink: PlaintextPackets::new(writer, context.started()),
            destination,
        };
        output.flush()?;
        Ok(output)
    }
}

impl Output for PlainFile {
    fn destination(&self) -> &Destination {
        &self.destination
    }

    fn record(&mut self, record: &Record<'_>, realtime_offset_ns: i64) -> io::Result<()> {
        self.tracker
            .record(record, realtime_offset_ns, &mut self.sink)
    }

    fn finish(&mut self, now: Timestamp, ending: &Ending) -> io::Result<()> {
        let counters = &ending.counters;
        let (records, bytes) = (counters.lost_records, counters.lost_bytes);
        self.tracker.finish(now, records, bytes, &mut self.sink)?;
        self.sink.finish(now, records)
    }

    fn flush(&mut self) -> io::Result<()> {
        trace::Sink::flush(&mut self.sink)
    }

    fn summary(&self, ending: &Ending) -> String {
        let packets = self.sink.totals().packets;
        let plaintext = crate::text_mode::plaintext_summary(self.tracker.totals(), ending);
        format!("{packets} packets of {plaintext}")
    }
}
