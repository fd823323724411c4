//! `cargo xtask`: the project's own chores.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::setup::{self, Group};
use xtask::{bench, demo, dist, fuzz, matrix, soak, test, vm};

/// The project's chores. Each does its own set-up: on Debian and Ubuntu it installs what is
/// missing, Go toolchains go to a cache directory (`ECAPTURE_CACHE_DIR`, else
/// ~/.cache/ecapture-dev).
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Capture the traffic of a small Go HTTPS server and client, and show it
    Demo {
        /// How long to capture
        #[arg(long, value_name = "SECONDS", default_value_t = 5)]
        duration: u32,
    },
    /// Run every check and every test
    Test(test::Options),
    /// Measure what capturing costs, and write tables and charts
    Bench(bench::Options),
    /// Capture for a long time: a Markdown table of what was lost and what grew
    Soak(soak::Options),
    /// Look for input that breaks a parser
    Fuzz(fuzz::Options),
    /// Pack a statically linked ecapture for users: a tarball in target/dist
    Dist(dist::Options),
    /// Run the live tests on other kernels, in emulated virtual machines
    Vm(vm::Options),
    /// Install what the tests need, and nothing else
    Setup,
    /// Build the Go test binaries that the cache lacks, and print their directory
    Matrix,
}

fn main() -> ExitCode {
    match run(Args::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not as Debug, which adds a backtrace: these errors are for whoever typed the command.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<()> {
    match chore {
        Chore::Demo { duration } => demo::run(duration),
        Chore::Test(options) => test::run(&options),
        Chore::Bench(options) => bench::run(&options),
        Chore::Soak(options) => soak::run(&options),
        Chore::Fuzz(options) => fuzz::run(&options),
        Chore::Dist(options) => dist::run(&options),
        Chore::Vm(options) => vm::run(&options),
        Chore::Setup => setup::ensure(Group::Test),
        Chore::Matrix => {
            println!("{}", matrix::ensure_all()?.display());
            Ok(())
        }
    }
}
