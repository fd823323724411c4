//! Files that hold TLS secrets: readable by their owner only, and never where somebody else's symbolic
//! link leads, nor what somebody else has put there.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, Stat, fstat, linkat, openat, renameat_with, unlinkat,
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
    open_file: impl FnOnce(&Path) -> io::Result<File>,
) -> Result<(Destination, File), Failure> {
    if path == Path::new("-") {
        let destination = Destination::Stdout;
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stdout = stdout.with_context(|| destination.to_string());
        return Ok((destination, stdout.map_err(Failure::WrongInput)?.into()));
    }
    let destination = destination(path.into());
    let file = open_file(path).with_context(|| destination.to_string());
    let file = file.map_err(Failure::WrongInput)?;
    tell_if_others_can_read(&file, &destination);
    Ok((destination, file))
}

/// Opens a file to add lines at its end.
pub(crate) fn append_secrets(path: &Path) -> io::Result<File> {
    Place::of(path)?.append()
}

/// Opens a file to write it anew, once [`empty`] has made room.
pub(crate) fn create_secrets(path: &Path) -> io::Result<File> {
    Place::of(path)?.open(OFlags::CREATE)
}

/// Drops what is in a file. Not done when it is opened: what can't begin must not cost the user an
/// earlier capture.
pub(crate) fn empty(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(())
}

/// Says so if a file that was there already shows its secrets to others than its owner, who may want it so.
pub(crate) fn tell_if_others_can_read(file: &File, name: &dyn Display) {
    const READABLE_BY_OTHERS: u32 = 0o044;

    let Ok(metadata) = file.metadata() else {
        return;
    };
    if metadata.is_file() && metadata.mode() & READABLE_BY_OTHERS != 0 {
        let name = name.to_string();
        log::line(&format!(
            "note: {} can be read by others (mode {:04o})",
            escape_name(name.as_bytes()),
            metadata.mode() & 0o7777
        ));
    }
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
        let mut file = self.open(OFlags::CREATE | OFlags::APPEND)?;
        if ends_within_a_line(&file) {
            file.write_all(b"\n")?;
        }
        Ok(file)
    }

    /// Makes the file, which must not be there.
    pub(crate) fn create_new(&self) -> io::Result<File> {
        self.open(OFlags::CREATE | OFlags::EXCL)
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
        self.create_new().inspect_err(|_| {
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

    fn open(&self, flags: OFlags) -> io::Result<File> {
        let directory = fstat(&self.directory)?;
        let others = others_can_write(&directory);
        let mut flags = flags | OFlags::WRONLY | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, others);
        let mode = Mode::RUSR | Mode::WUSR;
        let file = openat(&self.directory, &self.name, flags, mode).map_err(|errno| {
            if errno == Errno::LOOP && others {
                let reason = "is a symbolic link in a directory that others can write to; name the file that it \
                              leads to";
                return io::Error::new(io::Error::from(errno).kind(), reason);
            }
            errno.into()
        })?;
        let file = File::from(file);
        if others {
            check_origin(&file.metadata()?, &directory)?;
        }
        Ok(file)
    }
}

/// Whether others than us, and the superuser, may create files in a directory, links to other people's files
/// among them.
fn others_can_write(directory: &Stat) -> bool {
    const WRITABLE_BY_OTHERS: u32 = 0o022;

    let owners = [0, rustix::process::geteuid().as_raw()];
    !owners.contains(&directory.st_uid) || directory.st_mode & WRITABLE_BY_OTHERS != 0
}

/// Refuses a file that somebody may have put there who is to see nothing of what we write. The directory's
/// owner could do so at any time, with any file.
fn check_origin(file: &Metadata, directory: &Stat) -> io::Result<()> {
    let refuse = |what: String| {
        let reason = format!(
            "{what}, in a directory that others can write to: remove it, or name another file"
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
    };
    let owners = [0, rustix::process::geteuid().as_raw(), directory.st_uid];
    if !file.is_file() {
        Ok(())
    } else if !owners.contains(&file.uid()) {
        refuse(format!("belongs to another user (uid {})", file.uid()))
    } else if file.nlink() > 1 {
        refuse("has other names, too (hard links)".into())
    } else {
        Ok(())
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
