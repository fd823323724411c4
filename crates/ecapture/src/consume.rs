//! Carries records from the ring buffer to an output, until told to stop.

use std::path::PathBuf;
use std::{fmt, io};

use capture::{Counters, Reader, Stopped, give_up_privileges, monotonic_ns, realtime_offset_ns};
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
    /// Where it ends up.
    fn destination(&self) -> &Destination;

    /// Takes one record. `realtime_offset_ns` leads from the records' clock to the wall clock.
    fn record(&mut self, record: &Record<'_>, realtime_offset_ns: i64) -> io::Result<()>;

    /// Is told at the end what was lost.
    fn finish(&mut self, now: Timestamp, counters: &Counters) -> io::Result<()>;

    /// Is told after each look at the readers. `busy` says whether there was anything, and all records
    /// up to `now_ns` (CLOCK_MONOTONIC) have been taken from all readers but the first.
    fn turn(&mut self, busy: bool, now_ns: u64) -> io::Result<()> {
        let _ = now_ns;
        if busy { self.flush() } else { Ok(()) }
    }

    /// Hands everything taken so far on.
    fn flush(&mut self) -> io::Result<()>;
}

/// Where an output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// The capture ends when nobody reads it any more.
    Stdout,
    KeyLog(PathBuf),
    Packets(PathBuf),
    Har(PathBuf),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::KeyLog(path) => write!(f, "key log {}", path.display()),
            Self::Har(path) => write!(f, "HAR file {}", path.display()),
            Self::Packets(path) => write!(f, "capture file {}", path.display()),
        }
    }
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

/// Reads until the first reader's stop switch is pressed and all ring buffers are empty, or the output
/// fails. The first reader says when to look; the others are looked at before it each time.
pub(crate) fn consume<O: Output>(mut readers: Vec<Reader>, mut output: O) -> Outcome<O> {
    // Needs CAP_SYS_NICE. Without it a busy machine loses more, which the summary tells.
    let _ = rustix::process::nice(NICE);
    // If that is not possible, it is not for the main thread either, which says so.
    let _ = give_up_privileges();
    let mut undecodable = 0;
    let result = run(&mut readers, &mut output, &mut undecodable);
    Outcome {
        output,
        counters: counters(&readers),
        undecodable,
        result,
    }
}

fn run(readers: &mut [Reader], output: &mut impl Output, undecodable: &mut u64) -> io::Result<()> {
    let Some((first, others)) = readers.split_first_mut() else {
        return Ok(());
    };
    let (mut busy, mut more) = (false, false);
    loop {
        let stopped = if more { Stopped::No } else { first.wait(busy)? };
        let now_ns = monotonic_ns();
        busy = false;
        for reader in others.iter_mut() {
            busy |= drain_all(reader, output, undecodable)?;
        }
        if stopped == Stopped::Yes {
            drain_all(first, output, undecodable)?;
            let now = Timestamp::from_monotonic(monotonic_ns(), realtime_offset_ns());
            output.finish(now, &counters(readers))?;
            return output.flush();
        }
        // One batch at a time: a reader that always has more must not keep the others waiting.
        let count = drain(first, output, undecodable)?;
        more = count == BATCH;
        busy |= count > 0;
        output.turn(busy, now_ns)?;
    }
}

/// Takes batches until there is nothing more, and says whether there was anything.
fn drain_all(
    reader: &mut Reader,
    output: &mut impl Output,
    undecodable: &mut u64,
) -> io::Result<bool> {
    let mut any = false;
    while drain(reader, output, undecodable)? > 0 {
        any = true;
    }
    Ok(any)
}

/// What all readers together did not get.
fn counters(readers: &[Reader]) -> Counters {
    readers
        .iter()
        .map(Reader::counters)
        .fold(Counters::default(), |sum, counters| sum + counters)
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
