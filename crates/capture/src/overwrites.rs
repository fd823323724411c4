//! Word of files that are written to while probes are in them. What is there then is another program, and a
//! breakpoint in the midst of one of its instructions would break it: the kernel puts breakpoints where a
//! file has probes, whatever else is in it by now. Nobody can write to a file while it is executed, so there
//! is time to detach.
//!
//! Source: inotify(7). Nobody tells of what is written by way of a shared mapping, nor of what is written on
//! another machine that shares the file.

use std::collections::HashSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use libbpf_rs::Link;
use rustix::fs::inotify;

use crate::Executable;
use crate::uprobes::drop_at_once;

/// Tells of any number of files.
#[derive(Debug)]
pub(crate) struct Overwrites {
    inotify: OwnedFd,
}

/// A file that is told of: never the same number again once that has been given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct WatchId(i32);

/// Which files have been written to.
#[derive(Debug, Default)]
pub(crate) struct Overwritten {
    some: HashSet<WatchId>,
    /// There was no room to tell which, so it may be any.
    any: bool,
}

impl Overwritten {
    pub(crate) fn has(&self, watch: WatchId) -> bool {
        self.any || self.some.contains(&watch)
    }
}

impl Overwrites {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        Ok(Self {
            inotify: inotify::init(flags)?,
        })
    }

    /// Begins to tell of a file, unless that has begun already, which gives the same number.
    pub(crate) fn watch(&self, file: &Executable) -> io::Result<WatchId> {
        let path = file.descriptor_path();
        let watch = inotify::add_watch(&self.inotify, path, inotify::WatchFlags::MODIFY)?;
        Ok(WatchId(watch))
    }

    pub(crate) fn forget(&self, watch: WatchId) {
        // It is not there if its filesystem has been unmounted.
        let _ = inotify::remove_watch(&self.inotify, watch.0);
    }

    /// Those that have been written to since the last call.
    pub(crate) fn drain(&self) -> Overwritten {
        let mut overwritten = Overwritten::default();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = events.next() {
            let what = event.events();
            overwritten.any |= what.contains(inotify::ReadFlags::QUEUE_OVERFLOW);
            if what.contains(inotify::ReadFlags::MODIFY) {
                overwritten.some.insert(WatchId(event.wd()));
            }
        }
        overwritten
    }
}

impl AsFd for Overwrites {
    /// Readable when there is something to drain.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Probes in files, which are gone from each as soon as [`Self::detach_overwritten`] is called after it has
/// been written to.
pub(crate) struct WatchedLinks {
    links: Vec<(Option<WatchId>, Link)>,
    files: Vec<(WatchId, PathBuf)>,
    overwrites: Option<Overwrites>,
    unwatched: Option<io::Error>,
}

impl WatchedLinks {
    pub(crate) fn new() -> Self {
        let (overwrites, unwatched) = match Overwrites::new() {
            Ok(overwrites) => (Some(overwrites), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            links: Vec::new(),
            files: Vec::new(),
            overwrites,
            unwatched,
        }
    }

    /// To be called before it is made sure for the last time that the file has not changed.
    pub(crate) fn watch(&mut self, file: &Executable) -> Option<WatchId> {
        match self.overwrites.as_ref()?.watch(file) {
            Ok(watch) => {
                if !self.files.iter().any(|(known, _)| *known == watch) {
                    self.files.push((watch, file.name().to_owned()));
                }
                Some(watch)
            }
            Err(error) => {
                self.unwatched = Some(error);
                None
            }
        }
    }

    pub(crate) fn add(&mut self, watch: Option<WatchId>, links: Vec<Link>) {
        self.links
            .extend(links.into_iter().map(|link| (watch, link)));
    }

    /// Why nobody tells of some of the files.
    pub(crate) fn unwatched(&self) -> Option<&io::Error> {
        self.unwatched.as_ref()
    }

    /// Readable when there may be something to detach from.
    pub(crate) fn overwrites(&self) -> Option<BorrowedFd<'_>> {
        self.overwrites.as_ref().map(AsFd::as_fd)
    }

    /// Detaches from files that have been written to. Returns their names.
    pub(crate) fn detach_overwritten(&mut self) -> Vec<PathBuf> {
        let Some(overwrites) = &self.overwrites else {
            return Vec::new();
        };
        let overwritten = overwrites.drain();
        let is_gone = |watch: WatchId| overwritten.has(watch);
        let gone = self
            .links
            .extract_if(.., |(watch, _)| watch.is_some_and(is_gone));
        let mut gone: Vec<_> = gone.map(|(_, link)| link).collect();
        drop_at_once(&mut gone);
        let files = self.files.extract_if(.., |(watch, _)| is_gone(*watch));
        let files = files.inspect(|(watch, _)| overwrites.forget(*watch));
        files.map(|(_, name)| name).collect()
    }

    pub(crate) fn detach(&mut self) {
        let mut links = self.links.drain(..).map(|(_, link)| link).collect();
        drop_at_once(&mut links);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> Executable {
        Executable::open(path).unwrap()
    }

    #[test]
    fn a_file_that_is_written_to_is_told_of_whatever_path_leads_to_it() {
        let name = format!("overwrites-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        let [path, moved, other] = ["a", "b", "c"].map(|name| directory.join(name));
        fs::write(&path, "old").unwrap();
        fs::write(&other, "other").unwrap();
        let overwrites = Overwrites::new().unwrap();
        let watch = overwrites.watch(&open(&path)).unwrap();
        let watch_of_other = overwrites.watch(&open(&other)).unwrap();
        assert_eq!(overwrites.watch(&open(&path)).unwrap(), watch);
        fs::rename(&path, &moved).unwrap();
        let mut permissions = fs::metadata(&moved).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&other, permissions).unwrap();
        assert!(!overwrites.drain().has(watch));

        fs::File::options()
            .write(true)
            .truncate(true)
            .open(&moved)
            .unwrap();
        let overwritten = overwrites.drain();
        assert!(overwritten.has(watch) && !overwritten.has(watch_of_other));
        fs::write(&moved, "new").unwrap();
        overwrites.forget(watch);
        // What it tells of the old watch does not concern the new one.
        let again = overwrites.watch(&open(&moved)).unwrap();
        assert_ne!(again, watch);
        assert!(!overwrites.drain().has(again));
        fs::remove_dir_all(&directory).unwrap();
    }
}
