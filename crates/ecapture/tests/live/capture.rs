//! A running `ecapture`, and what it showed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use xtask::process::{Child, Finished, Stream};

pub(crate) use rustix::process::Signal;

use crate::exchange::{Connection, Connections, LONG, Transfer};

/// The command `ecapture`, without a time zone or colours of the person who runs the tests.
pub(crate) fn ecapture() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecapture"));
    command.env("TZ", "UTC").env_remove("NO_COLOR");
    command
}

/// JSON lines without what is decoded.
const PLAINTEXT: [&str; 4] = ["--format", "json", "--events", "connection,data,lost,close"];

/// A running capture. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Capture {
    child: Child,
    /// Where its output goes if it is not collected from a pipe.
    file: Option<File>,
    /// The line that says that the probes are in place.
    pub(crate) attached: String,
}

impl Capture {
    /// Captures from every process that runs the file, as JSON lines.
    pub(crate) fn of(path: &Path, flags: &str) -> Result<Self> {
        let mut command = ecapture();
        command.arg("gotls").args(PLAINTEXT).arg("-e").arg(path);
        Self::spawn(command.args(flags.split_whitespace()))
    }

    /// Captures from a process, as JSON lines.
    pub(crate) fn of_pid(pid: u32, flags: &str) -> Result<Self> {
        let mut command = ecapture();
        command
            .arg("gotls")
            .args(PLAINTEXT)
            .args(["--pid", &pid.to_string()]);
        Self::spawn(command.args(flags.split_whitespace()))
    }

    /// Captures from every process that runs the file, as JSON lines into a file. That is for much
    /// traffic: collecting it from a pipe costs more time than capturing it.
    pub(crate) fn into_file(path: &Path, flags: &str) -> Result<Self> {
        let file = tempfile::tempfile()?;
        let mut command = ecapture();
        command.arg("gotls").args(PLAINTEXT).arg("-e").arg(path);
        command.args(flags.split_whitespace());
        let child = Child::spawn_to(&mut command, file.try_clone()?.into())?;
        let mut capture = Self::attached(child)?;
        capture.file = Some(file);
        Ok(capture)
    }

    /// Starts the command and waits until all probes are in place.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        Self::attached(Child::spawn(command)?)
    }

    /// Waits until all probes are in place.
    pub(crate) fn attached(child: Child) -> Result<Self> {
        let attached = child.wait_for_prefix(Stream::Stderr, LONG, "attached")?;
        Ok(Self {
            child,
            file: None,
            attached,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits until it has shown something that was written or read.
    pub(crate) fn wait_for_data(&self) -> Result<()> {
        self.child
            .wait_for_line(Stream::Stdout, LONG, |line| line.contains(r#""data""#))?;
        Ok(())
    }

    /// Waits for a line of its output.
    pub(crate) fn wait_for_line(&self, wanted: impl FnMut(&str) -> bool) -> Result<()> {
        self.child.wait_for_line(Stream::Stdout, LONG, wanted)?;
        Ok(())
    }

    /// Waits for a line on its standard error that has these words in it.
    pub(crate) fn wait_for_note(&self, words: &str) -> Result<()> {
        let has_them = |line: &str| line.contains(words);
        self.child.wait_for_line(Stream::Stderr, LONG, has_them)?;
        Ok(())
    }

    /// Whether it has shown something by now.
    pub(crate) fn has_shown_data(&self) -> bool {
        !self.child.so_far(Stream::Stdout).is_empty()
    }

    /// Ends it as a service manager would.
    pub(crate) fn stop(self) -> Result<Captured> {
        self.stop_by(Signal::TERM)
    }

    /// Ends it by a signal; the end must be a good one.
    pub(crate) fn stop_by(mut self, signal: Signal) -> Result<Captured> {
        self.child.signal(signal)?;
        self.finish()
    }

    /// Waits for its own end, whatever it is.
    pub(crate) fn end(self) -> Result<Finished> {
        self.child.finish(LONG)
    }

    /// Waits for its own end, which must be a good one.
    pub(crate) fn finish(mut self) -> Result<Captured> {
        let file = self.file.take();
        let mut finished = self.end()?;
        if let Some(mut file) = file {
            file.rewind()?;
            file.read_to_end(&mut finished.stdout)?;
        }
        ensure!(
            finished.status.success(),
            "ecapture: {}\n{}",
            finished.status,
            finished.stderr_text()
        );
        Captured::new(finished)
    }
}

/// What a capture showed.
#[derive(Debug)]
pub(crate) struct Captured {
    stdout: String,
    pub(crate) summary: Summary,
}

/// The numbers of the closing line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) connections: u64,
    pub(crate) lost_events: u64,
    pub(crate) lost_bytes: u64,
    pub(crate) unreadable_events: u64,
    pub(crate) unreadable_bytes: u64,
}

impl Summary {
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line
            .split(|c: char| !c.is_ascii_digit())
            .filter(|digits| !digits.is_empty())
            .map(|digits| digits.parse().ok());
        let mut next = || numbers.next().flatten();
        Some(Self {
            events: next()?,
            bytes: next()?,
            connections: next()?,
            lost_events: next()?,
            lost_bytes: next()?,
            unreadable_events: next()?,
            unreadable_bytes: next()?,
        })
    }
}

/// A JSON line, its payload decoded.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Line {
    Connection(Opened),
    Data(Data),
    Lost(Lost),
    Close(Closed),
}

/// What a connection connects, and what its ends agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Opened {
    pub(crate) conn: u64,
    pub(crate) network: Option<String>,
    pub(crate) local: Option<String>,
    pub(crate) remote: Option<String>,
    pub(crate) fd: Option<u32>,
    pub(crate) role: Option<String>,
    pub(crate) tls_version: Option<String>,
    pub(crate) cipher_suite: Option<String>,
    pub(crate) resumed: Option<bool>,
    pub(crate) sni: Option<String>,
    pub(crate) alpn: Option<String>,
    pub(crate) container: Option<Container>,
    pub(crate) from_start: bool,
}

/// Where a process runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) runtime: Option<String>,
    pub(crate) pod_uid: Option<String>,
    pub(crate) pod: Option<String>,
    pub(crate) namespace: Option<String>,
}

/// The end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Closed {
    pub(crate) conn: u64,
    pub(crate) cause: String,
    pub(crate) written: u64,
    pub(crate) read: u64,
    pub(crate) duration_ns: u64,
}

/// Plaintext of a call, or of a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Data {
    pub(crate) time: String,
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) comm: String,
    pub(crate) conn: u64,
    pub(crate) direction: Direction,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) call_offset: u64,
    pub(crate) call_length: u64,
    #[serde(default)]
    pub(crate) truncated: u64,
    pub(crate) goroutine: Option<u64>,
    data_base64: String,
    #[serde(skip)]
    pub(crate) payload: Vec<u8>,
}

/// Word that plaintext is missing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Lost {
    #[serde(flatten)]
    pub(crate) place: Option<Place>,
    pub(crate) reason: String,
    pub(crate) bytes: u64,
    pub(crate) records: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Place {
    pub(crate) pid: u32,
    pub(crate) conn: u64,
    pub(crate) direction: Direction,
    pub(crate) offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    Write,
    Read,
}

impl Captured {
    pub(crate) fn new(finished: Finished) -> Result<Self> {
        let stderr = finished.stderr_text();
        let summary = stderr
            .lines()
            .find(|line| line.starts_with("summary: "))
            .and_then(Summary::parse)
            .with_context(|| format!("no summary:\n{stderr}"))?;
        Ok(Self {
            stdout: String::from_utf8(finished.stdout).context("the output is not UTF-8")?,
            summary,
        })
    }

    /// The lines, one after the other.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Result<Line>> {
        self.stdout.lines().map(|text| {
            let mut line = serde_json::from_str(text)
                .with_context(|| text.chars().take(400).collect::<String>())?;
            if let Line::Data(data) = &mut line {
                data.payload = STANDARD.decode(std::mem::take(&mut data.data_base64))?;
                ensure!(
                    data.length == data.payload.len() as u64,
                    "length is {}, the payload has {}",
                    data.length,
                    data.payload.len()
                );
            }
            Ok(line)
        })
    }

    /// The processes that were seen.
    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for line in self.lines() {
            if let Line::Data(data) = line? {
                pids.push(data.pid);
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Everything that passed, put together from its pieces; an error unless that is all of it, in
    /// order, and the summary says so.
    pub(crate) fn connections(&self) -> Result<Connections> {
        self.put_together(|_| true)
    }

    /// The same of some processes, whatever became of others.
    pub(crate) fn connections_of(&self, pids: &[u32]) -> Result<Connections> {
        self.put_together(|pid| pids.contains(&pid))
    }

    fn put_together(&self, is_wanted: impl Fn(u32) -> bool) -> Result<Connections> {
        let mut streams: BTreeMap<(u64, Direction), Assembly> = BTreeMap::new();
        let mut pids = BTreeMap::new();
        let (mut events, mut bytes, mut others) = (0, 0, false);
        for line in self.lines() {
            let data = match line? {
                Line::Data(data) if !is_wanted(data.pid) => {
                    others = true;
                    continue;
                }
                Line::Data(data) => data,
                Line::Lost(lost)
                    if !lost.place.as_ref().is_some_and(|p| is_wanted(p.pid)) && others =>
                {
                    continue;
                }
                Line::Connection(_) | Line::Close(_) => continue,
                Line::Lost(lost) => anyhow::bail!("{lost:?}, {:?}", self.summary),
            };
            let pid = *pids.entry(data.conn).or_insert(data.pid);
            ensure!(pid == data.pid, "connection {} changes hands", data.conn);
            events += 1;
            bytes += data.length;
            streams
                .entry((data.conn, data.direction))
                .or_default()
                .add(&data)
                .with_context(|| format!("connection {} {:?}", data.conn, data.direction))?;
        }
        let expected = Summary {
            events,
            bytes,
            connections: pids.len() as u64,
            lost_events: 0,
            lost_bytes: 0,
            unreadable_events: 0,
            unreadable_bytes: 0,
        };
        ensure!(
            others || self.summary == expected,
            "the summary says {:?}, the output has {expected:?}",
            self.summary
        );

        let mut connections: BTreeMap<u64, Connection> = BTreeMap::new();
        for ((conn, direction), assembly) in streams {
            let connection = connections
                .entry(conn)
                .or_insert_with(|| Connection::new(pids[&conn]));
            match direction {
                Direction::Write => connection.write = assembly.finish()?,
                Direction::Read => connection.read = assembly.finish()?,
            }
        }
        Ok(Connections::new(connections.into_values().collect()))
    }
}

/// A stream that is put together from its pieces.
#[derive(Default)]
struct Assembly {
    calls: Vec<u64>,
    offset: u64,
    /// Of the call in hand.
    call_offset: u64,
    call_length: u64,
    sum: Sha256,
}

impl Assembly {
    fn add(&mut self, data: &Data) -> Result<()> {
        ensure!(data.truncated == 0, "truncated: {data:?}");
        ensure!(
            data.offset == self.offset,
            "offset {} comes after {}",
            data.offset,
            self.offset
        );
        if self.call_offset == self.call_length {
            self.call_offset = 0;
            self.call_length = data.call_length;
            self.calls.push(data.call_length);
        }
        ensure!(
            (data.call_offset, data.call_length) == (self.call_offset, self.call_length),
            "bytes from {} of a call of {} come after {} of {}",
            data.call_offset,
            data.call_length,
            self.call_offset,
            self.call_length
        );
        self.offset += data.length;
        self.call_offset += data.length;
        self.sum.update(&data.payload);
        Ok(())
    }

    fn finish(self) -> Result<Transfer> {
        ensure!(
            self.call_offset == self.call_length,
            "the last call ends after {} of {} bytes",
            self.call_offset,
            self.call_length
        );
        Ok(Transfer {
            calls: self.calls,
            sha256: hex(&self.sum.finalize()),
        })
    }
}

/// The checksum of some bytes, in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
