//! A file of lines that begins anew when it has become too large or too old.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use trace::escape_name;

use crate::log;
use crate::secret_file::Place;

/// When to begin anew. `None`: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) bytes: Option<u64>,
    pub(crate) age: Option<Duration>,
}

/// Writes to a file, and gives it another name when it is full: `events.json` becomes
/// `events-20261122T201503.123456789Z.json`.
#[derive(Debug)]
pub(crate) struct RotatingFile {
    path: PathBuf,
    place: Place,
    limits: Limits,
    file: BufWriter<File>,
    bytes: u64,
    opened: Instant,
    /// The user has been told that the file can't get another name.
    told: bool,
}

impl RotatingFile {
    /// Opens the file to append to it.
    pub(crate) fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        let place = Place::of(path)?;
        let file = place.append()?;
        let metadata = file.metadata()?;
        if !metadata.is_file() && limits != Limits::default() {
            let reason = "is no regular file, and can't get another name when it is full";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        place.tell_if_others_can_read(&file, &format_args!("event file {}", path.display()));
        Ok(Self {
            path: path.into(),
            place,
            limits,
            file: buffered(file),
            bytes: metadata.len(),
            opened: Instant::now(),
            told: false,
        })
    }

    /// Adds a whole line.
    pub(crate) fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        let full = |most| self.bytes > 0 && self.bytes + length > most;
        let old = |most| self.bytes > 0 && self.opened.elapsed() >= most;
        if self.limits.bytes.is_some_and(full) || self.limits.age.is_some_and(old) {
            self.rotate()?;
        }
        self.bytes += length;
        self.file.write_all(line)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// Begins a new file, or else goes on in this one until it would be full again: a file that is too large
    /// is better than events that are missing.
    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let now = jiff::Timestamp::now();
        match self.place.begin_anew(&rotated(&self.path, now)) {
            Ok(file) => self.file = buffered(file),
            Err(error) => self.tell(&error),
        }
        self.bytes = 0;
        self.opened = Instant::now();
        Ok(())
    }

    fn tell(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.told, true) {
            let path = self.path.display();
            let note =
                format!("note: event file {path}: no new one can be begun, it goes on: {error}");
            log::line(&escape_name(note.as_bytes()));
        }
    }
}

fn buffered(file: File) -> BufWriter<File> {
    BufWriter::with_capacity(64 * 1024, file)
}

/// The name of a file that ended at this time.
fn rotated(path: &Path, now: jiff::Timestamp) -> OsString {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(now.strftime("-%Y%m%dT%H%M%S.%9fZ").to_string());
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    name
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The contents of all files, in the order of their names, the current one last.
    fn files(dir: &Path, current: &Path) -> Vec<String> {
        let mut paths: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path != current)
            .collect();
        paths.sort();
        paths.push(current.into());
        let contents = paths.iter().map(|path| fs::read_to_string(path).unwrap());
        contents.collect()
    }

    #[test]
    fn a_full_file_gets_another_name_and_no_line_is_lost_or_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.json");
        fs::write(&path, "old\n").unwrap();
        let limits = Limits {
            bytes: Some(10),
            age: None,
        };
        let mut file = RotatingFile::open(&path, limits).unwrap();
        for line in ["one\n", "two\n", "a line of more than ten\n", "three\n"] {
            file.line(line.as_bytes()).unwrap();
        }
        file.flush().unwrap();
        assert_eq!(
            files(dir.path(), &path),
            [
                "old\none\n",
                "two\n",
                "a line of more than ten\n",
                "three\n"
            ]
        );
        for entry in fs::read_dir(dir.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(
                name.starts_with("events") && name.ends_with(".json"),
                "{name}"
            );
        }
    }

    #[test]
    fn an_old_file_gets_another_name_once_there_is_something_to_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let limits = Limits {
            bytes: None,
            age: Some(Duration::ZERO),
        };
        let mut file = RotatingFile::open(&path, limits).unwrap();
        file.line(b"one\n").unwrap();
        file.line(b"two\n").unwrap();
        file.flush().unwrap();
        assert_eq!(files(dir.path(), &path), ["one\n", "two\n"]);
    }

    #[test]
    fn a_file_that_can_not_get_another_name_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inside/events");
        fs::create_dir(dir.path().join("inside")).unwrap();
        let limits = Limits {
            bytes: Some(4),
            age: None,
        };
        let mut file = RotatingFile::open(&path, limits).unwrap();
        file.line(b"one\n").unwrap();
        let link = dir.path().join("link");
        fs::hard_link(&path, &link).unwrap();
        fs::remove_dir_all(dir.path().join("inside")).unwrap();
        for line in ["two\n", "three\n"] {
            file.line(line.as_bytes()).unwrap();
        }
        file.flush().unwrap();
        assert_eq!(fs::read_to_string(link).unwrap(), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_file_that_somebody_has_moved_away_is_followed_by_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let limits = Limits {
            bytes: Some(4),
            age: None,
        };
        let mut file = RotatingFile::open(&path, limits).unwrap();
        file.line(b"one\n").unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        file.line(b"two\n").unwrap();
        file.flush().unwrap();
        assert_eq!(files(dir.path(), &path), ["one\n", "two\n"]);
    }

    /// Or else `/dev/stdout` would be gone.
    #[test]
    fn what_is_no_file_gets_no_other_name() {
        let limits = Limits {
            bytes: Some(4),
            age: None,
        };
        let refused = RotatingFile::open(Path::new("/dev/null"), limits).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        RotatingFile::open(Path::new("/dev/null"), Limits::default()).unwrap();
    }
}
