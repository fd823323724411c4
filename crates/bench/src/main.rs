//! What the benchmarks compare ecapture with. Each command attaches to one process, says so on standard
//! error, and ends with a summary when its standard input does: what ecapture's own summary looks like,
//! so that whoever measures drives all of them in the same way.
#![forbid(unsafe_code)]

mod programs;
mod reference;

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use capture::Executable;
use clap::{Args, Parser, Subcommand};
use gobin::{Analysis, ReadSitePreference};

use crate::programs::{Attachment, Programs};

/// What the benchmarks of `cargo xtask bench` compare ecapture with
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Empty probes where ecapture's text mode has its own: what being probed costs at least
    Floor(Target),
    /// The usual design: probes at the entry and all returns, records of fixed size through a perf
    /// buffer, a reader that is woken for each and counts them
    Reference(Target),
    /// Analyses executables as `ecapture inspect` does, one after the other, and prints how long it took
    Analyze {
        /// The executables
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
}

/// What to attach to.
#[derive(Args)]
struct Target {
    /// The Go executable
    #[arg(long)]
    elfpath: PathBuf,
    /// A process that runs it
    #[arg(long)]
    pid: i32,
}

impl Target {
    fn analyze(&self) -> Result<Analysis> {
        analyze(&self.elfpath)
    }
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Floor(target) => floor(&target),
        Command::Reference(target) => reference::run(&target),
        Command::Analyze { paths } => analyze_all(&paths),
    }
}

fn floor(target: &Target) -> Result<()> {
    let plan = target
        .analyze()?
        .crypto_tls
        .plan(ReadSitePreference::Auto)?;
    let mut offsets = vec![plan.write.site.offset];
    offsets.extend(plan.read.sites().iter().map(|site| site.offset));
    if let Ok(close) = &plan.close {
        offsets.push(close.site.offset);
    }
    let attach = |attachment| {
        let mut programs = Programs::load(&["empty"], None, attachment)?;
        programs.attach("empty", target, &offsets)?;
        Ok::<_, anyhow::Error>(programs)
    };
    let _attached = attach(Attachment::Multi).or_else(|_| attach(Attachment::Perf))?;
    eprintln!("attached: {} probes", offsets.len());
    wait_for_end_of_input()?;
    Ok(())
}

fn analyze_all(paths: &[PathBuf]) -> Result<()> {
    let start = Instant::now();
    for path in paths {
        analyze(path)?
            .plans(ReadSitePreference::Auto)
            .with_context(|| path.display().to_string())?;
    }
    println!("{{\"ns\":{}}}", start.elapsed().as_nanos());
    Ok(())
}

fn analyze(path: &std::path::Path) -> Result<Analysis> {
    let executable = Executable::open(path)?;
    executable
        .read(gobin::analyze)?
        .with_context(|| path.display().to_string())
}

/// Whoever started us closes our input when we may go.
fn wait_for_end_of_input() -> io::Result<()> {
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}
