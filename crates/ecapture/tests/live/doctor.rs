//! `ecapture doctor` tells which modes work on this host, and its exit code says whether all do.

use std::process::{Command, Output};

use anyhow::Result;
use serde_json::Value;

use crate::capture::ecapture;
use crate::exchange::NOBODY;

fn json(output: &Output) -> Result<Value> {
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn every_mode_works_here() -> Result<()> {
    let output = ecapture().args(["doctor", "--format", "json"]).output()?;
    assert!(output.status.success(), "{output:?}");
    let found = json(&output)?;
    for mode in ["text", "keylog", "pcap"] {
        assert_eq!(found["modes"][mode]["works"], true, "{found}");
    }
    let release = Command::new("uname").arg("-r").output()?.stdout;
    assert_eq!(
        found["kernel"].as_str(),
        Some(String::from_utf8(release)?.trim())
    );
    Ok(())
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn what_is_missing_is_named() -> Result<()> {
    let doctor = |options: &[&str]| {
        Command::new("setpriv")
            .args(["--reuid", &NOBODY.to_string(), "--clear-groups", "--"])
            .arg(ecapture().get_program())
            .arg("doctor")
            .args(options)
            .output()
    };
    let output = doctor(&["--format", "json"])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let found = json(&output)?;
    for mode in ["text", "keylog", "pcap"] {
        let reason = found["modes"][mode]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("CAP_BPF"), "{found}");
    }
    let output = doctor(&["--mode", "pcap"])?;
    let shown = String::from_utf8(output.stdout)?;
    assert!(shown.contains("pcap mode     does not work: "), "{shown}");
    assert!(!shown.contains("text mode"), "{shown}");
    Ok(())
}
