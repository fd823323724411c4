//! `-m text`: the plaintext and what it says, on standard output or where `--eventaddr` says.

use std::io;

use events::Record;
use trace::{Sink, Timestamp, Totals};

use crate::args::{Format, OutputArgs};
use crate::decoding::{Decoding, Events as EventStream};
use crate::event_output::{self, EventReport, Limits};
use crate::failure::Failure;
use crate::output::PlaintextSink;
use crate::pipeline::{Destination, Ending, Output};

/// Turns records into events and writes them.
pub(crate) struct Plaintext {
    stream: EventStream<PlaintextSink>,
    destination: Destination,
    events: Option<Events>,
}

/// What is particular to `--eventaddr`.
struct Events {
    report: EventReport,
    /// Whether this is a capture, which nothing must hold up.
    live: bool,
    /// Whether the same is shown on standard output.
    beside: bool,
    /// Whether files begin anew.
    rotates: bool,
}

impl Plaintext {
    /// On standard output.
    pub(crate) fn on_stdout(args: &OutputArgs) -> io::Result<Self> {
        let format = args.format.unwrap_or(Format::Text);
        let sink = PlaintextSink::stdout(args)?;
        Ok(Self {
            stream: EventStream::new(sink, Decoding::of(args, format)),
            destination: Destination::Stdout,
            events: None,
        })
    }

    /// As JSON lines where `--eventaddr` says, `beside` what standard output shows.
    pub(crate) fn as_events(
        args: &OutputArgs,
        live: bool,
        beside: bool,
    ) -> Result<Option<Self>, Failure> {
        let Some(address) = &args.eventaddr else {
            return Ok(None);
        };
        let limits = args.event_limits();
        let (writer, report) = event_output::open(address, limits, live)?;
        Ok(Some(Self {
            stream: EventStream::new(
                PlaintextSink::json_to(args, writer),
                Decoding::of(args, Format::Json),
            ),
            destination: Destination::Events(address.clone()),
            events: Some(Events {
                report,
                live,
                beside,
                rotates: limits != Limits::default(),
            }),
        }))
    }
}

impl Output for Plaintext {
    fn destination(&self) -> &Destination {
        &self.destination
    }

    fn record(&mut self, record: &Record<'_>, realtime_offset_ns: i64) -> io::Result<()> {
        self.stream.record(record, realtime_offset_ns)
    }

    fn finish(&mut self, now: Timestamp, ending: &Ending) -> io::Result<()> {
        self.stream.finish(now, ending)?;
        self.flush()?;
        if let Some(events) = &self.events {
            events.report.finish(events.live);
        }
        Ok(())
    }

    fn turn(&mut self, busy: bool, now_ns: u64) -> io::Result<()> {
        self.stream.turn(busy, now_ns)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.sink_mut().flush()
    }

    fn renames_files(&self) -> bool {
        self.events.as_ref().is_some_and(|events| events.rotates)
    }

    fn summary(&self, ending: &Ending) -> String {
        match &self.events {
            None => plaintext_summary(self.stream.totals(), ending),
            Some(events) if events.beside => events.report.summary(),
            Some(events) => {
                let plaintext = plaintext_summary(self.stream.totals(), ending);
                format!("{plaintext}; {}", events.report.summary())
            }
        }
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
