//! Faults: a buffer that is too small, a reader that stands still, outputs that block or fail, targets
//! that are killed, memory that is not there, crowds of processes and of connections. Whatever happens,
//! the target is not harmed, and every byte is shown or counted as lost.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, PipeReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use xtask::matrix::{GoRelease, Variant};
use xtask::process::{Child, Finished, Stream, patient};
use xtask::standalone;

use crate::accounting::Streams;
use crate::capture::{Capture, Captured, Direction, Line, Signal, ecapture};
use crate::exchange::{Exchange, LONG, Program};
use crate::fleet::{Fleet, command};
use crate::https::{self, Https};
use crate::kernel;
use crate::payload;
use crate::wrong_input::FAILED;

/// How long a fault lasts.
const FAULT: Duration = Duration::from_secs(5);

/// Messages of a load that goes on for some seconds without a gigabyte of output.
const SIZES: &[u64] = &[100, 1000, 3000];
/// Such a load, until some time after the fault.
const LOAD: &str = "-hold -scenario slow -conns 8 -minseconds 12 -sizes 100,1000,3000";

/// `ecapture gotls -e PROGRAM --format json` with these flags.
fn json(program: &Program, flags: &str) -> Command {
    let mut command = ecapture();
    command
        .args(["gotls", "--format", "json", "-e"])
        .arg(program.path());
    command.args(flags.split_whitespace());
    command
}

/// For five seconds nobody empties the buffer. The target goes on, and what finds no room is counted.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_stopped_reader_costs_what_is_counted_and_nothing_else() -> Result<()> {
    let program = Program::newest()?;
    let mut target = program.start(LOAD)?;
    let mut capture = Capture::of(&program.path(), "--mapsize 64")?;
    target.go()?;
    capture.wait_for_data()?;
    capture.child().signal(Signal::STOP)?;
    thread::sleep(FAULT);
    ensure!(!target.has_ended()?, "no load until the end of the fault");
    capture.child().signal(Signal::CONT)?;
    let log = target.finish()?;
    let captured = capture.stop()?;
    let account = Streams::of(&log, SIZES).account(&captured)?;
    println!("{account}");
    assert!(account.lost > 0, "{account:?}: no test");
    // It has gone on reading afterwards: a buffer of 64 KiB doesn't hold that.
    assert!(account.received > 256 * 1024, "{account:?}");
    Ok(())
}

/// A capture whose standard output is a pipe that the test reads when it likes.
struct Piped {
    capture: Capture,
    pipe: PipeReader,
}

impl Piped {
    fn spawn(mut command: Command) -> Result<Self> {
        let (pipe, writer) = std::io::pipe()?;
        let child = Child::spawn_to(&mut command, writer.into())?;
        // The command holds the pipe's other end open.
        drop(command);
        let capture = Capture::attached(child)?;
        Ok(Self { capture, pipe })
    }

    /// Begins to read, until the pipe ends.
    fn read(self) -> (Capture, JoinHandle<std::io::Result<Vec<u8>>>) {
        let mut pipe = self.pipe;
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).map(|_| bytes)
        });
        (self.capture, reader)
    }
}

/// The pipe takes 64 KiB, the buffer as much; then there is loss, and no memory that grows.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_blocked_output_costs_what_is_counted_and_nothing_else() -> Result<()> {
    let program = Program::newest()?;
    let mut target = program.start(LOAD)?;
    let piped = Piped::spawn(json(&program, "--mapsize 64"))?;
    let pid = piped.capture.pid();
    target.go()?;
    let before = kernel::anonymous_memory(pid)?;
    thread::sleep(FAULT);
    let grown = kernel::anonymous_memory(pid)?.saturating_sub(before);
    ensure!(!target.has_ended()?, "no load until the end of the fault");
    let (mut capture, reader) = piped.read();
    let log = target.finish()?;
    capture.child().signal(Signal::TERM)?;
    let finished = Finished {
        stdout: reader.join().expect("the reader does not panic")?,
        ..capture.end()?.success()?
    };
    let account = Streams::of(&log, SIZES).account(&Captured::new(finished)?)?;
    println!("{account}; memory grew by {grown} bytes");
    assert!(account.lost > 0, "{account:?}: no test");
    assert!(account.received > 256 * 1024, "{account:?}");
    assert!(grown < 4 << 20, "{grown} bytes");
    Ok(())
}

/// Standard error that nobody reads and that is full: the pipe to a collector that has stopped.
struct Unread(tempfile::TempDir, File);

impl Unread {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let fifo = dir.path().join("stderr");
        xtask::run::output(Command::new("mkfifo").arg(&fifo))?;
        let mut nonblocking = File::options();
        nonblocking.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        let reader = nonblocking.clone().read(true).open(&fifo)?;
        let mut writer = nonblocking.write(true).open(&fifo)?;
        for size in [4096, 1] {
            while writer.write(&vec![b'\n'; size]).is_ok() {}
        }
        Ok(Self(dir, reader))
    }

    /// A capture of this fleet that has this standard error.
    fn capture(&self, fleet: &Fleet) -> Result<Child> {
        let mut command = Command::new("sh");
        command.args(["-c", r#"exec "$@" 2>"$0""#]);
        command.arg(self.0.path().join("stderr"));
        command.args([env!("CARGO_BIN_EXE_ecapture"), "gotls", "--format", "json"]);
        command.args(["--events", "connection,data,lost,close"]);
        Child::spawn(command.args(["--longest-hold", "60000", "--comm", &fleet.glob()]))
    }

    /// What is in the pipe now.
    fn read(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        match self.1.read_to_end(&mut bytes) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error.into()),
            _ => Ok(String::from_utf8(bytes)?),
        }
    }
}

/// Has a capture attach to two programs while nobody reads its standard error.
fn attached_unread(fleet: &Fleet, unread: &Unread) -> Result<Child> {
    let capture = unread.capture(fleet)?;
    let first = fleet.add(0, GoRelease::NEWEST, Variant::Default)?;
    let deadline = Instant::now() + patient(LONG);
    while capture.so_far(Stream::Stdout).is_empty() {
        ensure!(Instant::now() < deadline, "{capture:?}");
        Exchange::spawn(&mut command(&first, "-sizes 100"))?.finish()?;
    }
    let second = fleet.add(1, GoRelease::NEWEST, Variant::Stripped)?;
    Exchange::spawn(&mut command(&second, "-sizes 100"))?.finish()?;
    let name = fleet.path(1);
    let name = name.file_name().context("it has a name")?.to_string_lossy();
    capture.wait_for_line(Stream::Stdout, LONG, |line| {
        line.contains(&*name) && line.contains(r#""cause":"#)
    })?;
    Ok(capture)
}

/// Programs that start are attached to, and SIGTERM ends it.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_blocked_stderr_costs_neither_the_capture_nor_its_end() -> Result<()> {
    let (fleet, unread) = (Fleet::new("unread")?, Unread::new()?);
    let mut capture = attached_unread(&fleet, &unread)?;
    let begun = Instant::now();
    capture.signal(Signal::TERM)?;
    capture.finish(LONG)?.success()?;
    let took = begun.elapsed();
    ensure!(took < patient(Duration::from_secs(10)), "{took:?}");
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn what_is_said_while_stderr_is_blocked_is_there_once_somebody_reads() -> Result<()> {
    let (fleet, mut unread) = (Fleet::new("readlate")?, Unread::new()?);
    let mut capture = attached_unread(&fleet, &unread)?;
    let mut said = String::new();
    let deadline = Instant::now() + patient(LONG);
    while !said.contains("also capturing") {
        ensure!(Instant::now() < deadline, "{said}");
        said += &unread.read()?;
        thread::sleep(Duration::from_millis(10));
    }
    capture.signal(Signal::TERM)?;
    capture.finish(LONG)?.success()?;
    said += &unread.read()?;
    let mut lines = said.lines();
    for begin in ["attached to ", "also capturing ", "programs: ", "summary: "] {
        ensure!(lines.any(|line| line.starts_with(begin)), "{begin}: {said}");
    }
    Ok(())
}

/// A file system of 64 KiB, mounted while this lives.
struct TinyDisk(tempfile::TempDir);

impl TinyDisk {
    fn mount() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "none"]);
        xtask::run::output(mount.arg(dir.path()))?;
        Ok(Self(dir))
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("output")
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        let _ = xtask::run::output(umount.arg("--lazy").arg(self.0.path()));
    }
}

/// What each mode, and each other output, writes to, given a file or `-`.
const MODES: [(&str, &str); 8] = [
    ("", "standard output"),
    ("--format json", "standard output"),
    ("-m keylog -k", "key log"),
    ("-m pcap -i lo -w", "capture file"),
    ("-m plain -w", "capture file"),
    ("--record", "recording"),
    ("--har", HAR),
    ("--eventaddr", EVENTS),
];
const HAR: &str = "HAR file";
const EVENTS: &str = "event file";

/// A program that gives an output something to write.
fn program_for(destination: &str) -> Result<Program> {
    match destination {
        HAR => https::program(GoRelease::NEWEST),
        _ => Program::newest(),
    }
}

/// The capture ends with one line that says why; the target notices nothing.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_disk_that_runs_full_ends_the_capture_in_every_mode() -> Result<()> {
    for (mode, destination) in MODES {
        let disk = TinyDisk::mount()?;
        let program = program_for(destination)?;
        let mut command = ecapture();
        command.args(["gotls", "-e"]).arg(program.path());
        command.args(mode.split_whitespace());
        let stdout = if destination == "standard output" {
            File::create(disk.file())?.into()
        } else {
            command.arg(disk.file());
            Stdio::piped()
        };
        let capture = Capture::attached(Child::spawn_to(&mut command, stdout)?)?;
        if destination == HAR {
            Https::start(&program, "-requests 200")?.finish()?;
        } else {
            // Key logs fill a disk slowly.
            program.run("-scenario eof -conns 100 -sizes 100,1000,2000")?;
        }
        let finished = capture.end()?;
        let stderr = finished.stderr_text();
        assert_eq!(finished.status.code(), Some(FAILED), "{mode}: {stderr}");
        let complaint = stderr.lines().find(|line| line.starts_with("ecapture: "));
        let complaint = complaint.with_context(|| format!("{mode}: {stderr}"))?;
        assert!(complaint.contains(destination), "{mode}: {complaint}");
        assert!(complaint.contains("No space left"), "{mode}: {complaint}");
        assert!(
            fs::metadata(disk.file())?.len() > 32 * 1024,
            "{mode}: not full"
        );
    }
    Ok(())
}

/// `| head -c 1`: nobody needs more, so it is no failure. Events go to standard output without `--eventaddr`.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_reader_that_goes_away_ends_the_capture_in_every_mode() -> Result<()> {
    for (mode, destination) in MODES.into_iter().filter(|(_, to)| *to != EVENTS) {
        let program = program_for(destination)?;
        let mut command = ecapture();
        command.args(["gotls", "-e"]).arg(program.path());
        command.args(mode.split_whitespace());
        if destination != "standard output" {
            command.arg("-");
        }
        let mut piped = Piped::spawn(command)?;
        if destination == HAR {
            // What a HAR file begins with is there before anything is captured.
            piped.pipe.read_exact(&mut [0])?;
            drop(piped.pipe);
            Https::start(&program, "-requests 200")?.finish()?;
        } else {
            let mut target = program.start("-hold -linger -conns 4 -sizes 100,4096")?;
            target.go()?;
            piped.pipe.read_exact(&mut [0])?;
            drop(piped.pipe);
            target.wait_until_done()?;
            target.finish()?;
        }
        let finished = piped.capture.end()?.success().context(mode)?;
        assert!(!finished.stderr_text().contains("ecapture: "), "{mode}");
    }
    Ok(())
}

/// What it wrote until then is shown, all of it, and the capture ends by itself. The other end, which lives
/// on, tells what has left the target.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_target_killed_in_the_middle_of_a_write_is_shown_until_there() -> Result<()> {
    const SIZE: u64 = 1 << 20;
    const KILLS: u32 = 12;

    let mut within_writes = 0;
    for kill in 0..KILLS {
        // The other end is not captured, and sends nothing: of a connection with unread data, the kernel would
        // drop what is on its way (TLS 1.3 has tickets).
        let (peer, program) = (Program::newest()?, Program::newest()?);
        let flags = format!("-tls 1.2 -scenario closewrite -rounds 10000 -sizes {SIZE}");
        let peer = peer.start(&format!("-role server {flags}"))?;
        let role = format!("-hold -role client -addr {}", peer.addr());
        let mut target = program.start(&format!("{role} {flags}"))?;
        let capture = Capture::of_pid(target.pid(), "--mapsize 262144")?;
        target.go()?;
        capture.wait_for_data()?;
        // Not always in the same write.
        thread::sleep(Duration::from_millis(15) * kill);
        drop(target); // killed
        let written = check_beginnings(&capture.finish()?, SIZE)?;
        let read = peer.finish_cut_off()?;
        println!("killed: {written} bytes of writes are shown, of which {read} have arrived");
        ensure!(written >= read, "{written} of {read} bytes are shown");
        ensure!(written - read <= SIZE, "more than one write is unfinished");
        // What writes that are over have handed to the kernel has arrived.
        within_writes += u32::from(written > read);
    }
    ensure!(within_writes > 0, "no test: no kill was in a write");
    Ok(())
}

/// Checks that nothing is missing of what `exchange`, as the client of one connection, wrote and read in
/// messages of one size, up to wherever it came, and returns how many bytes it wrote.
fn check_beginnings(captured: &Captured, size: u64) -> Result<u64> {
    let mut streams: BTreeMap<_, Vec<u8>> = BTreeMap::new();
    for line in captured.lines() {
        match line? {
            Line::Data(data) => {
                let stream = streams.entry((data.direction, data.conn)).or_default();
                ensure!(data.offset == stream.len() as u64, "a gap: {data:?}");
                stream.extend(data.payload);
            }
            Line::Connection(_) | Line::Close(_) => {}
            Line::Lost(lost) => bail!("{lost:?}"),
        }
    }
    let mut written = Vec::new();
    for ((direction, connection), shown) in &streams {
        let length = shown.len() as u64;
        let sender = match direction {
            Direction::Write => "client",
            Direction::Read => "server",
        };
        let was_sent = payload::stream(sender, 0, &[size], length) == *shown;
        ensure!(was_sent, "{connection} {direction:?}: {length} bytes");
        if *direction == Direction::Write {
            written.push(length);
        }
    }
    let [written] = written[..] else {
        bail!("writes on {} connections", written.len());
    };
    Ok(written)
}

/// Payloads whose pages are nowhere in memory when a probe wants them. Sleepable programs (Linux 6.0)
/// fetch them; before, they are counted as unreadable.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_payload_that_is_not_in_memory_is_fetched_or_counted() -> Result<()> {
    for kind in ["auto", "perf"] {
        let mapped = standalone::Program::Mapped;
        let program = Program::copy_of(&mapped.binary(GoRelease::NEWEST, Variant::Default)?)?;
        let file = program.dir().join("payloads");
        let mut target = program.start(&format!("-file {}", file.display()))?;
        let capture = Capture::of_pid(target.pid(), &format!("--uprobes {kind}"))?;
        target.go()?;
        let (log, done) = target.finish_with_done()?;
        if !kernel::is_in_memory(&file)? {
            assert_eq!(done["resident"], 0, "no test: the pages were there");
        }
        let captured = capture.finish()?;
        if kernel::version()? >= (6, 0) {
            captured.connections()?.assert_equal(&log.connections());
            continue;
        }
        let written: u64 = log.connections().iter().flat_map(|c| &c.write.calls).sum();
        let summary = captured.summary;
        assert!(summary.unreadable_bytes > 0, "{summary:?}");
        assert_eq!(summary.lost_bytes, 0, "{summary:?}");
        // Each byte is written once and read once.
        assert_eq!(summary.bytes + summary.unreadable_bytes, 2 * written);
        let mut unreadable = 0;
        for line in captured.lines() {
            if let Line::Lost(lost) = line? {
                assert_eq!(lost.reason, "unreadable");
                assert!(lost.place.is_some(), "{lost:?}");
                unreadable += lost.bytes;
            }
        }
        assert_eq!(unreadable, summary.unreadable_bytes);
    }
    Ok(())
}

/// Shells that start programs as fast as they can, while this lives.
pub(crate) struct Storm(#[expect(dead_code, reason = "dropping them ends them")] Vec<Child>);

impl Storm {
    pub(crate) fn start() -> Result<Self> {
        // Subshells are forks, `true` by its path is an exec.
        let script = "while :; do (:); /bin/true; (/bin/true & wait); done";
        let shells = (0..2).map(|_| Child::spawn(Command::new("sh").args(["-c", script])));
        Ok(Self(shells.collect::<Result<_>>()?))
    }
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_storm_of_processes_costs_no_byte() -> Result<()> {
    let program = Program::newest()?;
    let sizes = [100, 20_000];
    let capture = Capture::of(&program.path(), "--mapsize 65536")?;
    let storm = Storm::start()?;
    let mut streams = Streams::of(&program.run("-sizes 100,20000")?, &sizes);
    for _ in 0..20 {
        streams = streams.and(Streams::of(&program.run("-sizes 100,20000")?, &sizes));
    }
    drop(storm);
    let account = streams.account(&capture.stop()?)?;
    assert_eq!(account.lost, 0);
    Ok(())
}

/// The targets are part of the storm: each brings sockets that somebody has to own from the first SYN on.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_storm_of_processes_costs_no_packet() -> Result<()> {
    const RUNS: usize = 20;

    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("storm.pcapng");
    let mut command = ecapture();
    command
        .args(["gotls", "-m", "pcap", "-i", "lo", "-w"])
        .arg(&file);
    let mut capture = Capture::spawn(command.arg("-e").arg(program.path()))?;
    let storm = Storm::start()?;
    for _ in 0..RUNS {
        program.run("-tls 1.3 -sizes 100")?;
    }
    drop(storm);
    capture.child().signal(Signal::INT)?;
    let stderr = capture.end()?.success()?.stderr_text();
    ensure!(stderr.contains("lost: 0 packets"), "{stderr}");
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(&file);
    // Both ends' first SYNs on lo are one packet each.
    let syns = xtask::run::output(tshark.args(["-Y", "tcp.flags.syn == 1"]))?;
    assert_eq!(syns.lines().count(), 2 * RUNS, "{syns}");
    Ok(())
}

/// Memory, file descriptors and the numbers of what is open are as before when they are closed.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn ten_thousand_connections_leave_nothing_behind() -> Result<()> {
    let program = Program::new(GoRelease::Go1_24, Variant::Default)?;
    let child = Child::spawn_to(&mut json(&program, "--mapsize 4096"), Stdio::null())?;
    let mut capture = Capture::attached(child)?;
    let pid = capture.pid();
    let connections = |rounds: u32| {
        program.run(&format!(
            "-scenario eof -conns 100 -rounds {rounds} -sizes 10"
        ))
    };
    connections(10)?;
    let before = (kernel::anonymous_memory(pid)?, kernel::descriptors(pid)?);
    connections(100)?;
    let after = (kernel::anonymous_memory(pid)?, kernel::descriptors(pid)?);
    capture.child().signal(Signal::INT)?;
    let stderr = capture.end()?.success()?.stderr_text();
    // Two ends of each.
    ensure!(
        stderr.contains("on 22000 connections; lost: 0 events"),
        "{stderr}"
    );
    println!("memory and descriptors: {before:?}, afterwards {after:?}");
    assert_eq!(after.1, before.1, "descriptors");
    assert!(after.0 < before.0 + (2 << 20), "{before:?} {after:?} bytes");
    Ok(())
}
