//! The test program `exchange`: it logs what it handed to crypto/tls and what it got back.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tempfile::TempDir;
use xtask::matrix::{self, GoRelease, Variant};
use xtask::process::{Child, Finished, Stream, patient};

/// How long anything may take before a test gives up.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// A user without any privilege.
pub(crate) const NOBODY: u32 = 65534;

/// A copy of a test binary, so that nobody else runs, or probes, the same file.
#[derive(Debug)]
pub(crate) struct Program {
    dir: TempDir,
}

impl Program {
    pub(crate) fn new(release: GoRelease, variant: Variant) -> Result<Self> {
        Self::copy_of(&matrix::binary(
            release,
            variant,
            matrix::Program::Exchange,
        )?)
    }

    pub(crate) fn newest() -> Result<Self> {
        Self::new(GoRelease::NEWEST, Variant::Default)
    }

    pub(crate) fn copy_of(binary: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("ecapture-live-")
            // Another user may have to run it.
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()?;
        let program = Self { dir };
        // Not copied by this process: a child of another test, born at the wrong moment, would
        // inherit the file as open for writing, and then it can't be executed.
        xtask::run::output(Command::new("cp").arg(binary).arg(program.path()))?;
        Ok(program)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("exchange")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The command with its flags, as one would type them. It takes its time where everything does.
    pub(crate) fn command(&self, flags: &str) -> Command {
        let mut command = Command::new(self.path());
        let mut is_time = false;
        for flag in flags.split_whitespace() {
            match flag.parse() {
                Ok(seconds) if is_time => {
                    command.arg(patient(Duration::from_secs(seconds)).as_secs().to_string());
                }
                _ => drop(command.arg(flag)),
            }
            is_time = flag == "-minseconds";
        }
        command
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(&self, flags: &str) -> Result<Exchange> {
        Exchange::spawn(&mut self.command(flags))
    }

    /// Runs it to its end, which must be a good one.
    pub(crate) fn run(&self, flags: &str) -> Result<Log> {
        self.start(flags)?.finish()
    }
}

/// A running `exchange`.
#[derive(Debug)]
pub(crate) struct Exchange {
    child: Child,
    ready: Ready,
}

#[derive(Debug, Deserialize)]
struct Ready {
    pid: u32,
    addr: String,
}

impl Exchange {
    /// Starts the command and waits for the line that says that it is ready.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        Self::of(Child::spawn(command)?)
    }

    /// Waits for the line of a process that is, or will be, this program.
    pub(crate) fn of(child: Child) -> Result<Self> {
        let line = child.wait_for_prefix(Stream::Stdout, LONG, r#"{"addr":"#)?;
        let ready = serde_json::from_str(&line).context(line)?;
        Ok(Self { child, ready })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.ready.pid
    }

    /// Where its server listens.
    pub(crate) fn addr(&self) -> &str {
        &self.ready.addr
    }

    /// Ends the wait that `-hold` asked for.
    pub(crate) fn go(&mut self) -> Result<()> {
        self.child.send_line("go")
    }

    /// Waits until all traffic has passed; only `-linger` keeps it alive then.
    pub(crate) fn wait_until_done(&self) -> Result<()> {
        self.child
            .wait_for_line(Stream::Stdout, LONG, |line| line.contains(r#""done""#))?;
        Ok(())
    }

    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_status()?.is_some())
    }

    /// Waits for its end, which must be a good one: it has checked what it received.
    pub(crate) fn finish(self) -> Result<Log> {
        Ok(self.finish_with_done()?.0)
    }

    /// The same, with what else its last line says.
    pub(crate) fn finish_with_done(self) -> Result<(Log, serde_json::Value)> {
        Log::of(&self.child.finish(LONG)?.success()?)
    }

    /// Waits for its end after the other end of its one connection has vanished: how many bytes it has read.
    pub(crate) fn finish_cut_off(self) -> Result<u64> {
        let said = self.child.finish(LONG)?.stdout_text();
        let streams = said.lines().map(serde_json::from_str::<StreamLog>);
        let read = streams.flatten().find(|s| s.direction == "read");
        let read = read.with_context(|| format!("no stream: {said}"))?;
        Ok(read.calls.iter().sum())
    }
}

/// What the program says that it wrote and read.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) pid: u32,
    pub(crate) streams: Vec<StreamLog>,
}

/// One direction of a connection.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct StreamLog {
    pub(crate) pid: u32,
    pub(crate) role: String,
    /// Address of the `tls.Conn`.
    pub(crate) conn: String,
    pub(crate) id: u64,
    pub(crate) direction: String,
    pub(crate) calls: Vec<u64>,
    pub(crate) sha256: String,
    pub(crate) empty_calls: u64,
    pub(crate) data_with_error: u64,
    pub(crate) failed: Option<FailedWrite>,
}

/// A call of Write that returned an error: crypto/tls had got its bytes all the same.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct FailedWrite {
    pub(crate) length: u64,
    /// Of the whole stream with this call.
    pub(crate) sha256: String,
}

impl Log {
    fn of(finished: &Finished) -> Result<(Self, serde_json::Value)> {
        let mut streams = Vec::new();
        let mut done = None;
        for line in finished.stdout_text().lines() {
            let value: serde_json::Value = serde_json::from_str(line).context(line.to_owned())?;
            match value["event"].as_str() {
                Some("stream") => streams.push(serde_json::from_value(value)?),
                Some("done") => done = Some(value),
                _ => {}
            }
        }
        let done = done.context("the program says nothing of being done")?;
        ensure!(done["ok"] == true, "the program saw wrong data: {done}");
        let pid = serde_json::from_value(done["pid"].clone())?;
        Ok((Self { pid, streams }, done))
    }

    /// The connections, each with both directions.
    pub(crate) fn connections(&self) -> Connections {
        let mut connections: BTreeMap<_, Connection> = BTreeMap::new();
        for stream in &self.streams {
            let connection = connections
                .entry((stream.pid, &stream.role, stream.id))
                .or_insert_with(|| Connection::new(stream.pid));
            let mut transfer = Transfer {
                calls: stream.calls.clone(),
                sha256: stream.sha256.clone(),
            };
            if let Some(failed) = &stream.failed {
                transfer.calls.push(failed.length);
                transfer.sha256.clone_from(&failed.sha256);
            }
            match stream.direction.as_str() {
                "write" => connection.write = transfer,
                _ => connection.read = transfer,
            }
        }
        Connections::new(connections.into_values().collect())
    }
}

/// What passed in one direction of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Transfer {
    /// Lengths of the calls that moved data.
    pub(crate) calls: Vec<u64>,
    /// Of all bytes, in hexadecimal digits.
    pub(crate) sha256: String,
}

/// Both directions of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Connection {
    pub(crate) pid: u32,
    pub(crate) write: Transfer,
    pub(crate) read: Transfer,
}

impl Connection {
    pub(crate) fn new(pid: u32) -> Self {
        let nothing = Transfer {
            calls: Vec::new(),
            sha256: crate::capture::sha256(b""),
        };
        Self {
            pid,
            write: nothing.clone(),
            read: nothing,
        }
    }
}

/// Connections in no particular order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Connections(Vec<Connection>);

impl Connections {
    pub(crate) fn new(mut connections: Vec<Connection>) -> Self {
        connections.sort();
        Self(connections)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.0.iter()
    }

    /// These and those.
    pub(crate) fn and(self, other: Self) -> Self {
        Self::new([self.0, other.0].concat())
    }

    /// Fails unless the same bytes went through the same calls.
    #[track_caller]
    pub(crate) fn assert_equal(&self, expected: &Self) {
        let missing: Vec<_> = expected.0.iter().filter(|c| !self.0.contains(c)).collect();
        let surplus: Vec<_> = self.0.iter().filter(|c| !expected.0.contains(c)).collect();
        assert!(
            self == expected,
            "captured {} connections, the program had {}\n\
             not captured like this:\n{}captured instead:\n{}",
            self.len(),
            expected.len(),
            Listing(&missing),
            Listing(&surplus),
        );
    }
}

struct Listing<'a>(&'a [&'a Connection]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for connection in self.0.iter().take(5) {
            for (name, transfer) in [("write", &connection.write), ("read", &connection.read)] {
                let calls = &transfer.calls;
                writeln!(
                    f,
                    "  pid {} {name}: {} bytes in {} calls {:?}, sha256 {}",
                    connection.pid,
                    calls.iter().sum::<u64>(),
                    calls.len(),
                    &calls[..calls.len().min(12)],
                    transfer.sha256
                )?;
            }
        }
        Ok(())
    }
}
