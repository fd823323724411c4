//! The cache directory: downloads, toolchains and test binaries, outside the checkout so that
//! `git clean` and fresh clones keep them.
//!
//! Its entries appear complete or not at all (built beside their place, then renamed), and are
//! built once even if several test processes ask at the same time.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::{env, io};

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;

/// The cache directory: `$ECAPTURE_CACHE_DIR`, else `$XDG_CACHE_HOME/ecapture-dev`, else
/// `~/.cache/ecapture-dev`, else (no home, as under some service managers) in the system's
/// directory for temporary files. Created if it isn't there.
pub fn dir() -> Result<PathBuf> {
    let dir = locate(|name| env::var_os(name).filter(|value| !value.is_empty()));
    fs::create_dir_all(&dir).with_context(|| {
        format!(
            "{}: can't be created; set ECAPTURE_CACHE_DIR to a writable directory",
            dir.display()
        )
    })?;
    Ok(dir)
}

fn locate(var: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    if let Some(dir) = var("ECAPTURE_CACHE_DIR") {
        return absolute(PathBuf::from(dir));
    }
    // A relative XDG path is to be ignored, says the specification.
    let base = var("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| var("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_else(env::temp_dir);
    base.join("ecapture-dev")
}

/// Test processes have different working directories: what they share must not depend on it.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// The entry `name` (a relative path) of the cache. If it isn't there, `build` makes it: it gets
/// a path that doesn't exist yet and leaves a file or a directory there.
pub fn entry(name: impl AsRef<Path>, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let name = name.as_ref();
    let path = dir()?.join(name);
    if path.exists() {
        return Ok(path);
    }
    let _lock = Lock::take(name)?;
    if path.exists() {
        return Ok(path); // another process has built it meanwhile
    }
    // What a killed process left unfinished is in nobody's use: we have the lock.
    let unfinished = work_file(name, "unfinished")?;
    remove(&unfinished)?;
    if let Err(error) = build(&unfinished) {
        // The error of the build is the one to tell.
        let _ = remove(&unfinished);
        return Err(error);
    }
    let parent = path.parent().unwrap_or(&path);
    fs::create_dir_all(parent)
        .and_then(|()| fs::rename(&unfinished, &path))
        .with_context(|| format!("{}: can't be moved into its place", path.display()))?;
    Ok(path)
}

/// Removes an entry, so that it is built again.
pub fn forget(name: impl AsRef<Path>) -> Result<()> {
    let name = name.as_ref();
    let _lock = Lock::take(name)?;
    remove(&dir()?.join(name))
}

/// A lock between processes, held until it is dropped or its process dies.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "holding it open is its use")] File);

impl Lock {
    /// Waits until nobody else, in this process or another, holds the lock of the cache's entry
    /// `name`, which need not exist.
    pub fn take(name: &Path) -> Result<Self> {
        let path = work_file(name, "lock")?;
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(error).context(format!("{}: can't be locked", path.display()));
                }
            }
        }
    }
}

/// A path for work on an entry, apart from the entries: `a/b` → `work/a,b.suffix`.
fn work_file(name: &Path, suffix: &str) -> Result<PathBuf> {
    let dir = dir()?.join("work");
    fs::create_dir_all(&dir).with_context(|| format!("{}: can't be created", dir.display()))?;
    let name = name.to_string_lossy().replace('/', ",");
    Ok(dir.join(format!("{name}.{suffix}")))
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.with_context(|| format!("{}: can't be removed", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn located(vars: &[(&str, &str)]) -> PathBuf {
        locate(|name| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_projects_own_variable_wins() {
        let vars = [
            ("ECAPTURE_CACHE_DIR", "/a"),
            ("XDG_CACHE_HOME", "/b"),
            ("HOME", "/c"),
        ];
        assert_eq!(located(&vars), Path::new("/a"));
        assert_eq!(located(&vars[1..]), Path::new("/b/ecapture-dev"));
        assert_eq!(located(&vars[2..]), Path::new("/c/.cache/ecapture-dev"));
    }

    #[test]
    fn a_relative_xdg_path_is_ignored() {
        let vars = [("XDG_CACHE_HOME", "b"), ("HOME", "/c")];
        assert_eq!(located(&vars), Path::new("/c/.cache/ecapture-dev"));
    }
}
