//! Loading the eBPF programs: as the kernel at hand takes them, and with the reason where it doesn't.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use gobin::ConnectionPlan;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject, libbpf_sys};

use crate::error::kernel_release;
use crate::process::pid_namespace;
use crate::skeleton::{GotlsSkel, GotlsSkelBuilder, OpenGotlsSkel, types};
use crate::target::Target;
use crate::uprobes::UprobeKind;
use crate::{Error, Options, ProbeSet, Selection, libbpf_log};

/// How many types there is room for in an object that serves many executables: most have a dozen.
pub(crate) const TYPES_OF_MANY: u32 = 16384;

/// How the programs repeat something (gotls.bpf.c, enum repeat).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// By bpf_loop.
    ByHelper,
    /// In a loop that the verifier walks through: Linux before 5.17 knows no other.
    ByWalking,
}

impl Repeat {
    /// What the kernel can do.
    pub(crate) fn of_this_kernel() -> Self {
        // SAFETY: Plain numbers go in and out.
        let answer = unsafe {
            libbpf_sys::libbpf_probe_bpf_helper(
                libbpf_sys::BPF_PROG_TYPE_KPROBE,
                libbpf_sys::BPF_FUNC_loop,
                std::ptr::null(),
            )
        };
        if answer == 1 {
            Self::ByHelper
        } else {
            Self::ByWalking
        }
    }
}

impl Repeat {
    /// The most bytes of one call that can be copied (gotls.bpf.c, PARTS_MAX and PARTS_MAX_WALKED).
    pub(crate) fn call_bytes_max(self) -> u64 {
        match self {
            Self::ByHelper => 1 << 30,
            Self::ByWalking => 1 << 20,
        }
    }
}

/// Which executables an object's programs serve.
#[derive(Clone, Copy)]
pub(crate) enum Serving<'a> {
    /// One, which the verifier knows, and there are so many that share the maps.
    One { target: &'a Target, of: u32 },
    /// One of several objects' executables; they share the maps, and have different numbers.
    Sharing {
        target: &'a Target,
        number: u32,
        maps: &'a GotlsSkel<'static>,
    },
    /// Any number up to this.
    Many(u32),
}

impl Serving<'_> {
    fn target(&self) -> Option<&Target> {
        match self {
            Self::One { target, .. } | Self::Sharing { target, .. } => Some(target),
            Self::Many(_) => None,
        }
    }

    fn number(&self) -> u32 {
        match self {
            Self::Sharing { number, .. } => *number,
            Self::One { .. } | Self::Many(_) => 0,
        }
    }
}

/// Loads the programs with these names, which is all that the verifier has to look at: its work is most
/// of the start. If processes are told apart by a table, `selection` says what those are that it lacks.
pub(crate) fn load(
    serving: Serving<'_>,
    selection: Option<Selection>,
    programs: &[&str],
    kind: UprobeKind,
    options: &Options,
    ring_bytes: u32,
) -> Result<GotlsSkel<'static>, Error> {
    let attempt = |sleepable: bool| {
        libbpf_log::listen(|| {
            let mut open = open()?;
            configure(&mut open, serving, options, ring_bytes)?;
            if selection.is_some() {
                // Each is there for each of its files, and once more if others are captured too.
                let room = 2 * ProbeSet::PROCESSES_MAX;
                open.maps.wanted_processes.set_max_entries(room)?;
            }
            let rodata = rodata(&mut open)?;
            rodata.may_fault = sleepable.into();
            rodata.filter_by_process = selection.is_some().into();
            rodata.unlisted_processes_too = (selection == Some(Selection::EveryProcess)).into();
            if let Serving::Sharing { maps, .. } = serving {
                share_maps(&mut open, maps)?;
            }
            for mut program in open.open_object_mut().progs_mut() {
                let wanted = programs.iter().any(|&name| program.name() == name);
                program.set_autoload(wanted);
                kind.prepare(&mut program);
                if sleepable {
                    program.set_flags(libbpf_sys::BPF_F_SLEEPABLE);
                }
            }
            let skeleton = open.load()?;
            if let Some(target) = serving.target() {
                list_types(&skeleton, serving.number(), target)?;
            }
            Ok(skeleton)
        })
    };
    // Linux has sleepable uprobe programs since 6.0. Trying is the only way to know.
    if let (Ok(skeleton), _) = attempt(true) {
        return Ok(skeleton);
    }
    let (result, log) = attempt(false);
    result.map_err(|error| load_error(&error, &log))
}

fn open() -> libbpf_rs::Result<OpenGotlsSkel<'static>> {
    // The skeleton wants its object to stay where it is. It is a pointer; there are few.
    let storage: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
    GotlsSkelBuilder::default().open(storage)
}

fn configure(
    open: &mut OpenGotlsSkel<'static>,
    serving: Serving<'_>,
    options: &Options,
    ring_bytes: u32,
) -> libbpf_rs::Result<()> {
    open.maps.ring.set_max_entries(ring_bytes)?;
    match serving {
        Serving::Many(executables) => {
            open.maps.executables.set_max_entries(executables)?;
            open.maps.dynamic_types.set_max_entries(TYPES_OF_MANY)?;
        }
        Serving::One { of, .. } => {
            let types = ConnectionPlan::TYPES_MAX as u32 * of;
            open.maps.dynamic_types.set_max_entries(types)?;
        }
        Serving::Sharing { .. } => {}
    }
    let rodata = rodata(open)?;
    rodata.many_targets = matches!(serving, Serving::Many(_)).into();
    rodata.only_number = serving.number();
    if let Some(target) = serving.target() {
        rodata.only_target = target.arguments;
        rodata.only_layout = target.layout;
    }
    rodata.filter_pid = options.filters.pid.unwrap_or(0);
    rodata.filter_by_uid = options.filters.uid.is_some().into();
    rodata.filter_uid = options.filters.uid.unwrap_or(0);
    rodata.capture_limit = options.bytes_per_call.unwrap_or(0);
    rodata.wake_threshold = u64::from(ring_bytes) / 8;
    if let Some((device, inode)) = pid_namespace() {
        rodata.pid_namespace_device = device;
        rodata.pid_namespace_inode = inode;
    }
    Ok(())
}

/// Makes an object's programs write where another one's do.
fn share_maps(
    open: &mut OpenGotlsSkel<'static>,
    with: &GotlsSkel<'static>,
) -> libbpf_rs::Result<()> {
    let (ours, theirs) = (&mut open.maps, &with.maps);
    ours.ring.reuse_fd(theirs.ring.as_fd())?;
    ours.bss.reuse_fd(theirs.bss.as_fd())?;
    ours.connections.reuse_fd(theirs.connections.as_fd())?;
    ours.dynamic_types.reuse_fd(theirs.dynamic_types.as_fd())?;
    ours.wanted_processes
        .reuse_fd(theirs.wanted_processes.as_fd())
}

/// Tells the programs which types of an executable they may follow.
pub(crate) fn list_types(
    skeleton: &GotlsSkel<'static>,
    number: u32,
    target: &Target,
) -> libbpf_rs::Result<()> {
    for (descriptor, known) in &target.dynamic_types {
        let value = [known.role.to_ne_bytes(), known.offset.to_ne_bytes()].concat();
        let map = &skeleton.maps.dynamic_types;
        map.update(&type_key(*descriptor, number), &value, MapFlags::ANY)?;
    }
    Ok(())
}

/// Takes them back, as far as they are there.
pub(crate) fn forget_types(skeleton: &GotlsSkel<'static>, number: u32, target: &Target) {
    for (descriptor, _) in &target.dynamic_types {
        let map = &skeleton.maps.dynamic_types;
        let _ = map.delete(&type_key(*descriptor, number));
    }
}

/// connection.h, struct type_key.
fn type_key(descriptor: u64, number: u32) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&descriptor.to_ne_bytes());
    key[8..12].copy_from_slice(&number.to_ne_bytes());
    key
}

fn rodata<'a>(open: &'a mut OpenGotlsSkel<'static>) -> libbpf_rs::Result<&'a mut types::rodata> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "the programs have no .rodata");
    open.maps
        .rodata_data
        .as_deref_mut()
        .ok_or_else(|| missing().into())
}

/// Says why loading failed, by asking the kernel what it has.
pub(crate) fn load_error(error: &libbpf_rs::Error, log: &str) -> Error {
    let kernel = kernel_release();
    // SAFETY: Plain numbers go in and out.
    let ring_buffer = unsafe {
        libbpf_sys::libbpf_probe_bpf_map_type(libbpf_sys::BPF_MAP_TYPE_RINGBUF, std::ptr::null())
    };
    if ring_buffer == 0 {
        return Error::Unsupported {
            feature: "BPF ring buffer",
            kernel,
            since: "5.8",
            option: "CONFIG_BPF_SYSCALL",
        };
    }
    if let Some(summary) = libbpf_log::verifier_complaint(log) {
        return Error::Verifier { kernel, summary };
    }
    if error.kind() == libbpf_rs::ErrorKind::PermissionDenied {
        return Error::NotPermitted {
            what: "load eBPF programs",
            reason: error.to_string(),
            hint: "a container's seccomp profile, lockdown=confidentiality, or before Linux 5.11 \
                   a limit on locked memory (ulimit -l) may be the cause",
        };
    }
    let said = log
        .lines()
        .map(|line| line.trim_start_matches("libbpf: "))
        .next_back();
    Error::Load {
        reason: said.map_or_else(|| error.to_string(), str::to_owned),
    }
}
