//! `cargo xtask bench`: what capturing costs, compared with a program that nobody probes, with empty
//! probes, and with the usual design of such tools. What is compared takes turns within one run, so that
//! whatever else the machine does hits all of it.
//!
//! `mode` starts and judges a capture, `exchange` is one measurement of messages; `messages`,
//! `consumer`, `service`, `decoding`, `start` and `execs` are the sections; `report` and `chart` write what they
//! found.

mod chart;
mod consumer;
mod decoding;
mod exchange;
mod execs;
mod messages;
mod mode;
mod program;
mod report;
mod service;
mod start;
mod stats;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

pub(crate) use self::program::load_source;

use self::program::{Programs, RELEASE};
use self::report::{Findings, Report};
use crate::cargo::workspace;
use crate::run;
use crate::setup::{self, Group};

/// What to measure, and how thoroughly
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Few and short measurements, to see that everything works
    #[arg(long)]
    pub quick: bool,
    /// Only one section
    #[arg(long, value_enum, value_name = "SECTION")]
    pub only: Option<Section>,
    /// Measurements of each mode [default: 7, with --quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: Option<u32>,
    /// Where results.md and the charts go [default: docs/benchmarks for a full run, else target/bench]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// A part of the benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Round trips and throughput of messages: what capturing costs the target
    Messages,
    /// What one processor keeps up with, and memory: what capturing costs us
    Consumer,
    /// Requests per second and latency of an HTTPS service
    Service,
    /// What decoding HTTP takes, from recordings and at full load
    Decoding,
    /// Time and memory until attached
    Start,
    /// Starting programs while all are captured
    Execs,
}

/// What every section needs.
struct Bench {
    programs: Programs,
    runs: u32,
    quick: bool,
}

impl Bench {
    /// So much work in a measurement.
    fn scaled(&self, count: u32) -> u32 {
        if self.quick { count / 10 } else { count }
    }

    /// For measurements that are long or steady.
    fn few_runs(&self) -> u32 {
        self.runs.min(5)
    }
}

/// Measures, prints the targets, and writes Markdown and charts.
pub fn run(options: &Options) -> Result<()> {
    if !run::is_root() {
        bail!("bench loads eBPF programs and reads their process: run it as root");
    }
    setup::ensure(Group::Demo)?;
    let bench = Bench {
        programs: Programs::ensure()?,
        runs: options.runs.unwrap_or(if options.quick { 2 } else { 7 }),
        quick: options.quick,
    };
    let load = load_average();
    if let Some(load) = load.filter(|load| *load > 0.5) {
        eprintln!(
            "other programs keep this machine busy, which blurs the figures: the load is {load:.2}"
        );
    }

    let sections: Vec<_> = Section::value_variants()
        .iter()
        .filter(|&&section| options.only.is_none_or(|only| only == section))
        .collect();
    if sections.contains(&&Section::Start) {
        start::executables(&bench)?; // Built before the clock starts.
    }
    let start = Instant::now();
    let mut findings = Vec::new();
    for section in sections {
        findings.push(section.measure(&bench)?);
        eprintln!("{:.1} minutes so far", start.elapsed().as_secs_f64() / 60.0);
    }
    let report = Report {
        circumstances: circumstances(&bench, load, start.elapsed())?,
        findings,
    };
    let complete = options.only.is_none() && !options.quick;
    let out = options.out.clone().unwrap_or_else(|| {
        workspace().join(if complete {
            "docs/benchmarks"
        } else {
            "target/bench"
        })
    });
    report.write(&out)?;
    if let Some(checks) = report.checks() {
        println!("\n{checks}");
    }
    println!("\nwritten to {}", out.join("results.md").display());
    Ok(())
}

impl Section {
    fn measure(self, bench: &Bench) -> Result<Findings> {
        match self {
            Self::Messages => messages::measure(bench),
            Self::Consumer => consumer::measure(bench),
            Self::Service => service::measure(bench),
            Self::Decoding => decoding::measure(bench),
            Self::Start => start::measure(bench),
            Self::Execs => execs::measure(bench),
        }
    }
}

/// Where and how it was measured, as a Markdown list.
fn circumstances(bench: &Bench, load: Option<f64>, took: Duration) -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
    let field = |names: &[&str]| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(name, _)| names.contains(&name.trim()));
        found.map(|(_, value)| value.trim().to_owned())
    };
    let processor = field(&["model name", "CPU part"]).unwrap_or_else(|| "unknown".into());
    let virtual_machine = cpuinfo.split_whitespace().any(|flag| flag == "hypervisor");
    let processors = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let memory: f64 = meminfo
        .strip_prefix("MemTotal:")
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .context("/proc/meminfo has no MemTotal")?;
    let uname = rustix::system::uname();
    let commit = run::output(
        Command::new("git")
            .args(["describe", "--always", "--dirty"])
            .current_dir(workspace()),
    );
    Ok(format!(
        "- Processor: {processor}, {processors} of them{}, {:.0} GB of memory\n\
         - Kernel: {} {} ({})\n\
         - Captured programs: made by Go {RELEASE}; ecapture at commit {}\n\
         - {} runs of each measurement, in turn; {:.0} minutes; load of the machine before: {}{}\n",
        if virtual_machine {
            " in a virtual machine"
        } else {
            ""
        },
        memory * 1024.0 / 1e9,
        uname.sysname().to_string_lossy(),
        uname.release().to_string_lossy(),
        uname.machine().to_string_lossy(),
        commit.as_deref().unwrap_or("unknown").trim(),
        bench.runs,
        took.as_secs_f64() / 60.0,
        load.map_or_else(|| "unknown".into(), |load| load.to_string()),
        if bench.quick {
            "; **quick run, not to be relied on**"
        } else {
            ""
        },
    ))
}

/// Of the last minute.
fn load_average() -> Option<f64> {
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    load.split_whitespace().next()?.parse().ok()
}
