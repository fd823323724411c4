//! Server-sent events: the messages in a body of `text/event-stream` (WHATWG HTML, section 9.2).

use crate::body::Body;
use crate::budget::Budget;
use crate::event::Cause;

/// Finds events: what stands between blank lines.
#[derive(Debug)]
pub(crate) struct EventStream {
    event: Body,
    /// Nothing stands in this line yet.
    line_is_empty: bool,
    /// The last byte was a carriage return, which may belong to a line feed.
    carriage_return: bool,
    broken: bool,
}

impl EventStream {
    pub(crate) fn new(budget: &Budget) -> Self {
        Self {
            event: Body::new(budget),
            line_is_empty: true,
            carriage_return: false,
            broken: false,
        }
    }

    /// Takes the next bytes and hands out the events that end with them, without the blank line.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        limit: usize,
        budget: &Budget,
        mut sink: impl FnMut(Body),
    ) {
        if self.broken {
            return;
        }
        let mut begin = 0;
        for (at, &byte) in bytes.iter().enumerate() {
            let second_half = byte == b'\n' && self.carriage_return;
            self.carriage_return = byte == b'\r';
            if second_half {
                continue;
            }
            if byte != b'\n' && byte != b'\r' {
                self.line_is_empty = false;
                continue;
            }
            if !self.line_is_empty {
                self.line_is_empty = true;
                continue;
            }
            self.event.push(&bytes[begin..at], limit);
            begin = at + 1;
            let event = std::mem::replace(&mut self.event, Body::new(budget));
            if !event.content().trim_ascii().is_empty() {
                sink(event);
            }
        }
        self.event.push(&bytes[begin..], limit);
    }

    /// Is told that the next bytes are missing: returns the event in hand.
    pub(crate) fn skip(&mut self, bytes: u64, cause: Cause, budget: &Budget) -> Option<Body> {
        self.event.skip(bytes, cause);
        self.broken = true;
        self.end(budget)
    }

    /// No more bytes come: returns what was not ended by a blank line.
    pub(crate) fn end(&mut self, budget: &Budget) -> Option<Body> {
        let event = std::mem::replace(&mut self.event, Body::new(budget));
        (!event.content().trim_ascii().is_empty()).then_some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let budget = Budget::new(1 << 20);
        let mut stream = EventStream::new(&budget);
        let mut found = Vec::new();
        let text = |event: Body| String::from_utf8_lossy(event.content().trim_ascii()).into_owned();
        for part in parts {
            stream.push(part, 1000, &budget, |event| found.push(text(event)));
        }
        found.extend(stream.end(&budget).map(text));
        found
    }

    #[test]
    fn events_are_found_wherever_the_body_is_cut() {
        for line_end in ["\n", "\r\n", "\r"] {
            let all = "data: 1|||event: x|data: 2|data: 3||data: 4".replace('|', line_end);
            let second = format!("event: x{line_end}data: 2{line_end}data: 3");
            let expected = ["data: 1", &second, "data: 4"];
            for cut in 0..=all.len() {
                let (before, behind) = all.as_bytes().split_at(cut);
                assert_eq!(events([before, behind]), expected, "{line_end:?} at {cut}");
            }
            assert_eq!(events(all.as_bytes().chunks(1)), expected);
        }
    }

    #[test]
    fn an_event_of_any_length_takes_bounded_memory() {
        let budget = Budget::new(1 << 20);
        let mut stream = EventStream::new(&budget);
        for _ in 0..100 {
            stream.push(&[b'x'; 1000], 1000, &budget, |_| panic!());
        }
        assert!(budget.used() <= 1000);
        let event = stream.skip(5, Cause::Lost, &budget).unwrap();
        assert_eq!((event.length, event.content().len()), (100_005, 1000));
    }
}
