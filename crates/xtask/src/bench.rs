//! `cargo xtask bench`: what capturing costs the target, and how fast and small ecapture is. The
//! modes take turns within one run, so that what else the machine does hits all of them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::Signal;

use crate::matrix::{self, GoRelease, Program, Variant};
use crate::process::{Child, Stream};
use crate::setup::{self, Group};
use crate::{big, cargo, run};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// ecapture's default size of the ring buffer, in KiB.
const RING_KIB: u64 = 16 * 1024;

/// How much to measure
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Round trips in one measurement
    #[arg(long, default_value_t = 20_000)]
    pub round_trips: u32,
    /// Bytes in one message
    #[arg(long, default_value_t = 100)]
    pub size: u32,
    /// Measurements of each mode
    #[arg(long, default_value_t = 7)]
    pub repeat: u32,
    /// Leave out start-up and memory on a big executable
    #[arg(long)]
    pub no_big: bool,
}

/// Measures, and prints a Markdown table.
pub fn run(options: &Options) -> Result<()> {
    if !run::is_root() {
        bail!("bench loads eBPF programs and reads their process: run it as root");
    }
    setup::ensure(Group::Demo)?;
    let ecapture = cargo::build_ecapture()?;
    let release = GoRelease::Go1_24;
    let exchange = matrix::binary(release, Variant::Default, Program::Exchange)?;

    let modes = [None, Some("text"), Some("json")];
    let mut samples: [Vec<Sample>; 3] = Default::default();
    for turn in 1..=options.repeat {
        eprintln!("ping-pong: {turn}/{}", options.repeat);
        for (mode, samples) in modes.iter().zip(&mut samples) {
            samples.push(pingpong(&exchange, &ecapture, *mode, options)?);
        }
    }

    println!(
        "\nTLS ping-pong, {} B, Go {release}, output to /dev/null:\n",
        options.size
    );
    println!("| mode | median ns/round trip | min | max | ratio | target CPU ns | events | lost |");
    println!("|---|---|---|---|---|---|---|---|");
    let unprobed = median(samples[0].iter().map(|s| s.wall));
    for (mode, samples) in modes.iter().zip(&samples) {
        let wall = median(samples.iter().map(|s| s.wall));
        let (Some(min), Some(max)) = (
            samples.iter().map(|s| s.wall).min(),
            samples.iter().map(|s| s.wall).max(),
        ) else {
            bail!("--repeat must be at least 1");
        };
        let sum = |count: fn(&Sample) -> Option<u64>| match samples.iter().map(count).sum() {
            Some(sum) => u64::to_string(&sum),
            None => "–".into(),
        };
        println!(
            "| {} | {wall} | {min} | {max} | {:.2} | {} | {} | {} |",
            mode.unwrap_or("unprobed"),
            wall as f64 / unprobed as f64,
            median(samples.iter().map(|s| s.cpu)),
            sum(|sample| sample.events),
            sum(|sample| sample.lost),
        );
    }

    bulk_table(&exchange, &ecapture, options.repeat)?;

    if !options.no_big {
        let big = big::binary(release)?;
        let starts = (0..options.repeat)
            .map(|_| start_up(&ecapture, &big))
            .collect::<Result<Vec<_>>>()?;
        let attached = median(starts.iter().map(|start| start.attached.as_micros() as u64));
        let peak = starts
            .iter()
            .map(|start| start.peak_kib)
            .max()
            .unwrap_or_default();
        println!(
            "\nStart-up on a Go executable of {} MB:\n",
            fs::metadata(&big)?.len() / 1_000_000
        );
        println!(
            "| until attached, median | peak resident memory | of it the ring buffer | the rest |"
        );
        println!("|---|---|---|---|");
        let (peak, ring) = (
            peak as f64 * 1024.0 / 1e6,
            2.0 * RING_KIB as f64 * 1024.0 / 1e6,
        );
        println!(
            "| {:.1} ms | {peak:.1} MB | {ring:.1} MB (mapped twice in a row) | {:.1} MB |",
            attached as f64 / 1e3,
            peak - ring
        );
    }
    Ok(())
}

/// Bulk transfer over `lo`, with and without capturing its packets.
fn bulk_table(exchange: &Path, ecapture: &Path, repeat: u32) -> Result<()> {
    let mut samples: [Vec<Bulk>; 2] = Default::default();
    for turn in 1..=repeat {
        eprintln!("bulk transfer: {turn}/{repeat}");
        for (packets, samples) in [false, true].into_iter().zip(&mut samples) {
            samples.push(bulk(exchange, ecapture, packets)?);
        }
    }
    println!(
        "\nTLS bulk transfer over lo, {BULK_MESSAGES} messages of {BULK_SIZE} B, packets to /dev/null:\n"
    );
    println!("| mode | median MB/s | ratio | packets | lost |");
    println!("|---|---|---|---|---|");
    let rate = |samples: &[Bulk]| median(samples.iter().map(|sample| sample.mb_per_s));
    let plain = rate(&samples[0]);
    println!("| no capture | {plain} | 1.00 | – | – |");
    let captured = rate(&samples[1]);
    let sum = |count: fn(&Bulk) -> u64| samples[1].iter().map(count).sum::<u64>();
    println!(
        "| pcap | {captured} | {:.2} | {} | {} |",
        captured as f64 / plain as f64,
        sum(|sample| sample.packets),
        sum(|sample| sample.lost)
    );
    Ok(())
}

const BULK_MESSAGES: u32 = 20_000;
const BULK_SIZE: u32 = 65_536;

/// One measurement of a bulk transfer.
struct Bulk {
    mb_per_s: u64,
    packets: u64,
    lost: u64,
}

fn bulk(exchange: &Path, ecapture: &Path, packets: bool) -> Result<Bulk> {
    let mut target = Child::spawn(
        Command::new(exchange)
            .arg("-hold")
            .args(["-throughput", &BULK_MESSAGES.to_string()])
            .args(["-size", &BULK_SIZE.to_string()]),
    )?;
    target.wait_for_prefix(Stream::Stdout, PATIENCE, "{\"addr\"")?;
    let capture = if packets {
        let mut command = Command::new(ecapture);
        command.args([
            "gotls",
            "-m",
            "pcap",
            "-w",
            "/dev/null",
            "-i",
            "lo",
            "--pid",
        ]);
        let child = Child::spawn_to(command.arg(target.pid().to_string()), Stdio::null())?;
        child.wait_for_prefix(Stream::Stderr, PATIENCE, "attached")?;
        Some(child)
    } else {
        None
    };
    target.send_line("go")?;
    let result = result_line(
        &target.finish(PATIENCE)?.success()?.stdout_text(),
        "throughput",
    )?;
    let mb_per_s = result["mb_per_s"].as_f64().context("no mb_per_s")? as u64;
    let summary = match capture {
        Some(child) => child.finish(PATIENCE)?.success()?.stderr_text(),
        None => String::new(),
    };
    let summary = summary_line(&summary);
    Ok(Bulk {
        mb_per_s,
        packets: number_after(summary, "summary:").unwrap_or_default(),
        lost: number_after(summary, "lost:").unwrap_or_default(),
    })
}

/// The exchange program's line with the result of this benchmark.
fn result_line(stdout: &str, event: &str) -> Result<serde_json::Value> {
    let event = format!("\"event\":\"{event}\"");
    let line = stdout.lines().find(|line| line.contains(&event));
    let line = line.context("the exchange program printed no result")?;
    Ok(serde_json::from_str(line)?)
}

/// One measurement of a ping-pong. Times are per round trip, in nanoseconds.
struct Sample {
    wall: u64,
    cpu: u64,
    events: Option<u64>,
    lost: Option<u64>,
}

/// The exchange program's ping-pong, unprobed or captured in this output format.
fn pingpong(
    exchange: &Path,
    ecapture: &Path,
    format: Option<&str>,
    options: &Options,
) -> Result<Sample> {
    let mut target = Child::spawn(
        Command::new(exchange)
            .arg("-hold")
            .args(["-pingpong", &options.round_trips.to_string()])
            .args(["-size", &options.size.to_string()]),
    )?;
    target.wait_for_prefix(Stream::Stdout, PATIENCE, "{\"addr\"")?;
    let capture = match format {
        None => None,
        Some(format) => {
            let child = Child::spawn_to(
                Command::new(ecapture)
                    .arg("gotls")
                    .arg("--elfpath")
                    .arg(exchange)
                    .args(["--pid", &target.pid().to_string(), "--format", format]),
                Stdio::null(),
            )?;
            child.wait_for_prefix(Stream::Stderr, PATIENCE, "attached")?;
            Some(child)
        }
    };
    target.send_line("go")?;
    let result = result_line(
        &target.finish(PATIENCE)?.success()?.stdout_text(),
        "pingpong",
    )?;
    let number = |field: &str| {
        result[field]
            .as_u64()
            .with_context(|| format!("{field} is not in the result: {result}"))
    };
    // With --pid the end of the target is the end of the capture.
    let summary = match capture {
        Some(child) => Some(child.finish(PATIENCE)?.success()?.stderr_text()),
        None => None,
    };
    let summary = summary.as_deref().map(summary_line).unwrap_or_default();
    let (events, lost) = (
        number_after(summary, "summary:"),
        number_after(summary, "lost:"),
    );
    if let Some(events) = events {
        // Two writes and two reads in each.
        let expected = 4 * (number("round_trips")? + number("warm_up")?);
        if events + lost.unwrap_or_default() != expected {
            eprintln!("expected {expected} events, the summary says: {summary}");
        }
    } else if format.is_some() {
        eprintln!("no number of events in ecapture's summary: {summary:?}");
    }
    Ok(Sample {
        wall: number("ns_per_round_trip")?,
        cpu: number("cpu_ns_per_round_trip")?,
        events,
        lost,
    })
}

struct Start {
    attached: Duration,
    /// `VmHWM` of `/proc/PID/status`.
    peak_kib: u64,
}

/// Starts ecapture on an executable that isn't running, until its probes are in place.
fn start_up(ecapture: &Path, target: &Path) -> Result<Start> {
    let mut command = Command::new(ecapture);
    command.arg("gotls").arg("--elfpath").arg(target);
    command.args(["--mapsize", &RING_KIB.to_string()]);
    let start = Instant::now();
    let mut child = Child::spawn_to(&mut command, Stdio::null())?;
    child.wait_for_prefix(Stream::Stderr, PATIENCE, "attached")?;
    let attached = start.elapsed();
    let status = fs::read_to_string(format!("/proc/{}/status", child.pid()))?;
    let peak_kib = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .context("the process's status has no VmHWM")?;
    child.signal(Signal::INT)?;
    child.finish(PATIENCE)?.success()?;
    Ok(Start { attached, peak_kib })
}

/// The closing line of ecapture's standard error.
fn summary_line(stderr: &str) -> &str {
    stderr
        .lines()
        .rfind(|line| line.starts_with("summary:"))
        .unwrap_or_default()
}

/// The number behind `label`: `summary: 12 events, …; lost: 0 events, …`.
fn number_after(summary: &str, label: &str) -> Option<u64> {
    let (_, rest) = summary.split_once(label)?;
    rest.split_whitespace().next()?.parse().ok()
}

fn median(samples: impl Iterator<Item = u64>) -> u64 {
    let mut samples: Vec<_> = samples.collect();
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_behind_their_label() {
        let line =
            "summary: 88000 events, 8800000 bytes on 2 connections; lost: 3 events, 300 bytes";
        assert_eq!(number_after(line, "summary:"), Some(88000));
        assert_eq!(number_after(line, "lost:"), Some(3));
        assert_eq!(number_after(line, "missing:"), None);
    }

    #[test]
    fn the_middle_sample_is_the_median() {
        assert_eq!(median([9, 1, 5].into_iter()), 5);
    }
}
