//! `-m keylog`: the keys of TLS sessions, into a file that Wireshark can follow.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use capture::Counters;
use events::Record;
use gobin::KeyPlan;
use trace::{KeyLog, Timestamp, escape_name};

use crate::consume::{Outcome, Output};
use crate::failure::Failure;

/// Where keys go unless `-k` says otherwise: eCapture's default.
pub(crate) const DEFAULT_FILE: &str = "ecapture_gotls_key.log";

/// Writes keys.
#[derive(Debug)]
pub(crate) struct Keys {
    log: KeyLog<File>,
    name: PathBuf,
}

impl Keys {
    /// Opens the file, or standard output for `-`.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let file = if path == Path::new("-") {
            io::stdout().as_fd().try_clone_to_owned().map(File::from)
        } else {
            open_for_secrets(path)
        };
        let file = file.with_context(|| format!("key log {}", path.display()));
        let file = file.map_err(Failure::WrongInput)?;
        Ok(Self {
            log: KeyLog::new(file),
            name: path.into(),
        })
    }

    /// What an error of writing is about.
    pub(crate) fn name(&self) -> String {
        if self.name == Path::new("-") {
            "standard output".to_owned()
        } else {
            format!("key log {}", self.name.display())
        }
    }
}

/// Opens a file for appending. A new one is readable by its owner only.
fn open_for_secrets(path: &Path) -> io::Result<File> {
    /// Anybody may create files here, links to other people's files among them.
    const WRITABLE_BY_OTHERS: u32 = 0o002;

    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut options = File::options();
    options.append(true).create(true).mode(0o600);
    if fs::metadata(directory)?.mode() & WRITABLE_BY_OTHERS != 0 {
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    }
    options.open(path).map_err(|error| {
        if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            let reason = "is a symbolic link in a directory that others can write to";
            return io::Error::new(error.kind(), reason);
        }
        error
    })
}

impl Output for Keys {
    fn record(&mut self, record: &Record<'_>, _: i64) -> io::Result<()> {
        match record {
            Record::Key(key) => self.log.key(key),
            Record::Data(_) | Record::Close(_) | Record::Packet(_) => Ok(()), // Not probed for.
        }
    }

    fn finish(&mut self, _: Timestamp, _: &Counters) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.flush()
    }
}

/// What can't be had from an executable, for stderr.
pub(crate) fn notes(plan: &KeyPlan) -> Vec<String> {
    let note = |error: &gobin::Error, what: &str| {
        format!(
            "note: {what}: {}",
            escape_name(error.to_string().as_bytes())
        )
    };
    let mut notes = Vec::new();
    if let Err(error) = &plan.key_log {
        notes.push(note(
            error,
            "the keys of TLS 1.3 and QUIC sessions can't be had",
        ));
    }
    if let Err(error) = &plan.master_secret {
        notes.push(note(
            error,
            "the keys of resumed TLS 1.2 sessions can't be had",
        ));
    }
    notes
}

/// The closing line, without what all modes have.
pub(crate) fn summary(outcome: &Outcome<Keys>) -> String {
    let totals = outcome.output.log.totals();
    let mut summary = format!(
        "{} keys written, {} duplicates left out; lost: {} keys",
        totals.keys, totals.duplicates, outcome.counters.lost_records
    );
    if totals.malformed > 0 {
        summary += &format!("; keys without a proper label: {}", totals.malformed);
    }
    summary
}
