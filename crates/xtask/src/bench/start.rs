//! How long it takes until the probes are in place, and how much memory, for executables of all sizes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::Bench;
use super::chart::{Chart, Series};
use super::exchange::number;
use super::mode::{Memory, Mode, PATIENCE};
use super::program::{self, RELEASE};
use super::report::{Findings, Table, with_extremes};
use super::stats::Rounds;
use crate::process::{Child, Stream};
use crate::{big, cache, run};

/// Executables that are captured at the same time.
const MANY: u32 = 100;

pub(super) fn measure(bench: &Bench) -> Result<Findings> {
    let mut findings = Findings::default();
    by_size(bench, &mut findings)?;
    many(bench, &mut findings)?;
    Ok(findings)
}

/// One start.
struct Start {
    /// In ms.
    attached: f64,
    memory: Memory,
}

fn by_size(bench: &Bench, findings: &mut Findings) -> Result<()> {
    findings.part(
        "Start",
        &format!(
            "From starting `ecapture gotls` (text mode, default buffer of 32 MiB) to its word that the probes \
             are attached, for executables that Go {RELEASE} made. The executables are in the page cache. The \
             first is as small as a Go program with TLS gets; the big ones consist of many functions, as \
             services with many dependencies do. Memory beyond the buffer is the executable's pages that were \
             looked at, which are the page cache's, and our own; proportional memory counts the buffer once."
        ),
    );
    let executables = executables(bench)?;
    let kinds: Vec<_> = (0..executables.len()).collect();
    let rounds = Rounds::measure(&kinds, bench.runs, "start", |index| {
        start(bench, &executables[index].1)
    })?;
    let mut table = Table::new(&[
        "executable, MB",
        "",
        "until attached, ms",
        "peak resident, MB",
        "proportional, MB",
    ]);
    let (mut groups, mut values) = (Vec::new(), Vec::new());
    for (index, (what, path)) in executables.iter().enumerate() {
        let megabytes = program::megabytes(path)?;
        let attached = rounds.spread(index, |start| start.attached)?;
        table.row([
            format!("{megabytes:.1}"),
            (*what).to_owned(),
            with_extremes(attached, 0),
            with_extremes(rounds.spread(index, |start| start.memory.peak)?, 1),
            with_extremes(rounds.spread(index, |start| start.memory.proportional)?, 1),
        ]);
        groups.push(format!("{megabytes:.0} MB"));
        values.push(Some(attached));
    }
    findings.table(&table);
    findings.chart(
        "start.svg",
        &Chart {
            title: "Time until attached, by size of the executable".into(),
            axis: "ms".into(),
            groups,
            series: vec![Series {
                name: "text".into(),
                colour: Mode::Text.colour(),
                values,
            }],
            digits: 0,
        },
    )
}

/// What they are, and where; built if they aren't there yet.
pub(super) fn executables(bench: &Bench) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut executables = vec![
        ("without symbols", program::stripped_load()?),
        ("with symbols", bench.programs.load.clone()),
    ];
    for size in big::Size::ALL {
        if !bench.quick || size == big::Size::Mb25 {
            executables.push(("many functions", big::binary(RELEASE, size)?));
        }
    }
    Ok(executables)
}

/// Starts ecapture on an executable that isn't running, until its probes are in place.
fn start(bench: &Bench, executable: &Path) -> Result<Start> {
    let start = Instant::now();
    let mut child = Child::spawn_to(&mut capture(bench, executable), Stdio::null())?;
    child.wait_for_prefix(Stream::Stderr, PATIENCE, "attached")?;
    let attached = start.elapsed().as_secs_f64() * 1e3;
    let memory = Memory::of(child.pid())?;
    child.signal(Signal::INT)?;
    child.finish(PATIENCE)?.success()?;
    Ok(Start { attached, memory })
}

fn capture(bench: &Bench, executable: &Path) -> Command {
    let mut command = Command::new(&bench.programs.ecapture);
    command.arg("gotls").arg("--elfpath").arg(executable);
    command
}

/// Many executables at the same time.
fn many(bench: &Bench, findings: &mut Findings) -> Result<()> {
    let count = if bench.quick { MANY / 10 } else { MANY };
    let copies = Copies::make(&bench.programs.load, count)?;
    let analyzed = run::output(
        Command::new(&bench.programs.bench)
            .arg("analyze")
            .args(&copies.paths),
    )?;
    let analyzed = number(&serde_json::from_str(&analyzed)?, "ns")? / 1e6;

    eprintln!("start of a capture of {count} executables");
    let start = Instant::now();
    let mut command = Command::new(&bench.programs.ecapture);
    command.arg("gotls");
    for path in &copies.paths {
        command.arg("--elfpath").arg(path);
    }
    let mut child = Child::spawn_to(&mut command, Stdio::null())?;
    child.wait_for_prefix(Stream::Stderr, PATIENCE, "attached")?;
    let attached = start.elapsed().as_secs_f64() * 1e3;
    let proportional = Memory::of(child.pid())?.proportional;
    child.signal(Signal::INT)?;
    let start = Instant::now();
    child.finish(PATIENCE)?.success()?;
    let detached = start.elapsed().as_secs_f64() * 1e3;

    findings.part(
        &format!("{count} executables"),
        &format!(
            "{count} copies of the {:.1} MB program, captured by one process with the default buffer.",
            program::megabytes(&bench.programs.load)?
        ),
    );
    let mut table = Table::new(&["what", "all of them", "each"]);
    let each = f64::from(count);
    table.row([
        "analysed, one after the other in one process, ms".into(),
        format!("{analyzed:.0}"),
        format!("{:.1}", analyzed / each),
    ]);
    table.row([
        "from the start until all are attached, ms".into(),
        format!("{attached:.0}"),
        format!("{:.1}", attached / each),
    ]);
    table.row([
        "from Ctrl-C to the end, ms".into(),
        format!("{detached:.0}"),
        format!("{:.1}", detached / each),
    ]);
    table.row([
        "proportional memory then, MB".into(),
        format!("{proportional:.0}"),
        format!("{:.1}", proportional / each),
    ]);
    findings.table(&table);
    Ok(())
}

/// Copies of an executable, gone when this is dropped.
struct Copies {
    dir: PathBuf,
    paths: Vec<PathBuf>,
}

impl Copies {
    fn make(executable: &Path, count: u32) -> Result<Self> {
        let dir = cache::dir()?.join(format!("work/copies-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let mut copies = Self {
            dir,
            paths: Vec::new(),
        };
        for number in 0..count {
            let path = copies.dir.join(number.to_string());
            fs::copy(executable, &path).with_context(|| path.display().to_string())?;
            copies.paths.push(path);
        }
        Ok(copies)
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // What is left costs space in the cache and nothing else.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
