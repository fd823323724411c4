//! Shared libraries that processes have mapped: Go code can be in one (`-buildmode=c-shared`) or in a
//! plugin (`-buildmode=plugin`), whatever the executable is.
//!
//! Source: proc(5), `/proc/PID/maps` and `/proc/PID/map_files`.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::executable::{changed_ns, open_regular};
use crate::proc_files::{MAPS_MAX, parts};
use crate::{Executable, Identity, MappingEvent};

/// So many libraries of one process are looked at: no program has that many.
const LIBRARIES_MAX: usize = 4096;

/// A file that a process has mapped executable, other than what it executes.
#[derive(Clone, Debug)]
pub struct Library {
    /// Its path as the process has it; for messages.
    pub name: PathBuf,
    /// Which file it is.
    pub identity: Identity,
    /// When it was last changed, in ns since 1970.
    pub changed_ns: i128,
    /// A path that leads to it in our mount namespace, as long as the process has it mapped.
    path: PathBuf,
}

impl Library {
    /// All of a process; none if it has ended, or may not be looked at.
    pub fn of(pid: u32) -> Vec<Self> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let Ok(maps) = parts(directory.join("maps"), b'\n', MAPS_MAX) else {
            return Vec::new();
        };
        let executable = fs::metadata(directory.join("exe"));
        let executable = executable.as_ref().map(Identity::of).ok();
        let mut seen = HashSet::new();
        maps.filter_map(|line| {
            let mapping = Mapping::parse(&line)?;
            let is_new = seen.insert((mapping.device.to_vec(), mapping.inode));
            is_new.then(|| Self::open(&directory, &mapping).ok())?
        })
        .filter(|library| Some(library.identity) != executable)
        .take(LIBRARIES_MAX)
        .collect()
    }

    /// The one that an event tells of; `None` if its path leads elsewhere by now, or the process has ended.
    pub fn of_event(event: &MappingEvent) -> Option<Self> {
        let mapping = Mapping {
            range: b"",
            device: b"",
            inode: event.inode,
            path: event.path.as_os_str().as_bytes(),
        };
        Self::open(Path::new(&format!("/proc/{}", event.pid)), &mapping).ok()
    }

    /// Opens it. It is not found if the path does not lead to it any more, or it has changed.
    pub fn open_file(&self) -> io::Result<Executable> {
        let file = open_regular(&self.path)?.map_err(|_| io::ErrorKind::NotFound)?;
        let executable = Executable::of_file(file, self.name.clone())?;
        if !executable.is(self.identity, self.changed_ns) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(executable)
    }

    /// The same library as the process has it now, after it was replaced or changed.
    pub fn look_again(&self, pid: u32) -> Option<Self> {
        Self::of(pid)
            .into_iter()
            .find(|library| library.name == self.name)
    }

    /// The file at the mapping's path as the process sees it, if that still is the one which was mapped;
    /// else by way of the mapping itself, which takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
    fn open(process: &Path, mapping: &Mapping<'_>) -> io::Result<Self> {
        let name = Path::new(OsStr::from_bytes(mapping.path));
        let inside = name.strip_prefix("/").map_err(io::Error::other)?;
        let by_path = process.join("root").join(inside);
        let by_mapping = || {
            let range = OsStr::from_bytes(mapping.range);
            process.join("map_files").join(range)
        };
        let found = |path: PathBuf| {
            let file = fs::metadata(&path)?;
            // Not the device: of a file in an overlay, the one behind it is shown.
            if !file.is_file() || file.ino() != mapping.inode {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(Self {
                name: name.to_owned(),
                identity: Identity::of(&file),
                changed_ns: changed_ns(&file),
                path,
            })
        };
        found(by_path).or_else(|_: io::Error| found(by_mapping()))
    }
}

/// A line of `/proc/PID/maps` about a part of a file that is mapped executable.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    /// As in the name of an entry of `map_files`.
    range: &'a [u8],
    device: &'a [u8],
    inode: u64,
    /// Line breaks in it are `\012`; such files are not found.
    path: &'a [u8],
}

impl<'a> Mapping<'a> {
    /// `address perms offset dev inode path`, with spaces before the path.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |&byte| byte == b' ');
        let (range, permissions) = (fields.next()?, fields.next()?);
        let device = fields.nth(1)?;
        let inode = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let path = fields.next()?.trim_ascii_start();
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        let is_code = permissions.get(2) == Some(&b'x');
        (is_code && path.starts_with(b"/")).then_some(Self {
            range,
            device,
            inode,
            path,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_from_files_is_found_in_maps() {
        let line =
            b"7f2c-7f3d r-xp 00026000 fd:00 1234                       /lib/a b.so (deleted)";
        let expected = Mapping {
            range: b"7f2c-7f3d",
            device: b"fd:00",
            inode: 1234,
            path: b"/lib/a b.so",
        };
        assert_eq!(Mapping::parse(line), Some(expected));
        for other in [
            &b""[..],
            b"7f2c-7f3d r--p 00000000 fd:00 1234   /lib/a.so",
            b"7f2c-7f3d r-xp 00000000 00:00 0 ",
            b"7f2c-7f3d r-xp 00000000 00:00 0      [vdso]",
            b"7f2c-7f3d r-xp 00000000 fd:00 x      /lib/a.so",
        ] {
            assert_eq!(Mapping::parse(other), None);
        }
    }

    #[test]
    fn our_own_libraries_are_found_and_our_executable_is_none() {
        let libraries = Library::of(std::process::id());
        let libc = libraries.iter().find(|library| {
            let name = library.name.to_string_lossy();
            name.contains("/libc.so") || name.contains("/libc-")
        });
        let file = libc.unwrap().open_file().unwrap();
        assert_eq!(file.identity(), libc.unwrap().identity);
        let ours = std::env::current_exe().unwrap();
        assert!(libraries.iter().all(|library| library.name != ours));
    }

    #[test]
    fn a_library_is_opened_as_long_as_it_is_the_one_that_was_mapped() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};

        // Not in the directory for temporary files, where mapping code may be forbidden.
        let ours = std::env::current_exe().unwrap();
        let name = format!("replaced-library-{}", std::process::id());
        let directory = ours.with_file_name(name);
        fs::create_dir(&directory).unwrap();
        let (path, other) = (directory.join("a.so"), directory.join("b.so"));
        fs::write(&path, [0; 5000]).unwrap();
        fs::write(&other, [0; 5000]).unwrap();
        let file = fs::File::open(&path).unwrap();
        // SAFETY: Nobody writes to it, and nobody executes it.
        let _map = unsafe { memmap2::MmapOptions::new().map_exec(&file) }.unwrap();
        let pid = std::process::id();
        let libraries = Library::of(pid);
        let library = libraries.iter().find(|library| library.name == path);
        let library = library.unwrap();
        assert!(library.open_file().is_ok());

        fs::rename(&other, &path).unwrap();
        assert!(library.open_file().is_err());
        fs::remove_file(&path).unwrap();
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        // Who opens a FIFO waits for a writer.
        assert!(library.open_file().is_err());
        if let Some(again) = library.look_again(pid) {
            assert_eq!(again.identity, Identity::of(&file.metadata().unwrap()));
            assert!(again.open_file().is_ok());
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
