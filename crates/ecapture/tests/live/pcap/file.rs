//! The file that packets go to: who may read it, how it grows, and what happens when it can't.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use xtask::matrix::GoRelease;
use xtask::process::{Stream, patient};

use super::well_formed::assert_clean;
use super::{Captured, PacketCapture, Summary, frames};
use crate::capture::{Capture, Signal};
use crate::exchange::Program;
use crate::https::{self, Https, Parties, requests};
use crate::keylog::KeyLog;
use crate::wireshark::Recording;
use crate::wrong_input::FAILED;

/// How late a packet may be in the file: they wait half a second for their keys, and a busy machine
/// takes its time.
const SOON: Duration = Duration::from_secs(5);

/// As Wireshark follows it: `ecapture gotls -m pcap -w - | wireshark -k -i -`
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_reader_of_standard_output_sees_packets_soon() -> Result<()> {
    let parties = Parties::new(GoRelease::NEWEST)?;
    let mut command = PacketCapture::command();
    command.args(["-i", "lo", "-w", "-", "-e"]);
    let mut capture = Capture::spawn(command.arg(parties.server.path()))?;
    let blocks = |capture: &mut Capture| blocks(&capture.child().so_far(Stream::Stdout));
    assert_eq!(blocks(&mut capture)?, [SECTION, INTERFACE]);

    let server = parties.serve("-tls 1.3")?;
    let port = server.addr().port();
    let mut asked = Vec::new();
    for _ in 0..3 {
        let before = blocks(&mut capture)?.len();
        asked.extend(parties.ask(server.addr(), "-requests 1")?);
        let answered = Instant::now();
        // How many packets a request takes depends on how acknowledgements are put together; the
        // opening of a connection alone takes three, and its keys a block.
        while blocks(&mut capture)?.len() < before + 5 {
            ensure!(
                answered.elapsed() < patient(SOON),
                "{:?}",
                blocks(&mut capture)?
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    capture.child().signal(Signal::INT)?;
    let finished = capture.end()?.success()?;

    let all = self::blocks(&finished.stdout)?;
    assert_eq!(all.last(), Some(&STATISTICS));
    let first = |kind| all.iter().position(|&block| block == kind);
    assert!(first(SECRETS) < first(PACKET), "{all:?}");
    let summary = Summary::of(&finished)?;
    let packets = all.iter().filter(|&&block| block == PACKET).count();
    assert_eq!(summary.packets, packets);
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("captured.pcapng");
    fs::write(&file, finished.stdout)?;
    let captured = Captured {
        recording: Recording::new(dir, file, &[port]),
        summary,
    };
    assert_clean(&captured)?;
    let seen = captured.recording.http_by_own_keys()?;
    // Each client asked the same.
    assert!(seen.iter().map(|seen| &seen.request).eq(requests(&asked)));
    Ok(())
}

/// The same through a file, which is complete when the capture ends.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_file_grows_while_we_run() -> Result<()> {
    let parties = Parties::new(GoRelease::NEWEST)?;
    let capture = PacketCapture::of(&parties.server.path(), "")?;
    let server = parties.serve("")?;
    let client = parties.client(server.addr(), "-requests 0 -interval 20ms")?;
    client.wait_for_requests(1)?;
    let answered = Instant::now();
    while !blocks(&fs::read(capture.file())?)?.contains(&PACKET) {
        ensure!(answered.elapsed() < patient(SOON), "no packet");
        std::thread::sleep(Duration::from_millis(10));
    }
    // In the middle of the traffic.
    let captured = capture.stop(&[server.addr().port()])?;
    assert_clean(&captured)?;
    let all = blocks(&fs::read(captured.recording.file())?)?;
    assert_eq!(all.last(), Some(&STATISTICS));
    Ok(())
}

/// What was written up to then can be read all the same.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_killed_capture_leaves_whole_blocks() -> Result<()> {
    let program = https::program(GoRelease::NEWEST)?;
    let mut capture = PacketCapture::of(&program.path(), "")?;
    run(&program, "-requests 2")?;
    let started = Instant::now();
    while !blocks(&fs::read(capture.file())?)?.contains(&PACKET) {
        ensure!(started.elapsed() < patient(SOON), "no packet");
        std::thread::sleep(Duration::from_millis(10));
    }
    let file = capture.file();
    capture.capture.child().signal(Signal::KILL)?;
    let PacketCapture { capture, dir } = capture;
    assert!(!capture.end()?.status.success());
    let recording = Recording::new(dir, file, &[]);
    assert!(!frames(&recording)?.is_empty());
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn only_its_owner_may_read_it_and_its_name_is_ecaptures() -> Result<()> {
    let program = https::program(GoRelease::NEWEST)?;
    let dir = tempfile::tempdir()?;
    for times in 1..=2 {
        let wanted = PacketCapture::command();
        // Whatever the shell's mask would let through.
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"umask 0; exec "$0" "$@""#]);
        shell.arg(wanted.get_program()).args(wanted.get_args());
        shell.args(["-i", "lo", "-e"]).arg(program.path());
        let mut capture = Capture::spawn(shell.current_dir(&dir))?;
        run(&program, "-requests 1")?;
        capture.child().signal(Signal::TERM)?;
        let summary = Summary::of(&capture.end()?.success()?)?;

        let file = dir.path().join("ecapture_gotls.pcapng");
        assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o7777, 0o600);
        let all = blocks(&fs::read(&file)?)?;
        let packets = all.iter().filter(|&&block| block == PACKET).count();
        assert_eq!(packets, summary.packets, "written anew, time {times}");
    }
    assert_eq!(fs::read_dir(&dir)?.count(), 1);
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn keys_go_to_a_key_log_as_well() -> Result<()> {
    let program = https::program(GoRelease::NEWEST)?;
    let keys = program.dir().join("keys");
    let flags = format!("-k {}", keys.display());
    let capture = PacketCapture::of(&program.path(), &flags)?;
    let port = run(&program, "-requests 1 -tls 1.3")?;
    let captured = capture.stop(&[port])?;
    assert_eq!(captured.summary.keys, 4);
    assert_eq!(KeyLog::read(&keys)?.set().len(), 4);
    assert_eq!(fs::metadata(&keys)?.permissions().mode() & 0o7777, 0o600);
    let by_file = captured.recording.http(&keys)?;
    assert_eq!(by_file, captured.recording.http_by_own_keys()?);
    assert_eq!(by_file.len(), 1);
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_full_disk_is_an_error_that_names_the_file() -> Result<()> {
    let program = https::program(GoRelease::NEWEST)?;
    let disk = Disk::mount("64k")?;
    let file = disk.dir.path().join("captured.pcapng");
    let mut command = PacketCapture::command();
    command.args(["-i", "lo", "-e"]).arg(program.path());
    let capture = Capture::spawn(command.arg("-w").arg(&file))?;
    let target = Https::start(&program, "-requests 0")?;
    // The capture's own end.
    let finished = capture.end()?;
    drop(target);
    let stderr = finished.stderr_text();
    assert_eq!(finished.status.code(), Some(FAILED), "{stderr}");
    let complaints: Vec<_> = stderr
        .lines()
        .filter(|line| line.starts_with("ecapture: "))
        .collect();
    assert_eq!(complaints.len(), 1, "{stderr}");
    let name = format!("capture file {}", file.display());
    assert!(complaints[0].contains(&name), "{stderr}");
    assert!(complaints[0].contains("No space left"), "{stderr}");
    assert_eq!(fs::metadata(&file)?.len(), 64 << 10, "it is full");
    let summary = stderr.lines().find(|line| line.starts_with("summary: "));
    let lost = summary.and_then(|line| line.split_once("lost: "));
    let lost: Option<u64> = lost.and_then(|(_, lost)| lost.strip_suffix(" packets")?.parse().ok());
    assert!(lost > Some(0), "{stderr}");
    Ok(())
}

/// Runs the program to its end: the port that it talked to.
fn run(program: &Program, flags: &str) -> Result<u16> {
    let run = Https::start(program, flags)?;
    let port = run.addr().port();
    run.finish()?;
    Ok(port)
}

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const SECRETS: u32 = 10;

/// The types of the blocks, the last of which may still be incomplete and is left out then.
fn blocks(mut file: &[u8]) -> Result<Vec<u32>> {
    let mut types = Vec::new();
    while let [kind, length] = [0, 4].map(|offset| file.get(offset..offset + 4))
        && let (Some(kind), Some(length)) = (kind, length)
    {
        let length = u32::from_le_bytes(length.try_into()?) as usize;
        ensure!(
            length >= 12 && length.is_multiple_of(4),
            "a block of {length} bytes"
        );
        let Some(rest) = file.get(length..) else {
            break;
        };
        types.push(u32::from_le_bytes(kind.try_into()?));
        file = rest;
    }
    Ok(types)
}

/// A small disk. Dropping unmounts it.
struct Disk {
    dir: TempDir,
}

impl Disk {
    fn mount(size: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]);
        xtask::run::output(mount.arg(dir.path())).context("mounting")?;
        Ok(Self { dir })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Even if somebody still has a file open there.
        let _ = xtask::run::output(Command::new("umount").arg("-l").arg(self.dir.path()));
    }
}
