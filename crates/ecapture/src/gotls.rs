//! `ecapture gotls`: from the command line to a running capture, and to its summary.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use capture::{Executable, Filters, Options, Probes, Process};
use gobin::{Analysis, ProbePlan};
use trace::escape_name;

use crate::args::{Format, GotlsArgs};
use crate::consume::{Outcome, consume};
use crate::failure::Failure;
use crate::output::StdoutSink;
use crate::supervise::{End, Signals, wait_for_consumer, wait_for_end};

/// How long the output may block at the end before we leave without having written everything.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the command.
pub(crate) fn run(args: &GotlsArgs) -> Result<(), Failure> {
    if args.hex && args.format == Format::Json {
        let error = anyhow!("--hex is for text; JSON lines carry payloads in base64");
        return Err(Failure::WrongInput(error));
    }
    capture::set_debug(args.debug);
    let started = Instant::now();
    let debug = |what: &str| {
        if args.debug {
            eprintln!("{:>9.3} ms  {what}", started.elapsed().as_secs_f64() * 1e3);
        }
    };

    let process = args.pid.map(Process::open).transpose()?;
    let executable = open_executable(args.elfpath.as_deref(), process.as_ref())?;
    let wrong_executable = |error| Failure::executable(executable.name(), error);
    let analysis = gobin::analyze(&executable.map()?).map_err(wrong_executable)?;
    let plan = analysis
        .plan(args.read_site.into())
        .map_err(wrong_executable)?;
    debug("executable analysed");

    let sink = StdoutSink::new(args)
        .context("standard output")
        .map_err(Failure::Runtime)?;
    let mut signals = Signals::catch()
        .context("catching signals")
        .map_err(Failure::Runtime)?;
    let options = Options {
        filters: Filters {
            pid: args.pid,
            uid: args.uid,
        },
        bytes_per_call: (args.tsize > 0).then_some(args.tsize),
        ring_kib: args.mapsize,
    };
    let mut probes = Probes::attach(&executable, &plan, &options)?;
    let reader = probes.reader()?;
    let stop = reader.stop_switch();
    debug("probes attached");
    eprintln!(
        "{}",
        attached(&executable, &analysis, &plan, &probes, args.pid)
    );

    // The other end of `alive` becomes readable when the consumer's thread ends, however it does.
    let (alive, consumer_alive) = UnixStream::pair()
        .context("socket pair")
        .map_err(Failure::Runtime)?;
    let consumer = thread::Builder::new()
        .name("consumer".into())
        .spawn(move || {
            let _alive = consumer_alive;
            consume(reader, sink)
        })
        .context("starting a thread")
        .map_err(Failure::Runtime)?;

    let target = process.as_ref().map(AsFd::as_fd);
    let end = wait_for_end(&mut signals, target, alive.as_fd(), args.duration)
        .context("waiting")
        .map_err(Failure::Runtime)?;
    probes.detach();
    stop.stop();
    let written = wait_for_consumer(&signals, alive.as_fd(), PATIENCE)
        .context("waiting")
        .map_err(Failure::Runtime)?;
    if !written {
        if end == End::OutputClosed {
            return Ok(());
        }
        // The thread is blocked in a write: nothing can be had from it.
        let error = anyhow!("standard output is blocked: what was captured last was not written");
        return Err(Failure::Runtime(error));
    }
    let (outcome, result) = consumer
        .join()
        .map_err(|_| Failure::Runtime(anyhow!("the consumer thread panicked")))?;
    eprintln!("{}", summary(&outcome));
    if end == End::TargetEnded && args.debug {
        debug("the target has ended");
    }
    result.or_else(Failure::output)
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

/// The line that says that everything is in place.
fn attached(
    executable: &Executable,
    analysis: &Analysis,
    plan: &ProbePlan,
    probes: &Probes,
    pid: Option<u32>,
) -> String {
    let name = executable.name().as_os_str().as_encoded_bytes();
    let whom = match pid {
        Some(pid) => format!("process {pid}, {}", escape_name(name)),
        None => escape_name(name).into_owned(),
    };
    format!(
        "attached to {whom} ({}, {}, {} ABI): {} probes; Ctrl-C ends",
        analysis.go_version(),
        plan.arch,
        plan.abi,
        probes.sites(),
    )
}

/// The closing line.
fn summary(outcome: &Outcome) -> String {
    let Outcome {
        totals,
        counters,
        undecodable,
    } = outcome;
    let mut summary = format!(
        "summary: {} events, {} bytes on {} connections; lost: {} events, {} bytes; \
         unreadable: {} events, {} bytes",
        totals.records,
        totals.bytes,
        totals.connections,
        counters.lost_records,
        counters.lost_bytes,
        counters.unreadable_records,
        counters.unreadable_bytes,
    );
    if counters.too_long_bytes > 0 {
        summary += &format!("; too long to copy: {} bytes", counters.too_long_bytes);
    }
    if counters.unknown_calls > 0 {
        summary += &format!(
            "; calls with unreadable arguments: {}",
            counters.unknown_calls
        );
    }
    if *undecodable > 0 {
        summary += &format!("; undecodable (a defect, please report): {undecodable}");
    }
    if counters.lost_records > 0 {
        summary += "; a larger buffer (--mapsize) loses less";
    }
    summary
}
