//! Holds programs that are about to begin until it is known what they are, by fanotify's permission
//! events for execution (fanotify(7), `FAN_OPEN_EXEC_PERM`, Linux 5.0).
//!
//! Nobody must have to wait for us for long. A thread that does nothing else lets everything go on when
//! its time is up, and when the group's descriptor is closed, which is what the end of this process
//! does however it comes, the kernel lets everything go on.

use std::collections::{HashSet, VecDeque};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::mounts::{self, Mount};
use crate::{Error, Executable, ProcessInfo};

/// After this time a program begins whether it is known or not.
const LONGEST_HOLD: Duration = Duration::from_secs(2);

/// No more than so many wait at the same time; further ones begin at once.
const HELD_MAX: usize = 128;

/// After so many files that need no longer be held, all of them are forgotten: each is remembered by the
/// kernel, with its inode.
const IGNORED_MAX: usize = 16384;

/// A program that is about to begin: it goes on when this is dropped.
#[derive(Debug)]
pub struct HeldExec {
    /// Does not keep it: once the gate is gone, the kernel lets everything go on.
    gate: Weak<Gate>,
    file: File,
    pid: u32,
    answered: AtomicBool,
}

impl HeldExec {
    /// The process that is about to execute the file: what it will be then. `None` if it has ended.
    pub fn process(&self) -> Option<ProcessInfo> {
        ProcessInfo::about_to_execute(self.pid, &self.file, self.path()).ok()
    }

    /// The file.
    pub fn executable(&self) -> io::Result<Executable> {
        Executable::of_file(self.file.try_clone()?, self.path())
    }

    /// For people.
    fn path(&self) -> PathBuf {
        let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        std::fs::read_link(link).unwrap_or_default()
    }

    /// This file is of no interest: whoever executes it is not held any more, until it changes.
    pub fn ignore(&self) {
        let Some(gate) = self.gate.upgrade() else {
            return;
        };
        if gate.ignored.fetch_add(1, Ordering::Relaxed) >= IGNORED_MAX {
            gate.ignored.store(0, Ordering::Relaxed);
            // Forgotten are marks on files, not those on filesystems.
            let _ = gate.mark(libc::FAN_MARK_FLUSH, 0, None, Path::new("/"));
        }
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORED_MASK;
        let file = Some(self.file.as_fd());
        let mark = |flags| gate.mark(flags, libc::FAN_OPEN_EXEC_PERM, file, Path::new(""));
        // Linux 5.19 can forget such a mark with its inode. If neither works, the file is held again.
        if mark(flags | FAN_MARK_EVICTABLE).is_err() {
            let _ = mark(flags);
        }
    }

    /// Lets it go on. Whether it had to wait until now.
    pub fn release(&self) -> bool {
        if self.answered.swap(true, Ordering::AcqRel) {
            return false;
        }
        if let Some(gate) = self.gate.upgrade() {
            gate.allow(self.file.as_raw_fd());
        }
        true
    }
}

impl Drop for HeldExec {
    fn drop(&mut self) {
        self.release();
    }
}

/// include/uapi/linux/fanotify.h, Linux 5.19.
const FAN_MARK_EVICTABLE: u32 = 0x200;

/// What all parts share.
#[derive(Debug)]
struct Gate {
    group: OwnedFd,
    queue: Mutex<VecDeque<Arc<HeldExec>>>,
    /// Readable when there is something in the queue.
    ready: OwnedFd,
    stop: OwnedFd,
    ignored: AtomicUsize,
    /// Programs that began because their time was up, or too many were waiting.
    let_go: AtomicUsize,
    /// The one who decides is too slow: nothing is held until it goes on.
    behind: AtomicBool,
}

impl Gate {
    fn mark(
        &self,
        flags: u32,
        mask: u64,
        file: Option<BorrowedFd<'_>>,
        path: &Path,
    ) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let (file, path) = match file {
            // Without a path, the descriptor is meant.
            Some(file) => (file.as_raw_fd(), std::ptr::null()),
            None => (libc::AT_FDCWD, path.as_ptr()),
        };
        // SAFETY: The group is open, and the path is null or ends with NUL and lives until the call
        // returns.
        let result =
            unsafe { libc::fanotify_mark(self.group.as_raw_fd(), flags, mask, file, path) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn allow(&self, fd: i32) {
        let response = libc::fanotify_response {
            fd,
            response: libc::FAN_ALLOW,
        };
        let mut bytes = [0; size_of::<libc::fanotify_response>()];
        bytes[..4].copy_from_slice(&response.fd.to_ne_bytes());
        bytes[4..].copy_from_slice(&response.response.to_ne_bytes());
        // If it fails, the program has been killed meanwhile.
        let _ = rustix::io::write(&self.group, &bytes);
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<HeldExec>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A gate that programs have to pass before they begin. Open for good when this is dropped.
#[derive(Debug)]
pub struct ExecGate {
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
    devices: HashSet<String>,
    own_namespace: Option<OsString>,
    not_held: Vec<PathBuf>,
}

impl ExecGate {
    /// Begins to hold programs of all filesystems that are mounted in the mount namespaces of running
    /// processes.
    pub fn close() -> Result<Self, Error> {
        let failed = |source| Error::System {
            what: "holding programs that start, by fanotify",
            source,
        };
        let descriptor = |fd: rustix::io::Result<OwnedFd>| fd.map_err(|errno| failed(errno.into()));
        let gate = Arc::new(Gate {
            group: group().map_err(failed)?,
            queue: Mutex::default(),
            ready: descriptor(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK))?,
            stop: descriptor(eventfd(0, EventfdFlags::CLOEXEC))?,
            ignored: AtomicUsize::new(0),
            let_go: AtomicUsize::new(0),
            behind: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&gate);
        let thread = std::thread::Builder::new()
            .name("gate".into())
            .spawn(move || keep_watch(&theirs))
            .map_err(failed)?;
        let mut gate = Self {
            gate,
            thread: Some(thread),
            devices: HashSet::new(),
            own_namespace: mounts::namespace(std::process::id()),
            not_held: Vec::new(),
        };
        gate.hold_mounts(mounts::ours());
        if gate.devices.is_empty() {
            return Err(failed(io::ErrorKind::Unsupported.into()));
        }
        let mut seen = HashSet::new();
        for pid in crate::processes::pids()? {
            if mounts::namespace(pid).is_some_and(|namespace| seen.insert(namespace)) {
                gate.hold_mounts_of(pid);
            }
        }
        Ok(gate)
    }

    /// Also holds programs of filesystems that have been mounted in our mount namespace meanwhile.
    pub fn hold_new_mounts(&mut self) {
        self.hold_mounts(mounts::ours());
    }

    /// Also holds programs of filesystems in a process's mount namespace, if that is not ours: nobody
    /// tells what is mounted there.
    pub fn hold_mounts_of(&mut self, pid: u32) {
        if mounts::namespace(pid).is_some_and(|namespace| Some(namespace) != self.own_namespace) {
            self.hold_mounts(mounts::of_process(pid));
        }
    }

    fn hold_mounts(&mut self, mounts: Vec<Mount>) {
        for mount in mounts {
            if !self.devices.contains(&mount.device) {
                let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
                let held = !mount.is_remote()
                    && self
                        .gate
                        .mark(flags, libc::FAN_OPEN_EXEC_PERM, None, &mount.path)
                        .is_ok();
                if !held {
                    self.not_held.push(mount.path);
                }
                self.devices.insert(mount.device);
            }
        }
    }

    /// The mount points of filesystems whose programs are not held: they would have to wait for a
    /// server, or the kernel can't.
    pub fn not_held(&self) -> &[PathBuf] {
        &self.not_held
    }

    /// The next program that waits.
    pub fn next(&self) -> Option<Arc<HeldExec>> {
        let mut queue = self.gate.queue();
        self.gate.behind.store(false, Ordering::Relaxed);
        let next = queue.pop_front();
        if next.is_none() {
            // A counter that is zero already is as good.
            let _ = rustix::io::read(&self.gate.ready, &mut [0; 8]);
        }
        next
    }

    /// How many programs began before they were released, because that took too long.
    pub fn let_go(&self) -> usize {
        self.gate.let_go.load(Ordering::Relaxed)
    }
}

impl AsFd for ExecGate {
    /// Readable when there is a next one.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.gate.ready.as_fd()
    }
}

impl Drop for ExecGate {
    fn drop(&mut self) {
        // A counter that is full is as good as one that counts further.
        let _ = rustix::io::write(&self.gate.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Allows as many files to be open as we may, and returns how many that is. Where a descriptor can't be
/// had for a program that is held, the kernel does not let it begin.
pub fn raise_limit_of_open_files() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If that fails, the limit stays what it is.
    let _ = setrlimit(Resource::Nofile, limit);
    let now = getrlimit(Resource::Nofile).current;
    now.map_or(usize::MAX, |now| usize::try_from(now).unwrap_or(usize::MAX))
}

fn group() -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_CONTENT
        | libc::FAN_CLOEXEC
        | libc::FAN_NONBLOCK
        | libc::FAN_UNLIMITED_QUEUE
        | libc::FAN_UNLIMITED_MARKS;
    let file_flags = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC;
    // SAFETY: Plain numbers go in, a descriptor comes out.
    let group = unsafe { libc::fanotify_init(flags, file_flags.cast_unsigned()) };
    if group < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: A new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(group) })
}

/// Takes events and keeps to the time limit, until told to stop.
fn keep_watch(gate: &Arc<Gate>) {
    // Every program of the machine waits for this thread. Needs CAP_SYS_NICE, without it goes as well.
    let _ = rustix::process::nice(-10);
    // If we keep more than that, nothing is lost but caution.
    let _ = crate::give_up_privileges();
    let mut waiting: VecDeque<(Instant, Arc<HeldExec>)> = VecDeque::new();
    loop {
        let timeout = waiting.front().map(|(deadline, _)| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut descriptors = [
            PollFd::new(&gate.stop, PollFlags::IN),
            PollFd::new(&gate.group, PollFlags::IN),
        ];
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
        if !descriptors[0].revents().is_empty() {
            break;
        }
        for held in receive(gate) {
            admit(gate, &mut waiting, held);
        }
        while let Some((deadline, held)) = waiting.front() {
            let answered = held.answered.load(Ordering::Acquire);
            if !answered && *deadline > Instant::now() {
                break;
            }
            if !answered {
                gate.behind.store(true, Ordering::Relaxed);
            }
            if held.release() {
                gate.let_go.fetch_add(1, Ordering::Relaxed);
            }
            waiting.pop_front();
        }
    }
    for held in receive(gate) {
        held.release();
    }
}

/// Has a program wait, if there is anybody to decide.
fn admit(gate: &Arc<Gate>, waiting: &mut VecDeque<(Instant, Arc<HeldExec>)>, held: HeldExec) {
    if held.pid == 0 || held.pid == std::process::id() {
        return; // Not one of our pid namespace, or ourselves.
    }
    if gate.behind.load(Ordering::Relaxed) || waiting.len() >= HELD_MAX {
        gate.let_go.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let held = Arc::new(held);
    waiting.push_back((Instant::now() + LONGEST_HOLD, Arc::clone(&held)));
    gate.queue().push_back(held);
    // A counter that is full is as good as one that counts further.
    let _ = rustix::io::write(&gate.ready, &1u64.to_ne_bytes());
}

/// Takes what events there are.
fn receive(gate: &Arc<Gate>) -> Vec<HeldExec> {
    const METADATA: usize = size_of::<libc::fanotify_event_metadata>();

    let mut buffer = [0; 64 * METADATA];
    let Ok(length) = rustix::io::read(&gate.group, &mut buffer) else {
        return Vec::new();
    };
    let mut events = Vec::new();
    let mut rest = &buffer[..length];
    while rest.len() >= METADATA {
        let field = |offset: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&rest[offset..offset + 4]);
            i32::from_ne_bytes(bytes)
        };
        let fd = field(std::mem::offset_of!(libc::fanotify_event_metadata, fd));
        let pid = field(std::mem::offset_of!(libc::fanotify_event_metadata, pid));
        if fd >= 0 {
            events.push(HeldExec {
                gate: Arc::downgrade(gate),
                // SAFETY: A new descriptor, which the kernel made for this event.
                file: unsafe { File::from_raw_fd(fd) },
                pid: pid.cast_unsigned(),
                answered: AtomicBool::new(false),
            });
        }
        let length = field(0).cast_unsigned() as usize;
        rest = rest.get(length.max(METADATA)..).unwrap_or_default();
    }
    events
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A copy of `true`, which nobody else executes.
    fn program() -> (PathBuf, PathBuf) {
        let directory = std::env::temp_dir().join(format!(
            "ecapture-gate-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("program");
        let copied = Command::new("cp").arg("/bin/true").arg(&path).status();
        assert!(copied.unwrap().success());
        (directory, path)
    }

    fn wait_for(gate: &ExecGate, wanted: &Path) -> Arc<HeldExec> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(held) = gate.next() {
                if held.path() == wanted {
                    return held;
                }
                held.release();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("not held");
    }

    #[test]
    #[ignore = "needs root: run `cargo xtask test`"]
    fn a_program_begins_when_it_is_released_or_its_time_is_up_or_the_gate_is_gone() {
        let (directory, path) = program();
        let gate = ExecGate::close().unwrap();
        let spawn = || {
            let path = path.clone();
            std::thread::spawn(move || Command::new(path).status().unwrap().success())
        };
        let released = spawn();
        let held = wait_for(&gate, &path);
        let process = held.process().unwrap();
        assert_eq!(process.comm, b"program");
        let executable = held.executable().unwrap();
        assert_eq!(process.identity, executable.identity());
        assert!(!released.is_finished());
        assert!(held.release());
        assert!(!held.release());
        assert!(released.join().unwrap());

        let forgotten = spawn();
        let held = wait_for(&gate, &path);
        assert!(forgotten.join().unwrap());
        assert!(!held.release());
        assert!(gate.let_go() >= 1);

        // From then on nothing is held, until somebody looks.
        while let Some(other) = gate.next() {
            other.release();
        }
        let last = spawn();
        let held = wait_for(&gate, &path);
        held.ignore();
        held.release();
        assert!(last.join().unwrap());
        let ignored = spawn();
        assert!(ignored.join().unwrap());
        drop(gate);
        assert!(spawn().join().unwrap());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
