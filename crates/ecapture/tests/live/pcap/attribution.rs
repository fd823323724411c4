//! Whose packets are captured: all of the target's, and no others, while somebody else talks on the
//! same interface.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use xtask::matrix::GoRelease;

use super::well_formed::assert_clean;
use super::{
    Captured, Frame, PacketCapture, assert_same_packets, counted, ensure_decrypted, frames,
    free_port, without,
};
use crate::exchange::Program;
use crate::https::{self, Https, Parties};
use crate::wireshark::{Recording, Tcpdump};

/// Talks to itself until it is dropped. Nobody captures it.
struct Other {
    https: Https,
    _program: Program,
}

impl Other {
    fn start() -> Result<Self> {
        let program = https::program(GoRelease::NEWEST)?;
        let https = Https::start(&program, "-requests 0 -interval 5ms")?;
        https.wait_for_requests(1)?;
        Ok(Self {
            https,
            _program: program,
        })
    }

    /// Fails if it was silent, which would make the test worth nothing.
    fn assert_talks(&self) -> Result<()> {
        self.https
            .wait_for_requests(self.https.requests_so_far() + 2)
    }

    fn port(&self) -> u16 {
        self.https.addr().port()
    }

    /// Whether it is at either end. A target may have the same port at another address.
    fn has(&self, frame: &Frame) -> bool {
        frame.ends.contains(&self.https.addr())
    }
}

/// Fails unless these are all the packets that tcpdump saw, and those of nobody else.
fn assert_complete(captured: &Captured, recorded: &Recording, other: &Other) -> Result<()> {
    assert_clean(captured)?;
    let found = captured.frames()?;
    assert_none_of(other, &found);
    assert_eq!(captured.summary.packets, found.len());
    assert_same_packets(&found, &frames(recorded)?);
    Ok(())
}

#[track_caller]
fn assert_none_of(other: &Other, found: &[Frame]) {
    let of_other = found.iter().find(|frame| other.has(frame));
    assert!(of_other.is_none(), "{of_other:?}");
}

/// Either side is covered from its first packet to its last.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn targets_that_start_while_we_run() -> Result<()> {
    let parties = Parties::new(GoRelease::NEWEST)?;
    let other = Other::start()?;
    let port = free_port()?;
    let recording = Tcpdump::of_ports(&[port])?;
    let captures = [
        PacketCapture::of(&parties.client.path(), "")?,
        PacketCapture::of(&parties.server.path(), "")?,
    ];
    let server = parties.serve(&format!("-addr 127.0.0.1:{port}"))?;
    let asked = parties.ask(server.addr(), "-requests 3")?;
    let again = parties.ask(server.addr(), "-requests 3 -resume")?;
    server.finish()?;
    other.assert_talks()?;
    let mut captured = Vec::new();
    for capture in captures {
        captured.push(capture.stop(&[port])?);
    }
    let recorded = recording.stop()?;
    for captured in captured {
        assert_complete(&captured, &recorded, &other)?;
        let seen = captured.recording.http_by_own_keys()?;
        assert_eq!(seen.len(), asked.len() + again.len());
    }
    Ok(())
}

/// They have their sockets already: a server its listener, which accepts when we are there.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn targets_that_run_before_us() -> Result<()> {
    let parties = Parties::new(GoRelease::NEWEST)?;
    let other = Other::start()?;
    let server = parties.serve("")?;
    let port = server.addr().port();
    let mut client = parties.client(server.addr(), "-hold -requests 3")?;
    let recording = Tcpdump::of_ports(&[port])?;
    let captures = [
        PacketCapture::of_pid(server.pid(), "")?,
        PacketCapture::of(&parties.server.path(), "")?,
        PacketCapture::of_pid(client.pid(), "")?,
        PacketCapture::of(&parties.client.path(), "")?,
    ];
    client.go()?;
    let asked = client.finish()?;
    let asked: Vec<_> = asked.iter().map(|asked| (port, asked)).collect();
    server.finish()?;
    other.assert_talks()?;
    let [server, server_file, client, client_file] = captures;
    let captured = [
        server.finish(&[port])?,
        server_file.stop(&[port])?,
        client.finish(&[port])?,
        client_file.stop(&[port])?,
    ];
    let recorded = recording.stop()?;
    for captured in captured {
        assert_complete(&captured, &recorded, &other)?;
        ensure_decrypted(captured.recording.http_by_own_keys()?, &asked)?;
    }
    Ok(())
}

/// Their packets are captured from then on, though their keys are out of reach.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn connections_that_were_open_before_us() -> Result<()> {
    let parties = Parties::new(GoRelease::NEWEST)?;
    let other = Other::start()?;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let server = parties.serve(&format!("-addr {address}"))?;
        let port = server.addr().port();
        let client = parties.client(server.addr(), "-requests 0 -interval 20ms")?;
        client.wait_for_requests(1)?;
        let captures = [
            PacketCapture::of_pid(server.pid(), "")?,
            PacketCapture::of(&parties.client.path(), "")?,
        ];
        // What it records lies between the beginning and the end of the captures.
        let recording = Tcpdump::of_ports(&[port])?;
        client.wait_for_requests(client.requests_so_far() + 5)?;
        let recorded = frames(&recording.stop()?)?;
        assert!(recorded.len() >= 5 * 2);
        for capture in captures {
            let found = capture.stop(&[port])?.frames()?;
            assert_none_of(&other, &found);
            let missing = without(&counted(&recorded), &counted(&found));
            assert!(missing.is_empty(), "{missing:#?}");
            assert!(counted(&found).values().all(|&count| count == 1));
            assert!(found.iter().all(|frame| frame.ports().contains(&port)));
        }
    }
    Ok(())
}

/// The kernel closes its connections when it is gone; what then passes is still its own.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_target_that_is_killed_amid_its_traffic() -> Result<()> {
    let parties = Parties::new(GoRelease::NEWEST)?;
    let other = Other::start()?;
    let port = free_port()?;
    let recording = Tcpdump::of_ports(&[port])?;
    let server = parties.serve(&format!("-addr 127.0.0.1:{port}"))?;
    let by_pid = PacketCapture::of_pid(server.pid(), "")?;
    let by_file = PacketCapture::of(&parties.server.path(), "")?;
    let client = parties.client(server.addr(), "-requests 0 -interval 1ms")?;
    client.wait_for_requests(10)?;
    drop(server);
    client.wait_until_failed()?;
    let captured = [by_pid.finish(&[port])?, by_file.stop(&[port])?];
    let recorded = frames(&recording.stop()?)?;
    // The client tries to connect once more. That is the target's affair only if it still listens.
    let connection = recorded[0].ports()[0];
    let of_connection = |frames: Vec<Frame>| -> Vec<Frame> {
        let of_it = |frame: &Frame| frame.ports().contains(&connection);
        frames.into_iter().filter(of_it).collect()
    };
    let recorded = of_connection(recorded);
    for captured in captured {
        assert_clean(&captured)?;
        let found = captured.frames()?;
        assert_none_of(&other, &found);
        assert_same_packets(&of_connection(found), &recorded);
    }
    Ok(())
}

/// Of two processes that run the file, only one is asked for.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn another_process_of_the_same_file() -> Result<()> {
    let program = https::program(GoRelease::NEWEST)?;
    let start = |flags| Https::start(&program, flags);
    let neighbour = start("-requests 0 -interval 5ms")?;
    let mut target = start("-hold -requests 3")?;
    let port = target.addr().port();
    let recording = Tcpdump::of_ports(&[port])?;
    let capture = PacketCapture::of_pid(target.pid(), "")?;
    target.go()?;
    target.finish()?;
    neighbour.wait_for_requests(neighbour.requests_so_far() + 2)?;
    let captured = capture.finish(&[port])?;
    assert_same_packets(&captured.frames()?, &frames(&recording.stop()?)?);
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn everybodys_packets_are_there_if_asked_for() -> Result<()> {
    let parties = Parties::new(GoRelease::NEWEST)?;
    let other = Other::start()?;
    let port = free_port()?;
    // Whatever else goes on here is none of our business.
    let flags = format!("--all-packets tcp port {port} or port {}", other.port());
    let capture = PacketCapture::of(&parties.server.path(), &flags)?;
    let recording = Tcpdump::of_ports(&[port, other.port()])?;
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let server = parties.serve(&format!("-addr {addr}"))?;
    parties.ask(addr, "-requests 2")?;
    server.finish()?;
    other.assert_talks()?;
    let recorded = frames(&recording.stop()?)?;
    let captured = capture.stop(&[port])?;
    let found = captured.frames()?;
    let missing = without(&counted(&recorded), &counted(&found));
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(found.iter().any(|frame| other.has(frame)));
    Ok(())
}
