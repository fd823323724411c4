//! What being captured costs an HTTPS service, as its clients see it.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Bench;
use super::chart::Chart;
use super::exchange::{number, result};
use super::mode::{Mode, PATIENCE};
use super::report::{Findings, Table, with_extremes};
use super::stats::Rounds;
use crate::process::{Child, Stream};

const MODES: [Mode; 6] = [
    Mode::Unprobed,
    Mode::Floor,
    Mode::Text,
    Mode::Json,
    Mode::Pcap,
    Mode::Reference,
];
const CONNECTIONS: [u32; 3] = [1, 50, 500];

/// Bytes of an answer's body.
pub(super) const BODY: u32 = 1024;

struct Sample {
    requests_per_second: f64,
    /// Latencies, in µs.
    p50: f64,
    p99: f64,
    lost: u64,
}

type Measured = Rounds<Mode, Sample>;

pub(super) fn measure(bench: &Bench) -> Result<Findings> {
    let mut findings = Findings::default();
    findings.part(
        "HTTPS service",
        &format!(
            "Go's net/http answers requests with {BODY} bytes of JSON, over HTTP/1.1 and TLS 1.3 with kept \
             connections; on each connection the next request is sent once the answer is there. The client is \
             a process of its own, which is not captured, on the same machine: where all processors are busy \
             it competes with the service, and the consumer competes with both."
        ),
    );
    let mut measured = Vec::new();
    for conns in CONNECTIONS {
        let what = format!("HTTPS on {conns} connections");
        let rounds = Rounds::measure(&MODES, bench.few_runs(), &what, |mode| {
            sample(bench, conns, mode)
        })?;
        findings.paragraph(&format!("**{}**", connections(conns)));
        findings.table(&table(&rounds)?);
        measured.push((conns, rounds));
    }
    findings.chart(
        "service-requests.svg",
        &Chart::over_unprobed(
            "Requests per second, as a fraction of the unprobed service's",
            &measured,
            connections,
            |sample| sample.requests_per_second,
        )?,
    )?;
    findings.chart(
        "service-p99.svg",
        &Chart::over_unprobed(
            "99th percentile of latency, as a multiple of the unprobed service's",
            &measured,
            connections,
            |sample| sample.p99,
        )?,
    )?;
    Ok(findings)
}

fn table(rounds: &Measured) -> Result<Table> {
    let mut table = Table::new(&[
        "mode",
        "requests/s",
        "× unprobed",
        "p50, µs",
        "p99, µs",
        "lost",
    ]);
    let unprobed = rounds.spread(Mode::Unprobed, |sample| sample.requests_per_second)?;
    for mode in MODES {
        let rate = rounds.spread(mode, |sample| sample.requests_per_second)?;
        let lost: u64 = rounds.of(mode).iter().map(|sample| sample.lost).sum();
        table.row([
            mode.name().into(),
            with_extremes(rate, 0),
            format!("{:.2}", rate.median / unprobed.median),
            with_extremes(rounds.spread(mode, |sample| sample.p50)?, 0),
            with_extremes(rounds.spread(mode, |sample| sample.p99)?, 0),
            match mode {
                Mode::Unprobed | Mode::Floor => "–".into(),
                _ => lost.to_string(),
            },
        ]);
    }
    Ok(table)
}

fn sample(bench: &Bench, conns: u32, mode: Mode) -> Result<Sample> {
    let (server, address) = serve(bench, "h1")?;
    let capture = mode.attach(&bench.programs, server.pid(), &[])?;
    let clients = Clients {
        conns,
        seconds: if bench.quick { 0.4 } else { 2.0 },
        proto: "h1",
    };
    let answers = clients.ask(bench, &address)?;
    server.finish(PATIENCE)?.success()?;
    let counts = capture.finish()?;
    Ok(Sample {
        requests_per_second: answers.requests_per_second,
        p50: answers.p50,
        p99: answers.p99,
        lost: counts.lost_events,
    })
}

/// Starts the service, which speaks `h1`, `h2` or `grpc`, and says where it listens.
pub(super) fn serve(bench: &Bench, proto: &str) -> Result<(Child, String)> {
    let mut server = Command::new(&bench.programs.load);
    server.args([
        "-role",
        "server",
        "-proto",
        proto,
        "-size",
        &BODY.to_string(),
    ]);
    let server = Child::spawn(&mut server)?;
    let address = address(&server)?;
    Ok((server, address))
}

/// Clients that ask again as soon as they have their answer.
pub(super) struct Clients<'a> {
    /// How many.
    pub(super) conns: u32,
    /// For how long, a fifth of that not measured.
    pub(super) seconds: f64,
    pub(super) proto: &'a str,
}

/// What the clients got.
pub(super) struct Answers {
    pub(super) requests_per_second: f64,
    /// Latencies, in µs.
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// Requests in all, also those before it was measured.
    pub(super) asked: u64,
}

impl Clients<'_> {
    pub(super) fn ask(&self, bench: &Bench, address: &str) -> Result<Answers> {
        let mut client = Command::new(&bench.programs.load);
        client.args(["-role", "client", "-addr", address, "-proto", self.proto]);
        client.args(["-seconds", &self.seconds.to_string()]);
        client.args([
            "-size",
            &BODY.to_string(),
            "-conns",
            &self.conns.to_string(),
        ]);
        let mut client = Child::spawn(&mut client)?;
        let answers = result(&mut client, "http")?;
        client.finish(PATIENCE)?.success()?;
        let number = |field| number(&answers, field);
        Ok(Answers {
            requests_per_second: number("requests")? * 1e9 / number("ns")?,
            p50: number("p50_ns")? / 1e3,
            p99: number("p99_ns")? / 1e3,
            asked: number("asked")? as u64,
        })
    }
}

/// Where the server listens.
fn address(server: &Child) -> Result<String> {
    let ready = server.wait_for_prefix(Stream::Stdout, PATIENCE, "{\"addr\"")?;
    let ready: Value = serde_json::from_str(&ready)?;
    let address = ready["addr"]
        .as_str()
        .context("the server has no address")?;
    Ok(address.to_owned())
}

fn connections(count: u32) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} connection{plural}")
}
