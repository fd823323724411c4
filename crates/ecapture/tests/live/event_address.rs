//! `--eventaddr` and `-l`: JSON lines to files that rotate and to servers that come and go, and the log.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::process::{Child, Stream, patient};

use crate::capture::{Capture, Signal, ecapture};
use crate::exchange::{LONG, NOBODY, Program};
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

/// As in a user's home directory: root could make the file there thanks to a privilege that is given up.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn files_rotate_in_the_directory_of_another_user() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("events.json");
    fs::write(&path, "")?;
    for owned in [dir.path(), &path] {
        chown(owned, Some(NOBODY), Some(NOBODY))?;
    }
    let mut command = capturing(&program, &path.display().to_string());
    let capture = Capture::spawn(command.args(["--eventroratesize", "1"]))?;
    program.run("-sizes 1048576")?;
    end(capture)?;
    assert!(
        fs::read_dir(dir.path())?.count() > 4,
        "{:?}",
        fs::read_dir(dir.path())?
    );
    assert_eq!(payload_bytes(&all_text(dir.path())?)?, 4 * 1_048_576);
    Ok(())
}

/// Somebody has removed the directory: what is in the file already is no less than what follows.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_file_that_can_not_rotate_goes_on() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let inside = dir.path().join("inside");
    fs::create_dir(&inside)?;
    let path = inside.join("events.json");
    let mut command = capturing(&program, &path.display().to_string());
    let mut capture = Capture::spawn(command.args(["--eventroratesize", "1"]))?;
    let mut file = fs::File::open(&path)?;
    fs::remove_dir_all(&inside)?;
    program.run("-sizes 1048576")?;
    capture.child().signal(Signal::INT)?;
    let stderr = capture.end()?.success()?.stderr_text();
    let notes: Vec<_> = stderr
        .lines()
        .filter(|line| line.starts_with("note: "))
        .collect();
    assert_eq!(notes.len(), 1, "{stderr}");
    assert!(
        notes[0].contains("events.json: no new one can be begun"),
        "{stderr}"
    );
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    assert_eq!(
        payload_bytes(&text)?,
        4 * 1_048_576,
        "two ends, there and back"
    );
    Ok(())
}

/// How many bytes of plaintext these lines have.
fn payload_bytes(text: &str) -> Result<u64> {
    let objects = objects(text.lines())?;
    Ok(objects
        .iter()
        .filter_map(|object| object["length"].as_u64())
        .sum())
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
    assert_each_event_is_a_message(stream, &program, capture)
}

/// A WebSocket server at the end of `stream` gets every event of a run of the program.
fn assert_each_event_is_a_message(
    stream: impl Read + Write + Send + 'static,
    program: &Program,
    capture: Capture,
) -> Result<()> {
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

/// A server's certificate, and what vouches for it.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Result<Self> {
        let certificates = Self(tempfile::tempdir()?);
        let new = |name: &str, args: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]);
            command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj"]);
            command.arg(format!("/CN={name}")).args(args);
            command
                .arg("-keyout")
                .arg(certificates.path(&format!("{name}.key")));
            command
                .arg("-out")
                .arg(certificates.path(&format!("{name}.pem")));
            xtask::run::output(&mut command)
        };
        new("authority", &["-addext", "keyUsage=keyCertSign"])?;
        let (authority, key) = (
            certificates.path("authority.pem"),
            certificates.path("authority.key"),
        );
        let path = |path: &Path| path.to_str().map(str::to_owned).context("not UTF-8");
        new(
            "server",
            &[
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-CA",
                &path(&authority)?,
                "-CAkey",
                &path(&key)?,
            ],
        )?;
        Ok(certificates)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What a server needs to accept TLS connections.
    fn server(&self) -> Result<Arc<rustls::ServerConfig>> {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};

        let certificate = CertificateDer::from_pem_file(self.path("server.pem"))?;
        let key = PrivateKeyDer::from_pem_file(self.path("server.key"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        Ok(Arc::new(config))
    }
}

/// The next connection to a server, as TLS.
fn accept_tls(
    server: &TcpListener,
    certificates: &Certificates,
) -> Result<rustls::StreamOwned<rustls::ServerConnection, TcpStream>> {
    let (stream, _) = server.accept()?;
    stream.set_read_timeout(Some(LONG))?;
    let tls = rustls::ServerConnection::new(certificates.server()?)?;
    Ok(rustls::StreamOwned::new(tls, stream))
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_websocket_over_tls_gets_a_message_for_each_event() -> Result<()> {
    let program = Program::newest()?;
    let certificates = Certificates::new()?;
    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("wss://localhost:{}/events", server.local_addr()?.port());
    let mut command = capturing(&program, &address);
    command.env("SSL_CERT_FILE", certificates.path("authority.pem"));
    let capture = Capture::spawn(&mut command)?;
    let stream = accept_tls(&server, &certificates)?;
    assert_each_event_is_a_message(stream, &program, capture)
}

/// Nothing is said to a server that nobody trusted vouches for, and why is said.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_server_without_a_trusted_certificate_gets_nothing() -> Result<()> {
    let program = Program::newest()?;
    let certificates = Certificates::new()?;
    let others = Certificates::new()?;
    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("wss://localhost:{}/events", server.local_addr()?.port());
    let mut command = capturing(&program, &address);
    command.env("SSL_CERT_FILE", others.path("authority.pem"));
    let mut capture = Capture::spawn(&mut command)?;
    let mut stream = accept_tls(&server, &certificates)?;
    let read = stream.read(&mut [0; 1]);
    assert!(read.is_err(), "{read:?}");
    drop(server);
    let note = format!("note: events to {address}: ");
    let said = capture
        .child()
        .wait_for_prefix(Stream::Stderr, LONG, &note)?;
    assert!(
        said.contains("certificate") && said.ends_with("ecapture keeps trying"),
        "{said}"
    );
    program.run("-sizes 1000")?;
    let (sent, lost) = delivered(&end(capture)?)?;
    assert!(sent == 0 && lost > 0, "{sent} {lost}");
    Ok(())
}

/// A file that is old enough begins anew with the next event, and nothing is missing.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn files_begin_anew_after_a_time() -> Result<()> {
    let program = Program::newest()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("events.json");
    let mut command = capturing(&program, &path.display().to_string());
    let capture = Capture::spawn(command.args(["--eventroratetime", "1"]))?;
    let runs = 3;
    for run in 1..=runs {
        program.run("-sizes 1000")?;
        // Both ends of each connection are closed, and that is written to a file that is there by now.
        wait_until(|| Ok(all_text(dir.path())?.matches(r#""closed""#).count() == 2 * run))?;
        std::thread::sleep(Duration::from_millis(1100));
    }
    end(capture)?;
    let (mut sum, mut files) = (0, 0);
    for entry in fs::read_dir(dir.path())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(
            name.starts_with("events") && name.ends_with(".json"),
            "{name}"
        );
        for object in objects(fs::read_to_string(entry.path())?.lines())? {
            sum += object["length"].as_u64().unwrap_or(0);
        }
        files += 1;
    }
    assert_eq!(sum, runs as u64 * 4000, "two ends, there and back");
    assert!(files >= runs, "{files}");
    Ok(())
}

/// What the files in a directory hold.
fn all_text(dir: &Path) -> Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(dir)? {
        text += &fs::read_to_string(entry?.path())?;
    }
    Ok(text)
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

/// The disk of the log is full, for example.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn what_can_not_be_written_to_the_log_is_said_on_stderr() -> Result<()> {
    let program = Program::newest()?;
    let mut command = ecapture();
    command
        .args(["gotls", "-l", "/dev/full", "-e"])
        .arg(program.path());
    let mut capture = Capture::spawn(&mut command)?;
    program.run("")?;
    capture.child().signal(Signal::INT)?;
    let stderr = capture.end()?.success()?.stderr_text();
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{stderr}");
    let note = "note: log /dev/full can't be written, it goes on here: No space left on device";
    assert!(lines[0].starts_with(note), "{stderr}");
    assert!(lines[1].starts_with("attached to "), "{stderr}");
    assert!(lines[2].starts_with("summary: "), "{stderr}");

    let mut command = ecapture();
    let output = command
        .args(["gotls", "-l", "/dev/full", "-e", "/nonexistent"])
        .output()?;
    assert_eq!(output.status.code(), Some(WRONG_INPUT));
    let stderr = String::from_utf8(output.stderr)?;
    let said = stderr.lines().filter(|line| line.starts_with("ecapture: "));
    assert_eq!(said.count(), 1, "{stderr}");
    Ok(())
}

fn wait_for(file: &Path, text: &str) -> Result<()> {
    let is_there = || Ok(fs::read_to_string(file).is_ok_and(|log| log.contains(text)));
    wait_until(is_there).with_context(|| format!("{text:?} is not in {}", file.display()))
}

fn wait_until(mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patient(LONG);
    while !is_so()? {
        ensure!(Instant::now() < deadline, "not within {LONG:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
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
