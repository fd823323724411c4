//! Which interfaces, and which packets on them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;
use xtask::matrix::GoRelease;

use super::{PacketCapture, counted};
use crate::https::{self, Https};
use crate::wrong_input::{WRONG_INPUT, refused};

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_wrong_filter_is_refused_in_libpcaps_words() -> Result<()> {
    let program = https::program(GoRelease::NEWEST)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("file");
    for (filter, says) in [
        ("tcp port port", "syntax error"),
        ("tcp port 70000", "70000"),
        ("host and", "syntax error"),
        ("nonsense", "nonsense"),
    ] {
        let mut command = PacketCapture::command();
        command.arg("-e").arg(program.path()).arg("-w").arg(&file);
        refused(
            command.args(filter.split_whitespace()),
            WRONG_INPUT,
            &format!("the filter expression \"{filter}\": "),
        )?;
        refused(&mut command, WRONG_INPUT, says)?;
        assert!(!file.exists(), "nothing was begun");
    }
    Ok(())
}

/// A slip of the hand must not cost an earlier capture.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn an_interface_that_is_not_there_is_refused_and_the_file_stays() -> Result<()> {
    let program = https::program(GoRelease::NEWEST)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("file");
    fs::write(&file, "an earlier capture")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let mut command = PacketCapture::command();
    command.arg("-e").arg(program.path()).arg("-w").arg(&file);
    command.args(["-i", "lo", "-i", "nosuch"]);
    refused(&mut command, WRONG_INPUT, "no interface nosuch: there are ")?;
    assert_eq!(fs::read_to_string(&file)?, "an earlier capture");
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_filter_selects_and_excludes() -> Result<()> {
    let program = https::program(GoRelease::NEWEST)?;
    let mut targets = Vec::new();
    for _ in 0..2 {
        targets.push(Https::start(&program, "-hold -requests 2")?);
    }
    let [one, other] = [&targets[0], &targets[1]].map(|target| target.addr().port());
    let filters = [
        (format!("tcp port {one}"), one),
        (format!("tcp and not port {one}"), other),
        (format!("ip and tcp[0:2] = {one} or tcp[2:2] = {one}"), one),
    ];
    let mut captures = Vec::new();
    for (filter, port) in &filters {
        let capture = PacketCapture::of(&program.path(), filter)?;
        captures.push((capture, *port));
    }
    let nothing = PacketCapture::of(&program.path(), "udp or ip6")?;
    for mut target in targets {
        target.go()?;
        target.finish()?;
    }
    for (capture, port) in captures {
        let captured = capture.stop(&[port])?;
        let found = captured.frames()?;
        assert!(!found.is_empty());
        assert!(found.iter().all(|frame| frame.ports().contains(&port)));
        assert_eq!(captured.recording.http_by_own_keys()?.len(), 2);
    }
    assert_eq!(nothing.stop(&[])?.summary.packets, 0);
    Ok(())
}

/// However `lo` is asked for, each of its packets is there once.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn an_interface_named_twice_is_captured_once() -> Result<()> {
    let program = https::program(GoRelease::NEWEST)?;
    let spawn = |path: &Path, interfaces: &str| {
        let mut command = PacketCapture::command();
        command.arg("-e").arg(path);
        PacketCapture::spawn(command.args(interfaces.split_whitespace()))
    };
    let mut captures = Vec::new();
    for interfaces in ["-i lo", "-i lo -i lo", "-i any", "-i lo -i any", ""] {
        captures.push(spawn(&program.path(), interfaces)?);
    }
    let target = Https::start(&program, "-requests 2")?;
    let port = target.addr().port();
    target.finish()?;
    let mut all = Vec::new();
    for capture in captures {
        all.push(capture.stop(&[port])?.frames()?);
    }
    assert!(all[0].len() > 8);
    for found in &all {
        assert_eq!(counted(found), counted(&all[0]));
        assert!(found.iter().all(|frame| frame.interface == ["lo"]));
    }
    Ok(())
}
