//! What the machine needs for the chores, and how it gets it: on Debian and Ubuntu missing
//! packages are installed with apt-get, elsewhere one message says what to install.

use std::path::Path;
use std::process::Command;
use std::{error, fmt, fs};

use anyhow::{Context, Result, bail};

use crate::run;

/// What is to be done on the machine; each group includes the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Build `ecapture` and the Go programs.
    Demo,
    /// Run every test.
    Test,
    /// Run tests in virtual machines.
    Vm,
}

/// One thing that a chore needs.
struct Need {
    group: Group,
    sign: Sign,
    /// Debian's and Ubuntu's names for it.
    packages: &'static [&'static str],
    /// What to do without it, if that is possible.
    optional: Option<&'static str>,
}

/// How to see whether it is there.
enum Sign {
    Program(&'static str),
    /// Relative to the directories that C compilers search.
    Header(&'static str),
    /// Any file.
    File(&'static str),
    Pip,
}

const fn need(group: Group, sign: Sign, packages: &'static [&'static str]) -> Need {
    Need {
        group,
        sign,
        packages,
        optional: None,
    }
}

const NEEDS: &[Need] = &[
    need(Group::Demo, Sign::Program("clang"), &["clang"]),
    need(Group::Demo, Sign::Program("gcc"), &["gcc", "libc6-dev"]),
    need(Group::Demo, Sign::Program("make"), &["make"]),
    need(Group::Demo, Sign::Program("pkg-config"), &["pkg-config"]),
    need(Group::Demo, Sign::Header("libelf.h"), &["libelf-dev"]),
    need(Group::Demo, Sign::Header("zlib.h"), &["zlib1g-dev"]),
    need(
        Group::Demo,
        Sign::Header("linux/bpf.h"),
        &["linux-libc-dev"],
    ),
    need(Group::Demo, Sign::Pip, &["python3", "python3-pip"]),
    need(
        Group::Test,
        Sign::Program("clang-format"),
        &["clang-format"],
    ),
    need(Group::Demo, Sign::Header("pcap/pcap.h"), &["libpcap-dev"]),
    need(Group::Test, Sign::Program("g++"), &["g++"]), // libFuzzer is C++
    need(Group::Test, Sign::Program("objdump"), &["binutils"]),
    need(
        Group::Test,
        Sign::Program("aarch64-linux-gnu-objdump"),
        &["binutils-aarch64-linux-gnu"],
    ),
    need(
        Group::Test,
        Sign::Program("aarch64-linux-gnu-gcc"),
        &["gcc-aarch64-linux-gnu"],
    ),
    need(
        Group::Test,
        Sign::File("/usr/aarch64-linux-gnu/include/linux/bpf.h"),
        &["libc6-dev-arm64-cross"],
    ),
    need(Group::Test, Sign::Program("tshark"), &["tshark"]),
    need(Group::Test, Sign::Program("tcpdump"), &["tcpdump"]),
    need(Group::Test, Sign::Program("ip"), &["iproute2"]),
    need(Group::Test, Sign::Program("curl"), &["curl"]),
    need(Group::Test, Sign::Program("openssl"), &["openssl"]),
    need(Group::Test, Sign::Program("caddy"), &["caddy"]),
    need(Group::Test, Sign::Program("etcd"), &["etcd-server"]),
    need(Group::Test, Sign::Program("etcdctl"), &["etcd-client"]),
    need(
        Group::Vm,
        Sign::Program("qemu-system-x86_64"),
        &["qemu-system-x86"],
    ),
    need(
        Group::Vm,
        Sign::Program("qemu-system-aarch64"),
        &["qemu-system-arm"],
    ),
    need(Group::Vm, Sign::Program("mkfs.ext4"), &["e2fsprogs"]),
    need(Group::Vm, Sign::Program("depmod"), &["kmod"]),
    need(Group::Vm, Sign::Program("cpio"), &["cpio"]),
    need(Group::Vm, Sign::Program("xz"), &["xz-utils"]),
    Need {
        group: Group::Test,
        sign: Sign::Program("bpftool"),
        packages: &["bpftool"],
        optional: Some(
            "only failing tests are harder to explain without it \
             (Ubuntu has it in linux-tools-common and linux-tools for the running kernel)",
        ),
    },
];

/// What a chore needs, and this machine neither has nor can get now: no fault of what the chore is about.
/// Says what to do.
#[derive(Debug)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl error::Error for Unavailable {}

/// Sees to it that the machine has what a group needs. Says what it installs.
///
/// # Errors
///
/// [`Unavailable`] if packages can't be had.
pub fn ensure(group: Group) -> Result<()> {
    let missing: Vec<_> = NEEDS
        .iter()
        .filter(|need| need.group <= group && !need.sign.is_there())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let required: Vec<_> = missing
        .iter()
        .filter(|need| need.optional.is_none())
        .flat_map(|need| need.packages)
        .copied()
        .collect();
    if !run::exists("apt-get") {
        if required.is_empty() {
            return Ok(());
        }
        bail!(Unavailable(format!(
            "this machine lacks what these Debian packages contain: {}\n\
             Install your distribution's packages of it, and try again.",
            required.join(" ")
        )));
    }
    if !required.is_empty() {
        install(&required).with_context(|| {
            Unavailable(format!(
                "these packages are needed and can't be installed: {}",
                required.join(" ")
            ))
        })?;
        if let Some(need) = missing
            .iter()
            .find(|need| need.optional.is_none() && !need.sign.is_there())
        {
            bail!(
                "{} installed, but what it should bring is missing",
                need.packages.join(" ")
            );
        }
    }
    for need in missing {
        let Some(without) = need.optional else {
            continue;
        };
        // Tried when the lists of packages are fetched anyway, not in every run.
        let installed = !required.is_empty() && install(need.packages).is_ok();
        if !installed {
            eprintln!(
                "set-up: {} is not installed: {without}",
                need.packages.join(" ")
            );
        }
    }
    Ok(())
}

/// Mounts what kernel tests look at, where it isn't mounted: tracefs (uprobe events), debugfs
/// (the BPF programs' trace output) and bpffs. Says so.
pub fn mount_kernel_filesystems() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    for (kind, place) in [
        ("tracefs", "/sys/kernel/tracing"),
        ("debugfs", "/sys/kernel/debug"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        let mounted = mounts.lines().any(|line| {
            let mut fields = line.split(' ').skip(1);
            fields.next() == Some(place) && fields.next() == Some(kind)
        });
        if mounted || !Path::new(place).is_dir() {
            continue; // a kernel without this file system has no such directory
        }
        eprintln!("set-up: mounting {kind} on {place}");
        let mounted = run::output(run::as_root("mount")?.args(["-t", kind, kind, place]));
        if let Err(error) = mounted {
            eprintln!("set-up: going on without it: {error}");
        }
    }
    Ok(())
}

/// Installs packages as root. Services that they bring are neither started nor enabled: tests
/// start their own.
fn install(packages: &[&str]) -> Result<()> {
    const SCRIPT: &str = r#"
        set -eu
        export DEBIAN_FRONTEND=noninteractive
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            trap 'rm -f "$policy"' EXIT
            trap 'exit 1' HUP INT TERM
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        apt-get update -q
        apt-get install -q -y --no-install-recommends "$@"
        if [ -d /run/systemd/system ]; then
            for package in "$@"; do
                case $package in
                    caddy) systemctl disable --quiet caddy || true ;;
                    etcd-server) systemctl disable --quiet etcd || true ;;
                esac
            done
        fi
    "#;
    eprintln!("set-up: apt-get install {}", packages.join(" "));
    let mut command = run::as_root("sh")?;
    run::output(command.args(["-c", SCRIPT, "install"]).args(packages))?;
    Ok(())
}

impl Sign {
    fn is_there(&self) -> bool {
        match self {
            Self::Program(name) => run::exists(name),
            Self::Header(name) => {
                let multiarch = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
                ["/usr/include", "/usr/local/include", &multiarch]
                    .iter()
                    .any(|dir| Path::new(dir).join(name).exists())
            }
            Self::File(path) => Path::new(path).exists(),
            Self::Pip => {
                run::output(Command::new("python3").args(["-m", "pip", "--version"])).is_ok()
            }
        }
    }
}
