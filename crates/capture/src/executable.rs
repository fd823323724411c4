//! An executable file, opened once: what is analysed is what is probed, even if the path leads
//! somewhere else by then.

use std::fs::{File, FileType, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::mapped_file::with_bytes;
use crate::privileges::hidden_process;
use crate::{Error, Process};

/// Tells executables apart, whatever path leads to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl Identity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// An open executable file.
#[derive(Debug)]
pub struct Executable {
    name: PathBuf,
    file: File,
    identity: Identity,
    changed_ns: i128,
    size: u64,
}

impl Executable {
    /// Opens the file at `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_as(path, path).map_err(|reason| Error::Open {
            path: path.into(),
            reason,
        })?
    }

    /// Opens the file that a process executes. It may be in another mount namespace, or deleted.
    pub fn of_process(process: &Process) -> Result<Self, Error> {
        let link = process.executable_link();
        let name = process.executable_name()?;
        Self::open_as(&link, &name).map_err(|reason| match reason.kind() {
            io::ErrorKind::NotFound => Error::NoExecutable { pid: process.pid() },
            io::ErrorKind::PermissionDenied => hidden_process(process.pid()),
            _ => Error::Process {
                pid: process.pid(),
                what: "opening its executable",
                reason,
            },
        })?
    }

    /// The outer error is for opening, the inner one for what was found.
    fn open_as(path: &Path, name: &Path) -> io::Result<Result<Self, Error>> {
        Ok(match open_regular(path)? {
            Ok(file) => Ok(Self::of_file(file, name.into())?),
            Err(file_type) => Err(Error::NotAFile {
                path: name.into(),
                found: kind_of(file_type),
            }),
        })
    }

    /// A file that is open already. `name` is for messages.
    pub(crate) fn of_file(file: File, name: PathBuf) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            name,
            file,
            identity: Identity::of(&metadata),
            changed_ns: changed_ns(&metadata),
            size: metadata.len(),
        })
    }

    /// For messages: the path as given, or as the process shows it.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Has `look` look at the file's bytes, in this thread; [`Error::Changed`] if they changed meanwhile,
    /// whatever it found. What it touches counts as our memory for as long as it looks.
    pub fn read<T>(&self, look: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
        let found = catch_unwind(AssertUnwindSafe(|| with_bytes(&self.file, look)));
        self.check_unchanged()?;
        // Bytes that change from one look to the next may lead to what can't be otherwise.
        let found = found.unwrap_or_else(|panic| resume_unwind(panic));
        let found = found.map_err(|reason| self.unreadable(reason))?;
        found.ok_or_else(|| self.unreadable(rustix::io::Errno::IO.into()))
    }

    /// [`Error::Changed`] if the file has changed since it was opened: what was found in it, and places in
    /// it, are not to be relied on.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        let now = self.file.metadata();
        let now = now.map_err(|reason| self.unreadable(reason))?;
        // Where the clock of changes is coarse, the size may tell.
        if changed_ns(&now) == self.changed_ns && now.len() == self.size {
            return Ok(());
        }
        Err(Error::Changed {
            path: self.name.clone(),
        })
    }

    fn unreadable(&self, reason: io::Error) -> Error {
        Error::Open {
            path: self.name.clone(),
            reason,
        }
    }

    /// Which file it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// When it was last changed before it was opened, in ns since 1970.
    pub fn changed_ns(&self) -> i128 {
        self.changed_ns
    }

    /// Whether it is this file, last changed at this time.
    pub fn is(&self, identity: Identity, changed_ns: i128) -> bool {
        self.identity == identity && self.changed_ns == changed_ns
    }

    /// A path that leads to exactly this file, in our mount namespace, as long as `self` lives: for probes,
    /// which may be put only where a file was analysed that has not changed.
    pub(crate) fn path_to_probe(&self) -> Result<PathBuf, Error> {
        self.check_unchanged()?;
        Ok(self.descriptor_path())
    }

    /// The same, for who minds no changes.
    pub(crate) fn descriptor_path(&self) -> PathBuf {
        descriptor_path(&self.file)
    }
}

/// Leads to the very file that is open, whatever its path leads to.
fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Opens a file if it is a regular one; else returns what it is. Nothing else is opened, even if the path leads
/// somewhere else from one moment to the next: a FIFO would block us, and a device may do things.
pub(crate) fn open_regular(path: &Path) -> io::Result<Result<File, FileType>> {
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let place = File::from(place);
    let file_type = place.metadata()?.file_type();
    if !file_type.is_file() {
        return Ok(Err(file_type));
    }
    let file = match open_at_once(&descriptor_path(&place)) {
        // In a chroot without /proc, where nothing can be captured, but inspected: the path has to do.
        Err(error) if error.kind() == io::ErrorKind::NotFound => open_at_once(path)?,
        result => result?,
    };
    let file_type = file.metadata()?.file_type();
    Ok(if file_type.is_file() {
        Ok(file)
    } else {
        Err(file_type)
    })
}

/// Not to wait for somebody who has a lease on it, or writes to a FIFO.
fn open_at_once(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = File::options();
    options.read(true).custom_flags(flags.bits() as i32);
    options.open(path)
}

/// The time of the last change of a file's content or attributes, in ns since 1970.
pub(crate) fn changed_ns(metadata: &Metadata) -> i128 {
    i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec())
}

fn kind_of(file_type: FileType) -> &'static str {
    if file_type.is_dir() {
        "directory"
    } else if file_type.is_fifo() {
        "FIFO"
    } else if file_type.is_socket() {
        "socket"
    } else if file_type.is_block_device() || file_type.is_char_device() {
        "device"
    } else {
        "special file"
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn executable() -> (Executable, File) {
        let mut file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(&[7; 10_000]).unwrap();
        let ours = file.try_clone().unwrap();
        (Executable::of_file(ours, "test".into()).unwrap(), file)
    }

    #[test]
    fn a_file_that_is_truncated_while_it_is_read_is_an_error() {
        let (executable, file) = executable();
        assert_eq!(executable.read(|bytes| bytes[9_999]).unwrap(), 7);
        let found = executable.read(|bytes| {
            file.set_len(0).unwrap();
            // What can't be zero, were it not for that.
            70 / bytes[9_999]
        });
        let error = found.unwrap_err().to_string();
        assert_eq!(error, "test: was changed while it was read; try again");
    }

    #[test]
    fn a_file_that_has_changed_since_it_was_opened_is_not_probed() {
        let (executable, mut file) = executable();
        assert!(executable.path_to_probe().is_ok());
        file.write_all(b"more").unwrap();
        let refusal = executable.path_to_probe();
        assert!(matches!(refusal, Err(Error::Changed { .. })), "{refusal:?}");
    }
}
