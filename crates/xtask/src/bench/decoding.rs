//! What decoding HTTP takes: from a recording, on one processor, and while a service works as fast as it
//! can.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::Bench;
use super::mode::{Counts, PATIENCE};
use super::report::{Findings, Table, with_extremes};
use super::service::{BODY, Clients, serve};
use super::stats::Rounds;
use crate::process::{Child, Stream};

/// What client and service speak.
const PROTOCOLS: [(&str, &str); 3] = [("h1", "HTTP/1.1"), ("h2", "HTTP/2"), ("grpc", "gRPC")];

/// Connections, or concurrent requests on one.
const CONNECTIONS: u32 = 50;

/// An output, and the arguments that ask for it.
type Output = (&'static str, &'static [&'static str]);

const OUTPUTS: [Output; 5] = [
    ("text", &["--format", "text"]),
    ("text, calls as they are", &["--format", "text", "--raw"]),
    ("JSON, exchanges", &["--format", "json", "--events", "http"]),
    (
        "JSON, calls as they are",
        &["--format", "json", "--events", "data"],
    ),
    ("JSON, everything", &["--format", "json"]),
];

pub(super) fn measure(bench: &Bench) -> Result<Findings> {
    let mut findings = Findings::default();
    from_recordings(bench, &mut findings)?;
    at_full_load(bench, &mut findings)?;
    Ok(findings)
}

/// A recorded service.
struct Recording {
    protocol: &'static str,
    path: PathBuf,
    exchanges: u64,
}

fn from_recordings(bench: &Bench, findings: &mut Findings) -> Result<()> {
    findings.part(
        "Decoding on one processor",
        &format!(
            "A recording of the HTTPS service above, which answers with {BODY} bytes of JSON (gRPC: a field with as \
             many), replayed to /dev/null: events (calls), plaintext and exchanges for each second of CPU time, \
             that of reading the file and of starting included."
        ),
    );
    let dir = tempfile::tempdir()?;
    let mut table = Table::new(&[
        "protocol",
        "output",
        "events/s",
        "MB/s",
        "exchanges/s",
        "ns/event",
    ]);
    for (proto, protocol) in PROTOCOLS {
        let recording = record(bench, proto, protocol, &dir)?;
        let names = OUTPUTS.map(|(name, _)| name);
        let what = format!("replays of {protocol}");
        let rounds = Rounds::measure(&names, bench.few_runs(), &what, |name| {
            let (_, args) = OUTPUTS
                .into_iter()
                .find(|(other, _)| *other == name)
                .context(name)?;
            replay(bench, &recording, args)
        })?;
        for name in names {
            table.row([
                recording.protocol.into(),
                name.into(),
                with_extremes(
                    rounds.spread(name, |r| r.counts.events as f64 / r.seconds)?,
                    0,
                ),
                with_extremes(
                    rounds.spread(name, |r| r.counts.bytes as f64 / 1e6 / r.seconds)?,
                    0,
                ),
                match name {
                    "text" | "JSON, exchanges" | "JSON, everything" => {
                        let rate = |r: &Replay| recording.exchanges as f64 / r.seconds;
                        with_extremes(rounds.spread(name, rate)?, 0)
                    }
                    _ => "–".into(),
                },
                with_extremes(
                    rounds.spread(name, |r| r.seconds * 1e9 / r.counts.events as f64)?,
                    0,
                ),
            ]);
        }
    }
    findings.table(&table);
    Ok(())
}

/// Records the service, as a buffer that is large enough lets it.
fn record(bench: &Bench, proto: &str, protocol: &'static str, dir: &TempDir) -> Result<Recording> {
    eprintln!("recording {protocol}");
    let (server, address) = serve(bench, proto)?;
    let path = dir.path().join(proto);
    let mut command = Command::new(&bench.programs.ecapture);
    command.args([
        "gotls",
        "--mapsize",
        "262144",
        "--pid",
        &server.pid().to_string(),
    ]);
    let capture = Child::spawn_to(command.arg("--record").arg(&path), Stdio::null())?;
    capture.wait_for_prefix(Stream::Stderr, PATIENCE, "attached")?;
    let clients = Clients {
        conns: CONNECTIONS,
        seconds: if bench.quick { 0.3 } else { 2.0 },
        proto,
    };
    let asked = clients.ask(bench, &address)?.asked;
    server.finish(PATIENCE)?.success()?;
    let counts = counts(capture)?;
    ensure!(
        counts.lost_events == 0,
        "{protocol}: the buffer was meant to hold everything"
    );
    Ok(Recording {
        protocol,
        path,
        exchanges: asked,
    })
}

/// What a program that ends by itself has counted.
fn counts(child: Child) -> Result<Counts> {
    let stderr = child.finish(PATIENCE)?.success()?.stderr_text();
    let summary = stderr.lines().rfind(|line| line.starts_with("summary:"));
    summary
        .and_then(Counts::parse)
        .with_context(|| format!("no summary: {stderr}"))
}

/// CPU time of children is told in ticks of 10 ms: replays are repeated until they took so many seconds.
const REPLAY_SECONDS: f64 = 0.5;

/// One replay.
struct Replay {
    counts: Counts,
    /// CPU time, of each if there were several.
    seconds: f64,
}

fn replay(bench: &Bench, recording: &Recording, args: &[&str]) -> Result<Replay> {
    let mut command = Command::new(&bench.programs.ecapture);
    command.arg("replay").arg(&recording.path).args(args);
    let before = children_cpu_seconds()?;
    let mut replays = 0.0;
    loop {
        let counts = counts(Child::spawn_to(&mut command, Stdio::null())?)?;
        replays += 1.0;
        let seconds = children_cpu_seconds()? - before;
        if seconds >= REPLAY_SECONDS {
            let seconds = seconds / replays;
            return Ok(Replay { counts, seconds });
        }
    }
}

/// CPU time of all child processes that have ended: fields 16 and 17 of proc_pid_stat(5), in ticks of 10 ms.
fn children_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // What stands before, the name, may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let ticks: Vec<f64> = fields
        .split_whitespace()
        .skip(13)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

const LOADED: [Output; 5] = [
    ("unprobed", &[]),
    ("text", &["--format", "text"]),
    ("text, calls as they are", &["--format", "text", "--raw"]),
    ("JSON, exchanges", &["--format", "json", "--events", "http"]),
    (
        "JSON, calls as they are",
        &["--format", "json", "--events", "data"],
    ),
];

/// One run of the service under load.
struct Load {
    requests_per_second: f64,
    asked: u64,
    /// Exchanges that were shown, with a response.
    decoded: Option<u64>,
    lost: u64,
}

fn at_full_load(bench: &Bench, findings: &mut Findings) -> Result<()> {
    findings.part(
        "Decoding at full load",
        &format!(
            "The same service with {CONNECTIONS} requests at a time, from a client that is not captured, on the same \
             processors; the output goes to a file. Exchanges that are shown are counted there and compared with \
             the requests that the client made. Over HTTP/2 and gRPC all share one connection."
        ),
    );
    let mut table = Table::new(&[
        "protocol",
        "output",
        "requests/s",
        "× unprobed",
        "requests",
        "decoded",
        "events lost",
    ]);
    for (proto, protocol) in PROTOCOLS {
        let names = LOADED.map(|(name, _)| name);
        let what = format!("{protocol} at full load");
        let rounds = Rounds::measure(&names, bench.few_runs(), &what, |name| {
            let (_, args) = LOADED
                .into_iter()
                .find(|(other, _)| *other == name)
                .context(name)?;
            load(bench, proto, args)
        })?;
        let rate = |load: &Load| load.requests_per_second;
        let unprobed = rounds.spread("unprobed", rate)?.median;
        for name in names {
            let total = |count: fn(&Load) -> u64| rounds.of(name).iter().map(count).sum::<u64>();
            let is_decoded = rounds.of(name).iter().all(|load| load.decoded.is_some());
            let decoded = total(|load| load.decoded.unwrap_or(0));
            let (asked, lost) = (total(|load| load.asked), total(|load| load.lost));
            let spread = rounds.spread(name, rate)?;
            table.row([
                protocol.into(),
                name.into(),
                with_extremes(spread, 0),
                format!("{:.2}", spread.median / unprobed),
                asked.to_string(),
                if is_decoded {
                    decoded.to_string()
                } else {
                    "–".into()
                },
                if name == "unprobed" {
                    "–".into()
                } else {
                    lost.to_string()
                },
            ]);
            if is_decoded {
                // More of them than requests would be as wrong. An event that was lost may be of an exchange.
                let difference = asked.abs_diff(decoded);
                let what = format!("{protocol} at full load, {name}: exchanges not decoded");
                findings.at_most(&what, difference as f64, lost as f64, "");
            }
        }
    }
    findings.table(&table);
    Ok(())
}

fn load(bench: &Bench, proto: &str, args: &[&str]) -> Result<Load> {
    let (server, address) = serve(bench, proto)?;
    let output = tempfile::tempfile()?;
    let capture = match args {
        [] => None,
        args => {
            let mut command = Command::new(&bench.programs.ecapture);
            command
                .arg("gotls")
                .args(args)
                .args(["--pid", &server.pid().to_string()]);
            let child = Child::spawn_to(&mut command, output.try_clone()?.into())?;
            child.wait_for_prefix(Stream::Stderr, PATIENCE, "attached")?;
            Some(child)
        }
    };
    let clients = Clients {
        conns: CONNECTIONS,
        seconds: if bench.quick { 0.4 } else { 2.0 },
        proto,
    };
    let answers = clients.ask(bench, &address)?;
    server.finish(PATIENCE)?.success()?;
    let counts = capture.map(counts).transpose()?.unwrap_or_default();
    Ok(Load {
        requests_per_second: answers.requests_per_second,
        asked: answers.asked,
        decoded: decoded(output, args)?,
        lost: counts.lost_events,
    })
}

/// How many exchanges with a response an output shows, if it is one that does.
fn decoded(mut output: File, args: &[&str]) -> Result<Option<u64>> {
    let is_exchange: fn(&str) -> bool = match args {
        ["--format", "text"] => {
            |line| line.contains(" → 200 OK, ") && !line.ends_with("not finished")
        }
        [.., "http"] => |line| line.contains(r#""ending":"complete","complete":true"#),
        _ => return Ok(None),
    };
    output.rewind()?;
    let mut count = 0;
    for line in BufReader::new(output).lines() {
        count += u64::from(is_exchange(&line?));
    }
    Ok(Some(count))
}
