//! `ecapture`: shows what Go programs say over TLS, on a live Linux machine.
//!
//! This binary is the command line and the wiring: `args` is what was typed, `gotls` and `inspect` are
//! the commands, `text_mode` and `keylog_mode` what `gotls` can show. `session` runs one capture:
//! `consume` carries records to an output, `supervise` waits for the end. Paths, colours, exit codes
//! and signals live here and nowhere else.
#![forbid(unsafe_code)]

mod args;
mod consume;
mod failure;
mod gotls;
mod inspect;
mod keylog_mode;
mod output;
mod session;
mod supervise;
mod text_mode;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let result = match args::Args::parse().command {
        args::Command::Gotls(args) => gotls::run(&args),
        args::Command::Inspect(args) => inspect::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
