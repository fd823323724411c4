//! Which filesystems programs can be executed from (proc(5), mountinfo), in all mount namespaces.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::proc_files::{MOUNTS_MAX, parts};

/// Filesystems from which nothing is executed.
const NO_PROGRAMS: [&str; 19] = [
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "tracefs",
];

/// Filesystems that another program or machine has to answer for: whoever waits for them can wait for
/// ever.
const REMOTE: [&str; 9] = [
    "9p", "afs", "ceph", "cifs", "fuse", "fuseblk", "nfs", "nfs4", "smb3",
];

/// A mounted filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Device number, as `major:minor`: tells filesystems apart.
    pub(crate) device: String,
    /// Where it is, seen from us.
    pub(crate) path: PathBuf,
    /// What it is.
    pub(crate) kind: String,
}

impl Mount {
    /// Whether a program may have to wait for someone else to open files there.
    pub(crate) fn is_remote(&self) -> bool {
        let kind = self.kind.as_str();
        REMOTE.contains(&kind) || kind.starts_with("fuse.")
    }
}

/// The filesystems mounted in our own mount namespace.
pub(crate) fn ours() -> Vec<Mount> {
    seen_by("self", Path::new("/"))
}

/// Those that are mounted in a process's mount namespace; nothing if it has ended.
pub(crate) fn of_process(pid: u32) -> Vec<Mount> {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    seen_by(&pid.to_string(), &root)
}

fn seen_by(process: &str, root: &Path) -> Vec<Mount> {
    parts(format!("/proc/{process}/mountinfo"), b'\n', MOUNTS_MAX)
        .map_or_else(|_| Vec::new(), |lines| parse(lines, root))
}

/// The number of a process's mount namespace.
pub(crate) fn namespace(pid: u32) -> Option<OsString> {
    let link = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
    Some(link.into_os_string())
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`: the third field is the device, the
/// fifth the place, the sixth the options; behind a lone hyphen comes the type.
fn parse(lines: impl Iterator<Item = impl AsRef<[u8]>>, root: &Path) -> Vec<Mount> {
    let mut found = HashSet::new();
    let mut mounts = Vec::new();
    for line in lines {
        let fields: Vec<_> = line.as_ref().split(|&byte| byte == b' ').collect();
        let hyphen = fields.iter().position(|&field| field == b"-");
        let (Some(hyphen), true) = (hyphen, fields.len() > 5) else {
            continue;
        };
        let Some(kind) = fields.get(hyphen + 1) else {
            continue;
        };
        let kind = String::from_utf8_lossy(kind).into_owned();
        let no_programs = NO_PROGRAMS.contains(&kind.as_str())
            || fields[5]
                .split(|&byte| byte == b',')
                .any(|o| o == b"noexec");
        let device = String::from_utf8_lossy(fields[2]).into_owned();
        if no_programs || !found.insert(device.clone()) {
            continue;
        }
        let place = PathBuf::from(OsString::from_vec(unescape(fields[4])));
        let inside = place.strip_prefix("/").unwrap_or(&place);
        mounts.push(Mount {
            device,
            path: root.join(inside),
            kind,
        });
    }
    mounts
}

/// Spaces, tabs, newlines and backslashes are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, behind)) = rest.split_first() {
        let digits = behind.first_chunk::<3>().filter(|_| byte == b'\\');
        let value = digits.and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        match value {
            Some(value) => {
                out.push(value);
                rest = &behind[3..];
            }
            None => {
                out.push(byte);
                rest = behind;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filesystems_with_programs_are_found_once() {
        let lines = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:20 / /proc rw,noexec - proc proc rw
24 22 8:1 /sub /srv/my\\040data rw - ext4 /dev/sda1 rw
25 22 0:30 / /mnt/my\\040data rw master:2 propagate_from:1 - overlay overlay rw
26 22 0:31 / /tmp rw,nosuid,noexec - tmpfs tmpfs rw
27 22 0:32 / /home rw - fuse.sshfs host rw
broken line
";
        let lines = lines.split(|&byte| byte == b'\n');
        let mounts = parse(lines, Path::new("/proc/7/root"));
        let of = |index: usize| {
            (
                mounts[index].path.to_str().unwrap(),
                mounts[index].is_remote(),
            )
        };
        assert_eq!(mounts.len(), 3, "{mounts:?}");
        assert_eq!(of(0), ("/proc/7/root/", false));
        assert_eq!(of(1), ("/proc/7/root/mnt/my data", false));
        assert_eq!(of(2), ("/proc/7/root/home", true));
    }

    #[test]
    fn our_root_is_among_our_mounts() {
        assert!(ours().iter().any(|mount| mount.path == Path::new("/")));
        assert!(namespace(std::process::id()).is_some());
    }
}
