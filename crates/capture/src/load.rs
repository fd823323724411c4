//! Loading the eBPF programs: as the kernel at hand takes them, and with the reason where it doesn't.

use std::io;
use std::mem::MaybeUninit;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject, libbpf_sys};

use crate::error::kernel_release;
use crate::process::pid_namespace;
use crate::skeleton::{GotlsSkel, GotlsSkelBuilder, OpenGotlsSkel, types};
use crate::target::Target;
use crate::uprobes::UprobeKind;
use crate::{Error, Options, libbpf_log};

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

/// Loads the programs with these names, which is all that the verifier has to look at: its work is most
/// of the start.
pub(crate) fn load(
    target: &Target,
    programs: &[&str],
    kind: UprobeKind,
    options: &Options,
    ring_bytes: u32,
) -> Result<GotlsSkel<'static>, Error> {
    let attempt = |sleepable: bool| {
        libbpf_log::listen(|| {
            let mut open = open()?;
            configure(&mut open, target, options, ring_bytes)?;
            rodata(&mut open)?.may_fault = sleepable.into();
            for mut program in open.open_object_mut().progs_mut() {
                let wanted = programs.iter().any(|&name| program.name() == name);
                program.set_autoload(wanted);
                kind.prepare(&mut program);
                if sleepable {
                    program.set_flags(libbpf_sys::BPF_F_SLEEPABLE);
                }
            }
            let skeleton = open.load()?;
            for (descriptor, known) in &target.dynamic_types {
                let value = [known.role.to_ne_bytes(), known.offset.to_ne_bytes()].concat();
                let map = &skeleton.maps.dynamic_types;
                map.update(&descriptor.to_ne_bytes(), &value, MapFlags::ANY)?;
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
    // The skeleton wants its object to stay where it is; there is one in the life of a process.
    let storage: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
    GotlsSkelBuilder::default().open(storage)
}

fn configure(
    open: &mut OpenGotlsSkel<'static>,
    target: &Target,
    options: &Options,
    ring_bytes: u32,
) -> libbpf_rs::Result<()> {
    open.maps.ring.set_max_entries(ring_bytes)?;
    let rodata = rodata(open)?;
    rodata.target = target.arguments;
    rodata.layout = target.layout;
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
