//! Where outputs go: no two of them, and not the log, to one file, however it is spelled; nor to the recording that
//! is replayed.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use rustix::fs::{FileType, Stat, fstat, stat};
use rustix::io::Errno;

use crate::args::{Mode, OutputArgs};
use crate::failure::Failure;
use crate::pipeline::Destination;

/// Refuses what would end up in one place, before anything is opened to be written. `input` is the recording that is
/// replayed.
pub(crate) fn check(
    args: &OutputArgs,
    mode: Mode,
    recording: Option<&Path>,
    input: Option<&Path>,
) -> Result<(), Failure> {
    let wrong = |error| Err(Failure::WrongInput(anyhow!("{error}")));
    let mut places: Vec<_> = destinations(args, mode, recording)
        .into_iter()
        .map(Place::of_output)
        .collect();
    places.extend(args.logaddr.as_deref().map(Place::of_log));
    if let Some(input) = input.and_then(FileId::of_input)
        && let Some(place) = places
            .iter()
            .find(|place| place.file.as_ref() == Some(&input))
    {
        return wrong(format!(
            "{} is the recording that is replayed: name another file",
            place.name
        ));
    }
    for (index, place) in places.iter().enumerate() {
        let Some(other) = places[..index].iter().find(|other| place.is(other)) else {
            continue;
        };
        return wrong(if place.name == other.name {
            format!("two outputs can't both go to {}", place.name)
        } else {
            format!(
                "{} and {} are the same file: name another one",
                other.name, place.name
            )
        });
    }
    Ok(())
}

/// Where everything goes that is going to be written, but for the log.
fn destinations(args: &OutputArgs, mode: Mode, recording: Option<&Path>) -> Vec<Destination> {
    fn of(path: &Path, destination: impl FnOnce(PathBuf) -> Destination) -> Destination {
        if path == Path::new("-") {
            Destination::Stdout
        } else {
            destination(path.into())
        }
    }

    let alone = recording.is_none();
    let shown = args.shown(mode, alone).map(|_| Destination::Stdout);
    let events = args.eventaddr.clone().map(Destination::Events);
    let har = args.har.as_deref().map(|path| of(path, Destination::Har));
    let packets = args.packet_file(mode, alone);
    let packets = packets.map(|path| of(path, Destination::Packets));
    let keys = args.key_file(mode, alone);
    let keys = keys.map(|path| of(path, Destination::KeyLog));
    let recording = recording.map(|path| of(path, Destination::Recording));
    [shown, events, har, packets, keys, recording]
        .into_iter()
        .flatten()
        .collect()
}

/// What is written to, and which file it is.
struct Place {
    name: String,
    output: Option<Destination>,
    file: Option<FileId>,
}

impl Place {
    fn of_output(output: Destination) -> Self {
        let file = match output.path() {
            Some(path) => FileId::of_path(path),
            None if output == Destination::Stdout => FileId::of_open(io::stdout()),
            None => None,
        };
        Self {
            name: output.to_string(),
            output: Some(output),
            file,
        }
    }

    fn of_log(path: &Path) -> Self {
        Self {
            name: format!("log {}", path.display()),
            output: None,
            file: FileId::of_path(path),
        }
    }

    fn is(&self, other: &Self) -> bool {
        let same_file = self.file.is_some() && self.file == other.file;
        let same_output = match (&self.output, &other.output) {
            (Some(Destination::Stdout), Some(Destination::Stdout)) => true,
            (Some(output), Some(other)) => output.path().is_some() && output.path() == other.path(),
            _ => false,
        };
        same_file || same_output
    }
}

/// What tells files apart, whatever leads to them. Devices and pipes have none: they take what comes from several
/// sides.
#[derive(Debug, PartialEq, Eq)]
enum FileId {
    Inode(u64, u64),
    /// One that is still to be made: its directory, and its name there.
    New(u64, u64, OsString),
}

impl FileId {
    /// The file to which a path leads, also by way of symbolic links. `None` if it is no regular file, or can't be
    /// one.
    fn of_path(path: &Path) -> Option<Self> {
        /// As many as the kernel follows (path_resolution(7)).
        const LINKS_MAX: usize = 40;

        let mut path = path.to_owned();
        for _ in 0..=LINKS_MAX {
            match stat(&path) {
                Ok(found) => return Self::of_stat(&found),
                Err(Errno::NOENT) => {}
                Err(_) => return None,
            }
            let directory = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            // Where a link leads, there may be no file yet.
            let Ok(target) = fs::read_link(&path) else {
                let found = stat(directory).ok()?;
                let name = path.file_name()?.to_owned();
                return Some(Self::New(found.st_dev, found.st_ino, name));
            };
            path = directory.join(target);
        }
        None
    }

    /// The same for what is read, standard input for `-`.
    fn of_input(path: &Path) -> Option<Self> {
        if path == Path::new("-") {
            Self::of_open(io::stdin())
        } else {
            Self::of_path(path)
        }
    }

    fn of_open(file: impl AsFd) -> Option<Self> {
        Self::of_stat(&fstat(file).ok()?)
    }

    fn of_stat(found: &Stat) -> Option<Self> {
        let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
        is_file.then_some(Self::Inode(found.st_dev, found.st_ino))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_the_same_one_however_it_is_spelled() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("below")).unwrap();
        fs::write(path("file"), "").unwrap();
        fs::hard_link(path("file"), path("hard")).unwrap();
        for (link, target) in [
            ("soft", "file"),
            ("dangling", "below/../link"),
            ("link", "new"),
        ] {
            symlink(target, path(link)).unwrap();
        }
        for same in [
            &["file", "./file", "below/../file", "hard", "soft"][..],
            &["new", "below/../new", "link", "dangling"],
        ] {
            let ids: Vec<_> = same
                .iter()
                .map(|name| FileId::of_path(&path(name)))
                .collect();
            assert!(ids[0].is_some());
            assert!(ids.iter().all(|id| *id == ids[0]), "{same:?}: {ids:?}");
        }
        let other = |name| FileId::of_path(&path(name));
        assert_ne!(other("new"), other("file"));
        assert_ne!(other("new"), other("below/new"));
        assert_ne!(other("new"), other("newer"));
    }

    #[test]
    fn devices_and_what_can_not_be_are_no_file() {
        let dir = tempfile::tempdir().unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        for path in [
            Path::new("/dev/null"),
            Path::new("/nonexistent/file"),
            Path::new("/dev/null/file"),
            Path::new("/"),
            Path::new(""),
            dir.path(),
            &dir.path().join("loop"),
        ] {
            assert_eq!(FileId::of_path(path), None, "{path:?}");
        }
    }
}
