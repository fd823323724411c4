//! `--record` and `replay`: any output, later, byte for byte as it would have been, without root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};

use crate::capture::{Capture, Signal, ecapture};
use crate::exchange::{NOBODY, Program};
use crate::keylog::KeyLog;
use crate::wrong_input::{WRONG_INPUT, refused};

/// Records while the program runs with its flags, and shows something as the capture's flags want: what
/// stdout got.
fn record(
    program: &Program,
    recording: &Path,
    capture_flags: &str,
    flags: &str,
) -> Result<Vec<u8>> {
    let mut command = ecapture();
    command.args(["gotls", "-e"]).arg(program.path());
    command.arg("--record").arg(recording);
    command.args(capture_flags.split_whitespace());
    let mut capture = Capture::spawn(&mut command)?;
    program.run(flags)?;
    capture.child().signal(Signal::INT)?;
    let finished = capture.end()?.success()?;
    let stderr = finished.stderr_text();
    ensure!(stderr.contains("recorded"), "{stderr}");
    Ok(finished.stdout)
}

/// Replays with these flags, as somebody without privileges.
fn replay(recording: &Path, flags: &str) -> Result<Output> {
    // Only its owner may read the file, so somebody else gets it as standard input.
    let mut command = ecapture();
    command.args(["replay", "-"]).args(flags.split_whitespace());
    command.stdin(fs::File::open(recording)?);
    Ok(command.uid(NOBODY).gid(NOBODY).output()?)
}

fn replayed(recording: &Path, flags: &str) -> Result<Vec<u8>> {
    let output = replay(recording, flags)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{stderr}");
    assert!(stderr.starts_with("summary: "), "{stderr}");
    Ok(output.stdout)
}

fn assert_same(live: &[u8], replayed: &[u8]) {
    assert!(!live.is_empty());
    assert!(
        live == replayed,
        "{}\n=== but replayed:\n{}",
        String::from_utf8_lossy(&live[..live.len().min(2000)]),
        String::from_utf8_lossy(&replayed[..replayed.len().min(2000)])
    );
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn text_and_json_are_the_same_as_live() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let recording = dir.path().join("recording");
    for flags in [
        "--format text",
        "--format json",
        "--hex",
        "--format json --tsize 100",
    ] {
        let live = record(&program, &recording, flags, "-conns 3 -sizes 20,40000")?;
        let flags = flags.replace(" --tsize 100", "");
        assert_same(&live, &replayed(&recording, &flags)?);
    }
    let mode = fs::metadata(&recording)?.permissions().mode() & 0o7777;
    assert_eq!(mode, 0o600);
    Ok(())
}

/// What is lost is the same, too: it depends on counters that are no records.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn losses_are_the_same_as_live() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let recording = dir.path().join("recording");
    let flags = "--format json --mapsize 64";
    let live = record(&program, &recording, flags, "-conns 8 -sizes 1048576")?;
    let text = String::from_utf8_lossy(&live);
    assert!(text.contains(r#""lost""#), "nothing was lost");
    assert_same(&live, &replayed(&recording, "--format json")?);
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn recording_alone_shows_nothing_and_replays_as_anything() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let recording = dir.path().join("recording");
    let shown = record(&program, &recording, "", "-payload text -sizes 600")?;
    assert_eq!(shown, b"");
    let text = String::from_utf8(replayed(&recording, "")?)?;
    assert!(text.contains(" \u{2192} POST https://"), "{text}");
    let text = String::from_utf8(replayed(&recording, "--raw")?)?;
    let calls = text.lines().filter(|line| line.ends_with(" 600 bytes"));
    assert_eq!(calls.count(), 4, "{text}");
    let plain = replayed(&recording, "-m plain -w -")?;
    assert!(plain.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]), "{plain:?}");
    let output = replay(&recording, "-m keylog -k -")?;
    assert_eq!(output.status.code(), Some(WRONG_INPUT));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("holds plaintext"), "{stderr}");
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn keys_are_the_same_as_live() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let recording = dir.path().join("recording");
    let live = record(&program, &recording, "-m keylog -k -", "-sizes 100")?;
    assert_same(&live, &replayed(&recording, "-k -")?);
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn packets_are_the_same_as_live() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let recording = dir.path().join("recording");
    let flags = "-m pcap -i lo -w -";
    let live = record(&program, &recording, flags, "-conns 2 -sizes 100,40000")?;
    assert_same(&live, &replayed(&recording, "-w -")?);
    let keys = String::from_utf8(replayed(&recording, "-m keylog -k -")?)?;
    assert!(!KeyLog::parse(&keys)?.set().is_empty());
    Ok(())
}

/// Packets are for the recording alone then, and the keys for both.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn keys_can_be_had_beside_a_recording_of_packets() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let recording = dir.path().join("recording");
    let live = record(&program, &recording, "-m pcap -i lo -k -", "-sizes 100")?;
    assert_same(&live, &replayed(&recording, "-m keylog -k -")?);
    Ok(())
}

/// The capture was killed, or the disk was full.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn one_that_was_cut_off_shows_what_is_there_and_says_so() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let recording = dir.path().join("recording");
    let live = record(&program, &recording, "--format json", "-conns 2")?;
    let whole = fs::read(&recording)?;
    fs::write(&recording, &whole[..whole.len() * 2 / 3])?;
    let output = replay(&recording, "--format json")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.starts_with("note: "), "{stderr}");
    assert!(!output.stdout.is_empty());
    assert!(live.starts_with(&output.stdout), "not a beginning of it");
    Ok(())
}

fn file_refused(bytes: &[u8], says: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("recording");
    fs::write(&path, bytes)?;
    refused(ecapture().arg("replay").arg(path), WRONG_INPUT, says)
}

#[test]
fn what_is_no_recording_is_refused() -> Result<()> {
    file_refused(b"", "not a recording")?;
    file_refused(
        b"\x7fELF and so on, for more than sixteen bytes",
        "not a recording",
    )?;
    let mut file = b"\x89ECR\r\n\x1a\n".to_vec();
    file.extend([9, 0, 1, 0, 1, 0, 0, 0]);
    file_refused(&file, "version 9, but this program reads version 1")?;
    file[8] = 1;
    file.extend([1, 0, 0, 0, 2, 0, 0, 0]);
    file.extend(b"{}");
    file_refused(&file, "what the recording says of itself")?;
    let mut nowhere = ecapture();
    nowhere.args(["replay", "/nonexistent/recording"]);
    refused(
        &mut nowhere,
        WRONG_INPUT,
        "/nonexistent/recording: No such file",
    )?;
    let mut directory = ecapture();
    refused(directory.args(["replay", "/"]), WRONG_INPUT, "directory")
}

#[test]
fn two_outputs_in_one_place_are_refused() -> Result<()> {
    let mut command = Command::new(ecapture().get_program());
    let own = env!("CARGO_BIN_EXE_ecapture");
    command.args(["gotls", "-e", own, "-m", "text", "-w", "x"]);
    refused(
        &mut command,
        WRONG_INPUT,
        "--pcapfile is for pcap and plain mode",
    )
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_recording_and_text_do_not_go_to_one_stdout() -> Result<()> {
    let program = Program::newest()?;
    let mut command = ecapture();
    command.args(["gotls", "-e"]).arg(program.path());
    command.args(["--record", "-", "--format", "text"]);
    refused(&mut command, WRONG_INPUT, "both go to standard output")
}
