//! Programs whose functions have other names, as garble makes them: that there is TLS in them is said, and
//! that nobody can say where.
//!
//! garble itself is not used: a test binary's function table gets other names.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use xtask::matrix::{self, GoRelease, Variant};

use crate::capture::ecapture;
use crate::exchange::Program;
use crate::wrong_input::{WRONG_INPUT, refused};

const SAYS: &str = "Go, names not found";

/// The executable with other names for all functions but those of the runtime.
fn renamed(release: GoRelease) -> Result<Vec<u8>> {
    let path = matrix::binary(release, Variant::Stripped, matrix::Program::Exchange)?;
    let mut bytes = fs::read(path)?;
    let table = usize::try_from(gobin::analyze(&bytes)?.pclntab.offset.0)?;
    // The header of Go 1.18 and newer: where the names begin, and where they end.
    let word = |index: usize| -> Result<usize> {
        let at = table + 8 + 8 * index;
        let word = bytes[at..].first_chunk().context("a header")?;
        Ok(usize::try_from(u64::from_le_bytes(*word))?)
    };
    let names = table + word(3)?..table + word(4)?;
    for name in bytes[names].split_mut(|&byte| byte == 0) {
        if name.starts_with(b"runtime.") {
            continue;
        }
        let mut state = 7u32;
        for byte in name {
            state = state.wrapping_mul(31).wrapping_add((*byte).into());
            *byte = b'a' + (state % 26) as u8;
        }
    }
    Ok(bytes)
}

struct Renamed {
    directory: TempDir,
}

impl Renamed {
    fn new(bytes: &[u8]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("renamed");
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self { directory })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("renamed")
    }
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn renamed_programs_are_refused_with_the_reason() -> Result<()> {
    for release in [GoRelease::Go1_19, GoRelease::Go1_24, GoRelease::NEWEST] {
        let renamed = Renamed::new(&renamed(release)?)?;
        let mut capture = ecapture();
        refused(
            capture.args(["gotls", "-e"]).arg(renamed.path()),
            WRONG_INPUT,
            SAYS,
        )?;
        let inspected = ecapture().arg("inspect").arg(renamed.path()).output()?;
        ensure!(
            inspected.status.code() == Some(WRONG_INPUT),
            "{inspected:?}"
        );
        let text = String::from_utf8(inspected.stdout)?;
        let expected = format!("capture       not possible: {SAYS}");
        assert!(text.contains(&expected), "{text}");
    }
    Ok(())
}

/// garble changes the table's magic number too.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn without_a_function_table_the_reason_is_the_same() -> Result<()> {
    let mut bytes = renamed(GoRelease::NEWEST)?;
    let table = usize::try_from(gobin::analyze(&bytes)?.pclntab.offset.0)?;
    bytes[table..table + 4].copy_from_slice(b"none");
    let renamed = Renamed::new(&bytes)?;
    let mut inspect = ecapture();
    refused(
        inspect.arg("inspect").arg(renamed.path()),
        WRONG_INPUT,
        SAYS,
    )
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn running_ones_are_listed() -> Result<()> {
    let renamed = Renamed::new(&renamed(GoRelease::Go1_24)?)?;
    let program = Program::copy_of(&renamed.path())?;
    let mut target = program.start("-hold -sizes 100")?;
    let pid = target.pid().to_string();
    let mut list = ecapture();
    let lines = xtask::run::output(list.args(["list", "--format", "json", "--pid", &pid]))?;
    let process: Value = serde_json::from_str(&lines).context(lines)?;
    assert_eq!(process["tls"], true, "{process}");
    assert_eq!(process["capture"], false, "{process}");
    let refusal = process["refusal"].as_str().context("refusal")?;
    assert!(refusal.starts_with(SAYS), "{process}");
    // It is a program that works.
    target.go()?;
    target.finish()?;
    Ok(())
}
