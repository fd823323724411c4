//! What a host offers, found out by doing what a capture does, for a moment and with nobody as target.

use std::path::{Path, PathBuf};
use std::{fs, io};

use gobin::FileOffset;
use libbpf_rs::skel::Skel;
use rustix::thread::{CapabilitySet, capabilities};

use crate::load::{Repeat, Serving, load};
use crate::privileges::effective_user_can_trace;
use crate::probes::{attach_error, ring_bytes};
use crate::process::is_in_initial_pid_namespace;
use crate::target::Target;
use crate::{
    Error, Executable, Filters, HookKind, InterfaceSelection, Options, PacketCapture,
    PacketOptions, UprobeKind, cgroup, libbpf_log,
};

/// How uprobes work on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UprobeSupport {
    /// How they are attached.
    pub kind: UprobeKind,
    /// Memory of a target that is paged out can be read (sleepable programs, Linux 6.0).
    pub reads_paged_out: bool,
    /// The most bytes of one call that can be copied.
    pub call_bytes_max: u64,
}

/// Loads the programs of text or keylog mode and puts one on the entry point of our own executable,
/// which nobody passes.
pub fn rehearse_uprobes(keys: bool) -> Result<UprobeSupport, Error> {
    const SMALLEST_RING: u64 = 64;

    effective_user_can_trace()?;
    let kind = UprobeKind::best(false);
    let repeat = Repeat::of_this_kernel();
    let programs: &[&str] = match (keys, repeat) {
        (true, _) => &["write_key_log", "master_secret"],
        (false, Repeat::ByHelper) => &["close_conn", "read_copy", "write_record"],
        (false, Repeat::ByWalking) => &["close_conn", "read_copy_walked", "write_record_walked"],
    };
    let options = Options {
        filters: Filters::default(),
        bytes_per_call: None,
        goroutines: true,
        ring_kib: SMALLEST_RING,
        uprobes: Some(kind),
    };
    let ring = ring_bytes(SMALLEST_RING)?;
    let mut skeleton = {
        let nobody = Target::default();
        load(
            Serving::One {
                target: &nobody,
                of: 1,
            },
            None,
            programs,
            kind,
            &options,
            ring,
        )?
    };
    let reads_paged_out = skeleton
        .maps
        .rodata_data
        .as_ref()
        .is_some_and(|rodata| rodata.may_fault != 0);

    let ourselves = Executable::open(Path::new("/proc/self/exe"))?;
    let entry = entry_point(&ourselves)?;
    let mut loaded = skeleton.object_mut().progs_mut();
    let program = loaded.find(|program| programs.iter().any(|&name| program.name() == name));
    let program = program.ok_or_else(|| Error::Load {
        reason: "the object has no programs".into(),
    })?;
    let path = ourselves.path_to_probe()?;
    let (links, log) = libbpf_log::listen(|| kind.attach(&program, None, &path, &[entry], None));
    links.map_err(|error| attach_error("our own entry point".into(), entry, kind, &error, &log))?;
    Ok(UprobeSupport {
        kind,
        reads_paged_out,
        call_bytes_max: repeat.call_bytes_max(),
    })
}

fn entry_point(executable: &Executable) -> Result<FileOffset, Error> {
    let entry = executable.read(|bytes| {
        let elf = gobin::elf::Elf::parse(bytes).ok()?;
        elf.file_offset(elf.entry())
    })?;
    entry.ok_or_else(|| Error::System {
        what: "finding our own entry point",
        reason: io::ErrorKind::InvalidData.into(),
    })
}

/// Captures packets of nobody on the loopback interface.
pub fn rehearse_packets() -> Result<HookKind, Error> {
    let options = PacketOptions {
        interfaces: InterfaceSelection::Named(vec!["lo".into()]),
        // No packet is so long.
        filter: Some("len > 1000000".into()),
        all_packets: true,
        ring_kib: 64,
        ..PacketOptions::default()
    };
    let capture = PacketCapture::attach(None, &options)?;
    Ok(capture.hook_kind())
}

/// What the host says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The kernel's release.
    pub kernel: String,
    /// Whether our pid namespace is the initial one, from which all processes are seen.
    pub initial_pid_namespace: bool,
    /// Where cgroup v2 is mounted.
    pub cgroup: Option<PathBuf>,
    /// Whether the kernel describes its types (BTF), which we do not need.
    pub btf: bool,
    /// The mode of lockdown(7) in force; `None` if the kernel does not say.
    pub lockdown: Option<String>,
    /// Whether bpf(2) is closed to ordinary users; `None` if the kernel does not say.
    pub unprivileged_bpf_disabled: Option<bool>,
    /// Names of the capabilities that matter to us: those that we have, and those that we lack.
    pub capabilities: [Vec<&'static str>; 2],
    /// The limits on locked memory, in bytes, and on open files; `None`: there is none.
    pub limits: [Option<u64>; 2],
}

impl Host {
    /// Looks at this host.
    pub fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        let limit = |resource| rustix::process::getrlimit(resource).current;
        Self {
            kernel: crate::error::kernel_release(),
            initial_pid_namespace: is_in_initial_pid_namespace(),
            cgroup: cgroup::root(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            lockdown: read("/sys/kernel/security/lockdown").and_then(|modes| in_brackets(&modes)),
            unprivileged_bpf_disabled: read("/proc/sys/kernel/unprivileged_bpf_disabled")
                .map(|value| value.trim() != "0"),
            capabilities: known_capabilities(),
            limits: [
                limit(rustix::process::Resource::Memlock),
                limit(rustix::process::Resource::Nofile),
            ],
        }
    }
}

/// `none [integrity] confidentiality`: the second one.
fn in_brackets(modes: &str) -> Option<String> {
    let (_, rest) = modes.split_once('[')?;
    let (mode, _) = rest.split_once(']')?;
    Some(mode.to_owned())
}

fn known_capabilities() -> [Vec<&'static str>; 2] {
    const KNOWN: [(CapabilitySet, &str); 7] = [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE"),
        (CapabilitySet::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
        (CapabilitySet::SYS_NICE, "CAP_SYS_NICE"),
    ];

    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let (have, lack): (Vec<_>, Vec<_>) = KNOWN
        .into_iter()
        .partition(|&(capability, _)| held.contains(capability));
    [have, lack].map(|list| list.into_iter().map(|(_, name)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_described() {
        let host = Host::look();
        assert!(!host.kernel.is_empty());
        let [have, lack] = host.capabilities;
        assert_eq!(have.len() + lack.len(), 7);
    }

    #[test]
    fn mode_in_brackets_is_the_one() {
        let mode = in_brackets("none [integrity] confidentiality\n");
        assert_eq!(mode.as_deref(), Some("integrity"));
        assert_eq!(in_brackets(""), None);
    }

    #[test]
    #[ignore = "needs root: run `cargo xtask test`"]
    fn rehearsals_succeed_and_leave_nothing() {
        let support = rehearse_uprobes(false).unwrap();
        assert_eq!(rehearse_uprobes(true).unwrap().kind, support.kind);
        rehearse_packets().unwrap();
        rehearse_packets().unwrap();
    }
}
