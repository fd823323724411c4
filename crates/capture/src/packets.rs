//! From interfaces and target processes to attached packet programs.

use std::collections::BTreeMap;
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use gobin::FileOffset;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, MapMut, OpenObject, ProgramMut};
use memmap2::MmapOptions;
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::error::kernel_release;
use crate::filter::Filter;
use crate::follower::Follower;
use crate::hooks::{Attachment, Hooks};
use crate::load::load_error;
use crate::overwrites::WatchedLinks;
use crate::packet_skeleton::{OpenPacketsSkel, PacketsSkel, PacketsSkelBuilder, types};
use crate::privileges::{self, effective_user_can_capture_packets};
use crate::probes::ring_bytes;
use crate::process::pid_namespace;
use crate::processes;
use crate::sockets::Ownership;
use crate::translate::Hook;
use crate::uprobes::{UprobeKind, drop_at_once};
use crate::{
    Error, Executable, Filters, Interface, InterfaceSelection, LinkType, NetworkNamespace, Process,
    Reader, interfaces, libbpf_log,
};

pub use crate::hooks::HookKind;

/// The executable whose processes are the targets.
#[derive(Clone, Copy, Debug)]
pub struct PacketTarget<'a> {
    /// The file.
    pub executable: &'a Executable,
    /// Its entry point, which tells of processes that start.
    pub entry: FileOffset,
}

/// What to capture packets of.
#[derive(Clone, Debug)]
pub struct PacketOptions {
    /// On which interfaces.
    pub interfaces: InterfaceSelection,
    /// Where these are. Processes in other network namespaces have no packets there.
    pub network_namespace: NetworkNamespace,
    /// An expression in tcpdump's syntax. An interface of which the expression makes no sense (an
    /// Ethernet address on a tunnel) is left out if it was not asked for by name.
    pub filter: Option<String>,
    /// At most this many bytes of each packet; 262144 is the most that there can be.
    pub snaplen: u32,
    /// Every packet that passes the filter, whoever owns it. Owners are reported where they are
    /// known, of every process.
    pub all_packets: bool,
    /// Size of the ring buffer in KiB; rounded up to what the kernel takes, a power of two.
    pub ring_kib: u64,
    /// Only packets of these processes, as far as they run the target's executable; nothing to
    /// `all_packets`.
    pub filters: Filters,
    /// How to attach to interfaces; `None`: as the kernel can do it best.
    pub hooks: Option<HookKind>,
    /// How to attach uprobes; `None`: as the kernel can do it best.
    pub uprobes: Option<UprobeKind>,
}

impl Default for PacketOptions {
    fn default() -> Self {
        Self {
            interfaces: InterfaceSelection::All,
            network_namespace: NetworkNamespace::ours(),
            filter: None,
            snaplen: Self::SNAPLEN_MAX,
            all_packets: false,
            ring_kib: 16 * 1024,
            filters: Filters::default(),
            hooks: None,
            uprobes: None,
        }
    }
}

impl PacketOptions {
    /// The most bytes of a packet: what readers of capture files accept (record.h, PACKET_MAX).
    pub const SNAPLEN_MAX: u32 = 262_144;

    /// Processes that start are watched for whichever they are.
    fn uprobe_kind(&self) -> UprobeKind {
        self.uprobes.unwrap_or_else(|| UprobeKind::best(false))
    }
}

/// What passed an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InterfaceStatistics {
    /// Packets that passed the filter and belong to a target, delivered or not.
    pub matched: u64,
    /// Packets of these that found no room in the ring buffer.
    pub dropped: u64,
}

/// Attached packet programs. They are gone when this is dropped.
pub struct PacketCapture {
    // In this order: first the packets stop, then who they belong to is forgotten.
    hooks: Hooks,
    links: Vec<Link>,
    /// At the target's entry point.
    entry: WatchedLinks,
    follower: Option<Follower>,
    interfaces: Vec<Interface>,
    warnings: Vec<String>,
    skeleton: PacketsSkel<'static>,
    ring_bytes: u32,
}

impl std::fmt::Debug for PacketCapture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PacketCapture")
            .field("interfaces", &self.interfaces)
            .field("hooks", &self.hooks)
            .field("ring_bytes", &self.ring_bytes)
            .finish_non_exhaustive()
    }
}

impl PacketCapture {
    /// Finds out whether libpcap accepts an expression for one of the link types, before anything is
    /// attached and without any privilege. The error has libpcap's message.
    pub fn compile_filter(expression: &str, link_types: &[LinkType]) -> Result<(), Error> {
        let mut refused = Ok(());
        for &link_type in link_types {
            match Filter::compile(expression, link_type, PacketOptions::SNAPLEN_MAX) {
                Ok(_) => return Ok(()),
                Err(error) if refused.is_ok() => refused = Err(error),
                Err(_) => {}
            }
        }
        refused
    }

    /// Loads the programs and attaches them. Either every interface is captured afterwards and every
    /// socket of the targets has its owner, or there is an error and nothing is attached; what is
    /// less than perfect goes into [`Self::warnings`].
    ///
    /// Without a target, packets of [`Filters::pid`] are captured whatever it runs, or with
    /// [`PacketOptions::all_packets`] those of everybody.
    ///
    /// A target's are the packets of the sockets that it makes, binds, or has when it starts or when
    /// the capture does. A child that a target forks is a target once it runs the executable from
    /// its entry point on: Go programs don't fork otherwise. Interfaces that appear later are not
    /// captured.
    pub fn attach(
        target: Option<PacketTarget<'_>>,
        options: &PacketOptions,
    ) -> Result<Self, Error> {
        let ring_bytes = ring_bytes(options.ring_kib)?;
        let snaplen = match options.snaplen {
            0 => PacketOptions::SNAPLEN_MAX,
            snaplen => snaplen.min(PacketOptions::SNAPLEN_MAX),
        };
        let filter = options
            .filter
            .as_deref()
            .filter(|text| !text.trim().is_empty());
        let namespace = &options.network_namespace;
        let (mut interfaces, left_out) =
            namespace.enter(|| interfaces::select(&options.interfaces, filter))??;
        let mut warnings: Vec<_> = left_out
            .into_iter()
            .map(|name| format!("{name}: left out, it is neither Ethernet nor plain IP"))
            .collect();
        let compiled = compile(filter, snaplen, options, &mut interfaces, &mut warnings)?;
        effective_user_can_capture_packets()?;

        let kind = options.uprobe_kind();
        let skeleton = load(&interfaces, options, kind, snaplen, ring_bytes)?;
        let mut links = Vec::new();
        let mut entry = WatchedLinks::new();
        let links_and_entry = (&mut links, &mut entry);
        let follower = own_sockets(&skeleton, target, options, links_and_entry, &mut warnings)?;
        enter_interfaces(&skeleton, &interfaces)?;
        let hooks = attach_hooks(&skeleton, &interfaces, &compiled, options)?;
        Ok(Self {
            hooks,
            links,
            entry,
            follower,
            interfaces,
            warnings,
            skeleton,
            ring_bytes,
        })
    }

    /// The interfaces that are captured; a record tells the index.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// What the user should know: interfaces that are left out, sockets whose owner is not known.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How the programs are attached.
    pub fn hook_kind(&self) -> HookKind {
        self.hooks.kind()
    }

    /// The reading end of the ring buffer. There is one.
    pub fn reader(&self) -> Result<Reader, Error> {
        Reader::new(
            self.skeleton.maps.ring.as_fd(),
            self.ring_bytes.into(),
            self.skeleton.maps.bss.as_fd(),
        )
    }

    /// What passed each interface since the beginning, in the order of [`Self::interfaces`].
    pub fn statistics(&self) -> Vec<InterfaceStatistics> {
        let counter = |bytes: &[u8], offset: usize| {
            let bytes = bytes.get(offset..).and_then(|bytes| bytes.first_chunk());
            bytes.map_or(0, |&bytes| u64::from_ne_bytes(bytes))
        };
        self.interfaces
            .iter()
            .map(|interface| {
                let key = interface.ifindex.to_ne_bytes();
                let found = self.skeleton.maps.interfaces.lookup(&key, MapFlags::ANY);
                let bytes = found.ok().flatten().unwrap_or_default();
                InterfaceStatistics {
                    matched: counter(&bytes, offset_of!(types::interface, matched)),
                    dropped: counter(&bytes, offset_of!(types::interface, dropped)),
                }
            })
            .collect()
    }

    /// Gives up the privileges of the calling thread, except for those that detaching and the
    /// statistics need.
    pub fn give_up_privileges(&self) -> Result<(), Error> {
        privileges::keep_only(privileges::for_maps() | self.hooks.privileges_to_detach())
    }

    /// Takes all programs away. What is in the ring buffer stays there to be read, and the
    /// statistics stay as they are.
    pub fn detach(&mut self) {
        self.hooks.detach();
        self.follower = None;
        drop_at_once(&mut self.links);
        self.entry.detach();
    }

    /// As [`crate::Probes::detach_overwritten`]: processes that start are no targets then.
    pub fn detach_overwritten(&mut self) -> Vec<PathBuf> {
        self.entry.detach_overwritten()
    }

    /// As [`crate::Probes::overwrites`].
    pub fn overwrites(&self) -> Option<BorrowedFd<'_>> {
        self.entry.overwrites()
    }
}

/// Compiles the expression once for each link type, and leaves out interfaces that it is not made for.
fn compile(
    expression: Option<&str>,
    snaplen: u32,
    options: &PacketOptions,
    interfaces: &mut Vec<Interface>,
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<LinkType, Filter>, Error> {
    let mut compiled = BTreeMap::new();
    let Some(expression) = expression else {
        return Ok(compiled);
    };
    let mut refused = BTreeMap::new();
    for interface in &*interfaces {
        let link_type = interface.link_type;
        if compiled.contains_key(&link_type) || refused.contains_key(&link_type) {
            continue;
        }
        match Filter::compile(expression, link_type, snaplen) {
            Ok(filter) => {
                compiled.insert(link_type, filter);
            }
            Err(error) => {
                refused.insert(link_type, error);
            }
        }
    }
    let by_name = options.interfaces != InterfaceSelection::All;
    if let Some((&link_type, _)) = refused.first_key_value()
        && (by_name || compiled.is_empty())
        && let Some(error) = refused.remove(&link_type)
    {
        return Err(error);
    }
    interfaces.retain(|interface| match refused.get(&interface.link_type) {
        Some(error) => {
            warnings.push(format!("{}: left out: {error}", interface.name));
            false
        }
        None => true,
    });
    Ok(compiled)
}

/// A packet program, in the order of packets.bpf.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PacketProgram {
    Receive,
    Transmit,
    ReceiveIp,
    TransmitIp,
    Loopback,
    /// Records nothing, so it takes no filter.
    LoopbackSender,
}

impl PacketProgram {
    /// Those that an interface needs, and where they go.
    fn of(interface: &Interface) -> &'static [(Hook, Self)] {
        match (interface.loopback, interface.link_type) {
            (true, _) => &[
                (Hook::Ingress, Self::Loopback),
                (Hook::Egress, Self::LoopbackSender),
            ],
            (false, LinkType::Ethernet) => &[
                (Hook::Ingress, Self::Receive),
                (Hook::Egress, Self::Transmit),
            ],
            (false, LinkType::RawIp) => &[
                (Hook::Ingress, Self::ReceiveIp),
                (Hook::Egress, Self::TransmitIp),
            ],
        }
    }

    fn in_skeleton<'a>(self, skeleton: &'a PacketsSkel<'static>) -> &'a ProgramMut<'static> {
        let programs = &skeleton.progs;
        match self {
            Self::Receive => &programs.ecapture_rx,
            Self::Transmit => &programs.ecapture_tx,
            Self::ReceiveIp => &programs.ecapture_ip_rx,
            Self::TransmitIp => &programs.ecapture_ip_tx,
            Self::Loopback => &programs.ecapture_lo,
            Self::LoopbackSender => &programs.ecapture_lo_tx,
        }
    }
}

fn load(
    interfaces: &[Interface],
    options: &PacketOptions,
    kind: UprobeKind,
    snaplen: u32,
    ring_bytes: u32,
) -> Result<PacketsSkel<'static>, Error> {
    let (result, log) = libbpf_log::listen(|| {
        // The skeleton wants its object to stay where it is; there is one in the life of a process.
        let storage: &'static mut MaybeUninit<OpenObject> =
            Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = PacketsSkelBuilder::default().open(storage)?;
        configure(&mut open, interfaces, options, snaplen, ring_bytes)?;
        kind.prepare(&mut open.progs.start_target);
        open.load()
    });
    result.map_err(|error| {
        let error = load_error(&error, &log);
        if pid_namespace().is_some() && matches!(error, Error::Verifier { .. }) {
            return Error::Unsupported {
                feature: "way to tell processes of a container apart by their sockets: run outside \
                          of it (--pid=host)",
                kernel: kernel_release(),
                since: "6.10",
                option: "CONFIG_CGROUP_BPF",
            };
        }
        error
    })
}

fn configure(
    open: &mut OpenPacketsSkel<'static>,
    interfaces: &[Interface],
    options: &PacketOptions,
    snaplen: u32,
    ring_bytes: u32,
) -> libbpf_rs::Result<()> {
    open.maps.ring.set_max_entries(ring_bytes)?;
    let needed = |program| {
        interfaces
            .iter()
            .flat_map(PacketProgram::of)
            .any(|&(_, needed)| needed == program)
    };
    let programs = &mut open.progs;
    programs
        .ecapture_rx
        .set_autoload(needed(PacketProgram::Receive));
    programs
        .ecapture_tx
        .set_autoload(needed(PacketProgram::Transmit));
    programs
        .ecapture_ip_rx
        .set_autoload(needed(PacketProgram::ReceiveIp));
    programs
        .ecapture_ip_tx
        .set_autoload(needed(PacketProgram::TransmitIp));
    programs
        .ecapture_lo
        .set_autoload(needed(PacketProgram::Loopback));
    programs
        .ecapture_lo_tx
        .set_autoload(needed(PacketProgram::LoopbackSender));

    let missing = || io::Error::new(io::ErrorKind::NotFound, "the programs have no .rodata");
    let rodata = open.maps.rodata_data.as_deref_mut().ok_or_else(missing)?;
    rodata.all_packets = options.all_packets.into();
    rodata.snap_length = snaplen;
    rodata.wake_threshold = u64::from(ring_bytes) / 8;
    if !options.all_packets {
        rodata.filter_pid = options.filters.pid.unwrap_or(0);
        rodata.filter_by_uid = options.filters.uid.is_some().into();
        rodata.filter_uid = options.filters.uid.unwrap_or(0);
    }
    if let Some((device, inode)) = pid_namespace() {
        rodata.pid_namespace_device = device;
        rodata.pid_namespace_inode = inode;
    }
    Ok(())
}

/// Sees to it that every socket of the targets has its owner: first those to come, then those that
/// are there, so that none slips through between.
fn own_sockets(
    skeleton: &PacketsSkel<'static>,
    target: Option<PacketTarget<'_>>,
    options: &PacketOptions,
    (links, entry): (&mut Vec<Link>, &mut WatchedLinks),
    warnings: &mut Vec<String>,
) -> Result<Option<Follower>, Error> {
    let programs = &skeleton.progs;
    let cgroup = cgroup::open_root()?;
    for program in [
        &programs.own_created,
        &programs.own_bound4,
        &programs.own_bound6,
    ] {
        let attach = || program.attach_cgroup(cgroup.as_raw_fd());
        links.push(attach_link("the root of cgroup v2", attach)?);
    }
    let ownership = Ownership {
        targets: handle(&skeleton.maps.targets)?,
        owners: handle(&skeleton.maps.owners)?,
        of_all: options.all_packets,
        multipath_listeners: handle(&skeleton.maps.multipath_listeners)?,
        variables: MmapOptions::new()
            .len(rustix::param::page_size())
            .map_raw(skeleton.maps.bss.as_fd().as_raw_fd())
            .map_err(system("mapping the variables of the eBPF programs"))?,
    };
    ownership.try_out()?;
    let filters = options.filters;
    let running = if options.all_packets {
        processes::running_file(None, None)?
    } else {
        let raw_tracepoint = |program: &ProgramMut<'static>, name: &str| {
            let attach = || program.attach_raw_tracepoint(name);
            attach_link(&format!("the tracepoint {name}"), attach)
        };
        links.push(raw_tracepoint(
            &programs.exit_process,
            "sched_process_exit",
        )?);
        if target.is_some() {
            links.push(raw_tracepoint(
                &programs.exec_process,
                "sched_process_exec",
            )?);
        }
        if let Some(target) = target {
            let kind = options.uprobe_kind();
            let watch = entry.watch(target.executable);
            let path = target.executable.path_to_probe()?;
            let place = format!("the entry point at file offset {}", target.entry);
            let attach = || kind.attach(&programs.start_target, None, &path, &[target.entry], None);
            entry.add(watch, attach_link(&place, attach)?);
        }
        match (filters.pid, target) {
            (Some(pid), _) => {
                let uid = filters.uid;
                let wanted = uid.is_none_or(|uid| processes::real_user(pid) == Some(uid));
                wanted.then_some(pid).into_iter().collect()
            }
            (None, Some(target)) => {
                if filters.uid.is_none() && !privileges::can_look_at_any_process() {
                    warnings.push(
                        "packets of other users' processes that run already will be missing: that \
                         takes root, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
                            .into(),
                    );
                }
                processes::running_file(Some(target.executable.identity()), filters.uid)?
            }
            (None, None) => Vec::new(),
        }
    };
    if !options.all_packets {
        for &pid in &running {
            ownership.add_target(pid)?;
        }
    }
    for &pid in &running {
        match Process::open(pid).and_then(|process| adopt_all(&ownership, &process)) {
            Ok(()) => {}
            // It has ended, or it is not for us to know: of all processes, some are like that.
            Err(Error::NoSuchProcess { .. }) if filters.pid.is_none() => {}
            Err(_) if options.all_packets => {}
            Err(error @ (Error::NoSuchProcess { .. } | Error::System { .. })) => return Err(error),
            Err(error) => warnings.push(format!(
                "process {pid}: packets of the sockets that it has already will be missing: {error}"
            )),
        }
    }
    if options.all_packets {
        return Ok(None);
    }
    let started = &skeleton.maps.started;
    let follower = Follower::start(
        started.as_fd(),
        started.max_entries().into(),
        &running,
        ownership,
    )
    .map_err(system("starting a thread"))?;
    Ok(Some(follower))
}

/// Until there is nothing new: a listener may have accepted while we looked.
fn adopt_all(ownership: &Ownership, process: &Process) -> Result<(), Error> {
    const PASSES_MAX: u32 = 4;

    for _ in 0..PASSES_MAX {
        if ownership.adopt_sockets(process)? == 0 {
            break;
        }
    }
    Ok(())
}

fn enter_interfaces(
    skeleton: &PacketsSkel<'static>,
    interfaces: &[Interface],
) -> Result<(), Error> {
    for (index, interface) in interfaces.iter().enumerate() {
        let mut value = [0; size_of::<types::interface>()];
        let start = offset_of!(types::interface, index);
        value[start..start + 4].copy_from_slice(&(index as u32).to_ne_bytes());
        skeleton
            .maps
            .interfaces
            .update(&interface.ifindex.to_ne_bytes(), &value, MapFlags::ANY)
            .map_err(|error| system("entering an interface")(io::Error::other(error)))?;
    }
    Ok(())
}

fn attach_hooks(
    skeleton: &PacketsSkel<'static>,
    interfaces: &[Interface],
    filters: &BTreeMap<LinkType, Filter>,
    options: &PacketOptions,
) -> Result<Hooks, Error> {
    let mut filter_programs: Vec<(PacketProgram, OwnedFd)> = Vec::new();
    for interface in interfaces {
        let Some(filter) = filters.get(&interface.link_type) else {
            continue;
        };
        for &(hook, program) in PacketProgram::of(interface) {
            let known = filter_programs.iter().any(|&(known, _)| known == program);
            if known || program == PacketProgram::LoopbackSender {
                continue;
            }
            let index = program as u32;
            let continuations = &skeleton.maps.continuations;
            let capture = program.in_skeleton(skeleton).as_fd().as_raw_fd();
            continuations
                .update(&index.to_ne_bytes(), &capture.to_ne_bytes(), MapFlags::ANY)
                .map_err(|error| system("entering a program")(io::Error::other(error)))?;
            let loaded = filter.load(hook, continuations.as_fd(), index)?;
            filter_programs.push((program, loaded));
        }
    }
    let entry = |program: PacketProgram| -> BorrowedFd<'_> {
        match filter_programs.iter().find(|&&(known, _)| known == program) {
            Some((_, filter)) => filter.as_fd(),
            None => program.in_skeleton(skeleton).as_fd(),
        }
    };
    let attachments: Vec<_> = interfaces
        .iter()
        .flat_map(|interface| {
            PacketProgram::of(interface)
                .iter()
                .map(move |&(hook, program)| (interface, hook, program))
        })
        .map(|(interface, hook, program)| Attachment {
            ifindex: interface.ifindex,
            name: &interface.name,
            hook,
            program: entry(program),
        })
        .collect();
    Hooks::attach(&options.network_namespace, &attachments, options.hooks)
}

fn attach_link<L>(place: &str, attach: impl FnOnce() -> libbpf_rs::Result<L>) -> Result<L, Error> {
    let (link, log) = libbpf_log::listen(attach);
    link.map_err(|error| match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => Error::MissingCapabilities {
            what: "attach to sockets and processes",
            missing: "CAP_NET_ADMIN and CAP_PERFMON".into(),
        },
        _ => Error::AttachPlace {
            place: place.into(),
            reason: match log.lines().next_back() {
                Some(line) => line.trim_start_matches("libbpf: ").to_owned(),
                None => error.to_string(),
            },
        },
    })
}

fn handle(map: &MapMut<'static>) -> Result<MapHandle, Error> {
    MapHandle::try_from(map).map_err(|error| system("sharing a map")(io::Error::other(error)))
}

fn system(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |reason| Error::System { what, reason }
}
