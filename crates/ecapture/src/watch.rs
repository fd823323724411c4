//! Many programs at once: those that run, and those that start later.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use capture::{ExecEvents, Reader};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::failure::Failure;
use crate::programs::{Programs, Seen};
use crate::session::Attached;

/// How often executables are looked for that nobody runs any more.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// A thread that attaches to programs as they come and go.
#[derive(Debug)]
pub(crate) struct Watch {
    programs: Arc<Mutex<Programs>>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Attaches to the programs that run now, and from then on to those that start.
    pub(crate) fn start(mut programs: Programs, say: fn(&str)) -> Result<Self, Failure> {
        // Watch first, so that none starts unseen while we look.
        let events = ExecEvents::watch()?;
        programs.pin_executables()?;
        let hidden = programs.look_at_all(Seen::Running)?;
        if hidden > 0 {
            say(&format!(
                "note: {hidden} processes of other users can't be looked at without CAP_SYS_PTRACE"
            ));
        }
        let stop = eventfd(0, EventfdFlags::CLOEXEC)
            .context("eventfd")
            .map_err(Failure::Runtime)?;
        let (programs, stop) = (Arc::new(Mutex::new(programs)), Arc::new(stop));
        let (theirs, stopped) = (Arc::clone(&programs), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("programs".into())
            .spawn(move || run(&theirs, events, &stopped))
            .context("starting a thread")
            .map_err(Failure::Runtime)?;
        Ok(Self {
            programs,
            stop,
            thread: Some(thread),
        })
    }

    /// How much was found, for the line that says that everything is in place.
    pub(crate) fn describe(&self) -> String {
        let totals = lock(&self.programs).totals();
        let mut line = format!(
            "{} and {}",
            counted(totals.executables, "executable"),
            counted(totals.processes, "process"),
        );
        if totals.executables == 0 {
            line = format!(
                "nothing yet: none of the {} processes that run is a Go program with TLS that was \
                 asked for; waiting for one to start",
                totals.looked_at
            );
        } else if totals.refused > 0 {
            line += &format!(" ({} can't be captured)", totals.refused);
        }
        line
    }

    /// What it came to.
    fn summary(&self) -> String {
        let totals = lock(&self.programs).totals();
        let mut line = format!(
            "programs: {}, {}",
            counted(totals.executables, "executable"),
            counted(totals.processes, "process"),
        );
        if totals.refused > 0 {
            line += &format!("; can't be captured: {}", totals.refused);
        }
        if totals.late > 0 {
            line += &format!("; started without being held: {}", totals.late);
        }
        line
    }

    fn end(&mut self) {
        // A counter that is full is as good as one that counts further.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

impl Attached for Watch {
    fn readers(&self) -> Result<Vec<Reader>, capture::Error> {
        Ok(vec![lock(&self.programs).probes().reader()?])
    }

    fn extent(&self) -> String {
        counted(lock(&self.programs).probes().sites(), "probe")
    }

    fn give_up_privileges(&self) -> Result<(), capture::Error> {
        capture::give_up_privileges()
    }

    fn detach(&mut self) {
        self.end();
        lock(&self.programs).detach();
        eprintln!("{}", self.summary());
    }
}

/// `1 process`, `2 processes`
fn counted(count: usize, what: &str) -> String {
    let plural = match (count, what.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{count} {what}{plural}")
}

fn lock(programs: &Mutex<Programs>) -> std::sync::MutexGuard<'_, Programs> {
    programs.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(programs: &Mutex<Programs>, mut events: ExecEvents, stop: &OwnedFd) {
    // If we keep more than that, nothing is lost but caution.
    let _ = capture::keep_privileges_to_attach();
    let timeout = Timespec {
        tv_sec: HOUSEKEEPING.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let Ok(ends) = lock(programs).as_fd().try_clone_to_owned() else {
        return;
    };
    let mut untold = events.untold();
    loop {
        let stopped = match wait(&ends, &events, stop, &timeout) {
            Ok(stopped) => stopped,
            Err(_) => return,
        };
        if stopped {
            return;
        }
        let mut programs = lock(programs);
        events.drain(|pid| programs.started(pid));
        if events.untold() != untold {
            untold = events.untold();
            let _ = programs.look_at_all(Seen::Started);
        }
        programs.forget_ended();
        programs.release_idle();
    }
}

/// Waits for something to do, and says whether that is to stop.
fn wait(
    ends: &OwnedFd,
    events: &ExecEvents,
    stop: &OwnedFd,
    timeout: &Timespec,
) -> rustix::io::Result<bool> {
    let mut descriptors = [
        PollFd::new(stop, PollFlags::IN),
        PollFd::new(events, PollFlags::IN),
        PollFd::new(ends, PollFlags::IN),
    ];
    match poll(&mut descriptors, Some(timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!descriptors[0].revents().is_empty()),
        Err(errno) => Err(errno),
    }
}
