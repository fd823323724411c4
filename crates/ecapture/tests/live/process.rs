//! Which process is captured, from when to when, and how its connections are told apart.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use xtask::matrix::{GoRelease, Variant};

use crate::capture::{Capture, Signal};
use crate::exchange::{Exchange, Program};

/// Waits for the program's end, and sees that all that it said was captured.
fn assert_all_is_captured(target: Exchange, capture: Capture) -> Result<()> {
    let log = target.finish()?;
    capture
        .finish()?
        .connections()?
        .assert_equal(&log.connections());
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_pid_alone_is_enough() -> Result<()> {
    for variant in [Variant::Default, Variant::StrippedPie] {
        let program = Program::new(GoRelease::NEWEST, variant)?;
        let mut target = program.start("-hold")?;
        let capture = Capture::of_pid(target.pid(), "")?;
        target.go()?;
        assert_all_is_captured(target, capture)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn the_executable_may_be_deleted_from_disk() -> Result<()> {
    let program = Program::newest()?;
    let mut target = program.start("-hold")?;
    std::fs::remove_file(program.path())?;
    let capture = Capture::of_pid(target.pid(), "")?;
    target.go()?;
    assert_all_is_captured(target, capture)
}

/// As in a container: our path of the same name has no such file.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn the_executable_may_be_in_another_mount_namespace() -> Result<()> {
    let program = Program::newest()?;
    let inside = program.dir().join("inside");
    std::fs::create_dir(&inside)?;
    let mut target = Exchange::spawn(
        Command::new("unshare")
            .args(["--mount", "sh", "-ec"])
            .arg(r#"mount -t tmpfs none "$1"; cp "$0" "$1/program"; exec "$1/program" -hold"#)
            .arg(program.path())
            .arg(&inside),
    )?;
    assert!(!inside.join("program").exists(), "not in another namespace");
    let capture = Capture::of_pid(target.pid(), "")?;
    target.go()?;
    assert_all_is_captured(target, capture)
}

/// The overlay has a device number of its own.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn the_executable_may_be_given_by_its_path_below_the_overlay_that_it_runs_on() -> Result<()> {
    let program = Program::newest()?;
    let all = program.dir().join("all");
    std::fs::create_dir(&all)?;
    let mut target = Exchange::spawn(
        Command::new("unshare")
            .args(["--mount", "sh", "-ec"])
            .arg(
                r#"mount -t tmpfs none /mnt; mkdir /mnt/up /mnt/work
                mount -t overlay overlay -o lowerdir="$0",upperdir=/mnt/up,workdir=/mnt/work "$1"
                exec "$1/exchange" -hold"#,
            )
            .arg(program.dir())
            .arg(&all),
    )?;
    assert!(!all.join("exchange").exists(), "not on an overlay");
    let capture = Capture::of(&program.path(), &format!("--pid {}", target.pid()))?;
    target.go()?;
    assert_all_is_captured(target, capture)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_path_covers_processes_from_before_and_after() -> Result<()> {
    let program = Program::newest()?;
    let mut before = program.start("-hold -seed 2")?;
    let capture = Capture::of(&program.path(), "")?;
    before.go()?;
    let before = before.finish()?.connections();
    let after = program.run("-seed 3")?.connections();
    capture
        .stop()?
        .connections()?
        .assert_equal(&before.and(after));
    Ok(())
}

/// As a package's upgrade does, or one of a release that a symbolic link leads to.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn it_is_said_when_a_path_leads_to_another_file() -> Result<()> {
    let [program, upgrade] = [Program::newest()?, Program::newest()?];
    let link = program.dir().join("current");
    std::os::unix::fs::symlink(program.path(), &link)?;
    let capture = Capture::of(&link, "")?;
    let of_old = program.run("-seed 1")?;
    let new_link = program.dir().join("next");
    std::os::unix::fs::symlink(upgrade.path(), &new_link)?;
    std::fs::rename(&new_link, &link)?;
    capture.wait_for_note("current is another file now")?;
    upgrade.run("-seed 2")?;
    capture
        .stop()?
        .connections()?
        .assert_equal(&of_old.connections());
    Ok(())
}

/// Attached in the middle of a connection, the capture begins with the call that comes next.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn connections_that_exist_already_are_shown_from_then_on() -> Result<()> {
    let program = Program::newest()?;
    let target = program.start("-scenario slow -minseconds 3 -conns 2 -sizes 100,4096")?;
    let capture = Capture::of_pid(target.pid(), "")?;
    capture.wait_for_data()?;
    let log = target.finish()?.connections();
    let captured = capture.finish()?.connections()?;
    assert_eq!(captured.len(), log.len());
    for connection in captured.iter() {
        let calls = &connection.write.calls;
        assert!(
            log.iter().any(|whole| whole.write.calls.ends_with(calls)),
            "not the end of any connection: {} calls",
            calls.len()
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn the_end_of_the_target_ends_a_capture_by_pid() -> Result<()> {
    let program = Program::newest()?;
    let mut target = program.start("-hold -linger")?;
    let mut capture = Capture::of_pid(target.pid(), "")?;
    target.go()?;
    target.wait_until_done()?;
    capture.wait_for_data()?;
    assert_eq!(capture.child().try_status()?, None, "the target still runs");
    assert_all_is_captured(target, capture)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_duration_ends_the_capture() -> Result<()> {
    let program = Program::newest()?;
    let started = Instant::now();
    let capture = Capture::of(&program.path(), "--duration 1.5")?;
    let log = program.run("-sizes 1,100")?;
    let captured = capture.finish()?;
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(1500), "{took:?}");
    captured.connections()?.assert_equal(&log.connections());
    Ok(())
}

/// Everything that is in the buffer when the signal comes is written.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn signals_end_the_capture_with_all_that_was_captured() -> Result<()> {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let program = Program::newest()?;
        let mut target = program.start("-hold -linger -conns 2")?;
        let capture = Capture::of(&program.path(), "")?;
        target.go()?;
        target.wait_until_done()?;
        let captured = capture.stop_by(signal)?;
        let log = target.finish()?;
        captured.connections()?.assert_equal(&log.connections());
    }
    Ok(())
}

/// As below nohup(1), at the end of the terminal, and in the background of a script, which ends it by SIGINT.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_hang_up_that_is_to_be_ignored_is_and_ctrl_c_is_not() -> Result<()> {
    let program = Program::newest()?;
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"trap "" HUP INT; exec "$0" "$@""#])
        .arg(env!("CARGO_BIN_EXE_ecapture"));
    command.args(["gotls", "--format", "json"]);
    command.args(["--events", "connection,data,lost,close", "-e"]);
    let mut capture = Capture::spawn(command.arg(program.path()))?;
    capture.child().signal(Signal::HUP)?;
    let log = program.run("-sizes 100")?;
    capture.wait_for_data()?;
    let captured = capture.stop_by(Signal::INT)?;
    captured.connections()?.assert_equal(&log.connections());
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_signal_ends_a_capture_that_saw_nothing() -> Result<()> {
    let program = Program::newest()?;
    let captured = Capture::of(&program.path(), "")?.stop_by(Signal::INT)?;
    assert_eq!(captured.lines().count(), 0);
    assert_eq!(captured.summary.events, 0);
    Ok(())
}

/// Go's allocator gives a new connection the address of a dead one.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn connections_at_the_same_address_are_told_apart() -> Result<()> {
    for release in [GoRelease::OLDEST, GoRelease::NEWEST] {
        for (scenario, conns) in [("eof", 10), ("abort", 4)] {
            let program = Program::new(release, Variant::Default)?;
            let capture = Capture::of(&program.path(), "--mapsize 131072")?;
            let flags = format!("-scenario {scenario} -conns {conns} -rounds 20 -sizes 1000");
            let log = Exchange::spawn(program.command(&flags).env("GOGC", "1"))?.finish()?;
            let connections = log.connections();
            let addresses: BTreeSet<_> = log.streams.iter().map(|s| &s.conn).collect();
            assert!(
                addresses.len() < connections.len(),
                "{} connections at {} addresses: no test",
                connections.len(),
                addresses.len()
            );
            capture.stop()?.connections()?.assert_equal(&connections);
        }
    }
    Ok(())
}

/// The pid that is shown is the process's, the thread one of its own.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn lines_name_process_and_thread() -> Result<()> {
    use crate::capture::Line;

    let program = Program::newest()?;
    let mut target = program.start("-hold -linger -conns 4 -sizes 100")?;
    let capture = Capture::of_pid(target.pid(), "")?;
    target.go()?;
    target.wait_until_done()?;
    let captured = capture.stop()?;
    for line in captured.lines() {
        let data = match line? {
            Line::Data(data) => data,
            Line::Connection(_) | Line::Close(_) => continue,
            Line::Lost(_) => anyhow::bail!("lost something"),
        };
        assert_eq!((data.pid, data.comm.as_str()), (target.pid(), "exchange"));
        let thread = format!("/proc/{}/task/{}", data.pid, data.tid);
        assert!(std::path::Path::new(&thread).exists(), "{thread}");
    }
    target.finish()?;
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn times_are_those_of_the_wall_clock() -> Result<()> {
    use crate::capture::Line;

    let now = || -> Result<String> {
        let format = "+%Y-%m-%dT%H:%M:%S.%NZ";
        let time = xtask::run::output(Command::new("date").args(["-u", format]))?;
        Ok(time.trim().to_owned())
    };
    let program = Program::newest()?;
    let capture = Capture::of(&program.path(), "")?;
    let before = now()?;
    program.run("-sizes 100")?;
    let after = now()?;
    let mut count = 0;
    let mut previous = before;
    for line in capture.stop()?.lines() {
        if let Line::Data(data) = line? {
            // This notation sorts as the times do.
            assert_eq!(data.time.len(), after.len());
            assert!(
                data.time > previous || count > 0,
                "{} {previous}",
                data.time
            );
            assert!(data.time < after, "{} {after}", data.time);
            previous = data.time;
            count += 1;
        }
    }
    assert_eq!(count, 4, "two ends write and read a message each");
    Ok(())
}
