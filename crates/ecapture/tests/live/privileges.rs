//! The least privilege: what README documents is enough to begin, with less the error names what is
//! missing, and once everything is attached hardly anything is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::matrix::{GoRelease, Variant};
use xtask::process::{Child, Finished};

use crate::capture::{Capture, Captured, ecapture};
use crate::exchange::{Exchange, LONG, Log, NOBODY, Program};
use crate::exec_gate::guard_of;
use crate::fleet::{self, Fleet};
use crate::wrong_input::{FAILED, refused};
use crate::{kernel, keylog, plain};

/// Capabilities by name, as setpriv(1) knows them.
const TRACE: &[&str] = &["bpf", "perfmon"];
const PACKETS: &[&str] = &["bpf", "perfmon", "net_admin"];

/// What runs ecapture as an ordinary user with these capabilities, and no others to be had.
fn as_nobody(ecapture: &Program, capabilities: &[&str]) -> Command {
    let named = capabilities.iter().map(|name| format!(",+{name}"));
    let only = format!("-all{}", named.collect::<String>());
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
    command.args(["--clear-groups", "--inh-caps", &only]);
    command.args(["--ambient-caps", &only, "--bounding-set", &only]);
    command.arg(ecapture.path()).arg("gotls");
    command
}

/// A copy, because an ordinary user may not get at the checkout.
fn copy_of_ecapture() -> Result<Program> {
    Program::copy_of(Path::new(env!("CARGO_BIN_EXE_ecapture")))
}

/// The modes with what they take. All write to standard output.
const MODES: [(&str, &[&str]); 4] = [
    (JSON, TRACE),
    (KEYLOG, TRACE),
    (PLAIN, TRACE),
    (PCAP, PACKETS),
];
const JSON: &str = "--format json --events connection,data,lost,close";
const KEYLOG: &str = "-m keylog -k -";
const PLAIN: &str = "-m plain -w -";
const PCAP: &str = "-m pcap -w - -i lo";

/// What is captured in these tests: so many connections of a program with itself.
const TRAFFIC: &str = "-tls 1.3 -conns 2 -sizes 1,1000";
const CONNECTIONS: usize = 2;

/// Checks that a mode's output has all of [`TRAFFIC`].
fn check(mode: &str, finished: Finished, log: &Log) -> Result<()> {
    let stderr = finished.stderr_text();
    ensure!(stderr.contains("lost: 0 "), "{mode}: {stderr}");
    match mode {
        JSON => Captured::new(finished)?
            .connections()?
            .assert_equal(&log.connections()),
        KEYLOG => {
            let keys = finished.stdout_text();
            for label in keylog::TLS_1_3 {
                let count = keys.lines().filter(|line| line.starts_with(label)).count();
                ensure!(count == CONNECTIONS, "{label}: {keys}");
            }
        }
        PLAIN => {
            // What each end wrote, and what it read.
            let lengths = fields(&finished, "tcp.len > 0", "tcp.len")?;
            let bytes: u64 = lengths.iter().sum();
            let log = log.streams.iter().flat_map(|stream| &stream.calls);
            assert_eq!(bytes, log.sum::<u64>(), "{mode}: {lengths:?}");
        }
        _ => {
            // Each connection from its beginning to its end, without a gap: attribution is lost without
            // the capabilities that it takes.
            for filter in [
                "tcp.flags.syn == 1 && tcp.flags.ack == 0",
                "tcp.flags.syn == 1 && tcp.flags.ack == 1",
                "tcp.flags.fin == 1",
            ] {
                let streams: BTreeSet<_> = fields(&finished, filter, "tcp.stream")?
                    .into_iter()
                    .collect();
                assert_eq!(streams.len(), CONNECTIONS, "{mode}: {filter}: {stderr}");
            }
            let gaps = "tcp.analysis.lost_segment || tcp.analysis.ack_lost_segment";
            assert_eq!(fields(&finished, gaps, "tcp.stream")?, [0; 0], "{mode}");
            let keys = format!(", {} keys; ", keylog::TLS_1_3.len() * CONNECTIONS);
            ensure!(stderr.contains(&keys), "{mode}: {stderr}");
        }
    }
    Ok(())
}

/// A number of each packet that the filter accepts, in a file of packets on standard output.
fn fields(finished: &Finished, filter: &str, field: &str) -> Result<Vec<u64>> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("packets.pcapng");
    fs::write(&file, &finished.stdout)?;
    let found = plain::fields(&file, filter, &[field])?;
    found
        .iter()
        .map(|number| number.parse().context(number.clone()))
        .collect()
}

/// What uprobes take on this kernel: before multi-uprobe links, kernels differ in whether
/// CAP_PERFMON is enough. Before Linux 5.11, memory of eBPF counts as locked, of which users have little.
fn on_this_kernel<'a>(capabilities: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut capabilities = capabilities.to_vec();
    if kernel::version()? < (6, 10) {
        capabilities.retain(|name| !TRACE.contains(name));
        capabilities.push("sys_admin");
    }
    if kernel::version()? < (5, 11) {
        capabilities.push("sys_resource");
    }
    Ok(capabilities)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn each_mode_runs_with_the_documented_capabilities() -> Result<()> {
    let ecapture = copy_of_ecapture()?;
    for (flags, capabilities) in MODES {
        let program = Program::newest()?;
        let mut command = as_nobody(&ecapture, &on_this_kernel(capabilities)?);
        command
            .args(flags.split_whitespace())
            .arg("-e")
            .arg(program.path());
        let mut capture = Capture::spawn(&mut command)?;
        let log = program.run(TRAFFIC)?;
        capture.child().signal(crate::capture::Signal::INT)?;
        check(flags, capture.end()?.success()?, &log)?;
    }
    Ok(())
}

/// `ulimit -l 0`, and no way to raise it where memory of eBPF does not count as locked.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn no_limit_on_locked_memory_is_too_low_for_root() -> Result<()> {
    let program = Program::newest()?;
    let mut command = Command::new("prlimit");
    command.arg("--memlock=0:0");
    if kernel::version()? >= (5, 11) {
        command.args(["setpriv", "--bounding-set", "-sys_resource"]);
    }
    command.arg(env!("CARGO_BIN_EXE_ecapture")).arg("gotls");
    command.args(JSON.split_whitespace()).arg("-e");
    let mut capture = Capture::spawn(command.arg(program.path()))?;
    let log = program.run(TRAFFIC)?;
    capture.child().signal(crate::capture::Signal::INT)?;
    check(JSON, capture.end()?.success()?, &log)
}

/// Of a process of somebody else, which has connections already.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn each_mode_captures_another_users_process_with_the_documented_capabilities() -> Result<()> {
    let ecapture = copy_of_ecapture()?;
    for (flags, capabilities) in MODES {
        let mut capabilities = on_this_kernel(capabilities)?;
        capabilities.push("sys_ptrace");
        if flags.contains("pcap") {
            capabilities.push("dac_read_search");
        }
        let program = Program::newest()?;
        let mut target = program.start(&format!("-hold {TRAFFIC}"))?;
        let mut command = as_nobody(&ecapture, &capabilities);
        let capture = Capture::spawn(
            command
                .args(flags.split_whitespace())
                .args(["--pid", &target.pid().to_string()]),
        )?;
        target.go()?;
        let log = target.finish()?;
        let finished = capture.end()?.success()?;
        let stderr = finished.stderr_text();
        ensure!(!stderr.contains("note: "), "{flags}: {stderr}");
        check(flags, finished, &log)?;
    }
    Ok(())
}

/// What all programs take, of whomever; the last one to hold those that start.
const ALL_PROGRAMS: &[&str] = &[
    "bpf",
    "perfmon",
    "sys_ptrace",
    "dac_read_search",
    "sys_admin",
];

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn all_programs_are_captured_with_the_documented_capabilities() -> Result<()> {
    let ecapture = copy_of_ecapture()?;
    let fleet = Fleet::new("least")?;
    let first = fleet.add(0, GoRelease::NEWEST, Variant::Default)?;
    let second = fleet.add(1, GoRelease::Go1_21, Variant::Stripped)?;
    let mut running = Exchange::spawn(&mut fleet::command(&first, "-hold -seed 1"))?;
    let mut command = as_nobody(&ecapture, &on_this_kernel(ALL_PROGRAMS)?);
    command.args(["--format", "json", "--events", "connection,data,lost,close"]);
    command.args(["--comm", &fleet.glob(), "--longest-hold", "60000"]);
    let capture = Capture::spawn(&mut command)?;
    let short = Exchange::spawn(&mut fleet::command(&second, "-seed 2"))?.finish()?;
    running.go()?;
    let expected = running.finish()?.connections().and(short.connections());
    capture.stop()?.connections()?.assert_equal(&expected);
    Ok(())
}

/// Without the one that holding programs takes, a note names it, and the summary what was not held.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn without_sys_admin_all_programs_are_captured_from_when_they_are_seen() -> Result<()> {
    if kernel::version()? < (6, 10) {
        return Ok(()); // Attaching takes it too.
    }
    let ecapture = copy_of_ecapture()?;
    let fleet = Fleet::new("lesser")?;
    let path = fleet.add(0, GoRelease::NEWEST, Variant::Default)?;
    let mut command = as_nobody(&ecapture, &ALL_PROGRAMS[..4]);
    command.args(["--format", "json", "--events", "connection,data,lost,close"]);
    let mut capture = Capture::spawn(command.args(["--comm", &fleet.glob()]))?;
    capture.wait_for_note("run as root, or with CAP_SYS_ADMIN")?;
    let mut program = Exchange::spawn(&mut fleet::command(&path, "-hold"))?;
    capture.wait_for_note("which had begun already")?;
    program.go()?;
    let log = program.finish()?;
    capture.child().signal(crate::capture::Signal::TERM)?;
    let finished = capture.end()?.success()?;
    let named = format!("1 {}: programs can't be held here", path.display());
    ensure!(finished.stderr_text().contains(&named), "{finished:?}");
    let captured = Captured::new(finished)?;
    captured.connections()?.assert_equal(&log.connections());
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn with_one_capability_less_the_error_names_it() -> Result<()> {
    let ecapture = copy_of_ecapture()?;
    let program = Program::newest()?;
    let target = program.start("-hold")?;
    for (flags, capabilities) in MODES {
        for missing in capabilities {
            let rest: Vec<_> = capabilities
                .iter()
                .filter(|name| *name != missing)
                .copied()
                .collect();
            // What packets take is missed once there is what uprobes take.
            let rest = if TRACE.contains(missing) {
                rest
            } else {
                on_this_kernel(&rest)?
            };
            let mut command = as_nobody(&ecapture, &rest);
            command
                .args(flags.split_whitespace())
                .arg("-e")
                .arg(program.path());
            let says = format!("run as root, or with CAP_{}\n", missing.to_uppercase());
            refused(&mut command, FAILED, &says)?;
        }
        let mut command = as_nobody(&ecapture, capabilities);
        command.args(flags.split_whitespace());
        command.args(["--pid", &target.pid().to_string()]);
        refused(
            &mut command,
            FAILED,
            "run as root, or with CAP_SYS_PTRACE\n",
        )?;
    }
    Ok(())
}

/// They would be in the way of root, who does not write to other users' files where many can make some.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_capture_that_is_not_permitted_leaves_no_file_behind() -> Result<()> {
    let ecapture = copy_of_ecapture()?;
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    chown(dir.path(), Some(NOBODY), Some(NOBODY))?;
    for flags in [
        "-m keylog",
        "-m pcap",
        "-m plain",
        "--record x.rec --har x.har",
        "--eventaddr x.json",
    ] {
        let all = as_nobody(&ecapture, &[]);
        let mut one = as_nobody(&ecapture, &[]);
        one.arg("-e").arg(program.path());
        let commands = match flags {
            "-m pcap" => vec![one],
            _ => vec![one, all],
        };
        for mut command in commands {
            command.args(flags.split(' ')).current_dir(&dir);
            refused(&mut command, FAILED, "CAP_BPF and CAP_PERFMON")?;
            let left = fs::read_dir(&dir)?.next();
            ensure!(left.is_none(), "{flags}: {left:?}");
        }
    }
    Ok(())
}

/// Packets of connections that are there already would be missing, which is said.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn what_is_missing_of_packets_without_a_capability_is_said() -> Result<()> {
    let ecapture = copy_of_ecapture()?;
    let program = Program::newest()?;
    let target = program.start("-hold")?;
    let pid = target.pid().to_string();
    let path = program.path();
    let by_path = ["-e".as_ref(), path.as_os_str()];
    let by_pid = ["--pid".as_ref(), pid.as_ref()];
    for (more, of, says) in [
        (&["sys_ptrace"][..], by_pid, "CAP_DAC_READ_SEARCH"),
        (&["sys_ptrace"], by_path, "CAP_DAC_READ_SEARCH"),
        (&[], by_path, "CAP_SYS_PTRACE"),
    ] {
        let mut capabilities = on_this_kernel(PACKETS)?;
        capabilities.extend(more);
        let mut command = as_nobody(&ecapture, &capabilities);
        command
            .args(["-m", "pcap", "-w", "-", "--duration", "0.1"])
            .args(of);
        let finished = Child::spawn(&mut command)?.finish(LONG)?.success()?;
        let stderr = finished.stderr_text();
        let note = stderr.lines().find(|line| line.starts_with("note: "));
        ensure!(note.is_some_and(|note| note.contains(says)), "{stderr}");
    }
    Ok(())
}

// include/uapi/linux/capability.h
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_PTRACE: u64 = 1 << 19;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn what_was_needed_only_to_begin_is_given_up() -> Result<()> {
    const NET_READ: u64 = BPF | SYS_PTRACE | DAC_READ_SEARCH;
    const NET_ADMIN: u64 = 1 << 12;
    const FOWNER: u64 = 1 << 3;

    // By thread: what reading and detaching need, and looking after the sockets of new processes.
    let none = BTreeMap::from([("ecapture", 0), ("consumer", 0), ("log", 0)]);
    let detach = match kernel::version()? {
        old if old < (6, 6) => BPF | NET_ADMIN, // no tcx
        _ => BPF,
    };
    let mut packets = none.clone();
    packets.extend([("ecapture", detach), ("sockets", NET_READ)]);
    let mut rotating = none.clone();
    rotating.insert("consumer", DAC_OVERRIDE | FOWNER);
    let dir = tempfile::tempdir()?;
    let events = format!(
        "--eventroratesize 1 --eventaddr {}/events",
        dir.path().display()
    );
    for (flags, expected) in [
        (JSON, &none),
        (&events, &rotating),
        (KEYLOG, &none),
        (PLAIN, &none),
        (PCAP, &packets),
    ] {
        let program = Program::newest()?;
        let target = program.start("-scenario slow -minseconds 2 -conns 2 -sizes 100")?;
        let mut command = ecapture();
        command.arg("gotls").args(flags.split_whitespace());
        let capture = Capture::spawn(command.args(["--pid", &target.pid().to_string()]))?;
        let deadline = Instant::now() + LONG;
        loop {
            let kept = capabilities_of(capture.pid())?;
            let kept: BTreeMap<_, _> = kept.iter().map(|(name, &set)| (&**name, set)).collect();
            if kept == *expected {
                break;
            }
            ensure!(Instant::now() < deadline, "{flags}: {kept:x?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        target.finish()?;
        let stderr = capture.end()?.success()?.stderr_text();
        ensure!(stderr.contains("lost: 0 "), "{flags}: {stderr}");
    }
    Ok(())
}

/// What attaching to further programs takes is kept by the thread that does it, and the process that holds
/// programs keeps what letting them go on takes.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn what_attaching_to_further_programs_takes_is_kept() -> Result<()> {
    const SYS_ADMIN: u64 = 1 << 21;
    const ATTACH: u64 = BPF | PERFMON | SYS_PTRACE | DAC_READ_SEARCH | DAC_OVERRIDE | SYS_ADMIN;

    let fleet = Fleet::new("kept")?;
    let path = fleet.add(0, GoRelease::NEWEST, Variant::Default)?;
    let capture = fleet.capture()?;
    let log = Exchange::spawn(&mut fleet::command(&path, "-sizes 100"))?.finish()?;
    let of_capture = capabilities_of(capture.pid())?;
    let of_guard = capabilities_of(guard_of(&capture)?)?;
    println!("{of_capture:x?} {of_guard:x?}");
    let expected = [
        ("consumer", 0),
        ("ecapture", 0),
        ("log", 0),
        ("programs", ATTACH),
    ];
    let expected = expected.map(|(name, set)| (name.to_owned(), set));
    assert_eq!(of_capture, expected.into(), "{of_capture:x?}");
    assert!(of_guard.into_values().eq([SYS_ADMIN]));
    capture
        .stop()?
        .connections()?
        .assert_equal(&log.connections());
    Ok(())
}

/// The permitted capabilities of each thread, by its name. None may get at more of them, be it by
/// executing something.
fn capabilities_of(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else {
            continue; // a thread that has just ended
        };
        let field = |name: &str| -> Result<&str> {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            Ok(value
                .with_context(|| format!("no {name}: {status}"))?
                .trim())
        };
        let permitted = u64::from_str_radix(field("CapPrm:")?, 16)?;
        let others = ["CapInh:", "CapBnd:", "CapAmb:"].map(|name| field(name).ok());
        let closed = field("NoNewPrivs:")? == "1" && others == [Some("0000000000000000"); 3];
        let found = if closed { permitted } else { u64::MAX };
        threads.insert(field("Name:")?.to_owned(), found);
    }
    Ok(threads)
}
