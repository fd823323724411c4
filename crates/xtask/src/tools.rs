//! Cargo subcommands that the chores use, each in a fixed version, built once into the cache.

use std::path::PathBuf;

use anyhow::Result;

use crate::cargo::cargo;
use crate::{cache, run};

/// A cargo subcommand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Checks licences, sources and advisories of the dependencies.
    Deny,
    /// Builds and runs fuzz targets.
    Fuzz,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Deny => "cargo-deny",
            Self::Fuzz => "cargo-fuzz",
        }
    }

    fn version(self) -> &'static str {
        match self {
            Self::Deny => "0.20.2",
            Self::Fuzz => "0.13.2",
        }
    }

    /// The path of its executable, which is built from the registry's sources if the cache lacks it.
    pub fn ensure(self) -> Result<PathBuf> {
        let (name, version) = (self.name(), self.version());
        let root = cache::entry(format!("tools/{name}-{version}"), |root| {
            eprintln!("building {name} {version} (some minutes, once)");
            run::visibly(
                cargo()
                    .args(["install", "--quiet", "--locked", "--no-track"])
                    .args([name, "--version", version, "--root"])
                    .arg(root)
                    // Not into the checkout's own directory, which has another profile.
                    .env("CARGO_TARGET_DIR", root.with_extension("target")),
            )?;
            std::fs::remove_dir_all(root.with_extension("target"))?;
            Ok(())
        })?;
        Ok(root.join("bin").join(name))
    }
}
