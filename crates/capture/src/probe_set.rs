//! Uprobes in any number of executables, which come and go while the capture runs: one ring buffer, and
//! one loaded object where the kernel can tell a program which executable it was attached to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::JoinHandle;

use libbpf_rs::{Link, MapCore, MapFlags};

use crate::load::{Repeat, Serving, forget_types, list_types, load};
use crate::overwrites::{Overwrites, WatchId};
use crate::privileges::effective_user_can_trace;
use crate::probes::{attach_all, check_architecture, placements};
use crate::skeleton::{GotlsSkel, types};
use crate::target::{Target, target};
use crate::uprobes::{UprobeKind, drop_at_once};
use crate::{Error, Executable, Options, Reader, Wanted};

/// What is taken from all executables of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// The plaintext of connections.
    Plaintext,
    /// The secrets of TLS sessions.
    Keys,
}

/// Which processes of the executables are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of them.
    EveryProcess,
    /// Only those that [`ProbeSet::want`] was called with; checked in the kernel, before anything is copied.
    WantedProcesses,
}

/// How the executables are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objects {
    /// One object serves all: each probe has a number that leads to its executable (Linux 5.15).
    One,
    /// Each executable has an object of its own; all of them write into the same ring.
    OnePerExecutable,
}

/// How to capture from many executables.
#[derive(Clone, Copy, Debug)]
pub struct SetOptions {
    /// What is the same as for one executable. Its filter for a process has no effect.
    pub options: Options,
    /// What to take.
    pub taking: Taking,
    /// From whom.
    pub selection: Selection,
    /// How to tell executables apart; `None`: as the kernel can do it best.
    pub objects: Option<Objects>,
}

/// One of the executables of a set: the number of its first target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(u32);

/// A TLS package of an executable.
struct Attached {
    // Detached before the programs are unloaded.
    links: Vec<Link>,
    /// If it has an object of its own.
    skeleton: Option<GotlsSkel<'static>>,
    target: Target,
    sites: usize,
    /// Tells if the file is written to.
    watch: Option<WatchId>,
}

/// Executables that are being detached from, for which the kernel takes its time.
struct Leaving {
    executables: Vec<(u32, Attached)>,
    thread: Option<JoinHandle<()>>,
}

/// Uprobes in many executables. They are gone when this is dropped.
pub struct ProbeSet {
    /// By number; one for each TLS package of each executable.
    attached: BTreeMap<u32, Attached>,
    /// Their numbers are not free yet.
    leaving: Vec<Leaving>,
    overwrites: Option<Overwrites>,
    /// Why nobody tells of it if some file is written to.
    unwatched: Option<io::Error>,
    /// Detached from because they were written to, and not told of yet.
    overwritten: Vec<TargetId>,
    /// Has the maps, and the programs if there is one object for all.
    base: GotlsSkel<'static>,
    set: SetOptions,
    objects: Objects,
    kind: UprobeKind,
    ring_bytes: u32,
}

impl std::fmt::Debug for ProbeSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProbeSet")
            .field("targets", &self.attached.len())
            .field("objects", &self.objects)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl ProbeSet {
    /// How many executables can be attached to at the same time; those with several TLS packages count
    /// for each.
    pub const EXECUTABLES_MAX: u32 = 1024;

    /// How many processes can be wanted at the same time.
    pub const PROCESSES_MAX: u32 = 16384;

    /// Loads what can be loaded before any executable is known.
    pub fn new(set: &SetOptions) -> Result<Self, Error> {
        let options = &set.options;
        let ring_bytes = options.ring_bytes()?;
        effective_user_can_trace()?;
        let kind = options.uprobes.unwrap_or_else(|| UprobeKind::best(false));
        let objects = set.objects.unwrap_or_else(|| {
            if kind.has_cookies() {
                Objects::One
            } else {
                Objects::OnePerExecutable
            }
        });
        let programs = match objects {
            Objects::One => programs(set.taking, Repeat::of_this_kernel()),
            Objects::OnePerExecutable => &[],
        };
        let serving = Serving::Many(Self::EXECUTABLES_MAX);
        let selection = Some(set.selection);
        let base = load(serving, selection, programs, kind, options, ring_bytes)?;
        let (overwrites, unwatched) = match Overwrites::new() {
            Ok(overwrites) => (Some(overwrites), None),
            Err(error) => (None, Some(error)),
        };
        Ok(Self {
            attached: BTreeMap::new(),
            leaving: Vec::new(),
            overwrites,
            unwatched,
            overwritten: Vec::new(),
            base,
            set: *set,
            objects,
            kind,
            ring_bytes,
        })
    }

    /// Attaches to an executable, or a shared library, as the plans for its TLS packages say. Either every
    /// probe of it is in place afterwards, or none. Probes that the file has had before it was written to are
    /// gone, as after [`Self::detach_overwritten`].
    pub fn attach(
        &mut self,
        executable: &Executable,
        wanted: &[Wanted<'_>],
    ) -> Result<TargetId, Error> {
        let watch = self.watch(executable);
        // What is there now must not share breakpoints with what was there before.
        let is_overwritten = self.look_for_overwritten(watch);
        let mut id = None;
        let mut attach_all = || {
            if is_overwritten {
                let path = executable.name().to_owned();
                return Err(Error::Changed { path });
            }
            for wanted in wanted {
                let number = self.attach_package(executable, *wanted, id, watch)?;
                id.get_or_insert(TargetId(number));
            }
            id.ok_or_else(|| Error::Load {
                reason: "there is nothing to attach to".into(),
            })
        };
        let attached = attach_all();
        if attached.is_err() {
            self.detach(id.as_slice());
            self.forget_watch(watch);
        }
        attached
    }

    fn watch(&mut self, executable: &Executable) -> Option<WatchId> {
        let watch = self.overwrites.as_ref()?.watch(executable);
        watch.map_err(|error| self.unwatched = Some(error)).ok()
    }

    /// Unless somebody needs it still.
    fn forget_watch(&self, watch: Option<WatchId>) {
        let is_needed = || self.attached.values().any(|other| other.watch == watch);
        if let (Some(watch), Some(overwrites)) = (watch, &self.overwrites)
            && !is_needed()
        {
            overwrites.forget(watch);
        }
    }

    /// Detaches from executables that have been written to. Whether this one is among them.
    fn look_for_overwritten(&mut self, this: Option<WatchId>) -> bool {
        let Some(overwrites) = &self.overwrites else {
            return false;
        };
        let overwritten = overwrites.drain();
        let is_overwritten =
            |watch: Option<WatchId>| watch.is_some_and(|watch| overwritten.has(watch));
        let attached = self.attached.values();
        let gone = attached.filter(|attached| is_overwritten(attached.watch));
        let gone: BTreeSet<_> = gone
            .map(|gone| TargetId(gone.target.arguments.file))
            .collect();
        let gone = Vec::from_iter(gone);
        if !gone.is_empty() {
            self.detach(&gone);
            self.finish_detaching();
            self.overwritten.extend(gone);
        }
        is_overwritten(this)
    }

    /// Detaches from executables that have been written to since they were attached to, waits until that is
    /// done, and returns which they were: what is there now must not get breakpoints that were meant for
    /// something else.
    pub fn detach_overwritten(&mut self) -> Vec<TargetId> {
        self.look_for_overwritten(None);
        std::mem::take(&mut self.overwritten)
    }

    /// Readable when [`Self::detach_overwritten`] is to be called, at once.
    pub fn overwrites(&self) -> Option<BorrowedFd<'_>> {
        self.overwrites.as_ref().map(AsFd::as_fd)
    }

    /// Why nobody tells of it if some of the executables are written to, if that has not been asked before.
    pub fn take_unwatched(&mut self) -> Option<io::Error> {
        self.unwatched.take()
    }

    /// Attaches to one of an executable's packages, of which the first may be attached to already.
    fn attach_package(
        &mut self,
        executable: &Executable,
        wanted: Wanted<'_>,
        first: Option<TargetId>,
        watch: Option<WatchId>,
    ) -> Result<u32, Error> {
        check_architecture(executable, wanted.arch())?;
        let mut target = target(wanted, self.set.options.goroutines)?;
        self.forget_detached();
        let number = self.free_number().ok_or(Error::TooManyExecutables {
            limit: Self::EXECUTABLES_MAX,
        })?;
        target.arguments.file = first.map_or(number, |first| first.0);
        let placements = placements(&wanted, Repeat::of_this_kernel());
        let sites = placements.iter().map(|placed| placed.sites.len()).sum();

        let (links, skeleton) = match self.objects {
            Objects::One => {
                self.describe(number, &target)?;
                let cookie = Some(number.into());
                let base = &mut self.base;
                let links = attach_all(base, self.kind, executable, &placements, None, cookie);
                (links, None)
            }
            Objects::OnePerExecutable => {
                let programs: Vec<_> = placements.iter().map(|placed| placed.program).collect();
                let mut skeleton = self.load_another(number, &target, &programs)?;
                let own = &mut skeleton;
                let links = attach_all(own, self.kind, executable, &placements, None, None);
                (links, Some(skeleton))
            }
        };
        let links = links.inspect_err(|_| forget_types(&self.base, number, &target))?;
        self.attached.insert(
            number,
            Attached {
                links,
                skeleton,
                target,
                sites,
                watch,
            },
        );
        Ok(number)
    }

    /// Tells the one object's programs about an executable.
    fn describe(&self, number: u32, target: &Target) -> Result<(), Error> {
        let executable = types::executable {
            target: target.arguments,
            layout: target.layout,
            ..Default::default()
        };
        // SAFETY: A structure of plain numbers whose padding is spelled out as fields (libbpf-cargo), so
        // all of its bytes are initialised; it lives as long as the slice.
        let value = unsafe {
            std::slice::from_raw_parts(
                std::ptr::from_ref(&executable).cast::<u8>(),
                size_of::<types::executable>(),
            )
        };
        let maps = &self.base.maps;
        maps.executables
            .update(&number.to_ne_bytes(), value, MapFlags::ANY)
            .map_err(map_error("the table of executables"))?;
        list_types(&self.base, number, target).map_err(map_error("the table of types"))
    }

    fn load_another(
        &self,
        number: u32,
        target: &Target,
        programs: &[&str],
    ) -> Result<GotlsSkel<'static>, Error> {
        let serving = Serving::Sharing {
            target,
            number,
            maps: &self.base,
        };
        let selection = Some(self.set.selection);
        let options = &self.set.options;
        load(
            serving,
            selection,
            programs,
            self.kind,
            options,
            self.ring_bytes,
        )
    }

    fn free_number(&self) -> Option<u32> {
        let leaving = self.leaving.iter().flat_map(|leaving| &leaving.executables);
        let leaving: BTreeSet<_> = leaving.map(|(number, _)| number).collect();
        (0..Self::EXECUTABLES_MAX)
            .find(|number| !self.attached.contains_key(number) && !leaving.contains(number))
    }

    /// Begins to detach from some executables, and does not wait for it. Ids that are not there are left
    /// out.
    pub fn detach(&mut self, ids: &[TargetId]) {
        self.forget_detached();
        let is_gone = |target: &Target| ids.contains(&TargetId(target.arguments.file));
        let numbers: Vec<_> = self
            .attached
            .iter()
            .filter(|(_, attached)| is_gone(&attached.target))
            .map(|(number, _)| *number)
            .collect();
        let mut executables: Vec<_> = numbers
            .into_iter()
            .filter_map(|number| Some((number, self.attached.remove(&number)?)))
            .collect();
        for (_, gone) in &executables {
            self.forget_watch(gone.watch);
        }
        let links = executables.iter_mut();
        let mut links: Vec<_> = links.flat_map(|(_, gone)| gone.links.drain(..)).collect();
        let thread = std::thread::Builder::new()
            .name("detach".into())
            .spawn(move || drop_at_once(&mut links));
        self.leaving.push(Leaving {
            executables,
            // If no thread can be had, the links are gone with what it would have done.
            thread: thread.ok(),
        });
    }

    /// Gives the numbers free of those that have been detached from.
    fn forget_detached(&mut self) {
        let is_gone = |leaving: &mut Leaving| {
            let thread = leaving.thread.as_ref();
            thread.is_none_or(JoinHandle::is_finished)
        };
        let gone: Vec<_> = self.leaving.extract_if(.., is_gone).collect();
        gone.into_iter().for_each(|gone| self.forget(gone));
    }

    fn forget(&self, gone: Leaving) {
        for (number, gone) in gone.executables {
            forget_types(&self.base, number, &gone.target);
            drop(gone.skeleton);
        }
    }

    /// Detaches from all of them, which takes no longer for many than for one. What is in the ring buffer
    /// stays there to be read.
    pub fn detach_all(&mut self) {
        let files = self
            .attached
            .values()
            .map(|attached| attached.target.arguments.file);
        let ids: Vec<_> = files.map(TargetId).collect();
        self.detach(&ids);
        self.finish_detaching();
    }

    fn finish_detaching(&mut self) {
        for mut gone in std::mem::take(&mut self.leaving) {
            // If it has panicked, its links are gone too.
            let _ = gone.thread.take().map(JoinHandle::join);
            self.forget(gone);
        }
    }

    /// Captures from this process too, as one that runs this executable, or has mapped this library. A
    /// file that has several identities, because several overlays show it, may be attached to for each; of
    /// a process that was named here, each call is captured once all the same.
    pub fn want(&self, pid: u32, id: TargetId) -> Result<(), Error> {
        let processes = &self.base.maps.wanted_processes;
        // If it is captured anyhow, then only by way of this file from now on.
        let any = (self.set.selection == Selection::EveryProcess).then_some(ANY_FILE);
        [Some(id.0), any]
            .into_iter()
            .flatten()
            .try_for_each(|file| {
                processes
                    .update(&process_file(pid, file), &[1], MapFlags::ANY)
                    .map_err(map_error("the table of wanted processes"))
            })
    }

    /// No longer captures from this process by way of these files.
    pub fn unwant(&self, pid: u32, ids: impl IntoIterator<Item = TargetId>) {
        let files = ids.into_iter().map(|id| id.0).chain([ANY_FILE]);
        for file in files {
            // It need not be there.
            let key = process_file(pid, file);
            let _ = self.base.maps.wanted_processes.delete(&key);
        }
    }

    /// The reading end of the ring buffer. There is one.
    pub fn reader(&self) -> Result<Reader, Error> {
        Reader::new(
            self.base.maps.ring.as_fd(),
            self.ring_bytes.into(),
            self.base.maps.bss.as_fd(),
        )
    }

    /// How many instructions are probed.
    pub fn sites(&self) -> usize {
        self.attached.values().map(|attached| attached.sites).sum()
    }
}

/// gotls.bpf.c
const ANY_FILE: u32 = u32::MAX;

/// gotls.bpf.c, struct process_file.
fn process_file(pid: u32, file: u32) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&pid.to_ne_bytes());
    key[4..].copy_from_slice(&file.to_ne_bytes());
    key
}

/// All programs that some executable may need.
fn programs(taking: Taking, repeat: Repeat) -> &'static [&'static str] {
    match (taking, repeat) {
        (Taking::Keys, _) => &["write_key_log", "write_key_log_unlabelled", "master_secret"],
        (Taking::Plaintext, Repeat::ByHelper) => {
            &["close_conn", "read_copy", "read_return", "write_record"]
        }
        (Taking::Plaintext, Repeat::ByWalking) => &[
            "close_conn",
            "read_copy_walked",
            "read_return_walked",
            "write_record_walked",
        ],
    }
}

fn map_error(what: &'static str) -> impl Fn(libbpf_rs::Error) -> Error {
    move |error| Error::Load {
        reason: format!("{what}: {error}"),
    }
}
