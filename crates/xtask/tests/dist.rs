//! What `cargo xtask dist` packs: complete, the same each time, and a program that needs nothing of
//! the machine it is copied to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use xtask::arch::Arch;
use xtask::matrix::{self, GoRelease, Program, Variant};
use xtask::{dist, run};

/// Packed once for all tests.
fn tarball() -> Result<&'static Path> {
    static TARBALL: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let tarball = TARBALL.get_or_init(|| {
        dist::tarball(Arch::host().map_err(|error| error.to_string())?)
            .map_err(|error| format!("{error:#}"))
    });
    match tarball {
        Ok(path) => Ok(path),
        Err(error) => bail!("{error}"),
    }
}

/// The directory that the tarball unpacks to, below `dir`.
fn unpack(tarball: &Path, dir: &Path) -> Result<PathBuf> {
    run::output(
        Command::new("tar")
            .arg("-xzf")
            .arg(tarball)
            .arg("-C")
            .arg(dir),
    )?;
    let entry = fs::read_dir(dir)?
        .next()
        .context("the tarball is empty")??;
    Ok(entry.path())
}

/// `ecapture` with nothing around it but what is in `root`.
fn in_chroot(root: &Path, args: &[&str]) -> Result<Output> {
    let mut command = run::command("chroot")?;
    command.arg(root).arg("/ecapture").args(args).env_clear();
    Ok(command.output()?)
}

#[test]
#[ignore = "needs root, and builds a release: run `cargo xtask test`"]
fn released_program_needs_nothing_of_the_machine() -> Result<()> {
    let tarball = tarball()?;
    let dir = tempfile::tempdir()?;
    let unpacked = unpack(tarball, dir.path())?;
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("etc"))?;
    fs::copy(unpacked.join("ecapture"), root.join("ecapture"))?;

    let version = in_chroot(&root, &["--version"])?;
    let expected = format!("ecapture {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);

    let program = matrix::binary(GoRelease::NEWEST, Variant::StrippedPie, Program::Exchange)?;
    fs::copy(program, root.join("program"))?;
    let inspected = in_chroot(&root, &["inspect", "/program"])?;
    let said = String::from_utf8_lossy(&inspected.stdout);
    ensure!(inspected.status.success(), "{inspected:?}");
    assert!(said.contains("capture       possible"), "{said}");
    Ok(())
}

/// Other ways than files and DNS are plugins, which a static program can't load safely.
#[test]
#[ignore = "needs root, and builds a release: run `cargo xtask test`"]
fn released_program_looks_names_up_without_plugins() -> Result<()> {
    let tarball = tarball()?;
    let dir = tempfile::tempdir()?;
    let unpacked = unpack(tarball, dir.path())?;
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("etc"))?;
    fs::copy(unpacked.join("ecapture"), root.join("ecapture"))?;
    let program = matrix::binary(GoRelease::NEWEST, Variant::Default, Program::Exchange)?;
    fs::copy(program, root.join("program"))?;
    fs::write(
        root.join("etc/nsswitch.conf"),
        "hosts: plugin\nservices: plugin\n",
    )?;
    fs::write(root.join("etc/hosts"), "192.0.2.7 known.example\n")?;

    // Both fail, as nothing is mounted there, but only one of them for its filter.
    let said = |host| -> Result<String> {
        let args = ["gotls", "-m", "pcap", "-e", "/program", "host", host];
        Ok(String::from_utf8_lossy(&in_chroot(&root, &args)?.stderr).into_owned())
    };
    let unknown = said("unknown.example")?;
    assert!(
        unknown.contains("unknown host 'unknown.example'"),
        "{unknown}"
    );
    let known = said("known.example")?;
    assert!(!known.contains("unknown host"), "{known}");
    Ok(())
}

#[test]
#[ignore = "builds a release: run `cargo xtask test`"]
fn tarball_is_complete_and_the_same_each_time() -> Result<()> {
    let tarball = tarball()?;
    let first = fs::read(tarball)?;
    run::output(
        Command::new("sha256sum")
            .args(["--check", "--strict"])
            .arg(format!("{}.sha256", tarball.display()))
            .current_dir(tarball.parent().context("no directory")?),
    )?;
    let dir = tempfile::tempdir()?;
    let unpacked = unpack(tarball, dir.path())?;
    for file in [
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "CHANGELOG.md",
        "man/ecapture.1",
        "man/ecapture-gotls.1",
        "completions/bash/ecapture",
        "completions/zsh/_ecapture",
        "completions/fish/ecapture.fish",
    ] {
        let length = fs::metadata(unpacked.join(file))
            .with_context(|| file.to_owned())?
            .len();
        assert!(length > 100, "{file}: {length} bytes");
    }
    let readme = fs::read_to_string(unpacked.join("README.md"))?;
    let links = readme.split("](").skip(1).filter_map(|rest| {
        let file = rest.split([')', '#']).next()?;
        (!file.is_empty() && !file.contains("://")).then_some(file)
    });
    for file in links {
        let there = unpacked.join(file).exists();
        assert!(there, "README.md leads to {file}, which is not packed");
    }
    // Nothing of the directories in which it was built.
    let program = fs::read(unpacked.join("ecapture"))?;
    let home = xtask::cargo::workspace();
    let home = home.as_os_str().as_encoded_bytes();
    assert!(!program.windows(home.len()).any(|window| window == home));

    assert_eq!(fs::read(dist::tarball(Arch::host()?)?)?, first);
    Ok(())
}
