//! In which containers processes are.

use std::num::NonZeroUsize;

use events::{Container, ProcessRecord};
use lru::LruCache;

/// So many processes are remembered.
const PROCESSES_MAX: usize = 16384;

/// What records have told of processes.
#[derive(Debug)]
pub(crate) struct Processes(LruCache<u32, OwnedContainer>);

/// Its texts, in the order in which [`Container`] has them.
#[derive(Debug)]
struct OwnedContainer([Vec<u8>; 5]);

impl Default for Processes {
    fn default() -> Self {
        // One that is bounded from the start takes all its memory at once.
        let mut processes = LruCache::unbounded();
        processes.resize(NonZeroUsize::new(PROCESSES_MAX).unwrap_or(NonZeroUsize::MIN));
        Self(processes)
    }
}

impl Processes {
    /// Takes what a record says.
    pub(crate) fn place(&mut self, record: &ProcessRecord<'_>) {
        let Container {
            id,
            runtime,
            pod_uid,
            pod,
            namespace,
        } = record.container;
        if id.is_empty() {
            self.0.pop(&record.header.pid);
        } else {
            let texts = [id, runtime, pod_uid, pod, namespace].map(<[u8]>::to_vec);
            self.0.put(record.header.pid, OwnedContainer(texts));
        }
    }

    /// The container that a process is in.
    pub(crate) fn container(&mut self, pid: u32) -> Option<Container<'_>> {
        let OwnedContainer([id, runtime, pod_uid, pod, namespace]) = self.0.get(&pid)?;
        Some(Container {
            id,
            runtime,
            pod_uid,
            pod,
            namespace,
        })
    }
}
