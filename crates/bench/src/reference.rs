//! The usual design of programs that capture TLS plaintext, as far as it concerns cost: its records are
//! only counted, neither decoded nor written.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gobin::{Abi, Analysis, FileOffset, Function, Location, ReadProbe, ReadSitePreference};
use libbpf_rs::PerfBufferBuilder;

use crate::programs::{Attachment, Programs, ReadArguments};
use crate::{Target, wait_for_end_of_input};

/// Pages of each CPU's buffer: 4 MiB.
const PAGES: usize = 1024;

/// How soon the end is noticed.
const POLL: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Counts {
    records: Cell<u64>,
    lost: Cell<u64>,
}

/// Captures until the end of our input, and prints how much there was.
pub(crate) fn run(target: &Target) -> Result<()> {
    let analysis = target.analyze()?;
    if analysis.abi != Abi::Register {
        bail!("the reference is for Go's register ABI only");
    }
    let (returns, arguments) = read_returns(&analysis)?;
    let names = ["write_entry", "read_return"];
    let mut programs = Programs::load(&names, Some(arguments), Attachment::Perf)?;
    programs.attach("read_return", target, &returns)?;
    programs.attach("write_entry", target, &[write_entry(&analysis)?])?;
    eprintln!("attached: {} probes", returns.len() + 1);

    let ended = AtomicBool::new(false);
    let (records, lost) = thread::scope(|scope| {
        let consumer = thread::Builder::new()
            .name("consumer".into())
            .spawn_scoped(scope, || count_records(&programs, &ended))?;
        let waited = wait_for_end_of_input();
        ended.store(true, Ordering::Relaxed);
        let counted = consumer.join();
        waited?;
        counted.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    eprintln!("summary: {records} events; lost: {lost} events");
    Ok(())
}

fn count_records(programs: &Programs, ended: &AtomicBool) -> Result<(u64, u64)> {
    let counts = Counts::default();
    let events = programs.map("events")?;
    let buffer = PerfBufferBuilder::new(&events)
        .pages(PAGES)
        .sample_cb(|_cpu, _record: &[u8]| counts.records.set(counts.records.get() + 1))
        .lost_cb(|_cpu, lost| counts.lost.set(counts.lost.get() + lost))
        .build()?;
    while !ended.load(Ordering::Relaxed) {
        buffer.poll(POLL)?;
    }
    buffer.consume()?;
    Ok((counts.records.get(), counts.lost.get()))
}

fn write_entry(analysis: &Analysis) -> Result<FileOffset> {
    let report = analysis
        .crypto_tls
        .function(Function::WriteRecordLocked)
        .context("no report on writeRecordLocked")?;
    Ok(report.code.as_ref().map_err(Clone::clone)?.offset)
}

fn read_returns(analysis: &Analysis) -> Result<(Vec<FileOffset>, ReadArguments)> {
    let plan = analysis.crypto_tls.plan(ReadSitePreference::Returns)?;
    match plan.read {
        ReadProbe::Returns {
            sites,
            buffer: Location::Stack(buffer),
            capacity: Location::Stack(capacity),
            ..
        } => Ok((
            sites.iter().map(|site| site.offset).collect(),
            ReadArguments { buffer, capacity },
        )),
        other => bail!("the returns of Read have their arguments elsewhere: {other:?}"),
    }
}
