//! One capture, from attaching to the end, whatever it is that is captured.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use capture::{Identity, InterfaceStatistics, Probes, Process, Reader};
use trace::escape_name;

use crate::consume::{Outcome, consume};
use crate::failure::Failure;
use crate::log;
use crate::pipeline::{Destination, Pipeline};
use crate::programs::unwatched;
use crate::supervise::{Chores, End, Signals, wait_for_consumer, wait_for_end};

/// How long the output may block at the end before we leave without having written everything.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether the executable's path leads to another file.
const LOOK_AT_PATH: Duration = Duration::from_secs(1);

/// What is attached to the kernel, as far as a session has to know.
pub(crate) trait Attached {
    /// The reading ends. The first one says when to look at all.
    fn readers(&self) -> Result<Vec<Reader>, capture::Error>;

    /// How many probes, for people.
    fn extent(&self) -> String;

    /// Gives up what the calling thread may do beyond reading and detaching.
    fn give_up_privileges(&self) -> Result<(), capture::Error>;

    /// Takes everything away; what is in the ring buffers stays.
    fn detach(&mut self);

    /// Each is readable when [`Self::detach_overwritten`] is to be called; none if it need not be.
    fn overwrites(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Detaches from files that have been written to, and returns their names.
    fn detach_overwritten(&mut self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Why nobody tells of some files if they are written to.
    fn unwatched(&self) -> Option<&io::Error> {
        None
    }

    /// How packets fared, by interface, once everything has been taken away.
    fn interface_statistics(&self) -> Vec<InterfaceStatistics> {
        Vec::new()
    }
}

impl Attached for Probes {
    fn readers(&self) -> Result<Vec<Reader>, capture::Error> {
        Ok(vec![self.reader()?])
    }

    fn extent(&self) -> String {
        let plural = if self.sites() == 1 { "" } else { "s" };
        format!("{} probe{plural}", self.sites())
    }

    fn give_up_privileges(&self) -> Result<(), capture::Error> {
        self.give_up_privileges()
    }

    fn detach(&mut self) {
        self.detach();
    }

    fn overwrites(&self) -> Vec<BorrowedFd<'_>> {
        self.overwrites().into_iter().collect()
    }

    fn detach_overwritten(&mut self) -> Vec<PathBuf> {
        self.detach_overwritten()
    }

    fn unwatched(&self) -> Option<&io::Error> {
        self.unwatched()
    }
}

/// Until when to capture, and what to say about it.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    /// The capture ends when the last one of them does; if there are none, it goes on.
    pub(crate) targets: &'a [Process],
    /// How long to go on then: their last packets are still to come.
    pub(crate) after_targets: Duration,
    pub(crate) duration: Option<Duration>,
    /// For the line that says that everything is in place.
    pub(crate) description: String,
    pub(crate) signals: Signals,
    pub(crate) log: DebugLog,
    /// The path that led to what is captured, which may lead to another file one day.
    pub(crate) path: Option<PathOfFile>,
}

/// A path, and the file that it led to.
#[derive(Debug)]
pub(crate) struct PathOfFile {
    pub(crate) path: PathBuf,
    pub(crate) identity: Identity,
}

impl PathOfFile {
    /// Whether it leads to another file now. One that leads nowhere may be about to.
    fn leads_elsewhere(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|file| {
            let Identity { device, inode } = self.identity;
            (file.dev(), file.ino()) != (device, inode)
        })
    }
}

impl Session<'_> {
    /// Captures. `None` if nobody reads the output any more, and nobody needs a summary either.
    pub(crate) fn run(
        mut self,
        mut attached: impl Attached,
        pipeline: Pipeline,
    ) -> Result<Option<Outcome>, Failure> {
        let destinations = pipeline.destinations();
        let readers = attached.readers()?;
        let stop = readers.first().map(Reader::stop_switch);
        self.log.say("attached");
        log::line(&format!(
            "attached to {}: {}; Ctrl-C ends",
            self.description,
            attached.extent()
        ));
        if let Some(error) = attached.unwatched() {
            log::line(&unwatched(error));
        }

        // The other end of `alive` becomes readable when the thread ends, however it does.
        let (alive, consumer_alive) = UnixStream::pair()
            .context("socket pair")
            .map_err(Failure::Runtime)?;
        let (statistics, interfaces) = mpsc::channel();
        let consumer = thread::Builder::new()
            .name("consumer".into())
            .spawn(move || {
                let _alive = consumer_alive;
                consume(readers, pipeline, &interfaces)
            })
            .context("starting a thread")
            .map_err(Failure::Runtime)?;
        let overwrites = attached.overwrites().into_iter();
        let overwrites: Vec<_> = overwrites
            .map(|overwrites| overwrites.try_clone_to_owned())
            .collect::<io::Result<_>>()
            .context("waiting")
            .map_err(Failure::Runtime)?;
        if !overwrites.is_empty() {
            // A file that has been overwritten may be executed at any moment.
            capture::run_promptly();
        }
        attached.give_up_privileges()?;

        let targets: Vec<_> = self.targets.iter().map(AsFd::as_fd).collect();
        let stdout = destinations.contains(&Destination::Stdout).then(io::stdout);
        let stdout = stdout.as_ref().map(AsFd::as_fd);
        let signals = &mut self.signals;
        let mut path = self.path.take();
        let every = path.as_ref().map(|_| LOOK_AT_PATH);
        let mut run = || {
            for path in attached.detach_overwritten() {
                let name = escape_name(path.as_os_str().as_encoded_bytes());
                log::line(&format!(
                    "note: {name} was overwritten: its probes are gone; to capture from what it is now, begin \
                     anew"
                ));
            }
            if let Some(PathOfFile { path, .. }) = path.take_if(|path| path.leads_elsewhere()) {
                let name = escape_name(path.as_os_str().as_encoded_bytes());
                log::line(&format!(
                    "note: {name} is another file now: what runs that one is not captured; to capture it, \
                     begin anew"
                ));
            }
        };
        let mut wait = |targets, duration| {
            let chores = Chores {
                descriptors: &overwrites,
                every,
                run: &mut run,
            };
            wait_for_end(signals, targets, stdout, alive.as_fd(), duration, chores)
                .context("waiting")
                .map_err(Failure::Runtime)
        };
        let mut end = wait(targets, self.duration)?;
        if end == End::TargetsEnded && !self.after_targets.is_zero() {
            end = wait(Vec::new(), Some(self.after_targets))?;
        }
        self.log.say(&format!("end: {end:?}"));
        attached.detach();
        let interfaces = attached.interface_statistics();
        // Nobody waits for it, so nobody minds if the consumer has gone.
        let _ = statistics.send(interfaces.clone());
        if let Some(stop) = stop {
            stop.stop();
        }
        let asked = end == End::Signal;
        let finished = wait_for_consumer(&mut self.signals, alive.as_fd(), PATIENCE, asked)
            .context("waiting")
            .map_err(Failure::Runtime)?;
        if !finished {
            if end == End::OutputClosed {
                return Ok(None);
            }
            // The thread is blocked in a write: nothing can be had from it.
            let names: Vec<_> = destinations.iter().map(ToString::to_string).collect();
            let names = names.join(" or ");
            let error = anyhow!("{names} is blocked: what was captured last was not written");
            return Err(Failure::Runtime(error));
        }
        let mut outcome = consumer
            .join()
            .map_err(|_| Failure::Runtime(anyhow!("the consumer thread panicked")))?;
        outcome.ending.interfaces = interfaces;
        Ok(Some(outcome))
    }
}

impl Outcome {
    /// Prints the closing line, and says whether everything was written.
    pub(crate) fn conclude(self) -> Result<(), Failure> {
        log::line(&self.summary());
        match self.result {
            Ok(()) => Ok(()),
            Err(failed) => Failure::output(failed.error, &failed.destination),
        }
    }

    /// What the mode has to say, and what would be a reason to worry.
    fn summary(&self) -> String {
        let mut summary = format!("summary: {}", self.pipeline.summary(&self.ending));
        let counters = &self.ending.counters;
        if counters.unknown_calls > 0 {
            let calls = counters.unknown_calls;
            summary += &format!("; calls with unreadable arguments: {calls}");
        }
        if counters.unowned_sockets > 0 {
            let sockets = counters.unowned_sockets;
            summary += &format!(
                "; packets of up to {sockets} sockets may be missing or name no process: the kernel had no \
                 memory to remember whose they are (net.core.optmem_max)"
            );
        }
        if self.pipeline.undecodable > 0 {
            let records = self.pipeline.undecodable;
            summary += &format!("; undecodable records (a defect, please report): {records}");
        }
        if self.pipeline.unknown_kinds > 0 {
            let records = self.pipeline.unknown_kinds;
            summary += &format!("; records of a kind that this version does not know: {records}");
        }
        if counters.lost_records > 0 {
            summary += "; a larger buffer (--mapsize) loses less";
        }
        summary
    }
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
            let elapsed = started.elapsed().as_secs_f64() * 1e3;
            log::line(&format!("{elapsed:>9.3} ms  {what}"));
        }
    }
}
