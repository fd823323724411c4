//! The reading side: takes records out of the ring buffer, and sleeps in between without making the
//! target pay for waking us up.
//!
//! While records keep coming, we look after them every [`PAUSE`] and the programs wake us only if the
//! ring fills up. When nothing came for a while, we ask to be woken by the next record. So a busy
//! target wakes us 50 times a second, whatever its load, and an idle one not at all.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use events::layout::SharedState;
use memmap2::{MmapOptions, MmapRaw};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::ring::Ring;

/// How long records may wait while more are coming: a person does not notice, and the default buffer
/// holds what a target can produce in that time.
const PAUSE: Duration = Duration::from_millis(20);

/// The longest sleep. A record can slip in unseen between our last look and the request to be woken;
/// it is found after this time at the latest.
const LONGEST_SLEEP: Duration = Duration::from_millis(250);

/// What was not delivered, since the probes were attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Records that found no room in the ring buffer.
    pub lost_records: u64,
    /// Bytes of plaintext in them.
    pub lost_bytes: u64,
    /// Parts of calls that could not be read from the target's memory.
    pub unreadable_records: u64,
    /// Bytes of plaintext in them.
    pub unreadable_bytes: u64,
    /// Bytes of calls longer than a probe may copy.
    pub too_long_bytes: u64,
    /// Calls whose very arguments could not be read.
    pub unknown_calls: u64,
    /// Times that a process's socket could not be remembered as its own: packets of it may be missing.
    pub unowned_sockets: u64,
}

impl std::ops::Add for Counters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            lost_records: self.lost_records + other.lost_records,
            lost_bytes: self.lost_bytes + other.lost_bytes,
            unreadable_records: self.unreadable_records + other.unreadable_records,
            unreadable_bytes: self.unreadable_bytes + other.unreadable_bytes,
            too_long_bytes: self.too_long_bytes + other.too_long_bytes,
            unknown_calls: self.unknown_calls + other.unknown_calls,
            unowned_sockets: self.unowned_sockets + other.unowned_sockets,
        }
    }
}

/// Whether to go on reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Go on.
    No,
    /// Somebody pressed the [`StopSwitch`].
    Yes,
}

/// Ends the sleep of a [`Reader`], from any thread, for good.
#[derive(Clone, Debug)]
pub struct StopSwitch(Arc<OwnedFd>);

impl StopSwitch {
    /// Asks the reader to stop.
    pub fn stop(&self) {
        // A counter that is full is as good as one that counts further.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// The reading end of the ring buffer.
#[derive(Debug)]
pub struct Reader {
    ring: Ring,
    state: MmapRaw,
    epoll: OwnedFd,
    stop: StopSwitch,
}

impl Reader {
    /// Of the ring buffer and the .bss of one object, by their maps.
    pub(crate) fn new(
        ring: BorrowedFd<'_>,
        ring_bytes: u64,
        state: BorrowedFd<'_>,
    ) -> Result<Self, Error> {
        Self::map(ring, ring_bytes, state).map_err(|reason| Error::System {
            what: "mapping the ring buffer",
            reason,
        })
    }

    fn map(ring: BorrowedFd<'_>, ring_bytes: u64, state: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = StopSwitch(Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?));
        // Edge-triggered: a ring with records in it is no reason to cut a pause short.
        let wake_ups = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, ring, epoll::EventData::new_u64(RING), wake_ups)?;
        epoll::add(
            &epoll,
            stop.0.as_fd(),
            epoll::EventData::new_u64(STOP),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            ring: Ring::map(ring, ring_bytes)?,
            state: MmapOptions::new()
                .len(rustix::param::page_size())
                .map_raw(state.as_raw_fd())?,
            epoll,
            stop,
        })
    }

    /// What ends this reader's sleep.
    pub fn stop_switch(&self) -> StopSwitch {
        self.stop.clone()
    }

    /// Hands up to `limit` records to `each`, undecoded, and returns how many there were.
    pub fn drain(&mut self, limit: usize, each: impl FnMut(&[u8])) -> usize {
        self.ring.drain(limit, each)
    }

    /// Sleeps until it is time to drain again. `busy` says whether the last look found anything.
    pub fn wait(&mut self, busy: bool) -> io::Result<Stopped> {
        let (wake, time) = if busy {
            (WAKE_UNDER_PRESSURE, PAUSE)
        } else {
            (WAKE_AT_ONCE, LONGEST_SLEEP)
        };
        self.wake_word().store(wake, Ordering::SeqCst);
        let time = if !busy && self.ring.has_records() {
            Duration::ZERO
        } else {
            time
        };
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: time.subsec_nanos().into(),
        };

        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(RING),
        }; 2];
        let count = match epoll::wait(&self.epoll, &mut events[..], Some(&timeout)) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        self.wake_word().store(WAKE_NOBODY, Ordering::SeqCst);
        let stopped = events[..count].iter().any(|event| event.data.u64() == STOP);
        Ok(if stopped { Stopped::Yes } else { Stopped::No })
    }

    /// What was not delivered so far.
    pub fn counters(&self) -> Counters {
        Counters {
            lost_records: self.counter(std::mem::offset_of!(SharedState, lost_records)),
            lost_bytes: self.counter(std::mem::offset_of!(SharedState, lost_bytes)),
            unreadable_records: self.counter(std::mem::offset_of!(SharedState, unreadable_records)),
            unreadable_bytes: self.counter(std::mem::offset_of!(SharedState, unreadable_bytes)),
            too_long_bytes: self.counter(std::mem::offset_of!(SharedState, too_long_bytes)),
            unknown_calls: self.counter(std::mem::offset_of!(SharedState, unknown_calls)),
            unowned_sockets: self.counter(std::mem::offset_of!(SharedState, unowned_sockets)),
        }
    }

    fn counter(&self, offset: usize) -> u64 {
        // SAFETY: `offset` is that of an aligned 64-bit field of the shared state, which lies at the
        // start of the mapped page (checked in layout.rs); the programs change it atomically.
        unsafe { AtomicU64::from_ptr(self.state.as_mut_ptr().add(offset).cast()) }
            .load(Ordering::Relaxed)
    }

    fn wake_word(&self) -> &AtomicU32 {
        let offset = std::mem::offset_of!(SharedState, wake);
        // SAFETY: As above, for an aligned 32-bit field.
        unsafe { AtomicU32::from_ptr(self.state.as_mut_ptr().add(offset).cast()) }
    }
}

/// What epoll reports.
const RING: u64 = 0;
const STOP: u64 = 1;

/// record.h: enum wake
const WAKE_NOBODY: u32 = 0;
const WAKE_UNDER_PRESSURE: u32 = 1;
const WAKE_AT_ONCE: u32 = 2;
