//! A file of lines that begins anew when it has become too large or too old.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::secret_file::{Place, append_secrets, tell_if_others_can_read};

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
    limits: Limits,
    file: BufWriter<File>,
    bytes: u64,
    opened: Instant,
}

impl RotatingFile {
    /// Opens the file to append to it.
    pub(crate) fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        let file = append_secrets(path)?;
        let bytes = file.metadata()?.len();
        tell_if_others_can_read(&file, &format_args!("event file {}", path.display()));
        Ok(Self {
            path: path.into(),
            limits,
            file: BufWriter::with_capacity(64 * 1024, file),
            bytes,
            opened: Instant::now(),
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

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        // A hard link, not a rename: it replaces no file of that name.
        let now = jiff::Timestamp::now();
        fs::hard_link(&self.path, rotated(&self.path, now))?;
        fs::remove_file(&self.path)?;
        self.file = BufWriter::with_capacity(64 * 1024, Place::of(&self.path)?.create_new()?);
        self.bytes = 0;
        self.opened = Instant::now();
        Ok(())
    }
}

/// The name of a file that ended at this time.
fn rotated(path: &Path, now: jiff::Timestamp) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(now.strftime("-%Y%m%dT%H%M%S.%9fZ").to_string());
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
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
}
