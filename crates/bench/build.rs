//! Compiles the eBPF programs for the target's architecture.

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
    let registers = manifest.join("../capture/bpf");
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-changed={}/registers.h", registers.display());

    let mut arguments = vec![
        format!("-I{}", registers.display()),
        format!("-D__TARGET_ARCH_{arch}"),
        "-Wall".into(),
        "-Wextra".into(),
        "-Werror".into(),
        "-mcpu=v2".into(),
    ];
    // <linux/types.h> wants <asm/types.h>, which Debian keeps in a directory per architecture.
    for host in ["x86_64", "aarch64"] {
        let headers = format!("/usr/include/{host}-linux-gnu");
        if Path::new(&headers).join("asm/types.h").exists() {
            arguments.push(format!("-I{headers}"));
        }
    }
    SkeletonBuilder::new()
        .source(manifest.join("bpf/reference.bpf.c"))
        .obj(out.join("reference.bpf.o"))
        .clang_args(arguments)
        .build()
        .unwrap_or_else(|error| panic!("eBPF programs: {error:#} (is clang installed?)"));
}
