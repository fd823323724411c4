//! Where every byte went that a program wrote or read: it was shown, or said to be lost where it is
//! missing. For `exchange` with payloads of given sizes, by its own log.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, ensure};

use crate::capture::{Captured, Data, Direction, Line};
use crate::exchange::{Log, StreamLog};
use crate::payload;

/// The sum over all connections and directions, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account {
    /// What was shown.
    pub(crate) received: u64,
    /// What was said to be lost.
    pub(crate) lost: u64,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (received, lost) = (self.received, self.lost);
        write!(
            f,
            "{} bytes = {received} shown + {lost} lost",
            received + lost
        )
    }
}

/// What really passed.
pub(crate) struct Streams(Vec<Stream>);

struct Stream {
    pid: u32,
    direction: Direction,
    bytes: Vec<u8>,
}

/// What was shown of a connection's direction.
#[derive(Default)]
struct Seen {
    /// Where the next piece has to begin.
    end: u64,
    pieces: Vec<Data>,
}

impl Streams {
    pub(crate) fn of(log: &Log, sizes: &[u64]) -> Self {
        let stream = |log: &StreamLog| {
            let direction = match log.direction.as_str() {
                "write" => Direction::Write,
                _ => Direction::Read,
            };
            let sender = match (log.role.as_str(), direction) {
                ("client", Direction::Write) | ("server", Direction::Read) => "client",
                _ => "server",
            };
            let length: u64 = log.calls.iter().sum();
            Stream {
                pid: log.pid,
                direction,
                bytes: payload::stream(sender, log.id, sizes, length),
            }
        };
        Self(log.streams.iter().map(stream).collect())
    }

    /// These and those.
    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0.into_iter().chain(other.0).collect())
    }

    /// The stream that this is a piece of: payloads are random, so there is only one.
    pub(crate) fn find(&self, data: &Data) -> Result<usize> {
        self.0
            .iter()
            .position(|stream| stream.check(data).is_ok())
            .with_context(|| format!("these bytes were never sent at this place: {data:?}"))
    }

    /// Goes through what a capture showed; an error unless sent = received + lost, in each connection
    /// and direction that something is known of, and in all of them together.
    pub(crate) fn account(&self, captured: &Captured) -> Result<Account> {
        let mut account = Account::default();
        let mut seen: BTreeMap<_, Seen> = BTreeMap::new();
        let (mut lost_records, mut unplaced, mut closing_lines) = (0, 0, 0);
        for line in captured.lines() {
            match line? {
                Line::Data(data) => {
                    let seen = seen.entry((data.conn, data.direction)).or_default();
                    ensure!(
                        data.offset == seen.end,
                        "a gap that nobody mentions: {data:?}"
                    );
                    seen.end += data.length;
                    account.received += data.length;
                    seen.pieces.push(data);
                }
                Line::Connection(_) | Line::Close(_) => {}
                Line::Lost(lost) => {
                    ensure!(lost.reason == "buffer_full", "{lost:?}");
                    lost_records += lost.records;
                    account.lost += lost.bytes;
                    match lost.place {
                        Some(place) => {
                            let seen = seen.entry((place.conn, place.direction)).or_default();
                            ensure!(place.offset == seen.end, "in the wrong place: {place:?}");
                            seen.end += lost.bytes;
                        }
                        None => {
                            closing_lines += 1;
                            unplaced += lost.bytes;
                        }
                    }
                }
            }
        }
        ensure!(closing_lines <= 1, "one closing line is enough");
        let summary = captured.summary;
        ensure!(
            (summary.bytes, summary.lost_events, summary.lost_bytes)
                == (account.received, lost_records, account.lost),
            "{summary:?} is not {account:?}"
        );
        let missing = self.missing(&seen)?;
        // The ends of streams whose last records were all lost.
        ensure!(
            missing == unplaced,
            "nobody accounts for {missing} - {unplaced} bytes"
        );
        Ok(account)
    }

    /// Checks what was shown of each stream, and returns how much lies behind that.
    fn missing(&self, seen: &BTreeMap<(u64, Direction), Seen>) -> Result<u64> {
        let mut missing: u64 = self.0.iter().map(|stream| stream.bytes.len() as u64).sum();
        let mut found = BTreeSet::new();
        for (key, seen) in seen {
            missing = missing
                .checked_sub(seen.end)
                .context("more bytes than sent")?;
            // Of those that nothing was shown of, only the length is known.
            let Some(first) = seen.pieces.first() else {
                continue;
            };
            let index = self.find(first)?;
            ensure!(found.insert(index), "{key:?} is there twice");
            let stream = &self.0[index];
            ensure!(seen.end <= stream.bytes.len() as u64, "{key:?} is too long");
            for piece in &seen.pieces {
                stream.check(piece)?;
            }
        }
        Ok(missing)
    }
}

impl Stream {
    fn check(&self, data: &Data) -> Result<()> {
        let begin = usize::try_from(data.offset)?;
        let sent = self.bytes.get(begin..begin + data.payload.len());
        ensure!(
            (self.pid, self.direction) == (data.pid, data.direction) && sent == Some(&data.payload),
            "wrong bytes at offset {begin}"
        );
        Ok(())
    }
}
