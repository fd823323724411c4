//! What being captured costs a program: round trips and throughput of messages of several sizes.

use anyhow::Result;

use super::Bench;
use super::chart::Chart;
use super::exchange::{Sample, Work};
use super::mode::Mode;
use super::report::{Findings, Table, with_extremes};
use super::stats::Rounds;

const MODES: [Mode; 7] = [
    Mode::Unprobed,
    Mode::Floor,
    Mode::Text,
    Mode::Json,
    Mode::Keylog,
    Mode::Pcap,
    Mode::Reference,
];

/// Modes that are compared in throughput: keys are logged before the first message.
const STREAM_MODES: [Mode; 6] = [
    Mode::Unprobed,
    Mode::Floor,
    Mode::Text,
    Mode::Json,
    Mode::Pcap,
    Mode::Reference,
];

/// Bytes of a message, and how many round trips take about half a second.
const ROUND_TRIPS: [(u32, u32); 4] = [
    (100, 20_000),
    (4 << 10, 16_000),
    (16 << 10, 8_000),
    (256 << 10, 800),
];

/// A full record of TLS, for whose throughput there is a target.
const LARGE: u32 = 16 << 10;

/// The same one way.
const MESSAGES: [(u32, u32); 3] = [(4 << 10, 120_000), (LARGE, 60_000), (256 << 10, 5_000)];

type Measured = Rounds<Mode, Sample>;

pub(super) fn measure(bench: &Bench) -> Result<Findings> {
    let mut findings = Findings::default();
    round_trips(bench, &mut findings)?;
    throughput(bench, &mut findings)?;
    Ok(findings)
}

fn round_trips(bench: &Bench, findings: &mut Findings) -> Result<()> {
    findings.part(
        "Round trips",
        "A message there and back on one connection, both ends in the captured process: two writes and two \
         reads. Median (lowest–highest). CPU is that of the captured process, probes included. The \
         consumer is the thread that takes the records and writes the output; of pcap mode an event is a \
         packet.",
    );
    let mut measured = Vec::new();
    for (size, count) in ROUND_TRIPS {
        let what = format!("round trips of {}", bytes(size));
        let work = Work::pingpong(size, bench.scaled(count));
        let rounds = Rounds::measure(&MODES, bench.runs, &what, |mode| {
            Sample::measure(&bench.programs, work, mode)
        })?;
        findings.paragraph(&format!("**{}**", bytes(size)));
        findings.table(&round_trip_table(&rounds)?);
        measured.push((size, rounds));
    }
    findings.chart(
        "round-trip.svg",
        &Chart::over_unprobed(
            "Round trip, as a multiple of the unprobed one",
            &measured,
            bytes,
            |sample| sample.wall,
        )?,
    )?;
    findings.chart(
        "cpu.svg",
        &Chart::over_unprobed(
            "CPU time of the captured process, as a multiple of the unprobed one",
            &measured,
            bytes,
            |sample| sample.cpu,
        )?,
    )?;
    for (size, rounds) in &measured {
        if *size == 100 {
            check_small_messages(rounds, findings)?;
        }
    }
    Ok(())
}

fn round_trip_table(rounds: &Measured) -> Result<Table> {
    let mut table = Table::new(&[
        "mode",
        "round trip, µs",
        "× unprobed",
        "× floor",
        "CPU, µs",
        "events",
        "lost",
        "consumer, ns/event",
    ]);
    let unprobed = rounds.spread(Mode::Unprobed, |sample| sample.wall)?.median;
    let floor = rounds.spread(Mode::Floor, |sample| sample.wall)?.median;
    for mode in rounds.kinds() {
        let wall = rounds.spread(mode, |sample| sample.wall)?;
        let cpu = rounds.spread(mode, |sample| sample.cpu)?;
        let mut row = vec![
            mode.name().to_owned(),
            with_extremes(wall.over(1e3), 1),
            format!("{:.2}", wall.median / unprobed),
            format!("{:.2}", wall.median / floor),
            with_extremes(cpu.over(1e3), 1),
        ];
        row.extend(counts(rounds, mode)?);
        table.row(row);
    }
    Ok(table)
}

/// Events, lost ones, and what the consumer took for each: blank where nothing is consumed.
fn counts(rounds: &Measured, mode: Mode) -> Result<[String; 3]> {
    let total = |count: fn(&Sample) -> u64| rounds.of(mode).iter().map(count).sum::<u64>();
    let events = total(|sample| sample.counts.events);
    if matches!(mode, Mode::Unprobed | Mode::Floor) {
        return Ok(["–".into(), "–".into(), "–".into()]);
    }
    let each = match mode {
        Mode::Keylog => "–".into(), // A handful of keys tells nothing.
        _ => with_extremes(rounds.spread(mode, Sample::consumer_per_event)?, 0),
    };
    let lost = total(|sample| sample.counts.lost_events);
    Ok([events.to_string(), lost.to_string(), each])
}

fn check_small_messages(rounds: &Measured, findings: &mut Findings) -> Result<()> {
    let wall = |mode| Ok::<_, anyhow::Error>(rounds.spread(mode, |sample| sample.wall)?.median);
    let (unprobed, text, reference) = (
        wall(Mode::Unprobed)?,
        wall(Mode::Text)?,
        wall(Mode::Reference)?,
    );
    findings.at_most(
        "100 B, text: round trip, compared with the floor",
        text / wall(Mode::Floor)?,
        1.25,
        "×",
    );
    findings.at_most(
        "100 B, text: what is added to the round trip, compared with what the reference adds",
        (text - unprobed) / (reference - unprobed),
        0.12,
        "×",
    );
    let each = |mode| {
        let spread = rounds.spread(mode, Sample::consumer_per_event)?;
        Ok::<_, anyhow::Error>(spread.median)
    };
    for mode in [Mode::Text, Mode::Json] {
        findings.at_most(
            &format!(
                "100 B, {}: CPU time of the consumer for an event, compared with the reference's",
                mode.name()
            ),
            each(mode)? / each(Mode::Reference)?,
            1.0 / 3.0,
            "×",
        );
    }
    Ok(())
}

fn throughput(bench: &Bench, findings: &mut Findings) -> Result<()> {
    findings.part(
        "Throughput",
        "Messages one way on one connection, as fast as it can; read into a buffer of 64 KiB.",
    );
    findings.paragraph(
        "Both ends in the captured process: each byte is captured twice, when written and when read.",
    );
    let mut measured = Vec::new();
    for (size, count) in MESSAGES {
        let rounds = stream(bench, findings, Work::stream(size, bench.scaled(count)))?;
        measured.push((size, rounds));
    }
    // Time for a message: its inverse is the throughput.
    let chart = Chart::over_unprobed(
        "Throughput, as a fraction of the unprobed one",
        &measured,
        bytes,
        |sample| 1.0 / sample.wall,
    )?;
    findings.chart("throughput.svg", &chart)?;

    findings.paragraph(
        "From the captured process to another one, which is not captured: each byte is captured once.",
    );
    stream(bench, findings, Work::upload(LARGE, bench.scaled(60_000)))?;
    Ok(())
}

/// Messages one way, in each mode.
fn stream(bench: &Bench, findings: &mut Findings, work: Work) -> Result<Measured> {
    let (both_ends, size) = (work.role == "stream", work.size);
    let ends = if both_ends { "both ends" } else { "one end" };
    let what = format!("messages of {}, {ends} captured", bytes(size));
    let rounds = Rounds::measure(&STREAM_MODES, bench.runs, &what, |mode| {
        Sample::measure(&bench.programs, work, mode)
    })?;
    let rate = |sample: &Sample| f64::from(size) * 1e3 / sample.wall;
    let median = |mode| Ok::<_, anyhow::Error>(rounds.spread(mode, rate)?.median);
    let (unprobed, floor) = (median(Mode::Unprobed)?, median(Mode::Floor)?);
    let mut table = Table::new(&[
        "mode",
        "MB/s",
        "× unprobed",
        "× floor",
        "events",
        "lost",
        "consumer, ns/event",
    ]);
    for mode in rounds.kinds() {
        let spread = rounds.spread(mode, rate)?;
        let mut row = vec![
            mode.name().to_owned(),
            with_extremes(spread, 0),
            format!("{:.2}", spread.median / unprobed),
            format!("{:.2}", spread.median / floor),
        ];
        row.extend(counts(&rounds, mode)?);
        table.row(row);
    }
    findings.paragraph(&format!("**{}**", bytes(size)));
    findings.table(&table);
    if size == LARGE {
        findings.at_least(
            &format!("16 KiB, text, {ends} captured: throughput, compared with the unprobed one"),
            median(Mode::Text)? / unprobed,
            0.85,
            "×",
        );
    }
    Ok(rounds)
}

/// `100 B`, `4 KiB`.
pub(super) fn bytes(size: u32) -> String {
    if size < 1024 {
        format!("{size} B")
    } else {
        format!("{} KiB", size / 1024)
    }
}
