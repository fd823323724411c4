//! Carries records from the ring buffer to an output, until told to stop.

use std::io;

use capture::{Counters, Reader, Stopped, monotonic_ns, realtime_offset_ns};
use events::Record;
use trace::Timestamp;

/// Records between two looks at the wall clock.
const BATCH: usize = 4096;

/// How much more readily than others the reading thread gets a processor. On a machine whose processors
/// are all busy, an equal share would be too little to keep up with several busy targets, and what is
/// not read in time is lost. It takes no more time than reading needs.
const NICE: i32 = -10;

/// What becomes of records.
pub(crate) trait Output {
    /// Takes one record. `realtime_offset_ns` leads from the records' clock to the wall clock.
    fn record(&mut self, record: &Record<'_>, realtime_offset_ns: i64) -> io::Result<()>;

    /// Is told at the end what was lost.
    fn finish(&mut self, now: Timestamp, counters: &Counters) -> io::Result<()>;

    /// Hands everything taken so far on.
    fn flush(&mut self) -> io::Result<()>;
}

/// What a capture came to.
#[derive(Debug)]
pub(crate) struct Outcome<O> {
    pub(crate) output: O,
    pub(crate) counters: Counters,
    /// Records that could not be decoded: a defect of ours.
    pub(crate) undecodable: u64,
    /// Whether everything was written.
    pub(crate) result: io::Result<()>,
}

/// Reads until the reader's stop switch is pressed and the ring buffer is empty, or the output fails.
pub(crate) fn consume<O: Output>(mut reader: Reader, mut output: O) -> Outcome<O> {
    // Needs CAP_SYS_NICE. Without it a busy machine loses more, which the summary tells.
    let _ = rustix::process::nice(NICE);
    let mut undecodable = 0;
    let result = run(&mut reader, &mut output, &mut undecodable);
    Outcome {
        output,
        counters: reader.counters(),
        undecodable,
        result,
    }
}

fn run(reader: &mut Reader, output: &mut impl Output, undecodable: &mut u64) -> io::Result<()> {
    let mut busy = false;
    loop {
        let stopped = reader.wait(busy)?;
        busy = false;
        while drain(reader, output, undecodable)? > 0 {
            busy = true;
        }
        if stopped == Stopped::Yes {
            let now = Timestamp::from_monotonic(monotonic_ns(), realtime_offset_ns());
            output.finish(now, &reader.counters())?;
            return output.flush();
        }
        if busy {
            output.flush()?;
        }
    }
}

/// Takes one batch and returns how many records it had.
fn drain(
    reader: &mut Reader,
    output: &mut impl Output,
    undecodable: &mut u64,
) -> io::Result<usize> {
    let offset = realtime_offset_ns();
    let mut result = Ok(());
    let count = reader.drain(BATCH, |bytes| {
        if result.is_err() {
            return;
        }
        match Record::decode(bytes) {
            Ok(record) => result = output.record(&record, offset),
            Err(_) => *undecodable += 1,
        }
    });
    result.map(|()| count)
}
