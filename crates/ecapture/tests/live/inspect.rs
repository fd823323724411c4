//! `ecapture inspect` tells the truth about every kind of executable, and its exit code says whether
//! the executable can be captured. It needs no root.

use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::matrix::{self, GoRelease, Program, Variant};
use xtask::standalone;

use crate::capture::ecapture;
use crate::wrong_input::{WRONG_INPUT, refused};

fn inspect(path: &Path, options: &[&str]) -> Result<Output> {
    Ok(ecapture().arg("inspect").arg(path).args(options).output()?)
}

fn json(path: &Path) -> Result<Value> {
    let output = inspect(path, &["--format", "json"])?;
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    serde_json::from_slice(&output.stdout).context("inspect's JSON")
}

#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn every_executable_of_the_matrix_is_described_as_it_was_built() -> Result<()> {
    for binary in matrix::all() {
        if binary.program != Program::Exchange {
            continue;
        }
        let found = json(&binary.path()?)?;
        let (release, variant) = (binary.release, binary.variant);
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();

        let version = format!("go{release}");
        assert!(
            text("go_version").starts_with(&version),
            "{binary}: {found}"
        );
        let arch = if variant.is_arm64() { "arm64" } else { "amd64" };
        assert_eq!(text("architecture"), arch, "{binary}");
        let registers = release.minor() >= if variant.is_arm64() { 18 } else { 17 };
        let abi = if registers { "register" } else { "stack" };
        assert_eq!(text("abi"), abi, "{binary}");
        let mode = if variant.is_pie() { "pie" } else { "exe" };
        assert_eq!(text("build_mode"), mode, "{binary}");
        assert_eq!(found["stripped"], variant.is_stripped(), "{binary}");
        assert_eq!(found["capture"], true, "{binary}");

        let functions = found["functions"].as_array().context("functions")?;
        assert_eq!(functions.len(), 5, "{binary}");
        for function in functions {
            let sites = function["sites"].as_array().context("sites")?;
            assert!(!sites.is_empty(), "{binary}: {function}");
            for site in sites {
                let within = |field: &str| site["address"].as_u64() >= function[field].as_u64();
                assert!(within("address") && !within("end"), "{binary}: {function}");
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn text_names_the_functions_their_probes_and_why() -> Result<()> {
    let path = matrix::binary(GoRelease::NEWEST, Variant::Stripped, Program::Exchange)?;
    let output = inspect(&path, &[])?;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    for expected in [
        "abi           register",
        "stripped      yes",
        "capture       possible",
        "crypto/tls.(*Conn).Read\n",
        "the one call of runtime.memmove",
        "push of the frame pointer behind the stack check",
        "data.ptr in %rcx, data.len in %rdi",
        "connections   addresses are known of TCP and Unix sockets, also below *tls.Conn,",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    Ok(())
}

/// Of the program's own wrappers, those are listed that prove where they lead, and no other.
#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn wrappers_that_are_followed_are_named() -> Result<()> {
    for release in [GoRelease::OLDEST, GoRelease::Go1_19, GoRelease::NEWEST] {
        for variant in [
            Variant::StrippedPie,
            Variant::Arm64,
            Variant::Arm64StrippedPie,
        ] {
            let path = standalone::Program::Connections.binary(release, variant)?;
            let found = json(&path)?;
            assert_eq!(found["goroutine_ids"], true, "{found}");
            let wrappers = found["connections"]["wrappers"].as_array();
            let mut own: Vec<_> = wrappers
                .context("wrappers")?
                .iter()
                .filter_map(|name| name.as_str())
                .filter(|name| name.contains("main."))
                .collect();
            own.sort_unstable();
            let expected = [
                "*main.base",
                "*main.countingConn",
                "*main.labelledConn",
                "*main.valueConn",
                "main.base",
                "main.labelledConn",
                "main.valueConn",
            ];
            assert_eq!(own, expected, "Go {release}, {variant}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn a_program_without_tls_is_described_and_the_exit_code_says_no() -> Result<()> {
    let path = matrix::binary(GoRelease::OLDEST, Variant::Default, Program::Notls)?;
    let output = inspect(&path, &[])?;
    assert_eq!(output.status.code(), Some(WRONG_INPUT), "{output:?}");
    let (text, error) = (
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?,
    );
    assert!(text.contains("go version    go1.15"), "{text}");
    assert!(text.contains("capture       not possible: a Go program without crypto/tls"));
    assert_eq!(error.lines().count(), 1, "{error}");
    Ok(())
}

#[test]
fn what_is_no_go_program_is_refused() -> Result<()> {
    let inspect = |path: &str| {
        let mut command = ecapture();
        command.args(["inspect", path]);
        command
    };
    refused(&mut inspect("/etc/passwd"), WRONG_INPUT, "not an ELF file")?;
    refused(&mut inspect("/bin/sh"), WRONG_INPUT, "not a Go program")?;
    refused(&mut inspect("/"), WRONG_INPUT, "is a directory")?;
    refused(&mut inspect("/nowhere"), WRONG_INPUT, "No such file")
}
