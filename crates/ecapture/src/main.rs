//! `ecapture`: shows what Go programs say over TLS, on a live Linux machine.
//!
//! This binary is the command line and the wiring: `args` is what was typed, `gotls` and `inspect` are
//! the commands, `text_mode`, `keylog_mode` and `pcap_mode` what `gotls` can show. `session` runs one capture:
//! `consume` carries records to an output, `supervise` waits for the end. Paths, colours, exit codes
//! and signals live here and nowhere else. `many` captures from many programs at once: `watch` waits for
//! them to start, `programs` knows which are captured.
#![forbid(unsafe_code)]

mod args;
mod consume;
mod container;
mod doctor;
mod failure;
mod gotls;
mod inspect;
mod keylog_mode;
mod list;
mod many;
mod output;
mod pcap_mode;
mod programs;
mod secret_file;
mod selectors;
mod session;
mod supervise;
mod text_mode;
mod users;
mod watch;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let result = match args::Args::parse().command {
        args::Command::Gotls(args) => gotls::run(&args),
        args::Command::Inspect(args) => inspect::run(&args),
        args::Command::Doctor(args) => doctor::run(&args),
        args::Command::List(args) => list::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
