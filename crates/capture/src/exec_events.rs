//! Word of every process that begins to execute a file.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, OpenObject};

use crate::exec_skeleton::{ExecsSkel, ExecsSkelBuilder};
use crate::load::load_error;
use crate::process::pid_namespace;
use crate::ring::Ring;
use crate::{Error, libbpf_log};

/// A tracepoint that tells of them as soon as they have become the new program, which may be running
/// by then. Gone when this is dropped.
pub struct ExecEvents {
    _link: Link,
    ring: Ring,
    skeleton: ExecsSkel<'static>,
}

impl std::fmt::Debug for ExecEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecEvents").finish_non_exhaustive()
    }
}

impl ExecEvents {
    /// Begins to watch.
    pub fn watch() -> Result<Self, Error> {
        let (loaded, log) = libbpf_log::listen(load);
        let skeleton = loaded.map_err(|error| load_error(&error, &log))?;
        let failed = |error: libbpf_rs::Error| Error::Load {
            reason: format!("attaching to the tracepoint sched_process_exec: {error}"),
        };
        let link = skeleton.progs.process_started.attach().map_err(failed)?;
        let started = &skeleton.maps.started;
        let ring = Ring::map(started.as_fd(), STARTED_BYTES).map_err(|reason| Error::System {
            what: "mapping the ring buffer of processes",
            reason,
        })?;
        Ok(Self {
            _link: link,
            ring,
            skeleton,
        })
    }

    /// Hands the pids of processes that began since the last call to `each`, up to so many, and returns how
    /// many there were.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(u32)) -> usize {
        self.ring.drain(limit, |bytes| {
            if let Some(&pid) = bytes.first_chunk() {
                each(u32::from_ne_bytes(pid));
            }
        })
    }

    /// How many processes there was no room for to tell of. If it grows, look at all that run.
    pub fn untold(&self) -> u64 {
        let bss = self.skeleton.maps.bss_data.as_deref();
        // SAFETY: An aligned 64-bit field that the program changes atomically.
        bss.map_or(0, |bss| unsafe {
            std::ptr::read_volatile(&raw const bss.untold)
        })
    }
}

impl AsFd for ExecEvents {
    /// Readable when there is something to drain.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.skeleton.maps.started.as_fd()
    }
}

/// execs.bpf.c, `started`.
const STARTED_BYTES: u64 = 262_144;

fn load() -> libbpf_rs::Result<ExecsSkel<'static>> {
    // The skeleton wants its object to stay where it is; there is one in the life of a process.
    let storage: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
    let mut open = ExecsSkelBuilder::default().open(storage)?;
    if let (Some(rodata), Some((device, inode))) =
        (open.maps.rodata_data.as_deref_mut(), pid_namespace())
    {
        rodata.pid_namespace_device = device;
        rodata.pid_namespace_inode = inode;
    }
    open.load()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    #[ignore = "needs root: run `cargo xtask test`"]
    fn a_process_that_starts_is_told_of() {
        let mut events = ExecEvents::watch().unwrap();
        let mut child = Command::new("true").spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut found = false;
        while !found && Instant::now() < deadline {
            events.drain(usize::MAX, |pid| found |= pid == child.id());
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(found);
        assert_eq!(events.untold(), 0);
    }
}
