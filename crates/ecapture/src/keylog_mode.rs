//! `-m keylog`: the keys of TLS sessions, into a file that Wireshark can follow.

use std::fs::File;
use std::io;
use std::path::Path;

use events::Record;
use gobin::KeyPlan;
use trace::{KeyLog, Timestamp, escape_name};

use crate::failure::Failure;
use crate::parts::FilePlans;
use crate::pipeline::{Destination, Ending, Output};
use crate::secret_file::{Place, open};

/// Where keys go unless `-k` says otherwise: eCapture's default.
pub(crate) const DEFAULT_FILE: &str = "ecapture_gotls_key.log";

/// Writes keys.
#[derive(Debug)]
pub(crate) struct Keys {
    log: KeyLog<File>,
    destination: Destination,
}

impl Keys {
    /// Opens the file, or standard output for `-`.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let (destination, file) = open(path, Destination::KeyLog, Place::append)?;
        Ok(Self {
            log: KeyLog::new(file),
            destination,
        })
    }
}

impl Output for Keys {
    fn destination(&self) -> &Destination {
        &self.destination
    }

    fn record(&mut self, record: &Record<'_>, _: i64) -> io::Result<()> {
        match record {
            Record::Key(key) => self.log.key(key),
            // Not probed for, but a recording may hold them.
            Record::Connection(_)
            | Record::Data(_)
            | Record::Close(_)
            | Record::Packet(_)
            | Record::Process(_) => Ok(()),
        }
    }

    fn finish(&mut self, _: Timestamp, _: &Ending) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.flush()
    }

    fn summary(&self, ending: &Ending) -> String {
        let totals = self.log.totals();
        let mut summary = format!(
            "{} keys written, {} duplicates left out; lost: {} keys",
            totals.keys,
            totals.duplicates,
            ending.lost_keys()
        );
        if totals.malformed > 0 {
            summary += &format!("; keys without a proper label: {}", totals.malformed);
        }
        summary
    }
}

/// What can't be had from an executable, for stderr.
pub(crate) fn notes(plans: &FilePlans) -> Vec<String> {
    match plans {
        FilePlans::Keys(plans) => plans.iter().flat_map(notes_on).collect(),
        FilePlans::Plaintext(_) => Vec::new(),
    }
}

fn notes_on(plan: &KeyPlan) -> Vec<String> {
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
