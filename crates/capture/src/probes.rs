//! From a plan to attached uprobes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use gobin::{Arch, EntryProbe, FileOffset, Function, KeyPlan, ProbePlan, ReadProbe, Site};
use libbpf_rs::Link;
use libbpf_rs::skel::Skel;

use crate::error::kernel_release;
use crate::load::{Repeat, Serving, load};
use crate::overwrites::WatchedLinks;
use crate::privileges::{effective_user_can_trace, give_up_privileges, is_admin};
use crate::skeleton::GotlsSkel;
use crate::target::{has_label, target};
use crate::uprobes::UprobeKind;
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
    pub(crate) fn arch(&self) -> Arch {
        match self {
            Self::Plaintext(plan) => plan.arch,
            Self::Keys(plan) => plan.arch,
        }
    }

    fn package(&self) -> &str {
        match self {
            Self::Plaintext(plan) => &plan.package,
            Self::Keys(plan) => &plan.package,
        }
    }
}

/// What to take from which file: a program can have several TLS packages, and shared libraries with
/// their own.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The executable, or a shared library that processes have mapped.
    pub file: &'a Executable,
    /// One of its packages, and what to take from it.
    pub wanted: Wanted<'a>,
}

/// How to capture.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whose calls.
    pub filters: Filters,
    /// Only the first so many bytes of each call.
    pub bytes_per_call: Option<u64>,
    /// Ask for the id of the goroutine that makes each call, if the executable tells where it is.
    pub goroutines: bool,
    /// Size of the ring buffer in KiB; rounded up to what the kernel takes, a power of two.
    pub ring_kib: u64,
    /// How to attach uprobes; `None`: as the kernel can do it best.
    pub uprobes: Option<UprobeKind>,
}

impl Options {
    pub(crate) fn ring_bytes(&self) -> Result<u32, Error> {
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

/// The attached uprobes of one program. They are gone when this is dropped.
pub struct Probes {
    // Detached before the programs are unloaded.
    links: WatchedLinks,
    /// One for each part. They share the first one's maps.
    objects: Vec<GotlsSkel<'static>>,
    kind: UprobeKind,
    sites: usize,
    ring_bytes: u32,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes")
            .field("sites", &self.sites)
            .field("kind", &self.kind)
            .field("ring_bytes", &self.ring_bytes)
            .finish_non_exhaustive()
    }
}

impl Probes {
    /// Loads the eBPF programs and attaches them as the plans say. Either every probe is in place
    /// afterwards, or none.
    pub fn attach(parts: &[Part<'_>], options: &Options) -> Result<Self, Error> {
        let ring_bytes = options.ring_bytes()?;
        effective_user_can_trace()?;

        let pid = options.filters.pid;
        let best = || UprobeKind::best(pid.is_some());
        let kind = options.uprobes.unwrap_or_else(best);
        let mut probes = Self {
            links: WatchedLinks::new(),
            objects: Vec::new(),
            kind,
            sites: 0,
            ring_bytes,
        };
        for part in parts {
            probes.attach_part(part, parts.len() as u32, options)?;
        }
        Ok(probes)
    }

    /// Attaches one of so many parts.
    fn attach_part(&mut self, part: &Part<'_>, parts: u32, options: &Options) -> Result<(), Error> {
        check_architecture(part.file, part.wanted.arch())?;
        let target = target(part.wanted, options.goroutines)?;
        let placements = placements(&part.wanted, Repeat::of_this_kernel());
        let programs: Vec<_> = placements.iter().map(|placed| placed.program).collect();
        let serving = match self.objects.first() {
            None => Serving::One {
                target: &target,
                of: parts,
            },
            Some(maps) => Serving::Sharing {
                target: &target,
                number: self.objects.len() as u32,
                maps,
            },
        };
        let (kind, ring_bytes) = (self.kind, self.ring_bytes);
        let mut skeleton = load(serving, None, &programs, kind, options, ring_bytes)?;
        let pid = options.filters.pid;
        let watch = self.links.watch(part.file);
        let links = attach_all(&mut skeleton, kind, part.file, &placements, pid, None)?;
        self.links.add(watch, links);
        self.objects.push(skeleton);
        self.sites += placements
            .iter()
            .map(|placed| placed.sites.len())
            .sum::<usize>();
        Ok(())
    }

    /// The reading end of the ring buffer. There is one.
    pub fn reader(&self) -> Result<Reader, Error> {
        let object = self.objects.first().ok_or_else(|| Error::Load {
            reason: "there is nothing to attach to".into(),
        })?;
        let maps = &object.maps;
        Reader::new(maps.ring.as_fd(), self.ring_bytes.into(), maps.bss.as_fd())
    }

    /// How many instructions are probed.
    pub fn sites(&self) -> usize {
        self.sites
    }

    /// How they are probed.
    pub fn kind(&self) -> UprobeKind {
        self.kind
    }

    /// Gives up all privileges of the calling thread: reading and detaching need none.
    pub fn give_up_privileges(&self) -> Result<(), Error> {
        give_up_privileges()
    }

    /// Takes all probes away. What is in the ring buffer stays there to be read.
    pub fn detach(&mut self) {
        self.links.detach();
    }

    /// Takes the probes away from files that have been written to since they were attached to, and returns
    /// these files' names: what is there now must not get breakpoints that were meant for something else.
    pub fn detach_overwritten(&mut self) -> Vec<PathBuf> {
        self.links.detach_overwritten()
    }

    /// Readable when [`Self::detach_overwritten`] is to be called, at once.
    pub fn overwrites(&self) -> Option<BorrowedFd<'_>> {
        self.links.overwrites()
    }

    /// Why nobody tells of it if some of the files are written to.
    pub fn unwatched(&self) -> Option<&io::Error> {
        self.links.unwatched()
    }
}

/// Attaches an object's programs to an executable as placed. If one of them can't be, none is.
pub(crate) fn attach_all(
    skeleton: &mut GotlsSkel<'static>,
    kind: UprobeKind,
    executable: &Executable,
    placements: &[Placement<'_>],
    pid: Option<u32>,
    cookie: Option<u64>,
) -> Result<Vec<Link>, Error> {
    let path = executable.path_to_probe()?;
    let mut attached = Vec::new();
    for placed in placements {
        let name = placed.program;
        let mut programs = skeleton.object_mut().progs_mut();
        let program = programs.find(|program| program.name() == name);
        let program = program.ok_or_else(|| Error::Load {
            reason: format!("the object has no program {name}"),
        })?;
        let offsets: Vec<_> = placed.sites.iter().map(|site| site.offset).collect();
        let (links, log) =
            libbpf_log::listen(|| kind.attach(&program, pid, &path, &offsets, cookie));
        let links = links.map_err(|error| {
            let function = placed.function.symbol(placed.package);
            attach_error(function, offsets[0], kind, &error, &log)
        })?;
        attached.extend(links);
    }
    Ok(attached)
}

pub(crate) fn check_architecture(file: &Executable, executable: Arch) -> Result<(), Error> {
    let machine = std::env::consts::ARCH;
    let same = match executable {
        Arch::Amd64 => machine == "x86_64",
        Arch::Arm64 => machine == "aarch64",
    };
    if same {
        Ok(())
    } else {
        Err(Error::OtherArchitecture {
            path: file.name().to_owned(),
            executable,
            machine,
        })
    }
}

/// A program, by name, and where it goes.
#[derive(Debug)]
pub(crate) struct Placement<'a> {
    pub(crate) program: &'static str,
    package: &'a str,
    function: Function,
    pub(crate) sites: &'a [Site],
}

/// All of them, in the order of attaching.
pub(crate) fn placements<'a>(wanted: &'a Wanted<'_>, repeat: Repeat) -> Vec<Placement<'a>> {
    let pick = |by_helper, by_walking| match repeat {
        Repeat::ByHelper => by_helper,
        Repeat::ByWalking => by_walking,
    };
    let mut placements = Vec::new();
    let mut place = |program, function, sites| {
        placements.push(Placement {
            program,
            package: wanted.package(),
            function,
            sites,
        });
    };
    let of = |probe| -> &[Site] {
        let probe: &Result<EntryProbe, gobin::Error> = probe;
        probe
            .as_ref()
            .map_or(&[], |probe| std::slice::from_ref(&probe.site))
    };
    match wanted {
        Wanted::Plaintext(plan) => {
            // Close goes first, so that no connection is seen to begin whose end is missed.
            place("close_conn", Function::Close, of(&plan.close));
            let read = match &plan.read {
                ReadProbe::Copy { .. } => pick("read_copy", "read_copy_walked"),
                ReadProbe::Returns { .. } => pick("read_return", "read_return_walked"),
            };
            place(read, Function::Read, plan.read.sites());
            let write = pick("write_record", "write_record_walked");
            let sites = std::slice::from_ref(&plan.write.site);
            place(write, Function::WriteRecordLocked, sites);
        }
        Wanted::Keys(plan) => {
            let key_log = match &plan.key_log {
                Ok(probe) if has_label(probe) => "write_key_log",
                _ => "write_key_log_unlabelled",
            };
            place(key_log, Function::WriteKeyLog, of(&plan.key_log));
            let function = Function::KeysFromMasterSecret;
            place("master_secret", function, of(&plan.master_secret));
        }
    }
    placements.retain(|placed| !placed.sites.is_empty());
    placements
}

/// Says why an instruction could not be probed.
pub(crate) fn attach_error(
    function: String,
    offset: FileOffset,
    kind: UprobeKind,
    error: &libbpf_rs::Error,
    log: &str,
) -> Error {
    let perf_uprobes = Path::new("/sys/bus/event_source/devices/uprobe/type");
    if kind == UprobeKind::Perf && !perf_uprobes.exists() {
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
        function,
        offset,
        reason,
    }
}
