//! `ecapture gotls` without a target, or with several: all programs that are meant, now and later.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use capture::{Filters, Options, ProbeSet, Process, Selection, SetOptions, Taking};

use crate::args::{GotlsArgs, Mode};
use crate::failure::Failure;
use crate::gotls::written;
use crate::keylog_mode::{self, Keys};
use crate::output::StdoutSink;
use crate::programs::{Programs, Take};
use crate::session::{DebugLog, Session, print_summary};
use crate::supervise::Signals;
use crate::text_mode::{self, Plaintext};
use crate::watch::Watch;

/// Runs the command.
pub(crate) fn run(args: &GotlsArgs, log: DebugLog) -> Result<(), Failure> {
    // A process that isn't there will not come either.
    for &pid in &args.selectors.pids {
        Process::open(pid)?;
    }
    match args.model {
        Mode::Text => {
            let sink = StdoutSink::new(args)
                .context("standard output")
                .map_err(Failure::Runtime)?;
            let signals = catch()?;
            let watch = watch(args, Take::Plaintext(args.read_site.into()))?;
            let session = session(args, &watch, signals, log);
            let Some(outcome) = session.run(watch, Plaintext::new(sink))? else {
                return Ok(());
            };
            print_summary(&outcome, &text_mode::summary(&outcome));
            written(outcome)
        }
        Mode::Keylog => {
            let path = args.keylogfile.as_deref();
            let keys = Keys::open(path.unwrap_or(Path::new(keylog_mode::DEFAULT_FILE)))?;
            let signals = catch()?;
            let watch = watch(args, Take::Keys)?;
            let session = session(args, &watch, signals, log);
            let Some(outcome) = session.run(watch, keys)? else {
                return Ok(());
            };
            print_summary(&outcome, &keylog_mode::summary(&outcome));
            written(outcome)
        }
        Mode::Pcap => Err(Failure::WrongInput(anyhow!(
            "pcap mode captures one program: give --elfpath PATH or --pid N, once and alone (or \
             with --uid), or use keylog mode beside another program that captures packets"
        ))),
    }
}

fn watch(args: &GotlsArgs, take: Take) -> Result<Watch, Failure> {
    let set = SetOptions {
        options: Options {
            filters: Filters::default(),
            bytes_per_call: args.tsize.filter(|&bytes| bytes > 0),
            ring_kib: args.mapsize,
            uprobes: args.uprobes.into(),
        },
        taking: match take {
            Take::Plaintext(_) => Taking::Plaintext,
            Take::Keys => Taking::Keys,
        },
        selection: if args.selectors.are_about_processes() {
            Selection::WantedProcesses
        } else {
            Selection::EveryProcess
        },
        objects: args.objects.into(),
    };
    let probes = ProbeSet::new(&set)?;
    let programs = Programs::new(probes, args.selectors.clone(), take, say)
        .context("waiting for processes")
        .map_err(Failure::Runtime)?;
    Watch::start(programs, say)
}

fn catch() -> Result<Signals, Failure> {
    // Stopped, we would hold up every program that starts.
    signal_hook::flag::register(signal_hook::consts::SIGTSTP, Arc::default())
        .context("catching signals")
        .map_err(Failure::Runtime)?;
    Signals::catch()
        .context("catching signals")
        .map_err(Failure::Runtime)
}

fn session(args: &GotlsArgs, watch: &Watch, signals: Signals, log: DebugLog) -> Session<'static> {
    Session {
        process: None,
        after_target: Duration::ZERO,
        duration: args.duration,
        description: watch.describe(),
        signals,
        log,
    }
}

fn say(line: &str) {
    eprintln!("{line}");
}
