//! Many programs at once: those that run, those that start later and those that live only for a
//! moment. All that they say is compared with their logs. Needs the programs sh, cp, chmod, unshare, seq and
//! sleep; one test python3 and openssl.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xtask::matrix::{GoRelease, Variant};
use xtask::process::{Child, Stream, patient};
use xtask::run;

use crate::capture::{Capture, Captured, Signal, ecapture};
use crate::exchange::{Connections, Exchange, LONG, Log, NOBODY};
use crate::fleet::{Fleet, command};
use crate::kernel;
use crate::wrong_input::{WRONG_INPUT, refused};

/// Programs of different releases and variants: of each kind of code that they have.
const TEN: [(GoRelease, Variant); 10] = [
    (GoRelease::Go1_15, Variant::Default),
    (GoRelease::Go1_15, Variant::StrippedPie),
    (GoRelease::Go1_19, Variant::Default),
    (GoRelease::Go1_21, Variant::Stripped),
    (GoRelease::Go1_22, Variant::Pie),
    (GoRelease::Go1_23, Variant::Default),
    (GoRelease::Go1_24, here(Variant::NoOpt)),
    (GoRelease::Go1_25, Variant::StrippedPie),
    (GoRelease::Go1_26, Variant::Default),
    (GoRelease::Go1_27, here(Variant::ExternalPie)),
];

/// Of other architectures than amd64 there are fewer variants.
const fn here(variant: Variant) -> Variant {
    match variant {
        _ if cfg!(target_arch = "x86_64") => variant,
        Variant::ExternalPie => Variant::Pie,
        _ => Variant::Default,
    }
}

/// Ten that run, two that start later, and three that connect, say something and end.
fn fleet_is_captured(name: &'static str, flags: &str) -> Result<()> {
    let fleet = Fleet::new(name)?;
    let mut running = Vec::new();
    for (number, (release, variant)) in TEN.into_iter().enumerate() {
        let path = fleet.add(number, release, variant)?;
        let flags = format!("-hold -sizes 1,100,16385 -seed {number}");
        running.push(Exchange::spawn(&mut command(&path, &flags))?);
    }
    let mut later = Vec::new();
    for (number, (release, variant)) in TEN.into_iter().enumerate().step_by(2) {
        later.push(fleet.add(number + 10, release, variant)?);
    }
    let flags = format!("--longest-hold 60000 {flags}");
    let capture = fleet.capture_with(&flags)?;
    assert!(
        capture.attached.contains("10 executables and 10 processes"),
        "{}",
        capture.attached
    );
    let mut expected = Connections::default();
    for path in &later[..3] {
        let log = Exchange::spawn(&mut command(path, "-sizes 100"))?.finish()?;
        expected = expected.and(log.connections());
    }
    for path in &later[3..] {
        running.push(Exchange::spawn(&mut command(path, "-hold -sizes 4096"))?);
    }
    for program in &mut running {
        program.go()?;
    }
    for program in running {
        expected = expected.and(program.finish()?.connections());
    }
    let captured = capture.stop()?;
    captured.connections()?.assert_equal(&expected);
    assert_eq!(expected.len(), 2 * 15, "each is a client and a server");
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn ten_programs_and_five_that_start_later_are_captured() -> Result<()> {
    fleet_is_captured("fleet", "")
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn they_are_with_perf_events_too() -> Result<()> {
    fleet_is_captured("fleetp", "--uprobes perf")
}

/// As on kernels that can't tell a program where it was attached.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn they_are_with_an_object_for_each_too() -> Result<()> {
    fleet_is_captured("fleete", "--uprobes perf --objects each")
}

/// The same file, executed by different users and under different names.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn processes_of_one_executable_are_told_apart() -> Result<()> {
    let fleet = Fleet::new("apart")?;
    let path = fleet.add(0, GoRelease::NEWEST, Variant::Default)?;
    let glob = fleet.glob();
    let mut roots = Exchange::spawn(&mut command(&path, "-hold -seed 1"))?;
    let mut nobodys = Exchange::spawn(command(&path, "-hold -seed 2").uid(NOBODY))?;
    let pid = roots.pid().to_string();
    let select = |selectors: &[&str]| {
        let mut command = ecapture();
        command.args(["gotls", "--format", "json", "--comm", &glob]);
        Capture::spawn(command.args(selectors))
    };
    let of_nobody = select(&["--user", "nobody"])?;
    let of_root = select(&["--exclude-user", "nobody"])?;
    let of_pid = select(&["--pid", &pid])?;
    let of_all = select(&["--cgroup_path", "/"])?;
    let later = Exchange::spawn(command(&path, "-seed 3").uid(NOBODY))?.finish()?;
    roots.go()?;
    nobodys.go()?;
    let (roots, nobodys) = (roots.finish()?, nobodys.finish()?);

    let equal = |capture: Capture, logs: &[&Log]| -> Result<()> {
        let expected = logs.iter().map(|log| log.connections());
        let expected = expected.fold(Connections::default(), Connections::and);
        capture.stop()?.connections()?.assert_equal(&expected);
        Ok(())
    };
    equal(of_nobody, &[&nobodys, &later])?;
    equal(of_root, &[&roots])?;
    equal(of_pid, &[&roots])?;
    equal(of_all, &[&roots, &nobodys, &later])
}

/// An upgrade: the old file is gone, and the new one is at its place.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_program_and_the_one_that_replaces_it_are_captured() -> Result<()> {
    let fleet = Fleet::new("upgrade")?;
    let path = fleet.add(0, GoRelease::Go1_19, Variant::Default)?;
    let new = fleet.add(1, GoRelease::NEWEST, Variant::Stripped)?;
    let mut before = Exchange::spawn(&mut command(&path, "-hold -seed 1"))?;
    let capture = fleet.capture()?;
    fs::rename(&new, &path)?;
    let mut after = Exchange::spawn(&mut command(&path, "-hold -seed 2"))?;
    before.go()?;
    after.go()?;
    let expected = before.finish()?.connections();
    let expected = expected.and(after.finish()?.connections());
    capture.stop()?.connections()?.assert_equal(&expected);
    Ok(())
}

/// The same file with other content, again and again: `cp`, not `mv`.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_program_that_is_overwritten_is_captured_as_what_it_is_now() -> Result<()> {
    let fleet = Fleet::new("overwritten")?;
    let path = fleet.add(0, GoRelease::Go1_24, Variant::Default)?;
    let other = fleet.add(1, GoRelease::Go1_24, Variant::Default)?;
    let (path_text, other) = (path.display().to_string(), other.display().to_string());
    let files = ["-e", &path_text, "-e", &other];
    for selectors in [&files[..], &["--comm", &fleet.glob()]] {
        let capture = fleet.capture_by(selectors, "--longest-hold 60000")?;
        let mut expected = Connections::default();
        for (release, variant) in TEN {
            fleet.add(0, release, variant)?;
            let log = Exchange::spawn(&mut command(&path, "-sizes 1,100,16385"))?.finish()?;
            expected = expected.and(log.connections());
        }
        capture.stop()?.connections()?.assert_equal(&expected);
    }
    Ok(())
}

/// A server that sends each line back, reversed, and a client: both written in C.
fn openssl_speaks_with_itself(dir: &Path) -> Result<()> {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        command.args(arguments.split_whitespace()).current_dir(dir);
        command
    };
    run::output(&mut openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out cert \
         -days 1 -subj /CN=test",
    ))?;
    let _server = Child::spawn(&mut openssl(
        "s_server -unix socket -rev -quiet -cert cert -key key",
    ))?;
    let answer = || -> Result<String> {
        let mut client = Child::spawn(&mut openssl("s_client -unix socket -quiet"))?;
        client.send_line("hello")?;
        client.wait_for_prefix(Stream::Stdout, LONG, "olleh")
    };
    // At first the server is not there yet.
    let deadline = Instant::now() + patient(LONG);
    while let Err(error) = answer() {
        if Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Those that are no Go programs go on as ever, and nothing is shown of them.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn programs_in_other_languages_are_left_alone() -> Result<()> {
    let python = "import ssl, socket, threading\n\
        a, b = socket.socketpair()\n\
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
        server.set_ciphers('AECDH-AES128-SHA:@SECLEVEL=0'); server.maximum_version = ssl.TLSVersion.TLSv1_2\n\
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); client.check_hostname = False\n\
        client.verify_mode = ssl.CERT_NONE; client.maximum_version = ssl.TLSVersion.TLSv1_2\n\
        client.set_ciphers('AECDH-AES128-SHA:@SECLEVEL=0')\n\
        def serve():\n\
        \x20   with server.wrap_socket(b, server_side=True) as s: s.sendall(s.recv(100))\n\
        t = threading.Thread(target=serve); t.start()\n\
        with client.wrap_socket(a) as c:\n\
        \x20   c.sendall(b'hello'); assert c.recv(100) == b'hello'\n\
        t.join()\n";
    let fleet = Fleet::new("others")?;
    // Other tests run Go programs.
    let selectors = ["--comm", "python*", "--comm", "openssl*"];
    let capture = fleet.capture_by(&selectors, "--longest-hold 60000")?;
    run::output(Command::new("python3").args(["-c", python]))?;
    openssl_speaks_with_itself(fleet.dir())?;
    let captured = capture.stop()?;
    assert_eq!(captured.lines().count(), 0);
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn what_was_looked_at_is_said_if_nothing_runs_that_is_meant() -> Result<()> {
    let mut command = ecapture();
    command.args(["gotls", "--comm", "no-such-program"]);
    let capture = Capture::spawn(&mut command)?;
    let said = &capture.attached;
    assert!(said.contains("none of the "), "{said}");
    assert!(said.contains("waiting for one to start"), "{said}");
    capture.stop()?;

    let absent = ["gotls", "--pid", "4194303", "--pid", "4194302"];
    refused(ecapture().args(absent), WRONG_INPUT, "no such process")?;
    let script = ["gotls", "-e", "/bin/sh", "-e", "/bin/true"];
    refused(ecapture().args(script), WRONG_INPUT, "/bin/sh")?;
    let packets = ["gotls", "-m", "pcap"];
    refused(
        ecapture().args(packets),
        WRONG_INPUT,
        "pcap mode captures one program",
    )
}

/// Many files on one loaded object, attached to before anybody runs them, and detached from at once.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn thirty_executables_are_detached_from_as_fast_as_one() -> Result<()> {
    const MANY: usize = 30;

    let fleet = Fleet::new("thirty")?;
    let paths = (0..MANY).map(|number| fleet.add(number, GoRelease::NEWEST, Variant::Stripped));
    let paths = paths.collect::<Result<Vec<_>>>()?;
    // What else the machine does takes time, too: the best of three.
    let mut best = [Duration::MAX; 2];
    for _ in 0..3 {
        for (best, count) in best.iter_mut().zip([2, MANY]) {
            *best = detached_in(&paths[..count])?.min(*best);
        }
    }
    let [two, thirty] = best;
    println!("detached from two in {two:?}, from {MANY} in {thirty:?}");
    // One after the other would be fifteen times as long: each takes waits of 50 to 100 ms in the kernel.
    assert!(thirty < 5 * two + patient(DETACHING), "{two:?}, {thirty:?}");
    Ok(())
}

/// What freeing the objects of thirty executables may take, and ending.
const DETACHING: Duration = Duration::from_millis(500);

/// How long a capture from some files takes from a signal to its end. It sees all of a program that runs one.
fn detached_in(paths: &[PathBuf]) -> Result<Duration> {
    let mut command_line = ecapture();
    command_line.args(["gotls", "--format", "json"]);
    for path in paths {
        command_line.arg("--elfpath").arg(path);
    }
    let capture = Capture::spawn(&mut command_line)?;
    let said = format!("{} executables and 0 processes", paths.len());
    assert!(capture.attached.contains(&said), "{}", capture.attached);
    let path = &paths[paths.len() / 2];
    let expected = Exchange::spawn(&mut command(path, "-conns 2"))?.finish()?;
    let begun = Instant::now();
    let captured = capture.stop()?;
    let took = begun.elapsed();
    captured
        .connections()?
        .assert_equal(&expected.connections());
    Ok(took)
}

/// Keys of all programs go into one file.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn keys_of_many_programs_are_written() -> Result<()> {
    let fleet = Fleet::new("keys")?;
    let old = fleet.add(0, GoRelease::Go1_15, Variant::Default)?;
    let new = fleet.add(1, GoRelease::NEWEST, Variant::Default)?;
    let keys = fleet.dir().join("keys.log");
    let mut command_line = ecapture();
    command_line.args(["gotls", "-m", "keylog", "--comm", &fleet.glob(), "-k"]);
    let mut child = Child::spawn(command_line.arg(&keys))?;
    child.wait_for_prefix(Stream::Stderr, LONG, "attached")?;
    for path in [&old, &new] {
        Exchange::spawn(&mut command(path, "-sizes 100 -tls 1.3"))?.finish()?;
    }
    child.signal(Signal::TERM)?;
    let finished = child.finish(LONG)?;
    ensure!(finished.status.success(), "{}", finished.stderr_text());
    let lines = fs::read_to_string(keys)?;
    let of = |label: &str| lines.lines().filter(|line| line.starts_with(label)).count();
    assert_eq!(of("CLIENT_TRAFFIC_SECRET_0"), 2, "{lines}");
    assert_eq!(of("SERVER_TRAFFIC_SECRET_0"), 2, "{lines}");
    Ok(())
}

/// Everything that runs and starts, whoever it is; other tests' programs excluded.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn without_a_target_all_programs_are_captured() -> Result<()> {
    let fleet = Fleet::new("untold")?;
    let path = fleet.add(0, GoRelease::Go1_24, Variant::Default)?;
    let mut running = Exchange::spawn(&mut command(&path, "-hold -seed 1"))?;
    let capture = fleet.capture_by(&[], "--longest-hold 60000")?;
    let later = Exchange::spawn(&mut command(&path, "-seed 2"))?.finish()?;
    running.go()?;
    let running = running.finish()?;
    let captured: Captured = capture.stop()?;
    let expected = running.connections().and(later.connections());
    let pids = [running.pid, later.pid];
    let ours: Vec<_> = captured.connections_of(&pids)?.iter().cloned().collect();
    Connections::new(ours).assert_equal(&expected);
    Ok(())
}

/// Several of a kind are alternatives, several kinds have to hold together, and what is excluded is not
/// captured whatever else holds.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn selectors_choose_alone_and_together() -> Result<()> {
    let fleet = Fleet::new("chosen")?;
    let first = fleet.add(0, GoRelease::Go1_22, Variant::Default)?;
    let second = fleet.add(1, GoRelease::NEWEST, Variant::Stripped)?;
    let start = |path: &Path, seed: u32, user: u32| {
        Exchange::spawn(command(path, &format!("-hold -sizes 100 -seed {seed}")).uid(user))
    };
    let mut programs = [
        start(&first, 1, 0)?,
        start(&first, 2, NOBODY)?,
        start(&second, 3, 0)?,
        start(&second, 4, NOBODY)?,
    ];
    let pids = programs.each_ref().map(|program| program.pid().to_string());
    let (first, second) = (first.display(), second.display());
    let all = "--comm chosen-*";
    let cases: Vec<(String, &[usize])> = vec![
        (all.into(), &[0, 1, 2, 3]),
        ("--comm chosen-0 --comm chosen-1".into(), &[0, 1, 2, 3]),
        ("--comm chosen-1".into(), &[2, 3]),
        (format!("-e {first} -e {second}"), &[0, 1, 2, 3]),
        (format!("{all} -e {first}"), &[0, 1]),
        (format!("{all} --user nobody"), &[1, 3]),
        (format!("{all} --uid 0 --uid 65534"), &[0, 1, 2, 3]),
        (format!("--pid {} --pid {}", pids[0], pids[3]), &[0, 3]),
        (format!("{all} --pid {} --user 0", pids[0]), &[0]),
        (format!("{all} --cgroup_path / --exclude-uid 0"), &[1, 3]),
        (format!("{all} --exclude-elfpath {first}"), &[2, 3]),
        (
            format!("{all} --exclude-comm *-1 --exclude-pid {}", pids[0]),
            &[1],
        ),
        (format!("{all} --user nobody -e {second}"), &[3]),
        (format!("{all} --exclude-cgroup_path /"), &[]),
        (format!("{all} --container 0123456789abcdef"), &[]),
    ];
    let mut captures = Vec::new();
    for (selectors, chosen) in &cases {
        let selectors: Vec<_> = selectors.split(' ').collect();
        captures.push((fleet.capture_by(&selectors, "")?, *chosen));
    }
    for program in &mut programs {
        program.go()?;
    }
    let mut logs = Vec::new();
    for program in programs {
        logs.push(program.finish()?);
    }
    for ((capture, chosen), (selectors, _)) in captures.into_iter().zip(&cases) {
        println!("{selectors}");
        let expected = chosen.iter().map(|&index| logs[index].connections());
        let expected = expected.fold(Connections::default(), Connections::and);
        let captured = if selectors.starts_with("--pid") || selectors.contains(" --pid") {
            capture.finish()?
        } else {
            capture.stop()?
        };
        captured.connections()?.assert_equal(&expected);
    }
    Ok(())
}

/// The last of several processes ends the capture.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn the_end_of_the_last_of_several_processes_ends_the_capture() -> Result<()> {
    let fleet = Fleet::new("several")?;
    let path = fleet.add(0, GoRelease::NEWEST, Variant::Default)?;
    let mut first = Exchange::spawn(&mut command(&path, "-hold -sizes 100 -seed 1"))?;
    let mut last = Exchange::spawn(&mut command(&path, "-hold -sizes 100 -seed 2"))?;
    let pids = [first.pid().to_string(), last.pid().to_string()];
    let mut capture = fleet.capture_by(&["--pid", &pids[0], "--pid", &pids[1]], "")?;
    first.go()?;
    let first = first.finish()?;
    capture.wait_for_data()?;
    assert_eq!(capture.child().try_status()?, None, "one still runs");
    last.go()?;
    let last = last.finish()?;
    let expected = first.connections().and(last.connections());
    capture.finish()?.connections()?.assert_equal(&expected);
    Ok(())
}

/// Files of one content are a hundred executables all the same. A third of them run before, a third
/// start later.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_hundred_executables_are_captured() -> Result<()> {
    const MANY: usize = 100;

    let fleet = Fleet::new("hundred")?;
    let mut running = Vec::new();
    let mut paths = Vec::new();
    for number in 0..MANY {
        paths.push(fleet.add(number, GoRelease::NEWEST, Variant::Stripped)?);
    }
    let flags = |number: usize| format!("-hold -sizes 100 -seed {number}");
    for (number, path) in paths.iter().enumerate().take(MANY / 3) {
        running.push(Exchange::spawn(&mut command(path, &flags(number)))?);
    }
    let capture = fleet.capture_with("--longest-hold 60000 --objects one")?;
    for (number, path) in paths.iter().enumerate().skip(MANY / 3) {
        running.push(Exchange::spawn(&mut command(path, &flags(number)))?);
    }
    let mut expected = Connections::default();
    for program in &mut running {
        program.go()?;
    }
    for program in running {
        expected = expected.and(program.finish()?.connections());
    }
    let mut capture = capture;
    capture.child().signal(Signal::TERM)?;
    let finished = capture.end()?.success()?;
    let summary = format!("programs: {MANY} executables, {MANY} processes");
    ensure!(finished.stderr_text().contains(&summary), "{finished:?}");
    Captured::new(finished)?
        .connections()?
        .assert_equal(&expected);
    assert_eq!(expected.len(), 2 * MANY);
    Ok(())
}

/// What looking at the processes of a busy host costs: processor time, whoever else is busy. Ten of them
/// are Go programs, each with an executable of its own.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn five_hundred_processes_are_looked_at_in_little_time() -> Result<()> {
    const OTHERS: usize = 490;

    let fleet = Fleet::new("crowd")?;
    let mut programs = Vec::new();
    for (number, (release, variant)) in TEN.into_iter().enumerate() {
        let path = fleet.add(number, release, variant)?;
        programs.push(Exchange::spawn(&mut command(&path, "-hold"))?);
    }
    let script = format!("for i in $(seq {OTHERS}); do sleep 1000 & done; echo ready; wait");
    // They end with the first process of their namespace.
    let mut crowd = Command::new("unshare");
    crowd.args(["--pid", "--fork", "--kill-child", "sh", "-c", &script]);
    let crowd = Child::spawn(&mut crowd)?;
    crowd.wait_for_prefix(Stream::Stdout, LONG, "ready")?;
    let mut capture = fleet.capture()?;
    let spent = kernel::processor_time(capture.pid())?;
    println!("looking at 500 processes and attaching to ten: {spent:?} of processor time");
    // A figure for the documentation is taken from an optimised build.
    assert!(spent < patient(Duration::from_secs(5)), "{spent:?}");
    capture.child().signal(Signal::TERM)?;
    capture.end()?.success()?;
    Ok(())
}
