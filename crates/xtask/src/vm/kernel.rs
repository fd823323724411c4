//! Debian's kernels: the image, an initial file system that finds the disks, and a disk with all
//! modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Release, first_existing, make_disk};
use crate::arch::Arch;
use crate::{cache, debian, run};

/// What the initial file system needs to get at the disks: virtio, and the file system that lays
/// them over each other.
const BOOT_MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "overlay"];
const INIT: &str = include_str!("kernel/init.sh");

/// A kernel that is ready to be booted.
#[derive(Debug)]
pub(super) struct Kernel {
    dir: PathBuf,
    version: String,
}

impl Kernel {
    /// The kernel in the cache, fetched if need be.
    pub(super) fn ensure(release: Release, arch: Arch, update: bool) -> Result<Self> {
        let name = format!("vm/kernel-{}-{arch}", release.name());
        if update {
            cache::forget(&name)?;
        }
        let dir = cache::entry(name, |dir| {
            eprintln!("fetching Linux {} for {arch}", release.name());
            build(release, arch, dir)
        })?;
        let version = fs::read_to_string(dir.join("version"))?;
        Ok(Self { dir, version })
    }

    /// `6.1.0-50-cloud-amd64`
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    pub(super) fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.dir.join("modules.ext4")
    }
}

fn build(release: Release, arch: Arch, dir: &Path) -> Result<()> {
    let suite = release.suite();
    let (version, packages) = packages(suite, arch)?;
    let root = dir.join("root");
    let debs = debian::download(suite, arch, &packages, &dir.join("debs"))?;
    debian::unpack(&debs, &root)?;

    let modules = root.join("usr/lib/modules").join(&version);
    let candidates = [
        root.join(format!("boot/vmlinuz-{version}")),
        modules.join("vmlinuz"),
    ];
    let image = first_existing(&candidates)
        .with_context(|| format!("Debian's packages of Linux {version} have no vmlinuz"))?;
    fs::copy(image, dir.join("vmlinuz"))?;
    run::output(
        run::command("depmod")?
            .arg("--basedir")
            .arg(&root)
            .arg(&version),
    )?;
    build_initramfs(arch, &modules, dir)?;

    // Only the modules are wanted on the disk.
    for other in ["boot", "usr/share"] {
        if root.join(other).exists() {
            fs::remove_dir_all(root.join(other))?;
        }
    }
    make_disk(&root, &dir.join("modules.ext4"))?;
    fs::remove_dir_all(&root)?;
    fs::remove_dir_all(dir.join("debs"))?;
    Ok(fs::write(dir.join("version"), version)?)
}

/// The newest kernel of a suite: its version and the packages that have it. Newer suites have several.
fn packages(suite: &str, arch: Arch) -> Result<(String, Vec<String>)> {
    let newest = format!("linux-image-cloud-{arch}");
    let image = debian::dependencies(suite, arch, &newest)?
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{newest} of Debian {suite} depends on no kernel"))?;
    let version = image.trim_start_matches("linux-image-").to_owned();
    let mut packages: Vec<_> = debian::dependencies(suite, arch, &image)?
        .into_iter()
        .filter(|name| name.ends_with(&version))
        .collect();
    packages.push(image);
    Ok((version, packages))
}

fn build_initramfs(arch: Arch, modules: &Path, dir: &Path) -> Result<()> {
    let root = dir.join("initramfs-root");
    for sub in ["bin", "modules", "dev", "proc", "sys", "disks", "root"] {
        fs::create_dir_all(root.join(sub))?;
    }
    let debs = debian::download(
        "bookworm",
        arch,
        &["busybox-static"],
        &dir.join("busybox-deb"),
    )?;
    debian::unpack(&debs, &dir.join("busybox"))?;
    fs::copy(dir.join("busybox/bin/busybox"), root.join("bin/busybox"))?;
    fs::write(root.join("init"), INIT)?;
    run::output(Command::new("chmod").arg("+x").arg(root.join("init")))?;
    for (number, module) in boot_modules(modules)?.iter().enumerate() {
        install_module(
            &modules.join(module),
            &root.join(format!("modules/{number:02}.ko")),
        )?;
    }
    const SCRIPT: &str =
        "find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 | gzip -1 >\"$1\"";
    run::output(
        Command::new("sh")
            .args(["-c", SCRIPT, "pack"])
            .arg(dir.join("initramfs"))
            .current_dir(&root),
    )?;
    for done in ["initramfs-root", "busybox", "busybox-deb"] {
        fs::remove_dir_all(dir.join(done))?;
    }
    Ok(())
}

/// The files of [`BOOT_MODULES`] and of what they need, in the order of loading.
fn boot_modules(modules: &Path) -> Result<Vec<String>> {
    let path = modules.join("modules.dep");
    let table = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let builtin = fs::read_to_string(modules.join("modules.builtin"))?;
    let mut files = Vec::new();
    for module in BOOT_MODULES {
        let found = needed(&table, module);
        ensure!(
            found.is_some() || builtin.contains(&format!("/{module}.ko")),
            "{}: no module {module}",
            path.display()
        );
        for file in found.unwrap_or_default() {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// What `modules.dep` says of a module: the files that it needs, then its own. A line lists the
/// needed ones so that what a module needs itself comes behind it.
fn needed(table: &str, module: &str) -> Option<Vec<String>> {
    let (own, needs) = table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(own, _)| {
            let name = own.rsplit('/').next().unwrap_or(own);
            name.split_once(".ko")
                .is_some_and(|(name, _)| name == module)
        })?;
    let mut files: Vec<_> = needs.split_whitespace().map(str::to_owned).collect();
    files.reverse();
    files.push(own.to_owned());
    Some(files)
}

fn install_module(from: &Path, to: &Path) -> Result<()> {
    if from.extension().is_some_and(|extension| extension == "xz") {
        const SCRIPT: &str = "xz --decompress --stdout \"$1\" >\"$2\"";
        run::output(
            Command::new("sh")
                .args(["-c", SCRIPT, "xz"])
                .arg(from)
                .arg(to),
        )?;
    } else {
        fs::copy(from, to)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_loaded_before_it() {
        let table = "kernel/drivers/virtio/virtio.ko.xz:\n\
                     kernel/drivers/virtio/virtio_ring.ko.xz: kernel/drivers/virtio/virtio.ko.xz\n\
                     kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz \
                     kernel/drivers/virtio/virtio.ko.xz\n";
        assert_eq!(
            needed(table, "virtio_blk").unwrap(),
            [
                "kernel/drivers/virtio/virtio.ko.xz",
                "kernel/drivers/virtio/virtio_ring.ko.xz",
                "kernel/drivers/block/virtio_blk.ko.xz"
            ]
        );
        assert_eq!(needed(table, "blk"), None);
    }
}
