//! Go test programs outside of the matrix: few tests want each, so they are built when one asks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::matrix::{Fnv, GoRelease, Variant};
use crate::toolchain::Toolchain;
use crate::{cache, run};

pub mod copied;
pub mod shared;

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
        programs().join(self.name())
    }

    /// The path of a build without cgo; built if it isn't there yet, which takes some seconds.
    pub fn binary(self, release: GoRelease, variant: Variant) -> Result<PathBuf> {
        let source = self.source();
        self.recipe(&[&source], release, variant).make(|output| {
            let mut go = Toolchain::ensure(release)?.go();
            arguments(&mut go, release, variant);
            run::output(go.arg("-o").arg(output).arg(".").current_dir(&source)).map(drop)
        })
    }

    /// The name of a build in the cache, which tells sources, version and flags apart.
    pub(crate) fn entry(self, release: GoRelease, variant: Variant) -> Result<String> {
        self.recipe(&[&self.source()], release, variant).entry()
    }

    fn recipe<'a>(
        self,
        sources: &'a [&'a Path],
        release: GoRelease,
        variant: Variant,
    ) -> Recipe<'a> {
        Recipe {
            name: self.name().to_owned(),
            sources,
            release,
            variant,
        }
    }
}

/// The directories of the Go sources of all programs here.
pub(crate) fn sources() -> Vec<PathBuf> {
    let mut sources = Program::ALL.map(Program::source).to_vec();
    sources.extend([copied::source(), shared::source()]);
    sources
}

/// The directory of all test programs' sources.
fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
}

/// What a build is made of.
struct Recipe<'a> {
    name: String,
    /// Files, and directories of files, relative to the checkout's root if they are.
    sources: &'a [&'a Path],
    release: GoRelease,
    variant: Variant,
}

impl Recipe<'_> {
    /// The path of the build; `make` leaves it at the path that it gets, if it isn't there yet.
    fn make(self, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let made = self.entry().and_then(|entry| cache::entry(entry, make));
        made.with_context(|| {
            let Self {
                name,
                release,
                variant,
                ..
            } = self;
            format!("{name}: Go {release}, {variant}: no test binary")
        })
    }

    /// Its name in the cache, which tells sources, version and flags apart.
    fn entry(&self) -> Result<String> {
        let Self {
            release, variant, ..
        } = self;
        let mut hash = Fnv::default();
        hash.update(format!("{:?}{:?}", release.source(), variant.flags()).as_bytes());
        for source in self.sources {
            for file in files(source)? {
                hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
                let bytes = fs::read(&file);
                hash.update(&bytes.with_context(|| file.display().to_string())?);
            }
        }
        Ok(format!(
            "standalone/{}-{hash}/{release}/{variant}",
            self.name
        ))
    }
}

/// A file, or the files of a directory.
fn files(source: &Path) -> Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let source = root.join(source);
    if source.is_file() {
        return Ok(vec![source]);
    }
    let entries: Vec<_> = fs::read_dir(&source)
        .and_then(Iterator::collect::<Result<_, _>>)
        .with_context(|| source.display().to_string())?;
    let mut files: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
    files.retain(|file| file.is_file());
    files.sort();
    Ok(files)
}

/// The arguments that any build has.
fn arguments(go: &mut Command, release: GoRelease, variant: Variant) {
    go.arg("build").args(variant.flags());
    if release.minor() >= 18 {
        go.arg("-buildvcs=false");
    }
    if variant.is_arm64() {
        go.env("GOARCH", "arm64");
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
    for release in [GoRelease::Go1_15, GoRelease::NEWEST] {
        all.push((Program::WebSocket, release, Variant::Default));
    }
    all.push((Program::Hostile, GoRelease::NEWEST, Variant::Default));
    all
}
