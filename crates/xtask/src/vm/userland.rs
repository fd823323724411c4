//! What the tests call in a machine: Debian's packages, unpacked onto a disk.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::make_disk;
use crate::arch::Arch;
use crate::matrix::Fnv;
use crate::{cache, debian};

const SUITE: &str = "bookworm";
const PACKAGES: [&str; 20] = [
    "bash",
    "bpftool",
    "bsdutils",
    "coreutils",
    "curl",
    "dash",
    "findutils",
    "grep",
    "hostname",
    "iproute2",
    "kmod",
    "libc-bin",
    "mount",
    "netbase",
    "openssl",
    "procps",
    "sed",
    "tcpdump",
    "tshark",
    "util-linux",
];

/// Files in `/etc`. tcpdump becomes its own user.
const FILES: [(&str, &str); 4] = [
    (
        "passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n\
         tcpdump:x:100:100::/nonexistent:/bin/sh\n",
    ),
    (
        "group",
        "root:x:0:\ntty:x:5:\ntcpdump:x:100:\nnogroup:x:65534:\n",
    ),
    ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    (
        "nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files\n",
    ),
];

/// The disk in the cache, made if need be.
pub(super) fn ensure(arch: Arch, update: bool) -> Result<PathBuf> {
    let mut hash = Fnv::default();
    for part in PACKAGES
        .into_iter()
        .chain(FILES.map(|(_, content)| content))
    {
        hash.update(part.as_bytes());
    }
    let name = format!("vm/userland-{SUITE}-{arch}-{hash}.ext4");
    if update {
        cache::forget(&name)?;
    }
    cache::entry(&name, |disk| {
        eprintln!("fetching the virtual machines' tools for {arch}");
        let root = disk.with_extension("root");
        let debs = disk.with_extension("debs");
        for leftover in [&root, &debs] {
            if leftover.exists() {
                fs::remove_dir_all(leftover)?;
            }
        }
        let packages = debian::download_with_dependencies(SUITE, arch, &PACKAGES, &debs)?;
        debian::unpack(&packages, &root)?;
        configure(&root)?;
        make_disk(&root, disk)?;
        fs::remove_dir_all(&root)?;
        Ok(fs::remove_dir_all(&debs)?)
    })
}

/// What the packages' scripts would have done, as far as it matters.
fn configure(root: &Path) -> Result<()> {
    for dir in ["dev", "proc", "sys", "tmp", "run", "root", "var", "etc"] {
        fs::create_dir_all(root.join(dir))?;
    }
    for dir in ["usr/share/doc", "usr/share/man", "usr/share/locale"] {
        if root.join(dir).exists() {
            fs::remove_dir_all(root.join(dir))?;
        }
    }
    for (file, content) in FILES {
        fs::write(root.join("etc").join(file), content)?;
    }
    Ok(())
}
