//! The processes that run now, as `/proc` shows them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::executable::{Identity, changed_ns};
use crate::privileges::hidden_process;
use crate::proc_files::{ENVIRONMENT_MAX, parts};
use crate::{Error, Process};

/// A process and what it can be chosen by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Process id, in our own pid namespace.
    pub pid: u32,
    /// Its real user's number.
    pub uid: u32,
    /// The name of its first thread; not necessarily text.
    pub comm: Vec<u8>,
    /// Path of its executable as its own mount namespace has it; for people. The kernel appends
    /// ` (deleted)` if that is so.
    pub executable: PathBuf,
    /// Which file it executes.
    pub identity: Identity,
    /// When this file was last changed, in ns since 1970: one that was replaced may have got the inode
    /// number of the one before.
    pub changed_ns: i128,
    /// Its cgroup, as a path from the root of the cgroup v2 hierarchy; else of the first v1 hierarchy
    /// that says more than `/`.
    pub cgroup: PathBuf,
}

impl ProcessInfo {
    /// Looks at one process. `None` if it has no executable: a kernel thread, or one that has ended.
    pub fn of(pid: u32) -> Result<Option<Self>, Error> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        match Self::read(pid, &directory) {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // A process that ends while we look at it.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(hidden_process(pid))
            }
            Err(reason) => Err(Error::Process {
                pid,
                what: "looking at it",
                reason,
            }),
        }
    }

    fn read(pid: u32, directory: &Path) -> io::Result<Self> {
        let link = directory.join("exe");
        let executable = fs::read_link(&link)?;
        let file = fs::metadata(&link)?;
        let mut comm = fs::read(directory.join("comm"))?;
        comm.truncate(comm.trim_ascii_end().len());
        Ok(Self {
            pid,
            uid: real_user(pid).ok_or(io::ErrorKind::NotFound)?,
            comm,
            executable,
            identity: Identity::of(&file),
            changed_ns: changed_ns(&file),
            cgroup: cgroup(&fs::read(directory.join("cgroup"))?),
        })
    }

    /// What a process will be once it executes a file that it has opened for this.
    pub(crate) fn about_to_execute(pid: u32, file: &File, path: PathBuf) -> io::Result<Self> {
        Ok(Self {
            uid: real_user(pid).ok_or(io::ErrorKind::NotFound)?,
            cgroup: cgroup(&fs::read(format!("/proc/{pid}/cgroup"))?),
            ..Self::of_file(pid, file, path)?
        })
    }

    /// What can be said of a process that has ended if only the file is known that it executed.
    pub(crate) fn of_file(pid: u32, file: &File, path: PathBuf) -> io::Result<Self> {
        /// TASK_COMM_LEN without the NUL.
        const COMM_MAX: usize = 15;

        let metadata = file.metadata()?;
        let mut comm = path.file_name().unwrap_or_default().as_bytes().to_vec();
        comm.truncate(COMM_MAX);
        Ok(Self {
            pid,
            uid: u32::MAX,
            comm,
            executable: path,
            identity: Identity::of(&metadata),
            changed_ns: changed_ns(&metadata),
            cgroup: PathBuf::new(),
        })
    }

    /// Holds on to the process.
    pub fn open(&self) -> Result<Process, Error> {
        Process::open(self.pid)
    }
}

/// All processes that have an executable and may be looked at, and the ids of those that may not.
pub fn running() -> Result<(Vec<ProcessInfo>, Vec<u32>), Error> {
    let (mut found, mut hidden) = (Vec::new(), Vec::new());
    for pid in pids()? {
        match ProcessInfo::of(pid) {
            Ok(info) => found.extend(info),
            Err(Error::HiddenProcess { .. }) => hidden.push(pid),
            Err(error) => return Err(error),
        }
    }
    Ok((found, hidden))
}

/// The processes that run one file, of one user; or all.
pub(crate) fn running_file(
    executable: Option<Identity>,
    uid: Option<u32>,
) -> Result<Vec<u32>, Error> {
    let mut pids = pids()?;
    pids.retain(|&pid| {
        executable.is_none_or(|wanted| identity(pid) == Some(wanted))
            && uid.is_none_or(|wanted| real_user(pid) == Some(wanted))
    });
    Ok(pids)
}

/// All processes, in the order of their ids.
pub(crate) fn pids() -> Result<Vec<u32>, Error> {
    let failed = |reason| Error::System {
        what: "listing the processes in /proc",
        reason,
    };
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    pids.sort_unstable();
    Ok(pids)
}

/// Which file a process runs; `None` for those that have ended, and for kernel threads.
fn identity(pid: u32) -> Option<Identity> {
    let file = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some(Identity::of(&file))
}

/// The user that `bpf_get_current_uid_gid` tells: the first number of proc(5), status, "Uid".
pub(crate) fn real_user(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A line of `/proc/PID/cgroup` is `number:controllers:path`; cgroup v2's has the number 0 and no
/// controllers (cgroups(7)).
fn cgroup(lines: &[u8]) -> PathBuf {
    let paths = lines.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.splitn(3, |&byte| byte == b':');
        let number = fields.next()?;
        let path = fields.nth(1)?;
        Some((number == b"0", path))
    });
    let (mut second, mut first) = (None, None);
    for (is_second, path) in paths {
        if is_second {
            second = Some(path);
        } else if path != b"/" && first.is_none() {
            first = Some(path);
        }
    }
    // In a hybrid set-up the v2 hierarchy may know nothing.
    let path = match (second, first) {
        (Some(path), _) if path != b"/" => path,
        (_, Some(path)) => path,
        _ => b"/",
    };
    PathBuf::from(OsString::from_vec(path.to_vec()))
}

/// Which file a process executes, and when that was last changed, as [`ProcessInfo`] has them.
pub fn executed_file(pid: u32) -> Option<(Identity, i128)> {
    let file = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((Identity::of(&file), changed_ns(&file)))
}

/// A process's cgroup, as [`ProcessInfo::cgroup`] has it. Needs no privilege.
pub fn cgroup_of(pid: u32) -> Option<PathBuf> {
    let lines = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    Some(cgroup(&lines))
}

/// What a process's environment says of a variable, if we may look.
pub fn environment_variable(pid: u32, name: &str) -> Option<OsString> {
    let mut environment = parts(format!("/proc/{pid}/environ"), 0, ENVIRONMENT_MAX).ok()?;
    environment.find_map(|entry| {
        let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(OsStr::from_bytes(value).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::own_process::in_own_process;

    #[test]
    fn we_are_running() {
        let (found, _) = running().unwrap();
        let ourselves = found
            .iter()
            .find(|info| info.pid == std::process::id())
            .unwrap();
        assert_eq!(ourselves.executable, std::env::current_exe().unwrap());
        assert_eq!(ourselves.uid, rustix::process::getuid().as_raw());
        assert!(!ourselves.comm.is_empty());
        assert!(found.is_sorted_by_key(|info| info.pid));
    }

    #[test]
    fn own_process_is_among_those_that_run_our_file() {
        let ours = std::process::id();
        let identity = identity(ours);
        assert!(identity.is_some());
        let user = rustix::process::getuid().as_raw();
        assert!(running_file(identity, Some(user)).unwrap().contains(&ours));
        assert!(
            !running_file(identity, Some(user + 1))
                .unwrap()
                .contains(&ours)
        );
        let other = Identity {
            device: 0,
            inode: 0,
        };
        assert_eq!(running_file(Some(other), None).unwrap(), []);
    }

    #[test]
    fn cgroup_is_found_in_every_set_up() {
        let cgroup = |lines: &str| cgroup(lines.as_bytes()).display().to_string();
        assert_eq!(
            cgroup("0::/system.slice/x.service\n"),
            "/system.slice/x.service"
        );
        assert_eq!(
            cgroup("5:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/\n"),
            "/docker/abc"
        );
        assert_eq!(cgroup("0::/a:b\n"), "/a:b");
        assert_eq!(cgroup(""), "/");
    }

    #[test]
    fn a_process_without_executable_is_no_error() {
        assert_eq!(ProcessInfo::of(u32::MAX).unwrap(), None);
    }

    #[test]
    fn environment_is_readable() {
        let path = environment_variable(std::process::id(), "PATH");
        assert_eq!(path, std::env::var_os("PATH"));
        assert_eq!(environment_variable(std::process::id(), "PAT"), None);
    }

    /// include/uapi/linux/prctl.h, struct prctl_mm_map
    #[repr(C)]
    struct MemoryMap {
        /// As in proc(5), stat: start_code, end_code, start_data, end_data, start_brk, brk, start_stack,
        /// arg_start, arg_end, env_start, env_end.
        addresses: [u64; 11],
        auxv: u64,
        auxv_size: u32,
        executable: i32,
    }

    /// Has /proc/PID/environ show this memory as our environment; any process may do so.
    fn call_our_environment(memory: &[u8]) {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let (_, behind_name) = stat.rsplit_once(')').unwrap();
        let fields: Vec<_> = behind_name.split_whitespace().collect();
        // The first of them is the third of the line.
        let [
            code,
            code_end,
            stack,
            data,
            data_end,
            heap,
            arguments,
            arguments_end,
        ] = [26, 27, 28, 45, 46, 47, 48, 49]
            .map(|number: usize| fields[number - 3].parse().unwrap());
        let range = memory.as_ptr_range();
        let (start, end) = (range.start as u64, range.end as u64);
        // SAFETY: sbrk(0) changes nothing, and what is said here is what is so, but for the environment, which
        // the kernel only shows to others.
        let result = unsafe {
            let heap_end = libc::sbrk(0) as u64;
            let map = MemoryMap {
                addresses: [
                    code,
                    code_end,
                    data,
                    data_end,
                    heap,
                    heap_end,
                    stack,
                    arguments,
                    arguments_end,
                    start,
                    end,
                ],
                auxv: 0,
                auxv_size: 0,
                executable: -1,
            };
            let (map, size) = (&raw const map, size_of::<MemoryMap>());
            libc::prctl(
                libc::PR_SET_MM,
                libc::PR_SET_MM_MAP as usize,
                map,
                size,
                0_usize,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    #[test]
    fn no_more_of_an_environment_is_read_than_a_program_can_begin_with() {
        const NAME: &str =
            "processes::tests::no_more_of_an_environment_is_read_than_a_program_can_begin_with";

        // What a process says to be its environment is one for all tests in it.
        if let Some(output) = in_own_process(NAME) {
            assert!(output.status.success(), "{output:?}");
            return;
        }
        let mut environment = vec![b'x'; 2 * ENVIRONMENT_MAX as usize];
        let last = environment.len() - b"\0LAST=2\0".len();
        environment[..8].copy_from_slice(b"FIRST=1\0");
        environment[last..].copy_from_slice(b"\0LAST=2\0");
        call_our_environment(&environment);
        let ours = std::process::id();
        assert_eq!(environment_variable(ours, "FIRST"), Some("1".into()));
        assert_eq!(environment_variable(ours, "LAST"), None);
    }
}
