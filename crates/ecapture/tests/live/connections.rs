//! What is told of a connection equals what the program at its ends says: addresses, role, what the
//! handshake agreed on, who spoke, and how much passed.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use xtask::matrix::{GoRelease, Variant};
use xtask::process::{Child, Stream};
use xtask::standalone::{self, copied};

use crate::capture::{Capture, Captured, Closed, Data, Direction, Line, Opened, Signal, ecapture};
use crate::exchange::{LONG, Program};

/// What the test program says of one end of a connection.
#[derive(Debug, Deserialize)]
struct Logged {
    scenario: String,
    role: String,
    network: String,
    local: String,
    remote: String,
    fd: Option<u32>,
    tls_version: String,
    cipher_suite: String,
    resumed: bool,
    sni: String,
    alpn: String,
    written: Option<u64>,
    read: Option<u64>,
    /// The goroutines that wrote and read last.
    writer: Option<u64>,
    reader: Option<u64>,
    /// Bytes that were read after the end.
    #[serde(default)]
    late: u64,
}

/// What was captured of one connection.
#[derive(Debug, Default)]
struct Seen {
    opened: Option<Opened>,
    data: Vec<Data>,
    closed: Option<Closed>,
    /// Bytes that came after the end.
    late: u64,
}

impl Seen {
    /// Whether this is the end of the scenario's connection that plays the role: it wrote so.
    fn is(&self, logged: &Logged) -> bool {
        let marker = format!("scenario={};from={};", logged.scenario, logged.role);
        self.data
            .iter()
            .filter(|data| data.direction == Direction::Write)
            .any(|data| String::from_utf8_lossy(&data.payload).contains(&marker))
    }

    fn last(&self, direction: Direction) -> Option<&Data> {
        self.data
            .iter()
            .rev()
            .find(|data| data.direction == direction)
    }
}

/// The connections by their numbers; each is told of before its data, once, and ends after it.
fn seen(captured: &Captured) -> Result<Vec<Seen>> {
    let mut connections: BTreeMap<u64, Seen> = BTreeMap::new();
    for line in captured.lines() {
        match line? {
            Line::Connection(opened) => {
                let seen = connections.entry(opened.conn).or_default();
                ensure!(
                    seen.opened.is_none() && seen.data.is_empty(),
                    "told of too late, or twice: {opened:?}"
                );
                seen.opened = Some(opened);
            }
            Line::Data(data) => {
                let seen = connections.entry(data.conn).or_default();
                if seen.closed.is_some() {
                    seen.late += data.payload.len() as u64;
                }
                seen.data.push(data);
            }
            Line::Close(closed) => {
                let seen = connections.entry(closed.conn).or_default();
                ensure!(seen.closed.is_none(), "ends twice: {closed:?}");
                seen.closed = Some(closed);
            }
            Line::Lost(lost) => anyhow::bail!("{lost:?}"),
        }
    }
    Ok(connections.into_values().collect())
}

/// Runs the program under a capture: what it said, and what was seen.
fn run(release: GoRelease, variant: Variant, flags: &str) -> Result<(Vec<Logged>, Vec<Seen>)> {
    let binary = standalone::Program::Connections.binary(release, variant)?;
    run_binary(&binary, flags, "")
}

/// The same of a binary; the line that says what is captured contains `attached`.
fn run_binary(binary: &Path, flags: &str, attached: &str) -> Result<(Vec<Logged>, Vec<Seen>)> {
    let program = Program::copy_of(binary)?;
    let mut target = Child::spawn(&mut program.command(""))?;
    target.wait_for_prefix(Stream::Stdout, LONG, r#"{"event":"ready""#)?;
    let capture = Capture::of(&program.path(), flags)?;
    assert!(capture.attached.contains(attached), "{}", capture.attached);
    target.send_line("go")?;
    let finished = target.finish(LONG)?.success()?;
    let captured = capture.stop()?;
    let mut logged = Vec::new();
    for line in finished.stdout_text().lines() {
        let value: serde_json::Value = serde_json::from_str(line).context(line.to_owned())?;
        if value["event"] == "connection" {
            logged.push(serde_json::from_value(value)?);
        }
    }
    Ok((logged, seen(&captured)?))
}

/// Whether the executable proves where the scenario's wrappers lead.
fn is_provable(scenario: &str) -> bool {
    !["closure", "pair", "pool", "four"].contains(&scenario)
}

fn check(logged: &Logged, seen: &Seen) -> Result<()> {
    let opened = seen.opened.as_ref().context("no connection line")?;
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let known = is_provable(&logged.scenario);
    let expected = Opened {
        conn: opened.conn,
        network: known.then(|| logged.network.clone()),
        local: known.then(|| logged.local.clone()),
        remote: known.then(|| logged.remote.clone()),
        // net/http keeps it to itself.
        fd: logged.fd.or(opened.fd).filter(|_| known),
        role: text(&logged.role),
        tls_version: text(&logged.tls_version),
        cipher_suite: text(&logged.cipher_suite),
        resumed: Some(logged.resumed),
        sni: text(&logged.sni),
        alpn: text(&logged.alpn),
        // Wherever the tests run.
        container: opened.container.clone(),
        from_start: logged.scenario != "middle",
    };
    ensure!(*opened == expected, "{opened:?}\nis not\n{expected:?}");
    ensure!(opened.fd.is_some() == known, "{opened:?}");

    let (Some(written), Some(read)) = (logged.written, logged.read) else {
        return Ok(());
    };
    let closed = seen.closed.as_ref().context("no close line")?;
    ensure!(
        closed.cause == "closed" && closed.duration_ns > 0,
        "{closed:?}"
    );
    // Half of it passed before the capture began.
    let part = if logged.scenario == "middle" { 2 } else { 1 };
    ensure!(
        (closed.written, closed.read + seen.late) == (written / part, read / part),
        "{closed:?}, but {logged:?}"
    );
    let late = logged.late;
    ensure!(seen.late == late, "{} bytes late, not {late}", seen.late);
    Ok(())
}

fn check_goroutines(logged: &Logged, seen: &Seen, of_reads: bool) -> Result<()> {
    let last = |direction| seen.last(direction).map(|data| data.goroutine);
    if let Some(writer) = logged.writer {
        let found = last(Direction::Write);
        ensure!(found == Some(Some(writer)), "{found:?} wrote, not {writer}");
    }
    if let Some(reader) = logged.reader {
        let found = last(Direction::Read);
        let expected = Some(reader).filter(|_| of_reads);
        ensure!(found == Some(expected), "{found:?} read, not {expected:?}");
    }
    Ok(())
}

/// Runs the program and compares everything.
fn assert_connections_are_told(release: GoRelease, variant: Variant, flags: &str) -> Result<()> {
    let (logged, seen) = run(release, variant, flags)?;
    assert_eq!(logged.len(), 2 * 20, "both ends of each scenario");
    // Up to Go 1.16, amd64's stack ABI has runtime.g at hand only where a function begins. arm64 has it in
    // a register.
    let of_reads = release.minor() >= 17 || cfg!(target_arch = "aarch64");
    for logged in &logged {
        let mut matching = seen.iter().filter(|seen| seen.is(logged));
        let one = matching
            .next()
            .with_context(|| format!("{logged:?} was not seen"))?;
        assert!(matching.next().is_none(), "{logged:?} was seen twice");
        check(logged, one)
            .and_then(|()| check_goroutines(logged, one, of_reads))
            .with_context(|| format!("Go {release}, {variant} {flags}, {}", logged.scenario))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn every_generation_tells_what_the_program_says() -> Result<()> {
    for release in GoRelease::GENERATIONS {
        assert_connections_are_told(release, Variant::Default, "")?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn stripped_and_position_independent_executables_tell_as_much() -> Result<()> {
    for release in [
        GoRelease::Go1_15,
        GoRelease::Go1_19,
        GoRelease::Go1_24,
        GoRelease::NEWEST,
    ] {
        assert_connections_are_told(release, Variant::StrippedPie, "")?;
    }
    assert_connections_are_told(GoRelease::NEWEST, Variant::Stripped, "")
}

/// The returns of Read are several instructions, of which any can be the first to tell.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn probes_at_the_returns_of_read_tell_as_much() -> Result<()> {
    assert_connections_are_told(GoRelease::NEWEST, Variant::StrippedPie, "--read-site ret")?;
    assert_connections_are_told(GoRelease::OLDEST, Variant::StrippedPie, "--read-site ret")
}

/// Connections of crypto/tls and of a copy of it in the same program, also inside of each other.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn those_of_a_copy_tell_as_much() -> Result<()> {
    for (release, variant, flags) in [
        (GoRelease::Go1_19, Variant::Default, ""),
        (GoRelease::Go1_24, Variant::StrippedPie, ""),
        (GoRelease::NEWEST, Variant::Default, ""),
        // As one of many programs.
        (GoRelease::NEWEST, Variant::StrippedPie, "--user root"),
        (
            GoRelease::NEWEST,
            Variant::Default,
            "--comm exchange --uprobes perf --objects each",
        ),
    ] {
        let binary = copied::both(release, variant)?;
        let attached = match flags {
            "" | "--user root" => "; crypto/tls, github.com/forked/tls): 6 probes",
            _ => "1 executable and 1 process: 6 probes",
        };
        let (logged, seen) = run_binary(&binary, flags, attached)?;
        assert_eq!(logged.len(), 2 * 6, "both ends of each scenario");
        for logged in &logged {
            let mut matching = seen.iter().filter(|seen| seen.is(logged));
            let one = matching
                .next()
                .with_context(|| format!("{logged:?} was not seen"))?;
            assert!(matching.next().is_none(), "{logged:?} was seen twice");
            check(logged, one)
                .with_context(|| format!("Go {release}, {variant}, {}", logged.scenario))?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn text_says_where_a_connection_goes_or_that_it_is_not_known() -> Result<()> {
    let binary = standalone::Program::Connections.binary(GoRelease::NEWEST, Variant::Default)?;
    let program = Program::copy_of(&binary)?;
    let mut target = Child::spawn(&mut program.command(""))?;
    target.wait_for_prefix(Stream::Stdout, LONG, r#"{"event":"ready""#)?;
    let mut command = ecapture();
    command.args(["gotls", "--pid", &target.pid().to_string()]);
    let mut capture = Capture::spawn(&mut command)?;
    target.send_line("go")?;
    target.finish(LONG)?.success()?;
    capture.child().signal(Signal::INT)?;
    let shown = capture.end()?.stdout_text();
    for expected in [
        "seen in the middle: client 127.0.0.1:",
        "opened: server [::1]:",
        "opened: client @ → /",
        "TLS 1.3, TLS_AES_128_GCM_SHA256, ALPN echo/2, SNI tcp4.test\n",
        "SNI resume.test, resumed\n",
        "opened: server addresses unknown, TLS 1.3,",
        "bytes written, 54 bytes read\n",
    ] {
        assert!(shown.contains(expected), "{expected:?} is not in\n{shown}");
    }
    Ok(())
}
