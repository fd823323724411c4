//! The programs of the benchmarks: the Go program that is measured, and what does the measuring.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::matrix::{Fnv, GoRelease};
use crate::toolchain::Toolchain;
use crate::{cache, cargo, run};

/// The Go release that builds what is measured.
pub(super) const RELEASE: GoRelease = GoRelease::Go1_24;

/// The paths of everything that a measurement starts.
pub(super) struct Programs {
    /// The optimised `ecapture`.
    pub(super) ecapture: PathBuf,
    /// What it is compared with: `crates/bench`.
    pub(super) bench: PathBuf,
    /// The program that is captured: `programs/load`.
    pub(super) load: PathBuf,
}

impl Programs {
    /// Builds whatever is not there yet.
    pub(super) fn ensure() -> Result<Self> {
        Ok(Self {
            ecapture: cargo::build_release("ecapture")?,
            bench: cargo::build_release("bench")?,
            load: load()?,
        })
    }
}

/// The directory with the source of the Go program, which is not one of the matrix's: changing it
/// leaves the test binaries alone.
pub(crate) fn load_source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/load")
}

fn load() -> Result<PathBuf> {
    built("load", &[])
}

/// The program that is measured without symbols and DWARF: as small as Go programs with TLS get.
pub(super) fn stripped_load() -> Result<PathBuf> {
    built("load-stripped", &["-ldflags=-s -w"])
}

fn built(name: &str, flags: &[&str]) -> Result<PathBuf> {
    let mut hash = Fnv::default();
    hash.update_with_files(&load_source())?;
    cache::entry(format!("load/{:016x}/{RELEASE}/{name}", hash.0), |output| {
        eprintln!("building the Go program that is measured");
        let mut go = Toolchain::ensure(RELEASE)?.go();
        go.args(["build", "-buildvcs=false"]).args(flags);
        go.arg("-o").arg(output).arg(".").current_dir(load_source());
        run::output(&mut go).map(drop)
    })
}

/// A file's size in megabytes.
pub(super) fn megabytes(path: &Path) -> Result<f64> {
    let meta = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(meta.len() as f64 / 1e6)
}
