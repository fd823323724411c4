//! `ecapture gotls`: from the command line to a running capture, and to its summary.

use std::io;
use std::path::Path;

use anyhow::{Context, anyhow};
use capture::{Executable, Filters, Options, Process, Wanted};
use gobin::Analysis;

use crate::args::{Format, GotlsArgs, Mode};
use crate::failure::Failure;
use crate::keylog_mode::{self, Keys};
use crate::output::StdoutSink;
use crate::session::{DebugLog, Session, print_summary};
use crate::text_mode::{self, Plaintext};

/// Runs the command.
pub(crate) fn run(args: &GotlsArgs) -> Result<(), Failure> {
    check_combination(args)?;
    capture::set_debug(args.debug);
    let log = DebugLog::new(args.debug);

    let process = args.pid.map(Process::open).transpose()?;
    let executable = open_executable(args.elfpath.as_deref(), process.as_ref())?;
    let wrong_executable = |error| Failure::executable(executable.name(), error);
    let analysis = gobin::analyze(&executable.map()?).map_err(wrong_executable)?;
    log.say("executable analysed");

    let session = |wanted| Session {
        executable: &executable,
        wanted,
        options: Options {
            filters: Filters {
                pid: args.pid,
                uid: args.uid,
            },
            bytes_per_call: args.tsize.filter(|&bytes| bytes > 0),
            ring_kib: args.mapsize,
        },
        process: process.as_ref(),
        duration: args.duration,
        description: describe(&analysis),
        log,
    };
    match args.model {
        Mode::Text => {
            let plan = analysis
                .plan(args.read_site.into())
                .map_err(wrong_executable)?;
            let sink = StdoutSink::new(args)
                .context("standard output")
                .map_err(Failure::Runtime)?;
            let outcome = session(Wanted::Plaintext(&plan)).run(Plaintext::new(sink))?;
            let Some(outcome) = outcome else {
                return Ok(());
            };
            print_summary(&outcome, &text_mode::summary(&outcome));
            written(outcome.result, "standard output")
        }
        Mode::Keylog => {
            let plan = analysis.key_plan().map_err(wrong_executable)?;
            let path = args.keylogfile.as_deref();
            let keys = Keys::open(path.unwrap_or(Path::new(keylog_mode::DEFAULT_FILE)))?;
            let name = keys.name();
            for note in keylog_mode::notes(&plan) {
                eprintln!("{note}");
            }
            let Some(outcome) = session(Wanted::Keys(&plan)).run(keys)? else {
                return Ok(());
            };
            print_summary(&outcome, &keylog_mode::summary(&outcome));
            written(outcome.result, &name)
        }
    }
}

/// An option that would do nothing is refused.
fn check_combination(args: &GotlsArgs) -> Result<(), Failure> {
    let wrong = |error: &str| Err(Failure::WrongInput(anyhow!("{error}")));
    match args.model {
        Mode::Text => {
            if args.hex && args.format == Some(Format::Json) {
                return wrong("--hex is for text; JSON lines carry payloads in base64");
            }
            if args.keylogfile.is_some() {
                return wrong("--keylogfile is for keylog mode: add -m keylog");
            }
        }
        Mode::Keylog => {
            if args.hex || args.format.is_some() || args.tsize.is_some() {
                return wrong(
                    "--hex, --format and --tsize are for text mode; keylog mode writes keys",
                );
            }
        }
    }
    Ok(())
}

fn open_executable(path: Option<&Path>, process: Option<&Process>) -> Result<Executable, Failure> {
    match (path, process) {
        (Some(path), _) => Ok(Executable::open(path)?),
        (None, Some(process)) => Ok(Executable::of_process(process)?),
        (None, None) => Err(Failure::WrongInput(anyhow!(
            "give --elfpath PATH or --pid N to say which program"
        ))),
    }
}

fn describe(analysis: &Analysis) -> String {
    format!(
        "{}, {}, {} ABI",
        analysis.go_version(),
        analysis.arch,
        analysis.abi
    )
}

/// A reader that went away is no failure: it has seen enough.
fn written(result: io::Result<()>, where_to: &str) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Runtime(
            anyhow::Error::new(error).context(format!("writing to {where_to}")),
        )),
        _ => Ok(()),
    }
}
