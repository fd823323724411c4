//! Events: what a user gets to see, in the order in which it happened.

use std::io;

use events::Direction;
use protocol::Notice;

use crate::Timestamp;

/// Plaintext, word that some is missing, or what it says.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Plaintext of a call, or of a part of a long call.
    Data(Data<'a>),
    /// Plaintext is missing here.
    Lost(Lost<'a>),
    /// Something became known of an HTTP exchange.
    Http(Http<'a>),
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
