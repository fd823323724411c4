//! What the kernel says of itself, of processes and of files.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// Of the running kernel: `(6, 12)`.
pub(crate) fn version() -> Result<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => anyhow::bail!("{release} is no version"),
    }
}

/// What a process has of memory that is not a file's (nor a ring buffer's), in bytes.
pub(crate) fn anonymous_memory(pid: u32) -> Result<u64> {
    memory(pid, "RssAnon:")
}

/// The most that was ever resident of a process, in bytes. A ring buffer counts twice: it is mapped twice.
pub(crate) fn peak_memory(pid: u32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

/// A field in kB of a process's status, in bytes.
fn memory(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib.with_context(|| format!("no {field}"))?.parse()?;
    Ok(kib * 1024)
}

/// How much processor time a process has had.
pub(crate) fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc(5): utime and stime are the 12th and 13th fields behind the name, which is in parentheses.
    let (_, fields) = stat.rsplit_once(") ").context("no name")?;
    let fields: Vec<_> = fields.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_millis(ticks * 1000 / per_second))
}

/// Whether all threads of a process are stopped.
pub(crate) fn is_stopped(pid: u32) -> Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(entry?.path().join("stat"))?;
        // proc(5): the state is the first field behind the name.
        let (_, fields) = stat.rsplit_once(") ").context("no name")?;
        if !fields.starts_with('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How many file descriptors a process has.
pub(crate) fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Whether the file is in a file system that is nowhere else than in memory, like that of an initramfs.
pub(crate) fn is_in_memory(file: &Path) -> Result<bool> {
    // include/uapi/linux/magic.h: TMPFS_MAGIC, RAMFS_MAGIC
    let kind = rustix::fs::statfs(file)?.f_type;
    Ok([0x0102_1994, 0x8584_58f6].contains(&kind))
}
