//! Network namespaces of other processes, entered by a thread that does what there is to do and ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::privileges::hidden_process;
use crate::{Error, Process};

/// A socket of the calling thread's network namespace, which is bound to nothing.
pub(crate) fn local_socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// A network namespace, kept alive by an open file.
#[derive(Clone, Debug)]
pub struct NetworkNamespace {
    /// `None`: our own, which is entered by doing nothing.
    other: Option<Arc<File>>,
}

impl NetworkNamespace {
    /// Our own.
    pub fn ours() -> Self {
        Self { other: None }
    }

    /// That of a process.
    pub fn of_process(process: &Process) -> Result<Self, Error> {
        let pid = process.pid();
        let open = |path: &str| {
            File::open(path).map_err(|reason| match reason.kind() {
                io::ErrorKind::NotFound => Error::NoSuchProcess { pid },
                io::ErrorKind::PermissionDenied => hidden_process(pid),
                _ => Error::Process {
                    pid,
                    what: "opening its network namespace",
                    reason,
                },
            })
        };
        let theirs = open(&format!("/proc/{pid}/ns/net"))?;
        let ours = open("/proc/self/ns/net")?;
        let identity = |file: &File| file.metadata().map(|found| (found.dev(), found.ino()));
        match (identity(&theirs), identity(&ours)) {
            (Ok(theirs), Ok(ours)) if theirs == ours => Ok(Self::ours()),
            _ => Ok(Self {
                other: Some(Arc::new(theirs)),
            }),
        }
    }

    /// Whether it is the one that we run in.
    pub fn is_ours(&self) -> bool {
        self.other.is_none()
    }

    /// Runs `work` inside of it.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let Some(namespace) = &self.other else {
            return Ok(work());
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
        .map_err(|errno: rustix::io::Errno| match errno {
            rustix::io::Errno::PERM => Error::MissingCapabilities {
                what: "enter the network namespace of a process",
                missing: "CAP_SYS_ADMIN".into(),
            },
            errno => Error::System {
                what: "entering the network namespace of a process",
                reason: errno.into(),
            },
        })
    }
}
