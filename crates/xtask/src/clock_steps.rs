//! Steps of the wall clock while something runs: an hour ahead for half a second, and back to what it
//! would be without, by the clock that is never set.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const STEP_SECONDS: i64 = 3600;
const AHEAD: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_secs(10);

/// A thread that sets the clock, until it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct ClockSteps {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u32>>>,
}

impl ClockSteps {
    pub(crate) fn start() -> Result<Self> {
        // Not permitted in a container: better known at once.
        clock_settime(ClockId::Realtime, clock_gettime(ClockId::Realtime))
            .context("setting the clock")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut steps = 0;
            while !stopped.load(Ordering::Relaxed) {
                step()?;
                steps += 1;
                thread::park_timeout(PAUSE);
            }
            Ok(steps)
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends it, and says how many steps there were.
    pub(crate) fn stop(mut self) -> Result<u32> {
        self.end()
    }

    fn end(&mut self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(0);
        };
        thread.thread().unpark();
        thread
            .join()
            .unwrap_or_else(|_| bail!("the thread that sets the clock panicked"))
    }
}

impl Drop for ClockSteps {
    fn drop(&mut self) {
        // Not to leave the clock ahead.
        let _ = self.end();
    }
}

fn step() -> Result<()> {
    let offset = nanoseconds(ClockId::Realtime) - nanoseconds(ClockId::Monotonic);
    let set = |nanoseconds: i64| {
        let time = Timespec {
            tv_sec: nanoseconds.div_euclid(1_000_000_000),
            tv_nsec: nanoseconds.rem_euclid(1_000_000_000),
        };
        clock_settime(ClockId::Realtime, time).context("setting the clock")
    };
    set(nanoseconds(ClockId::Realtime) + STEP_SECONDS * 1_000_000_000)?;
    thread::sleep(AHEAD);
    set(nanoseconds(ClockId::Monotonic) + offset)
}

fn nanoseconds(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
