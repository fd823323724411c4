//! One capture, from attaching to the end, whatever it is that is captured.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use capture::{Executable, Options, Probes, Process, Wanted};
use trace::escape_name;

use crate::consume::{Outcome, Output, consume};
use crate::failure::Failure;
use crate::supervise::{End, Signals, wait_for_consumer, wait_for_end};

/// How long the output may block at the end before we leave without having written everything.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to capture, and until when.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub(crate) executable: &'a Executable,
    pub(crate) wanted: Wanted<'a>,
    pub(crate) options: Options,
    /// Its end is the capture's end.
    pub(crate) process: Option<&'a Process>,
    pub(crate) duration: Option<Duration>,
    /// For the line that says that everything is in place.
    pub(crate) description: String,
    pub(crate) log: DebugLog,
}

impl Session<'_> {
    /// Captures. `None` if nobody reads the output any more, and nobody needs a summary either.
    pub(crate) fn run<O>(self, output: O) -> Result<Option<Outcome<O>>, Failure>
    where
        O: Output + Send + 'static,
    {
        let mut signals = Signals::catch()
            .context("catching signals")
            .map_err(Failure::Runtime)?;
        let mut probes = Probes::attach(self.executable, self.wanted, &self.options)?;
        let reader = probes.reader()?;
        let stop = reader.stop_switch();
        self.log.say("probes attached");
        eprintln!("{}", self.attached(probes.sites()));

        // The other end of `alive` becomes readable when the thread ends, however it does.
        let (alive, consumer_alive) = UnixStream::pair()
            .context("socket pair")
            .map_err(Failure::Runtime)?;
        let consumer = thread::Builder::new()
            .name("consumer".into())
            .spawn(move || {
                let _alive = consumer_alive;
                consume(reader, output)
            })
            .context("starting a thread")
            .map_err(Failure::Runtime)?;

        let target = self.process.map(AsFd::as_fd);
        let end = wait_for_end(&mut signals, target, alive.as_fd(), self.duration)
            .context("waiting")
            .map_err(Failure::Runtime)?;
        self.log.say(&format!("end: {end:?}"));
        probes.detach();
        stop.stop();
        let finished = wait_for_consumer(&signals, alive.as_fd(), PATIENCE)
            .context("waiting")
            .map_err(Failure::Runtime)?;
        if !finished {
            if end == End::OutputClosed {
                return Ok(None);
            }
            // The thread is blocked in a write: nothing can be had from it.
            let error = anyhow!("the output is blocked: what was captured last was not written");
            return Err(Failure::Runtime(error));
        }
        let outcome = consumer.join();
        outcome
            .map(Some)
            .map_err(|_| Failure::Runtime(anyhow!("the consumer thread panicked")))
    }

    fn attached(&self, sites: usize) -> String {
        let name = escape_name(self.executable.name().as_os_str().as_encoded_bytes());
        let whom = match self.process {
            Some(process) => format!("process {}, {name}", process.pid()),
            None => name.into_owned(),
        };
        let plural = if sites == 1 { "" } else { "s" };
        format!(
            "attached to {whom} ({}): {sites} probe{plural}; Ctrl-C ends",
            self.description
        )
    }
}

/// Prints the closing line: what the mode has to say, and what would be a reason to worry.
pub(crate) fn print_summary<O>(outcome: &Outcome<O>, mode: &str) {
    let mut summary = format!("summary: {mode}");
    if outcome.counters.unknown_calls > 0 {
        let calls = outcome.counters.unknown_calls;
        summary += &format!("; calls with unreadable arguments: {calls}");
    }
    if outcome.undecodable > 0 {
        let records = outcome.undecodable;
        summary += &format!("; undecodable records (a defect, please report): {records}");
    }
    if outcome.counters.lost_records > 0 {
        summary += "; a larger buffer (--mapsize) loses less";
    }
    eprintln!("{summary}");
}

/// What `--debug` shows, with the time since the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DebugLog {
    started: Option<Instant>,
}

impl DebugLog {
    pub(crate) fn new(enabled: bool) -> Self {
        Self {
            started: enabled.then(Instant::now),
        }
    }

    pub(crate) fn say(&self, what: &str) {
        if let Some(started) = self.started {
            eprintln!("{:>9.3} ms  {what}", started.elapsed().as_secs_f64() * 1e3);
        }
    }
}
