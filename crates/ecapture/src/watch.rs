//! Many programs at once: those that run, and those that start later.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use capture::{ExecEvents, ExecGate, MappingEvents, Reader, StartingProgram, Verdict};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use trace::escape_name;

use crate::failure::Failure;
use crate::log;
use crate::missed::Unheld;
use crate::programs::{Candidate, LOOKS_MAX, Outcome, Programs, Seen};
use crate::session::Attached;

/// How long programs that start, and files that are mapped, may wait to be heard of while there are many:
/// each would have to wake us up, and a program that starts maps a handful of files. What has to be
/// attached to before it begins is held, and heard of at once.
const PAUSE: Duration = Duration::from_millis(10);

/// Programs start all the time once they have done so for so long without a lull, which is as long a time in
/// which none starts.
const LULL: Duration = Duration::from_millis(100);

/// How often executables are looked for that nobody runs any more.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// After something was not told of, all processes are looked at, which takes long where there are many: no
/// sooner than this after the last time.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Of so many processes it is remembered that they were let go on.
const LET_GO_MAX: usize = 4096;

/// So many programs that start are looked at before anything else gets its turn, and so many that have
/// started: those don't wait for us.
const STARTING_AT_ONCE: usize = 256;
const STARTED_AT_ONCE: usize = 32;

/// At the end, programs that were let go on are looked at for no longer than this.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// A thread that attaches to programs as they come and go.
#[derive(Debug)]
pub(crate) struct Watch {
    programs: Arc<Mutex<Programs>>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Attaches to the programs that run now, and from then on to those that start, which are held for as
    /// long as `longest_hold_ms` says.
    pub(crate) fn start(
        mut programs: Programs,
        longest_hold_ms: u32,
        say: fn(&str),
    ) -> Result<Self, Failure> {
        // Watch first, so that none starts unseen while we look.
        let sources = Sources::open(longest_hold_ms, say)?;
        programs.pin_executables()?;
        let hidden = programs.look_at_all(Seen::Running)?;
        if hidden > 0 {
            let why = capture::why_processes_are_hidden();
            say(&format!(
                "note: processes that can't be looked at: {hidden}; {why}"
            ));
        }
        let stop = eventfd(0, EventfdFlags::CLOEXEC)
            .context("eventfd")
            .map_err(Failure::Runtime)?;
        let (programs, stop) = (Arc::new(Mutex::new(programs)), Arc::new(stop));
        let (theirs, stopped) = (Arc::clone(&programs), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("programs".into())
            .spawn(move || run(&theirs, sources, &stopped))
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
        let programs = lock(&self.programs);
        let (totals, missed) = (programs.totals(), programs.missed());
        let mut line = format!(
            "programs: {}, {}",
            counted(totals.executables, "executable"),
            counted(totals.processes, "process"),
        );
        if totals.refused > 0 {
            line += &format!("; can't be captured: {}", totals.refused);
        }
        if missed.total() > 0 {
            line += &format!("; began before they were attached to: {missed}");
        }
        if totals.untold > 0 {
            line += &format!(
                "; began while too many others waited, of whatever kind: {}",
                totals.untold
            );
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

/// What the process does that holds programs for a capture.
pub(crate) fn guard(longest_hold_ms: u32) -> Result<(), Failure> {
    capture::guard_exec_gate(Duration::from_millis(longest_hold_ms.into()))
        .context("this command is for captures, which execute it themselves")
        .map_err(Failure::WrongInput)
}

/// Who tells of programs that start.
#[derive(Debug)]
struct Sources {
    events: ExecEvents,
    /// Programs that there was no room to tell of.
    unheard: u64,
    /// What to look at because of them, and because of libraries that there was no room to tell of.
    owed: [OwedLook; 2],
    /// Tells of libraries that they load, unless that can't be had.
    mappings: Option<MappingEvents>,
    /// Holds them until they are attached to.
    gate: Option<ExecGate>,
    /// Why nothing is held if there is no gate.
    no_gate: Unheld,
    /// Processes that the gate let go on, and that have not been heard of as started.
    let_go: HashSet<u32>,
    /// Readable, exceptionally, when mounts change: in our mount namespace, and in that of the first process,
    /// where container managers mount.
    mounts: Vec<File>,
    checked: Instant,
    say: fn(&str),
}

impl Sources {
    fn open(longest_hold_ms: u32, say: fn(&str)) -> Result<Self, Failure> {
        let events = ExecEvents::watch()?;
        let mappings = MappingEvents::watch().map_err(|error| {
            say(&format!(
                "note: nobody tells of libraries that processes load ({error}); of Go code in libraries, what \
                 is loaded by now is captured, and what comes later is missed"
            ));
        });
        let gate = match longest_hold_ms {
            0 => None,
            _ => {
                let mut guard = Command::new("/proc/self/exe");
                guard.args(["exec-gate", &longest_hold_ms.to_string()]);
                let gate = ExecGate::close(guard).map_err(|error| {
                    say(&format!(
                        "note: {error}; so what programs send in their first milliseconds may be missed"
                    ));
                });
                gate.ok()
            }
        };
        let not_held: Vec<_> = gate
            .iter()
            .flat_map(ExecGate::not_held)
            .map(|path| escape_name(path.as_os_str().as_encoded_bytes()))
            .collect();
        if !not_held.is_empty() {
            let places = not_held.join(", ");
            say(&format!(
                "note: programs are not held when they start on the filesystems at {places}"
            ));
        }
        Ok(Self {
            unheard: events.untold(),
            owed: [
                OwedLook::new(Unheld::TimeLimit),
                OwedLook::new(Unheld::Library),
            ],
            events,
            mappings: mappings.ok(),
            gate,
            no_gate: Unheld::NoGate,
            let_go: HashSet::new(),
            mounts: ["/proc/self/mountinfo", "/proc/1/mountinfo"]
                .into_iter()
                .flat_map(File::open)
                .collect(),
            checked: Instant::now(),
            say,
        })
    }

    /// Hears what there is to hear.
    fn tell(&mut self, programs: &mut Programs) -> Heard {
        self.tell_of_starting(programs);
        let mut mapped = false;
        if let Some(gate) = &mut self.gate {
            gate.begin_look();
        }
        let Self {
            events,
            gate,
            no_gate,
            let_go,
            ..
        } = self;
        let started = events.drain(STARTED_AT_ONCE, |pid| {
            let unheld = match gate {
                Some(gate) => {
                    gate.hold_mounts_of(pid);
                    if let_go.remove(&pid) || gate.untold() > 0 {
                        Unheld::TimeLimit
                    } else {
                        Unheld::Filesystem
                    }
                }
                None => *no_gate,
            };
            programs.started(pid, unheld);
        });
        let [starts, libraries] = &mut self.owed;
        if let Some(mappings) = &mut self.mappings {
            libraries.is_owed |= mappings.drain(|event| {
                mapped = true;
                programs.mapped(event);
            });
        }
        let unheard = self.events.untold();
        starts.is_owed |= unheard != self.unheard;
        self.unheard = unheard;
        for look in &mut self.owed {
            if look.due_in(Instant::now()) == Some(Duration::ZERO) {
                look.look(programs);
            }
        }
        Heard {
            anything: started > 0 || mapped,
            may_be_more: started >= STARTED_AT_ONCE,
        }
    }

    /// How long to wait for anything else to happen, after this was heard.
    fn patience(&self, may_be_more: bool, is_pausing: bool) -> Duration {
        let now = Instant::now();
        let looks = self.owed.iter().filter_map(|look| look.due_in(now));
        let has_next = self.gate.as_ref().is_some_and(ExecGate::has_next);
        patience(may_be_more || has_next, is_pausing, looks.min())
    }

    fn tell_of_starting(&mut self, programs: &mut Programs) {
        for _ in 0..STARTING_AT_ONCE {
            let Some(gate) = &mut self.gate else { break };
            let Some(program) = gate.next_program() else {
                break;
            };
            let is_held = program.is_held();
            if !is_held && self.let_go.len() < LET_GO_MAX {
                self.let_go.insert(program.pid());
            }
            let verdict = tell_of(&program, is_held, programs);
            gate.answer(&program, verdict);
        }
        if let Some(gate) = &self.gate {
            programs.count_untold(gate.untold());
        }
    }

    /// At the end: looks at what is still to be looked at, and names programs that were let go on and not
    /// looked at since, if that does not take long.
    fn tell_of_missed(&mut self, programs: &mut Programs) {
        for look in self.owed.iter_mut().filter(|look| look.is_owed) {
            look.look(programs);
        }
        let Some(gate) = &mut self.gate else { return };
        let begun = Instant::now();
        let mut left = 0;
        while let Some(program) = gate.next_program() {
            if program.is_held() {
                continue; // It begins when the gate is gone, and the capture is over.
            }
            match program.file_info() {
                Ok(file) if begun.elapsed() < LAST_LOOK => {
                    let open = || program.executable().ok();
                    programs.came_and_went(&file, &open, Unheld::TimeLimit);
                }
                _ => left += 1,
            }
        }
        programs.count_untold(gate.untold() + left);
    }

    /// What is due about once in a second.
    fn check(&mut self) {
        let Some(gate) = &mut self.gate else { return };
        if self.checked.elapsed() >= HOUSEKEEPING {
            self.checked = Instant::now();
            gate.check();
        }
        if gate.has_ended() {
            (self.say)(&format!(
                "note: the process that holds programs when they start (pid {}) has ended; what they send \
                 in their first milliseconds may be missed from now on",
                gate.guard_pid()
            ));
            self.gate = None;
            self.no_gate = Unheld::NoGuard;
        }
    }
}

/// Looks at a program that is about to start, or has been let go on.
fn tell_of(program: &StartingProgram, is_held: bool, programs: &mut Programs) -> Verdict {
    let open = || program.executable().ok();
    if !is_held {
        // What it is now will be told when it has started, unless it is over already.
        if program.has_ended()
            && let Ok(file) = program.file_info()
        {
            programs.came_and_went(&file, &open, Unheld::TimeLimit);
        }
        return Verdict::GoOn;
    }
    for _ in 0..LOOKS_MAX {
        let Some(process) = program.process() else {
            break;
        };
        let outcome = programs.consider(&Candidate {
            process: &process,
            seen: Seen::Held,
            open: &open,
            still_held: &|| program.is_held(),
        });
        match outcome {
            Outcome::Done => break,
            Outcome::NoInterest => return Verdict::Ignore,
            // Nobody executes it yet, so it may still be written to.
            Outcome::FileChanged => {}
        }
    }
    // If it has changed each time, it is looked at again when it has begun.
    Verdict::GoOn
}

fn run(programs: &Mutex<Programs>, mut sources: Sources, stop: &OwnedFd) {
    // Programs wait for this thread.
    capture::run_promptly();
    // If we keep more than that, nothing is lost but caution.
    let _ = capture::keep_privileges_to_attach();
    let Ok(ends) = lock(programs).as_fd().try_clone_to_owned() else {
        return;
    };
    let mut pace = Pace::new(Instant::now());
    let mut may_be_more = false;
    loop {
        let patience = sources.patience(may_be_more, pace.is_pausing);
        match wait(&ends, &sources, stop, pace.is_pausing, patience) {
            Ok(Woken { stop: true, .. }) | Err(_) => {
                return sources.tell_of_missed(&mut lock(programs));
            }
            Ok(Woken { mounts, .. }) => {
                if mounts && let Some(gate) = &mut sources.gate {
                    gate.hold_new_mounts();
                }
            }
        }
        let mut programs = lock(programs);
        let heard = sources.tell(&mut programs);
        may_be_more = heard.may_be_more;
        if sources.gate.is_some() {
            pace.heard(heard.anything, Instant::now());
        } else {
            pace = Pace::new(Instant::now());
        }
        if let Some(mappings) = &mut sources.mappings {
            // If it fails, it is tried again at the next look; until then files may be told of later.
            let _ = mappings.set_patient(pace.is_busy);
        }
        programs.forget_ended();
        programs.release_idle();
        sources.check();
    }
}

/// How often programs start.
#[derive(Debug)]
struct Pace {
    /// One has just started, so what comes next may wait for a moment.
    is_pausing: bool,
    /// They start all the time, so nobody need tell that there is something to hear of.
    is_busy: bool,
    busy_since: Instant,
    last_heard: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            is_pausing: false,
            is_busy: false,
            busy_since: now,
            last_heard: now,
        }
    }

    /// Whether anything was heard of since the last time.
    fn heard(&mut self, heard: bool, now: Instant) {
        let lull = now.duration_since(self.last_heard) >= LULL;
        if heard {
            if lull {
                self.busy_since = now;
            }
            self.last_heard = now;
        }
        self.is_busy = match (heard, lull) {
            (true, _) => self.last_heard.duration_since(self.busy_since) >= LULL,
            (false, true) => false,
            (false, false) => self.is_busy,
        };
        self.is_pausing = heard || self.is_busy;
    }
}

/// What there was to hear.
struct Heard {
    /// A program has started, or mapped a file.
    anything: bool,
    /// More have started than were heard of in one turn.
    may_be_more: bool,
}

/// A look at all processes, because something was not told of.
#[derive(Debug)]
struct OwedLook {
    is_owed: bool,
    /// Why programs that are found then were not held.
    unheld: Unheld,
    /// The end of the last one.
    looked: Option<Instant>,
}

impl OwedLook {
    fn new(unheld: Unheld) -> Self {
        Self {
            is_owed: false,
            unheld,
            looked: None,
        }
    }

    /// `None` if there is no need to.
    fn due_in(&self, now: Instant) -> Option<Duration> {
        let again = self.looked.map(|looked| looked + LOOK_AGAIN);
        let left = again.map(|again| again.saturating_duration_since(now));
        self.is_owed.then(|| left.unwrap_or_default())
    }

    fn look(&mut self, programs: &mut Programs) {
        let looked = programs.look_at_all(Seen::Started(self.unheld));
        self.done(looked.is_ok(), Instant::now());
    }

    /// If it failed, it is owed still.
    fn done(&mut self, is_done: bool, now: Instant) {
        self.is_owed &= !is_done;
        self.looked = Some(now);
    }
}

/// How long to wait for something to do: not at all if there is more, or as long as a pause takes, or until
/// the next look is due.
fn patience(is_more: bool, is_pausing: bool, look_due: Option<Duration>) -> Duration {
    match (is_more, is_pausing) {
        (true, _) => Duration::ZERO,
        (false, true) => PAUSE,
        (false, false) => HOUSEKEEPING.min(look_due.unwrap_or(HOUSEKEEPING)),
    }
}

/// What there is to do.
struct Woken {
    stop: bool,
    mounts: bool,
}

/// Waits for something to do, no longer than `patience`; while it is `pausing`, nothing is to be heard of what
/// starts and what is mapped until the pause is over.
fn wait(
    ends: &OwnedFd,
    sources: &Sources,
    stop: &OwnedFd,
    pausing: bool,
    patience: Duration,
) -> rustix::io::Result<Woken> {
    let timeout = Timespec {
        tv_sec: patience.as_secs().cast_signed(),
        tv_nsec: patience.subsec_nanos().into(),
    };
    let mut descriptors = vec![
        PollFd::new(stop, PollFlags::IN),
        PollFd::new(ends, PollFlags::IN),
    ];
    if !pausing {
        descriptors.push(PollFd::new(&sources.events, PollFlags::IN));
        let mappings = sources.mappings.as_ref();
        descriptors.extend(mappings.map(|mappings| PollFd::new(mappings, PollFlags::IN)));
    }
    let others = descriptors.len();
    // proc(5): changes of the list of mounts are exceptional conditions.
    let mounts = sources.mounts.iter();
    descriptors.extend(mounts.map(|mounts| PollFd::new(mounts, PollFlags::PRI)));
    let mounts = others..descriptors.len();
    let gate = sources.gate.as_ref();
    descriptors.extend(gate.map(|gate| PollFd::new(gate, PollFlags::IN)));
    match poll(&mut descriptors, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(Woken {
            stop: !descriptors[0].revents().is_empty(),
            mounts: descriptors[mounts]
                .iter()
                .any(|mounts| !mounts.revents().is_empty()),
        }),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_busy_from_one_lull_to_the_next() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut at = |heard, ms| {
            pace.heard(heard, start + Duration::from_millis(ms));
            (pace.is_pausing, pace.is_busy)
        };
        assert_eq!(at(false, 1000), (false, false));
        assert_eq!(at(true, 1001), (true, false));
        assert_eq!(at(false, 1011), (false, false));
        assert_eq!(at(true, 1060), (true, false));
        assert_eq!(at(true, 1101), (true, true));
        assert_eq!(at(false, 1111), (true, true));
        assert_eq!(at(false, 1200), (true, true));
        assert_eq!(at(true, 1200), (true, true));
        assert_eq!(at(false, 1300), (false, false));
        assert_eq!(at(true, 1301), (true, false));
    }

    #[test]
    fn nobody_pauses_while_there_is_more_to_hear_of() {
        assert_eq!(patience(true, true, None), Duration::ZERO);
        assert_eq!(patience(true, false, None), Duration::ZERO);
        assert_eq!(patience(false, true, None), PAUSE);
        assert_eq!(patience(false, false, None), HOUSEKEEPING);
        let soon = Duration::from_millis(30);
        assert_eq!(patience(false, false, Some(soon)), soon);
    }

    #[test]
    fn a_look_after_losses_is_put_off_but_not_forgotten() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut look = OwedLook::new(Unheld::TimeLimit);
        assert_eq!(look.due_in(at(0)), None);
        look.is_owed = true;
        assert_eq!(look.due_in(at(0)), Some(Duration::ZERO));
        look.done(true, at(100));
        assert_eq!(look.due_in(at(5000)), None);
        look.done(true, at(5000));
        look.is_owed = true;
        assert_eq!(look.due_in(at(5300)), Some(Duration::from_millis(700)));
        assert_eq!(look.due_in(at(6000)), Some(Duration::ZERO));
        // It failed.
        look.done(false, at(6000));
        assert_eq!(look.due_in(at(6900)), Some(Duration::from_millis(100)));
    }
}
