//! `cargo xtask fuzz`: builds the fuzz targets and lets each look for input that breaks it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::{cargo, workspace};
use crate::matrix::{self, GoRelease, Program, Variant};
use crate::setup::{self, Group};
use crate::tools::Tool;
use crate::{cache, run};

mod seeds;

/// What to fuzz, and for how long
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only these targets [default: all]
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// How long each target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub seconds: u32,
}

/// Runs the targets one after the other; the first failure ends it.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure(Group::Test)?;
    let all = targets()?;
    if let Some(unknown) = options.targets.iter().find(|name| !all.contains(name)) {
        bail!(
            "there is no fuzz target {unknown}; there are {}",
            all.join(", ")
        );
    }
    let fuzzer = Fuzzer::ensure()?;
    run::visibly(&mut fuzzer.command("build"))?;
    for target in all {
        if options.targets.is_empty() || options.targets.contains(&target) {
            fuzzer.run(&target, options.seconds)?;
        }
    }
    Ok(())
}

/// The names in fuzz/targets.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(workspace().join("fuzz/targets"))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into()));
    }
    names.sort();
    Ok(names)
}

/// cargo-fuzz, and what the targets need.
struct Fuzzer {
    tool: PathBuf,
    /// Where corpora grow from run to run.
    corpora: PathBuf,
    executable: PathBuf,
}

impl Fuzzer {
    fn ensure() -> Result<Self> {
        Ok(Self {
            tool: Tool::Fuzz.ensure()?,
            corpora: cache::dir()?.join("corpora"),
            executable: matrix::binary(GoRelease::NEWEST, Variant::Stripped, Program::Exchange)?,
        })
    }

    /// `cargo fuzz VERB`. There is no sanitizer: what is fuzzed has no unsafe code, and a stable
    /// compiler has none.
    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.tool);
        command
            .current_dir(workspace())
            .arg(verb)
            .args(["--sanitizer", "none", "--fuzz-dir", "fuzz"])
            .env("CARGO", cargo().get_program())
            .env("ECAPTURE_FUZZ_EXECUTABLE", &self.executable);
        command
    }

    fn run(&self, target: &str, seconds: u32) -> Result<()> {
        let corpus = self.corpora.join(target);
        fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
        seeds::plant(target, &corpus, &self.executable)?;
        eprintln!("fuzzing {target} for {seconds} s");
        run::visibly(
            self.command("run")
                .arg(target)
                .arg(&corpus)
                .args(["--", "-print_final_stats=1", "-verbosity=0", "-timeout=10"])
                .args(["-rss_limit_mb=1024", "-max_len=65536"])
                .arg(format!("-max_total_time={seconds}")),
        )
        .with_context(|| format!("{target}: see fuzz/artifacts/{target}"))
    }
}
