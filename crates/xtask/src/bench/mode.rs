//! The ways of capturing that are compared, and how each is started and judged.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::program::Programs;
use crate::process::{Child, Stream};

/// Longer than anything here takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// What is done to the program while it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Nothing.
    Unprobed,
    /// Empty probes where text mode has its own.
    Floor,
    /// `ecapture gotls`, to /dev/null.
    Text,
    /// The same with JSON lines.
    Json,
    /// `ecapture gotls -m keylog`.
    Keylog,
    /// `ecapture gotls -m pcap` on `lo`.
    Pcap,
    /// The usual design, whose reader only counts.
    Reference,
}

impl Mode {
    /// The name in tables and charts.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Unprobed => "unprobed",
            Self::Floor => "floor",
            Self::Text => "text",
            Self::Json => "JSON",
            Self::Keylog => "keylog",
            Self::Pcap => "pcap",
            Self::Reference => "reference",
        }
    }

    /// Its colour in charts.
    pub(super) const fn colour(self) -> (u8, u8, u8) {
        match self {
            Self::Unprobed => (0xb0, 0xb0, 0xb0),
            Self::Floor => (0x78, 0x8a, 0x9c),
            Self::Text => (0x1f, 0x77, 0xb4),
            Self::Json => (0x17, 0x9a, 0x8e),
            Self::Keylog => (0x94, 0x67, 0xbd),
            Self::Pcap => (0xe0, 0x9b, 0x20),
            Self::Reference => (0xc0, 0x39, 0x2b),
        }
    }

    /// Whether its records hold plaintext, and its summary counts their bytes.
    pub(super) const fn has_plaintext(self) -> bool {
        matches!(self, Self::Text | Self::Json)
    }

    fn command(self, programs: &Programs, pid: u32) -> Option<Command> {
        let mut command = Command::new(match self {
            Self::Unprobed => return None,
            Self::Floor | Self::Reference => &programs.bench,
            Self::Text | Self::Json | Self::Keylog | Self::Pcap => &programs.ecapture,
        });
        match self {
            Self::Unprobed => {}
            Self::Floor => drop(command.arg("floor")),
            Self::Reference => drop(command.arg("reference")),
            Self::Text => drop(command.args(["gotls", "--format", "text"])),
            Self::Json => drop(command.args(["gotls", "--format", "json"])),
            Self::Keylog => drop(command.args(["gotls", "-m", "keylog", "-k", "-"])),
            Self::Pcap => {
                command.args(["gotls", "-m", "pcap", "-w", "/dev/null", "-i", "lo"]);
            }
        }
        command.arg("--elfpath").arg(&programs.load);
        command.args(["--pid", &pid.to_string()]);
        Some(command)
    }

    /// Starts capturing the process and waits until the probes are in place.
    pub(super) fn attach(
        self,
        programs: &Programs,
        pid: u32,
        arguments: &[&str],
    ) -> Result<Capture> {
        let child = match self.command(programs, pid) {
            None => None,
            Some(mut command) => {
                let child = Child::spawn_to(command.args(arguments), Stdio::null())?;
                child.wait_for_prefix(Stream::Stderr, PATIENCE, "attached")?;
                Some(child)
            }
        };
        let consumer = match (&child, self) {
            (None, _) | (_, Self::Floor) => None,
            (Some(child), _) => Some(Thread::find(child.pid(), "consumer")?),
        };
        Ok(Capture {
            mode: self,
            child,
            consumer,
        })
    }
}

/// A running capture, or none.
pub(super) struct Capture {
    mode: Mode,
    child: Option<Child>,
    consumer: Option<Thread>,
}

impl Capture {
    /// CPU time that the thread which takes the records has used, in ns; 0 without one.
    pub(super) fn consumer_ns(&self) -> Result<u64> {
        self.consumer.as_ref().map_or(Ok(0), Thread::cpu_ns)
    }

    /// The same once it has nothing more to do.
    pub(super) fn settled_consumer_ns(&self) -> Result<u64> {
        const LOOK: Duration = Duration::from_millis(30);
        /// More than waking up to find nothing takes.
        const IDLE_NS: u64 = 200_000;

        if self.consumer.is_none() {
            return Ok(0);
        }
        if self.mode == Mode::Pcap {
            thread::sleep(Duration::from_millis(700)); // It keeps packets for half a second.
        }
        let deadline = Instant::now() + PATIENCE;
        let mut before = self.consumer_ns()?;
        loop {
            thread::sleep(LOOK);
            let now = self.consumer_ns()?;
            if now - before < IDLE_NS {
                return Ok(now);
            }
            if Instant::now() > deadline {
                bail!("{}: the consumer never comes to rest", self.mode.name());
            }
            before = now;
        }
    }

    /// Sends it a signal.
    pub(super) fn signal(&mut self, signal: Signal) -> Result<()> {
        self.child
            .as_mut()
            .map_or(Ok(()), |child| child.signal(signal))
    }

    /// Memory of the process.
    pub(super) fn memory(&self) -> Result<Memory> {
        let child = self.child.as_ref().context("nothing runs")?;
        Memory::of(child.pid())
    }

    /// Waits for its end, which follows that of the target or of its input: what it counted.
    pub(super) fn finish(self) -> Result<Counts> {
        let Some(child) = self.child else {
            return Ok(Counts::default());
        };
        let stderr = child.finish(PATIENCE)?.success()?.stderr_text();
        if self.mode == Mode::Floor {
            return Ok(Counts::default());
        }
        let summary = stderr.lines().rfind(|line| line.starts_with("summary:"));
        let summary = summary.with_context(|| format!("no summary: {stderr}"))?;
        Counts::parse(summary).with_context(|| format!("unexpected summary: {summary}"))
    }
}

/// What a summary tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Events, packets or keys.
    pub(super) events: u64,
    pub(super) bytes: u64,
    pub(super) lost_events: u64,
    pub(super) lost_bytes: u64,
}

impl Counts {
    /// From `summary: 12 events, 3400 bytes on 1 connections; lost: 0 events, 0 bytes; …`.
    pub(super) fn parse(summary: &str) -> Option<Self> {
        let (taken, lost) = summary.strip_prefix("summary:")?.split_once("lost:")?;
        let number = |text: &str, unit: &str| -> Option<u64> {
            let clause = text.split(';').next()?;
            let mut parts = clause.split(',').filter(|part| part.contains(unit));
            parts.next()?.split_whitespace().next()?.parse().ok()
        };
        let first = |text: &str| text.split_whitespace().next()?.parse().ok();
        Some(Self {
            events: first(taken)?,
            bytes: number(taken, "bytes").unwrap_or_default(),
            lost_events: first(lost)?,
            lost_bytes: number(lost, "bytes").unwrap_or_default(),
        })
    }
}

/// A thread of a running program.
struct Thread {
    schedstat: String,
}

impl Thread {
    /// The thread of this name, which may be about to be started.
    fn find(pid: u32, name: &str) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let task = task?.path();
                let comm = fs::read_to_string(task.join("comm")).unwrap_or_default();
                if comm.trim_end() == name {
                    return Ok(Self {
                        schedstat: format!("{}/schedstat", task.display()),
                    });
                }
            }
            if Instant::now() > deadline {
                bail!("process {pid} has no thread {name}");
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Time on a processor, in ns: the first field (Linux: Documentation/scheduler/sched-stats.rst).
    fn cpu_ns(&self) -> Result<u64> {
        let stat = fs::read_to_string(&self.schedstat)
            .with_context(|| format!("{}: does the kernel have schedstats?", self.schedstat))?;
        let field = stat.split_whitespace().next().unwrap_or_default();
        field
            .parse()
            .with_context(|| format!("{}: {stat}", self.schedstat))
    }
}

/// Memory of a process, in MB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// The most that was ever resident. Shared pages count in full, and twice if mapped twice.
    pub(super) peak: f64,
    /// Proportional set size now: pages that are mapped twice count once.
    pub(super) proportional: f64,
}

impl Memory {
    pub(super) fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            peak: kilobytes(&format!("/proc/{pid}/status"), "VmHWM:")?,
            proportional: kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")?,
        })
    }
}

/// A field in kB of a file in /proc, in MB.
fn kilobytes(path: &str, field: &str) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    let kib = number.with_context(|| format!("{path} has no {field}"))?;
    Ok(kib * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_understood() {
        for (line, expected) in [
            (
                "summary: 88000 events, 8800000 bytes on 2 connections; lost: 3 events, 300 bytes; \
                 unreadable: 1 events, 7 bytes",
                (88000, 8_800_000, 3, 300),
            ),
            (
                "summary: 10 packets, 900 bytes, 4 keys; lost: 0 packets",
                (10, 900, 0, 0),
            ),
            (
                "summary: 5 keys written, 0 duplicates left out; lost: 0 keys",
                (5, 0, 0, 0),
            ),
            ("summary: 12 events; lost: 7 events", (12, 0, 7, 0)),
        ] {
            let (events, bytes, lost_events, lost_bytes) = expected;
            let expected = Counts {
                events,
                bytes,
                lost_events,
                lost_bytes,
            };
            assert_eq!(Counts::parse(line), Some(expected), "{line}");
        }
        assert_eq!(Counts::parse("summary: nothing"), None);
    }

    #[test]
    fn memory_of_this_process_is_found() {
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(memory.peak > 0.0 && memory.proportional > 0.0);
    }
}
