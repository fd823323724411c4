//! What a capture file says about its packets.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::{Captured, PacketCapture, assert_same_packets, frames};
use crate::exchange::Program;
use crate::https::{self, Https, Parties};
use crate::wireshark::{NO_KEYS, Tcpdump, program};
use xtask::matrix::GoRelease;

/// What tshark may not find in any file of ours.
const COMPLAINTS: &str = "_ws.malformed || _ws.expert.severity == 8388608 \
    || tcp.analysis.lost_segment || tcp.analysis.ack_lost_segment || tcp.time_delta < 0";

/// Fails if something is malformed, missing, or out of order within a connection.
pub(super) fn assert_clean(captured: &Captured) -> Result<()> {
    let complaints = captured.recording.tshark(
        NO_KEYS,
        COMPLAINTS,
        &["frame.number", "tcp.time_delta", "_ws.expert.message"],
    )?;
    assert!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}

fn capinfos(captured: &Captured, flags: &[&str]) -> Result<String> {
    let mut command = Command::new(program("capinfos")?);
    xtask::run::output(command.args(flags).arg(captured.recording.file()))
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn every_packet_is_there_once_with_its_process() -> Result<()> {
    let parties = Parties::new(GoRelease::NEWEST)?;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let server = parties.serve(&format!("-addr {address}"))?;
        let (pid, port) = (server.pid(), server.addr().port());
        let recording = Tcpdump::of_ports(&[port])?;
        let capture = PacketCapture::of_pid(pid, "")?;
        parties.ask(server.addr(), "-requests 5")?;
        drop(server);
        let captured = capture.finish(&[port])?;
        let recorded = recording.stop()?;

        assert_clean(&captured)?;
        let found = captured.frames()?;
        assert_same_packets(&found, &frames(&recorded)?);
        assert_eq!(captured.summary.packets, found.len());
        let bytes: u64 = found.iter().map(|frame| frame.captured).sum();
        assert_eq!(captured.summary.bytes, bytes);
        // What a copy of any test program is called.
        let process = format!("exchange[{pid}]");
        let [sent, received] = [format!("sent by {process}"), format!("for {process}")];
        for frame in &found {
            let comment = if frame.ports()[0] == port {
                &sent
            } else {
                &received
            };
            assert_eq!(frame.comment, [comment.as_str()], "{frame:?}");
            assert_eq!(frame.interface, ["lo"], "{frame:?}");
            // Inbound: that is where `lo` is captured, each packet once.
            assert!(
                matches!(&frame.direction[..], [direction] if ["1", "0x00000001"].contains(&direction.as_str())),
                "{frame:?}"
            );
            assert_eq!(frame.captured, frame.length, "{frame:?}");
        }
    }
    Ok(())
}

/// Both ends in one process: still each packet once, and both sides' names are the same.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_process_that_talks_to_itself() -> Result<()> {
    let program = https::program(GoRelease::NEWEST)?;
    let capture = PacketCapture::of(&program.path(), "")?;
    let target = Https::start(&program, "-requests 2")?;
    let (pid, port) = (target.pid(), target.addr().port());
    target.finish()?;
    let captured = capture.stop(&[port])?;
    assert_clean(&captured)?;
    let found = captured.frames()?;
    let identities: BTreeSet<_> = found.iter().map(|frame| &frame.identity).collect();
    assert_eq!(identities.len(), found.len(), "a packet twice");
    for frame in &found {
        let process = format!("exchange[{pid}]");
        assert!(frame.comment.concat().contains(&process), "{frame:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn capinfos_knows_host_interfaces_and_times() -> Result<()> {
    let target = https::program(GoRelease::NEWEST)?;
    let before = since_epoch()?;
    let captured = of_one_run(&target, "tcp")?;
    let after = since_epoch()?;

    let times = capinfos(&captured, &["-T", "-r", "-m", "-S", "-a", "-e"])?;
    let times: Vec<f64> = times
        .split(',')
        .filter_map(|field| field.trim().trim_matches('"').parse().ok())
        .collect();
    assert_eq!(times.len(), 2, "{times:?}");
    assert!(
        before <= times[0] && times[0] < times[1] && times[1] <= after,
        "{before} {times:?} {after}"
    );

    let about = capinfos(&captured, &[])?;
    let packets = format!("Number of packets = {}", captured.summary.packets);
    for expected in [
        "pcapng",
        "ecapture",
        "Linux",
        "Name = lo",
        "Encapsulation = Ethernet",
        "Time precision = nanoseconds",
        "Filter string = tcp",
        "Number of stat entries = 1",
        &packets,
    ] {
        assert!(about.contains(expected), "{expected:?} is not in\n{about}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_snaplen_cuts_packets_and_tells_their_length() -> Result<()> {
    let target = https::program(GoRelease::NEWEST)?;
    let capture = PacketCapture::of(&target.path(), "--snaplen 100")?;
    let run = Https::start(&target, "-requests 2")?;
    let port = run.addr().port();
    run.finish()?;
    let captured = capture.stop(&[port])?;
    let found = captured.frames()?;
    assert!(
        found
            .iter()
            .all(|frame| frame.captured == frame.length.min(100))
    );
    assert!(found.iter().any(|frame| frame.length > 500));
    Ok(())
}

fn of_one_run(target: &Program, flags: &str) -> Result<Captured> {
    let capture = PacketCapture::of(&target.path(), flags)?;
    let run = Https::start(target, "-requests 2")?;
    let port = run.addr().port();
    run.finish()?;
    capture.stop(&[port])
}

fn since_epoch() -> Result<f64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now.context("a clock before 1970")?.as_secs_f64())
}
