//! `cargo xtask test`: all the set-up, then every check and every test, with a summary.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::{cargo, workspace};
use crate::matrix::{self, GoRelease, Program};
use crate::setup::{self, Group};
use crate::toolchain::Toolchain;
use crate::{bench, cache, dependencies, fuzz, run, standalone};

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
    if !options.quick && stages.all_passed() {
        stages.run("test binaries", || matrix::ensure_all().map(drop));
    }
    if !stages.all_passed() {
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
    }
    stages.summary()
}

/// All tests, with those that are ignored because they need root or test binaries unless it is
/// to be quick.
fn tests(options: &Options) -> Result<()> {
    let mut command = cargo();
    command.args([
        "test",
        "--workspace",
        "--lib",
        "--bins",
        "--tests",
        "--no-fail-fast",
    ]);
    command.arg("--").args(&options.only);
    if !options.quick {
        command.arg("--include-ignored");
        command.env("ECAPTURE_TEST_BINARIES", matrix::dir()?);
        // The same for the tests, even if they run as another user.
        command.env("ECAPTURE_CACHE_DIR", cache::dir()?);
        // Live tests bring their own load; more at once than processors only makes them slow.
        let threads = thread::available_parallelism()
            .map_or(2, usize::from)
            .clamp(2, 4);
        command.env("RUST_TEST_THREADS", threads.to_string());
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
    run::visibly(&mut command)
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
        .chain(
            standalone::Program::ALL
                .iter()
                .map(|program| program.source()),
        )
        .collect();
    sources.push(bench::load_source());
    let wrong = run::output(Command::new(gofmt).arg("-l").args(sources))?;
    if !wrong.is_empty() {
        bail!("not formatted by gofmt:\n{wrong}");
    }
    Ok(())
}

/// What has been run, how long it took, and whether it passed.
#[derive(Default)]
struct Stages(Vec<(&'static str, Duration, bool)>);

impl Stages {
    fn run(&mut self, name: &'static str, stage: impl FnOnce() -> Result<()>) {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = stage();
        if let Err(error) = &result {
            eprintln!("{name}: {error:#}");
        }
        let took = start.elapsed();
        eprintln!(
            "== {name}: {}, {:.1} s",
            verdict(result.is_ok()),
            took.as_secs_f64()
        );
        self.0.push((name, took, result.is_ok()));
    }

    fn all_passed(&self) -> bool {
        self.0.iter().all(|(_, _, passed)| *passed)
    }

    fn summary(self) -> Result<()> {
        println!("\nSummary");
        for (name, took, passed) in &self.0 {
            println!(
                "  {name:<20} {:>7.1} s  {}",
                took.as_secs_f64(),
                verdict(*passed)
            );
        }
        let total: Duration = self.0.iter().map(|(_, took, _)| *took).sum();
        println!("  {:<20} {:>7.1} s", "total", total.as_secs_f64());
        let failed: Vec<_> = self
            .0
            .iter()
            .filter(|(_, _, passed)| !passed)
            .map(|(name, _, _)| *name)
            .collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

const fn verdict(passed: bool) -> &'static str {
    if passed { "passed" } else { "FAILED" }
}
