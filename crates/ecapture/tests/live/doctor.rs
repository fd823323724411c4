//! `ecapture doctor` tells which modes work on this host, and its exit code says whether all do.

use std::process::{Command, Output};

use anyhow::Result;
use serde_json::Value;

use crate::capture::ecapture;
use crate::exchange::NOBODY;
use crate::kernel;

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

/// What a kernel lacks is said, with the version that has it.
#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn what_this_kernel_lacks_is_said() -> Result<()> {
    let output = ecapture().args(["doctor", "--format", "json"]).output()?;
    let found = json(&output)?;
    let kernel = kernel::version()?;
    // By the kernel's releases: bpf_loop (5.17), sleepable uprobe programs (6.0), both kinds of links (6.6).
    for (what, since) in [
        ("reads_paged_out_memory", (6, 0)),
        ("uprobe_multi", (6, 6)),
        ("tcx", (6, 6)),
    ] {
        assert_eq!(found[what], kernel >= since, "{what} in {found}");
    }
    let longest = found["call_bytes_max"].as_u64();
    assert_eq!(longest > Some(1 << 20), kernel >= (5, 17), "{found}");
    let text = String::from_utf8(ecapture().arg("doctor").output()?.stdout)?;
    for (says, since) in [
        ("(Linux 6.0 can fetch it)", (6, 0)),
        (
            "by perf events, one for each site (before Linux 6.6)",
            (6, 6),
        ),
        ("by clsact filters (before Linux 6.6)", (6, 6)),
    ] {
        assert_eq!(text.contains(says), kernel < since, "{says} in\n{text}");
    }
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
