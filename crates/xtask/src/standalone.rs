//! Go test programs outside of the matrix: few tests want each, so they are built when one asks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::matrix::{Fnv, GoRelease, Variant};
use crate::toolchain::Toolchain;
use crate::{cache, run};

/// Such a program; its source is the directory of this name in `programs/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Makes connections of every kind and logs what they connect.
    Connections,
    /// Sends what is meant to harm who looks on.
    Hostile,
    /// Makes HTTP requests of every kind and logs them and their responses.
    Http,
    /// Sends memory that is mapped from a file and not resident.
    Mapped,
    /// Talks over WebSocket, and logs messages and frames.
    WebSocket,
}

impl Program {
    /// Every one.
    pub const ALL: [Self; 5] = [
        Self::Connections,
        Self::Hostile,
        Self::Http,
        Self::Mapped,
        Self::WebSocket,
    ];

    /// The program's file name: `connections`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Hostile => "hostile",
            Self::Http => "http",
            Self::Mapped => "mapped",
            Self::WebSocket => "websocket",
        }
    }

    /// The directory of its source.
    #[must_use]
    pub fn source(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("programs")
            .join(self.name())
    }

    /// The path of a build without cgo; built if it isn't there yet, which takes some seconds.
    pub fn binary(self, release: GoRelease, variant: Variant) -> Result<PathBuf> {
        let source = self.source();
        let mut files: Vec<_> = fs::read_dir(&source)
            .and_then(Iterator::collect::<Result<_, _>>)
            .with_context(|| source.display().to_string())?;
        files.sort_by_key(fs::DirEntry::file_name);
        let mut hash = Fnv::default();
        hash.update(format!("{:?}{:?}", release.source(), variant.flags()).as_bytes());
        for file in files {
            hash.update(file.file_name().as_encoded_bytes());
            hash.update(&fs::read(file.path())?);
        }
        let name = format!("standalone/{}-{hash}/{release}/{variant}", self.name());
        cache::entry(name, |output| {
            let mut go = Toolchain::ensure(release)?.go();
            go.arg("build").args(variant.flags());
            if release.minor() >= 18 {
                go.arg("-buildvcs=false");
            }
            if variant.is_arm64() {
                go.env("GOARCH", "arm64");
            }
            run::output(go.arg("-o").arg(output).arg(".").current_dir(&source)).map(drop)
        })
        .with_context(|| format!("{}: Go {release}, {variant}: no test binary", self.name()))
    }
}
