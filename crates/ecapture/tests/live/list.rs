//! `ecapture list` shows the Go programs that run, and those that were asked for.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::matrix::{GoRelease, Variant};

use crate::capture::ecapture;
use crate::exchange::{Exchange, NOBODY, Program};

/// The lines of `list --format json`, by process.
fn list(selectors: &[&str]) -> Result<Vec<(u64, Value)>> {
    let output = ecapture()
        .args(["list", "--format", "json"])
        .args(selectors)
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    let lines = std::str::from_utf8(&output.stdout)?.lines();
    lines
        .map(|line| {
            let process: Value = serde_json::from_str(line)?;
            let pid = process["pid"].as_u64().context("no pid")?;
            Ok((pid, process))
        })
        .collect()
}

fn lists(selectors: &[&str], pid: u32) -> Result<bool> {
    Ok(list(selectors)?
        .iter()
        .any(|&(found, _)| found == u64::from(pid)))
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn running_go_programs_are_listed_and_others_are_not() -> Result<()> {
    let old = Program::new(GoRelease::Go1_15, Variant::StrippedPie)?;
    let new = Program::newest()?;
    let (mut first, mut second) = (old.start("-hold")?, new.start("-hold")?);
    std::fs::remove_file(new.path())?;

    let found = list(&[])?;
    let of = |pid: u32| {
        let mut processes = found.iter();
        let process = processes.find(|&&(found, _)| found == u64::from(pid));
        process.map(|(_, process)| process).context("not listed")
    };
    let process = of(first.pid())?;
    assert_eq!(process["capture"], true, "{process}");
    assert_eq!(process["abi"], "stack", "{process}");
    assert_eq!(process["build_mode"], "pie", "{process}");
    assert_eq!(process["comm"], "exchange", "{process}");
    assert_eq!(process["user"], "root", "{process}");
    let version = process["go_version"].as_str().unwrap_or_default();
    assert!(version.starts_with("go1.15"), "{process}");
    // Its file is gone, which changes nothing.
    assert_eq!(of(second.pid())?["capture"], true);
    // We are no Go program.
    assert!(of(std::process::id()).is_err());

    for exchange in [&mut first, &mut second] {
        exchange.go()?;
    }
    first.finish()?;
    second.finish()?;
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn selectors_choose_alone_and_together() -> Result<()> {
    let program = Program::newest()?;
    let path = program.path();
    let path = path.to_str().context("path")?;
    let mut target = program.start("-hold")?;
    let pid = target.pid();
    let number = pid.to_string();

    for selectors in [
        &["--pid", &number][..],
        &["--elfpath", path],
        &["--comm", "exch*"],
        &["--user", "root"],
        &["--cgroup_path", "/"],
        &["--pid", &number, "--comm", "exchange", "--uid", "0"],
        &["--elfpath", path, "--exclude-user", "nobody"],
    ] {
        assert!(lists(selectors, pid)?, "{selectors:?}");
    }
    for selectors in [
        &["--elfpath", "/bin/sh"][..],
        &["--comm", "xchange"],
        &["--user", "nobody"],
        &["--cgroup_path", "/no/such"],
        &["--container", "0123456789ab"],
        &["--pid", &number, "--exclude-comm", "exch*"],
        &["--exclude-elfpath", path],
    ] {
        assert!(!lists(selectors, pid)?, "{selectors:?}");
    }
    target.go()?;
    target.finish()?;
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn what_was_looked_at_is_said_if_nothing_is_found() -> Result<()> {
    let output = ecapture()
        .args(["list", "--comm", "no-such-program"])
        .output()?;
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains("none of the "), "{said}");
    assert!(said.contains("that were asked for"), "{said}");
    Ok(())
}

/// Others of which nothing was asked may be there in any number.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn processes_that_may_not_be_looked_at_are_counted_if_they_were_asked_for() -> Result<()> {
    let copy = Program::copy_of(std::path::Path::new(ecapture().get_program()))?;
    let as_nobody = |pid: &str| -> Result<String> {
        let mut command = Command::new("sh");
        let script = format!("exec {} list --pid {pid}", copy.path().display());
        command.args(["-c", &script]).uid(NOBODY).gid(NOBODY);
        let output = command.output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    let of_ours = as_nobody(&std::process::id().to_string())?;
    assert!(of_ours.contains("can't be looked at: 1; "), "{of_ours}");
    let of_itself = as_nobody("$$")?;
    assert!(of_itself.contains("none of the 1 "), "{of_itself}");
    assert!(!of_itself.contains("can't be looked at"), "{of_itself}");
    Ok(())
}

/// With its own mount, pid and user namespaces, as containers have.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn processes_in_other_namespaces_are_listed() -> Result<()> {
    let program = Program::newest()?;
    let mut target = Exchange::spawn(
        Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child"])
            .arg(program.path())
            .arg("-hold"),
    )?;
    let path = program.path();
    let found = list(&["--elfpath", path.to_str().context("path")?])?;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].1["capture"], true);
    target.go()?;
    target.finish()?;
    Ok(())
}
