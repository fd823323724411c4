//! `--eventaddr`: JSON lines to a file that rotates, or to a server that may be away.

mod address;
mod queue;
mod rotation;
mod sender;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

pub(crate) use address::{EventAddress, parse};
pub(crate) use rotation::Limits;

use crate::failure::Failure;
use queue::Queue;
use rotation::RotatingFile;

/// Bytes that wait for a server at most.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;

/// How long what waits at the end of a capture may take: less than the whole output may.
const PATIENCE: Duration = Duration::from_secs(3);

/// The same for a replay, which nobody has to end in a hurry.
const PATIENCE_OF_REPLAY: Duration = Duration::from_secs(60);

/// Takes JSON lines, in pieces of any size, and sees to it that they arrive whole.
#[derive(Debug)]
pub(crate) struct EventWriter {
    target: Target,
    /// A line that has no end yet.
    partial: Vec<u8>,
}

#[derive(Debug)]
enum Target {
    File(RotatingFile),
    Server { queue: Arc<Queue>, live: bool },
}

/// What became of events, for the closing line.
#[derive(Clone, Debug)]
pub(crate) struct EventReport {
    address: EventAddress,
    queue: Option<Arc<Queue>>,
}

/// Opens the file, or begins to look for the server. A capture (`live`) must not wait for it.
pub(crate) fn open(
    address: &EventAddress,
    limits: Limits,
    live: bool,
) -> Result<(EventWriter, EventReport), Failure> {
    let (target, queue) = match address {
        EventAddress::File(path) => {
            let file = RotatingFile::open(path, limits)
                .with_context(|| format!("event file {}", path.display()))
                .map_err(Failure::WrongInput)?;
            (Target::File(file), None)
        }
        EventAddress::Tcp(_) | EventAddress::WebSocket(_) => {
            // It is there already if this is not the first time.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let queue = Arc::new(Queue::new(QUEUE_BYTES));
            sender::start(address.clone(), Arc::clone(&queue))
                .context("starting a thread")
                .map_err(Failure::Runtime)?;
            let target = Target::Server {
                queue: Arc::clone(&queue),
                live,
            };
            (target, Some(queue))
        }
    };
    let writer = EventWriter {
        target,
        partial: Vec::new(),
    };
    let report = EventReport {
        address: address.clone(),
        queue,
    };
    Ok((writer, report))
}

impl Write for EventWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            if !piece.ends_with(b"\n") {
                self.partial.extend_from_slice(piece);
            } else if self.partial.is_empty() {
                self.target.line(piece)?;
            } else {
                self.partial.extend_from_slice(piece);
                self.target.line(&self.partial)?;
                self.partial.clear();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.target {
            Target::File(file) => file.flush(),
            Target::Server { .. } => Ok(()),
        }
    }
}

impl Target {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.line(line),
            Self::Server { queue, live } => {
                queue.push(line, !*live);
                Ok(())
            }
        }
    }
}

impl EventReport {
    /// Waits for what is on its way, but not for ever.
    pub(crate) fn finish(&self, live: bool) {
        if let Some(queue) = &self.queue {
            queue.close();
            let patience = if live { PATIENCE } else { PATIENCE_OF_REPLAY };
            queue.wait_until_sent(patience);
        }
    }

    /// For the closing line.
    pub(crate) fn summary(&self) -> String {
        let address = trace::escape_name(self.address.to_string().as_bytes()).into_owned();
        match &self.queue {
            None => format!("events in {address}"),
            Some(queue) => {
                let delivery = queue.delivery();
                format!(
                    "events to {address}: {} lines sent, {} lost",
                    delivery.sent, delivery.lost
                )
            }
        }
    }
}
