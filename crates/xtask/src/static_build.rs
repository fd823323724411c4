//! Statically linked executables, for this machine's architecture or the other one.
//!
//! They are linked with glibc's static library, so that they need neither a musl target nor a C
//! compiler for one. The other architecture needs a cross compiler for C (gcc), and two things that
//! come from Debian's packages, unpacked into the cache, where they are not installed: Rust's
//! standard library (`rustup target add` installs it), and libelf, zlib and libpcap.

use std::env;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::arch::Arch;
use crate::cargo::{self, cargo, workspace};
use crate::{cache, debian, run};

/// The suite whose Rust compiler serves where rustup lacks the target.
const RUST_SUITE: &str = "sid";
/// The suite of the C libraries: its glibc is as old as can be expected of a cross compiler.
const LIBRARY_SUITE: &str = "bookworm";
const PROFILE: &str = "dist";

/// How cargo is to be called for an architecture.
#[derive(Debug)]
pub struct StaticBuild {
    arch: Arch,
    environment: Vec<(String, OsString)>,
}

impl StaticBuild {
    /// For `arch`; the first time, this may download a compiler and libraries.
    pub fn new(arch: Arch) -> Result<Self> {
        let mut build = Self {
            arch,
            environment: Vec::new(),
        };
        let libraries = build.libraries()?;
        if arch != Arch::host()? {
            build.cross_compile(&libraries)?;
        }
        let flags = build.rust_flags(&libraries)?;
        build.set("RUSTFLAGS", flags);
        Ok(build)
    }

    /// Builds `ecapture`: its path.
    pub fn ecapture(&self) -> Result<PathBuf> {
        eprintln!("building ecapture for {}, statically linked", self.arch);
        run::visibly(self.cargo("build").args(["--package", "ecapture"]))?;
        Ok(self.directory().join("ecapture"))
    }

    /// Builds tests: the path of each, in the order of `tests`.
    pub fn tests(&self, packages: &[&str], tests: &[&str]) -> Result<Vec<PathBuf>> {
        eprintln!("building the tests for {}, statically linked", self.arch);
        let mut command = self.cargo("test");
        command.args(["--no-run", "--message-format", "json-render-diagnostics"]);
        for package in packages {
            command.args(["--package", package]);
        }
        for test in tests {
            command.args(["--test", test]);
        }
        let output = command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(
            output.status.success(),
            "{}: {}",
            run::shown(&command),
            output.status
        );
        let messages = String::from_utf8_lossy(&output.stdout);
        tests
            .iter()
            .map(|test| {
                executable_of(&messages, test)
                    .with_context(|| format!("cargo built no test named {test}"))
            })
            .collect()
    }

    /// Where cargo leaves executables.
    pub fn directory(&self) -> PathBuf {
        target_dir().join(self.arch.triple()).join(PROFILE)
    }

    /// Where tests may leave files (`CARGO_TARGET_TMPDIR`).
    pub fn scratch(&self) -> PathBuf {
        target_dir().join(self.arch.triple()).join("tmp")
    }

    fn cargo(&self, subcommand: &str) -> Command {
        let mut command = cargo();
        command
            .args([subcommand, "--quiet", "--profile", PROFILE])
            .args(["--target", self.arch.triple(), "--target-dir"])
            .arg(target_dir())
            // They would win over RUSTFLAGS.
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn set(&mut self, name: impl Into<String>, value: impl Into<OsString>) {
        self.environment.push((name.into(), value.into()));
    }

    /// The directory of the static C libraries.
    fn libraries(&self) -> Result<PathBuf> {
        let multiarch = format!("{}-linux-gnu", self.arch.gnu());
        for dir in [&format!("/usr/lib/{multiarch}"), "/usr/lib64", "/usr/lib"] {
            // Without a name of the architecture it must be the machine's own.
            let usable = dir.ends_with(&multiarch) || self.arch == Arch::host()?;
            if usable && Path::new(dir).join("libelf.a").exists() {
                return Ok(dir.into());
            }
        }
        if self.arch == Arch::host()? {
            bail!("libelf.a is nowhere in /usr/lib: install libelf's static library");
        }
        Ok(sysroot(self.arch)?.join("usr/lib").join(multiarch))
    }

    fn cross_compile(&mut self, libraries: &Path) -> Result<()> {
        let compiler = format!("{}-linux-gnu-gcc", self.arch.gnu());
        if !run::exists(&compiler) {
            bail!(
                "{compiler} is needed for {}: install it (Debian: gcc-{}-linux-gnu)",
                self.arch,
                self.arch.gnu()
            );
        }
        let triple = self.arch.triple();
        let variable = triple.replace('-', "_");
        let shouted = variable.to_uppercase();
        self.set(format!("CARGO_TARGET_{shouted}_LINKER"), &compiler);
        self.set(format!("CC_{variable}"), &compiler);
        self.set("LIBPCAP_DIR", libraries);
        self.set("PKG_CONFIG_ALLOW_CROSS", "1");
        self.set("PKG_CONFIG_LIBDIR", libraries.join("pkgconfig"));
        if let Some(root) = libraries
            .ancestors()
            .nth(3)
            .filter(|root| *root != Path::new("/"))
        {
            let mut headers = OsString::from("-isystem ");
            headers.push(root.join("usr/include"));
            self.set(format!("CFLAGS_{variable}"), headers);
            self.set("PKG_CONFIG_SYSROOT_DIR", root);
        }
        if !rustup_has(triple) {
            self.set("RUSTC", debian_rust(self.arch)?.join("rustc"));
        }
        Ok(())
    }

    fn rust_flags(&self, libraries: &Path) -> Result<OsString> {
        // The linker warns of names that plugins of glibc would look up; they are not used (names.rs
        // in the crate capture).
        let mut flags =
            OsString::from("-C target-feature=+crt-static -A linker-messages -L native=");
        flags.push(libraries);
        if libraries.join("libzstd.a").exists() {
            flags.push(" -C link-arg=-lzstd"); // libelf since 0.189 may want it
        }
        // Nothing of this machine belongs into what others get.
        for (dir, name) in [(workspace(), "/ecapture"), (cargo_home()?, "/cargo")] {
            flags.push(" --remap-path-prefix=");
            flags.push(dir);
            flags.push(format!("={name}"));
        }
        Ok(flags)
    }
}

/// The executable that cargo's messages tell of.
fn executable_of(messages: &str, test: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| {
            message["target"]["name"] == test && message["target"]["kind"][0] == "test"
        })
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// Apart from the usual directory: other flags would have everything built anew, each time.
fn target_dir() -> PathBuf {
    cargo::target_dir().join("dist/build")
}

fn cargo_home() -> Result<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")
}

fn rustup_has(triple: &str) -> bool {
    run::output(Command::new("rustc").args(["--print", "target-libdir", "--target", triple]))
        .is_ok_and(|dir| Path::new(dir.trim()).exists())
}

/// Debian's Rust compiler with the standard libraries of this machine and of `arch`: a directory
/// with an executable `rustc`.
fn debian_rust(arch: Arch) -> Result<PathBuf> {
    let host = Arch::host()?;
    cache::entry(format!("rust/{RUST_SUITE}-{host}-{arch}"), |dir| {
        eprintln!("unpacking Debian's Rust compiler for {arch}: rustup has no such target here");
        let downloads = dir.join("download");
        let mut debs = debian::download_with_dependencies(
            RUST_SUITE,
            host,
            &["libstd-rust-dev"],
            &downloads.join("libraries"),
        )?;
        debs.extend(debian::download(
            RUST_SUITE,
            host,
            &["rustc"],
            &downloads.join("compiler"),
        )?);
        debs.extend(debian::download(
            RUST_SUITE,
            arch,
            &["libstd-rust-dev"],
            &downloads.join("target"),
        )?);
        debian::unpack(&debs, dir)?;
        fs::remove_dir_all(&downloads)?;
        let wrapper = dir.join("rustc");
        fs::write(&wrapper, rustc_script(host))?;
        Ok(fs::set_permissions(
            &wrapper,
            Permissions::from_mode(0o755),
        )?)
    })
}

/// Runs the compiler with its own suite's loader and C library, which may be newer than this
/// machine's; the linker that it calls has this machine's.
fn rustc_script(host: Arch) -> String {
    let (loader, gnu) = match host {
        Arch::Amd64 => ("usr/lib64/ld-linux-x86-64.so.2", host.gnu()),
        Arch::Arm64 => ("usr/lib/ld-linux-aarch64.so.1", host.gnu()),
    };
    format!(
        "#!/bin/sh\nroot=${{0%/*}}\nexec \"$root/{loader}\" \
         --library-path \"$root/usr/lib/{gnu}-linux-gnu\" \"$root/usr/bin/rustc\" \
         --sysroot \"$root/usr\" \"$@\"\n"
    )
}

/// The C libraries that ecapture is linked with, and their headers.
fn sysroot(arch: Arch) -> Result<PathBuf> {
    cache::entry(format!("sysroot/{LIBRARY_SUITE}-{arch}"), |dir| {
        eprintln!("unpacking Debian's libelf, zlib and libpcap for {arch}");
        let downloads = dir.join("download");
        let packages = ["libelf-dev", "zlib1g-dev", "libpcap0.8-dev"];
        let debs = debian::download(LIBRARY_SUITE, arch, &packages, &downloads)?;
        debian::unpack(&debs, dir)?;
        Ok(fs::remove_dir_all(&downloads)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"live"},"executable":"/b"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"packets"},"executable":"/p"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"live"},"executable":"/l"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable_of(messages, "live"), Some("/l".into()));
        assert_eq!(executable_of(messages, "other"), None);
    }
}
