//! From a plan to attached uprobes.

use std::os::fd::AsFd;

use gobin::{Arch, CRYPTO_TLS, EntryProbe, Function, KeyPlan, ProbePlan, ReadProbe, Site};
use libbpf_rs::skel::Skel;
use libbpf_rs::{Link, UprobeOpts};

use crate::error::kernel_release;
use crate::load::{Repeat, load};
use crate::process::{effective_user_can_trace, is_admin};
use crate::skeleton::GotlsSkel;
use crate::target::{has_label, target};
use crate::{Error, Executable, Reader, libbpf_log};

/// Whose calls are captured; checked in the kernel, before anything is copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filters {
    /// Only this process. Others that run the same executable are not even probed.
    pub pid: Option<u32>,
    /// Only processes of this user.
    pub uid: Option<u32>,
}

/// What to take from an executable.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// The plaintext of connections.
    Plaintext(&'a ProbePlan),
    /// The secrets of TLS sessions.
    Keys(&'a KeyPlan),
}

impl Wanted<'_> {
    fn arch(&self) -> Arch {
        match self {
            Self::Plaintext(plan) => plan.arch,
            Self::Keys(plan) => plan.arch,
        }
    }
}

/// How to capture.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whose calls.
    pub filters: Filters,
    /// Only the first so many bytes of each call.
    pub bytes_per_call: Option<u64>,
    /// Size of the ring buffer in KiB; rounded up to what the kernel takes, a power of two.
    pub ring_kib: u64,
}

impl Options {
    fn ring_bytes(&self) -> Result<u32, Error> {
        ring_bytes(self.ring_kib)
    }
}

/// The size of a ring buffer that was asked for in KiB.
pub(crate) fn ring_bytes(kib: u64) -> Result<u32, Error> {
    const RING_KIB: std::ops::RangeInclusive<u64> = 64..=1024 * 1024;

    if !RING_KIB.contains(&kib) {
        return Err(Error::RingSize {
            kib,
            min_kib: *RING_KIB.start(),
            max_kib: *RING_KIB.end(),
        });
    }
    // At most 1 GiB, which fits.
    Ok((kib * 1024).next_power_of_two() as u32)
}

/// The attached uprobes of one executable. They are gone when this is dropped.
pub struct Probes {
    // Detached before the programs are unloaded.
    links: Vec<Link>,
    skeleton: GotlsSkel<'static>,
    ring_bytes: u32,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes")
            .field("sites", &self.links.len())
            .field("ring_bytes", &self.ring_bytes)
            .finish_non_exhaustive()
    }
}

impl Probes {
    /// Loads the eBPF programs and attaches them to `executable` as the plan says. Either every probe
    /// is in place afterwards, or none.
    pub fn attach(
        executable: &Executable,
        wanted: Wanted<'_>,
        options: &Options,
    ) -> Result<Self, Error> {
        check_architecture(wanted.arch())?;
        let target = target(wanted)?;
        let ring_bytes = options.ring_bytes()?;
        effective_user_can_trace()?;

        let sites = sites(wanted, Repeat::of_this_kernel());
        let programs: Vec<_> = sites.iter().map(|&(program, ..)| program).collect();
        let skeleton = load(&target, &programs, options, ring_bytes)?;
        let mut probes = Self {
            links: Vec::new(),
            skeleton,
            ring_bytes,
        };
        probes.attach_all(executable, &sites, options.filters.pid)?;
        Ok(probes)
    }

    /// The reading end of the ring buffer. There is one.
    pub fn reader(&self) -> Result<Reader, Error> {
        Reader::new(
            self.skeleton.maps.ring.as_fd(),
            self.ring_bytes.into(),
            self.skeleton.maps.bss.as_fd(),
        )
    }

    /// How many instructions are probed.
    pub fn sites(&self) -> usize {
        self.links.len()
    }

    /// Takes all probes away. What is in the ring buffer stays there to be read.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    fn attach_all(
        &mut self,
        executable: &Executable,
        sites: &[(&str, Function, &Site)],
        pid: Option<u32>,
    ) -> Result<(), Error> {
        let path = executable.descriptor_path();
        // libbpf: -1 stands for all processes. The pid was found by pidfd_open, so it fits.
        let pid = pid.map_or(-1, |pid| pid as i32);
        for &(name, function, site) in sites {
            let mut programs = self.skeleton.object_mut().progs_mut();
            let program = programs.find(|program| program.name() == name);
            let program = program.ok_or_else(|| Error::Load {
                reason: format!("the object has no program {name}"),
            })?;
            let (link, log) = libbpf_log::listen(|| {
                program.attach_uprobe_with_opts(
                    pid,
                    &path,
                    site.offset.0 as usize,
                    UprobeOpts::default(),
                )
            });
            let link = link.map_err(|error| attach_error(function, site, &error, &log))?;
            self.links.push(link);
        }
        Ok(())
    }
}

fn check_architecture(executable: Arch) -> Result<(), Error> {
    let machine = std::env::consts::ARCH;
    let same = match executable {
        Arch::Amd64 => machine == "x86_64",
        Arch::Arm64 => machine == "aarch64",
    };
    if same {
        Ok(())
    } else {
        Err(Error::OtherArchitecture {
            executable,
            machine,
        })
    }
}

/// The programs by name and where they go, in the order of attaching.
fn sites(wanted: Wanted<'_>, repeat: Repeat) -> Vec<(&'static str, Function, &Site)> {
    let pick = |by_helper, by_walking| match repeat {
        Repeat::ByHelper => by_helper,
        Repeat::ByWalking => by_walking,
    };
    let mut sites = Vec::new();
    let mut entry = |program, function, probe| {
        let probe: &Result<EntryProbe, gobin::Error> = probe;
        if let Ok(probe) = probe {
            sites.push((program, function, &probe.site));
        }
    };
    match wanted {
        Wanted::Plaintext(plan) => {
            // Close goes first, so that no connection is seen to begin whose end is missed.
            entry("close_conn", Function::Close, &plan.close);
            let read = match &plan.read {
                ReadProbe::Copy { .. } => pick("read_copy", "read_copy_walked"),
                ReadProbe::Returns { .. } => pick("read_return", "read_return_walked"),
            };
            sites.extend(
                plan.read
                    .sites()
                    .iter()
                    .map(|site| (read, Function::Read, site)),
            );
            let write = pick("write_record", "write_record_walked");
            sites.push((write, Function::WriteRecordLocked, &plan.write.site));
        }
        Wanted::Keys(plan) => {
            let key_log = match &plan.key_log {
                Ok(probe) if has_label(probe) => "write_key_log",
                _ => "write_key_log_unlabelled",
            };
            entry(key_log, Function::WriteKeyLog, &plan.key_log);
            let function = Function::KeysFromMasterSecret;
            entry("master_secret", function, &plan.master_secret);
        }
    }
    sites
}

fn attach_error(function: Function, site: &Site, error: &libbpf_rs::Error, log: &str) -> Error {
    if !std::path::Path::new("/sys/bus/event_source/devices/uprobe/type").exists() {
        return Error::Unsupported {
            feature: "uprobes",
            kernel: kernel_release(),
            since: "4.17",
            option: "CONFIG_UPROBE_EVENTS (and /sys has to be mounted)",
        };
    }
    // perf_uprobe_event_init in kernel/events/core.c: CAP_PERFMON was enough from 5.8 on, and no longer
    // is since 6.16 and the stable kernels of July 2025.
    if error.kind() == libbpf_rs::ErrorKind::PermissionDenied && !is_admin() {
        return Error::MissingCapabilities {
            what: "attach uprobes, for which this kernel wants more than CAP_PERFMON",
            missing: "CAP_SYS_ADMIN".into(),
        };
    }
    let reason = match log.lines().next_back() {
        Some(line) => line.trim_start_matches("libbpf: ").to_owned(),
        None => error.to_string(),
    };
    Error::Attach {
        function: function.symbol(CRYPTO_TLS),
        offset: site.offset,
        reason,
    }
}
