//! From records to a sink, by way of the decoders if the sink has a use for them.

use std::io;

use events::Record;
use trace::{ConversationOptions, Conversations, Limits, Sink, Timestamp, Totals, Tracker};

use crate::args::{Format, OutputArgs};
use crate::pipeline::Ending;

/// Whether and how HTTP is decoded.
pub(crate) struct Decoding(Option<ConversationOptions>);

impl Decoding {
    /// What an output in this format needs.
    pub(crate) fn of(args: &OutputArgs, format: Format) -> Self {
        let plaintext = match format {
            Format::Text if !args.raw => trace::Plaintext::Undecoded,
            _ => trace::Plaintext::All,
        };
        Self(args.is_decoding(format).then(|| options(args, plaintext)))
    }

    /// For an output of nothing but exchanges.
    pub(crate) fn always(args: &OutputArgs) -> Self {
        Self(Some(options(args, trace::Plaintext::Undecoded)))
    }
}

fn options(args: &OutputArgs, plaintext: trace::Plaintext) -> ConversationOptions {
    ConversationOptions {
        limits: match args.max_body {
            Some(bytes) => Limits::with_body(bytes as usize),
            None => Limits::default(),
        },
        redaction: args.redaction(),
        plaintext,
    }
}

/// Turns records into events for one sink.
pub(crate) struct Events<S> {
    tracker: Tracker,
    /// From the records' clock to the wall clock, as of the last one.
    realtime_offset_ns: i64,
    way: Way<S>,
}

/// Decoding takes time, so that only those take it who want to.
enum Way<S> {
    Straight(Box<S>),
    Decoded(Box<Conversations<S>>),
}

impl<S: Sink> Events<S> {
    pub(crate) fn new(sink: S, decoding: Decoding) -> Self {
        Self {
            tracker: Tracker::new(),
            realtime_offset_ns: 0,
            way: match decoding.0 {
                Some(options) => Way::Decoded(Box::new(Conversations::new(sink, options))),
                None => Way::Straight(Box::new(sink)),
            },
        }
    }

    /// Takes one record. `realtime_offset_ns` leads from the records' clock to the wall clock.
    pub(crate) fn record(
        &mut self,
        record: &Record<'_>,
        realtime_offset_ns: i64,
    ) -> io::Result<()> {
        self.realtime_offset_ns = realtime_offset_ns;
        let tracker = &mut self.tracker;
        match &mut self.way {
            Way::Straight(sink) => tracker.record(record, realtime_offset_ns, sink.as_mut()),
            Way::Decoded(sink) => {
                sink.set_realtime_offset(realtime_offset_ns);
                tracker.record(record, realtime_offset_ns, sink.as_mut())
            }
        }
    }

    /// Nothing follows.
    pub(crate) fn finish(&mut self, now: Timestamp, ending: &Ending) -> io::Result<()> {
        let (records, bytes) = (ending.counters.lost_records, ending.counters.lost_bytes);
        let tracker = &mut self.tracker;
        match &mut self.way {
            Way::Straight(sink) => tracker.finish(now, records, bytes, sink.as_mut()),
            Way::Decoded(conversations) => {
                conversations.finish(now)?;
                tracker.finish(now, records, bytes, conversations.as_mut())
            }
        }
    }

    /// It is `now_ns` by the records' clock: what waited for that is written, and what was written before is
    /// handed on if there may be any (`busy`).
    pub(crate) fn turn(&mut self, busy: bool, now_ns: u64) -> io::Result<()> {
        let announced = match &mut self.way {
            Way::Straight(_) => false,
            Way::Decoded(conversations) => {
                let now = Timestamp::from_monotonic(now_ns, self.realtime_offset_ns);
                conversations.tick(now)?
            }
        };
        if busy || announced {
            self.sink_mut().flush()
        } else {
            Ok(())
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        self.tracker.totals()
    }

    pub(crate) fn sink(&self) -> &S {
        match &self.way {
            Way::Straight(sink) => sink,
            Way::Decoded(conversations) => conversations.sink(),
        }
    }

    pub(crate) fn sink_mut(&mut self) -> &mut S {
        match &mut self.way {
            Way::Straight(sink) => sink,
            Way::Decoded(conversations) => conversations.sink_mut(),
        }
    }
}
