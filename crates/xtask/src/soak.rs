//! `cargo xtask soak`: captures as text, as JSON lines and in pcap mode for a long time, of programs that
//! come and go, with small and large messages, connections that are closed, half-closed and reset. At the
//! end every byte has to be accounted for, and memory and file descriptors have to be what they were
//! after a while.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::process::Signal;
use serde_json::Value;

use crate::clock_steps::ClockSteps;
use crate::matrix::{self, GoRelease, Program, Variant};
use crate::process::{Child, Stream};
use crate::setup::{self, Group};
use crate::{cargo, run};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Between two looks at memory and descriptors.
const INTERVAL: Duration = Duration::from_secs(1);

/// What memory may grow by from the second quarter of the time to the last: tables of connections and
/// keys have bounds that a short soak does not reach (trace: `Tracker::CONNECTIONS_MAX`,
/// `KeyLines::REMEMBERED`), and together they take about that.
const GROWTH_MAX: u64 = 4 << 20;

/// What the programs do, one after the other, over and over.
const LOADS: [&str; 5] = [
    "-scenario slow -conns 8 -minseconds 5 -sizes 100,1000,16384,102400",
    "-scenario eof -conns 20 -rounds 5 -sizes 1,1000,50000",
    "-scenario duplex -conns 4 -rounds 3 -sizes 100,16385,1048576",
    "-scenario abort -conns 10 -rounds 2 -sizes 1000,100000",
    "-scenario closewrite -conns 4 -rounds 10 -sizes 1,4096,16384 -tls 1.2",
];

/// How long and how hard
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How long
    #[arg(long, default_value_t = 20.0)]
    pub minutes: f64,
    /// Set this machine's clock an hour ahead for half a second, every ten seconds
    #[arg(long)]
    pub step_clock: bool,
}

/// Runs it, prints a Markdown table, and fails if something grew or is missing.
pub fn run(options: &Options) -> Result<()> {
    if !run::is_root() {
        bail!("soak loads eBPF programs and reads their process: run it as root");
    }
    ensure!(
        options.minutes >= 1.0,
        "--minutes must be at least 1, or nothing can be said of growth"
    );
    setup::ensure(Group::Demo)?;
    let ecapture = cargo::build_release("ecapture")?;
    let directory = Directory::make()?;
    let mut runs = Vec::new();
    for (mode, release) in [
        (Mode::Json, GoRelease::NEWEST),
        (Mode::Text, GoRelease::OLDEST),
        (Mode::Pcap, GoRelease::Go1_24),
    ] {
        runs.push(Run::start(mode, release, &ecapture, &directory.0)?);
    }

    let stop = AtomicBool::new(false);
    let time = Duration::from_secs_f64(options.minutes * 60.0);
    let steps = options.step_clock.then(ClockSteps::start).transpose()?;
    let programs: Vec<_> = runs.iter().map(|run| run.program.clone()).collect();
    let stop_loads = &stop;
    let loads = thread::scope(|scope| {
        let mut workers = Vec::new();
        for (number, program) in programs.iter().enumerate() {
            workers.push(scope.spawn(move || load(program, number, stop_loads)));
        }
        let watched = watch(&mut runs, time);
        stop.store(true, Ordering::Relaxed);
        let loads: Result<Vec<_>> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("a load panicked")))
            .collect();
        watched.and(loads)
    })?;
    let steps = steps.map_or(Ok(0), ClockSteps::stop)?;

    let mut failures = Vec::new();
    println!(
        "\n{:.0} minutes, {steps} clock steps forth and back:\n",
        options.minutes
    );
    println!(
        "| mode | Go | processes | connections | bytes | lost (counted) | unaccounted | memory after warm-up | at the end | descriptors |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (run, load) in runs.into_iter().zip(loads) {
        run.finish(&load, &mut failures)?;
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{}", failures.join("; "))
}

/// A directory that goes with its value: a copy of each program, which nobody else runs.
struct Directory(PathBuf);

impl Directory {
    fn make() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("ecapture-soak-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Json,
    Text,
    Pcap,
}

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
            Self::Pcap => "pcap",
        }
    }

    const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Json => &["--format", "json"],
            Self::Text => &["--format", "text"],
            Self::Pcap => &["-m", "pcap", "-i", "lo", "-w", "/dev/null"],
        }
    }
}

/// A capture, and what was seen of it.
struct Run {
    mode: Mode,
    release: GoRelease,
    program: PathBuf,
    capture: Child,
    /// Adds up what JSON lines say.
    reader: Option<JoinHandle<Result<Shown>>>,
    samples: Vec<Sample>,
}

/// A process at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Memory that is no file's and no ring buffer's, in bytes.
    memory: u64,
    descriptors: usize,
}

/// What a program said that it did.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    processes: u64,
    /// Ends of connections: a connection of a program with itself has two.
    connections: u64,
    bytes: u64,
}

/// The sum of what JSON lines show.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    bytes: u64,
    lost: u64,
}

impl Run {
    fn start(mode: Mode, release: GoRelease, ecapture: &Path, directory: &Path) -> Result<Self> {
        let program = directory.join(format!("{}-{release}", mode.name()));
        let binary = matrix::binary(release, Variant::Default, Program::Exchange)?;
        fs::copy(&binary, &program).with_context(|| binary.display().to_string())?;
        let mut command = Command::new(ecapture);
        command
            .arg("gotls")
            .args(mode.flags())
            .arg("-e")
            .arg(&program);
        let (stdout, reader) = if mode == Mode::Json {
            let (pipe, writer) = std::io::pipe()?;
            (writer.into(), Some(thread::spawn(|| add_up(pipe))))
        } else {
            (Stdio::null(), None)
        };
        let capture = Child::spawn_to(&mut command, stdout)?;
        capture.wait_for_prefix(Stream::Stderr, PATIENCE, "attached")?;
        Ok(Self {
            mode,
            release,
            program,
            capture,
            reader,
            samples: Vec::new(),
        })
    }

    fn sample(&mut self) -> Result<()> {
        if let Some(status) = self.capture.try_status()? {
            bail!(
                "{} mode: ended by itself: {status}\n{:?}",
                self.mode.name(),
                self.capture
            );
        }
        self.samples.push(Sample::of(self.capture.pid())?);
        Ok(())
    }

    /// Ends the capture, prints its line of the table, and adds what is wrong.
    fn finish(mut self, load: &Load, failures: &mut Vec<String>) -> Result<()> {
        self.capture.signal(Signal::INT)?;
        let stderr = self.capture.finish(PATIENCE)?.success()?.stderr_text();
        let summary = stderr.lines().last().unwrap_or_default();
        let shown = match self.reader {
            Some(reader) => reader
                .join()
                .unwrap_or_else(|_| bail!("the reader panicked"))
                .map(Some)?,
            None => None,
        };
        let mode = self.mode.name();
        let mut fail = |what: String| failures.push(format!("{mode} mode: {what}"));
        let (bytes, lost, unaccounted) = match self.mode {
            Mode::Pcap => packets_account(summary, &mut fail)?,
            Mode::Json | Mode::Text => plaintext_account(summary, load, shown, &mut fail)?,
        };
        let (early, late) = growth(&self.samples)?;
        if late.memory > early.memory + GROWTH_MAX {
            let (early, late) = (early.memory, late.memory);
            fail(format!("memory grew from {early} to {late} bytes"));
        }
        if late.descriptors > early.descriptors {
            let (early, late) = (early.descriptors, late.descriptors);
            fail(format!("file descriptors grew from {early} to {late}"));
        }
        println!(
            "| {mode} | {} | {} | {} | {bytes} | {lost} | {unaccounted} | {:.1} MB | {:.1} MB | {}, {} |",
            self.release,
            load.processes,
            load.connections / 2,
            early.memory as f64 / 1e6,
            late.memory as f64 / 1e6,
            early.descriptors,
            late.descriptors,
        );
        Ok(())
    }
}

/// Bytes, what was lost and what nobody accounts for, by the summary of ecapture's text_mode.rs.
fn plaintext_account(
    summary: &str,
    load: &Load,
    shown: Option<Shown>,
    fail: &mut impl FnMut(String),
) -> Result<(u64, String, String)> {
    let &[_, bytes, _, _, lost, _, unreadable, ..] = &numbers(summary)[..] else {
        bail!("an unexpected summary: {summary}")
    };
    let lost = lost + unreadable;
    let unaccounted = load.bytes.abs_diff(bytes + lost);
    if unaccounted > 0 {
        fail(format!("{unaccounted} bytes unaccounted for: {summary}"));
    }
    if shown.is_some_and(|shown| (shown.bytes, shown.lost) != (bytes, lost)) {
        fail(format!(
            "the lines have {shown:?}, the summary says {summary}"
        ));
    }
    Ok((bytes, format!("{lost} B"), format!("{unaccounted} B")))
}

/// The same of packets, by the summary of ecapture's pcap_mode.rs. How many there are, nobody else says.
fn packets_account(summary: &str, fail: &mut impl FnMut(String)) -> Result<(u64, String, String)> {
    let &[_, bytes, _, lost, ..] = &numbers(summary)[..] else {
        bail!("an unexpected summary: {summary}")
    };
    if lost > 0 {
        fail(format!("{lost} packets lost"));
    }
    Ok((bytes, format!("{lost} packets"), "–".into()))
}

/// The second quarter of the time and the last: the most memory, and the fewest descriptors, as looking
/// after a process takes one for a moment.
fn growth(samples: &[Sample]) -> Result<(Sample, Sample)> {
    let quarter = samples.len() / 4;
    let of = |samples: &[Sample]| -> Option<Sample> {
        Some(Sample {
            memory: samples.iter().map(|sample| sample.memory).max()?,
            descriptors: samples.iter().map(|sample| sample.descriptors).min()?,
        })
    };
    let (early, late) = (&samples[quarter..2 * quarter], &samples[3 * quarter..]);
    of(early).zip(of(late)).context("too short a time")
}

impl Sample {
    fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib: u64 = kib
            .context("the process's status has no RssAnon")?
            .parse()?;
        Ok(Self {
            memory: kib * 1024,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        })
    }
}

/// Looks at all captures until the time is up.
fn watch(runs: &mut [Run], time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    let mut shown = 0;
    while Instant::now() < end {
        for run in &mut *runs {
            run.sample()?;
        }
        let left = end.saturating_duration_since(Instant::now());
        let minutes = left.as_secs() / 60;
        if minutes != shown {
            shown = minutes;
            eprintln!("soak: {} more minutes", minutes + 1);
        }
        thread::sleep(INTERVAL.min(left));
    }
    Ok(())
}

/// Runs the program with one load after the other until it is to stop.
fn load(program: &Path, number: usize, stop: &AtomicBool) -> Result<Load> {
    let mut sum = Load::default();
    let mut loads = LOADS.iter().cycle().skip(number);
    while !stop.load(Ordering::Relaxed) {
        let flags = loads.next().unwrap_or(&LOADS[0]);
        let mut command = Command::new(program);
        command.args(flags.split_whitespace());
        let finished = Child::spawn(&mut command)?.finish(PATIENCE)?;
        let finished = finished.success().with_context(|| run::shown(&command))?;
        sum.processes += 1;
        let text = finished.stdout_text();
        for line in text
            .lines()
            .filter(|line| line.contains("\"event\":\"stream\""))
        {
            let stream: Value = serde_json::from_str(line)?;
            let calls = stream["calls"]
                .as_array()
                .context("a stream without calls")?;
            sum.bytes += calls.iter().filter_map(Value::as_u64).sum::<u64>();
            // A Write that failed has handed its bytes over all the same.
            sum.bytes += stream["failed"]["length"].as_u64().unwrap_or_default();
            sum.connections += u64::from(stream["direction"] == "write");
        }
    }
    Ok(sum)
}

/// Adds up JSON lines.
fn add_up(pipe: PipeReader) -> Result<Shown> {
    let mut shown = Shown::default();
    let mut pipe = BufReader::with_capacity(1 << 20, pipe);
    let mut line = Vec::new();
    while pipe.read_until(b'\n', &mut line)? > 0 {
        let value: Value = serde_json::from_slice(&line)?;
        match value["type"].as_str() {
            Some("data") => shown.bytes += value["length"].as_u64().context("no length")?,
            Some("lost") => shown.lost += value["bytes"].as_u64().context("no bytes")?,
            _ => {}
        }
        line.clear();
    }
    Ok(shown)
}

/// All numbers in a line, in their order.
fn numbers(line: &str) -> Vec<u64> {
    line.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_summary_are_in_their_order() {
        let line = "summary: 20 events, 3720 bytes on 2 connections; lost: 1 events, 5 bytes; \
                    unreadable: 0 events, 0 bytes";
        assert_eq!(numbers(line), [20, 3720, 2, 1, 5, 0, 0]);
    }

    #[test]
    fn memory_of_this_process_is_found() {
        let sample = Sample::of(std::process::id()).unwrap();
        assert!(sample.memory > 0 && sample.descriptors > 2, "{sample:?}");
    }
}
