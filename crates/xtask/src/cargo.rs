//! Cargo, called by cargo: for the workspace this crate was built from.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::run;

/// The checkout's root.
#[must_use]
pub fn workspace() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.expect("this crate lies in crates/xtask").to_owned()
}

/// The command `cargo`, in the checkout's root.
#[must_use]
pub fn cargo() -> Command {
    in_workspace(Command::new(program()))
}

/// The same with SIGHUP as it is by default: nohup(1) has all below it ignore that, and tests end captures by it.
#[must_use]
pub fn cargo_to_test() -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP").arg(program());
    in_workspace(command)
}

fn program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn in_workspace(mut command: Command) -> Command {
    command.current_dir(workspace());
    // Set for us by the cargo that runs us; they are not meant for another build.
    for name in [
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "CARGO_PKG_NAME",
    ] {
        command.env_remove(name);
    }
    command
}

/// Builds a package's optimised program, which has the package's name: its path.
pub fn build_release(package: &str) -> Result<PathBuf> {
    eprintln!("building {package} (cargo build --release)");
    run::visibly(cargo().args(["build", "--release", "--quiet", "--package", package]))?;
    Ok(target_dir().join("release").join(package))
}

/// Where cargo puts what it builds.
#[must_use]
pub fn target_dir() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    workspace().join(target)
}
