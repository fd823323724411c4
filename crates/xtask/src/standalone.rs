//! Go test programs outside of the matrix: few tests want each, so they are built when one asks.

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
    /// Makes HTTP requests of every kind and logs them and their responses.
    Http,
    /// Sends memory that is mapped from a file and not resident.
    Mapped,
}

impl Program {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Connections, Self::Http, Self::Mapped];

    /// The program's file name: `connections`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Http => "http",
            Self::Mapped => "mapped",
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
        cache::entry(self.entry(release, variant)?, |output| {
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

    /// The name of a build in the cache, which tells sources, version and flags apart.
    pub(crate) fn entry(self, release: GoRelease, variant: Variant) -> Result<String> {
        let mut hash = Fnv::default();
        hash.update(format!("{:?}{:?}", release.source(), variant.flags()).as_bytes());
        hash.update_with_files(&self.source())?;
        Ok(format!(
            "standalone/{}-{hash}/{release}/{variant}",
            self.name()
        ))
    }
}

/// The builds that live tests ask for.
#[must_use]
pub fn all() -> Vec<(Program, GoRelease, Variant)> {
    let mut all = vec![(Program::Mapped, GoRelease::NEWEST, Variant::Default)];
    for release in GoRelease::GENERATIONS {
        all.push((Program::Connections, release, Variant::Default));
        if release != GoRelease::Go1_21 {
            all.push((Program::Connections, release, Variant::StrippedPie));
            all.push((Program::Http, release, Variant::Default));
        }
    }
    all.push((Program::Connections, GoRelease::NEWEST, Variant::Stripped));
    all
}
