//! Holds programs that are about to begin until it is known what they are, by fanotify's permission
//! events for execution.
//!
//! Nobody must have to wait for us for long, whatever becomes of us. So a process of its own keeps the
//! time limit ([`guard`]), and this end only asks it to let programs go on sooner.

mod guard;
mod message;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};

pub use self::guard::guard_exec_gate;
use self::message::{Kind, Message};
use crate::error::kernel_release;
use crate::fanotify::Group;
use crate::mounts::{self, Mount};
use crate::{Error, Executable, ProcessInfo, monotonic_ns};

/// How long we wait at the start for what the guard does at once unless it is stopped or the machine is very
/// busy.
const GUARD_PATIENCE: Duration = Duration::from_secs(30);

/// The same later, when programs wait for us.
const MARK_PATIENCE: Duration = Duration::from_secs(4);

/// Where the kernel has no unique numbers of mounts: for how long we believe that a device number still is the
/// same filesystem's.
const DEVICE_MEMORY: Duration = Duration::from_secs(1);

/// So many times the guard may have been asked in vain whether it is there.
const QUESTIONS_MAX: u32 = 3;

/// So many programs are taken over at a time.
const STARTING_MAX: usize = 64;

/// After so many mounts that have been marked, all of them are forgotten: to mark them twice is no harm.
const MARKED_MOUNTS_MAX: usize = 65536;

/// A program that is about to begin, or has just begun because it could not be held.
#[derive(Debug)]
pub struct StartingProgram {
    id: u64,
    pid: u32,
    file: File,
    /// 0 if it was not held.
    held_until_ns: u64,
}

impl StartingProgram {
    /// The process that is about to execute the file: what it will be then. `None` if it has ended.
    pub fn process(&self) -> Option<ProcessInfo> {
        ProcessInfo::about_to_execute(self.pid, &self.file, self.path()).ok()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether there is no such process any more.
    pub fn has_ended(&self) -> bool {
        !Path::new(&format!("/proc/{}/exe", self.pid)).exists()
    }

    /// What would be known of the process if it had ended: which file it executes.
    pub fn file_info(&self) -> io::Result<ProcessInfo> {
        ProcessInfo::of_file(self.pid, &self.file, self.path())
    }

    /// The file.
    pub fn executable(&self) -> io::Result<Executable> {
        Executable::of_file(self.file.try_clone()?, self.path())
    }

    /// Whether it still has to wait. Once it need not, it may be running.
    pub fn is_held(&self) -> bool {
        monotonic_ns() < self.held_until_ns
    }

    /// For people.
    fn path(&self) -> PathBuf {
        let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        std::fs::read_link(link).unwrap_or_default()
    }
}

/// What is to become of a program that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    GoOn,
    /// It goes on, and nobody is held any more who executes this file, until it changes.
    Ignore,
}

/// A gate that programs have to pass before they begin. Open for good when this is dropped.
#[derive(Debug)]
pub struct ExecGate {
    guard: Child,
    socket: OwnedFd,
    starting: VecDeque<StartingProgram>,
    /// Unique numbers of mounts whose programs are held, or can't be. The kernel forgets its mark with the
    /// filesystem, at the last unmount, and gives the device number to the next one.
    marked_mounts: HashSet<u64>,
    /// Device numbers, where the kernel has no unique numbers of mounts; and since when they are remembered.
    marked_devices: HashSet<String>,
    remembered_since: Instant,
    /// Mount namespaces that were seen since then.
    namespaces: HashSet<OsString>,
    /// Those that have been looked at in this look.
    looked_at: HashSet<OsString>,
    own_namespace: Option<OsString>,
    /// How long we wait for the guard.
    patience: Duration,
    /// By device number.
    not_held: BTreeMap<String, PathBuf>,
    untold: u64,
    /// How often the guard has not said yet that it is there.
    questions: u32,
    has_ended: bool,
}

impl ExecGate {
    /// Begins to hold programs of all filesystems that are mounted in the mount namespaces of running
    /// processes. The command's process is the guard: it has to call [`guard_exec_gate`].
    pub fn close(mut guard: Command) -> Result<Self, Error> {
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        guard.stdin(OwnedFd::from(theirs));
        // Whoever reads our output must not wait for the guard's end.
        guard.stdout(Stdio::null()).stderr(Stdio::null());
        let process = guard.spawn().map_err(failed)?;
        // Has the guard's end of the socket, whose last copy is to be the guard's own.
        drop(guard);
        let mut gate = Self {
            guard: process,
            socket: ours.into(),
            starting: VecDeque::new(),
            marked_mounts: HashSet::new(),
            marked_devices: HashSet::new(),
            remembered_since: Instant::now(),
            namespaces: HashSet::new(),
            looked_at: HashSet::new(),
            own_namespace: mounts::namespace(std::process::id()),
            patience: GUARD_PATIENCE,
            not_held: BTreeMap::new(),
            untold: 0,
            questions: 0,
            has_ended: false,
        };
        gate.begin()?;
        Ok(gate)
    }

    fn begin(&mut self) -> Result<(), Error> {
        match self.wait_for(Kind::Ready) {
            Some(0) => {}
            Some(error) => return Err(refused(error)),
            None => return Err(failed(io::ErrorKind::TimedOut.into())),
        }
        let held = self.hold_mounts(mounts::ours());
        if let Err(error) = held {
            return Err(refused(error));
        }
        let running = crate::processes::pids()?;
        // Filesystems that are there at the same time have device numbers of their own.
        self.namespaces
            .extend(running.iter().copied().filter_map(mounts::namespace));
        for pid in running {
            self.hold_mounts_of(pid);
        }
        self.patience = MARK_PATIENCE;
        Ok(())
    }

    /// Process id of the guard.
    pub fn guard_pid(&self) -> u32 {
        self.guard.id()
    }

    /// Call it before looking at mounts again that may have come and gone since the last look.
    pub fn begin_look(&mut self) {
        self.looked_at.clear();
        if self.remembered_since.elapsed() >= DEVICE_MEMORY {
            self.remembered_since = Instant::now();
            self.marked_devices.clear();
            self.namespaces.clear();
        }
    }

    /// Also holds programs of filesystems that have been mounted meanwhile in our mount namespace, or in
    /// that of the first process.
    pub fn hold_new_mounts(&mut self) {
        self.begin_look();
        self.marked_devices.clear();
        // What can't be held is in `not_held`.
        let _ = self.hold_mounts(mounts::ours());
        self.hold_mounts_of(1);
    }

    /// Also holds programs of filesystems in a process's mount namespace, if that is not ours and has not been
    /// looked at in this look: nobody tells what is mounted there.
    pub fn hold_mounts_of(&mut self, pid: u32) {
        let Some(namespace) = mounts::namespace(pid) else {
            return;
        };
        if Some(&namespace) == self.own_namespace.as_ref()
            || !self.looked_at.insert(namespace.clone())
        {
            return;
        }
        if self.namespaces.insert(namespace) {
            // Filesystems of a new container may have device numbers of one that has just ended.
            self.marked_devices.clear();
        }
        let _ = self.hold_mounts(mounts::of_process(pid));
    }

    /// The last error if programs of none of them are held.
    fn hold_mounts(&mut self, mounts: Vec<Mount>) -> Result<(), u64> {
        let no_answer = u64::from(libc::ETIMEDOUT.unsigned_abs());
        let (mut last_error, mut is_any_held) = (0, false);
        for mount in mounts {
            let error = if mount.is_remote() {
                libc::EREMOTE.unsigned_abs().into()
            } else {
                // Where the process has ended that we look through, another one will come.
                let Ok(place) = open_place(&mount.path) else {
                    continue;
                };
                let id = unique_id(&place);
                let is_known = match id {
                    Some(id) => self.marked_mounts.contains(&id),
                    None => self.marked_devices.contains(&mount.device),
                };
                if is_known {
                    continue;
                }
                let Ok(file) = open_to_mark(&place) else {
                    continue;
                };
                let marked = self.mark(file.as_fd());
                if marked.is_ok() {
                    self.remember(id, &mount.device);
                }
                marked.unwrap_or_else(|error| error)
            };
            if error == 0 {
                is_any_held = true;
                continue;
            }
            last_error = error;
            self.not_held.entry(mount.device).or_insert(mount.path);
            if error == no_answer {
                // It would hold up every program that starts. If it can't be killed, it has ended.
                let _ = self.guard.kill();
                break;
            }
        }
        if is_any_held { Ok(()) } else { Err(last_error) }
    }

    fn remember(&mut self, id: Option<u64>, device: &str) {
        match id {
            Some(id) => {
                if self.marked_mounts.len() >= MARKED_MOUNTS_MAX {
                    self.marked_mounts.clear();
                }
                self.marked_mounts.insert(id);
            }
            None => {
                self.marked_devices.insert(device.to_owned());
            }
        }
    }

    /// Has the guard hold programs of a filesystem. The kernel's error, or 0; outside, why the guard could not be
    /// asked, or `ETIMEDOUT` if it does not answer.
    fn mark(&mut self, file: BorrowedFd<'_>) -> Result<u64, u64> {
        let no_answer = libc::ETIMEDOUT.unsigned_abs().into();
        match Message::new(Kind::Mark).send(self.socket.as_fd(), Some(file)) {
            Ok(()) => self.wait_for(Kind::Marked).ok_or(no_answer),
            Err(errno) => Err(errno.raw_os_error().unsigned_abs().into()),
        }
    }

    /// The mount points of filesystems whose programs are not held: they would have to wait for a
    /// server, or the kernel can't.
    pub fn not_held(&self) -> impl Iterator<Item = &Path> {
        self.not_held.values().map(PathBuf::as_path)
    }

    /// The next program that starts.
    pub fn next_program(&mut self) -> Option<StartingProgram> {
        self.receive();
        self.starting.pop_front()
    }

    /// Says what is to become of a program. If this can't be said, the guard lets it go on in time.
    pub fn answer(&self, program: &StartingProgram, verdict: Verdict) {
        let kind = match verdict {
            Verdict::GoOn => Kind::Release,
            Verdict::Ignore => Kind::Ignore,
        };
        let answer = Message {
            id: program.id,
            ..Message::new(kind)
        };
        let _ = answer.send(self.socket.as_fd(), None);
    }

    /// How many programs, of whatever kind, began without being held and without a word of them, because
    /// too many others had not been answered yet.
    pub fn untold(&self) -> u64 {
        self.untold
    }

    /// Asks whether the guard is there; call it about once in a second. One that says nothing several
    /// times would hold up every program that starts: it is killed.
    pub fn check(&mut self) {
        self.receive();
        if self.questions >= QUESTIONS_MAX {
            // If it fails, the guard has ended.
            let _ = self.guard.kill();
        }
        if Message::new(Kind::AreYouThere)
            .send(self.socket.as_fd(), None)
            .is_ok()
        {
            self.questions += 1;
        }
    }

    /// Whether the guard is gone, and nothing is held any more.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether there is a next one although the gate may not be readable.
    pub fn has_next(&self) -> bool {
        !self.starting.is_empty()
    }

    /// Takes what the guard has said by now, unless there is enough to do: each program is an open file.
    fn receive(&mut self) {
        while self.starting.len() < STARTING_MAX {
            let Some((message, file)) = self.message() else {
                break;
            };
            self.take(message, file);
        }
    }

    fn message(&mut self) -> Option<(Message, Option<OwnedFd>)> {
        let message = Message::receive(self.socket.as_fd());
        self.has_ended |= message.is_err();
        message.unwrap_or_default()
    }

    fn take(&mut self, message: Message, file: Option<OwnedFd>) {
        self.questions = 0;
        self.untold = self.untold.max(message.untold);
        match (message.kind, file) {
            (Kind::Starting, Some(file)) => self.starting.push_back(StartingProgram {
                id: message.id,
                pid: message.pid,
                file: file.into(),
                held_until_ns: message.number,
            }),
            // We had no descriptor left for it: the time limit will have to do.
            (Kind::Starting, None) => self.untold += 1,
            _ => {}
        }
    }

    /// Waits for a message of this kind and returns its number.
    fn wait_for(&mut self, kind: Kind) -> Option<u64> {
        let deadline = Instant::now() + self.patience;
        while !self.has_ended {
            while let Some((message, file)) = self.message() {
                if message.kind == kind {
                    return Some(message.number);
                }
                self.take(message, file);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let timeout = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut descriptors = [PollFd::new(&self.socket, PollFlags::IN)];
            // If it fails, the next attempt to receive does too.
            let _ = poll(&mut descriptors, Some(&timeout));
        }
        None
    }
}

impl AsFd for ExecGate {
    /// Readable when there is a next one, or the guard is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for ExecGate {
    fn drop(&mut self) {
        // It would end by itself as soon as the socket is closed, unless it is stopped.
        let _ = self.guard.kill();
        let _ = self.guard.try_wait();
    }
}

/// Whether programs could be held here, found out without holding any: nobody can execute a directory.
pub fn rehearse_exec_gate() -> Result<(), Error> {
    let refusal = |error: io::Error| refused(number_of(Some(&error)));
    let root = File::open("/").map_err(failed)?;
    let group = Group::new().map_err(refusal)?;
    group.ask_about(root.as_fd()).map_err(refusal)
}

/// The error's number for a message; 0 if there is no error.
fn number_of(error: Option<&io::Error>) -> u64 {
    let number = error.map(|error| error.raw_os_error().unwrap_or(libc::EIO));
    number.unwrap_or_default().unsigned_abs().into()
}

/// Finds a mount point, without an effect on what is there.
fn open_place(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Opens it, or nothing if that is neither a directory nor a regular file: opening devices and pipes has
/// effects.
fn open_to_mark(place: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    match FileType::from_raw_mode(rustix::fs::fstat(place)?.st_mode) {
        FileType::Directory | FileType::RegularFile => {}
        _ => return Err(rustix::io::Errno::NOTSUP),
    }
    let same = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(same, flags, Mode::empty())
}

/// The number of the mount that this is on, which is never used again; `None` before Linux 6.8.
fn unique_id(place: &OwnedFd) -> Option<u64> {
    /// include/uapi/linux/stat.h
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE);
    let found = rustix::fs::statx(place, "", flags, wanted).ok()?;
    (found.stx_mask & STATX_MNT_ID_UNIQUE != 0).then_some(found.stx_mnt_id)
}

fn failed(reason: io::Error) -> Error {
    Error::System {
        what: "holding programs that start, by fanotify",
        reason,
    }
}

/// Why the kernel does not let us hold programs.
fn refused(error: u64) -> Error {
    let error = i32::try_from(error).unwrap_or(libc::EIO);
    match error {
        libc::EPERM => Error::MissingCapabilities {
            what: "hold programs that start, by fanotify",
            missing: "CAP_SYS_ADMIN".into(),
        },
        // A mask that it does not know, or was built without.
        libc::EINVAL | libc::ENOSYS => Error::Unsupported {
            feature: "way to hold programs that start (fanotify's FAN_OPEN_EXEC_PERM)",
            kernel: kernel_release(),
            since: "5.0",
            option: "CONFIG_FANOTIFY_ACCESS_PERMISSIONS",
        },
        _ => failed(io::Error::from_raw_os_error(error)),
    }
}

/// Allows as many files to be open as we may, and returns how many that is. Where the guard can't have a
/// descriptor for a program that is held, the kernel does not let it begin.
pub fn raise_limit_of_open_files() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If that fails, the limit stays what it is.
    let _ = setrlimit(Resource::Nofile, limit);
    let now = getrlimit(Resource::Nofile).current;
    now.map_or(usize::MAX, |now| usize::try_from(now).unwrap_or(usize::MAX))
}
