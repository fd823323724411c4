//! Which executables are captured, and which processes run them: each file is analysed once and attached
//! to once, however many processes run it, and released when the last one has ended.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use capture::{
    Executable, Identity, Library, MappedFileId, MappingEvent, ProbeSet, Process, ProcessInfo,
    TargetId,
};
use gobin::{Analysis, ReadSitePreference};
use rustix::event::{Timespec, epoll};
use trace::escape_name;

use crate::container::Container;
use crate::failure::Failure;
use crate::gotls::note_on_process_out_of_sight;
use crate::keylog_mode;
use crate::list::refused;
use crate::missed::{Missed, Unheld};
use crate::parts::{FilePlans, analyze_library};
use crate::places::KnownPlaces;
use crate::selectors::Selectors;

/// How long an executable stays attached that nobody runs any more: a program that is started again
/// and again is not analysed and attached each time.
const LINGER: Duration = Duration::from_secs(2);

/// What is known of so many files is remembered.
const REMEMBERED_MAX: usize = 16384;

/// So often a file is looked at that turns out to be another one, or to have changed, each time.
pub(crate) const LOOKS_MAX: usize = 3;

/// How many files other parts of the program may have open.
const OTHER_FILES: usize = 512;

/// Stands for files that have been written to, where else a pid is.
const OVERWRITES: u64 = u64::MAX;

/// A file as it is now: one that was replaced may have got the inode number of the one before.
pub(crate) type FileKey = (Identity, i128);

/// What to take from each program.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Take {
    Plaintext(ReadSitePreference),
    Keys,
}

/// What was found in a file.
#[derive(Debug)]
enum Known {
    /// No Go program, or one without TLS.
    Nothing,
    /// Can't be captured, for this reason, which the user has been told or not.
    Refused {
        reason: String,
        told: bool,
    },
    Program(FilePlans),
}

#[derive(Debug)]
struct Attached {
    id: TargetId,
    /// For messages.
    name: PathBuf,
    processes: BTreeSet<u32>,
    /// Asked for by its path: stays attached whoever runs it.
    pinned: bool,
    /// Since when nobody runs it.
    idle: Option<Instant>,
}

/// A process that is captured.
#[derive(Debug)]
struct Tracked {
    /// What it executes.
    file: FileKey,
    /// It executes the file; before that, it is about to.
    begun: bool,
    /// Where it is captured: the file that it executes, and libraries that it has mapped.
    captured: HashSet<FileKey>,
    /// Its pidfd, unless there are too many.
    _process: Option<Process>,
}

/// How a process came to our attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It ran when the capture began.
    Running,
    /// It has begun to run, and went on while we looked.
    Started(Unheld),
    /// It is about to begin, and waits for us.
    Held,
}

/// A process to look at.
pub(crate) struct Candidate<'a> {
    pub(crate) process: &'a ProcessInfo,
    pub(crate) seen: Seen,
    /// Opens its executable.
    pub(crate) open: &'a dyn Fn() -> Option<Executable>,
    /// Whether one that was held still is: asked once everything is in place.
    pub(crate) still_held: &'a dyn Fn() -> bool,
}

/// What came of looking at a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is captured, or might be meant another time.
    Done,
    /// Nobody is meant who executes this file.
    NoInterest,
    /// What it executes is not the file any more that it was said to be, or has changed meanwhile: has to be
    /// looked at anew.
    FileChanged,
}

/// A file that is not the one any more that was to be looked at, or has changed meanwhile.
#[derive(Debug)]
struct FileChanged;

/// What the capture came to, for the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) executables: usize,
    pub(crate) processes: usize,
    /// Executables that can't be captured.
    pub(crate) refused: usize,
    /// Programs, of whatever kind, that began while too many others waited, and were not told of.
    pub(crate) untold: u64,
    /// Processes that ran when the capture began and were looked at.
    pub(crate) looked_at: usize,
}

/// The programs of a capture.
#[derive(Debug)]
pub(crate) struct Programs {
    probes: ProbeSet,
    selectors: Selectors,
    take: Take,
    /// Where the processes run, for the consumer.
    places: KnownPlaces,
    known: HashMap<FileKey, Known>,
    /// Files that are mapped executable again and again, and are no libraries with Go code.
    boring: HashSet<MappedFileId>,
    /// Files of which the user knows that they change again and again.
    restless: HashSet<Identity>,
    attached: HashMap<FileKey, Attached>,
    processes: HashMap<u32, Tracked>,
    /// Tells of processes that have ended, and of files that have been written to.
    ends: OwnedFd,
    /// How many descriptors there may be for that.
    pidfds_max: usize,
    totals: Totals,
    /// Those that began to run before they were attached to, or listed.
    missed: Missed,
    /// The user knows that there are processes which are not seen from here.
    told_of_out_of_sight: bool,
    /// Notes for the user.
    say: fn(&str),
}

impl Programs {
    pub(crate) fn new(
        probes: ProbeSet,
        selectors: Selectors,
        take: Take,
        places: KnownPlaces,
        say: fn(&str),
    ) -> std::io::Result<Self> {
        let ends = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if let Some(overwrites) = probes.overwrites() {
            let event = epoll::EventData::new_u64(OVERWRITES);
            epoll::add(&ends, overwrites, event, epoll::EventFlags::IN)?;
        }
        Ok(Self {
            probes,
            selectors,
            take,
            places,
            known: HashMap::new(),
            boring: HashSet::new(),
            restless: HashSet::new(),
            attached: HashMap::new(),
            processes: HashMap::new(),
            ends,
            pidfds_max: capture::raise_limit_of_open_files().saturating_sub(OTHER_FILES),
            totals: Totals::default(),
            missed: Missed::default(),
            told_of_out_of_sight: false,
            say,
        })
    }

    pub(crate) fn probes(&self) -> &ProbeSet {
        &self.probes
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn missed(&self) -> &Missed {
        &self.missed
    }

    /// Attaches to the files that were asked for by their paths, whoever runs them. One that can't be
    /// captured is a mistake.
    pub(crate) fn pin_executables(&mut self) -> Result<(), Failure> {
        for path in self.selectors.executables.clone() {
            let executable = Executable::open(&path)?;
            let (plans, refusals) =
                plan(&executable, self.take)?.map_err(|error| Failure::executable(&path, error))?;
            self.tell_of_packages(&executable, &refusals);
            let file = (executable.identity(), executable.changed_ns());
            self.known.insert(file, Known::Program(plans));
            self.attach(file, &executable)?;
            if let Some(attached) = self.attached.get_mut(&file) {
                attached.pinned = true;
            }
        }
        Ok(())
    }

    /// Looks at all processes that run now. Returns how many that could be meant may not be looked at.
    pub(crate) fn look_at_all(&mut self, seen: Seen) -> Result<usize, capture::Error> {
        let (processes, hidden) = capture::running()?;
        for process in &processes {
            self.look_at(process, seen);
            for library in Library::of(process.pid) {
                self.consider_library(process, &library, seen);
            }
        }
        if seen == Seen::Running {
            self.totals.looked_at = processes.len();
        }
        let hidden = hidden.into_iter();
        Ok(hidden
            .filter(|&pid| self.selectors.may_mean_pid(pid))
            .count())
    }

    /// A process has executed a file. It was not held, for this reason, unless we know of it already.
    pub(crate) fn started(&mut self, pid: u32, unheld: Unheld) {
        // Most programs are of no interest, and looking at all of a process costs more than at its file.
        let file = capture::executed_file(pid);
        if file.is_some_and(|file| matches!(self.known.get(&file), Some(Known::Nothing))) {
            if self
                .processes
                .get(&pid)
                .is_some_and(|tracked| tracked.begun)
            {
                self.ended(pid);
            }
            return;
        }
        match ProcessInfo::of(pid) {
            Ok(Some(process)) => self.look_at(&process, Seen::Started(unheld)),
            // It has ended, or we may not look.
            Ok(None) | Err(_) => self.ended(pid),
        }
    }

    /// A process has executed this program without being held, and has ended.
    pub(crate) fn came_and_went(
        &mut self,
        program: &ProcessInfo,
        open: &dyn Fn() -> Option<Executable>,
        unheld: Unheld,
    ) {
        let file = (program.identity, program.changed_ns);
        if self.selectors.may_mean(program) {
            // Of one that has changed since nothing can be said.
            let learned = self.learn(file, open, plan);
            if learned.is_ok() && matches!(self.known.get(&file), Some(Known::Program(_))) {
                self.missed.count(&program.executable, unheld);
            }
        }
    }

    fn look_at(&mut self, process: &ProcessInfo, seen: Seen) {
        let mut process = Cow::Borrowed(process);
        for _ in 0..LOOKS_MAX {
            let outcome = self.consider(&Candidate {
                process: &process,
                seen,
                open: &|| Executable::of_process(&process.open().ok()?).ok(),
                still_held: &|| false,
            });
            if outcome != Outcome::FileChanged {
                return;
            }
            match ProcessInfo::of(process.pid) {
                Ok(Some(newer)) => process = Cow::Owned(newer),
                // It has ended, or we may not look.
                Ok(None) | Err(_) => return self.ended(process.pid),
            }
        }
        self.tell_of_changes(&process, process.identity, "its file");
    }

    /// A process has mapped a file executable.
    pub(crate) fn mapped(&mut self, event: &MappingEvent) {
        if event.pid == std::process::id() || self.boring.contains(&event.file) {
            return;
        }
        let Ok(Some(process)) = ProcessInfo::of(event.pid) else {
            return;
        };
        let from_event = Library::of_event(event);
        // In an overlay the event's path may be that of the file behind it.
        let libraries = from_event.map_or_else(|| Library::of(event.pid), |library| vec![library]);
        // Where the process has ended meanwhile, or has it mapped no longer, it was not looked at.
        let is_there = |library: &Library| library.identity.inode == event.inode;
        let is_executable = process.identity.inode == event.inode;
        let was_looked_at = is_executable || libraries.iter().any(is_there);
        let mut has_go = false;
        for library in libraries {
            if library.identity != process.identity {
                let seen = Seen::Started(Unheld::Library);
                has_go |= self.consider_library(&process, &library, seen);
            }
        }
        if was_looked_at && !has_go {
            if self.boring.len() >= REMEMBERED_MAX {
                self.boring.clear();
            }
            self.boring.insert(event.file);
        }
    }

    /// Captures from a library that a process has mapped if it is meant and can be. Whether there is Go
    /// code in it.
    fn consider_library(&mut self, process: &ProcessInfo, library: &Library, seen: Seen) -> bool {
        let mut library = Cow::Borrowed(library);
        for _ in 0..LOOKS_MAX {
            if let Ok(has_go) = self.try_library(process, &library, seen) {
                return has_go;
            }
            match library.look_again(process.pid) {
                Some(newer) => library = Cow::Owned(newer),
                // No longer mapped; nobody knows what it was.
                None => return true,
            }
        }
        let container = Container::of(process);
        let container = container.as_ref();
        if self
            .selectors
            .matches_with(process, container, Some(&library))
        {
            let name = format!("its library {}", library.name.display());
            self.tell_of_changes(process, library.identity, &name);
        }
        true
    }

    fn try_library(
        &mut self,
        process: &ProcessInfo,
        library: &Library,
        seen: Seen,
    ) -> Result<bool, FileChanged> {
        let file = (library.identity, library.changed_ns);
        let is_gone = Cell::new(false);
        let open = || match library.open_file() {
            Ok(executable) => Some(executable),
            Err(error) => {
                is_gone.set(error.kind() == ErrorKind::NotFound);
                None
            }
        };
        self.learn(file, &open, plan_library)?;
        match self.known.get(&file) {
            Some(Known::Program(_) | Known::Refused { .. }) => {}
            Some(Known::Nothing) => return Ok(false),
            None if is_gone.get() => return Err(FileChanged),
            // It can't be opened.
            None => return Ok(true),
        }
        let is_captured = |tracked: &Tracked| tracked.captured.contains(&file);
        let container = Container::of(process);
        let meant = process.pid != std::process::id()
            && self
                .selectors
                .matches_with(process, container.as_ref(), Some(library));
        if !meant || self.processes.get(&process.pid).is_some_and(is_captured) {
            return Ok(true);
        }
        if let Some(Known::Program(_)) = self.known.get(&file) {
            self.places.set(process.pid, container);
            let candidate = Candidate {
                process,
                seen,
                open: &open,
                still_held: &|| false,
            };
            self.begin(&candidate, file)?;
            if is_gone.get() {
                return Err(FileChanged);
            }
        } else {
            self.tell_refusal(process, file);
        }
        Ok(true)
    }

    /// Captures from a process if it is meant and can be.
    pub(crate) fn consider(&mut self, candidate: &Candidate<'_>) -> Outcome {
        if candidate.seen == Seen::Held {
            // Once it begins, it is too late.
            self.release_overwritten();
        }
        let outcome = self.try_process(candidate);
        outcome.unwrap_or(Outcome::FileChanged)
    }

    fn try_process(&mut self, candidate: &Candidate<'_>) -> Result<Outcome, FileChanged> {
        let Candidate { process, seen, .. } = *candidate;
        let file = (process.identity, process.changed_ns);
        if seen != Seen::Held && self.is_tracked(process, file) {
            return Ok(Outcome::Done);
        }
        let container = Container::of(process);
        let meant = process.pid != std::process::id()
            && self.selectors.matches(process, container.as_ref());
        if !meant && seen != Seen::Held {
            return Ok(Outcome::Done);
        }
        self.learn(file, candidate.open, plan)?;
        match self.known.get(&file) {
            Some(Known::Program(_)) if meant => {
                self.places.set(process.pid, container);
                self.begin(candidate, file)?;
            }
            Some(Known::Refused { .. }) if meant => self.tell_refusal(process, file),
            Some(Known::Program(_)) if self.selectors.are_about_processes() => {
                return Ok(Outcome::Done);
            }
            // It can't be opened now.
            None => return Ok(Outcome::Done),
            _ => return Ok(Outcome::NoInterest),
        }
        Ok(match self.known.get(&file) {
            Some(Known::Refused { .. }) => Outcome::NoInterest,
            _ => Outcome::Done,
        })
    }

    /// Whether this process is captured already. If it has begun to execute something else than we
    /// know of, it is forgotten.
    fn is_tracked(&mut self, process: &ProcessInfo, file: FileKey) -> bool {
        let pid = process.pid;
        match self.processes.get_mut(&pid) {
            Some(tracked) if tracked.file == file => {
                if !std::mem::replace(&mut tracked.begun, true) {
                    // It has its own environment only now.
                    self.places.set(pid, Container::of(process));
                }
                true
            }
            // What it executed before the file that it is about to.
            Some(tracked) if !tracked.begun => true,
            Some(_) => {
                self.ended(pid);
                false
            }
            None => false,
        }
    }

    /// Analyses a file, unless that has been done. It is not known then if it could not be opened or read.
    fn learn(
        &mut self,
        file: FileKey,
        open: &dyn Fn() -> Option<Executable>,
        plan: fn(&Executable, Take) -> PlanResult,
    ) -> Result<(), FileChanged> {
        if self.known.contains_key(&file) {
            return Ok(());
        }
        let Some(executable) = open_same(file, open)? else {
            return Ok(());
        };
        let known = match plan(&executable, self.take) {
            Ok(Ok((plans, refusals))) => {
                self.tell_of_packages(&executable, &refusals);
                Known::Program(plans)
            }
            Ok(Err(error)) if is_go(&error) || refused(&error).is_some() => Known::Refused {
                reason: error.to_string(),
                told: false,
            },
            Ok(Err(_)) => Known::Nothing,
            Err(capture::Error::Changed { .. }) => return Err(FileChanged),
            // It can't be read now; that it is Go's is not known.
            Err(_) => return Ok(()),
        };
        if self.known.len() >= REMEMBERED_MAX {
            let attached = &self.attached;
            self.known.retain(|file, _| attached.contains_key(file));
        }
        self.known.insert(file, known);
        Ok(())
    }

    /// Captures from a process.
    fn begin(&mut self, candidate: &Candidate<'_>, file: FileKey) -> Result<(), FileChanged> {
        let Candidate { process, seen, .. } = *candidate;
        if capture::is_out_of_sight(process.pid) {
            if !std::mem::replace(&mut self.told_of_out_of_sight, true) {
                (self.say)(&note_on_process_out_of_sight(process));
            }
            return Ok(());
        }
        let is_new = !self.attached.contains_key(&file);
        let mut name = process.executable.clone();
        if is_new {
            let Some(executable) = open_same(file, candidate.open)? else {
                return Ok(());
            };
            // Of a library it is another.
            name = executable.name().to_owned();
            match self.attach(file, &executable) {
                Ok(()) => {}
                Err(capture::Error::Changed { .. }) => return Err(FileChanged),
                Err(error) => {
                    let reason = error.to_string();
                    let told = false;
                    self.known.insert(file, Known::Refused { reason, told });
                    self.tell_refusal(process, file);
                    return Ok(());
                }
            }
        }
        self.track(process, file, seen);
        let unheld = match seen {
            Seen::Started(unheld) => Some(unheld),
            Seen::Held if !(candidate.still_held)() => Some(Unheld::TimeLimit),
            Seen::Held | Seen::Running => None,
        };
        let unheld = unheld.filter(|_| is_new || self.selectors.are_about_processes());
        if let Some(unheld) = unheld {
            self.missed.count(&process.executable, unheld);
        }
        if is_new && seen != Seen::Running {
            let name = escape_name(name.as_os_str().as_encoded_bytes());
            let how = match unheld {
                Some(_) => ", which had begun already",
                None => "",
            };
            (self.say)(&format!("also capturing {name} (pid {}){how}", process.pid));
        }
        Ok(())
    }

    /// Says once why a file can't be captured.
    fn tell_refusal(&mut self, process: &ProcessInfo, file: FileKey) {
        if let Some(Known::Refused { reason, told }) = self.known.get_mut(&file)
            && !std::mem::replace(told, true)
        {
            let reason = reason.clone();
            self.totals.refused += 1;
            self.refuse(process, &reason);
        }
    }

    /// Says once that a file can't be captured because it is another one each time that it is looked at.
    fn tell_of_changes(&mut self, process: &ProcessInfo, file: Identity, name: &str) {
        if self.restless.len() < REMEMBERED_MAX && self.restless.insert(file) {
            self.totals.refused += 1;
            self.refuse(process, &format!("{name} changes again and again"));
        }
    }

    fn refuse(&self, process: &ProcessInfo, reason: &str) {
        let name = process.executable.display();
        let line = format!(
            "note: pid {}, {name}, can't be captured: {reason}",
            process.pid
        );
        (self.say)(&escape_name(line.as_bytes()));
    }

    fn attach(&mut self, file: FileKey, executable: &Executable) -> Result<(), capture::Error> {
        if self.attached.contains_key(&file) {
            return Ok(());
        }
        let Some(Known::Program(plans)) = self.known.get(&file) else {
            return Ok(());
        };
        for note in keylog_mode::notes(plans) {
            let name = escape_name(executable.name().as_os_str().as_encoded_bytes());
            (self.say)(&format!("{note} ({name})"));
        }
        let id = self.probes.attach(executable, &plans.wanted());
        self.release_overwritten();
        if let Some(error) = self.probes.take_unwatched() {
            (self.say)(&unwatched(&error));
        }
        let id = id?;
        self.totals.executables += 1;
        let attached = Attached {
            id,
            name: executable.name().to_owned(),
            processes: BTreeSet::new(),
            pinned: false,
            idle: Some(Instant::now()),
        };
        self.attached.insert(file, attached);
        Ok(())
    }

    /// Says why packages of an executable are left out.
    fn tell_of_packages(&self, executable: &Executable, refusals: &[gobin::Error]) {
        for error in refusals {
            let note = format!("note: {}: {error}", executable.name().display());
            (self.say)(&escape_name(note.as_bytes()));
        }
    }

    /// Has a process captured by way of a file that is attached to.
    fn track(&mut self, info: &ProcessInfo, file: FileKey, seen: Seen) {
        let executed = (info.identity, info.changed_ns);
        let is_another = |tracked: &Tracked| tracked.file != executed;
        if seen == Seen::Held || self.processes.get(&info.pid).is_some_and(is_another) {
            // It may be about to execute something else than we knew of.
            self.ended(info.pid);
        }
        let Ok(process) = info.open() else { return };
        let Some(id) = self.attached.get(&file).map(|attached| attached.id) else {
            return;
        };
        if let Err(error) = self.probes.want(info.pid, id) {
            self.refuse(info, &error.to_string());
            return;
        }
        if let Some(attached) = self.attached.get_mut(&file) {
            attached.processes.insert(info.pid);
            attached.idle = None;
        }
        if let Some(tracked) = self.processes.get_mut(&info.pid) {
            tracked.captured.insert(file);
            return;
        }
        // Without its end the process is forgotten when its number is used again.
        let process = (self.processes.len() < self.pidfds_max).then_some(process);
        if let Some(process) = &process {
            let end = epoll::EventData::new_u64(info.pid.into());
            let _ = epoll::add(&self.ends, process.as_fd(), end, epoll::EventFlags::IN);
        }
        let tracked = Tracked {
            file: executed,
            begun: seen != Seen::Held,
            captured: HashSet::from([file]),
            _process: process,
        };
        self.processes.insert(info.pid, tracked);
        self.totals.processes += 1;
    }

    pub(crate) fn count_untold(&mut self, untold: u64) {
        self.totals.untold = untold;
    }

    /// Forgets a process.
    fn ended(&mut self, pid: u32) {
        let Some(tracked) = self.processes.remove(&pid) else {
            return;
        };
        let attached = tracked.captured.iter();
        let attached = attached.filter_map(|file| self.attached.get(file));
        self.probes
            .unwant(pid, attached.map(|attached| attached.id));
        for file in &tracked.captured {
            if let Some(attached) = self.attached.get_mut(file) {
                attached.processes.remove(&pid);
                if attached.processes.is_empty() {
                    attached.idle = Some(Instant::now());
                }
            }
        }
    }

    /// Forgets processes that have ended, and lets go of files that have been written to.
    pub(crate) fn forget_ended(&mut self) {
        let event = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        };
        let mut events = [event; 64];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        while let Ok(count @ 1..) = epoll::wait(&self.ends, &mut events[..], Some(&at_once)) {
            for event in &events[..count] {
                match event.data.u64() {
                    OVERWRITES => self.release_overwritten(),
                    // It was made from a pid.
                    pid => self.ended(pid as u32),
                }
            }
        }
    }

    /// Detaches from executables that nobody has run for a while.
    pub(crate) fn release_idle(&mut self) {
        let is_idle = |attached: &Attached| {
            !attached.pinned && attached.idle.is_some_and(|since| since.elapsed() > LINGER)
        };
        let gone: Vec<_> = self
            .attached
            .extract_if(|_, attached| is_idle(attached))
            .map(|(_, attached)| attached.id)
            .collect();
        if !gone.is_empty() {
            self.probes.detach(&gone);
        }
    }

    /// Detaches from files that have been written to since they were attached to. If one is executed or
    /// loaded again, it is looked at as any other that has not been seen before.
    fn release_overwritten(&mut self) {
        let overwritten = self.probes.detach_overwritten();
        let is_overwritten = |attached: &Attached| overwritten.contains(&attached.id);
        let gone = self
            .attached
            .extract_if(|_, attached| is_overwritten(attached));
        for (file, attached) in gone {
            // Clocks of changes may be coarse: what is there now may have the same time.
            self.known.remove(&file);
            for pid in attached.processes {
                self.probes.unwant(pid, [attached.id]);
                if let Some(tracked) = self.processes.get_mut(&pid) {
                    tracked.captured.remove(&file);
                }
            }
            let name = escape_name(attached.name.as_os_str().as_encoded_bytes());
            (self.say)(&format!(
                "note: {name} was overwritten: its probes are gone"
            ));
        }
    }

    /// Detaches from everything.
    pub(crate) fn detach(&mut self) {
        self.probes.detach_all();
    }
}

impl AsFd for Programs {
    /// Readable when a process has ended, or a file has been written to.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ends.as_fd()
    }
}

/// What to say if nobody tells of files that are written to.
pub(crate) fn unwatched(error: &std::io::Error) -> String {
    format!(
        "note: nobody tells if a file is overwritten while it is captured ({error}); a program that is, and \
         not replaced, may crash at its start"
    )
}

/// Opens a file: what is known of one must never be applied to another. `None` if it can't be opened.
fn open_same(
    (identity, changed_ns): FileKey,
    open: &dyn Fn() -> Option<Executable>,
) -> Result<Option<Executable>, FileChanged> {
    match open() {
        Some(executable) if !executable.is(identity, changed_ns) => Err(FileChanged),
        opened => Ok(opened),
    }
}

/// Plans, and why packages are left out.
type Planned = (FilePlans, Vec<gobin::Error>);

/// The outer error is for reading the file, the inner one for what is in there.
type PlanResult = Result<Result<Planned, gobin::Error>, capture::Error>;

fn plan(executable: &Executable, take: Take) -> PlanResult {
    let analysis = executable.read(gobin::analyze)?;
    Ok(analysis.and_then(|analysis| plan_analyzed(&analysis, take)))
}

fn plan_library(library: &Executable, take: Take) -> PlanResult {
    let analysis = analyze_library(library)?.unwrap_or(Err(gobin::Error::NotGo));
    Ok(analysis.and_then(|analysis| plan_analyzed(&analysis, take)))
}

fn plan_analyzed(analysis: &Analysis, take: Take) -> Result<Planned, gobin::Error> {
    match take {
        Take::Plaintext(preference) => FilePlans::plaintext(analysis, preference),
        Take::Keys => FilePlans::keys(analysis),
    }
}

/// Errors about something of Go that has TLS.
fn is_go(error: &gobin::Error) -> bool {
    use gobin::Error;

    matches!(
        error,
        Error::FunctionNotFound { .. }
            | Error::NoUsableSite { .. }
            | Error::AbiMismatch { .. }
            | Error::NamesNotFound
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;
    use std::process::Command;

    use capture::{Filters, MappingEvents, Options, Selection, SetOptions, Taking};
    use xtask::matrix::{GoRelease, Program, Variant, binary};
    use xtask::process::Child;

    use super::*;

    fn programs() -> Programs {
        let set = SetOptions {
            options: Options {
                filters: Filters::default(),
                bytes_per_call: None,
                goroutines: false,
                ring_kib: 64,
                uprobes: None,
            },
            taking: Taking::Plaintext,
            selection: Selection::EveryProcess,
            objects: None,
        };
        let probes = ProbeSet::new(&set)
            .unwrap_or_else(|error| panic!("needs root: run `cargo xtask test` ({error})"));
        let take = Take::Plaintext(ReadSitePreference::Auto);
        let places = KnownPlaces::default();
        Programs::new(probes, Selectors::default(), take, places, |_| {}).unwrap()
    }

    /// A process as if it executed this file.
    fn process_of(process: &Child, executable: &Executable) -> ProcessInfo {
        ProcessInfo {
            identity: executable.identity(),
            changed_ns: executable.changed_ns(),
            ..ProcessInfo::of(process.pid()).unwrap().unwrap()
        }
    }

    #[test]
    #[ignore = "needs root and the test binaries: run `cargo xtask test`"]
    fn what_is_known_of_a_file_is_applied_to_no_other() {
        let path = |release| binary(release, Variant::Default, Program::Exchange).unwrap();
        let (path, other_path) = (path(GoRelease::Go1_24), path(GoRelease::Go1_26));
        let open = |path: &Path| Executable::open(path).ok();
        let sleeping = Child::spawn(Command::new("sleep").arg("600")).unwrap();
        let executable = open(&path).unwrap();
        let process = process_of(&sleeping, &executable);
        let file = (executable.identity(), executable.changed_ns());
        let mut programs = programs();
        let mut consider = |open: &dyn Fn() -> Option<Executable>| {
            let outcome = programs.consider(&Candidate {
                process: &process,
                seen: Seen::Running,
                open,
                still_held: &|| false,
            });
            let is_known = programs.known.contains_key(&file);
            (outcome, is_known, programs.probes.sites() > 0)
        };

        let replaced = consider(&|| open(&other_path));
        assert_eq!(replaced, (Outcome::FileChanged, false, false));
        let opened = Cell::new(false);
        let replaced_after_analysis = consider(&|| {
            let is_second = opened.replace(true);
            open(if is_second { &other_path } else { &path })
        });
        assert_eq!(replaced_after_analysis, (Outcome::FileChanged, true, false));
        assert_eq!(consider(&|| open(&path)), (Outcome::Done, true, true));
    }

    #[test]
    #[ignore = "needs root: run `cargo xtask test`"]
    fn a_library_that_is_mapped_no_longer_is_looked_at_the_next_time() {
        const SCRIPT: &str = r#"unset LD_PRELOAD; rm "$0"; exec sleep 600"#;

        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("preloaded.so");
        let ours = Library::of(std::process::id());
        let is_it = |ours: &&Library| ours.name.to_string_lossy().contains("libz.so");
        std::fs::copy(&ours.iter().find(is_it).unwrap().name, &library).unwrap();
        let inode = Executable::open(&library).unwrap().identity().inode;
        let mut events = MappingEvents::watch().unwrap();
        let mut sh = Command::new("sh");
        sh.args(["-c", SCRIPT])
            .arg(&library)
            .env("LD_PRELOAD", &library);
        let process = Child::spawn(&mut sh).unwrap();
        let info = || ProcessInfo::of(process.pid()).unwrap().unwrap();
        while info().comm != b"sleep" || Library::of(process.pid()).is_empty() {
            std::thread::yield_now();
        }
        assert!(!library.exists());

        let mut programs = programs();
        let mut mapped = None;
        events.drain(|event| {
            if event.pid == process.pid() {
                programs.mapped(event);
                if event.inode == inode {
                    mapped = Some(event.file);
                }
            }
        });
        assert!(!programs.boring.contains(&mapped.unwrap()));
        assert!(!programs.boring.is_empty(), "others were looked at");
    }

    #[test]
    #[ignore = "needs root and the test binaries: run `cargo xtask test`"]
    fn a_file_that_changes_while_it_is_looked_at_is_not_probed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("changing");
        let original = binary(GoRelease::Go1_24, Variant::Default, Program::Exchange);
        std::fs::copy(original.unwrap(), &path).unwrap();
        let sleeping = Child::spawn(Command::new("sleep").arg("600")).unwrap();
        let open = || Executable::open(&path).ok();
        let change = || {
            let mut file = std::fs::File::options().append(true).open(&path).unwrap();
            file.write_all(b"more").unwrap();
        };
        let mut programs = programs();
        let mut consider = |open: &dyn Fn() -> Option<Executable>| {
            let process = process_of(&sleeping, &Executable::open(&path).unwrap());
            let outcome = programs.consider(&Candidate {
                process: &process,
                seen: Seen::Running,
                open,
                still_held: &|| false,
            });
            (outcome, programs.known.len(), programs.probes.sites() > 0)
        };

        let changed = consider(&|| open().inspect(|_| change()));
        assert_eq!(changed, (Outcome::FileChanged, 0, false));
        let opened = Cell::new(false);
        let changed_after_analysis = consider(&|| {
            let is_second = opened.replace(true);
            open().inspect(|_| {
                if is_second {
                    change()
                }
            })
        });
        assert_eq!(changed_after_analysis, (Outcome::FileChanged, 1, false));
        assert_eq!(consider(&open), (Outcome::Done, 2, true));
    }
}
