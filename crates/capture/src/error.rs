//! What can go wrong between us and the kernel.

use std::io;
use std::path::PathBuf;

/// An error, with what was looked at, what was found and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The executable can't be opened.
    #[error("{}: {reason}", path.display())]
    Open {
        /// As the user gave it.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// The path leads to something that is not a regular file.
    #[error("{}: is a {found}, not an executable file", path.display())]
    NotAFile {
        /// As the user gave it.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The file is not what it was when it was opened.
    #[error("{}: was changed while it was read; try again", path.display())]
    Changed {
        /// As the user gave it.
        path: PathBuf,
    },
    /// No such process.
    #[error("process {pid}: no such process")]
    NoSuchProcess {
        /// The process id asked for.
        pid: u32,
    },
    /// A kernel thread, or a process that is just ending.
    #[error("process {pid}: has no executable (a kernel thread, or a process that has ended)")]
    NoExecutable {
        /// The process id asked for.
        pid: u32,
    },
    /// In a pid namespace whose processes are not seen from ours.
    #[error("process {pid}: {}", crate::OUT_OF_SIGHT)]
    OutOfSight {
        /// The process id asked for.
        pid: u32,
    },
    /// Reading about a process failed.
    #[error("process {pid}: {what}: {reason}")]
    Process {
        /// The process id asked for.
        pid: u32,
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        reason: io::Error,
    },
    /// Built for another machine.
    #[error(
        "{}: is for {executable}, this machine is {machine}: it can be inspected here, not captured",
        path.display()
    )]
    OtherArchitecture {
        /// As the user gave it.
        path: PathBuf,
        /// What the executable runs on.
        executable: gobin::Arch,
        /// What we run on.
        machine: &'static str,
    },
    /// Capabilities are missing.
    #[error("not permitted to {what}: run as root, or with {missing}")]
    MissingCapabilities {
        /// What needs them.
        what: &'static str,
        /// Their names.
        missing: String,
    },
    /// The kernel does not show a process to us.
    #[error("process {pid}: not permitted to look at it: {why}")]
    HiddenProcess {
        /// Which process.
        pid: u32,
        /// What is missing, or else what the cause may be.
        why: &'static str,
    },
    /// The capabilities are there, and the kernel refuses all the same.
    #[error("the kernel does not permit to {what} ({reason}): {hint}")]
    NotPermitted {
        /// What was refused.
        what: &'static str,
        /// What it says.
        reason: String,
        /// What the cause may be.
        hint: &'static str,
    },
    /// The kernel lacks a feature.
    #[error(
        "this kernel ({kernel}) has no {feature}, which needs Linux {since} or newer with {option}"
    )]
    Unsupported {
        /// What is missing.
        feature: &'static str,
        /// `uname -r`.
        kernel: String,
        /// The first version that has it.
        since: &'static str,
        /// The kernel's build option.
        option: &'static str,
    },
    /// The kernel's verifier did not accept a program.
    #[error(
        "the kernel ({kernel}) refused an eBPF program: {summary}; --debug shows all that it said"
    )]
    Verifier {
        /// `uname -r`.
        kernel: String,
        /// The telling lines of its log.
        summary: String,
    },
    /// Loading failed for a reason that we don't know.
    #[error("loading the eBPF programs: {reason}; --debug shows more")]
    Load {
        /// What libbpf says.
        reason: String,
    },
    /// A uprobe could not be attached.
    #[error("attaching to {function} at file offset {offset}: {reason}")]
    Attach {
        /// The function's name.
        function: String,
        /// Where.
        offset: gobin::FileOffset,
        /// The system's reason.
        reason: String,
    },
    /// The plan asks for something that the eBPF programs can't do.
    #[error("the eBPF programs can't find {what} at {location:?}: please report this executable")]
    UnsupportedLocation {
        /// Which value.
        what: &'static str,
        /// Where the plan says that it is.
        location: gobin::Location,
    },
    /// There is no room for another executable.
    #[error("{limit} executables are captured already, more are not possible at the same time")]
    TooManyExecutables {
        /// How many there can be.
        limit: u32,
    },
    /// A size that the ring buffer can't have.
    #[error(
        "a buffer of {kib} KiB is not possible: give --mapsize between {min_kib} and {max_kib}"
    )]
    RingSize {
        /// What was asked for.
        kib: u64,
        /// Bounds in KiB.
        min_kib: u64,
        /// Bounds in KiB.
        max_kib: u64,
    },
    /// A filter expression that libpcap does not accept, or that can't be run in the kernel.
    #[error("the filter expression \"{expression}\": {message}")]
    Filter {
        /// As the user gave it.
        expression: String,
        /// What libpcap says.
        message: String,
    },
    /// No such network interface.
    #[error("no interface {name}: there are {existing}")]
    NoSuchInterface {
        /// The name asked for.
        name: String,
        /// The names that there are.
        existing: String,
    },
    /// Nothing to capture on.
    #[error("no interface to capture on: of {existing} none is up and of a link type that we know")]
    NoInterface {
        /// The names that there are.
        existing: String,
    },
    /// An interface that is neither Ethernet nor plain IP.
    #[error(
        "the interface {name} is of hardware type {hardware}: only Ethernet and plain IP can be captured"
    )]
    UnknownLinkType {
        /// Its name.
        name: String,
        /// The kernel's number (if_arp.h).
        hardware: u16,
    },
    /// There is no cgroup v2 filesystem.
    #[error(
        "no cgroup v2 filesystem is mounted, which tells the sockets of processes apart (kernel \
         {kernel}): mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`, or capture all \
         packets"
    )]
    NoCgroup {
        /// `uname -r`.
        kernel: String,
    },
    /// A program could not be attached to an interface, a cgroup or a tracepoint.
    #[error("attaching to {place}: {reason}")]
    AttachPlace {
        /// Where.
        place: String,
        /// The system's reason.
        reason: String,
    },
    /// A system call failed that ought not to.
    #[error("{what}: {reason}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        reason: io::Error,
    },
}

impl Error {
    /// Whether the cause is what the user asked for (a path, a pid, a size), not this machine.
    pub fn is_wrong_input(&self) -> bool {
        matches!(
            self,
            Self::Open { .. }
                | Self::NotAFile { .. }
                | Self::Changed { .. }
                | Self::NoSuchProcess { .. }
                | Self::NoExecutable { .. }
                | Self::OutOfSight { .. }
                | Self::OtherArchitecture { .. }
                | Self::RingSize { .. }
                | Self::Filter { .. }
                | Self::NoSuchInterface { .. }
                | Self::NoInterface { .. }
                | Self::UnknownLinkType { .. }
        )
    }
}

/// Name and release of the operating system's kernel, such as `Linux 6.1.0`.
pub fn operating_system() -> String {
    let found = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    format!("{} {}", text(found.sysname()), text(found.release()))
}

/// `uname -r`
pub(crate) fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}
