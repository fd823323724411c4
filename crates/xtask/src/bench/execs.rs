//! What starting programs costs while all programs are captured: those that are no Go programs, of files
//! that have been seen before and that have not, and Go programs that are attached to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::Bench;
use super::mode::PATIENCE;
use super::report::{Findings, Table, with_extremes};
use super::stats::{Rounds, Spread};
use crate::process::{Child, Stream};
use crate::run;

/// Programs started per second.
const RATE: u32 = 200;

/// Programs started in a measurement.
const STARTS: u32 = 1000;

/// What is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Started {
    /// No Go program, the same file each time.
    Known,
    /// No Go program, another file each time.
    Unknown,
    /// A Go program with TLS, the same file each time.
    Go,
}

impl Started {
    const ALL: [Self; 3] = [Self::Known, Self::Unknown, Self::Go];

    const fn description(self) -> &'static str {
        match self {
            Self::Known => "no Go program, the same file each time",
            Self::Unknown => "no Go program, a new file each time",
            Self::Go => "a Go program with TLS, the same file each time",
        }
    }
}

pub(super) fn measure(bench: &Bench) -> Result<Findings> {
    let mut findings = Findings::default();
    findings.part(
        "Starting programs",
        &format!(
            "While `ecapture gotls` captures all Go programs of the machine, another process starts {RATE} \
             programs per second, which end at once. The time is that from fork to the end of the child, as its \
             parent sees it: the difference is what the watch adds. A new file is analysed before its program \
             may begin."
        ),
    );
    let kinds: Vec<_> = Started::ALL
        .into_iter()
        .flat_map(|started| [(started, false), (started, true)])
        .collect();
    let rounds = Rounds::measure(
        &kinds,
        bench.few_runs(),
        "starting programs",
        |(started, watched)| measurement(bench, started, watched),
    )?;
    let mut table = Table::new(&["what is started", "alone, µs", "watched, µs", "added, µs"]);
    for started in Started::ALL {
        let alone = rounds.spread((started, false), |&time| time)?;
        let watched = rounds.spread((started, true), |&time| time)?;
        let added = watched.median - alone.median;
        table.row([
            started.description().into(),
            with_extremes(alone, 0),
            with_extremes(watched, 0),
            format!("{added:.0}"),
        ]);
        if started == Started::Known {
            findings.at_most("added to the start of a known program", added, 100.0, " µs");
        }
    }
    findings.table(&table);
    Ok(findings)
}

/// The median time of a start, in µs.
fn measurement(bench: &Bench, started: Started, watched: bool) -> Result<f64> {
    let count = bench.scaled(STARTS);
    let files = Files::make(bench, started, count)?;
    let watch = if watched {
        let mut command = Command::new(&bench.programs.ecapture);
        let child = Child::spawn_to(command.arg("gotls"), Stdio::null())?;
        child.wait_for_prefix(Stream::Stderr, PATIENCE, "attached")?;
        Some(child)
    } else {
        None
    };
    if started != Started::Unknown {
        start(&files.paths[0])?;
    }
    let begun = Instant::now();
    let mut times = Vec::new();
    for (number, path) in (1..).zip(&files.paths) {
        times.push(start(path)?.as_secs_f64() * 1e6);
        let next = begun + Duration::from_secs(1) * number / RATE;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    if let Some(mut child) = watch {
        child.signal(Signal::INT)?;
        child.finish(PATIENCE)?.success()?;
    }
    Ok(Spread::of(times)?.median)
}

/// Starts a program and waits for its end.
fn start(path: &Path) -> Result<Duration> {
    let mut command = Command::new(path);
    // A flag that the Go program prints its usage for; the other one ignores it.
    command
        .arg("-help")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| path.display().to_string())?;
    child.wait()?;
    Ok(begun.elapsed())
}

/// What is to be started, one after the other. Gone when this is dropped.
struct Files {
    _dir: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

impl Files {
    fn make(bench: &Bench, started: Started, count: u32) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let original = match started {
            Started::Known | Started::Unknown => run::find("true").context("no `true`")?,
            Started::Go => bench.programs.load.clone(),
        };
        let files = if started == Started::Unknown {
            count
        } else {
            1
        };
        let mut paths = Vec::new();
        for number in 0..files {
            let path = dir.path().join(number.to_string());
            fs::copy(&original, &path)?;
            paths.push(path);
        }
        let paths = paths.into_iter().cycle().take(count as usize).collect();
        Ok(Self { _dir: dir, paths })
    }
}
