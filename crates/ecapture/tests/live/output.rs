//! The output as a person, a pipe or a full disk gets it.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Result;
use xtask::matrix::GoRelease;
use xtask::process::{Child, Stream};

use crate::capture::{Capture, Signal, ecapture};
use crate::exchange::{LONG, Program};
use crate::https::{self, Https};
use crate::wrong_input::refused;

/// `ecapture gotls -e PROGRAM` with these flags, which shows text.
fn text(program: &Program, flags: &str) -> Command {
    let mut command = ecapture();
    command.args(["gotls", "-e"]).arg(program.path());
    command.args(flags.split_whitespace());
    command
}

/// What a capture of the program, run with these flags, prints of its calls.
fn shown(capture_flags: &str, flags: &str) -> Result<String> {
    let program = Program::newest()?;
    let mut capture = Capture::spawn(text(&program, capture_flags).arg("--raw"))?;
    program.run(flags)?;
    capture.child().signal(Signal::INT)?;
    Ok(capture.end()?.success()?.stdout_text())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn text_has_a_header_line_and_the_payload() -> Result<()> {
    let shown = shown("", "-payload text -sizes 600")?;
    let (headers, ends): (Vec<_>, Vec<_>) = shown
        .lines()
        .filter(|line| is_header(line))
        .partition(|line| line.ends_with("600 bytes"));
    assert_eq!(headers.len(), 4, "two ends, two messages:\n{shown}");
    for begin in [" opened: client 127.0.0.1:", " opened: server 127.0.0.1:"] {
        let begins = ends.iter().filter(|line| line.contains(begin));
        assert_eq!(begins.count(), 1, "{begin}\n{shown}");
    }
    let totals = ": 600 bytes written, 600 bytes read";
    let closed = |line: &str| line.contains(" closed after ") && line.ends_with(totals);
    assert!(ends.iter().any(|line| closed(line)), "{shown}");
    for header in headers {
        assert!(header.ends_with("600 bytes"), "{header}");
        let arrow = header.contains(" → write ") || header.contains(" ← read ");
        assert!(arrow, "{header}");
    }
    let lines = |wanted: &str| shown.lines().filter(|line| *line == wanted).count();
    assert_eq!(
        lines("POST /connections/0/messages/0 HTTP/1.1"),
        2,
        "{shown}"
    );
    assert_eq!(lines("HTTP/1.1 200 OK"), 2, "{shown}");
    assert!(shown.contains(" line 2: grüße "), "{shown}");
    Ok(())
}

/// `20:25:03.123456 exchange[4242] #1 …`
fn is_header(line: &str) -> bool {
    let time = line.split(' ').next().unwrap_or_default();
    let shape: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    shape == "00:00:00.000000" && line.contains(" exchange[")
}

/// Random bytes hold every control character there is, ESC among them.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn no_control_character_of_a_payload_comes_through() -> Result<()> {
    for flags in ["", "--hex"] {
        let shown = shown(flags, "-sizes 1048576")?;
        assert!(shown.len() > 4 * 1_048_576, "{}", shown.len());
        let raw = |c: &char| c.is_control() && !matches!(c, '\n' | '\t');
        assert_eq!(shown.chars().find(raw), None, "{flags}");
        if flags.is_empty() {
            assert!(shown.contains("\\x1b"), "ESC is escaped");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn hex_shows_offsets_bytes_and_characters() -> Result<()> {
    let shown = shown("--hex", "-payload text -sizes 40")?;
    // "POST /connections/0/messages/0 HTTP/1.1" does not fit with its line end: only dots do.
    let dots = "2e ".repeat(8);
    let row = shown.lines().find(|line| line.contains(dots.trim()));
    let row = row.unwrap_or_else(|| panic!("no hex dump:\n{shown}"));
    assert!(row.contains("........"), "{row}");
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn colours_are_for_terminals_that_want_them() -> Result<()> {
    let pipe = shown("", "-sizes 100 -payload text")?;
    assert!(!pipe.contains('\x1b'), "{pipe:?}");
    for (environment, coloured) in [
        ("TERM=xterm", true),
        ("TERM=xterm NO_COLOR=1", false),
        ("TERM=dumb", false),
    ] {
        let program = Program::newest()?;
        let mut target = program.start("-hold -sizes 100 -payload text")?;
        // script runs it on a terminal of its own, which stdout and stderr both are.
        let command = format!(
            "exec env {environment} {} gotls --pid {}",
            env!("CARGO_BIN_EXE_ecapture"),
            target.pid()
        );
        let on_terminal = Child::spawn(
            Command::new("script")
                .args(["--quiet", "--return", "--command", &command])
                .arg("/dev/null")
                .env_remove("NO_COLOR"),
        )?;
        on_terminal.wait_for_prefix(Stream::Stdout, LONG, "attached")?;
        target.go()?;
        target.finish()?;
        let shown = on_terminal.finish(LONG)?.success()?.stdout_text();
        assert!(shown.contains("100 bytes"), "{shown:?}");
        assert_eq!(shown.contains('\x1b'), coloured, "{environment}: {shown:?}");
    }
    Ok(())
}

/// `ecapture … | head -1`
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_reader_that_goes_away_ends_it_quietly() -> Result<()> {
    let program = Program::newest()?;
    let mut head = Command::new("head")
        .args(["-n", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let pipe = head.stdin.take().expect("its stdin is piped");
    let capture = Child::spawn_to(&mut text(&program, ""), pipe.into())?;
    let capture = Capture::attached(capture)?;
    program.run("-conns 4 -payload text")?;
    let head = head.wait_with_output()?;
    assert!(is_header(String::from_utf8_lossy(&head.stdout).trim()));
    let finished = capture.end()?.success()?;
    assert_no_complaint(&finished.stderr_text());
    Ok(())
}

/// Nothing but what a capture says anyway.
fn assert_no_complaint(stderr: &str) {
    for line in stderr.lines() {
        let usual = line.starts_with("attached ") || line.starts_with("summary: ");
        assert!(usual, "{stderr}");
    }
}

/// The reader goes away while nothing is to be written.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn an_idle_capture_ends_with_its_reader() -> Result<()> {
    let program = Program::newest()?;
    let (reader, writer) = std::io::pipe()?;
    let capture = Child::spawn_to(&mut text(&program, ""), writer.into())?;
    let capture = Capture::attached(capture)?;
    drop(reader);
    let finished = capture.end()?.success()?;
    assert_no_complaint(&finished.stderr_text());
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_full_disk_is_an_error() -> Result<()> {
    for format in ["text", "json"] {
        let program = Program::newest()?;
        let full = File::options().write(true).open("/dev/full")?;
        let flags = format!("--format {format}");
        let capture = Child::spawn_to(&mut text(&program, &flags), full.into())?;
        let capture = Capture::attached(capture)?;
        program.run("-conns 2")?;
        let finished = capture.end()?;
        assert_eq!(finished.status.code(), Some(1));
        let stderr = finished.stderr_text();
        let complaints: Vec<_> = stderr
            .lines()
            .filter(|line| line.starts_with("ecapture: "))
            .collect();
        assert_eq!(complaints.len(), 1, "{stderr}");
        assert!(complaints[0].contains("standard output"), "{stderr}");
        assert!(complaints[0].contains("No space left"), "{stderr}");
    }
    Ok(())
}

/// Nor does the summary claim it.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn exchanges_on_a_full_disk_are_an_error() -> Result<()> {
    let program = https::program(GoRelease::NEWEST)?;
    let mut capture = Capture::spawn(&mut text(&program, "--har /dev/full"))?;
    // All exchanges are over when it looks for the first time.
    capture.child().signal(Signal::STOP)?;
    Https::start(&program, "-requests 4")?.finish()?;
    capture.child().signal(Signal::CONT)?;
    let finished = capture.end()?;
    let stderr = finished.stderr_text();
    assert_eq!(finished.status.code(), Some(1), "{stderr}");
    for says in ["; 0 exchanges in HAR file /dev/full", "No space left"] {
        assert!(stderr.contains(says), "{stderr}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_disk_that_is_full_from_the_start_is_an_error_that_names_the_file() -> Result<()> {
    let program = Program::newest()?;
    for (flags, name) in [
        ("--record /dev/full", "recording"),
        ("-m pcap -i lo -w /dev/full", "capture file"),
        ("-m plain -w /dev/full", "capture file"),
    ] {
        let says = format!("the beginning of {name} /dev/full: No space left");
        refused(&mut text(&program, flags), 1, &says)?;
    }
    Ok(())
}

/// Somebody pressed Ctrl-S, or the pager is full.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn ctrl_c_ends_it_even_if_nobody_reads_the_output() -> Result<()> {
    let program = Program::newest()?;
    let (reader, writer) = std::io::pipe()?;
    let capture = Child::spawn_to(&mut text(&program, ""), writer.into())?;
    let mut capture = Capture::attached(capture)?;
    program.run("-conns 4")?;
    let started = Instant::now();
    capture.child().signal(Signal::INT)?;
    let finished = capture.end()?;
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    assert_eq!(finished.status.code(), Some(1));
    let stderr = finished.stderr_text();
    assert!(stderr.contains(" is blocked"), "{stderr}");
    drop(reader);
    Ok(())
}
