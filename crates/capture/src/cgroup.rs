//! Where cgroup v2 is mounted: programs attached to its root see the sockets of every process below.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::Error;
use crate::error::kernel_release;

/// Opens the root of the cgroup v2 hierarchy, or what a container sees of it.
pub(crate) fn open_root() -> Result<File, Error> {
    let mounts = fs::read("/proc/self/mountinfo").map_err(|reason| Error::System {
        what: "reading /proc/self/mountinfo",
        reason,
    })?;
    let path = find(&mounts).ok_or_else(|| Error::NoCgroup {
        kernel: kernel_release(),
    })?;
    File::open(&path).map_err(|reason| Error::Open { path, reason })
}

/// Where that is mounted, if it is.
pub(crate) fn root() -> Option<PathBuf> {
    find(&fs::read("/proc/self/mountinfo").ok()?)
}

/// The mount point of a `cgroup2` filesystem that shows most of the hierarchy: proc(5), "mountinfo".
fn find(mounts: &[u8]) -> Option<PathBuf> {
    mounts
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b' ');
            let root = fields.nth(3)?;
            let mount_point = fields.next()?;
            // Optional fields end with a hyphen, then comes the type.
            fields.find(|field| field == b"-")?;
            (fields.next()? == b"cgroup2").then_some((root.len(), mount_point))
        })
        .min_by_key(|&(root, _)| root)
        .map(|(_, mount_point)| PathBuf::from(OsString::from_vec(unescape(mount_point))))
}

/// Spaces and the like are written as a backslash with three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let code = behind
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_hierarchy_is_found_by_its_type() {
        let mounts = b"37 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw\n\
                       50 31 0:38 /some/container /mnt rw shared:4 - cgroup2 cgroup2 rw\n\
                       38 31 0:38 / /sys/fs/my\\040cgroup rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find(mounts), Some(PathBuf::from("/sys/fs/my cgroup")));
        assert_eq!(
            find(b"24 1 0:22 / /proc rw - proc proc rw\n\nnonsense"),
            None
        );
    }
}
