//! Looks after the sockets of target processes while the capture runs: those that a process brings
//! along when it starts (from a supervisor, or its predecessor), and those that were on their way when
//! the capture began: connections that waited to be accepted have no descriptor until then.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::ring::Ring;
use crate::sockets::Ownership;
use crate::{Process, privileges};

/// When to look again, after a process was first seen.
const LOOK_AGAIN: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

/// At most so many processes wait to be looked at again; beyond that, once has to do.
const WAITING_MAX: usize = 4096;

/// A thread that does this, until it is dropped.
#[derive(Debug)]
pub(crate) struct Follower {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// `started` is the ring buffer with the pids of processes that start; `running` are those that
    /// were there before.
    pub(crate) fn start(
        started: BorrowedFd<'_>,
        started_bytes: u64,
        running: &[u32],
        ownership: Ownership,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let ring = Ring::map(started, started_bytes)?;
        let descriptor = started.try_clone_to_owned()?;
        let mut waiting = Waiting::default();
        for &pid in running {
            waiting.add(pid);
        }
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("sockets".into())
            .spawn(move || follow(&stopped, &descriptor, ring, waiting, &ownership))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // A counter that is full is as good as one that counts further.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Who is to be looked at again, and when.
#[derive(Debug, Default)]
struct Waiting {
    /// One queue for each step of [`LOOK_AGAIN`], so each is in order.
    queues: [VecDeque<(Instant, u32)>; LOOK_AGAIN.len()],
}

impl Waiting {
    fn add(&mut self, pid: u32) {
        self.add_at(0, pid);
    }

    fn add_at(&mut self, step: usize, pid: u32) {
        if let Some(queue) = self.queues.get_mut(step)
            && queue.len() < WAITING_MAX
        {
            queue.push_back((Instant::now() + LOOK_AGAIN[step], pid));
        }
    }

    fn next(&self) -> Option<Instant> {
        let fronts = self.queues.iter().filter_map(VecDeque::front);
        fronts.map(|&(time, _)| time).min()
    }

    /// One whose time has come, and is put off to the next step.
    fn take(&mut self, now: Instant) -> Option<u32> {
        for step in 0..self.queues.len() {
            let queue = &mut self.queues[step];
            if queue.front().is_some_and(|&(time, _)| time <= now) {
                let (_, pid) = queue.pop_front()?;
                self.add_at(step + 1, pid);
                return Some(pid);
            }
        }
        None
    }
}

fn follow(
    stop: &OwnedFd,
    started: &OwnedFd,
    mut ring: Ring,
    mut waiting: Waiting,
    ownership: &Ownership,
) {
    // If we keep more than that, nothing is lost but caution.
    let _ = privileges::keep_only(Ownership::privileges());
    loop {
        let timeout = waiting.next().map(|time| {
            let time = time.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: time.as_secs().cast_signed(),
                tv_nsec: time.subsec_nanos().into(),
            }
        });
        let mut descriptors = [
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(started.as_fd(), PollFlags::IN),
        ];
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if !descriptors[0].revents().is_empty() {
            return;
        }
        ring.drain(usize::MAX, |bytes| {
            if let Some(pid) = bytes.first_chunk().map(|&bytes| u32::from_ne_bytes(bytes)) {
                look_after(pid, ownership);
                waiting.add(pid);
            }
        });
        while let Some(pid) = waiting.take(Instant::now()) {
            look_after(pid, ownership);
        }
    }
}

/// A process that has ended, or that does not let us, was nothing to wait for.
fn look_after(pid: u32, ownership: &Ownership) {
    if let Ok(process) = Process::open(pid) {
        let _ = ownership.adopt_sockets(&process);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_looked_at_again_at_each_step_and_then_no_more() {
        let mut waiting = Waiting::default();
        waiting.add(7);
        let far = Instant::now() + Duration::from_secs(60);
        assert_eq!(waiting.take(Instant::now()), None);
        for _ in LOOK_AGAIN {
            assert!(waiting.next().is_some());
            assert_eq!(waiting.take(far), Some(7));
        }
        assert_eq!(waiting.take(far), None);
        assert_eq!(waiting.next(), None);
    }
}
