//! Waits for the reason to end: a signal, the time, the targets' end, or the output's.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Why a capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Signal,
    TimeIsUp,
    TargetsEnded,
    /// The consumer gave up: the output failed, or its reader went away.
    ConsumerEnded,
    /// Nobody reads standard output any more.
    OutputClosed,
}

/// Ctrl-C, SIGTERM and SIGHUP, as something to wait for instead of the end of the process. SIGHUP stays ignored
/// if whoever started us has us ignore it, as nohup(1) does. SIGINT doesn't, which shells have a script's
/// `command &` ignore: `kill -INT` is how scripts end a capture.
#[derive(Debug)]
pub(crate) struct Signals(UnixStream);

impl Signals {
    pub(crate) fn catch() -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        let ignored = fs::read_to_string("/proc/self/status")?;
        let ignored = ignored_signals(&ignored);
        let is_hang_up_ignored = ignored >> (SIGHUP - 1) & 1 == 1;
        let hang_up = (!is_hang_up_ignored).then_some(SIGHUP);
        for signal in [SIGINT, SIGTERM].into_iter().chain(hang_up) {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        receiver.set_nonblocking(true)?;
        Ok(Self(receiver))
    }

    /// Forgets the signals that came so far.
    fn clear(&mut self) {
        let mut seen = [0; 64];
        while matches!(self.0.read(&mut seen), Ok(count) if count > 0) {}
    }
}

/// The set of signals that the process ignores, by what proc(5) says of it: the lowest bit is signal 1.
fn ignored_signals(status: &str) -> u64 {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0)
}

/// What is to be done while the capture goes on.
pub(crate) struct Chores<'a> {
    /// When one of them is readable, which it is no longer afterwards.
    pub(crate) descriptors: &'a [OwnedFd],
    /// And as often as this.
    pub(crate) every: Option<Duration>,
    pub(crate) run: &'a mut dyn FnMut(),
}

/// Waits until there is a reason to end the capture, such as that all `targets` have ended, each of which
/// becomes readable then; `stdout` is given if that is the output.
pub(crate) fn wait_for_end(
    signals: &mut Signals,
    mut targets: Vec<BorrowedFd<'_>>,
    stdout: Option<BorrowedFd<'_>>,
    consumer: BorrowedFd<'_>,
    duration: Option<Duration>,
    chores: Chores<'_>,
) -> io::Result<End> {
    let deadline = duration.and_then(|duration| Instant::now().checked_add(duration));
    loop {
        let mut descriptors = vec![
            PollFd::new(&signals.0, PollFlags::IN),
            PollFd::from_borrowed_fd(consumer, PollFlags::IN),
        ];
        // What is not there is never ready.
        let mut add = |descriptor: Option<_>, flags| {
            let descriptor = descriptor?;
            descriptors.push(PollFd::from_borrowed_fd(descriptor, flags));
            Some(descriptors.len() - 1)
        };
        // Asked for nothing, poll still reports an error: the pipe's reader is gone.
        let stdout = add(stdout, PollFlags::empty());
        // Those that have ended stay readable, so one at a time will do.
        let target = add(targets.last().copied(), PollFlags::IN);
        let others = descriptors.len();
        let chore = |descriptor| PollFd::new(descriptor, PollFlags::IN);
        descriptors.extend(chores.descriptors.iter().map(chore));
        let next = chores
            .every
            .and_then(|every| Instant::now().checked_add(every));
        if !wait(&mut descriptors, deadline.into_iter().chain(next).min())? {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(End::TimeIsUp);
            }
            (chores.run)();
            continue;
        }
        let ready = |index: usize| !descriptors[index].revents().is_empty();
        if (others..descriptors.len()).any(ready) {
            // Before anything else: it can't wait.
            (chores.run)();
        }
        if ready(1) {
            return Ok(End::ConsumerEnded);
        }
        if ready(0) {
            signals.clear();
            return Ok(End::Signal);
        }
        if stdout.is_some_and(|index| descriptors[index].revents().intersects(PollFlags::ERR)) {
            return Ok(End::OutputClosed);
        }
        if target.is_some_and(ready) {
            targets.pop();
            if targets.is_empty() {
                return Ok(End::TargetsEnded);
            }
        }
    }
}

/// Gives the consumer time to write what is left. Whether it did so; a signal or too long a wait ends the
/// patience. The first signal doesn't if `asked` is false: it asks for the end that is coming anyway.
pub(crate) fn wait_for_consumer(
    signals: &mut Signals,
    consumer: BorrowedFd<'_>,
    patience: Duration,
    mut asked: bool,
) -> io::Result<bool> {
    let deadline = Instant::now().checked_add(patience);
    loop {
        let mut descriptors = [
            PollFd::from_borrowed_fd(consumer, PollFlags::IN),
            PollFd::new(&signals.0, PollFlags::IN),
        ];
        let ready = wait(&mut descriptors, deadline)?;
        if !descriptors[0].revents().is_empty() {
            return Ok(true);
        }
        if !ready || asked {
            return Ok(false);
        }
        signals.clear();
        asked = true;
    }
}

/// Polls, until the deadline if there is one. Whether any descriptor is ready.
fn wait(descriptors: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(descriptors, timeout.as_ref()) {
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                return Ok(false);
            }
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    /// Waits for a consumer while a signal is there; whether the consumer had ended, and the time it took.
    fn wait_with_a_signal(
        consumer: &UnixStream,
        patience: Duration,
        asked: bool,
    ) -> (bool, Duration) {
        let (receiver, mut sender) = UnixStream::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        sender.write_all(b"X").unwrap();
        let start = Instant::now();
        let ended = wait_for_consumer(&mut Signals(receiver), consumer.as_fd(), patience, asked);
        (ended.unwrap(), start.elapsed())
    }

    #[test]
    fn ignored_signals_are_read_from_the_processs_status() {
        let hup_and_pipe =
            "Name:\tecapture\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored_signals(hup_and_pipe), 1 << (SIGHUP - 1) | 1 << 12);
        assert_eq!(ignored_signals("Name:\tecapture\n"), 0);
    }

    #[test]
    fn only_a_second_request_to_end_ends_the_patience() {
        let (alive, consumer) = UnixStream::pair().unwrap();
        let short = Duration::from_millis(20);
        let (ended, took) = wait_with_a_signal(&alive, short, false);
        assert!(!ended && took >= short, "{took:?}");
        let long = Duration::from_secs(600);
        let (ended, took) = wait_with_a_signal(&alive, long, true);
        assert!(!ended && took < long, "{took:?}");
        drop(consumer);
        assert!(wait_with_a_signal(&alive, long, false).0);
    }
}
