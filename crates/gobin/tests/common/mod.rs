//! The test binaries.
//!
//! `ECAPTURE_TEST_BINARIES` names a directory `<go version>/<variant>/<program>`, as
//! `cargo xtask test` builds it. The programs are `exchange`, which speaks TLS, and `notls`.
#![allow(dead_code, reason = "not every test needs everything")]

use std::path::{Path, PathBuf};

use gobin::{Abi, Analysis, Arch};

pub(crate) struct Binary {
    /// Of Go, as the directory is named: `1.24.11`.
    pub(crate) version: String,
    pub(crate) variant: String,
    pub(crate) path: PathBuf,
}

impl Binary {
    pub(crate) fn minor(&self) -> u32 {
        self.version.split('.').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn arch(&self) -> Arch {
        if self.variant.starts_with("arm64") {
            Arch::Arm64
        } else {
            Arch::Amd64
        }
    }

    pub(crate) fn abi(&self) -> Abi {
        let registers = match self.arch() {
            Arch::Amd64 => self.minor() >= 17,
            Arch::Arm64 => self.minor() >= 18,
        };
        if registers { Abi::Register } else { Abi::Stack }
    }

    pub(crate) fn is_optimised(&self) -> bool {
        !matches!(self.variant.as_str(), "noopt" | "race")
    }

    pub(crate) fn read(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    pub(crate) fn analysis(&self) -> Analysis {
        gobin::analyze(&self.read()).unwrap_or_else(|error| panic!("{self}: {error}"))
    }
}

impl std::fmt::Display for Binary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

fn entries(directory: &Path) -> Vec<(String, PathBuf)> {
    let mut entries: Vec<(String, PathBuf)> = std::fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .collect();
    entries.sort();
    entries
}

/// All builds of this program.
pub(crate) fn binaries(program: &str) -> Vec<Binary> {
    let directory = std::env::var_os("ECAPTURE_TEST_BINARIES")
        .expect("ECAPTURE_TEST_BINARIES must name the directory of the test binaries");
    let mut found = Vec::new();
    for (version, path) in entries(Path::new(&directory)) {
        for (variant, path) in entries(&path) {
            let path = path.join(program);
            if path.is_file() {
                found.push(Binary {
                    version: version.clone(),
                    variant,
                    path,
                });
            }
        }
    }
    assert!(!found.is_empty(), "no {program} below {directory:?}");
    found
}
