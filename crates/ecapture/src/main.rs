//! `ecapture`: shows what Go programs say over TLS, on a live Linux machine.
//!
//! This binary is the command line and the wiring: `args` is what was typed, `gotls`, `inspect` and
//! `replay` the commands, `text_mode`, `plain_mode`, `keylog_mode` and `pcap_mode` what can be made of records.
//! `session` runs one capture: `consume` carries records to the `pipeline` of `outputs`, `supervise` waits for the
//! end. Paths, colours, exit codes and signals live here and nowhere else. `many` captures from
//! many programs at once: `watch` waits for them to start, `programs` knows which are captured.
#![forbid(unsafe_code)]

mod args;
mod consume;
mod container;
mod decoding;
mod destinations;
mod doctor;
mod event_output;
mod failure;
mod generate;
mod gotls;
mod har_file;
mod inspect;
mod keylog_mode;
mod list;
mod log;
mod many;
mod missed;
mod output;
mod outputs;
mod parts;
mod pcap_mode;
mod pipeline;
mod places;
mod plain_mode;
mod programs;
mod recorder;
mod replay;
mod secret_file;
mod selectors;
mod session;
mod supervise;
mod text_mode;
mod users;
mod watch;

use std::process::ExitCode;

fn main() -> ExitCode {
    capture::look_names_up_without_plugins();
    let result = match args::Args::of_command_line().command {
        args::Command::Gotls(args) => gotls::run(&args),
        args::Command::Replay(args) => replay::run(&args),
        args::Command::Inspect(args) => inspect::run(&args),
        args::Command::Doctor(args) => doctor::run(&args),
        args::Command::List(args) => list::run(&args),
        args::Command::Generate(what) => generate::run(&what),
        args::Command::ExecGate { milliseconds } => watch::guard(milliseconds),
    };
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    };
    log::finish();
    code
}
