//! `cargo xtask test`: all the set-up, then every check and every test, with a summary.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fmt, fs, thread};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::{cargo, cargo_to_test, workspace};
use crate::matrix::{self, GoRelease, Program};
use crate::setup::{self, Group, Unavailable};
use crate::toolchain::Toolchain;
use crate::{bench, cache, dependencies, fuzz, run, standalone, vm};

/// What to run of it
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Leave out the tests that need root or Go test binaries
    #[arg(long)]
    pub quick: bool,
    /// Run only tests whose name contains this; no lints
    #[arg(long, value_name = "FILTER")]
    pub only: Option<String>,
}

/// Runs it all; a failed stage doesn't keep the next ones from running.
pub fn run(options: &Options) -> Result<()> {
    let mut stages = Stages::default();
    // Without these nothing else makes sense.
    stages.run("set-up", || {
        setup::ensure(if options.quick {
            Group::Demo
        } else {
            Group::Test
        })?;
        if options.quick {
            Ok(())
        } else {
            setup::mount_kernel_filesystems()
        }
    });
    if !options.quick && stages.none_failed() {
        stages.run("test binaries", || matrix::ensure_all().map(drop));
    }
    if !stages.none_failed() {
        return stages.summary();
    }

    if options.only.is_none() {
        stages.run("rustfmt", || {
            run::visibly(cargo().args(["fmt", "--all", "--check"]))?;
            let fuzz = ["--manifest-path", "fuzz/Cargo.toml"];
            run::visibly(cargo().args(["fmt", "--check"]).args(fuzz))
        });
        stages.run("clippy", || {
            run::visibly(
                cargo()
                    .args(["clippy", "--quiet", "--workspace", "--all-targets"])
                    .args(["--", "--deny", "warnings"]),
            )
        });
        stages.run("rustdoc", || {
            run::visibly(
                cargo()
                    .args([
                        "doc",
                        "--quiet",
                        "--workspace",
                        "--no-deps",
                        "--document-private-items",
                    ])
                    .env("RUSTDOCFLAGS", "--deny warnings"),
            )
        });
        stages.run("clang-format", clang_format);
        if !options.quick {
            stages.run("dependencies", dependencies::check);
            stages.run("gofmt", gofmt);
        }
    }
    stages.run("tests", || tests(options));
    if options.only.is_none() {
        stages.run("documentation tests", || {
            run::visibly(cargo().args(["test", "--quiet", "--workspace", "--doc"]))
        });
    }
    if options.only.is_none() && !options.quick {
        stages.run("fuzz targets", fuzz::briefly);
        stages.run_if_available("other kernels", vm::briefly);
    }
    stages.summary()
}

/// How many failed tests are run again: more of them are no accident.
const RUN_AGAIN_MAX: usize = 3;

/// All tests, with those that are ignored because they need root or test binaries unless it is to be quick.
///
/// Live tests depend on what else the machine does. A few that fail are run once more, alone; that they failed
/// at first stays visible and is worth an examination.
fn tests(options: &Options) -> Result<()> {
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let mut command = test_command(options.quick)?;
    // Live tests bring their own load; more at once than processors only makes them slow.
    command.env("RUST_TEST_THREADS", threads.clamp(2, 4).to_string());
    let (output, result) = run::visibly_kept(command.args(&options.only))?;
    let failed = failed_tests(&output);
    if result.is_ok() || failed.is_empty() || failed.len() > RUN_AGAIN_MAX {
        return result;
    }
    eprintln!("once more, alone: {}", failed.join(", "));
    let mut command = test_command(options.quick)?;
    command.env("RUST_TEST_THREADS", "1");
    run::visibly(command.arg("--exact").args(&failed))?;
    for test in failed {
        eprintln!("UNSTABLE: {test} failed at first, and passed alone");
    }
    Ok(())
}

/// The names in the lists of failed tests that libtest writes; none if not all reports are complete.
fn failed_tests(output: &str) -> Vec<&str> {
    let count = |begin: &str| {
        output
            .lines()
            .filter(|line| line.starts_with(begin))
            .count()
    };
    if count("running ") != count("test result: ") {
        return Vec::new();
    }
    let mut failed = Vec::new();
    let mut list = Vec::new();
    for line in output.lines() {
        match line.strip_prefix("    ") {
            _ if line.starts_with("test result: FAILED") => failed.append(&mut list),
            _ if line == "failures:" || line.starts_with("test result: ") => list.clear(),
            Some(name) if !name.contains(char::is_whitespace) => list.push(name),
            _ => {}
        }
    }
    failed
}

/// `cargo test` of everything with what the tests need, up to the arguments of the tests themselves.
fn test_command(quick: bool) -> Result<Command> {
    let mut command = cargo_to_test();
    command.args(["test", "--workspace", "--lib", "--bins", "--tests"]);
    command.args(["--no-fail-fast", "--"]);
    command.args((!quick).then_some("--include-ignored"));
    if !quick {
        command.env("ECAPTURE_TEST_BINARIES", matrix::dir()?);
        // The same for the tests, even if they run as another user.
        command.env("ECAPTURE_CACHE_DIR", cache::dir()?);
        if !run::is_root() {
            // Fails here, and doesn't skip, if there is no way to become root.
            run::as_root("true").context("the live tests load eBPF programs")?;
            let variable = format!("CARGO_TARGET_{}_RUNNER", host()?.to_uppercase());
            command.env(variable.replace('-', "_"), "sudo -E");
        }
    }
    if env::var_os("RUST_BACKTRACE").is_none() {
        command.env("RUST_BACKTRACE", "1");
    }
    Ok(command)
}

/// The target triple that cargo builds for: `x86_64-unknown-linux-gnu`.
pub(crate) fn host() -> Result<String> {
    let version = run::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV doesn't tell its host")?.to_owned())
}

/// Checks `crates/*/bpf/*.{c,h}`.
fn clang_format() -> Result<()> {
    let mut files = Vec::new();
    for krate in fs::read_dir(workspace().join("crates"))? {
        let Ok(entries) = fs::read_dir(krate?.path().join("bpf")) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "c" || e == "h") {
                files.push(path);
            }
        }
    }
    files.sort();
    if files.is_empty() {
        return Ok(());
    }
    if !run::exists("clang-format") {
        eprintln!("clang-format is not installed: the C code's format is not checked");
        return Ok(());
    }
    run::visibly(
        Command::new("clang-format")
            .args(["--dry-run", "--Werror"])
            .args(files),
    )
}

/// Checks the Go test programs.
fn gofmt() -> Result<()> {
    let gofmt = Toolchain::ensure(GoRelease::NEWEST)?
        .goroot()
        .join("bin/gofmt");
    let mut sources: Vec<PathBuf> = Program::ALL
        .iter()
        .map(|program| program.source())
        .chain(standalone::sources())
        .collect();
    sources.push(bench::load_source());
    let wrong = run::output(Command::new(gofmt).arg("-l").args(sources))?;
    if !wrong.is_empty() {
        bail!("not formatted by gofmt:\n{wrong}");
    }
    Ok(())
}

/// What became of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// What has been run, how long it took, and whether it passed.
#[derive(Default)]
struct Stages(Vec<(&'static str, Duration, Verdict)>);

impl Stages {
    fn run(&mut self, name: &'static str, stage: impl FnOnce() -> Result<()>) {
        self.add(name, stage, |_| Verdict::Failed);
    }

    /// If what it takes can't be had here, the stage is skipped, and the summary says so.
    fn run_if_available(&mut self, name: &'static str, stage: impl FnOnce() -> Result<()>) {
        self.add(name, stage, |error| {
            if error.is::<Unavailable>() {
                Verdict::Skipped
            } else {
                Verdict::Failed
            }
        });
    }

    fn add(
        &mut self,
        name: &'static str,
        stage: impl FnOnce() -> Result<()>,
        verdict_of: impl FnOnce(&anyhow::Error) -> Verdict,
    ) {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let verdict = stage().map_or_else(
            |error| {
                eprintln!("{name}: {error:#}");
                verdict_of(&error)
            },
            |()| Verdict::Passed,
        );
        let took = start.elapsed();
        eprintln!("== {name}: {verdict}, {:.1} s", took.as_secs_f64());
        self.0.push((name, took, verdict));
    }

    fn none_failed(&self) -> bool {
        self.0
            .iter()
            .all(|(_, _, verdict)| *verdict != Verdict::Failed)
    }

    fn summary(self) -> Result<()> {
        println!("\nSummary");
        for (name, took, verdict) in &self.0 {
            println!("  {name:<20} {:>7.1} s  {verdict}", took.as_secs_f64());
        }
        let total: Duration = self.0.iter().map(|(_, took, _)| *took).sum();
        println!("  {:<20} {:>7.1} s", "total", total.as_secs_f64());
        let failed: Vec<_> = self
            .0
            .iter()
            .filter(|(_, _, verdict)| *verdict == Verdict::Failed)
            .map(|(name, _, _)| *name)
            .collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        })
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn only_what_can_not_be_had_is_skipped_and_only_where_that_may_be() {
        let unavailable = || {
            Err(anyhow!("no network"))
                .with_context(|| Unavailable("no packages".into()))
                .context("a kernel")
        };
        let mut stages = Stages::default();
        stages.run_if_available("unavailable", unavailable);
        stages.run_if_available("broken", || Err(anyhow!("a bug")));
        stages.run_if_available("fine", || Ok(()));
        stages.run("unavailable, and needed", unavailable);
        let verdicts: Vec<_> = stages.0.iter().map(|(_, _, verdict)| *verdict).collect();
        assert_eq!(
            verdicts,
            [
                Verdict::Skipped,
                Verdict::Failed,
                Verdict::Passed,
                Verdict::Failed
            ]
        );
    }

    #[test]
    fn failed_tests_are_found_in_all_reports() {
        let output = "\
running 3 tests
test a::one ... ok
test a::two ... FAILED

failures:

---- a::two stdout ----
Error: what was found:
    indented
    two words

failures:
    a::two

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.02s

running 1 test
    noise
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s

running 2 tests

failures:
    b::three
    b::four

test result: FAILED. 0 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        assert_eq!(failed_tests(output), ["a::two", "b::three", "b::four"]);
        let crashed = format!("{output}\nrunning 7 tests\ntest c::five ... ok\n");
        assert!(failed_tests(&crashed).is_empty());
    }
}
