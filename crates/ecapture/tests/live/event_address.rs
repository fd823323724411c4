//! `--eventaddr` and `-l`: JSON lines to files that rotate and to servers that come and go, and the log.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::process::{Child, Stream};

use crate::capture::{Capture, Signal, ecapture};
use crate::exchange::{LONG, Program};
use crate::wrong_input::{WRONG_INPUT, refused};

fn capturing(program: &Program, address: &str) -> Command {
    let mut command = ecapture();
    command.args(["gotls", "-e"]).arg(program.path());
    command.args(["--eventaddr", address]);
    command
}

/// Ends the capture: what it said last, and that stdout had nothing.
fn end(mut capture: Capture) -> Result<String> {
    capture.child().signal(Signal::INT)?;
    let finished = capture.end()?.success()?;
    assert_eq!(finished.stdout_text(), "");
    let stderr = finished.stderr_text();
    let summary = stderr.lines().find(|line| line.starts_with("summary: "));
    Ok(summary.context(stderr.clone())?.to_owned())
}

/// How many lines were sent, and how many lost.
fn delivered(summary: &str) -> Result<(usize, usize)> {
    let (rest, lost) = summary
        .rsplit_once(" lines sent, ")
        .context(summary.to_owned())?;
    let sent = rest.rsplit(' ').next().unwrap_or_default();
    let lost = lost.split(' ').next().unwrap_or_default();
    Ok((sent.parse()?, lost.parse()?))
}

/// JSON objects all of them.
fn objects<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Vec<serde_json::Value>> {
    let parse = |line: &str| serde_json::from_str(line).context(line.to_owned());
    lines.into_iter().map(parse).collect()
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn files_rotate_and_together_hold_everything() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("events.json");
    let address = format!("file://{}", path.display());
    let mut command = capturing(&program, &address);
    let capture = Capture::spawn(command.args(["--eventroratesize", "1"]))?;
    program.run("-sizes 1048576")?;
    let summary = end(capture)?;
    assert!(summary.contains("events in "), "{summary}");
    let mut sum = 0;
    let mut files = 0;
    for entry in fs::read_dir(dir.path())? {
        let file = entry?.path();
        let text = fs::read_to_string(&file)?;
        assert!(text.len() <= 1 << 20, "{}: {}", file.display(), text.len());
        for object in objects(text.lines())? {
            sum += object["length"].as_u64().unwrap_or(0);
        }
        files += 1;
    }
    assert_eq!(sum, 4 * 1_048_576, "two ends, there and back");
    assert!(files > 4, "{files}");
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_server_that_is_away_at_first_gets_everything() -> Result<()> {
    let program = Program::newest()?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?; // and gone
    let capture = Capture::spawn(&mut capturing(&program, &format!("tcp://{address}")))?;
    program.run("-conns 2 -sizes 1000")?;
    let server = TcpListener::bind(address)?;
    let (mut stream, _) = server.accept()?;
    let summary = end(capture)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let objects = objects(text.lines())?;
    assert_eq!(delivered(&summary)?, (objects.len(), 0), "{summary}");
    assert!(objects.iter().any(|object| object["type"] == "data"));
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_server_that_returns_gets_what_came_meanwhile() -> Result<()> {
    let program = Program::newest()?;
    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = server.local_addr()?;
    let capture = Capture::spawn(&mut capturing(&program, &format!("tcp://{address}")))?;
    let (stream, _) = server.accept()?;
    program.run("-sizes 1000")?;
    // Everything has arrived once the last connection's end has.
    let mut first = Vec::new();
    let mut ends = 0;
    for line in BufReader::new(stream).lines() {
        first.push(line?);
        ends += usize::from(
            first
                .last()
                .is_some_and(|line| line.contains(r#""closed""#)),
        );
        if ends == 2 {
            break;
        }
    }
    drop(server);
    program.run("-sizes 1000")?;
    let server = TcpListener::bind(address)?;
    let (mut stream, _) = server.accept()?;
    let summary = end(capture)?;
    let mut second = String::new();
    stream.read_to_string(&mut second)?;
    let second = objects(second.lines())?;
    assert!(
        second.iter().any(|object| object["type"] == "data"),
        "{second:?}"
    );
    assert_eq!(
        delivered(&summary)?,
        (first.len() + second.len(), 0),
        "{summary}"
    );
    Ok(())
}

/// The capture goes on, and what the server did not get is counted.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_server_that_does_not_read_costs_events_and_not_the_capture() -> Result<()> {
    let program = Program::newest()?;
    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("tcp://{}", server.local_addr()?);
    let capture = Capture::spawn(&mut capturing(&program, &address))?;
    let (stream, _) = server.accept()?;
    // Four times that, in base64, is more than sockets and the queue hold.
    program.run("-sizes 16777216")?;
    // Now it reads after all.
    let reader = std::thread::spawn(move || read_all(stream));
    let summary = end(capture)?;
    let text = reader.join().expect("it does not panic")?;
    let whole = text.lines().filter(|line| line.ends_with('}'));
    let objects = objects(whole)?;
    let (sent, lost) = delivered(&summary)?;
    assert!(lost > 0, "{summary}");
    assert!(objects.len() <= sent, "{summary}: {}", objects.len());
    let told: u64 = objects
        .iter()
        .filter(|object| object["reason"] == "output_queue_full")
        .map(|object| object["records"].as_u64().unwrap_or(0))
        .sum();
    assert!(told as usize <= lost, "{summary}: {told}");
    if objects.len() == sent {
        // It read everything in time, word of what was lost included.
        assert_eq!(told as usize, lost, "{summary}");
    }
    Ok(())
}

fn read_all(mut stream: TcpStream) -> Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_websocket_gets_a_message_for_each_event() -> Result<()> {
    let program = Program::newest()?;
    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("ws://{}/events", server.local_addr()?);
    let capture = Capture::spawn(&mut capturing(&program, &address))?;
    let (stream, _) = server.accept()?;
    stream.set_read_timeout(Some(LONG))?;
    let mut socket = tungstenite::accept(stream).map_err(|error| anyhow::anyhow!("{error}"))?;
    let reader = std::thread::spawn(move || {
        let mut messages = Vec::new();
        while let Ok(message) = socket.read() {
            if message.is_text() {
                messages.push(message.to_string());
            }
        }
        messages
    });
    program.run("-conns 2 -sizes 1000,100000")?;
    let summary = end(capture)?;
    let messages = reader.join().expect("it does not panic");
    let objects = objects(messages.iter().map(String::as_str))?;
    assert!(objects.iter().any(|object| object["type"] == "data"));
    assert_eq!(delivered(&summary)?, (objects.len(), 0), "{summary}");
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn stdout_shows_it_too_if_asked() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("events");
    let mut command = capturing(&program, &path.display().to_string());
    let mut capture = Capture::spawn(command.args(["--format", "json"]))?;
    program.run("")?;
    capture.child().signal(Signal::INT)?;
    let finished = capture.end()?.success()?;
    assert_eq!(finished.stdout_text(), fs::read_to_string(&path)?);
    assert!(!finished.stdout.is_empty());
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn the_log_has_what_stderr_would_have_had() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let mut command = ecapture();
    command.args(["gotls", "-e"]).arg(program.path());
    command.arg("-l").arg(&log).args(["--format", "json"]);
    let mut child = Child::spawn(&mut command)?;
    wait_for(&log, "attached to ")?;
    program.run("")?;
    child.wait_for_line(Stream::Stdout, LONG, |line| line.contains(r#""data""#))?;
    child.signal(Signal::INT)?;
    let finished = child.finish(LONG)?.success()?;
    assert_eq!(finished.stderr_text(), "");
    let text = fs::read_to_string(&log)?;
    let last = text.lines().last().unwrap_or_default();
    let (time, said) = last.split_once(' ').context(text.clone())?;
    assert!(time.starts_with("20") && time.ends_with('Z'), "{text}");
    assert!(said.starts_with("summary: "), "{text}");
    Ok(())
}

fn wait_for(file: &Path, text: &str) -> Result<()> {
    for _ in 0..LONG.as_secs() * 10 {
        if fs::read_to_string(file).is_ok_and(|log| log.contains(text)) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(false, "{text:?} is not in {}", file.display());
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_file_that_can_not_be_written_is_refused() -> Result<()> {
    let program = Program::newest()?;
    for flags in [
        ["--eventaddr", "/nonexistent/events"],
        ["--record", "/nonexistent/recording"],
        ["-l", "/nonexistent/log"],
    ] {
        let mut command = ecapture();
        command
            .args(["gotls", "-e"])
            .arg(program.path())
            .args(flags);
        refused(&mut command, WRONG_INPUT, "No such file or directory")?;
    }
    Ok(())
}

#[test]
fn addresses_that_can_not_be_are_refused() -> Result<()> {
    for address in ["tcp://host", "tcp://:80", "udp://host:1", "ws://", "-"] {
        let output = ecapture()
            .args(["gotls", "-e", "/nonexistent", "--eventaddr", address])
            .output()?;
        assert_eq!(output.status.code(), Some(WRONG_INPUT), "{address}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("--eventaddr"), "{stderr}");
    }
    let own = env!("CARGO_BIN_EXE_ecapture");
    for (flags, says) in [
        (
            vec!["-m", "keylog", "--eventaddr", "x"],
            "--eventaddr is for text mode",
        ),
        (
            vec!["--eventroratesize", "1"],
            "go with --eventaddr and a file",
        ),
        (
            vec!["--eventaddr", "tcp://127.0.0.1:1", "--eventroratetime", "1"],
            "go with --eventaddr and a file",
        ),
        (vec!["-l", "tcp://127.0.0.1:1"], "the log goes to a file"),
    ] {
        let mut command = ecapture();
        command.args(["gotls", "-e", own]).args(flags);
        refused(&mut command, WRONG_INPUT, says)?;
    }
    Ok(())
}
