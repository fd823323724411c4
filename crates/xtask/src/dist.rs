//! `cargo xtask dist`: what users download: one statically linked executable, its manual and shell
//! completions in a tarball, with its checksum beside it.
//!
//! The same source gives the same tarball: sorted, without owners, and as old as the last commit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::arch::Arch;
use crate::cargo::{target_dir, workspace};
use crate::setup::{self, Group};
use crate::static_build::StaticBuild;
use crate::{cache, run};

/// What to pack
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// The processor architecture [default: this machine's]
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,
}

/// Files of the checkout that go into every tarball.
/// With all that the README leads to.
const DOCUMENTS: [&str; 7] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "docs",
];

/// Builds, packs, and prints the tarball's path.
pub fn run(options: &Options) -> Result<()> {
    let host = Arch::host()?;
    let arch = options.arch.unwrap_or(host);
    setup::ensure(if arch == host {
        Group::Demo
    } else {
        Group::Test
    })?;
    let tarball = tarball(arch)?;
    println!("{}", tarball.display());
    Ok(())
}

/// Builds everything for `arch`: the path of `ecapture-VERSION-linux-ARCH.tar.gz`, beside which
/// lies its checksum.
pub fn tarball(arch: Arch) -> Result<PathBuf> {
    let _lock = cache::Lock::take(Path::new("dist"))?;
    let executable = StaticBuild::new(arch)?.ecapture()?;
    // It tells its own command line, so it has to run here.
    let speaker = if arch == Arch::host()? {
        executable.clone()
    } else {
        StaticBuild::new(Arch::host()?)?.ecapture()?
    };
    let dist = target_dir().join("dist");
    let name = format!("ecapture-{}-linux-{arch}", env!("CARGO_PKG_VERSION"));
    let stage = dist.join(&name);
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    fill(&stage, &executable, &speaker)?;
    let tarball = dist.join(format!("{name}.tar.gz"));
    pack(&dist, &name, &tarball)?;
    write_checksum(&tarball)?;
    fs::remove_dir_all(&stage)?;
    eprintln!(
        "{}: {} KiB, the executable in it {} KiB",
        tarball.display(),
        fs::metadata(&tarball)?.len() / 1024,
        fs::metadata(&executable)?.len() / 1024
    );
    Ok(tarball)
}

fn fill(stage: &Path, executable: &Path, speaker: &Path) -> Result<()> {
    let man = stage.join("man");
    let completions = stage.join("completions");
    for dir in [&man, &completions] {
        fs::create_dir_all(dir)?;
    }
    copy(executable, &stage.join("ecapture"))?;
    run::output(
        Command::new("cp")
            .arg("--recursive")
            .args(DOCUMENTS.map(|document| workspace().join(document)))
            .arg(stage),
    )?;
    run::output(Command::new(speaker).args(["generate", "man"]).arg(&man))?;
    // The names under which the shells look for them.
    for (shell, file) in [
        ("bash", "ecapture"),
        ("zsh", "_ecapture"),
        ("fish", "ecapture.fish"),
    ] {
        let script = run::output(Command::new(speaker).args(["generate", shell]))?;
        fs::create_dir_all(completions.join(shell))?;
        fs::write(completions.join(shell).join(file), script)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

fn pack(dir: &Path, name: &str, tarball: &Path) -> Result<()> {
    const SCRIPT: &str = r#"
        set -eu
        tar --create --format=ustar --sort=name --mtime="@$2" --owner=0 --group=0 --numeric-owner \
            --mode=u+rw,go=u-w "$1" | gzip -9 --no-name >"$3.unfinished"
        mv "$3.unfinished" "$3"
    "#;
    run::output(
        Command::new("sh")
            .args(["-c", SCRIPT, "pack", name, &source_time()])
            .arg(tarball)
            .current_dir(dir),
    )?;
    Ok(())
}

/// When the source was last changed, in seconds since 1970: `SOURCE_DATE_EPOCH`
/// (<https://reproducible-builds.org/specs/source-date-epoch/>), else the last commit, else 0.
fn source_time() -> String {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok();
    let committed = || {
        run::output(
            Command::new("git")
                .args(["log", "-1", "--format=%ct"])
                .current_dir(workspace()),
        )
        .ok()
    };
    [given, committed()]
        .into_iter()
        .flatten()
        .map(|seconds| seconds.trim().to_owned())
        .find(|seconds| seconds.parse::<u64>().is_ok())
        .unwrap_or_else(|| "0".into())
}

/// In the format that `sha256sum --check` reads.
fn write_checksum(tarball: &Path) -> Result<()> {
    let name = tarball.file_name().unwrap_or_default();
    let sum = run::output(
        Command::new("sha256sum")
            .arg(name)
            .current_dir(tarball.parent().unwrap_or(Path::new("."))),
    )?;
    let mut file = tarball.as_os_str().to_owned();
    file.push(".sha256");
    Ok(fs::write(file, sum)?)
}
