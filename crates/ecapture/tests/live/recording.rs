//! `--record` and `replay`: any output, later, byte for byte as it would have been, without root.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
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

/// A path in a directory of the test, with a file there by other names, too.
fn with_other_names(dir: &Path, name: &str) -> Result<Vec<String>> {
    let path = dir.join(name);
    if path.exists() {
        fs::hard_link(&path, dir.join("hard"))?;
    }
    symlink(name, dir.join("soft"))?;
    let names = [name, &format!("./{name}"), "hard", "soft"];
    let absolute = path.display().to_string();
    let there = |name: &&str| dir.join(name).exists() || *name != "hard";
    let names = names.into_iter().filter(there).map(str::to_owned);
    Ok(names.chain([absolute]).collect())
}

/// Writing it would destroy it, while it is read.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_recording_is_not_replayed_into_itself() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let text = dir.path().join("recording");
    record(&program, &text, "", "-sizes 100")?;
    let whole = fs::read(&text)?;
    let unharmed = |mut command: Command| -> Result<()> {
        command.current_dir(&dir);
        refused(&mut command, WRONG_INPUT, "is the recording that is")?;
        assert!(fs::read(&text)? == whole, "{command:?}");
        Ok(())
    };
    for name in with_other_names(dir.path(), "recording")? {
        for flags in [
            "-m plain -w",
            "--har",
            "--eventaddr",
            "-l",
            "-m plain -w x -l",
        ] {
            let mut command = ecapture();
            command.args(["replay", "recording"]).args(flags.split(' '));
            command.arg(&name);
            unharmed(command)?;
        }
    }
    // Shells let it be standard input, and standard output.
    let mut command = Command::new("sh");
    let script = r#"exec "$0" replay - --har recording <recording"#;
    command.args(["-c", script]).arg(ecapture().get_program());
    unharmed(command)?;
    let mut command = Command::new("sh");
    let script = r#"exec "$0" replay recording >>recording"#;
    command.args(["-c", script]).arg(ecapture().get_program());
    unharmed(command)?;
    assert!(!dir.path().join("x").exists(), "nothing was made");

    let keys = dir.path().join("ecapture_gotls_key.log");
    record(&program, &keys, "-m keylog", "-sizes 100")?;
    let whole = fs::read(&keys)?;
    let mut command = ecapture();
    command.arg("replay").arg(&keys).current_dir(&dir);
    refused(&mut command, WRONG_INPUT, "is the recording that is")?;
    assert!(fs::read(&keys)? == whole);
    Ok(())
}

#[test]
fn two_outputs_in_one_file_are_refused_before_it_is_opened() -> Result<()> {
    for content in [None, Some("half a line")] {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("file");
        if let Some(content) = content {
            fs::write(&file, content)?;
        }
        for name in with_other_names(dir.path(), "file")? {
            for flags in [
                "--record file --har",
                "--record file -l",
                "--eventaddr file -l",
                "--har file -l",
                "--eventaddr file --record",
                "-m keylog -k file -l",
                "-m plain -w file -l",
                "-m pcap -w file -k",
                "-m pcap --record file -k",
            ] {
                let mut command = ecapture();
                command.args(["gotls", "-e", "/bin/true"]).current_dir(&dir);
                command.args(flags.split(' ')).arg(&name);
                refused(&mut command, WRONG_INPUT, "are the same file")?;
                assert_eq!(fs::read_to_string(&file).ok().as_deref(), content);
            }
        }
    }
    Ok(())
}

/// Also where nobody has named it.
#[test]
fn the_file_of_a_mode_is_for_one_output() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (mode, file) in [
        ("keylog", "ecapture_gotls_key.log"),
        ("pcap", "ecapture_gotls.pcapng"),
        ("plain", "ecapture_gotls_plain.pcapng"),
    ] {
        let mut command = ecapture();
        command.args(["gotls", "-e", "/bin/true", "-m", mode, "-l", file]);
        command.current_dir(&dir);
        refused(&mut command, WRONG_INPUT, "are the same file")?;
    }
    assert!(fs::read_dir(&dir)?.next().is_none(), "nothing was made");
    Ok(())
}

/// What is written there twice spoils nothing. The executable is refused later.
#[test]
fn a_device_may_be_an_output_and_the_log() -> Result<()> {
    for flags in ["--record /dev/null -l", "-m keylog -k /dev/null -l"] {
        let mut command = ecapture();
        command.args(["gotls", "-e", "/nonexistent"]);
        command.args(flags.split(' ')).arg("/dev/null");
        refused(&mut command, WRONG_INPUT, "/nonexistent: No such file")?;
    }
    Ok(())
}

#[test]
fn a_file_for_packets_is_refused_in_text_mode() -> Result<()> {
    let mut command = ecapture();
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
