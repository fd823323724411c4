//! Go test programs outside of the matrix: one test wants each, so they are built when it asks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::matrix::{Fnv, GoRelease};
use crate::toolchain::Toolchain;
use crate::{cache, run};

/// Such a program; its source is the directory of this name in `programs/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Sends memory that is mapped from a file and not resident.
    Mapped,
}

impl Program {
    /// Every one.
    pub const ALL: [Self; 1] = [Self::Mapped];

    /// The program's file name: `mapped`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
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

    /// The path of its binary; built if it isn't there yet, which takes some seconds.
    pub fn binary(self, release: GoRelease) -> Result<PathBuf> {
        let source = self.source();
        let mut files: Vec<_> = fs::read_dir(&source)
            .and_then(Iterator::collect::<Result<_, _>>)
            .with_context(|| source.display().to_string())?;
        files.sort_by_key(fs::DirEntry::file_name);
        let mut hash = Fnv::default();
        hash.update(format!("{:?}", release.source()).as_bytes());
        for file in files {
            hash.update(file.file_name().as_encoded_bytes());
            hash.update(&fs::read(file.path())?);
        }
        let name = format!("standalone/{}-{hash}/{release}", self.name());
        cache::entry(name, |output| {
            let mut go = Toolchain::ensure(release)?.go();
            go.arg("build");
            if release.minor() >= 18 {
                go.arg("-buildvcs=false");
            }
            run::output(go.arg("-o").arg(output).arg(".").current_dir(&source)).map(drop)
        })
        .with_context(|| format!("{}: Go {release}: no test binary", self.name()))
    }
}
