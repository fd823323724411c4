//! From a plan to attached uprobes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use gobin::{
    Abi, Arch, CRYPTO_TLS, EntryProbe, Function, Location, ProbePlan, ReadProbe, Site, SiteKind,
};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, OpenObject, ProgramMut, UprobeOpts, libbpf_sys};

use crate::error::kernel_release;
use crate::process::{effective_user_can_trace, pid_namespace};
use crate::skeleton::{GotlsSkel, GotlsSkelBuilder, OpenGotlsSkel, types};
use crate::{Error, Executable, Reader, libbpf_log};

/// Whose calls are captured; checked in the kernel, before anything is copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filters {
    /// Only this process. Others that run the same executable are not even probed.
    pub pid: Option<u32>,
    /// Only processes of this user.
    pub uid: Option<u32>,
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
    /// What a buffer may have, in KiB.
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
    /// Loads the eBPF programs and attaches them to `executable` as `plan` says. Either every probe
    /// is in place afterwards, or none.
    pub fn attach(
        executable: &Executable,
        plan: &ProbePlan,
        options: &Options,
    ) -> Result<Self, Error> {
        check_architecture(plan.arch)?;
        let target = target(plan)?;
        let ring_bytes = options.ring_bytes()?;
        effective_user_can_trace()?;

        let skeleton = load(&target, plan, options, ring_bytes)?;
        let mut probes = Self {
            links: Vec::new(),
            skeleton,
            ring_bytes,
        };
        probes.attach_all(executable, plan, options.filters.pid)?;
        Ok(probes)
    }

    /// The reading end of the ring buffer. There is one.
    pub fn reader(&self) -> Result<Reader, Error> {
        Reader::new(
            self.skeleton.maps.ring.as_fd(),
            self.ring_bytes.into(),
            self.skeleton.maps.bss.as_fd(),
        )
        .map_err(|source| Error::System {
            what: "mapping the ring buffer",
            source,
        })
    }

    /// How many instructions are probed.
    pub fn sites(&self) -> usize {
        self.links.len()
    }

    /// Size of the ring buffer in bytes.
    pub fn ring_bytes(&self) -> u64 {
        self.ring_bytes.into()
    }

    /// Takes all probes away. What is in the ring buffer stays there to be read.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    fn attach_all(
        &mut self,
        executable: &Executable,
        plan: &ProbePlan,
        pid: Option<u32>,
    ) -> Result<(), Error> {
        let programs = &self.skeleton.progs;
        let read_program = match &plan.read {
            ReadProbe::Copy { .. } => &programs.read_copy,
            ReadProbe::Returns { .. } => &programs.read_return,
        };
        let mut wanted: Vec<(&ProgramMut<'_>, Function, &Site)> = Vec::new();
        // Close goes first, so that no connection is seen to begin whose end is missed.
        if let Ok(close) = &plan.close {
            wanted.push((&programs.close_conn, Function::Close, &close.site));
        }
        wanted.extend(
            plan.read
                .sites()
                .iter()
                .map(|site| (read_program, Function::Read, site)),
        );
        wanted.push((
            &programs.write_record,
            Function::WriteRecordLocked,
            &plan.write.site,
        ));

        let path = executable.descriptor_path();
        // libbpf: -1 stands for all processes. The pid was found by pidfd_open, so it fits.
        let pid = pid.map_or(-1, |pid| pid as i32);
        for (program, function, site) in wanted {
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

/// Tells the programs what differs between executables, and checks that the rest is where they
/// expect it.
fn target(plan: &ProbePlan) -> Result<types::target, Error> {
    // func (c *Conn) writeRecordLocked(typ recordType, data []byte)
    expect_arguments(&plan.write, plan.abi, &["c", "typ", "data.ptr", "data.len"])?;
    if let Ok(close) = &plan.close {
        expect_arguments(close, plan.abi, &["c"])?;
    }
    let at_stack_check = |probe: &EntryProbe| u8::from(probe.site.kind == SiteKind::StackCheckJump);
    let mut target = types::target {
        stack_abi: u8::from(plan.abi == Abi::Stack),
        write_at_stack_check: at_stack_check(&plan.write),
        close_at_stack_check: plan.close.as_ref().map_or(0, at_stack_check),
        ..Default::default()
    };
    match &plan.read {
        ReadProbe::Copy {
            receiver,
            source,
            length,
            ..
        } => {
            target.read_receiver = on_stack("receiver", *receiver)?;
            // runtime.memmove(to, from unsafe.Pointer, n uintptr)
            target.read_source = in_register_or_on_stack("source", *source, 1, plan.abi)?;
            target.read_length = in_register_or_on_stack("length", *length, 2, plan.abi)?;
        }
        ReadProbe::Returns {
            receiver,
            buffer,
            capacity,
            count,
            ..
        } => {
            target.read_receiver = on_stack("receiver", *receiver)?;
            target.read_source = on_stack("buffer", *buffer)?;
            target.read_capacity = on_stack("capacity", *capacity)?;
            target.read_length = in_register_or_on_stack("count", *count, 0, plan.abi)?;
        }
    }
    Ok(target)
}

fn on_stack(what: &'static str, location: Location) -> Result<u32, Error> {
    match location {
        Location::Stack(offset) => Ok(offset),
        Location::ArgumentRegister(_) => Err(Error::UnsupportedLocation { what, location }),
    }
}

/// The place on the stack in the stack ABI; 0 in the register ABI, where it has to be `register`.
fn in_register_or_on_stack(
    what: &'static str,
    location: Location,
    register: u8,
    abi: Abi,
) -> Result<u32, Error> {
    match (abi, location) {
        (Abi::Stack, Location::Stack(offset)) => Ok(offset),
        (Abi::Register, Location::ArgumentRegister(found)) if found == register => Ok(0),
        _ => Err(Error::UnsupportedLocation { what, location }),
    }
}

/// The programs take the arguments of a function from where the ABI has them at its entry.
fn expect_arguments(probe: &EntryProbe, abi: Abi, names: &[&'static str]) -> Result<(), Error> {
    for (index, &what) in names.iter().enumerate() {
        let expected = match abi {
            Abi::Register => Location::ArgumentRegister(index as u8),
            Abi::Stack => Location::Stack(8 * (index as u32 + 1)), // registers.h, STACK_ARGUMENT
        };
        let found = probe
            .arguments
            .get(index)
            .map(|argument| (argument.name, argument.location));
        if found != Some((what, expected)) {
            let location = found.map_or(expected, |(_, location)| location);
            return Err(Error::UnsupportedLocation { what, location });
        }
    }
    Ok(())
}

fn load(
    target: &types::target,
    plan: &ProbePlan,
    options: &Options,
    ring_bytes: u32,
) -> Result<GotlsSkel<'static>, Error> {
    let has_loop_helper = has_helper(libbpf_sys::BPF_FUNC_loop);
    let attempt = |sleepable: bool| {
        libbpf_log::listen(|| {
            let mut open = open()?;
            configure(&mut open, target, plan, options, ring_bytes)?;
            let rodata = rodata(&mut open)?;
            rodata.has_loop_helper = has_loop_helper.into();
            rodata.may_fault = sleepable.into();
            if sleepable {
                for mut program in open.open_object_mut().progs_mut() {
                    program.set_flags(libbpf_sys::BPF_F_SLEEPABLE);
                }
            }
            open.load()
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
    target: &types::target,
    plan: &ProbePlan,
    options: &Options,
    ring_bytes: u32,
) -> libbpf_rs::Result<()> {
    open.maps.ring.set_max_entries(ring_bytes)?;
    let copies = matches!(plan.read, ReadProbe::Copy { .. });
    open.progs.read_copy.set_autoload(copies);
    open.progs.read_return.set_autoload(!copies);
    open.progs.close_conn.set_autoload(plan.close.is_ok());

    let rodata = rodata(open)?;
    rodata.target = *target;
    rodata.filter_pid = options.filters.pid.unwrap_or(0);
    rodata.filter_by_uid = options.filters.uid.is_some().into();
    rodata.filter_uid = options.filters.uid.unwrap_or(0);
    rodata.capture_limit = options.bytes_per_call.unwrap_or(0);
    rodata.wake_threshold = u64::from(ring_bytes) / 4;
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

fn has_helper(helper: libbpf_sys::bpf_func_id) -> bool {
    // SAFETY: Plain numbers go in and out.
    let answer = unsafe {
        libbpf_sys::libbpf_probe_bpf_helper(
            libbpf_sys::BPF_PROG_TYPE_KPROBE,
            helper,
            std::ptr::null(),
        )
    };
    answer == 1
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

fn attach_error(function: Function, site: &Site, error: &libbpf_rs::Error, log: &str) -> Error {
    if !std::path::Path::new("/sys/bus/event_source/devices/uprobe/type").exists() {
        return Error::Unsupported {
            feature: "uprobes",
            kernel: kernel_release(),
            since: "4.17",
            option: "CONFIG_UPROBE_EVENTS (and /sys has to be mounted)",
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
