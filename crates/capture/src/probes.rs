//! From a plan to attached uprobes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use gobin::{
    Abi, Arch, CRYPTO_TLS, EntryProbe, Function, KeyPlan, Location, ProbePlan, ReadProbe, Site,
    SiteKind,
};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, OpenObject, UprobeOpts, libbpf_sys};

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
    /// What a buffer may have, in KiB.
    const RING_KIB: std::ops::RangeInclusive<u64> = 64..=1024 * 1024;

    fn ring_bytes(&self) -> Result<u32, Error> {
        if !Self::RING_KIB.contains(&self.ring_kib) {
            return Err(Error::RingSize {
                kib: self.ring_kib,
                min_kib: *Self::RING_KIB.start(),
                max_kib: *Self::RING_KIB.end(),
            });
        }
        // At most 1 GiB, which fits.
        Ok((self.ring_kib * 1024).next_power_of_two() as u32)
    }
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

        let skeleton = load(&target, wanted, options, ring_bytes)?;
        let mut probes = Self {
            links: Vec::new(),
            skeleton,
            ring_bytes,
        };
        probes.attach_all(executable, wanted, options.filters.pid)?;
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
        wanted: Wanted<'_>,
        pid: Option<u32>,
    ) -> Result<(), Error> {
        let path = executable.descriptor_path();
        // libbpf: -1 stands for all processes. The pid was found by pidfd_open, so it fits.
        let pid = pid.map_or(-1, |pid| pid as i32);
        for (name, function, site) in sites(wanted) {
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
fn sites(wanted: Wanted<'_>) -> Vec<(&'static str, Function, &Site)> {
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
                ReadProbe::Copy { .. } => "read_copy",
                ReadProbe::Returns { .. } => "read_return",
            };
            sites.extend(
                plan.read
                    .sites()
                    .iter()
                    .map(|site| (read, Function::Read, site)),
            );
            sites.push((
                "write_record",
                Function::WriteRecordLocked,
                &plan.write.site,
            ));
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

/// Since Go 1.12 writeKeyLog has one.
fn has_label(key_log: &EntryProbe) -> bool {
    key_log
        .arguments
        .iter()
        .any(|argument| argument.name == "label.ptr")
}

/// Tells the programs what differs between executables, and checks that the rest is where they
/// expect it.
fn target(wanted: Wanted<'_>) -> Result<types::target, Error> {
    match wanted {
        Wanted::Plaintext(plan) => plaintext_target(plan),
        Wanted::Keys(plan) => keys_target(plan),
    }
}

fn keys_target(plan: &KeyPlan) -> Result<types::target, Error> {
    if let Ok(probe) = &plan.key_log {
        let expected: &[_] = if has_label(probe) {
            &[
                ("label.ptr", 1),
                ("label.len", 2),
                ("clientRandom.ptr", 3),
                ("clientRandom.len", 4),
                ("secret.ptr", 6),
                ("secret.len", 7),
            ]
        } else {
            &[
                ("clientRandom.ptr", 1),
                ("clientRandom.len", 2),
                ("secret.ptr", 4),
                ("secret.len", 5),
            ]
        };
        expect_arguments(probe, plan.abi, expected)?;
    }
    if let Ok(probe) = &plan.master_secret {
        let expected = [
            ("masterSecret.ptr", 2),
            ("masterSecret.len", 3),
            ("clientRandom.ptr", 5),
            ("clientRandom.len", 6),
        ];
        expect_arguments(probe, plan.abi, &expected)?;
    }
    Ok(types::target {
        stack_abi: u8::from(plan.abi == Abi::Stack),
        key_log_at_stack_check: at_stack_check(&plan.key_log),
        master_secret_at_stack_check: at_stack_check(&plan.master_secret),
        ..Default::default()
    })
}

fn plaintext_target(plan: &ProbePlan) -> Result<types::target, Error> {
    let expected = [("c", 0), ("typ", 1), ("data.ptr", 2), ("data.len", 3)];
    expect_arguments(&plan.write, plan.abi, &expected)?;
    if let Ok(close) = &plan.close {
        expect_arguments(close, plan.abi, &[("c", 0)])?;
    }
    let mut target = types::target {
        stack_abi: u8::from(plan.abi == Abi::Stack),
        write_at_stack_check: u8::from(plan.write.site.kind == SiteKind::StackCheckJump),
        close_at_stack_check: at_stack_check(&plan.close),
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

fn at_stack_check(probe: &Result<EntryProbe, gobin::Error>) -> u8 {
    probe
        .as_ref()
        .is_ok_and(|probe| probe.site.kind == SiteKind::StackCheckJump)
        .into()
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

/// The programs take the n-th word of a function's arguments from where the ABI has it at the entry.
fn expect_arguments(
    probe: &EntryProbe,
    abi: Abi,
    expected: &[(&'static str, u8)],
) -> Result<(), Error> {
    for &(what, word) in expected {
        let expected = match abi {
            Abi::Register => Location::ArgumentRegister(word),
            Abi::Stack => Location::Stack(8 * (u32::from(word) + 1)), // registers.h, STACK_ARGUMENT
        };
        let found = probe
            .arguments
            .iter()
            .find(|argument| argument.name == what);
        let location = found.map(|argument| argument.location);
        if location != Some(expected) {
            let location = location.unwrap_or(expected);
            return Err(Error::UnsupportedLocation { what, location });
        }
    }
    Ok(())
}

fn load(
    target: &types::target,
    wanted: Wanted<'_>,
    options: &Options,
    ring_bytes: u32,
) -> Result<GotlsSkel<'static>, Error> {
    let has_loop_helper = has_helper(libbpf_sys::BPF_FUNC_loop);
    let attempt = |sleepable: bool| {
        libbpf_log::listen(|| {
            let mut open = open()?;
            configure(&mut open, target, wanted, options, ring_bytes)?;
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
    wanted: Wanted<'_>,
    options: &Options,
    ring_bytes: u32,
) -> libbpf_rs::Result<()> {
    open.maps.ring.set_max_entries(ring_bytes)?;
    // Only what is attached later is loaded: the verifier's work is most of the start.
    let wanted = sites(wanted);
    for mut program in open.open_object_mut().progs_mut() {
        let autoload = wanted.iter().any(|&(name, ..)| program.name() == name);
        program.set_autoload(autoload);
    }

    let rodata = rodata(open)?;
    rodata.target = *target;
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
fn load_error(error: &libbpf_rs::Error, log: &str) -> Error {
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
