//! Files that hold TLS secrets: readable by their owner only, and never where somebody else's symbolic
//! link leads, nor what somebody else has put there.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, fstat, linkat, openat, renameat_with,
    statat, unlinkat,
};
use rustix::io::Errno;
use trace::escape_name;

use crate::failure::Failure;
use crate::log;
use crate::pipeline::Destination;

/// Opens a destination by its path: standard output for `-`.
pub(crate) fn open(
    path: &Path,
    destination: impl FnOnce(PathBuf) -> Destination,
    open_file: impl FnOnce(&Place) -> io::Result<File>,
) -> Result<(Destination, File), Failure> {
    if path == Path::new("-") {
        let destination = Destination::Stdout;
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stdout = stdout.with_context(|| destination.to_string());
        return Ok((destination, stdout.map_err(Failure::WrongInput)?.into()));
    }
    let destination = destination(path.into());
    let place = Place::of(path);
    let file = place.and_then(|place| {
        let file = open_file(&place)?;
        place.tell_if_others_can_read(&file, &destination);
        Ok(file)
    });
    let file = file.with_context(|| destination.to_string());
    Ok((destination, file.map_err(Failure::WrongInput)?))
}

/// Drops what is in a file. Not done when it is opened: what can't begin must not cost the user an
/// earlier capture.
pub(crate) fn empty(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(())
}

/// A name in a directory, which is the same one whatever becomes of the path that led there.
#[derive(Debug)]
pub(crate) struct Place {
    directory: OwnedFd,
    name: OsString,
}

impl Place {
    /// Where this path leads.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let path = path.as_os_str().as_bytes();
        let begin = path
            .iter()
            .rposition(|&byte| byte == b'/')
            .map_or(0, |at| at + 1);
        let (directory, name) = path.split_at(begin);
        if matches!(name, b"" | b"." | b"..") {
            return Err(Errno::ISDIR.into());
        }
        let directory = if directory.is_empty() {
            b"."
        } else {
            directory
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            directory: openat(CWD, directory, flags, Mode::empty())?,
            name: OsStr::from_bytes(name).into(),
        })
    }

    /// Opens the file to add lines at its end.
    pub(crate) fn append(&self) -> io::Result<File> {
        let mut file = self.open(OFlags::APPEND)?;
        if ends_within_a_line(&file) {
            file.write_all(b"\n")?;
        }
        Ok(file)
    }

    /// Opens the file to write it anew, once [`empty`] has made room.
    pub(crate) fn create(&self) -> io::Result<File> {
        self.open(OFlags::empty())
    }

    /// Says so if a file that was there already shows its secrets to others than its owner, who may want it so.
    pub(crate) fn tell_if_others_can_read(&self, file: &File, name: &dyn Display) {
        const READABLE_BY_GROUP: u32 = 0o040;
        const READABLE_BY_OTHERS: u32 = 0o004;
        const FOUND_BY_OTHERS: u32 = 0o011;

        let (Ok(directory), Ok(found)) = (fstat(&self.directory), fstat(file)) else {
            return;
        };
        let by_group = found.st_mode & READABLE_BY_GROUP != 0 && !is_our_group(found.st_gid);
        let by_others = found.st_mode & READABLE_BY_OTHERS != 0;
        let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
        if is_file && (by_group || by_others) && directory.st_mode & FOUND_BY_OTHERS != 0 {
            let name = name.to_string();
            log::line(&format!(
                "note: {} can be read by others (mode {:04o})",
                escape_name(name.as_bytes()),
                found.st_mode & 0o7777
            ));
        }
    }

    /// Gives the file another name, which must not be there, and makes a new one. If that can't be done, all is
    /// as it was.
    pub(crate) fn begin_anew(&self, other: &OsStr) -> io::Result<File> {
        let moved = match self.rename(&self.name, other) {
            Ok(()) => true,
            // Somebody else has given it another name already.
            Err(Errno::NOENT) => false,
            Err(errno) => return Err(errno.into()),
        };
        self.make(OFlags::empty())
            .map_err(io::Error::from)
            .inspect_err(|_| {
                if moved {
                    // Otherwise what follows is in the file of the other name.
                    let _ = self.rename(other, &self.name);
                }
            })
    }

    /// Replaces no file of the new name.
    fn rename(&self, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
        let directory = &self.directory;
        match renameat_with(directory, from, directory, to, RenameFlags::NOREPLACE) {
            // Not every file system knows of that; nor has every one hard links.
            Err(Errno::INVAL | Errno::NOSYS) => {
                linkat(directory, from, directory, to, AtFlags::empty())?;
                unlinkat(directory, from, AtFlags::empty()).inspect_err(|_| {
                    let _ = unlinkat(directory, to, AtFlags::empty());
                })
            }
            result => result,
        }
    }

    /// Opens the file, or makes it. One that we have made is ours, whomever the file system gives it to.
    fn open(&self, flags: OFlags) -> io::Result<File> {
        match self.make(flags) {
            Err(Errno::EXIST) => self.open_existing(flags),
            made => Ok(made?),
        }
    }

    /// Makes the file, which must not be there.
    fn make(&self, flags: OFlags) -> rustix::io::Result<File> {
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&self.directory, &self.name, flags, MODE).map(File::from)
    }

    fn open_existing(&self, flags: OFlags) -> io::Result<File> {
        let directory = fstat(&self.directory)?;
        let others = others_can_write(&directory);
        if others {
            // Before a FIFO of theirs can block us. What is opened is looked at again.
            let found = statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)?;
            check_origin(&found, &directory)?;
        }
        // Where a link of ours leads, there may be no file yet.
        let mut flags = flags | OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, others);
        let file = openat(&self.directory, &self.name, flags, MODE)?;
        if others {
            check_origin(&fstat(&file)?, &directory)?;
        }
        Ok(file.into())
    }
}

/// Of files that we make.
const MODE: Mode = Mode::from_bits_retain(0o600);

/// Whether others than us, and the superuser, may create files in a directory, links to other people's files
/// among them.
fn others_can_write(directory: &Stat) -> bool {
    const WRITABLE_BY_GROUP: u32 = 0o020;
    const WRITABLE_BY_OTHERS: u32 = 0o002;

    let owners = [0, rustix::process::geteuid().as_raw()];
    let by_group = directory.st_mode & WRITABLE_BY_GROUP != 0 && !is_our_group(directory.st_gid);
    let by_others = directory.st_mode & WRITABLE_BY_OTHERS != 0;
    by_group || by_others || !owners.contains(&directory.st_uid)
}

/// Whether a group is our own, as which many systems give each user one, or the superuser's.
fn is_our_group(group: u32) -> bool {
    [0, rustix::process::getegid().as_raw()].contains(&group)
}

/// Refuses what somebody may have put there who is to see nothing of what we write. The directory's owner could do
/// so at any time, with any file; devices are made by the superuser alone.
fn check_origin(file: &Stat, directory: &Stat) -> io::Result<()> {
    const WHERE: &str = "in a directory that others can write to";

    let refuse = |reason: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    let owners = [0, rustix::process::geteuid().as_raw(), directory.st_uid];
    match FileType::from_raw_mode(file.st_mode) {
        FileType::Symlink => refuse(format!(
            "is a symbolic link {WHERE}; name the file that it leads to"
        )),
        FileType::CharacterDevice | FileType::BlockDevice => Ok(()),
        _ if !owners.contains(&file.st_uid) => refuse(format!(
            "belongs to another user (uid {}), {WHERE}: remove it, or name another file",
            file.st_uid
        )),
        FileType::RegularFile if file.st_nlink > 1 => refuse(format!(
            "has other names, too (hard links), {WHERE}: remove it, or name another file"
        )),
        _ => Ok(()),
    }
}

/// Whether the first key would end up behind half a line, which a full disk may have left.
fn ends_within_a_line(file: &File) -> bool {
    let last = || {
        let metadata = file.metadata().ok().filter(Metadata::is_file)?;
        let offset = metadata.len().checked_sub(1)?;
        // This one is open for writing only.
        let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let mut last = [0];
        file.read_exact_at(&mut last, offset).ok()?;
        Some(last)
    };
    last().is_some_and(|last| last != *b"\n")
}
