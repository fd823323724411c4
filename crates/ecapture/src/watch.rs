//! Many programs at once: those that run, and those that start later.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use capture::{ExecEvents, ExecGate, Reader};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::failure::Failure;
use crate::log;
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
        let gate = ExecGate::close().map_err(|error| {
            say(&format!(
                "note: {error}; so what programs send in their first milliseconds may be missed"
            ));
        });
        let gate = gate.ok();
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
            .spawn(move || run(&theirs, Sources { events, gate }, &stopped))
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
        if totals.let_go > 0 {
            line += &format!("; let go on before they were known: {}", totals.let_go);
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
        log::line(&self.summary());
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

/// Who tells of programs that start.
#[derive(Debug)]
struct Sources {
    events: ExecEvents,
    /// Holds them until they are attached to.
    gate: Option<ExecGate>,
}

fn run(programs: &Mutex<Programs>, mut sources: Sources, stop: &OwnedFd) {
    // If we keep more than that, nothing is lost but caution.
    let _ = capture::keep_privileges_to_attach();
    let Ok(ends) = lock(programs).as_fd().try_clone_to_owned() else {
        return;
    };
    let mounts = File::open("/proc/self/mountinfo").ok();
    let mut untold = sources.events.untold();
    loop {
        match wait(&ends, &sources, mounts.as_ref(), stop) {
            Ok(Woken { stop: true, .. }) | Err(_) => return,
            Ok(Woken { mounts, .. }) => {
                if mounts && let Some(gate) = &mut sources.gate {
                    gate.hold_new_mounts();
                }
            }
        }
        let mut programs = lock(programs);
        take_all(&mut programs, &mut sources);
        if sources.events.untold() != untold {
            untold = sources.events.untold();
            let _ = programs.look_at_all(Seen::Started);
        }
        programs.forget_ended();
        programs.release_idle();
    }
}

fn take_all(programs: &mut Programs, sources: &mut Sources) {
    let Sources { events, gate } = sources;
    let mut gate = gate.as_mut();
    if let Some(gate) = &gate {
        while let Some(held) = gate.next() {
            let Some(process) = held.process() else {
                continue;
            };
            if !programs.consider(&process, || held.executable().ok(), Seen::Held) {
                held.ignore();
            }
            held.release();
        }
        programs.count_let_go(gate.let_go());
    }
    events.drain(|pid| {
        if let Some(gate) = &mut gate {
            gate.hold_mounts_of(pid);
        }
        programs.started(pid);
    });
}

/// What there is to do.
struct Woken {
    stop: bool,
    mounts: bool,
}

/// Waits for something to do.
fn wait(
    ends: &OwnedFd,
    sources: &Sources,
    mounts: Option<&File>,
    stop: &OwnedFd,
) -> rustix::io::Result<Woken> {
    const MOUNTS: usize = 3;

    let timeout = Timespec {
        tv_sec: HOUSEKEEPING.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let mut descriptors = vec![
        PollFd::new(stop, PollFlags::IN),
        PollFd::new(&sources.events, PollFlags::IN),
        PollFd::new(ends, PollFlags::IN),
    ];
    // proc(5): changes of the list of mounts are exceptional conditions.
    descriptors.extend(mounts.map(|mounts| PollFd::new(mounts, PollFlags::PRI)));
    let gate = sources.gate.as_ref();
    descriptors.extend(gate.map(|gate| PollFd::new(gate, PollFlags::IN)));
    match poll(&mut descriptors, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(Woken {
            stop: !descriptors[0].revents().is_empty(),
            mounts: mounts.is_some() && !descriptors[MOUNTS].revents().is_empty(),
        }),
        Err(errno) => Err(errno),
    }
}
