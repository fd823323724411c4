//! Where processes run, for the records of their connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use events::{Header, ProcessRecord};

use crate::container::Container;

/// So many processes are remembered.
const PROCESSES_MAX: usize = 16384;

/// What was found out about a process stays true for so long, in ns.
const FRESH_NS: u64 = 1_000_000_000;

/// Processes that somebody has looked at who may see more of them than the consumer.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownPlaces(Arc<Mutex<HashMap<u32, Option<Container>>>>);

impl KnownPlaces {
    pub(crate) fn set(&self, pid: u32, container: Option<Container>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has ended is still asked for, because its records are yet to be read.
        if known.len() >= PROCESSES_MAX {
            known.clear();
        }
        known.insert(pid, container);
    }

    /// `None` if nothing is known of it, `Some(None)` if it is in no container.
    fn get(&self, pid: u32) -> Option<Option<Container>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&pid).cloned()
    }
}

/// What the outputs have been told.
#[derive(Debug)]
struct Told {
    time_ns: u64,
    container: Option<Container>,
}

/// Looks up where processes run.
#[derive(Debug)]
pub(crate) struct Places {
    known: KnownPlaces,
    told: HashMap<u32, Told>,
}

impl Places {
    pub(crate) fn new(known: KnownPlaces) -> Self {
        Self {
            known,
            told: HashMap::new(),
        }
    }

    /// The record that says where a process runs, unless the outputs know that already.
    pub(crate) fn news(&mut self, header: &Header) -> Option<Vec<u8>> {
        let (pid, time_ns) = (header.pid, header.time_ns);
        if let Some(told) = self.told.get(&pid)
            && time_ns.saturating_sub(told.time_ns) < FRESH_NS
        {
            return None;
        }
        let container = self
            .known
            .get(pid)
            .unwrap_or_else(|| Container::of_pid(pid));
        if self.told.len() >= PROCESSES_MAX {
            self.told.clear();
        }
        let before = self.told.get(&pid).and_then(|told| told.container.as_ref());
        let record = (before != container.as_ref()).then(|| record(header, container.as_ref()));
        self.told.insert(pid, Told { time_ns, container });
        record
    }
}

fn record(header: &Header, container: Option<&Container>) -> Vec<u8> {
    let record = ProcessRecord {
        header: Header {
            conn: 0,
            first_seen_ns: 0,
            ..*header
        },
        container: container.map_or_else(Default::default, Container::as_record),
    };
    record.encode()
}

#[cfg(test)]
mod tests {
    use events::Record;

    use super::*;

    fn header(time_ns: u64) -> Header {
        Header {
            time_ns,
            conn: 1,
            first_seen_ns: 2,
            pid: u32::MAX,
            tid: 3,
            comm: [0; 16],
        }
    }

    fn told(places: &mut Places, time_ns: u64) -> Option<String> {
        let bytes = places.news(&header(time_ns))?;
        let Ok(Record::Process(record)) = Record::decode(&bytes) else {
            panic!("{bytes:?}");
        };
        assert_eq!(record.header.pid, u32::MAX);
        Some(String::from_utf8_lossy(record.container.id).into_owned())
    }

    #[test]
    fn what_is_new_is_told_once() {
        let known = KnownPlaces::default();
        let mut places = Places::new(known.clone());
        let container = |id: &str| {
            let id = id.to_owned();
            Some(Container {
                id,
                ..Container::default()
            })
        };
        assert_eq!(told(&mut places, 1), None, "in no container");
        known.set(u32::MAX, container("web"));
        assert_eq!(told(&mut places, 2), None, "looked at a moment ago");
        let later = 2 * FRESH_NS;
        assert_eq!(told(&mut places, later).as_deref(), Some("web"));
        assert_eq!(told(&mut places, 2 * later), None);
        known.set(u32::MAX, None);
        assert_eq!(told(&mut places, 4 * later).as_deref(), Some(""));
    }
}
