//! What capturing costs us: how much one processor keeps up with, and how much memory it takes.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::Bench;
use super::chart::{Chart, Series};
use super::exchange::{Sample, Work, accounted_for, number};
use super::messages::bytes;
use super::mode::{Memory, Mode, PATIENCE};
use super::report::{Findings, Table, with_extremes};
use super::stats::Rounds;

pub(super) fn measure(bench: &Bench) -> Result<Findings> {
    let mut findings = Findings::default();
    full_load(bench, &mut findings)?;
    capacity(bench, &mut findings)?;
    memory(bench, &mut findings)?;
    Ok(findings)
}

/// Connections that together use all that two processors have.
const BUSY_CONNECTIONS: u32 = 4;

/// Ping-pong on several connections: no processor has time left, and the consumer competes for one.
fn full_load(bench: &Bench, findings: &mut Findings) -> Result<()> {
    findings.part(
        "Full load",
        &format!(
            "Ping-pong on {BUSY_CONNECTIONS} connections at once, so that the program would use all of two \
             processors, and the consumer has to compete for its share. The buffer has its default size, \
             32 MiB."
        ),
    );
    let sizes = [(100, 15_000), (16 << 10, 4_000)];
    let modes = [Mode::Text, Mode::Json, Mode::Reference];
    let mut table = Table::new(&[
        "messages",
        "mode",
        "events/s",
        "events",
        "lost",
        "consumer, % of a processor",
        "consumer, ns/event",
    ]);
    let mut lost_by_us = 0;
    for (size, count) in sizes {
        let work = Work {
            conns: BUSY_CONNECTIONS,
            ..Work::pingpong(size, bench.scaled(count))
        };
        let what = format!("full load of {}", bytes(size));
        let rounds = Rounds::measure(&modes, bench.runs, &what, |mode| {
            Sample::measure(&bench.programs, work, mode)
        })?;
        for mode in modes {
            let samples = rounds.of(mode);
            let events: u64 = samples.iter().map(|sample| sample.counts.events).sum();
            let lost: u64 = samples.iter().map(|sample| sample.counts.lost_events).sum();
            if mode.has_plaintext() {
                lost_by_us += lost;
            }
            let share = rounds.spread(mode, |sample| sample.consumer / sample.total)?;
            table.row([
                bytes(size),
                mode.name().into(),
                with_extremes(rounds.spread(mode, Sample::events_per_second)?, 0),
                events.to_string(),
                lost.to_string(),
                format!("{:.1}", share.median * 100.0),
                with_extremes(rounds.spread(mode, Sample::consumer_per_event)?, 0),
            ]);
        }
    }
    findings.table(&table);
    findings.at_most(
        "full ping-pong load, text and JSON, default buffer: events lost",
        lost_by_us as f64,
        0.0,
        "",
    );
    Ok(())
}

/// A format of the output, and what the messages hold.
type Kind = (Mode, &'static str);

const KINDS: [Kind; 4] = [
    (Mode::Text, "text"),
    (Mode::Text, "binary"),
    (Mode::Json, "text"),
    (Mode::Json, "binary"),
];

/// Sizes of messages, and as many round trips as the largest buffer used here has room for.
const BACKLOGS: [(u32, u32); 3] = [(100, 100_000), (4 << 10, 12_000), (16 << 10, 3_000)];

/// A buffer that holds a whole measurement, in KiB.
const BACKLOG_KIB: &str = "262144";

/// What the consumer took for a buffer full of events.
struct Backlog {
    events: f64,
    bytes: f64,
    /// CPU time, in seconds.
    seconds: f64,
}

fn capacity(bench: &Bench, findings: &mut Findings) -> Result<()> {
    findings.part(
        "What one processor keeps up with",
        "ecapture is stopped while the program fills a buffer of 256 MiB, then goes on: events and payload \
         for each second of CPU time that the consumer uses until the buffer is empty, formatted and \
         written to /dev/null. Nothing is lost. Binary payload is random bytes, which text mode has to \
         escape one by one.",
    );
    let mut table = Table::new(&[
        "messages", "payload", "output", "events/s", "MB/s", "ns/event",
    ]);
    let mut measured = Vec::new();
    for (size, count) in BACKLOGS {
        let what = format!("backlog of {}", bytes(size));
        let rounds = Rounds::measure(&KINDS, bench.few_runs(), &what, |(mode, payload)| {
            let work = Work {
                payload,
                ..Work::pingpong(size, bench.scaled(count))
            };
            backlog(bench, work, mode)
        })?;
        for (mode, payload) in KINDS {
            let kind = (mode, payload);
            table.row([
                bytes(size),
                payload.into(),
                mode.name().into(),
                with_extremes(rounds.spread(kind, |b| b.events / b.seconds)?, 0),
                with_extremes(rounds.spread(kind, |b| b.bytes / 1e6 / b.seconds)?, 0),
                with_extremes(rounds.spread(kind, |b| b.seconds * 1e9 / b.events)?, 0),
            ]);
        }
        measured.push((size, rounds));
    }
    findings.table(&table);
    let mut series = Vec::new();
    for (kind, colour) in KINDS.into_iter().zip([
        Mode::Text.colour(),
        (0xa6, 0xc8, 0xe0),
        Mode::Json.colour(),
        (0xa2, 0xd6, 0xd0),
    ]) {
        let mut values = Vec::new();
        for (_, rounds) in &measured {
            values.push(Some(rounds.spread(kind, |b| b.bytes / 1e6 / b.seconds)?));
        }
        series.push(Series {
            name: format!("{}, {} payload", kind.0.name(), kind.1),
            colour,
            values,
        });
    }
    findings.chart(
        "capacity.svg",
        &Chart {
            title: "Payload that one processor keeps up with".into(),
            axis: "MB/s".into(),
            groups: measured.iter().map(|(size, _)| bytes(*size)).collect(),
            series,
            digits: 0,
        },
    )
}

fn backlog(bench: &Bench, work: Work, mode: Mode) -> Result<Backlog> {
    let mut target = work.spawn(&bench.programs)?;
    let arguments = ["--mapsize", BACKLOG_KIB];
    let mut capture = mode.attach(&bench.programs, target.pid(), &arguments)?;
    capture.signal(Signal::STOP)?;
    let before = capture.consumer_ns()?;
    let result = work.perform(&mut target)?;
    capture.signal(Signal::CONT)?;
    let consumer = capture.settled_consumer_ns()? - before;
    target.finish(PATIENCE)?.success()?;
    let counts = capture.finish()?;
    accounted_for(&counts, number(&result, "bytes")? as u64, mode)?;
    ensure!(
        counts.lost_events == 0,
        "the buffer was meant to hold everything: {counts:?}"
    );
    Ok(Backlog {
        events: counts.events as f64,
        bytes: counts.bytes as f64,
        seconds: consumer as f64 / 1e9,
    })
}

fn memory(bench: &Bench, findings: &mut Findings) -> Result<()> {
    findings.part(
        "Memory",
        "After a ping-pong of 100 B on one connection, with the default buffer of 32 MiB. The buffer is \
         mapped twice in a row, so that no event is cut in two: resident memory counts it twice, \
         proportional memory once. Pcap mode has a second buffer of 1 MiB, for keys.",
    );
    let mut table = Table::new(&["mode", "peak resident, MB", "proportional, MB"]);
    let work = Work::pingpong(100, bench.scaled(20_000));
    for mode in [Mode::Text, Mode::Json, Mode::Keylog, Mode::Pcap] {
        let mut target = work.spawn(&bench.programs)?;
        let capture = mode.attach(&bench.programs, target.pid(), &[])?;
        work.perform(&mut target)?;
        capture.settled_consumer_ns()?;
        let Memory { peak, proportional } = capture.memory().context(mode.name())?;
        target.finish(PATIENCE)?.success()?;
        capture.finish()?;
        table.row([
            mode.name().into(),
            format!("{peak:.1}"),
            format!("{proportional:.1}"),
        ]);
    }
    findings.table(&table);
    Ok(())
}
