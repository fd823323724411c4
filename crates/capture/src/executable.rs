//! An executable file, opened once: what is analysed is what is probed, even if the path leads
//! somewhere else by then.

use std::fs::{File, FileType, Metadata};
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

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
            io::ErrorKind::PermissionDenied => Error::MissingCapabilities {
                what: "look at another user's process",
                missing: "CAP_SYS_PTRACE".into(),
            },
            _ => Error::Process {
                pid: process.pid(),
                what: "opening its executable",
                reason,
            },
        })?
    }

    /// The outer error is for opening, the inner one for what was found.
    fn open_as(path: &Path, name: &Path) -> io::Result<Result<Self, Error>> {
        // Not to hang on a FIFO, nor to touch a tape drive: look before opening.
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            let found = kind_of(metadata.file_type());
            return Ok(Err(Error::NotAFile {
                path: name.into(),
                found,
            }));
        }
        let file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(path)?;
        Self::of_file(file, name.into()).map(Ok)
    }

    /// A file that is open already. `name` is for messages.
    pub(crate) fn of_file(file: File, name: PathBuf) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            name,
            file,
            identity: Identity::of(&metadata),
            changed_ns: changed_ns(&metadata),
        })
    }

    /// For messages: the path as given, or as the process shows it.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Maps the file's bytes, for as long as the analysis takes: touched pages count as our memory.
    pub fn map(&self) -> Result<MappedFile, Error> {
        let reason = |reason| Error::Open {
            path: self.name.clone(),
            reason,
        };
        if self.file.metadata().map_err(reason)?.len() == 0 {
            return Ok(MappedFile(None)); // The kernel maps no empty files.
        }
        // SAFETY: The mapping is private and read-only. The file may change under it, which
        // changes bytes that we distrust anyhow; the kernel does not let a running executable be
        // written to. Only truncating a file that nobody executes, while we look at it, would end
        // us with SIGBUS.
        let map = unsafe { Mmap::map(&self.file) }.map_err(reason)?;
        Ok(MappedFile(Some(map)))
    }

    /// Which file it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// When it was last changed before it was opened, in ns since 1970.
    pub fn changed_ns(&self) -> i128 {
        self.changed_ns
    }

    /// A path that leads to exactly this file, in our mount namespace, as long as `self` lives.
    pub(crate) fn descriptor_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

/// The time of the last change of a file's content or attributes, in ns since 1970.
pub(crate) fn changed_ns(metadata: &Metadata) -> i128 {
    i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec())
}

/// The bytes of an executable file.
#[derive(Debug)]
pub struct MappedFile(Option<Mmap>);

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
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
