//! `ecapture replay`: from a recording to any output, without a kernel that had to do with it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use anyhow::{Context as _, anyhow};
use trace::{Entry, RecordingError, RecordingReader};

use crate::args::{Mode, ReplayArgs};
use crate::consume::Outcome;
use crate::destinations;
use crate::failure::Failure;
use crate::log;
use crate::outputs::Outputs;
use crate::pipeline::{Pipeline, WriteError};
use crate::recorder::{Context, RecordedEnd};

/// Runs the command.
pub(crate) fn run(args: &ReplayArgs) -> Result<(), Failure> {
    let name = args.recording.display().to_string();
    let opened = open(args, &name);
    let mode = opened.as_ref().map_or(Mode::Text, |(.., mode)| *mode);
    destinations::check(&args.output, mode, None, Some(&args.recording))?;
    if let Some(path) = &args.output.logaddr {
        log::open(path)?;
    }
    let (mut reader, context, mode) = opened?;
    let pipeline = Outputs::open(&args.output, mode, None, false)?.begin(&args.output, &context)?;
    let (outcome, end) = replay(&mut reader, pipeline);
    match end {
        Ok(true) => {}
        Ok(false) => log::line(&format!("note: {name} ends before its capture did")),
        Err(error @ RecordingError::CutOff { .. }) => {
            log::line(&format!("note: {name} is {error}: the rest is missing"));
        }
        Err(error) => {
            outcome.conclude()?;
            return Err(wrong(&name, error));
        }
    }
    outcome.conclude()
}

/// Reads the recording's beginning: what it says of itself, and what is to be shown of it.
fn open(args: &ReplayArgs, name: &str) -> Result<(Reader, Context, Mode), Failure> {
    let input = input(&args.recording)
        .with_context(|| name.to_owned())
        .map_err(Failure::WrongInput)?;
    let mut reader = RecordingReader::new(input).map_err(|error| wrong(name, error))?;
    let context = context(&mut reader).map_err(|error| wrong(name, error))?;
    let context: Context = serde_json::from_slice(&context)
        .context("what the recording says of itself")
        .with_context(|| name.to_owned())
        .map_err(Failure::WrongInput)?;
    let mode = args.output.model.unwrap_or(context.mode);
    check_mode(mode, context.mode)
        .with_context(|| name.to_owned())
        .map_err(Failure::WrongInput)?;
    Ok((reader, context, mode))
}

type Reader = RecordingReader<BufReader<Box<dyn Read>>>;

fn wrong(name: &str, error: RecordingError) -> Failure {
    Failure::WrongInput(anyhow::Error::new(error).context(name.to_owned()))
}

fn input(path: &Path) -> io::Result<BufReader<Box<dyn Read>>> {
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Box::new(file)
    };
    Ok(BufReader::with_capacity(256 * 1024, input))
}

/// The recording's first entry.
fn context(reader: &mut RecordingReader<impl Read>) -> Result<Vec<u8>, RecordingError> {
    match reader.next_entry()? {
        Some(Entry::Context(json)) => Ok(json.to_vec()),
        _ => Err(RecordingError::NotARecording),
    }
}

/// What was not captured can't be shown.
fn check_mode(wanted: Mode, recorded: Mode) -> anyhow::Result<()> {
    let (holds, replays) = match recorded {
        Mode::Text | Mode::Plain => ("plaintext", "-m text or -m plain"),
        Mode::Keylog => ("keys", "-m keylog"),
        Mode::Pcap => ("packets and keys", "-m pcap or -m keylog"),
    };
    let possible = match wanted {
        Mode::Text | Mode::Plain => matches!(recorded, Mode::Text | Mode::Plain),
        Mode::Keylog => matches!(recorded, Mode::Keylog | Mode::Pcap),
        Mode::Pcap => recorded == Mode::Pcap,
    };
    if possible {
        return Ok(());
    }
    Err(anyhow!(
        "the recording holds {holds}: replay it with {replays}"
    ))
}

/// Feeds the pipeline until the recording's end. Whether it has a proper one is the second result.
fn replay(
    reader: &mut RecordingReader<impl Read>,
    mut pipeline: Pipeline,
) -> (Outcome, Result<bool, RecordingError>) {
    let mut last = Last::default();
    let (result, end) = match feed(reader, &mut pipeline, &mut last) {
        Ok(end) => (Ok(()), end),
        Err(error) => (Err(error), Ok(true)),
    };
    let unknown_entries = reader.unknown_entries();
    pipeline.unknown_kinds += unknown_entries;
    let ending = last.end.as_ref().map(|end| end.ending.clone());
    let ending = ending.unwrap_or_default();
    let result = result.and_then(|()| {
        let (time_ns, offset) = match &last.end {
            Some(end) => (end.time_ns, end.realtime_offset_ns),
            None => (last.time_ns, last.realtime_offset_ns),
        };
        pipeline.finish(time_ns, offset, &ending)
    });
    let outcome = Outcome {
        pipeline,
        ending,
        result,
    };
    (outcome, end)
}

/// Where the recording has got to.
#[derive(Debug, Default)]
struct Last {
    time_ns: u64,
    realtime_offset_ns: i64,
    end: Option<RecordedEnd>,
}

fn feed(
    reader: &mut RecordingReader<impl Read>,
    pipeline: &mut Pipeline,
    last: &mut Last,
) -> Result<Result<bool, RecordingError>, WriteError> {
    loop {
        match reader.next_entry() {
            Ok(Some(Entry::Context(_))) => {}
            Ok(Some(Entry::Clock(offset))) => last.realtime_offset_ns = offset,
            Ok(Some(Entry::Record(bytes))) => pipeline.record(bytes, last.realtime_offset_ns)?,
            Ok(Some(Entry::Turn { now_ns, busy })) => {
                last.time_ns = now_ns;
                pipeline.turn(busy, now_ns)?;
            }
            Ok(Some(Entry::End(json))) => {
                // One that can't be read is as good as none: counts are missing, no plaintext is.
                last.end = serde_json::from_slice(json).ok();
                return Ok(Ok(last.end.is_some()));
            }
            Ok(None) => return Ok(Ok(false)),
            Err(error) => return Ok(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_captured_is_refused_with_what_was() {
        let error = check_mode(Mode::Text, Mode::Pcap).unwrap_err().to_string();
        assert_eq!(
            error,
            "the recording holds packets and keys: replay it with -m pcap or -m keylog"
        );
        for (wanted, recorded) in [
            (Mode::Plain, Mode::Text),
            (Mode::Text, Mode::Plain),
            (Mode::Keylog, Mode::Pcap),
            (Mode::Keylog, Mode::Keylog),
            (Mode::Pcap, Mode::Pcap),
        ] {
            check_mode(wanted, recorded).unwrap();
        }
        for (wanted, recorded) in [
            (Mode::Pcap, Mode::Text),
            (Mode::Keylog, Mode::Text),
            (Mode::Plain, Mode::Keylog),
            (Mode::Pcap, Mode::Keylog),
        ] {
            check_mode(wanted, recorded).unwrap_err();
        }
    }
}
