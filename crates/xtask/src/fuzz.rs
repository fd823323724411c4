//! `cargo xtask fuzz`: builds the fuzz targets and lets each look for input that breaks it, as many at a
//! time as there are processors.
//!
//! All targets are in one program (fuzz/src/main.rs), which is built by cargo-fuzz and run from here.
//! What is to survive is in the cache: corpora, findings, and what each run said.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::{cargo, workspace};
use crate::matrix::{self, GoRelease, Program, Variant};
use crate::setup::{self, Group};
use crate::test::host;
use crate::tools::Tool;
use crate::{cache, run};

mod outcome;

use outcome::Outcome;

/// What to fuzz, and for how long
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only these targets [default: all]
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// How long each target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub seconds: u32,
    /// Begin with the seeds alone, not with what earlier runs found
    #[arg(long)]
    pub from_seeds: bool,
    /// Where the fuzzer's random numbers begin; the same number and seeds give the same inputs [default:
    /// the time]
    #[arg(long, value_name = "N")]
    pub random_seed: Option<u32>,
}

/// How long each target runs in the tests: long enough to see that none of them fails at once.
const SECONDS_IN_TESTS: u32 = 5;

/// Runs the targets and prints a table. An error if there was a finding.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure(Group::Test)?;
    let place = match options.from_seeds {
        false => cache::dir()?.join("fuzz"),
        true => workspace().join("target/fuzz/from-seeds"),
    };
    if options.from_seeds && place.exists() {
        fs::remove_dir_all(&place).with_context(|| place.display().to_string())?;
    }
    let fuzzer = Fuzzer::build(&place)?;
    let all = fuzzer.targets()?;
    if let Some(unknown) = options.targets.iter().find(|name| !all.contains(name)) {
        bail!(
            "there is no fuzz target {unknown}; there are {}",
            all.join(", ")
        );
    }
    let wanted = |name: &String| options.targets.is_empty() || options.targets.contains(name);
    fuzzer.run(all.into_iter().filter(wanted).collect(), options)
}

/// Runs each target for a moment, from its seeds alone, so that it takes as long on every machine.
pub fn briefly() -> Result<()> {
    run(&Options {
        targets: Vec::new(),
        seconds: SECONDS_IN_TESTS,
        from_seeds: true,
        // A test does the same each time.
        random_seed: Some(1),
    })
}

/// The program with all targets, and what it needs.
struct Fuzzer {
    program: PathBuf,
    /// Executables that two of the targets begin with.
    executables: OsString,
    /// Where corpora, findings and logs are.
    place: PathBuf,
}

impl Fuzzer {
    /// Builds the program. There is no sanitizer: what is fuzzed has no unsafe code, and a stable
    /// compiler has none.
    fn build(place: &Path) -> Result<Self> {
        let target_dir = workspace().join("target/fuzz");
        run::visibly(
            Command::new(Tool::Fuzz.ensure()?)
                .current_dir(workspace())
                .args(["build", "--sanitizer", "none", "--fuzz-dir", "fuzz"])
                .arg("--target-dir")
                .arg(&target_dir)
                .env("CARGO", cargo().get_program()),
        )?;
        let mut executables = Vec::new();
        for (release, variant) in [
            // The stack ABI; without symbols; position-independent; another architecture.
            (GoRelease::Go1_15, Variant::Default),
            (GoRelease::NEWEST, Variant::Stripped),
            (GoRelease::NEWEST, Variant::Pie),
            (GoRelease::NEWEST, Variant::Arm64),
        ] {
            executables.push(matrix::binary(release, variant, Program::Exchange)?);
        }
        Ok(Self {
            program: target_dir.join(host()?).join("release").join("targets"),
            executables: std::env::join_paths(executables)?,
            place: place.to_owned(),
        })
    }

    /// The names of the targets.
    fn targets(&self) -> Result<Vec<String>> {
        let names = run::output(Command::new(&self.program).env_remove("ECAPTURE_FUZZ_TARGET"))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    fn run(&self, targets: Vec<String>, options: &Options) -> Result<()> {
        let outcomes = Mutex::new(Vec::new());
        run::in_parallel(targets, |target| {
            let outcome = self.fuzz(&target, options)?;
            eprintln!("{target}: {}", outcome.summary());
            if let Ok(mut outcomes) = outcomes.lock() {
                outcomes.push((target, outcome));
            }
            Ok(())
        })?;
        let mut outcomes = outcomes.into_inner().unwrap_or_default();
        outcomes.sort_by(|(a, _), (b, _)| a.cmp(b));
        outcome::print(&outcomes);
        let found: Vec<_> = outcomes
            .iter()
            .filter(|(_, outcome)| outcome.finding.is_some())
            .map(|(target, _)| target.as_str())
            .collect();
        if !found.is_empty() {
            bail!("findings: {}", found.join(", "));
        }
        Ok(())
    }

    /// Runs one target.
    fn fuzz(&self, target: &str, options: &Options) -> Result<Outcome> {
        let (seconds, seed) = (options.seconds, options.random_seed.unwrap_or(0));
        let directory = |name: &str| -> Result<PathBuf> {
            let path = self.place.join(name).join(target);
            fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
            Ok(path)
        };
        let (corpus, findings) = (directory("corpora")?, directory("findings")?);
        run::output(&mut self.command(target, Some(&corpus))?)?;
        let log = self.place.join(format!("{target}.log"));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = self.command(target, None)?;
        command
            .arg(&corpus)
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .arg(format!("-max_total_time={seconds}"))
            // 0 stands for the time.
            .arg(format!("-seed={seed}"))
            .args([
                "-print_final_stats=1",
                "-timeout=60",
                "-report_slow_units=60",
            ])
            .args(["-rss_limit_mb=1024", "-max_len=65536"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let status = command
            .status()
            .with_context(|| format!("{}: can't be started", self.program.display()))?;
        let said = fs::read(&log).with_context(|| log.display().to_string())?;
        let said = String::from_utf8_lossy(&said);
        let outcome = Outcome::of(&said, status);
        if let Some(finding) = &outcome.finding {
            eprintln!(
                "{target}: {finding}\n{target}: all that was said: {}",
                log.display()
            );
        }
        Ok(outcome)
    }

    /// The program with one target. `seeds`: it is only to write its seeds into that directory.
    fn command(&self, target: &str, seeds: Option<&Path>) -> Result<Command> {
        // Packet filters are tried out in the kernel.
        let mut command = match target {
            "packet_filter" => run::as_root("env")?,
            _ => Command::new("env"),
        };
        let mut variable = |name: &str, value: &OsStr| {
            let mut assignment = OsString::from(name);
            assignment.push("=");
            assignment.push(value);
            command.arg(assignment);
        };
        variable("ECAPTURE_FUZZ_TARGET", target.as_ref());
        variable("ECAPTURE_FUZZ_EXECUTABLES", &self.executables);
        variable("RUST_BACKTRACE", "0".as_ref());
        if let Some(seeds) = seeds {
            variable("ECAPTURE_FUZZ_SEEDS", seeds.as_ref());
        }
        command.arg(&self.program);
        Ok(command)
    }
}
