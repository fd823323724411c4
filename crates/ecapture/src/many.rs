//! `ecapture gotls` without a target, or with several: all programs that are meant, now and later.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use capture::{Filters, Options, ProbeSet, Process, Selection, SetOptions, Taking};

use crate::args::{GotlsArgs, Mode};
use crate::failure::Failure;
use crate::gotls::check_privileges;
use crate::log;
use crate::outputs::Outputs;
use crate::places::{KnownPlaces, Places};
use crate::programs::{Programs, Take};
use crate::recorder::{Context, now_ns};
use crate::session::{DebugLog, Session};
use crate::supervise::Signals;
use crate::watch::Watch;

/// For so many milliseconds nobody minds if a program that has never been seen starts later.
const LONGEST_HOLD_MS: u32 = 250;

/// Runs the command.
pub(crate) fn run(args: &GotlsArgs, mode: Mode, log: DebugLog) -> Result<(), Failure> {
    // A process that isn't there will not come either.
    let open = |&pid| Process::open_to_capture(pid);
    let targets = args.selectors.pids.iter().map(open);
    let targets = targets.collect::<Result<Vec<_>, _>>()?;
    let take = match mode {
        Mode::Text | Mode::Plain => Take::Plaintext(args.read_site.into()),
        Mode::Keylog => Take::Keys,
        Mode::Pcap => {
            return Err(Failure::WrongInput(anyhow!(
                "pcap mode captures one program: give --elfpath PATH or --pid N, once and alone (or \
                 with --uid), or use keylog mode beside another program that captures packets"
            )));
        }
    };
    check_privileges(mode)?;
    let outputs = Outputs::open(&args.output, mode, args.record.as_deref(), true)?;
    let signals = Signals::catch()
        .context("catching signals")
        .map_err(Failure::Runtime)?;
    let known = KnownPlaces::default();
    let watch = watch(args, take, known.clone())?;
    let session = Session {
        targets: &targets,
        after_targets: Duration::ZERO,
        duration: args.duration,
        description: watch.describe(),
        signals,
        log,
        path: None,
    };
    let pipeline = outputs.begin(&args.output, &context(args, mode))?;
    let pipeline = pipeline.with_places(Places::new(known));
    match session.run(watch, pipeline)? {
        Some(outcome) => outcome.conclude(),
        None => Ok(()),
    }
}

/// What recordings and packets say of the capture. There is no one executable.
fn context(args: &GotlsArgs, mode: Mode) -> Context {
    let path = args.selectors.executables.first();
    Context {
        application: concat!("ecapture ", env!("CARGO_PKG_VERSION")).into(),
        hardware: std::env::consts::ARCH.into(),
        os: capture::operating_system(),
        mode,
        executable: path.map_or_else(String::new, |path| path.display().to_string()),
        go_version: String::new(),
        architecture: String::new(),
        pid: None,
        uid: None,
        bytes_per_call: args.tsize.filter(|&bytes| bytes > 0),
        started_ns: now_ns(),
        interfaces: Vec::new(),
    }
}

fn watch(args: &GotlsArgs, take: Take, places: KnownPlaces) -> Result<Watch, Failure> {
    let set = SetOptions {
        options: Options {
            filters: Filters::default(),
            bytes_per_call: args.tsize.filter(|&bytes| bytes > 0),
            goroutines: args.tell_goroutines(),
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
    let programs = Programs::new(probes, args.selectors.clone(), take, places, log::line)
        .context("waiting for processes")
        .map_err(Failure::Runtime)?;
    let longest_hold = args.longest_hold.unwrap_or(LONGEST_HOLD_MS);
    Watch::start(programs, longest_hold, log::line)
}
