//! `-m text`: the plaintext and what it says, on standard output or in a HAR file.

use std::io;

use anyhow::anyhow;
use capture::{Counters, realtime_offset_ns};
use events::Record;
use trace::{ConversationOptions, Conversations, Limits, LineType, Sink, Timestamp, Tracker};

use crate::args::{Format, GotlsArgs};
use crate::consume::{Destination, Outcome, Output};
use crate::failure::Failure;
use crate::output::Sinks;

/// Turns records into events and writes them.
pub(crate) struct Plaintext {
    tracker: Tracker,
    pipeline: Pipeline,
}

/// The way of events to the outputs: decoding takes time, so that only those take it who want to.
enum Pipeline {
    Straight(Sinks),
    Decoded(Box<Conversations<Sinks>>),
}

impl Plaintext {
    pub(crate) fn new(args: &GotlsArgs, sinks: Sinks) -> Self {
        let pipeline = if args.is_decoding() {
            let options = ConversationOptions {
                limits: match args.max_body {
                    Some(bytes) => Limits::with_body(bytes as usize),
                    None => Limits::default(),
                },
                redaction: args.redaction(),
                plaintext: match args.format {
                    Some(Format::Text) | None if !args.raw => trace::Plaintext::Undecoded,
                    _ => trace::Plaintext::All,
                },
            };
            Pipeline::Decoded(Box::new(Conversations::new(sinks, options)))
        } else {
            Pipeline::Straight(sinks)
        };
        Self {
            tracker: Tracker::new(),
            pipeline,
        }
    }

    fn sinks(&self) -> &Sinks {
        match &self.pipeline {
            Pipeline::Straight(sinks) => sinks,
            Pipeline::Decoded(conversations) => conversations.sink(),
        }
    }

    fn sinks_mut(&mut self) -> &mut Sinks {
        match &mut self.pipeline {
            Pipeline::Straight(sinks) => sinks,
            Pipeline::Decoded(conversations) => conversations.sink_mut(),
        }
    }
}

impl Output for Plaintext {
    fn destination(&self) -> &Destination {
        &Destination::Stdout
    }

    fn record(&mut self, record: &Record<'_>, realtime_offset_ns: i64) -> io::Result<()> {
        let tracker = &mut self.tracker;
        match &mut self.pipeline {
            Pipeline::Straight(sinks) => tracker.record(record, realtime_offset_ns, sinks),
            Pipeline::Decoded(sinks) => tracker.record(record, realtime_offset_ns, &mut **sinks),
        }
    }

    fn finish(&mut self, now: Timestamp, counters: &Counters) -> io::Result<()> {
        let (records, bytes) = (counters.lost_records, counters.lost_bytes);
        let tracker = &mut self.tracker;
        match &mut self.pipeline {
            Pipeline::Straight(sinks) => tracker.finish(now, records, bytes, sinks)?,
            Pipeline::Decoded(conversations) => {
                conversations.finish(now)?;
                tracker.finish(now, records, bytes, &mut **conversations)?;
            }
        }
        self.sinks_mut().finish()
    }

    fn turn(&mut self, busy: bool, now_ns: u64) -> io::Result<()> {
        let announced = match &mut self.pipeline {
            Pipeline::Straight(_) => false,
            Pipeline::Decoded(conversations) => {
                conversations.tick(Timestamp::from_monotonic(now_ns, realtime_offset_ns()))?
            }
        };
        if busy || announced {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sinks_mut().flush()
    }
}

/// An option that would do nothing, or would show what another one is to mask, is refused.
pub(crate) fn check_combination(args: &GotlsArgs) -> Result<(), Failure> {
    let wrong = |error: &str| Err(Failure::WrongInput(anyhow!("{error}")));
    let json = args.format == Some(Format::Json);
    if json && (args.raw || args.indent_json) {
        return wrong(
            "--raw and --indent-json are for text; --events data selects plaintext in JSON lines",
        );
    }
    if !json && !args.events.is_empty() {
        return wrong("--events is for JSON lines: add --format json");
    }
    if args.raw && args.indent_json {
        return wrong("--indent-json is for decoded bodies, and --raw decodes none");
    }
    if !args.redact.is_empty() && (args.raw || args.events.contains(&LineType::Data)) {
        return wrong(
            "--redact masks header fields of decoded HTTP; --raw and --events data show everything",
        );
    }
    let stdout = args.har.as_deref() == Some(std::path::Path::new("-"));
    if stdout && (args.format.is_some() || args.raw || args.hex || args.indent_json) {
        return wrong(
            "--har - takes standard output for itself: name a file, or leave out --format, --raw, --hex and --indent-json",
        );
    }
    if !args.is_decoding() && (!args.redact.is_empty() || args.max_body.is_some()) {
        return wrong(
            "--redact and --max-body are for decoded HTTP, of which nothing is asked for",
        );
    }
    Ok(())
}

/// The closing line, without what all modes have.
pub(crate) fn summary(outcome: &Outcome<Plaintext>) -> String {
    let (totals, counters) = (outcome.output.tracker.totals(), outcome.counters);
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
    if let Some(entries) = outcome.output.sinks().har_entries() {
        summary += &format!("; HAR: {entries} exchanges");
    }
    summary
}
