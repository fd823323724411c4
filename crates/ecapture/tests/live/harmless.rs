//! The target is never harmed, and nothing stays behind: neither in its code nor in the kernel.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use xtask::matrix::{self, GoRelease, Variant};
use xtask::process::patient;

use crate::capture::{Capture, Signal, ecapture};
use crate::exchange::{LONG, Program};
use crate::https;

/// The target checks what it receives; it must not see a wrong byte. Some two hundred times in all.
fn attaching_and_detaching_does_no_harm(
    release: GoRelease,
    probes: &str,
    times_in_all: usize,
) -> Result<()> {
    let program = Program::new(release, Variant::Default)?;
    // Little to write, so that most of the time goes into the probes.
    let flags = format!("{probes} --mapsize 64 --tsize 1");
    let mut times = 0;
    let mut under_load = 0;
    while times < times_in_all {
        let mut target = program.start("-conns 4 -minseconds 10 -sizes 1,100,16385")?;
        while times < times_in_all && !target.has_ended()? {
            let capture = Capture::of(&program.path(), &flags)?;
            // Unless the target is at its end.
            while !capture.has_shown_data() && !target.has_ended()? {
                std::thread::sleep(Duration::from_millis(1));
            }
            let seen = capture.stop()?.summary;
            ensure!(seen.unreadable_events == 0, "{seen:?}");
            under_load += usize::from(seen.events > 0);
            times += 1;
        }
        target.finish()?;
    }
    assert!(
        under_load > times_in_all / 2,
        "{under_load} captures saw traffic"
    );
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn attaching_and_detaching_does_no_harm_to_the_oldest_release() -> Result<()> {
    attaching_and_detaching_does_no_harm(GoRelease::OLDEST, "--read-site copy", 80)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn attaching_and_detaching_does_no_harm_to_the_newest_release() -> Result<()> {
    attaching_and_detaching_does_no_harm(GoRelease::NEWEST, "--read-site copy", 80)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn attaching_to_returns_and_detaching_does_no_harm_to_the_oldest_release() -> Result<()> {
    attaching_and_detaching_does_no_harm(GoRelease::OLDEST, "--read-site ret", 20)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn attaching_to_returns_and_detaching_does_no_harm_to_the_newest_release() -> Result<()> {
    attaching_and_detaching_does_no_harm(GoRelease::NEWEST, "--read-site ret", 20)
}

/// As on kernels before 6.6.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn attaching_and_detaching_perf_uprobes_does_no_harm() -> Result<()> {
    for release in [GoRelease::OLDEST, GoRelease::NEWEST] {
        attaching_and_detaching_does_no_harm(release, "--uprobes perf", 20)?;
    }
    Ok(())
}

/// Neither those of other processes nor those of other threads: a breakpoint costs the one that runs
/// into it, whatever comes of it, and a Go program's calls come from any of its threads.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn of_several_processes_only_the_one_asked_for_is_probed() -> Result<()> {
    for kind in ["auto", "perf"] {
        let program = Program::newest()?;
        let mut target = program.start("-hold -conns 4 -seed 2")?;
        let mut other = program.start("-hold -linger")?;
        let capture = Capture::of_pid(target.pid(), &format!("--uprobes {kind}"))?;
        target.go()?;
        other.go()?;
        other.wait_until_done()?;
        assert_eq!(changed_code(other.pid(), &program.path())?, [], "{kind}");
        let log = target.finish()?.connections();
        capture.finish()?.connections()?.assert_equal(&log);
        other.finish()?;
    }
    Ok(())
}

/// While a capture runs, the code differs from the file by its breakpoints; afterwards not at all.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn the_code_is_as_before_once_the_capture_has_ended() -> Result<()> {
    for signal in [Signal::TERM, Signal::KILL] {
        for variant in [Variant::Default, Variant::StrippedPie] {
            let program = Program::new(GoRelease::NEWEST, variant)?;
            let target = program.start("-conns 2 -minseconds 5 -sizes 100,4096")?;
            assert_eq!(changed_code(target.pid(), &program.path())?, []);

            let mut capture = Capture::of(&program.path(), "")?;
            capture.wait_for_data()?;
            let changed = changed_code(target.pid(), &program.path())?;
            assert_eq!(changed.len(), probes(&capture.attached)?, "{changed:?}");
            assert!(changed.iter().all(|change| change.now == BREAKPOINT));
            let held = Held::by(capture.pid())?;
            assert!(
                !held.links.is_empty() && held.programs.len() >= 3,
                "{held:?}"
            );
            assert!(held.exist()?, "{held:?}");

            capture.child().signal(signal)?;
            let status = capture.end()?.status;
            assert_eq!(status.success(), signal == Signal::TERM, "{status}");
            // The kernel takes its time with what a killed process leaves.
            let deadline = Instant::now() + LONG;
            while held.exist()? || !changed_code(target.pid(), &program.path())?.is_empty() {
                ensure!(Instant::now() < deadline, "probes remain: {held:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
            target.finish()?;
        }
    }
    Ok(())
}

/// Gives a file other content, but not another inode.
fn overwrite(path: &Path, release: GoRelease, program: matrix::Program) -> Result<()> {
    let binary = matrix::binary(release, Variant::Default, program)?;
    // Not by this process: Program::copy_of says why.
    xtask::run::output(Command::new("cp").arg(binary).arg(path))?;
    Ok(())
}

/// No instruction of what is there now is at the place of one that was probed.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_program_that_is_overwritten_while_it_is_captured_has_no_probes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for mode in ["text", "keylog", "pcap"] {
        let program = Program::new(GoRelease::Go1_24, Variant::Default)?;
        let mut capture = ecapture();
        capture.args(["gotls", "-m", mode]);
        let file = dir.path().join(mode);
        match mode {
            "keylog" => drop(capture.arg("-k").arg(file)),
            "pcap" => drop(capture.args(["-i", "lo", "-w"]).arg(file)),
            _ => {}
        }
        let mut capture = Capture::spawn(capture.arg("-e").arg(program.path()))?;
        overwrite(
            &program.path(),
            GoRelease::Go1_19,
            matrix::Program::Exchange,
        )?;
        capture.wait_for_note("was overwritten: its probes are gone")?;
        let mut target = program.start("-hold -sizes 100")?;
        assert_eq!(changed_code(target.pid(), &program.path())?, []);
        target.go()?;
        target.finish()?;
        capture.child().signal(Signal::TERM)?;
        let ended = capture.end()?;
        ensure!(ended.status.success(), "{}", ended.stderr_text());
    }
    Ok(())
}

/// With breakpoints where the old content had probes, this one crashes.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_program_that_is_overwritten_while_many_are_captured_begins() -> Result<()> {
    let other = https::program(GoRelease::Go1_24)?;
    for uprobes in ["auto", "perf"] {
        let program = https::program(GoRelease::Go1_24)?;
        let (path, other) = (program.path(), other.path());
        let mut capture = ecapture();
        capture.args(["gotls", "--format", "json", "--uprobes", uprobes]);
        capture.args(["--longest-hold", "60000", "-e"]).arg(&path);
        let capture = Capture::spawn(capture.arg("-e").arg(other))?;
        for release in [GoRelease::Go1_19, GoRelease::Go1_15, GoRelease::Go1_24] {
            overwrite(&path, release, matrix::Program::Https)?;
            let logged = https::Https::start(&program, "-requests 2")?.finish()?;
            assert!(!logged.is_empty());
        }
        capture.stop()?;
    }
    Ok(())
}

/// Again and again, in the middle of the traffic.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn killing_the_capture_does_no_harm() -> Result<()> {
    for release in [GoRelease::OLDEST, GoRelease::NEWEST] {
        let program = Program::new(release, Variant::Default)?;
        let mut target = program.start("-conns 4 -minseconds 4")?;
        let mut kills = 0;
        while !target.has_ended()? {
            let mut capture = Capture::of(&program.path(), "")?;
            // Not waited for: the target may be at its end.
            capture.child().signal(Signal::KILL)?;
            capture.end()?;
            kills += 1;
        }
        target.finish()?;
        assert!(kills > 3, "{kills}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn nothing_is_left_in_tracefs() -> Result<()> {
    let program = Program::newest()?;
    let capture = Capture::of(&program.path(), "")?;
    // Probes by perf_event_open leave no names there, not even while they are in place.
    let name = program.path();
    let name = name.to_str().context("not UTF-8")?;
    let events = || -> Result<String> {
        let file = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
            .map(|dir| Path::new(dir).join("uprobe_events"))
            .into_iter()
            .find(|file| file.exists())
            .context("no tracefs mounted: `cargo xtask test` does that")?;
        Ok(fs::read_to_string(file)?)
    };
    assert!(!events()?.contains(name));
    capture.stop()?;
    assert!(!events()?.contains(name));
    Ok(())
}

/// What the kernel puts into the place of an instruction, or of its beginning.
#[cfg(target_arch = "x86_64")]
const BREAKPOINT: [u8; 1] = [0xcc]; // int3
/// arch/arm64/include/asm/brk-imm.h: UPROBES_BRK_IMM
#[cfg(target_arch = "aarch64")]
const BREAKPOINT: [u8; 4] = 0xd420_00a0_u32.to_le_bytes(); // brk #5

/// How many instructions the line beginning with "attached" says are probed.
fn probes(attached: &str) -> Result<usize> {
    let (before, _) = attached.split_once(" probes").context("no count")?;
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next();
    Ok(digits.unwrap_or_default().parse()?)
}

#[derive(Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "shown when a test fails")]
struct Change {
    file_offset: u64,
    file: Vec<u8>,
    now: Vec<u8>,
}

/// Where the code in a process's memory differs from its file.
fn changed_code(pid: u32, file: &Path) -> Result<Vec<Change>> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let file_bytes = fs::read(file)?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let name = file.to_str().context("not UTF-8")?;
    let mut changes = Vec::new();
    let mut compared = 0;
    for map in maps.lines().filter(|map| map.ends_with(name)) {
        // 00401000-0067d000 r-xp 00001000 fe:00 1234    /path
        let fields: Vec<_> = map.split_whitespace().collect();
        let [range, permissions, offset, ..] = fields[..] else {
            bail!("{map}")
        };
        if !permissions.contains('x') {
            continue;
        }
        let (begin, end) = range.split_once('-').context("no range")?;
        let begin = u64::from_str_radix(begin, 16)?;
        let end = u64::from_str_radix(end, 16)?;
        let offset = u64::from_str_radix(offset, 16)?;
        let mut code = vec![0; usize::try_from(end - begin)?];
        memory.read_exact_at(&mut code, begin)?;
        compared += code.len();
        let file = &file_bytes[usize::try_from(offset)?..];
        let length = BREAKPOINT.len();
        let places = (offset..).step_by(length);
        let pieces = code.chunks_exact(length).zip(file.chunks_exact(length));
        for (file_offset, (now, file)) in places.zip(pieces) {
            if now != file {
                changes.push(Change {
                    file_offset,
                    file: file.into(),
                    now: now.into(),
                });
            }
        }
    }
    ensure!(compared > 1 << 20, "no code to compare:\n{maps}");
    Ok(changes)
}

/// What a process holds of the kernel's eBPF objects.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) programs: BTreeSet<u32>,
    pub(crate) links: BTreeSet<u32>,
}

impl Held {
    pub(crate) fn by(pid: u32) -> Result<Self> {
        let mut held = Self {
            programs: BTreeSet::new(),
            links: BTreeSet::new(),
        };
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            let info = match fs::read_to_string(entry?.path()) {
                Ok(info) => info,
                // A descriptor that has just been closed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            let number = |field: &str| {
                let value = info.lines().find_map(|line| line.strip_prefix(field))?;
                value.trim().parse().ok()
            };
            match (number("link_id:"), number("prog_id:")) {
                (Some(link), _) => drop(held.links.insert(link)),
                (None, Some(program)) => drop(held.programs.insert(program)),
                (None, None) => {}
            }
        }
        Ok(held)
    }

    /// Whether any of it is still there.
    pub(crate) fn exist(&self) -> Result<bool> {
        for (kind, ids) in [("prog", &self.programs), ("link", &self.links)] {
            let list = xtask::run::output(
                Command::new(xtask::run::find("bpftool").context("no bpftool")?)
                    .args([kind, "show", "--json"]),
            )?;
            let list: Vec<serde_json::Value> = serde_json::from_str(&list)?;
            let there = list.iter().filter_map(|object| object["id"].as_u64());
            if there
                .into_iter()
                .any(|id| ids.iter().any(|&held| u64::from(held) == id))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A target that ends, or is killed, in the middle of a capture is no problem for anybody.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_target_that_dies_takes_nobody_along() -> Result<()> {
    let program = Program::newest()?;
    let target = program.start("-conns 4 -minseconds 60")?;
    let capture = Capture::of_pid(target.pid(), "")?;
    capture.wait_for_data()?;
    drop(target); // killed
    let started = Instant::now();
    let captured = capture.finish()?;
    assert!(started.elapsed() < patient(LONG));
    assert!(captured.summary.events > 0);
    Ok(())
}
