//! Pcap mode: the packets of a program, in a file that Wireshark decrypts without further ado.

mod attribution;
mod decryption;
mod file;
mod filter;
mod namespace;
mod well_formed;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use xtask::process::Finished;

use crate::capture::{Capture, Signal, ecapture};
use crate::https::Logged;
use crate::wireshark::{NO_KEYS, Packet, Recording, Seen, texts};

/// A running capture of packets, into a new file.
#[derive(Debug)]
struct PacketCapture {
    capture: Capture,
    dir: TempDir,
}

/// What it wrote.
#[derive(Debug)]
struct Captured {
    recording: Recording,
    summary: Summary,
}

/// The numbers of the closing line. Nothing was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Summary {
    packets: usize,
    bytes: u64,
    keys: usize,
}

impl PacketCapture {
    /// Captures on `lo` from every process that runs the file. Behind the flags may be a filter.
    fn of(program: &Path, flags: &str) -> Result<Self> {
        let mut command = Self::command();
        command.args(["-i", "lo", "-e"]).arg(program);
        Self::spawn(command.args(flags.split_whitespace()))
    }

    /// Captures on `lo` from a process.
    fn of_pid(pid: u32, flags: &str) -> Result<Self> {
        let mut command = Self::command();
        command.args(["-i", "lo", "--pid", &pid.to_string()]);
        Self::spawn(command.args(flags.split_whitespace()))
    }

    fn command() -> Command {
        let mut command = ecapture();
        command.args(["gotls", "-m", "pcap"]);
        command
    }

    /// Starts the command and waits until everything is in place.
    fn spawn(command: &mut Command) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut with_file = Command::new(command.get_program());
        // Whatever else there is may end with a filter.
        let mut args = command.get_args();
        with_file.args(args.by_ref().take(1)).arg("-w");
        with_file.arg(Self::file_in(&dir)).args(args);
        let capture = Capture::spawn(with_file.env("TZ", "UTC"))?;
        Ok(Self { capture, dir })
    }

    fn file_in(dir: &TempDir) -> PathBuf {
        dir.path().join("captured.pcapng")
    }

    fn file(&self) -> PathBuf {
        Self::file_in(&self.dir)
    }

    /// Ends it. TLS in its file goes to these ports.
    fn stop(self, ports: &[u16]) -> Result<Captured> {
        self.stop_by(Signal::INT, ports)
    }

    fn stop_by(mut self, signal: Signal, ports: &[u16]) -> Result<Captured> {
        self.capture.child().signal(signal)?;
        self.finish(ports)
    }

    /// Waits for its own end, which must be a good one.
    fn finish(self, ports: &[u16]) -> Result<Captured> {
        let summary = Summary::of(&self.capture.end()?.success()?)?;
        let file = Self::file_in(&self.dir);
        Ok(Captured {
            recording: Recording::new(self.dir, file, ports),
            summary,
        })
    }
}

impl Summary {
    fn of(finished: &Finished) -> Result<Self> {
        let stderr = finished.stderr_text();
        let parse = |line: &str| {
            let line = line.strip_suffix(" keys; lost: 0 packets")?;
            let (packets, rest) = line.strip_prefix("summary: ")?.split_once(" packets, ")?;
            let (bytes, keys) = rest.split_once(" bytes, ")?;
            Some(Self {
                packets: packets.parse().ok()?,
                bytes: bytes.parse().ok()?,
                keys: keys.parse().ok()?,
            })
        };
        let summary = stderr.lines().last().and_then(parse);
        summary.with_context(|| format!("no summary without loss:\n{stderr}"))
    }
}

impl Captured {
    fn frames(&self) -> Result<Vec<Frame>> {
        frames(&self.recording)
    }
}

/// A packet of TCP with what the file says about it.
#[derive(Clone, Debug)]
struct Frame {
    /// What tells it from other packets, for people too: addresses, ports, numbers.
    identity: String,
    /// Its sender and its receiver.
    ends: [SocketAddr; 2],
    /// With the direction, as tshark has them.
    interface: Vec<String>,
    direction: Vec<String>,
    comment: Vec<String>,
    captured: u64,
    length: u64,
}

impl Frame {
    fn ports(&self) -> [u16; 2] {
        self.ends.map(|end| end.port())
    }
}

/// All packets of TCP in a file.
fn frames(recording: &Recording) -> Result<Vec<Frame>> {
    const IDENTITY: [&str; 12] = [
        "ip.src",
        "ipv6.src",
        "tcp.srcport",
        "ip.dst",
        "ipv6.dst",
        "tcp.dstport",
        "tcp.flags",
        "tcp.seq_raw",
        "tcp.ack_raw",
        "tcp.len",
        "ip.id",
        "tcp.options.timestamp.tsval",
    ];
    const ABOUT: [&str; 5] = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.comment",
        "frame.cap_len",
        "frame.len",
    ];
    let packets = recording.tshark(NO_KEYS, "tcp", &[&IDENTITY[..], &ABOUT].concat())?;
    let number = |packet: &Packet, field: &str| -> Result<u64> {
        let value = texts(packet, field).first();
        let value = value.with_context(|| format!("no {field}: {packet:?}"))?;
        Ok(value.parse()?)
    };
    let end = |packet: &Packet, [ip, ipv6, port]: [&str; 3]| -> Result<SocketAddr> {
        // In a tunnel of the same version of IP, the inner one.
        let ip = texts(packet, ip).last().or(texts(packet, ipv6).last());
        let ip = ip.with_context(|| format!("no address: {packet:?}"))?;
        Ok(SocketAddr::new(ip.parse()?, number(packet, port)? as u16))
    };
    let frame = |packet: &Packet| {
        let identity = IDENTITY.map(|field| texts(packet, field).join(","));
        let [interface, direction, comment] =
            [ABOUT[0], ABOUT[1], ABOUT[2]].map(|field| texts(packet, field).to_vec());
        Ok(Frame {
            identity: identity.join(" "),
            ends: [
                end(packet, ["ip.src", "ipv6.src", "tcp.srcport"])?,
                end(packet, ["ip.dst", "ipv6.dst", "tcp.dstport"])?,
            ],
            interface,
            direction,
            comment,
            captured: number(packet, "frame.cap_len")?,
            length: number(packet, "frame.len")?,
        })
    };
    packets.iter().map(frame).collect()
}

/// How often each packet is there.
fn counted(frames: &[Frame]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for frame in frames {
        *counts.entry(frame.identity.as_str()).or_default() += 1;
    }
    counts
}

/// Fails unless each packet of `expected` was captured as often as it is there, and no other.
#[track_caller]
fn assert_same_packets(captured: &[Frame], expected: &[Frame]) {
    let (captured, expected) = (counted(captured), counted(expected));
    let missing: Vec<_> = without(&expected, &captured);
    let surplus: Vec<_> = without(&captured, &expected);
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "{} of {} packets are missing: {missing:#?}\nsurplus: {surplus:#?}",
        missing.len(),
        expected.len()
    );
}

/// Those of `these` that are not as often in `those`.
fn without<'a>(
    these: &BTreeMap<&'a str, usize>,
    those: &BTreeMap<&str, usize>,
) -> Vec<(&'a str, usize)> {
    let surplus = |(packet, count): (&&'a str, &usize)| {
        let count = count.saturating_sub(those.get(packet).copied().unwrap_or(0));
        (count > 0).then_some((*packet, count))
    };
    these.iter().filter_map(surplus).collect()
}

/// Fails unless every request that was logged can be read in the file, and no other.
fn ensure_decrypted(seen: Vec<Seen>, expected: &[(u16, &Logged)]) -> Result<()> {
    let count = seen.len();
    let seen: BTreeSet<_> = seen
        .into_iter()
        .map(|seen| (seen.server_port, seen.request))
        .collect();
    let logged: BTreeSet<_> = expected
        .iter()
        .map(|(port, logged)| (*port, logged.request.clone()))
        .collect();
    ensure!(logged.len() == expected.len(), "requests are like another");
    ensure!(
        count == expected.len() && seen == logged,
        "{count} of {} requests can be read\nnot there: {:?}\nunexpected: {:?}",
        expected.len(),
        logged.difference(&seen).collect::<Vec<_>>(),
        seen.difference(&logged).collect::<Vec<_>>()
    );
    Ok(())
}

/// A port that is free, for a server that is to come.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
