//! The guard: a process of its own that does nothing but let programs go on, in time.
//!
//! It has the fanotify group, and nobody else has. So the capture may be stopped, hang or be killed: a
//! program that starts waits for the guard alone. If the guard ends, however that comes, the kernel lets
//! everything go on; and it ends when the capture does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::CapabilitySet;

use super::message::{Kind, Message};
use super::number_of;
use crate::fanotify::{Group, Question};
use crate::privileges::keep_only;
use crate::{monotonic_ns, raise_limit_of_open_files, run_promptly};

/// No more than so many wait at the same time; further ones begin at once.
const HELD_MAX: usize = 128;

/// After so many files that need no longer be held, all of them are forgotten: each is remembered by the
/// kernel, with its inode.
const IGNORED_MAX: usize = 16384;

/// The capture has caught up when no more than so many programs wait for its answer.
const CAUGHT_UP: u64 = 8;

/// Signals that end or stop a process which does nothing about them, and that are sent to all processes
/// of a terminal or a service. Their sender means the capture, whose end the guard notices.
const IGNORED_SIGNALS: [i32; 10] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
];

/// What the process does that [`super::ExecGate::close`] starts: holds programs for no longer than
/// `longest`, as its standard input, a socket, says. Returns when that is closed.
pub fn guard_exec_gate(longest: Duration) -> io::Result<()> {
    let capture = io::stdin().as_fd().try_clone_to_owned()?;
    step_aside();
    guard(capture, longest)
}

/// Where what is meant for the capture does not reach us.
fn step_aside() {
    // If we lead a process group already, it is our own.
    let _ = rustix::process::setsid();
    for signal in IGNORED_SIGNALS {
        // SAFETY: Ignoring a signal runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // Every program of the machine waits for this process. Needs CAP_SYS_NICE, goes without it as well.
    run_promptly();
    raise_limit_of_open_files();
    // Nothing of it shall have to be read from a disk. Needs CAP_IPC_LOCK or a limit that is high enough.
    let flags = rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::ONFAULT;
    let _ = rustix::mm::mlockall(flags);
}

/// Holds programs until `capture` has answered, or `longest` is over, or `capture` is gone.
pub(super) fn guard(capture: OwnedFd, longest: Duration) -> io::Result<()> {
    let group = Group::new();
    // Marking filesystems needs it. If we keep more than that, nothing is lost but caution.
    let _ = keep_only(CapabilitySet::SYS_ADMIN);
    let error = group.as_ref().err();
    let ready = Message {
        number: number_of(error),
        ..Message::new(Kind::Ready)
    };
    ready.send(capture.as_fd(), None)?;
    let mut guard = Guard {
        group: group?,
        capture_pid: rustix::process::getppid().map_or(0, |pid| pid.as_raw_pid().cast_unsigned()),
        capture,
        longest_ns: longest.as_nanos().try_into().unwrap_or(u64::MAX),
        held: BTreeMap::new(),
        told: 0,
        answered: 0,
        untold: 0,
        ignored: 0,
        behind: false,
    };
    while guard.turn()? {}
    Ok(())
}

#[derive(Debug)]
struct Guard {
    group: Group,
    capture: OwnedFd,
    capture_pid: u32,
    longest_ns: u64,
    /// Who waits, by number, and until when: the first one has waited longest.
    held: BTreeMap<u64, (u64, File)>,
    /// The last number that the capture was told of, and the last one that it has answered.
    told: u64,
    answered: u64,
    /// How many the capture could not be told of.
    untold: u64,
    /// Files that are ignored.
    ignored: usize,
    /// The capture has not answered in time: nothing is held until it has caught up.
    behind: bool,
}

impl Guard {
    /// Waits for something to do and does it. Whether there can be more.
    fn turn(&mut self) -> io::Result<bool> {
        let timeout = self.held.first_key_value().map(|(_, &(until_ns, _))| {
            let left = Duration::from_nanos(until_ns.saturating_sub(monotonic_ns()));
            Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut descriptors = [
            PollFd::new(&self.capture, PollFlags::IN),
            PollFd::new(&self.group, PollFlags::IN),
        ];
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if !self.listen() {
            return Ok(false);
        }
        self.let_go();
        for question in self.group.questions() {
            self.admit(question);
        }
        Ok(true)
    }

    /// Does what the capture says. Whether it is still there.
    fn listen(&mut self) -> bool {
        loop {
            match Message::receive(self.capture.as_fd()) {
                Ok(None) => return true,
                Ok(Some((message, file))) => self.obey(message, file),
                Err(_) => return false,
            }
        }
    }

    fn obey(&mut self, message: Message, file: Option<OwnedFd>) {
        match message.kind {
            Kind::Release | Kind::Ignore => {
                self.answered = self.answered.max(message.id);
                self.behind &= self.told - self.answered > CAUGHT_UP;
                if let Some((_, file)) = self.held.remove(&message.id) {
                    if message.kind == Kind::Ignore {
                        self.ignore(&file);
                    }
                    self.group.allow(&file);
                }
            }
            Kind::Mark => {
                let marked = match &file {
                    Some(file) => self.group.ask_about_filesystem(file.as_fd()),
                    None => Err(io::ErrorKind::InvalidInput.into()),
                };
                self.say(Message {
                    number: number_of(marked.as_ref().err()),
                    ..Message::new(Kind::Marked)
                });
            }
            Kind::AreYouThere => self.say(Message::new(Kind::Here)),
            // What only we say.
            Kind::Ready | Kind::Starting | Kind::Marked | Kind::Here => {}
        }
    }

    /// If there is no room for it, the capture has other cares.
    fn say(&self, message: Message) {
        let _ = message.send(self.capture.as_fd(), None);
    }

    fn ignore(&mut self, file: &File) {
        self.ignored += 1;
        if self.ignored > IGNORED_MAX {
            self.ignored = 0;
            // If it fails, there are more marks than there should be.
            let _ = self.group.forget_ignored();
        }
        // If it fails, the file is held again.
        let _ = self.group.ignore(file.as_fd());
    }

    /// Lets those go on whose time is up.
    fn let_go(&mut self) {
        let now_ns = monotonic_ns();
        while let Some(first) = self.held.first_entry() {
            if first.get().0 > now_ns {
                break;
            }
            self.group.allow(&first.remove().1);
            self.behind = true;
        }
    }

    /// Has a program wait, if there is anybody to decide, and tells the capture.
    fn admit(&mut self, question: Question) {
        let Question { pid, file } = question;
        if pid == 0 || pid == self.capture_pid {
            self.group.allow(&file); // Not of our pid namespace, or the capture itself.
            return;
        }
        let is_held = !self.behind && self.held.len() < HELD_MAX;
        let until_ns = monotonic_ns().saturating_add(self.longest_ns);
        let starting = Message {
            pid,
            id: self.told + 1,
            number: if is_held { until_ns } else { 0 },
            untold: self.untold,
            ..Message::new(Kind::Starting)
        };
        let is_told = starting
            .send(self.capture.as_fd(), Some(file.as_fd()))
            .is_ok();
        if is_told {
            self.told += 1;
        } else {
            self.untold += 1;
        }
        if is_told && is_held {
            self.held.insert(self.told, (until_ns, file));
        } else {
            self.group.allow(&file);
        }
    }
}
