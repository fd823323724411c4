//! The file that keys go to: who may read it, what is refused, and how it grows.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use xtask::process::{Child, Stream};

use crate::capture::{Capture, Signal, ecapture};
use crate::exchange::{LONG, NOBODY, Program};
use crate::keylog::{KeyLog, summary};
use crate::wrong_input::{WRONG_INPUT, refused};

/// `ecapture gotls -m keylog -e PROGRAM`
fn command(program: &Program) -> Command {
    let mut command = ecapture();
    command
        .args(["gotls", "-m", "keylog", "-e"])
        .arg(program.path());
    command
}

/// The same with `-k FILE`.
fn into(program: &Program, file: impl AsRef<Path>) -> Command {
    let mut command = command(program);
    command.arg("-k").arg(file.as_ref());
    command
}

/// Captures while the program talks to itself once, which gives four keys: what stdout got.
fn capture_one_session(command: &mut Command, program: &Program) -> Result<String> {
    let mut capture = Capture::spawn(command)?;
    program.run("-sizes 100 -tls 1.3")?;
    capture.child().signal(Signal::INT)?;
    let finished = capture.end()?.success()?;
    assert_eq!(
        summary(&finished)?,
        "summary: 4 keys written, 4 duplicates left out; lost: 0 keys"
    );
    Ok(finished.stdout_text())
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o7777)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn only_its_owner_may_read_a_new_file() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let keys = dir.path().join("keys");
    // Whatever the shell's mask would let through.
    let wanted = into(&program, &keys);
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"umask 0; exec "$0" "$@""#]);
    shell.arg(wanted.get_program()).args(wanted.get_args());
    assert_eq!(capture_one_session(&mut shell, &program)?, "");
    assert_eq!(mode(&keys)?, 0o600);
    assert_eq!(KeyLog::read(&keys)?.set().len(), 4);
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn what_is_in_the_file_stays() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let keys = dir.path().join("keys");
    fs::write(&keys, "# mine\n")?;
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o640))?;
    for sessions in 1..=2 {
        capture_one_session(&mut into(&program, &keys), &program)?;
        let text = fs::read_to_string(&keys)?;
        let added = text.strip_prefix("# mine\n").expect("it was there before");
        assert_eq!(KeyLog::parse(added)?.set().len(), 4 * sessions);
    }
    assert_eq!(mode(&keys)?, 0o640, "its owner wants it so");
    Ok(())
}

/// A full disk, or a computer that was switched off, may leave half a line.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn half_a_line_at_its_end_spoils_no_key() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let keys = dir.path().join("keys");
    fs::write(&keys, "CLIENT_RANDOM 0123")?;
    capture_one_session(&mut into(&program, &keys), &program)?;
    let text = fs::read_to_string(&keys)?;
    let added = text.strip_prefix("CLIENT_RANDOM 0123\n");
    let added = added.expect("the half stays, as a line of its own");
    assert_eq!(KeyLog::parse(added)?.set().len(), 4);
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn its_name_unless_told_otherwise_is_ecaptures() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    capture_one_session(command(&program).current_dir(&dir), &program)?;
    let mut files = fs::read_dir(&dir)?;
    let file = files.next().expect("a file")?;
    assert_eq!(file.file_name(), "ecapture_gotls_key.log");
    assert!(files.next().is_none());
    assert_eq!(mode(&file.path())?, 0o600);
    assert_eq!(KeyLog::read(&file.path())?.set().len(), 4);
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_dash_is_standard_output() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let mut command = into(&program, "-");
    let stdout = capture_one_session(command.current_dir(&dir), &program)?;
    assert_eq!(KeyLog::parse(&stdout)?.set().len(), 4);
    assert!(fs::read_dir(&dir)?.next().is_none(), "no file");
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn what_can_not_be_written_is_refused_before_anything_is_attached() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let missing = dir.path().join("missing/keys");
    refused(&mut into(&program, missing), WRONG_INPUT, "No such file")?;
    refused(
        &mut into(&program, dir.path()),
        WRONG_INPUT,
        "Is a directory",
    )?;
    let below_file = program.path().join("keys");
    refused(
        &mut into(&program, below_file),
        WRONG_INPUT,
        "Not a directory",
    )
}

/// Somebody else's link, in `/tmp` for example, would have us write where he wants.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_link_where_others_may_write_is_not_followed() -> Result<()> {
    let program = Program::newest()?;
    let private = tempfile::tempdir()?;
    let existing = private.path().join("existing");
    fs::write(&existing, "")?;
    let shared = tempfile::tempdir()?;
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777))?;
    for target in [&existing, &private.path().join("new")] {
        let link = shared.path().join("keys");
        symlink(target, &link)?;
        refused(&mut into(&program, &link), WRONG_INPUT, "symbolic link")?;
        let mut relative = into(&program, "keys");
        refused(relative.current_dir(&shared), WRONG_INPUT, "symbolic link")?;
        fs::remove_file(&link)?;
    }
    assert_eq!(fs::read_dir(&private)?.count(), 1, "nothing was created");

    // A file there is all right, and so is a link where nobody else may write.
    capture_one_session(&mut into(&program, shared.path().join("keys")), &program)?;
    let link = private.path().join("link");
    symlink(&existing, &link)?;
    capture_one_session(&mut into(&program, &link), &program)?;
    for file in [&shared.path().join("keys"), &existing] {
        assert_eq!(KeyLog::read(file)?.set().len(), 4);
    }
    Ok(())
}

/// As in the home directory of a user who lets root capture there.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn what_the_owner_of_a_directory_could_do_to_others_is_refused() -> Result<()> {
    let program = Program::newest()?;
    let private = tempfile::tempdir()?;
    let existing = private.path().join("existing");
    fs::write(&existing, "")?;
    let home = tempfile::tempdir()?;
    let keys = home.path().join("keys");
    for (owner, mode) in [(NOBODY, 0o755), (0, 0o775)] {
        chown(home.path(), Some(owner), Some(NOBODY))?;
        fs::set_permissions(&home, fs::Permissions::from_mode(mode))?;
        symlink(&existing, &keys)?;
        refused(&mut into(&program, &keys), WRONG_INPUT, "symbolic link")?;
        fs::remove_file(&keys)?;
        fs::hard_link(&existing, &keys)?;
        refused(&mut into(&program, &keys), WRONG_INPUT, "hard links")?;
        fs::remove_file(&keys)?;
        fs::write(&keys, "")?;
        chown(&keys, Some(NOBODY - 1), None)?;
        refused(&mut into(&program, &keys), WRONG_INPUT, "another user")?;
        fs::remove_file(&keys)?;
        // Who opens it waits for a reader, who reads all keys.
        mknodat(CWD, &keys, FileType::Fifo, Mode::from_bits_retain(0o666), 0)?;
        chown(&keys, Some(NOBODY - 1), None)?;
        refused(&mut into(&program, &keys), WRONG_INPUT, "another user")?;
        fs::remove_file(&keys)?;
    }
    assert_eq!(fs::read_to_string(&existing)?, "");

    // His own file is all right: what is in his directory is his anyway. So is any file where only root writes.
    chown(home.path(), Some(NOBODY), None)?;
    let theirs = private.path().join("theirs");
    for (file, owner) in [(&keys, NOBODY), (&theirs, NOBODY - 1)] {
        fs::write(file, "")?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
        chown(file, Some(owner), None)?;
        capture_one_session(&mut into(&program, file), &program)?;
        assert_eq!(KeyLog::read(file)?.set().len(), 4);
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_file_that_others_can_read_is_named() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let keys = dir.path().join("keys");
    fs::write(&keys, "")?;
    for (of_dir, mode, group, noted) in [
        (0o755, 0o644, 0, true),
        (0o755, 0o640, NOBODY, true),
        (0o755, 0o640, 0, false),
        (0o755, 0o600, NOBODY, false),
        (0o755, 0o622, NOBODY, false),
        (0o700, 0o644, NOBODY, false),
    ] {
        fs::set_permissions(&dir, fs::Permissions::from_mode(of_dir))?;
        fs::set_permissions(&keys, fs::Permissions::from_mode(mode))?;
        chown(&keys, None, Some(group))?;
        let mut capture = Capture::spawn(&mut into(&program, &keys))?;
        capture.child().signal(Signal::INT)?;
        let stderr = capture.end()?.success()?.stderr_text();
        let note = format!(
            "note: key log {} can be read by others (mode {mode:04o})\n",
            keys.display()
        );
        assert_eq!(stderr.contains(&note), noted, "{mode:o}: {stderr}");
        assert_eq!(stderr.contains("note: "), noted, "{mode:o}: {stderr}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_full_disk_is_an_error_that_names_the_file() -> Result<()> {
    let program = Program::newest()?;
    for (file, name) in [("/dev/full", "key log /dev/full"), ("-", "standard output")] {
        let stdout = File::options().write(true).open("/dev/full")?;
        let capture = Child::spawn_to(&mut into(&program, file), stdout.into())?;
        let capture = Capture::attached(capture)?;
        program.run("-sizes 100")?;
        let finished = capture.end()?;
        assert_eq!(finished.status.code(), Some(1));
        let stderr = finished.stderr_text();
        let complaints: Vec<_> = stderr
            .lines()
            .filter(|line| line.starts_with("ecapture: "))
            .collect();
        assert_eq!(complaints.len(), 1, "{stderr}");
        assert!(complaints[0].contains(name), "{stderr}");
        assert!(complaints[0].contains("No space left"), "{stderr}");
        assert!(stderr.contains("summary: 0 keys written"), "{stderr}");
    }
    Ok(())
}

/// As Wireshark does, which decrypts while both are running.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn keys_are_there_soon_after_the_handshake() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let keys = dir.path().join("keys");
    let capture = Capture::spawn(&mut into(&program, &keys))?;
    let follower = Child::spawn(Command::new("tail").args(["-f", "-n", "+1"]).arg(&keys))?;
    for sessions in 1..=3 {
        program.run("-sizes 100 -tls 1.3")?;
        let mut lines = 0;
        follower.wait_for_line(Stream::Stdout, Duration::from_secs(5), |_| {
            lines += 1;
            lines == 4 * sessions
        })?;
    }
    drop(follower);
    drop(capture);
    assert_eq!(KeyLog::read(&keys)?.set().len(), 12);
    Ok(())
}

/// Each write is a message of its own to a datagram socket.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn every_write_is_of_whole_lines() -> Result<()> {
    const SESSIONS: usize = 16;

    let program = Program::newest()?;
    let (reader, writer) = UnixDatagram::pair()?;
    reader.set_read_timeout(Some(LONG))?;
    let writer = OwnedFd::from(writer);
    let capture = Child::spawn_to(&mut into(&program, "-"), writer.into())?;
    let mut capture = Capture::attached(capture)?;
    let target = program.start(&format!("-tls 1.3 -sizes 100 -conns {SESSIONS}"))?;
    let mut message = vec![0; 1 << 20];
    let mut all = String::new();
    let mut keys = 0;
    while keys < 4 * SESSIONS {
        let length = reader.recv(&mut message)?;
        let text = std::str::from_utf8(&message[..length])?;
        keys += KeyLog::parse(text)?.set().len();
        all += text;
    }
    target.finish()?;
    capture.child().signal(Signal::INT)?;
    summary(&capture.end()?.success()?)?;
    assert_eq!(KeyLog::parse(&all)?.set().len(), keys);
    Ok(())
}

/// It is not where the keys go: `ecapture gotls -m keylog … | true`
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_standard_output_that_nobody_reads_is_no_reason_to_end() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let keys = dir.path().join("keys");
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let capture = Child::spawn_to(&mut into(&program, &keys), writer.into())?;
    let mut capture = Capture::attached(capture)?;
    program.run("-sizes 100 -tls 1.3")?;
    capture.child().signal(Signal::INT)?;
    summary(&capture.end()?.success()?)?;
    assert_eq!(KeyLog::read(&keys)?.set().len(), 4);
    Ok(())
}

#[test]
fn options_of_text_mode_are_refused() -> Result<()> {
    for option in ["--hex", "--format=text", "--format=json", "--tsize=100"] {
        let mut command = ecapture();
        command.args(["gotls", "-m", "keylog", "-e", "/bin/true", option]);
        let name = option.split('=').next().unwrap_or(option);
        refused(&mut command, WRONG_INPUT, name)?;
    }
    Ok(())
}

#[test]
fn a_key_log_is_refused_in_text_mode() -> Result<()> {
    let mut command = ecapture();
    command.args(["gotls", "-e", "/bin/true", "-k", "keys"]);
    refused(&mut command, WRONG_INPUT, "--keylogfile")
}
