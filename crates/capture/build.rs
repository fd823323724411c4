//! Compiles the eBPF programs for the target's architecture and generates their skeleton.

use std::env;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let arch = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => "x86",
        Ok("aarch64") => "arm64",
        other => panic!("ecapture runs on x86_64 and aarch64, not on {other:?}"),
    };
    let records = manifest.join("../events/include");
    println!("cargo:rerun-if-changed={}", records.display());
    println!("cargo:rerun-if-changed=bpf");

    let mut arguments = vec![
        format!("-D__TARGET_ARCH_{arch}"),
        format!("-I{}", records.display()),
        "-Wall".into(),
        "-Wextra".into(),
        "-Werror".into(),
        "-mcpu=v2".into(), // Linux 5.10 knows v3, but not all of its verifier's helpers for it.
    ];
    // <linux/types.h> wants <asm/types.h>, which Debian keeps in a directory per architecture. It is
    // the same on both, so the build machine's serves.
    for host in ["x86_64", "aarch64"] {
        let headers = format!("/usr/include/{host}-linux-gnu");
        if Path::new(&headers).join("asm/types.h").exists() {
            arguments.push(format!("-I{headers}"));
        }
    }
    SkeletonBuilder::new()
        .source(manifest.join("bpf/gotls.bpf.c"))
        .clang_args(arguments)
        .build_and_generate(out.join("gotls.skel.rs"))
        .unwrap_or_else(|error| panic!("eBPF programs: {error:#} (is clang installed?)"));
}
