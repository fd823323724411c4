//! Several test programs under names of their own, and captures of all of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;
use xtask::matrix::{self, GoRelease, Variant};
use xtask::run;

use crate::capture::{Capture, ecapture};

/// Copies of test binaries under names that nobody else uses, so that selectors can tell them from
/// those of other tests.
#[derive(Debug)]
pub(crate) struct Fleet {
    dir: TempDir,
    name: &'static str,
}

impl Fleet {
    pub(crate) fn new(name: &'static str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("ecapture-fleet-")
            .tempdir()?;
        run::output(Command::new("chmod").arg("755").arg(dir.path()))?;
        Ok(Self { dir, name })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the program of this number is.
    pub(crate) fn path(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("{}-{number}", self.name))
    }

    pub(crate) fn add(
        &self,
        number: usize,
        release: GoRelease,
        variant: Variant,
    ) -> Result<PathBuf> {
        let path = self.path(number);
        let binary = matrix::binary(release, variant, matrix::Program::Exchange)?;
        run::output(Command::new("cp").arg(binary).arg(&path))?;
        Ok(path)
    }

    /// What selects them all.
    pub(crate) fn glob(&self) -> String {
        format!("{}-*", self.name)
    }

    /// Captures from all of them, as JSON lines. A busy machine takes its time to attach to them.
    pub(crate) fn capture(&self) -> Result<Capture> {
        self.capture_with("--longest-hold 60000")
    }

    /// The same with these flags, and no more.
    pub(crate) fn capture_with(&self, flags: &str) -> Result<Capture> {
        self.capture_by(&["--comm", &self.glob()], flags)
    }

    /// Captures from those that these selectors mean.
    pub(crate) fn capture_by(&self, selectors: &[&str], flags: &str) -> Result<Capture> {
        let mut command = ecapture();
        command.args(["gotls", "--format", "json", "--events"]);
        command.arg("connection,data,lost,close").args(selectors);
        Capture::spawn(command.args(flags.split_whitespace()))
    }
}

/// The command for one of them.
pub(crate) fn command(path: &Path, flags: &str) -> Command {
    let mut command = Command::new(path);
    command.args(flags.split_whitespace());
    command
}
