//! Carries records from the ring buffer to a sink, until told to stop.

use std::io;

use capture::{Counters, Reader, Stopped, monotonic_ns, realtime_offset_ns};
use events::Record;
use trace::{Sink, Timestamp, Totals, Tracker};

/// Records between two looks at the wall clock.
const BATCH: usize = 4096;

/// How much more readily than others the reading thread gets a processor. On a machine whose processors
/// are all busy, an equal share would be too little to keep up with several busy targets, and what is
/// not read in time is lost. It takes no more time than reading needs.
const NICE: i32 = -10;

/// What a capture came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) totals: Totals,
    pub(crate) counters: Counters,
    /// Records that could not be decoded: a defect of ours.
    pub(crate) undecodable: u64,
}

/// Reads until the reader's stop switch is pressed and the ring buffer is empty, or the output fails.
/// The outcome is good in either case.
pub(crate) fn consume(mut reader: Reader, mut sink: impl Sink) -> (Outcome, io::Result<()>) {
    // Needs CAP_SYS_NICE. Without it a busy machine loses more, which the summary tells.
    let _ = rustix::process::nice(NICE);
    let mut tracker = Tracker::new();
    let mut undecodable = 0;
    let result = run(&mut reader, &mut tracker, &mut undecodable, &mut sink);
    let outcome = Outcome {
        totals: tracker.totals(),
        counters: reader.counters(),
        undecodable,
    };
    (outcome, result)
}

fn run(
    reader: &mut Reader,
    tracker: &mut Tracker,
    undecodable: &mut u64,
    sink: &mut impl Sink,
) -> io::Result<()> {
    let mut busy = false;
    loop {
        let stopped = reader.wait(busy)?;
        busy = false;
        while drain(reader, tracker, undecodable, sink)? > 0 {
            busy = true;
        }
        if stopped == Stopped::Yes {
            let now = Timestamp::from_monotonic(monotonic_ns(), realtime_offset_ns());
            let counters = reader.counters();
            tracker.finish(now, counters.lost_records, counters.lost_bytes, sink)?;
            return sink.flush();
        }
        if busy {
            sink.flush()?;
        }
    }
}

/// Takes one batch and returns how many records it had.
fn drain(
    reader: &mut Reader,
    tracker: &mut Tracker,
    undecodable: &mut u64,
    sink: &mut impl Sink,
) -> io::Result<usize> {
    let offset = realtime_offset_ns();
    let mut result = Ok(());
    let count = reader.drain(BATCH, |bytes| {
        if result.is_err() {
            return;
        }
        match Record::decode(bytes) {
            Ok(record) => result = tracker.record(&record, offset, sink),
            Err(_) => *undecodable += 1,
        }
    });
    result.map(|()| count)
}
