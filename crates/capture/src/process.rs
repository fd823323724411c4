//! Processes: which file one executes, and when it ends.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::privileges::hidden_process;
use crate::processes::{executed_file, real_user};
use crate::{Error, Executable, Identity, Library};

/// A running process, held by a pidfd: its number can't be taken over by another one unnoticed.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

impl Process {
    /// Finds the process with this id, in our own pid namespace.
    pub fn open(pid: u32) -> Result<Self, Error> {
        let no_such_process = Error::NoSuchProcess { pid };
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Err(no_such_process);
        };
        match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { pid, pidfd }),
            Err(rustix::io::Errno::SRCH) => Err(no_such_process),
            // A thread's id, not a process's.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Err(no_such_process),
            Err(errno) => Err(Error::Process {
                pid,
                what: "opening it",
                reason: errno.into(),
            }),
        }
    }

    /// Finds one that can be captured, as far as that depends on where it runs.
    pub fn open_to_capture(pid: u32) -> Result<Self, Error> {
        let process = Self::open(pid)?;
        if is_out_of_sight(pid) {
            return Err(Error::OutOfSight { pid });
        }
        Ok(process)
    }

    /// Its id, in our own pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// `/proc/PID/exe`: leads to the file itself, wherever it is mounted and even if it is deleted.
    pub(crate) fn executable_link(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/exe", self.pid))
    }

    /// The executable's path as the process's own mount namespace has it; for messages only.
    pub(crate) fn executable_name(&self) -> Result<PathBuf, Error> {
        fs::read_link(self.executable_link()).map_err(|reason| match reason.kind() {
            io::ErrorKind::NotFound => Error::NoExecutable { pid: self.pid },
            io::ErrorKind::PermissionDenied => hidden_process(self.pid),
            _ => Error::Process {
                pid: self.pid,
                what: "reading its executable's path",
                reason,
            },
        })
    }

    /// What it runs, if that is not this file, nor a library that it has mapped. `None` also if we may not look.
    pub fn runs_instead_of(&self, file: &Executable) -> Result<Option<PathBuf>, Error> {
        let name = match self.executable_name() {
            Ok(name) => name,
            // The kernel tells them apart all the same.
            Err(Error::HiddenProcess { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let executed = executed_file(self.pid);
        let libraries = Library::of(self.pid).into_iter();
        let mut libraries = libraries.map(|library| (library.identity, library.changed_ns));
        // Another device may be an overlay's, which shows inode and time of the file that it has from below.
        let is_it = |(identity, changed_ns): (Identity, i128)| {
            identity == file.identity()
                || (identity.inode, changed_ns) == (file.identity().inode, file.changed_ns())
        };
        let runs_it = executed.is_none_or(is_it) || libraries.any(is_it);
        Ok((!runs_it).then_some(name))
    }

    /// Its real user's number, if it still runs.
    pub fn user(&self) -> Option<u32> {
        real_user(self.pid)
    }
}

impl AsFd for Process {
    /// The pidfd: readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Whether our pid namespace is the initial one, from which all processes are seen.
pub fn is_in_initial_pid_namespace() -> bool {
    pid_namespace().is_none()
}

/// Why a process can't be captured that [`is_out_of_sight`].
pub const OUT_OF_SIGHT: &str = "in a pid namespace below ecapture's own, whose processes are seen only from the \
     initial one: run ecapture there, as by `docker run --pid=host` on the machine itself";

/// Whether a process is in a pid namespace below ours, and ours is not the initial one: the kernel tells eBPF
/// programs the ids that a process has in the initial namespace, or in the very one that it is in, and no other
/// (bpf-helpers(7), `bpf_get_ns_current_pid_tgid`).
pub fn is_out_of_sight(pid: u32) -> bool {
    let Some(ours) = pid_namespace() else {
        return false;
    };
    let theirs = rustix::fs::stat(format!("/proc/{pid}/ns/pid"));
    theirs.is_ok_and(|theirs| (theirs.st_dev, theirs.st_ino) != ours)
}

/// Device and inode of our pid namespace, or `None` in the initial one.
pub(crate) fn pid_namespace() -> Option<(u64, u64)> {
    /// include/linux/proc_ns.h, PROC_PID_INIT_INO: UAPI since Linux 6.17, and never changed before.
    const INITIAL: u64 = 0xEFFF_FFFC;

    let namespace = rustix::fs::stat("/proc/self/ns/pid").ok()?;
    (namespace.st_ino != INITIAL).then_some((namespace.st_dev, namespace.st_ino))
}
