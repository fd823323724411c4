//! Carries records from the ring buffers into the pipeline, until told to stop.

use std::sync::mpsc;

use capture::{
    Counters, InterfaceStatistics, Reader, Stopped, give_up_privileges,
    keep_privileges_to_rename_files, monotonic_ns, realtime_offset_ns, run_promptly,
};

use crate::pipeline::{Destination, Ending, Pipeline, WriteError};

/// Records between two looks at the wall clock.
const BATCH: usize = 4096;

/// What a capture, or a recording, came to.
pub(crate) struct Outcome {
    pub(crate) pipeline: Pipeline,
    pub(crate) ending: Ending,
    /// Whether everything was written.
    pub(crate) result: Result<(), WriteError>,
}

/// Reads until the first reader's stop switch is pressed and all ring buffers are empty, or an output
/// fails. The first reader says when to look; the others are looked at before it each time. What
/// `interfaces` sends has to be there before the switch is pressed.
pub(crate) fn consume(
    mut readers: Vec<Reader>,
    mut pipeline: Pipeline,
    interfaces: &mpsc::Receiver<Vec<InterfaceStatistics>>,
) -> Outcome {
    run_promptly();
    // If that is not possible, it is not for the main thread either, which says so.
    let _ = if pipeline.renames_files() {
        keep_privileges_to_rename_files()
    } else {
        give_up_privileges()
    };
    let result = run(&mut readers, &mut pipeline, interfaces);
    Outcome {
        pipeline,
        ending: Ending {
            counters: counters(&readers),
            interfaces: Vec::new(),
        },
        result,
    }
}

fn run(
    readers: &mut [Reader],
    pipeline: &mut Pipeline,
    interfaces: &mpsc::Receiver<Vec<InterfaceStatistics>>,
) -> Result<(), WriteError> {
    let Some((first, others)) = readers.split_first_mut() else {
        return Ok(());
    };
    let (mut busy, mut more) = (false, false);
    loop {
        let stopped = if more {
            Stopped::No
        } else {
            // Nothing that is written has to do with it, but it is as fatal.
            first.wait(busy).map_err(|error| WriteError {
                destination: Destination::Stdout,
                error,
            })?
        };
        let now_ns = monotonic_ns();
        busy = false;
        for reader in others.iter_mut() {
            busy |= drain_all(reader, pipeline)?;
        }
        if stopped == Stopped::Yes {
            drain_all(first, pipeline)?;
            let ending = Ending {
                counters: counters(readers),
                interfaces: interfaces.try_recv().unwrap_or_default(),
            };
            return pipeline.finish(monotonic_ns(), realtime_offset_ns(), &ending);
        }
        // One batch at a time: a reader that always has more must not keep the others waiting.
        let count = drain(first, pipeline)?;
        more = count == BATCH;
        busy |= count > 0;
        pipeline.turn(busy, now_ns)?;
    }
}

/// Takes batches until there is nothing more, and says whether there was anything.
fn drain_all(reader: &mut Reader, pipeline: &mut Pipeline) -> Result<bool, WriteError> {
    let mut any = false;
    while drain(reader, pipeline)? > 0 {
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
fn drain(reader: &mut Reader, pipeline: &mut Pipeline) -> Result<usize, WriteError> {
    let offset = realtime_offset_ns();
    let mut result = Ok(());
    let count = reader.drain(BATCH, |bytes| {
        if result.is_ok() {
            result = pipeline.record(bytes, offset);
        }
    });
    result.map(|()| count)
}
