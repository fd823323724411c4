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
        format!("-I{}", records.display()),
        "-Wall".into(),
        "-Wextra".into(),
        "-Werror".into(),
        // What is built doesn't depend on where.
        format!("-ffile-prefix-map={}=.", manifest.display()),
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
    for programs in ["gotls", "packets", "execs"] {
        let mut builder = SkeletonBuilder::new();
        builder.source(manifest.join(format!("bpf/{programs}.bpf.c")));
        let failed = |error| panic!("eBPF programs: {error:#} (is clang installed?)");
        builder
            .clang_args(with_arch(&arguments, arch))
            .build_and_generate(out.join(format!("{programs}.skel.rs")))
            .unwrap_or_else(failed);
        // What is changed for one architecture must not break the other.
        let other = if arch == "x86" { "arm64" } else { "x86" };
        builder
            .clang_args(with_arch(&arguments, other))
            .obj(out.join(format!("{programs}.{other}.bpf.o")))
            .build()
            .unwrap_or_else(failed);
    }
    link_libpcap();
}

fn with_arch(arguments: &[String], arch: &str) -> Vec<String> {
    let mut arguments = arguments.to_vec();
    arguments.push(format!("-D__TARGET_ARCH_{arch}"));
    arguments
}

/// Links libpcap into the binary where its static library is installed, so that the binary stays one
/// file; otherwise the machine that it runs on needs libpcap.so.
fn link_libpcap() {
    println!("cargo:rustc-check-cfg=cfg(static_libpcap)");
    println!("cargo:rerun-if-env-changed=LIBPCAP_DIR");
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("set by cargo");
    let directories = [
        env::var("LIBPCAP_DIR").unwrap_or_default(),
        format!("/usr/lib/{architecture}-linux-gnu"),
        "/usr/lib64".into(),
        "/usr/lib".into(),
    ];
    for directory in directories.iter().filter(|directory| !directory.is_empty()) {
        if Path::new(directory).join("libpcap.a").exists() {
            println!("cargo:rustc-link-search=native={directory}");
            println!("cargo:rustc-link-lib=static=pcap");
            println!("cargo:rustc-cfg=static_libpcap");
            return;
        }
    }
    println!("cargo:rustc-link-lib=pcap");
}
