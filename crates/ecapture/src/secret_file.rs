//! Files that hold TLS secrets: readable by their owner only, and never where somebody else's symbolic
//! link leads.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::failure::Failure;
use crate::pipeline::Destination;

/// Opens a destination by its path: standard output for `-`.
pub(crate) fn open(
    path: &Path,
    destination: impl FnOnce(PathBuf) -> Destination,
    open_file: impl FnOnce(&Path) -> io::Result<File>,
) -> Result<(Destination, File), Failure> {
    let (destination, file) = if path == Path::new("-") {
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        (Destination::Stdout, stdout.map(File::from))
    } else {
        (destination(path.into()), open_file(path))
    };
    let file = file.with_context(|| destination.to_string());
    Ok((destination, file.map_err(Failure::WrongInput)?))
}

/// Opens a file to add lines at its end.
pub(crate) fn append_secrets(path: &Path) -> io::Result<File> {
    let mut file = open_private(path, File::options().append(true))?;
    if ends_within_a_line(&file) {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// Makes a file that was not there.
pub(crate) fn create_new_secrets(path: &Path) -> io::Result<File> {
    open_private(path, File::options().write(true).create_new(true))
}

/// Opens a file to write it anew, once [`empty`] has made room.
pub(crate) fn create_secrets(path: &Path) -> io::Result<File> {
    open_private(path, File::options().write(true))
}

/// Drops what is in a file. Not done when it is opened: what can't begin must not cost the user an
/// earlier capture.
pub(crate) fn empty(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(())
}

fn open_private(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    /// Anybody may create files here, links to other people's files among them.
    const WRITABLE_BY_OTHERS: u32 = 0o002;

    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    options.create(true).mode(0o600);
    if fs::metadata(directory)?.mode() & WRITABLE_BY_OTHERS != 0 {
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    }
    options.open(path).map_err(|error| {
        if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            let reason = "is a symbolic link in a directory that others can write to";
            return io::Error::new(error.kind(), reason);
        }
        error
    })
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
