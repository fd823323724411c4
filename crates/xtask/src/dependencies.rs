//! What we build upon: licences, sources, known defects, and the Rust version that it needs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::cargo::{cargo, workspace};
use crate::run;
use crate::tools::Tool;

/// What `cargo metadata` prints, as far as we look at it.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    rust_version: Option<String>,
}

/// Checks licences, sources and duplicate versions as deny.toml says, and known defects if the
/// database of these can be had; then that no dependency needs a newer Rust than we declare.
pub(crate) fn check() -> Result<()> {
    let deny = Tool::Deny.ensure()?;
    run::visibly(deny_command(&deny).args(["check", "licenses", "bans", "sources"]))?;
    // The database is a git repository; without it nothing can be said about defects.
    if run::output(deny_command(&deny).args(["fetch", "db"])).is_ok() {
        run::visibly(deny_command(&deny).args(["check", "--disable-fetch", "advisories"]))?;
    } else {
        eprintln!("known defects (RustSec) are not checked: their database can't be fetched");
    }
    rust_version()
}

fn deny_command(deny: &Path) -> Command {
    let mut command = Command::new(deny);
    command
        .current_dir(workspace())
        .args(["--locked", "--workspace", "--log-level", "error"]);
    command
}

/// No dependency may need a newer Rust than the workspace says that it needs.
fn rust_version() -> Result<()> {
    let json = run::output(cargo().args(["metadata", "--locked", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&json).context("cargo metadata")?;
    let (ours, others): (Vec<_>, Vec<_>) = metadata
        .packages
        .iter()
        .partition(|package| metadata.workspace_members.contains(&package.id));
    let declared = ours
        .iter()
        .filter_map(|package| package.rust_version.as_deref())
        .min_by_key(|version| numbers(version))
        .context("no crate of the workspace has a rust-version")?;
    let newer: Vec<_> = others
        .iter()
        .filter_map(|package| Some((package, package.rust_version.as_deref()?)))
        .filter(|(_, needed)| numbers(needed) > numbers(declared))
        .map(|(package, needed)| format!("{} {} needs {needed}", package.name, package.version))
        .collect();
    if !newer.is_empty() {
        bail!("rust-version is {declared}, but {}", newer.join(", "));
    }
    Ok(())
}

/// `1.88` and `1.88.0` are the same.
fn numbers(version: &str) -> [u32; 3] {
    let mut numbers = [0; 3];
    for (number, text) in numbers.iter_mut().zip(version.split('.')) {
        *number = text.parse().unwrap_or(0);
    }
    numbers
}
