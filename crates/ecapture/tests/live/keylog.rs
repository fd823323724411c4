//! The keys that a capture writes are the program's own: as its `KeyLogWriter` gets them, and where
//! that gets none, those that are in use.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use xtask::matrix::{self, GoRelease, Variant};
use xtask::process::Finished;

use crate::capture::{Capture, Signal, ecapture};
use crate::exchange::Program;
use crate::https::{self, Https};

/// The labels of a TLS 1.3 session, those of QUIC's too.
pub(crate) const TLS_1_3: [&str; 4] = [
    "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
    "CLIENT_TRAFFIC_SECRET_0",
    "SERVER_HANDSHAKE_TRAFFIC_SECRET",
    "SERVER_TRAFFIC_SECRET_0",
];

/// So many sessions of either version. Client and server are in the same process, so everything
/// comes twice, and the master secret of TLS 1.2 from two probes.
fn keys_are_those_that_the_program_logs(release: GoRelease, variant: Variant) -> Result<()> {
    const SESSIONS: usize = 2;

    let program = Program::new(release, variant)?;
    let own = program.dir().join("own");
    let capture = KeyCapture::of(&program.path(), "")?;
    for version in ["1.2", "1.3"] {
        let flags = format!("-tls {version} -conns {SESSIONS} -sizes 100 -keylog");
        program.run(&format!("{flags} {}", own.display()))?;
    }
    let captured = capture.stop()?;

    let mut expected = BTreeMap::from([("CLIENT_RANDOM".to_owned(), SESSIONS)]);
    expected.extend(TLS_1_3.map(|label| (label.to_owned(), SESSIONS)));
    assert_eq!(
        captured.log.count_by_label(),
        expected,
        "each key is there once"
    );
    assert_eq!(captured.log.set(), KeyLog::read(&own)?.set());
    let (keys, duplicates) = (SESSIONS * (1 + 4), SESSIONS * (3 + 4));
    assert_eq!(
        captured.summary,
        format!("summary: {keys} keys written, {duplicates} duplicates left out; lost: 0 keys")
    );
    Ok(())
}

macro_rules! releases {
    ($($module:ident: $release:ident),* $(,)?) => {$(
        mod $module {
            use super::*;

            #[test]
            #[ignore = "needs root and the test binaries: run `cargo xtask test`"]
            fn keys_are_those_that_the_program_logs() -> Result<()> {
                super::keys_are_those_that_the_program_logs(GoRelease::$release, Variant::Default)
            }

            #[test]
            #[ignore = "needs root and the test binaries: run `cargo xtask test`"]
            fn without_symbols_and_position_independent_too() -> Result<()> {
                super::keys_are_those_that_the_program_logs(GoRelease::$release, Variant::StrippedPie)
            }
        }
    )*};
}

releases! {
    go_1_15: Go1_15,
    go_1_19: Go1_19,
    go_1_21: Go1_21,
    go_1_22: Go1_22,
    go_1_23: Go1_23,
    go_1_24: Go1_24,
    go_1_25: Go1_25,
    go_1_26: Go1_26,
    go_1_27: Go1_27,
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn quic_handshakes_yield_keys() -> Result<()> {
    for release in [GoRelease::Go1_21, GoRelease::Go1_24, GoRelease::Go1_27] {
        let binary = matrix::binary(release, Variant::Default, matrix::Program::Quic)?;
        let program = Program::copy_of(&binary)?;
        let own = program.dir().join("own");
        let capture = KeyCapture::of(&program.path(), "")?;
        let flags = format!("-handshakes 3 -keylog {}", own.display());
        let said = xtask::run::output(&mut program.command(&flags))?;
        let captured = capture.stop()?;

        assert_eq!(captured.log.set(), KeyLog::read(&own)?.set());
        let expected = TLS_1_3.map(|label| (label.to_owned(), 3));
        assert_eq!(captured.log.count_by_label(), expected.into());
        let mut randoms = BTreeSet::new();
        for line in said.lines() {
            let event: serde_json::Value = serde_json::from_str(line)?;
            randoms.extend(event["client_random"].as_str().map(str::to_owned));
        }
        assert_eq!(captured.log.client_randoms(), randoms);
    }
    Ok(())
}

/// Keys of TLS 1.3 are each session's own, so that Go's key log lacks nothing.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn resumed_sessions_of_tls_1_3_have_keys_of_their_own() -> Result<()> {
    for release in GoRelease::GENERATIONS {
        let program = https::program(release)?;
        let own = program.dir().join("own");
        let capture = KeyCapture::of(&program.path(), "")?;
        let flags = format!("-tls 1.3 -resume -requests 3 -keylog {}", own.display());
        let requests = Https::start(&program, &flags)?.finish()?;
        let captured = capture.stop()?;

        let resumed = requests.iter().filter(|request| request.resumed).count();
        assert_eq!(resumed, 4, "two sessions, told by client and server");
        let expected = TLS_1_3.map(|label| (label.to_owned(), 3));
        assert_eq!(captured.log.count_by_label(), expected.into());
        assert_eq!(captured.log.set(), KeyLog::read(&own)?.set());
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_pid_gives_only_that_processs_keys() -> Result<()> {
    let program = Program::newest()?;
    let own = program.dir().join("own");
    let mut target = program.start(&format!("-hold -sizes 100 -keylog {}", own.display()))?;
    let mut other = program.start("-hold -sizes 100")?;

    let mut alone = KeyCapture::command(["--pid", &target.pid().to_string()]);
    let alone = KeyCapture::spawn(&mut alone)?;
    let mut with_file = KeyCapture::command(["--pid", &target.pid().to_string(), "-e"]);
    let with_file = KeyCapture::spawn(with_file.arg(program.path()))?;
    other.go()?;
    other.finish()?;
    target.go()?;
    target.finish()?;

    let own = KeyLog::read(&own)?.set();
    assert_eq!(own.len(), 4);
    for capture in [alone, with_file] {
        // The target's end is the capture's.
        assert_eq!(capture.finish()?.log.set(), own);
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn both_names_of_the_mode_mean_the_same() -> Result<()> {
    let program = Program::newest()?;
    let mut captures = Vec::new();
    for name in ["-m keylog", "-m key", "--mode keylog", "--model=key"] {
        let mut command = ecapture();
        command.arg("gotls").args(name.split(' '));
        command.arg("-e").arg(program.path());
        captures.push(KeyCapture::spawn(&mut command)?);
    }
    program.run("-sizes 100")?;
    let mut logs = Vec::new();
    for capture in captures {
        logs.push(capture.stop()?.log.set());
    }
    assert_eq!(logs[0].len(), 4);
    assert!(logs.iter().all(|log| *log == logs[0]));
    Ok(())
}

/// A running capture of keys, into a new file.
#[derive(Debug)]
pub(crate) struct KeyCapture {
    capture: Capture,
    dir: TempDir,
}

/// What it wrote.
#[derive(Debug)]
pub(crate) struct KeyCaptured {
    pub(crate) log: KeyLog,
    pub(crate) file: PathBuf,
    /// The closing line.
    pub(crate) summary: String,
    _dir: TempDir,
}

impl KeyCapture {
    /// Captures from every process that runs the file.
    pub(crate) fn of(program: &Path, flags: &str) -> Result<Self> {
        let mut command = Self::command(flags.split_whitespace());
        Self::spawn(command.arg("-e").arg(program))
    }

    /// The command that captures keys, with these flags.
    fn command<'a>(flags: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = ecapture();
        command.args(["gotls", "-m", "keylog"]).args(flags);
        command
    }

    /// Starts the command and waits until all probes are in place.
    fn spawn(command: &mut Command) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        command.arg("-k").arg(dir.path().join("keys"));
        let capture = Capture::spawn(command)?;
        Ok(Self { capture, dir })
    }

    /// Ends it.
    pub(crate) fn stop(mut self) -> Result<KeyCaptured> {
        self.capture.child().signal(Signal::TERM)?;
        self.finish()
    }

    /// Waits for its own end, which must be a good one.
    fn finish(self) -> Result<KeyCaptured> {
        let summary = summary(&self.capture.end()?.success()?)?;
        let file = self.dir.path().join("keys");
        Ok(KeyCaptured {
            log: KeyLog::read(&file)?,
            file,
            summary,
            _dir: self.dir,
        })
    }
}

/// The closing line, which must not tell of any loss.
pub(crate) fn summary(finished: &Finished) -> Result<String> {
    let stderr = finished.stderr_text();
    let summary = stderr.lines().last().unwrap_or_default();
    let good = summary.starts_with("summary: ") && summary.ends_with("; lost: 0 keys");
    ensure!(good, "{stderr}");
    Ok(summary.to_owned())
}

/// A key log, each line of which is well-formed.
#[derive(Debug)]
pub(crate) struct KeyLog(Vec<Key>);

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    label: String,
    client_random: String,
    secret: String,
}

impl KeyLog {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text)
    }

    /// An error unless these are whole lines.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        ensure!(text.is_empty() || text.ends_with('\n'), "not whole: {text}");
        let keys: Option<_> = text.lines().map(Key::parse).collect();
        keys.map(Self)
            .with_context(|| format!("no key log: {text}"))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let line = |key: &Key| format!("{} {} {}\n", key.label, key.client_random, key.secret);
        fs::write(path, self.0.iter().map(line).collect::<String>())?;
        Ok(())
    }

    /// These keys and not those.
    pub(crate) fn without(&self, those: &Self) -> Self {
        let these = self.0.iter().filter(|key| !those.0.contains(key));
        Self(these.cloned().collect())
    }

    /// The keys, in no particular order and each once.
    pub(crate) fn set(&self) -> BTreeSet<Key> {
        self.0.iter().cloned().collect()
    }

    pub(crate) fn count_by_label(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for key in &self.0 {
            *counts.entry(key.label.clone()).or_default() += 1;
        }
        counts
    }

    pub(crate) fn client_randoms(&self) -> BTreeSet<String> {
        self.0.iter().map(|key| key.client_random.clone()).collect()
    }
}

impl Key {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<_> = line.split(' ').collect();
        let [label, client_random, secret] = fields[..] else {
            return None;
        };
        // A master secret has 48 bytes, a traffic secret the length of its hash: SHA-256, SHA-384.
        let lengths: &[usize] = match label {
            "CLIENT_RANDOM" => &[48],
            _ if TLS_1_3.contains(&label) => &[32, 48],
            _ => return None,
        };
        let is_hex = |digits: &str| {
            digits
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let good = client_random.len() == 64
            && is_hex(client_random)
            && lengths.iter().any(|bytes| bytes * 2 == secret.len())
            && is_hex(secret);
        good.then(|| Self {
            label: label.into(),
            client_random: client_random.into(),
            secret: secret.into(),
        })
    }
}
