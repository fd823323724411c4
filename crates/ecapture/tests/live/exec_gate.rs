//! Nobody has to wait for a capture for long: it may be stopped or killed, and so may the process that
//! holds programs for it. Needs fanotify with permission events (CONFIG_FANOTIFY_ACCESS_PERMISSIONS).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use xtask::matrix::{GoRelease, Variant};
use xtask::process::{Child, Stream, patient};
use xtask::run;

use crate::capture::{Capture, Captured, Signal};
use crate::exchange::{Exchange, LONG};
use crate::fleet::{Fleet, command};
use crate::kernel;

/// The longest that can be asked for.
const HELD_FOR_GOOD: &str = "--longest-hold 60000";

/// Who goes on before this was not let go on because that time was up.
const BEFORE_TIME_IS_UP: Duration = Duration::from_secs(45);

/// The process that holds programs for a capture: its only child.
pub(crate) fn guard_of(capture: &Capture) -> Result<u32> {
    let parent = capture.pid().to_string();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // proc(5), stat: the parent is the second field behind the name, which is in parentheses.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        if fields.split(' ').nth(1) == Some(&parent) {
            return Ok(pid);
        }
    }
    anyhow::bail!("the capture has no child")
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).context("no pid")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

/// Stops the capture, and waits until all of its threads have.
pub(crate) fn stop(capture: &mut Capture) -> Result<()> {
    capture.child().signal(Signal::STOP)?;
    let deadline = Instant::now() + patient(LONG);
    while !kernel::is_stopped(capture.pid())? {
        ensure!(Instant::now() < deadline, "it does not stop");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A shell that executes a program once it is told to.
struct Starting {
    shell: Child,
    path: PathBuf,
}

impl Starting {
    fn new(path: &Path) -> Result<Self> {
        let script = r#"echo ready; read go; exec "$0" -sizes 100"#;
        let shell = Child::spawn(Command::new("sh").args(["-c", script]).arg(path))?;
        shell.wait_for_prefix(Stream::Stdout, LONG, "ready")?;
        Ok(Self {
            shell,
            path: path.to_owned(),
        })
    }

    fn go(&mut self) -> Result<()> {
        self.shell.send_line("go")
    }

    fn has_begun(&self) -> Result<bool> {
        let running = fs::read_link(format!("/proc/{}/exe", self.shell.pid()))?;
        Ok(running == self.path)
    }

    fn finish(self) -> Result<()> {
        self.shell.finish(LONG)?.success()?;
        Ok(())
    }
}

/// Programs that nobody has seen before go on while the capture is stopped. At its end it names those
/// that would have been captured.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn programs_begin_while_the_capture_is_stopped_and_are_named() -> Result<()> {
    let fleet = Fleet::new("stopped")?;
    let add = |number| fleet.add(number, GoRelease::NEWEST, Variant::Stripped);
    let paths = (0..4).map(add);
    let paths = paths.collect::<Result<Vec<_>>>()?;
    let hold = patient(Duration::from_secs(2));
    let mut capture = fleet.capture_with(&format!("--longest-hold {}", hold.as_millis()))?;
    stop(&mut capture)?;
    let mut held = Vec::new();
    for path in &paths {
        let begun = Instant::now();
        Exchange::spawn(&mut command(path, "-sizes 100"))?.finish()?;
        held.push(begun.elapsed());
    }
    println!("with the capture stopped: {held:?}");
    // Nobody decided about the first one in time. So no other one has to wait.
    let others: Duration = held[1..].iter().sum();
    ensure!(others < 3 * hold, "held all the same: {held:?}");
    capture.child().signal(Signal::CONT)?;
    capture.child().signal(Signal::TERM)?;
    let stderr = capture.end()?.success()?.stderr_text();
    let summary = stderr.lines().find(|line| line.starts_with("programs: "));
    let summary = summary.context(stderr.clone())?;
    for path in &paths {
        let named = format!("1 {}: longer than the time limit", path.display());
        ensure!(summary.contains(&named), "{named}\n{summary}");
    }
    Ok(())
}

/// Whatever happens to the capture, programs that wait begin.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_program_that_is_held_begins_when_the_capture_is_killed() -> Result<()> {
    let fleet = Fleet::new("held")?;
    let path = fleet.add(0, GoRelease::NEWEST, Variant::Default)?;
    let mut starting = Starting::new(&path)?;
    let mut capture = fleet.capture_with(HELD_FOR_GOOD)?;
    // Nobody decides now.
    stop(&mut capture)?;
    starting.go()?;
    thread::sleep(Duration::from_secs(1));
    ensure!(!starting.has_begun()?, "it was not held");
    let killed = Instant::now();
    capture.child().signal(Signal::KILL)?;
    starting.finish()?;
    let took = killed.elapsed();
    println!("held, it ended {took:?} after the kill");
    ensure!(took < BEFORE_TIME_IS_UP, "held for {took:?} after the kill");
    ensure!(!capture.end()?.status.success(), "it was killed");
    Ok(())
}

/// What is meant for the capture does not end or stop the process that holds programs for it.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn signals_for_the_capture_do_not_reach_the_guard() -> Result<()> {
    let fleet = Fleet::new("signals")?;
    let path = fleet.add(0, GoRelease::NEWEST, Variant::Default)?;
    let capture = fleet.capture()?;
    let guard = guard_of(&capture)?;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::TSTP] {
        send(guard, signal)?;
    }
    let session = rustix::process::getsid(Pid::from_raw(guard.cast_signed()))?;
    assert_eq!(session.as_raw_pid().cast_unsigned(), guard);
    let log = Exchange::spawn(&mut command(&path, "-sizes 100"))?.finish()?;
    let captured = capture.stop()?;
    captured.connections()?.assert_equal(&log.connections());
    Ok(())
}

/// Captures from a program that starts after the guard is gone: from when it was seen to have started.
fn goes_on_without_guard(mut capture: Capture, path: &Path) -> Result<()> {
    capture.wait_for_note("has ended; what they send")?;
    let mut unheld = Exchange::spawn(&mut command(path, "-hold -sizes 100"))?;
    let pid = unheld.pid();
    capture.wait_for_note(&format!("(pid {pid}), which had begun already"))?;
    unheld.go()?;
    let log = unheld.finish()?;
    capture.child().signal(Signal::TERM)?;
    let finished = capture.end()?.success()?;
    let summary = finished.stderr_text();
    let named = format!("1 {}: programs were no longer held", path.display());
    ensure!(summary.contains(&named), "{summary}");
    let captured = Captured::new(finished)?.connections_of(&[pid])?;
    captured.assert_equal(&log.connections());
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn the_capture_goes_on_when_the_guard_is_killed() -> Result<()> {
    let fleet = Fleet::new("unguarded")?;
    let path = fleet.add(0, GoRelease::NEWEST, Variant::Default)?;
    let capture = fleet.capture()?;
    send(guard_of(&capture)?, Signal::KILL)?;
    goes_on_without_guard(capture, &path)
}

/// A guard that is stopped would hold up everybody: the capture ends it.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn the_capture_goes_on_when_the_guard_is_stopped() -> Result<()> {
    let fleet = Fleet::new("hanging")?;
    let path = fleet.add(0, GoRelease::NEWEST, Variant::Default)?;
    let mut starting = Starting::new(&fleet.add(1, GoRelease::NEWEST, Variant::Stripped)?)?;
    let capture = fleet.capture()?;
    let guard = guard_of(&capture)?;
    send(guard, Signal::STOP)?;
    while !kernel::is_stopped(guard)? {
        thread::sleep(Duration::from_millis(1));
    }
    starting.go()?;
    starting.finish()?;
    goes_on_without_guard(capture, &path)
}

/// A file is looked at again when it has changed, though it was of no interest before.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_file_that_is_written_anew_is_looked_at_anew() -> Result<()> {
    let fleet = Fleet::new("anew")?;
    let binary = fleet.add(0, GoRelease::NEWEST, Variant::Stripped)?;
    let path = fleet.path(1);
    run::output(Command::new("cp").arg("/bin/true").arg(&path))?;
    let capture = fleet.capture()?;
    for _ in 0..3 {
        run::output(&mut Command::new(&path))?;
    }
    // The same inode, with other content.
    run::output(Command::new("cp").arg(&binary).arg(&path))?;
    let log = Exchange::spawn(&mut command(&path, "-sizes 100"))?.finish()?;
    capture
        .stop()?
        .connections()?
        .assert_equal(&log.connections());
    Ok(())
}
