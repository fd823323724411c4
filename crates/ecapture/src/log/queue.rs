//! Lines on their way to the log: in order, bounded, and what finds no room is counted.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Lines that wait, from all threads to the one that writes them.
#[derive(Debug)]
pub(super) struct Queue {
    most: usize,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// Something to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) time: jiff::Timestamp,
    pub(super) text: String,
    pub(super) to: To,
}

/// To whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    Log,
    /// The terminal, if the log is elsewhere.
    Terminal,
}

#[derive(Debug)]
struct Waiting {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Lines for which there was no room since the last that found some.
    missed: u64,
    /// How many lines were added, and how many of them have been written.
    added: u64,
    written: u64,
    /// Somebody has waited in vain, and nothing has been written since.
    is_stuck: bool,
}

impl Queue {
    /// A queue of up to `most` bytes of text.
    pub(super) const fn new(most: usize) -> Self {
        Self {
            most,
            waiting: Mutex::new(Waiting {
                lines: VecDeque::new(),
                bytes: 0,
                missed: 0,
                added: 0,
                written: 0,
                is_stuck: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Adds a line if there is room, and waits until it has been written. Once that has taken longer than
    /// `patience`, nobody waits any more, until something is written again.
    pub(super) fn say(&self, line: Line, patience: Duration) {
        let mut waiting = self.lock();
        // An empty queue has room for any line.
        if waiting.bytes > 0 && waiting.bytes + line.text.len() > self.most {
            waiting.missed += 1;
            return;
        }
        waiting.tell_of_missed(line.time);
        waiting.add(line);
        self.changed.notify_all();
        if !waiting.is_stuck {
            self.wait_until_written(waiting, patience);
        }
    }

    /// Waits until everything has been written, but not longer than that.
    pub(super) fn finish(&self, patience: Duration) {
        let mut waiting = self.lock();
        waiting.tell_of_missed(jiff::Timestamp::now());
        self.changed.notify_all();
        self.wait_until_written(waiting, patience);
    }

    fn wait_until_written(&self, waiting: MutexGuard<'_, Waiting>, patience: Duration) {
        let last = waiting.added;
        let pending = |waiting: &mut Waiting| waiting.written < last;
        let result = self.changed.wait_timeout_while(waiting, patience, pending);
        let (mut waiting, timeout) = result.unwrap_or_else(PoisonError::into_inner);
        waiting.is_stuck |= timeout.timed_out();
    }

    /// Waits for the next line.
    pub(super) fn next(&self) -> Line {
        let mut waiting = self.lock();
        loop {
            if let Some(line) = waiting.lines.pop_front() {
                return line;
            }
            let result = self.changed.wait(waiting);
            waiting = result.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The line that [`Self::next`] gave has been written.
    pub(super) fn written(&self, line: &Line) {
        let mut waiting = self.lock();
        waiting.bytes -= line.text.len();
        waiting.written += 1;
        waiting.is_stuck = false;
        drop(waiting);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that is done under the lock leaves it in disorder.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn add(&mut self, line: Line) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
        self.added += 1;
    }

    /// Puts word of what is missing where it is missing.
    fn tell_of_missed(&mut self, time: jiff::Timestamp) {
        let missed = std::mem::take(&mut self.missed);
        if missed > 0 {
            let text =
                format!("note: {missed} lines are missing here: nobody read what came before");
            let to = To::Log;
            self.add(Line { time, text, to });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn line(text: &str) -> Line {
        Line {
            time: jiff::Timestamp::UNIX_EPOCH,
            text: text.into(),
            to: To::Log,
        }
    }

    fn write(queue: &Queue) -> String {
        let line = queue.next();
        queue.written(&line);
        line.text
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_where_it_is_missing() {
        let queue = Queue::new(8);
        for text in ["one", "two", "three", "four"] {
            queue.say(line(text), Duration::ZERO);
        }
        assert_eq!(write(&queue), "one");
        queue.say(line("five"), Duration::ZERO);
        assert_eq!(write(&queue), "two");
        assert!(write(&queue).starts_with("note: 2 lines are missing here"));
        assert_eq!(write(&queue), "five");
        queue.say(
            line("longer than all that there is room for"),
            Duration::ZERO,
        );
        queue.say(line("six"), Duration::ZERO);
        queue.finish(Duration::ZERO);
        assert!(write(&queue).starts_with("longer than"));
        assert!(write(&queue).starts_with("note: 1 lines"));
    }

    /// Each of many lines would hold up whoever says it.
    #[test]
    fn nobody_waits_for_a_queue_that_is_stuck() {
        let queue = Queue::new(1000);
        queue.say(line("one"), Duration::from_millis(20));
        let begun = Instant::now();
        queue.say(line("two"), Duration::from_secs(600));
        assert!(begun.elapsed() < Duration::from_secs(600));
        assert_eq!((write(&queue), write(&queue)), ("one".into(), "two".into()));
    }

    #[test]
    fn lines_have_been_written_once_they_are_said() {
        let queue = Queue::new(1000);
        let written = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..3 {
                    let line = queue.next();
                    written.lock().unwrap().push(line.text.clone());
                    queue.written(&line);
                }
            });
            for (count, text) in (1..).zip(["one", "two", "three"]) {
                queue.say(line(text), Duration::from_secs(600));
                assert_eq!(written.lock().unwrap().len(), count);
            }
        });
        assert_eq!(written.into_inner().unwrap(), ["one", "two", "three"]);
    }
}
