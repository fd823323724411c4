//! Lines on their way to a server: bounded, and what finds no room is counted, so that a slow server costs
//! events and never memory or time of the capture.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What became of lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// Handed to the server's connection.
    pub(crate) sent: u64,
    /// Never sent: there was no room for them.
    pub(crate) lost: u64,
}

/// Lines that wait, from one thread to another.
#[derive(Debug)]
pub(crate) struct Queue {
    most: usize,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines, and bytes of them, for which there was no room since the last that found some.
    missed: (u64, u64),
    delivery: Delivery,
    /// Nothing follows.
    closed: bool,
    /// Nobody takes anything any more.
    ended: bool,
}

impl Queue {
    /// A queue of up to `most` bytes.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            waiting: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Adds a line if there is room, or waits for room if `wait` says so.
    pub(crate) fn push(&self, line: &[u8], wait: bool) {
        let mut waiting = self.lock();
        // An empty queue has room for any line.
        let full = |waiting: &mut Waiting| {
            !waiting.ended && waiting.bytes > 0 && waiting.bytes + line.len() > self.most
        };
        if wait {
            let result = self.changed.wait_while(waiting, full);
            waiting = result.unwrap_or_else(PoisonError::into_inner);
        } else if full(&mut waiting) {
            waiting.missed.0 += 1;
            waiting.missed.1 += line.len() as u64;
            waiting.delivery.lost += 1;
            return;
        }
        waiting.tell_of_missed();
        waiting.add(line.to_vec());
        drop(waiting);
        self.changed.notify_all();
    }

    /// Nothing follows: what is there may still be taken.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.tell_of_missed();
        waiting.closed = true;
        drop(waiting);
        self.changed.notify_all();
    }

    /// Waits until everything has been taken after [`Self::close`], and says what became of it. What has
    /// not been taken in time is lost.
    pub(crate) fn wait_until_sent(&self, patience: Duration) -> Delivery {
        let pending = |waiting: &mut Waiting| !waiting.ended;
        let result = self
            .changed
            .wait_timeout_while(self.lock(), patience, pending);
        let (mut waiting, _) = result.unwrap_or_else(PoisonError::into_inner);
        let left = waiting.lines.len() as u64;
        waiting.delivery.lost += left;
        waiting.lines.clear();
        waiting.delivery
    }

    /// What became of lines up to now.
    pub(crate) fn delivery(&self) -> Delivery {
        self.lock().delivery
    }

    /// Waits for the next line for so long. `Err` once the queue is closed and empty.
    pub(crate) fn next(&self, patience: Duration) -> Result<Option<Vec<u8>>, Closed> {
        let nothing = |waiting: &mut Waiting| waiting.lines.is_empty() && !waiting.closed;
        let result = self
            .changed
            .wait_timeout_while(self.lock(), patience, nothing);
        let (waiting, _) = result.unwrap_or_else(PoisonError::into_inner);
        match waiting.lines.front() {
            Some(line) => Ok(Some(line.clone())),
            None if waiting.closed => Err(Closed),
            None => Ok(None),
        }
    }

    /// The line that [`Self::next`] gave has been sent.
    pub(crate) fn sent(&self) {
        let mut waiting = self.lock();
        if let Some(line) = waiting.lines.pop_front() {
            waiting.bytes -= line.len();
            waiting.delivery.sent += 1;
        }
        drop(waiting);
        self.changed.notify_all();
    }

    /// Whether it is closed and nobody waits for what is in it.
    pub(crate) fn is_done(&self) -> bool {
        let waiting = self.lock();
        waiting.closed && waiting.lines.is_empty()
    }

    /// Nobody will take anything any more.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits before another attempt to reach the server, not longer than so long after the queue is closed.
    pub(crate) fn pause(&self, time: Duration, when_closed: Duration) {
        let open = |waiting: &mut Waiting| !waiting.closed;
        let result = self.changed.wait_timeout_while(self.lock(), time, open);
        let (waiting, timeout) = result.unwrap_or_else(PoisonError::into_inner);
        drop(waiting);
        if !timeout.timed_out() {
            std::thread::sleep(when_closed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that is done under the lock leaves it in disorder.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue is closed and empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

impl Waiting {
    fn add(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.lines.push_back(line);
    }

    /// Puts word of what is missing where it is missing.
    fn tell_of_missed(&mut self) {
        let (records, bytes) = std::mem::take(&mut self.missed);
        if records == 0 {
            return;
        }
        let time = jiff::Timestamp::now();
        let mut line = Vec::new();
        // Writing to memory does not fail.
        let _ = writeln!(
            line,
            r#"{{"type":"lost","time":"{time:.9}","reason":"output_queue_full","bytes":{bytes},"records":{records}}}"#
        );
        // It counts among the lines sent, like any other.
        self.add(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(queue: &Queue) -> String {
        let line = queue.next(Duration::ZERO).unwrap().unwrap();
        queue.sent();
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_where_it_is_missing() {
        let queue = Queue::new(8);
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            queue.push(line.as_bytes(), false);
        }
        assert_eq!(take(&queue), "one\n");
        assert_eq!(take(&queue), "two\n");
        queue.push(b"five\n", false);
        let lost: serde_json::Value = serde_json::from_str(&take(&queue)).unwrap();
        assert_eq!(lost["type"], "lost");
        assert_eq!(lost["reason"], "output_queue_full");
        assert_eq!((&lost["records"], &lost["bytes"]), (&2.into(), &11.into()));
        assert_eq!(take(&queue), "five\n");
        queue.close();
        assert_eq!(queue.next(Duration::ZERO), Err(Closed));
        let expected = Delivery { sent: 4, lost: 2 };
        assert_eq!(queue.delivery(), expected);
    }

    #[test]
    fn what_was_lost_last_is_told_at_the_end() {
        let queue = Queue::new(4);
        queue.push(b"one\n", false);
        queue.push(b"two\n", false);
        queue.close();
        assert_eq!(take(&queue), "one\n");
        assert!(take(&queue).contains(r#""records":1"#));
        assert_eq!(queue.next(Duration::ZERO), Err(Closed));
    }

    #[test]
    fn what_is_not_taken_in_time_is_lost() {
        let queue = Queue::new(100);
        queue.push(b"one\n", false);
        queue.push(b"two\n", false);
        take(&queue);
        queue.close();
        let expected = Delivery { sent: 1, lost: 1 };
        assert_eq!(queue.wait_until_sent(Duration::ZERO), expected);
    }

    #[test]
    fn a_line_that_can_wait_waits_for_room() {
        let queue = Queue::new(4);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for line in ["one\n", "two\n", "tre\n"] {
                    queue.push(line.as_bytes(), true);
                }
            });
            for expected in ["one\n", "two\n", "tre\n"] {
                let line = queue.next(Duration::from_secs(60)).unwrap().unwrap();
                assert_eq!(line, expected.as_bytes());
                queue.sent();
            }
        });
        assert_eq!(queue.delivery().lost, 0);
    }
}
