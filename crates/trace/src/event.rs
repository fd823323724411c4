//! Events: what a user gets to see, in the order in which it happened.

use std::io;
use std::time::Duration;

use events::{Address, Agreed, CloseCause, Container, Direction};
use protocol::Notice;

use crate::Timestamp;

/// Plaintext, word that some is missing, what it says, or a connection's begin or end.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A connection, told of when its first plaintext passes.
    Opened(Opened<'a>),
    /// Plaintext of a call, or of a part of a long call.
    Data(Data<'a>),
    /// Plaintext is missing here.
    Lost(Lost<'a>),
    /// Something became known of an HTTP exchange.
    Http(Http<'a>),
    /// The end of a connection.
    Closed(Closed<'a>),
}

/// What became known of an HTTP exchange, or of a connection that carries them.
#[derive(Clone, Copy, Debug)]
pub struct Http<'a> {
    /// When the exchange began, for a notice of its end; else when this became known.
    pub time: Timestamp,
    /// Process id.
    pub pid: u32,
    /// Name of the thread that was seen first on the connection; not necessarily text.
    pub comm: &'a [u8],
    /// Number of the connection, unique within a run.
    pub connection: u64,
    /// The direction of requests: [`Direction::Write`] if the program is the client.
    pub requests: Option<Direction>,
    /// What became known.
    pub notice: &'a Notice<'a>,
}

/// What a connection connects, and what its ends agreed on. Usually the first event of a connection; it
/// comes later, or not at all, if the buffer was full when it should have been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// When the first plaintext passed, as far as it was seen.
    pub time: Timestamp,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name of the thread; not necessarily text.
    pub comm: &'a [u8],
    /// Number of the connection, unique within a run.
    pub connection: u64,
    /// Whether the handshake was seen, so that nothing of the plaintext was missed before; otherwise
    /// the capture began in the middle.
    pub from_start: bool,
    /// The socket's file descriptor, if it is known.
    pub fd: Option<u32>,
    /// The program's own end, if it is known.
    pub local: Option<Address<'a>>,
    /// The other end, if it is known.
    pub remote: Option<Address<'a>>,
    /// What the handshake led to, if that is known.
    pub agreed: Option<Agreed<'a>>,
    /// In which container the process is, if it is in one that is known.
    pub container: Option<Container<'a>>,
}

/// The end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed<'a> {
    /// When the program called `Close`, or when it was noticed that it had dropped the connection.
    pub time: Timestamp,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name of the thread; not necessarily text.
    pub comm: &'a [u8],
    /// Number of the connection, unique within a run.
    pub connection: u64,
    /// Bytes of plaintext that passed in each direction since the connection was first seen, lost ones
    /// included; indexed by [`Direction::index`].
    pub bytes: [u64; 2],
    /// How long ago the connection was first seen, which is in its handshake unless the capture began
    /// later.
    pub duration: Duration,
    /// How it came.
    pub cause: CloseCause,
}

/// Plaintext that a program wrote or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    /// When the call reached the probe.
    pub time: Timestamp,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name of the thread; not necessarily text.
    pub comm: &'a [u8],
    /// Number of the connection, unique within a run.
    pub connection: u64,
    /// From the program's point of view.
    pub direction: Direction,
    /// Bytes that passed in this direction of the connection before these, since it was first seen.
    pub stream_offset: u64,
    /// Bytes of the whole call.
    pub call_length: u64,
    /// Bytes of the call before these.
    pub call_offset: u64,
    /// Bytes of the call behind these which were left out because the user asked for no more.
    pub truncated: u64,
    /// The id of the goroutine, as in Go's stack traces, if it is known.
    pub goroutine: Option<u64>,
    /// The plaintext.
    pub payload: &'a [u8],
}

/// The other direction.
pub(crate) fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Write => Direction::Read,
        Direction::Read => Direction::Write,
    }
}

/// Why plaintext is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The ring buffer was full.
    BufferFull,
    /// The program's memory could not be read.
    Unreadable,
    /// The call was longer than a probe may copy.
    CallTooLong,
}

impl Loss {
    /// The reason in the JSON output.
    pub fn name(self) -> &'static str {
        match self {
            Self::BufferFull => "buffer_full",
            Self::Unreadable => "unreadable",
            Self::CallTooLong => "call_too_long",
        }
    }
}

/// Plaintext that is missing between its neighbours in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost<'a> {
    /// When this became known.
    pub time: Timestamp,
    /// Where, as far as that is known.
    pub place: Option<Place<'a>>,
    /// How many bytes of plaintext.
    pub bytes: u64,
    /// How many records; a call has one for every 16 KiB.
    pub records: u64,
    /// Why.
    pub reason: Loss,
}

/// In which stream something is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Process id.
    pub pid: u32,
    /// Name of the thread; not necessarily text.
    pub comm: &'a [u8],
    /// Number of the connection, unique within a run.
    pub connection: u64,
    /// From the program's point of view.
    pub direction: Direction,
    /// Where in this direction of the connection the missing bytes begin.
    pub stream_offset: u64,
}

/// An output format.
pub trait Sink {
    /// Writes one event.
    fn event(&mut self, event: &Event<'_>) -> io::Result<()>;

    /// Hands everything written so far on.
    fn flush(&mut self) -> io::Result<()>;
}
