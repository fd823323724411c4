//! What can't be captured is refused before anything is attached: one line that says why, and an
//! exit code: 2 for what was asked for, 1 for what went wrong on the way.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use xtask::matrix::{self, GoRelease, Variant};
use xtask::process::Child;

use crate::capture::ecapture;
use crate::exchange::{NOBODY, Program};

pub(crate) const WRONG_INPUT: i32 = 2;
pub(crate) const FAILED: i32 = 1;

/// Runs the command to its end. It must be refused, so it can't take long.
pub(crate) fn refused(command: &mut Command, code: i32, says: &str) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let context = format!("{command:?}:\n{stderr}");
    assert_eq!(output.status.code(), Some(code), "{context}");
    assert!(output.stdout.is_empty(), "{context}");
    assert_eq!(stderr.lines().count(), 1, "{context}");
    assert!(stderr.starts_with("ecapture: "), "{context}");
    assert!(stderr.contains(says), "{says:?} is not in {context}");
    let parts: Vec<_> = stderr.trim_end().split(": ").collect();
    let twice = parts.windows(2).any(|pair| pair[0] == pair[1]);
    assert!(!twice, "said twice: {context}");
    Ok(())
}

fn of_file(path: &Path) -> Command {
    let mut command = ecapture();
    command.args(["gotls", "-e"]).arg(path);
    command
}

fn of_pid(pid: u32) -> Command {
    let mut command = ecapture();
    command.args(["gotls", "--pid", &pid.to_string()]);
    command
}

fn file_refused(bytes: &[u8], says: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    fs::write(&path, bytes)?;
    refused(&mut of_file(&path), WRONG_INPUT, says)
}

#[test]
fn a_text_file() -> Result<()> {
    file_refused(b"#!/bin/sh\necho hello\n", "not an ELF file")
}

#[test]
fn an_empty_file() -> Result<()> {
    file_refused(b"", "not an ELF file")
}

#[test]
fn an_elf_header_and_nothing_else() -> Result<()> {
    file_refused(b"\x7fELF", "")?;
    let own = fs::read(env!("CARGO_BIN_EXE_ecapture"))?;
    file_refused(&own[..64], "")
}

#[test]
fn a_directory() -> Result<()> {
    let dir = tempfile::tempdir()?;
    refused(&mut of_file(dir.path()), WRONG_INPUT, "directory")
}

/// It must not wait for somebody who writes to it.
#[test]
fn a_fifo() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("fifo");
    xtask::run::output(Command::new("mkfifo").arg(&path))?;
    refused(&mut of_file(&path), WRONG_INPUT, "FIFO")
}

#[test]
fn a_device() -> Result<()> {
    refused(&mut of_file(Path::new("/dev/zero")), WRONG_INPUT, "device")
}

#[test]
fn a_path_that_does_not_exist() -> Result<()> {
    let path = Path::new("/nonexistent/program");
    refused(
        &mut of_file(path),
        WRONG_INPUT,
        "/nonexistent/program: No such file",
    )
}

/// A name is no way to send escape sequences to the terminal.
#[test]
fn a_path_with_control_characters() -> Result<()> {
    let path = Path::new("/nonexistent/\x1b[31m\nred");
    refused(&mut of_file(path), WRONG_INPUT, r"\x1b[31m\nred")
}

#[test]
fn a_c_program() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("program.c");
    fs::write(&source, "int main(void) { return 0; }\n")?;
    for flags in [&["-g"][..], &["-s"]] {
        let program = dir.path().join("program");
        let mut cc = Command::new("cc");
        xtask::run::output(cc.args(flags).arg("-o").arg(&program).arg(&source))?;
        refused(&mut of_file(&program), WRONG_INPUT, "not a Go")?;
    }
    Ok(())
}

/// A Rust program: ourselves.
#[test]
fn a_program_in_another_language() -> Result<()> {
    let own = Path::new(env!("CARGO_BIN_EXE_ecapture"));
    refused(&mut of_file(own), WRONG_INPUT, "not a Go")
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_go_program_without_crypto_tls() -> Result<()> {
    for release in [GoRelease::OLDEST, GoRelease::NEWEST] {
        for variant in [Variant::Default, Variant::Stripped] {
            let path = matrix::binary(release, variant, matrix::Program::Notls)?;
            refused(&mut of_file(&path), WRONG_INPUT, "crypto/tls")?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_program_for_another_machine() -> Result<()> {
    let path = matrix::binary(GoRelease::NEWEST, Variant::Arm64, matrix::Program::Exchange)?;
    let is_for = format!("ecapture: {}: is for arm64", path.display());
    refused(&mut of_file(&path), WRONG_INPUT, &is_for)
}

/// Whatever the cut leaves, it is refused, or what is needed is still there. Never a panic.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_truncated_go_program() -> Result<()> {
    const CUTS: usize = 100;
    let mut refusals = 0;
    for (release, variant) in [
        (GoRelease::OLDEST, Variant::Default),
        (GoRelease::NEWEST, Variant::StrippedPie),
    ] {
        let whole = fs::read(matrix::binary(release, variant, matrix::Program::Exchange)?)?;
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("cut");
        for cut in 0..CUTS / 2 {
            fs::write(&path, &whole[..whole.len() * cut / (CUTS / 2)])?;
            let output = of_file(&path)
                .args(["--duration", "0.001"])
                .stdin(Stdio::null())
                .output()?;
            refusals += usize::from(is_refusal(&output));
        }
    }
    assert!(refusals > CUTS / 3, "{refusals} refusals");
    Ok(())
}

/// Whether it was refused; if not, it must have worked.
fn is_refusal(output: &Output) -> bool {
    let stderr = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => {
            assert!(stderr.starts_with("attached "), "{stderr}");
            false
        }
        Some(WRONG_INPUT) => {
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(stderr.starts_with("ecapture: "), "{stderr}");
            true
        }
        _ => panic!("{}\n{stderr}", output.status),
    }
}

#[test]
fn a_pid_that_does_not_exist() -> Result<()> {
    // The largest that a kernel gives is 4194304.
    for pid in [4_194_305, 999_999_999, u32::MAX] {
        refused(&mut of_pid(pid), WRONG_INPUT, "no such process")?;
        let mut list = ecapture();
        list.args(["list", "--pid", &pid.to_string()]);
        refused(&mut list, WRONG_INPUT, "no such process")?;
    }
    Ok(())
}

#[test]
fn a_process_that_is_not_go() -> Result<()> {
    let sleep = Child::spawn(Command::new("sleep").arg("1000"))?;
    // Until it has executed, it is a copy of this test.
    let link = format!("/proc/{}/exe", sleep.pid());
    while fs::read_link(&link)? == std::env::current_exe()? {
        std::thread::yield_now();
    }
    refused(&mut of_pid(sleep.pid()), WRONG_INPUT, "not a Go")
}

/// It would be attached to, and show nothing.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_process_that_is_not_what_else_was_asked_for() -> Result<()> {
    let (running, other) = (Program::newest()?, Program::newest()?);
    let target = running.start("-hold")?;
    let runs = format!(
        "process {} runs {}, not the file at {}",
        target.pid(),
        running.path().display(),
        other.path().display()
    );
    for mode in ["text", "plain", "keylog", "pcap"] {
        let mut command = of_pid(target.pid());
        command.args(["-m", mode, "-e"]).arg(other.path());
        refused(&mut command, WRONG_INPUT, &runs)?;
    }
    let is_of = format!("process {} is of user root, not of 4321", target.pid());
    let mut command = of_pid(target.pid());
    refused(command.args(["-u", "4321"]), WRONG_INPUT, &is_of)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_kernel_thread() -> Result<()> {
    // A container doesn't show any: there is nothing to be refused then.
    let kthreadd = fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if kthreadd.trim() == "kthreadd" {
        refused(&mut of_pid(2), WRONG_INPUT, "has no executable")?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn without_privileges_it_says_which_are_missing() -> Result<()> {
    // Copies, because an ordinary user may not get at the checkout and the cache.
    let ecapture = Program::copy_of(Path::new(env!("CARGO_BIN_EXE_ecapture")))?;
    let program = Program::newest()?;
    let mut command = Command::new(ecapture.path());
    command.args(["gotls", "-e"]).arg(program.path());
    refused(command.uid(NOBODY).gid(NOBODY), FAILED, "root")?;

    let target = program.start("-hold")?;
    let mut command = Command::new(ecapture.path());
    command.args(["gotls", "--pid", &target.pid().to_string()]);
    let says = format!(
        "process {}: not permitted to look at it: run as root",
        target.pid()
    );
    refused(command.uid(NOBODY).gid(NOBODY), FAILED, &says)
}

#[test]
fn options_that_contradict_each_other() -> Result<()> {
    for (options, says) in [
        ("--raw --format json", "--raw"),
        ("--indent-json --format json", "--indent-json"),
        ("--raw --indent-json", "--indent-json"),
        ("--events http", "--format json"),
        ("--raw --redact default", "--redact"),
        (
            "--format json --events data,http --redact default",
            "--redact",
        ),
        ("--format json --events lost --redact default", "--redact"),
        ("--raw --max-body 100", "--max-body"),
        ("--har - --format json", "--har"),
        ("--eventaddr x.json --indent-json", "--indent-json"),
        ("--record x.rec --indent-json", "--indent-json"),
        ("--record x.rec --har x.har --indent-json", "--indent-json"),
        ("--record x.rec --max-body 5", "--max-body"),
        (
            "--eventaddr x.json --events data --max-body 5",
            "--max-body",
        ),
        ("--record x.rec --redact default", "--record"),
        ("-m keylog --redact default", "--redact"),
        ("-m pcap --redact default", "--redact"),
        ("-m pcap --har x.har", "--har"),
    ] {
        let mut command = ecapture();
        command.args(["gotls", "-e", "/bin/true"]);
        refused(command.args(options.split(' ')), WRONG_INPUT, says)?;
    }
    Ok(())
}

/// The executable is refused later.
#[test]
fn options_that_do_something_are_accepted() -> Result<()> {
    for options in [
        "--eventaddr x.json --max-body 5",
        "--eventaddr x.json --format text --indent-json",
        "--record x.rec --har x.har --max-body 5",
        "--record x.rec --format text --indent-json --max-body 5",
        "--har x.har --indent-json",
    ] {
        let mut command = ecapture();
        command.args(["gotls", "-e", "/nonexistent"]);
        command.args(options.split(' '));
        refused(&mut command, WRONG_INPUT, "/nonexistent: No such file")?;
    }
    Ok(())
}

#[test]
fn hex_does_not_go_with_json() -> Result<()> {
    let mut command = ecapture();
    command.args(["gotls", "-e", "/bin/true", "--hex", "--format", "json"]);
    refused(&mut command, WRONG_INPUT, "--hex")
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn impossible_buffer_sizes() -> Result<()> {
    let path = matrix::binary(
        GoRelease::NEWEST,
        Variant::Default,
        matrix::Program::Exchange,
    )?;
    for size in ["0", "1", "1048577", "18446744073709551615"] {
        let mut command = of_file(&path);
        refused(command.args(["--mapsize", size]), WRONG_INPUT, "--mapsize")?;
    }
    Ok(())
}

/// What eCapture has, or looks like it, is answered as what it is.
#[test]
fn what_is_no_filter_is_not_taken_for_one() -> Result<()> {
    let own = env!("CARGO_BIN_EXE_ecapture");
    for (arguments, says) in [
        ("-b 2", "--btf is not needed"),
        ("--btf=1 --pid 1", "--btf is not needed"),
        ("-b", "--btf is not needed"),
        ("--listen=localhost:28256", "--listen is not there"),
        ("5323", "for a process give --pid 5323"),
        (own, &*format!("for an executable give --elfpath {own}")),
        ("tcp port 443", "add -m pcap"),
    ] {
        let mut command = ecapture();
        command.arg("gotls").args(arguments.split(' '));
        refused(&mut command, WRONG_INPUT, says)?;
    }
    Ok(())
}

/// The command line's own errors have more than one line, with a hint.
#[test]
fn command_lines_that_make_no_sense() -> Result<()> {
    for (arguments, says) in [
        ("gotls --pid 0", "--pid"),
        ("gotls --pid -1", "-1"),
        ("gotls --pid many", "many"),
        ("gotls -e /bin/true --duration x", "--duration"),
        ("gotls -e /bin/true --duration 0", "--duration"),
        ("gotls -e /bin/true --tsize -1", "-1"),
        ("gotls -e /bin/true --format xml", "xml"),
        ("gotls -e /bin/true -m key2", "key2"),
        ("gotls -e /bin/true --uid no-such-user", "no such user"),
        ("gotls -e /bin/true --no-such-flag", "--no-such-flag"),
        ("openssl", "openssl"),
        ("inspect", "PATH"),
    ] {
        let output = ecapture()
            .args(arguments.split(' '))
            .stdin(Stdio::null())
            .output()
            .context(arguments)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(WRONG_INPUT),
            "{arguments}: {stderr}"
        );
        assert!(stderr.contains(says), "{arguments}: {stderr}");
        assert!(!stderr.contains("panicked"), "{arguments}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments}");
    }
    Ok(())
}
