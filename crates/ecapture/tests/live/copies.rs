//! Copies of crypto/tls under other import paths are captured like crypto/tls itself, alone and beside it.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::matrix::{GoRelease, Variant};
use xtask::standalone::copied::{self, Place};

use crate::capture::{Capture, ecapture};
use crate::exchange::Program;
use crate::keylog::{KeyCapture, KeyLog};

/// Each generation of crypto/tls and of the code that the compiler makes, as far as copies can be made.
const RELEASES: [GoRelease; 4] = [
    GoRelease::Go1_19,
    GoRelease::Go1_21,
    GoRelease::Go1_24,
    GoRelease::Go1_27,
];

fn bytes_are_those_that_the_program_logs(
    release: GoRelease,
    variant: Variant,
    place: Place,
) -> Result<()> {
    let program = Program::copy_of(&copied::exchange(release, variant, place)?)?;
    let capture = Capture::of(&program.path(), "")?;
    let named = format!("; {})", place.import_path());
    assert!(capture.attached.contains(&named), "{}", capture.attached);
    let log = program.run("-conns 3 -rounds 2")?;
    let captured = capture.stop()?;
    captured.connections()?.assert_equal(&log.connections());
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn every_byte_of_a_copy_is_captured() -> Result<()> {
    for release in RELEASES {
        bytes_are_those_that_the_program_logs(release, Variant::Default, Place::Module)?;
    }
    bytes_are_those_that_the_program_logs(GoRelease::NEWEST, Variant::StrippedPie, Place::Module)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_vendored_copy_is_captured() -> Result<()> {
    for release in [GoRelease::Go1_15, GoRelease::Go1_19] {
        bytes_are_those_that_the_program_logs(release, Variant::Stripped, Place::Vendor)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn keys_of_a_copy_are_those_that_the_program_logs() -> Result<()> {
    for (release, place) in [
        (GoRelease::Go1_15, Place::Vendor),
        (GoRelease::Go1_24, Place::Module),
        (GoRelease::Go1_27, Place::Module),
    ] {
        let program = Program::copy_of(&copied::exchange(release, Variant::Default, place)?)?;
        let own = program.dir().join("own");
        let capture = KeyCapture::of(&program.path(), "")?;
        for version in ["1.2", "1.3"] {
            let flags = format!("-tls {version} -conns 2 -sizes 100 -keylog");
            program.run(&format!("{flags} {}", own.display()))?;
        }
        let keys = capture.stop()?.log.set();
        // Of each session the master secret, or four traffic secrets.
        assert_eq!(keys.len(), 2 + 2 * 4);
        assert_eq!(keys, KeyLog::read(&own)?.set());
    }
    Ok(())
}

/// Also when it is captured as one of many programs.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn copies_are_among_all_programs() -> Result<()> {
    for flags in ["", "--uprobes perf --objects each"] {
        let binary = copied::exchange(GoRelease::Go1_24, Variant::Default, Place::Module)?;
        let program = Program::copy_of(&binary)?;
        let capture = Capture::of(&program.path(), &format!("--comm exchange {flags}"))?;
        let log = program.run("-sizes 1,100,16385")?;
        let captured = capture.stop()?;
        captured.connections()?.assert_equal(&log.connections());
    }
    Ok(())
}

fn inspect(path: &Path) -> Result<Value> {
    let mut command = ecapture();
    command.args(["inspect", "--format", "json"]).arg(path);
    serde_json::from_str(&xtask::run::output(&mut command)?).context("inspect's JSON")
}

#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn inspect_reports_copies_under_their_import_paths() -> Result<()> {
    let path = copied::exchange(GoRelease::Go1_15, Variant::Default, Place::Vendor)?;
    let found = inspect(&path)?;
    assert_eq!(found["capture"], true, "{found}");
    let copies = found["copies"].as_array().context("copies")?;
    assert_eq!(copies.len(), 1, "{found}");
    assert_eq!(copies[0]["import_path"], Place::Vendor.import_path());
    assert_eq!(copies[0]["capture"], true);

    let path = copied::both(GoRelease::NEWEST, Variant::Default)?;
    let output = ecapture().arg("inspect").arg(&path).output()?;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    for expected in [
        "tls package   crypto/tls\n",
        "tls package   github.com/forked/tls, a copy of crypto/tls\n",
        "crypto/tls.(*Conn).Read\n",
        "github.com/forked/tls.(*Conn).Read\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn list_names_the_packages() -> Result<()> {
    let binary = copied::exchange(GoRelease::NEWEST, Variant::Default, Place::Module)?;
    let program = Program::copy_of(&binary)?;
    let mut target = program.start("-hold")?;
    let pid = target.pid().to_string();
    let mut list = ecapture();
    let lines = xtask::run::output(list.args(["list", "--format", "json", "--pid", &pid]))?;
    let process: Value = serde_json::from_str(&lines)?;
    assert_eq!(process["capture"], true, "{process}");
    assert_eq!(process["packages"][0], Place::Module.import_path());
    let text = xtask::run::output(ecapture().args(["list", "--pid", &pid]))?;
    assert!(text.contains("  yes: github.com/forked/tls\n"), "{text}");
    target.go()?;
    target.finish()?;
    Ok(())
}
