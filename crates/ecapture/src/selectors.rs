//! Which processes: by number, name, executable, user, cgroup or container.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use capture::{Identity, Library, ProcessInfo};
use glob::Pattern;

use crate::container::Container;
use crate::users::uid;

/// What a process has to be, or must not be. Several of one kind are alternatives; the kinds have to
/// hold together.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Which processes")]
pub(crate) struct Selectors {
    /// With this process id; as all of these, it may be repeated
    #[arg(short, long = "pid", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pids: Vec<u32>,

    /// Running this executable, whatever path led to it
    #[arg(short, long = "elfpath", value_name = "PATH")]
    pub(crate) executables: Vec<PathBuf>,

    /// With a name like this (`web-*`): of the first thread, or of the executable
    #[arg(long = "comm", value_name = "GLOB", value_parser = Pattern::new)]
    pub(crate) names: Vec<Pattern>,

    /// Of this user: a name of /etc/passwd, or a number
    #[arg(short, long = "user", visible_alias = "uid", value_name = "USER", value_parser = uid)]
    pub(crate) users: Vec<u32>,

    /// In this cgroup or below it
    #[arg(long = "cgroup_path", alias = "cgroup-path", value_name = "PATH", value_parser = cgroup)]
    pub(crate) cgroups: Vec<PathBuf>,

    /// In this container: its id, the beginning of it, or the name of its pod
    #[arg(long = "container", value_name = "ID")]
    pub(crate) containers: Vec<String>,

    /// Not with this process id
    #[arg(long = "exclude-pid", value_name = "N")]
    pub(crate) excluded_pids: Vec<u32>,

    /// Not running this executable
    #[arg(long = "exclude-elfpath", value_name = "PATH")]
    pub(crate) excluded_executables: Vec<PathBuf>,

    /// Not with a name like this
    #[arg(long = "exclude-comm", value_name = "GLOB", value_parser = Pattern::new)]
    pub(crate) excluded_names: Vec<Pattern>,

    /// Not of this user
    #[arg(long = "exclude-user", visible_alias = "exclude-uid", value_name = "USER", value_parser = uid)]
    pub(crate) excluded_users: Vec<u32>,

    /// Not in this cgroup, nor below it
    #[arg(long = "exclude-cgroup_path", alias = "exclude-cgroup-path", value_name = "PATH", value_parser = cgroup)]
    pub(crate) excluded_cgroups: Vec<PathBuf>,

    /// Not in this container
    #[arg(long = "exclude-container", value_name = "ID")]
    pub(crate) excluded_containers: Vec<String>,
}

impl Selectors {
    /// Whether nothing was said, so that every process is meant.
    pub(crate) fn is_empty(&self) -> bool {
        let Self {
            pids,
            executables,
            names,
            users,
            cgroups,
            containers,
            excluded_pids,
            excluded_executables,
            excluded_names,
            excluded_users,
            excluded_cgroups,
            excluded_containers,
        } = self;
        pids.is_empty()
            && executables.is_empty()
            && names.is_empty()
            && users.is_empty()
            && cgroups.is_empty()
            && containers.is_empty()
            && excluded_pids.is_empty()
            && excluded_executables.is_empty()
            && excluded_names.is_empty()
            && excluded_users.is_empty()
            && excluded_cgroups.is_empty()
            && excluded_containers.is_empty()
    }

    /// What is meant, if that is one executable, perhaps in one process or of one user.
    pub(crate) fn one(&self) -> Option<One<'_>> {
        let rest = Self {
            pids: Vec::new(),
            executables: Vec::new(),
            users: Vec::new(),
            ..self.clone()
        };
        let at_most_one =
            self.pids.len() <= 1 && self.executables.len() <= 1 && self.users.len() <= 1;
        let some = !self.pids.is_empty() || !self.executables.is_empty();
        (rest.is_empty() && at_most_one && some).then(|| One {
            pid: self.pids.first().copied(),
            elfpath: self.executables.first().map(PathBuf::as_path),
            uid: self.users.first().copied(),
        })
    }

    /// Whether processes that run the same executable are to be told apart.
    pub(crate) fn are_about_processes(&self) -> bool {
        let executables_only = Self {
            executables: Vec::new(),
            excluded_executables: Vec::new(),
            ..self.clone()
        };
        !executables_only.is_empty()
    }

    /// Whether some process could be meant that runs a program, of which no more is known.
    pub(crate) fn may_mean(&self, program: &ProcessInfo) -> bool {
        let about_programs = Self {
            executables: self.executables.clone(),
            names: self.names.clone(),
            excluded_executables: self.excluded_executables.clone(),
            excluded_names: self.excluded_names.clone(),
            ..Self::default()
        };
        about_programs.matches(program, None)
    }

    /// Whether a process could be meant of which no more is known than its id.
    pub(crate) fn may_mean_pid(&self, pid: u32) -> bool {
        any_or_none(&self.pids, |&wanted| wanted == pid) && !self.excluded_pids.contains(&pid)
    }

    /// Whether a process is meant.
    pub(crate) fn matches(&self, process: &ProcessInfo, container: Option<&Container>) -> bool {
        self.matches_with(process, container, None)
    }

    /// Whether a library that a process has mapped is meant: its own path counts like the executable's.
    pub(crate) fn matches_with(
        &self,
        process: &ProcessInfo,
        container: Option<&Container>,
        library: Option<&Library>,
    ) -> bool {
        let in_cgroup = |cgroup: &PathBuf| process.cgroup.starts_with(cgroup);
        let in_container =
            |name: &String| container.is_some_and(|container| container.is_called(name));
        let named = |pattern: &Pattern| is_named(process, pattern);
        let running = |path: &PathBuf| {
            let mapped = |library: &Library| is_file(path, library.identity, &library.name);
            is_file(path, process.identity, &process.executable) || library.is_some_and(mapped)
        };

        any_or_none(&self.pids, |&pid| pid == process.pid)
            && any_or_none(&self.executables, running)
            && any_or_none(&self.names, named)
            && any_or_none(&self.users, |&uid| uid == process.uid)
            && any_or_none(&self.cgroups, in_cgroup)
            && any_or_none(&self.containers, in_container)
            && !self.excluded_pids.contains(&process.pid)
            && !self.excluded_executables.iter().any(running)
            && !self.excluded_names.iter().any(named)
            && !self.excluded_users.contains(&process.uid)
            && !self.excluded_cgroups.iter().any(in_cgroup)
            && !self.excluded_containers.iter().any(in_container)
    }
}

/// One executable, given by its path or by a process that runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct One<'a> {
    pub(crate) pid: Option<u32>,
    pub(crate) elfpath: Option<&'a Path>,
    pub(crate) uid: Option<u32>,
}

/// Nothing asked for is everything.
fn any_or_none<T>(wanted: &[T], is_it: impl FnMut(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(is_it)
}

fn is_named(process: &ProcessInfo, pattern: &Pattern) -> bool {
    let file = process
        .executable
        .file_name()
        .map(|name| name.to_string_lossy());
    pattern.matches(&String::from_utf8_lossy(&process.comm))
        || file.is_some_and(|name| pattern.matches(&name))
}

/// Whether a file that a process uses is the one at `path` now, or was there when the process began.
fn is_file(path: &Path, identity: Identity, name: &Path) -> bool {
    let same_file = fs::metadata(path)
        .is_ok_and(|file| file.dev() == identity.device && file.ino() == identity.inode);
    same_file || name == path
}

/// A path in the cgroup filesystem, or from the root of the hierarchy: the latter.
fn cgroup(text: &str) -> Result<PathBuf, String> {
    const MOUNTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

    let path = Path::new(text);
    let inside = MOUNTS
        .iter()
        .find_map(|mount| path.strip_prefix(mount).ok());
    let path = match inside {
        Some(inside) => Path::new("/").join(inside),
        None if path.is_absolute() => path.to_owned(),
        None => return Err("give an absolute path, such as /sys/fs/cgroup/system.slice".to_owned()),
    };
    Ok(path)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        selectors: Selectors,
    }

    fn selects(line: &str) -> bool {
        let process = ProcessInfo {
            pid: 42,
            uid: 1000,
            comm: b"web-server".to_vec(),
            executable: "/srv/app (deleted)".into(),
            identity: Identity {
                device: u64::MAX,
                inode: 1,
            },
            changed_ns: 0,
            cgroup: "/system.slice/web.service".into(),
        };
        let container = Container {
            id: "my-container".into(),
            ..Container::default()
        };
        let line = Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace()));
        line.unwrap().selectors.matches(&process, Some(&container))
    }

    fn selectors(line: &str) -> Selectors {
        let line = Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace()));
        line.unwrap().selectors
    }

    #[test]
    fn one_executable_is_told_from_many() {
        for line in ["-e /a", "-p 1", "-e /a -p 1 -u 0"] {
            assert!(selectors(line).one().is_some(), "{line}");
        }
        for line in [
            "",
            "-u 0",
            "-e /a -e /b",
            "-p 1 -p 2",
            "-p 1 --comm x",
            "-e /a --exclude-pid 1",
        ] {
            assert!(selectors(line).one().is_none(), "{line}");
        }
        for line in ["", "-e /a -e /b", "-e /a --exclude-elfpath /b"] {
            assert!(!selectors(line).are_about_processes(), "{line}");
        }
        assert!(selectors("-e /a --exclude-pid 1").are_about_processes());
    }

    #[test]
    fn each_selector_selects() {
        for line in [
            "",
            "--pid 42",
            "--pid 1 --pid 42",
            "--comm web-*",
            "--comm app*",
            "--uid 1000",
            "--user 1000",
            "--cgroup_path /sys/fs/cgroup/system.slice",
            "--cgroup_path /sys/fs/cgroup/unified/system.slice/web.service",
            "--cgroup_path /",
            "--container my-container",
            "--exclude-pid 43 --exclude-comm x* --exclude-uid 0 --exclude-container other",
        ] {
            assert!(selects(line), "{line}");
        }
        for line in [
            "--pid 43",
            "--comm web",
            "--uid 0",
            "--user root",
            "--elfpath /bin/sh",
            "--cgroup_path /system.slice/web",
            "--container my",
            "--pid 42 --uid 0",
            "--exclude-pid 42",
            "--exclude-comm *-server",
            "--exclude-user 1000",
            "--exclude-cgroup_path /system.slice",
            "--exclude-container my-container",
            "--comm web-* --exclude-pid 42",
        ] {
            assert!(!selects(line), "{line}");
        }
    }

    #[test]
    fn wrong_selectors_are_explained() {
        for (line, expected) in [
            ("--user no-such-user", "no such user"),
            ("--comm [", "invalid range pattern"),
            ("--cgroup_path system.slice", "absolute path"),
            ("--pid 0", "0 is not in"),
        ] {
            let line = Line::try_parse_from(["x"].into_iter().chain(line.split(' ')));
            let error = line.map(drop).unwrap_err().to_string();
            assert!(error.to_lowercase().contains(expected), "{error}");
        }
    }
}
