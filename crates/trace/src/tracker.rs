//! From records to events: numbers the connections and notices what is missing.
//!
//! The eBPF programs count every byte and record of a stream, also those that find no room in the
//! ring buffer. So a gap is where a record begins behind the end of its predecessor.

use std::io;
use std::num::NonZeroUsize;

use events::{CloseRecord, DataRecord, Direction, Header, Missing, Record};
use lru::LruCache;

use crate::event::{Data, Event, Loss, Lost, Place, Sink};
use crate::time::Timestamp;

/// What passed through a [`Tracker`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Records with plaintext.
    pub records: u64,
    /// Bytes of plaintext in them.
    pub bytes: u64,
    /// Connections seen.
    pub connections: u64,
    /// Records reported as lost, with their bytes.
    pub lost_records: u64,
    /// Bytes in them.
    pub lost_bytes: u64,
}

/// Turns records into events.
#[derive(Debug)]
pub struct Tracker {
    connections: LruCache<Key, Connection>,
    totals: Totals,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    pid: u32,
    conn: u64,
    first_seen_ns: u64,
}

impl Key {
    fn of(header: &Header) -> Self {
        Self {
            pid: header.pid,
            conn: header.conn,
            first_seen_ns: header.first_seen_ns,
        }
    }
}

#[derive(Debug)]
struct Connection {
    number: u64,
    /// Indexed by [`Direction::index`].
    streams: [Stream; 2],
}

/// Where the next record of a stream is expected.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    offset: u64,
    sequence: u32,
}

impl Default for Tracker {
    fn default() -> Self {
        Self::new()
    }
}

impl Tracker {
    /// How many connections are remembered: twice as many as the kernel side keeps, so it forgets
    /// first. A connection that was forgotten gets a new number when it comes back.
    pub const CONNECTIONS_MAX: usize = 65536;

    /// A tracker that has seen nothing.
    pub fn new() -> Self {
        // One that is bounded from the start takes all its memory at once: megabytes.
        let mut connections = LruCache::unbounded();
        connections.resize(NonZeroUsize::new(Self::CONNECTIONS_MAX).unwrap_or(NonZeroUsize::MIN));
        Self {
            connections,
            totals: Totals::default(),
        }
    }

    /// What passed so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Takes one record and hands what follows from it to `sink`. `realtime_offset_ns` leads from
    /// the records' clock to the wall clock.
    pub fn record(
        &mut self,
        record: &Record<'_>,
        realtime_offset_ns: i64,
        sink: &mut impl Sink,
    ) -> io::Result<()> {
        let time = Timestamp::from_monotonic(record.header().time_ns, realtime_offset_ns);
        match record {
            Record::Data(record) => self.data(record, time, sink),
            Record::Close(record) => self.close(record, time, sink),
            Record::Key(_) => Ok(()), // Belongs to no connection that we know.
        }
    }

    /// Reports losses of which no later record told: `lost_records` and `lost_bytes` are the
    /// kernel side's final counts.
    pub fn finish(
        &mut self,
        time: Timestamp,
        lost_records: u64,
        lost_bytes: u64,
        sink: &mut impl Sink,
    ) -> io::Result<()> {
        let records = lost_records.saturating_sub(self.totals.lost_records);
        let bytes = lost_bytes.saturating_sub(self.totals.lost_bytes);
        if records == 0 && bytes == 0 {
            return Ok(());
        }
        self.totals.lost_records += records;
        self.totals.lost_bytes += bytes;
        sink.event(&Event::Lost(Lost {
            time,
            place: None,
            bytes,
            records,
            reason: Loss::BufferFull,
        }))
    }

    fn data(
        &mut self,
        record: &DataRecord<'_>,
        time: Timestamp,
        sink: &mut impl Sink,
    ) -> io::Result<()> {
        let (missing, omitted) = match record.omitted {
            Some((missing, bytes)) => (Some(missing), bytes),
            None => (None, 0),
        };
        let length = record.payload.len() as u64;
        let begin = Stream {
            offset: record.stream_offset,
            sequence: record.sequence,
        };
        let end = Stream {
            offset: begin.offset.saturating_add(length).saturating_add(omitted),
            sequence: begin.sequence.wrapping_add(1),
        };
        let place = self.advance(&record.header, record.direction, begin, end, time, sink)?;

        self.totals.records += 1;
        self.totals.bytes += length;
        if length > 0 {
            sink.event(&Event::Data(Data {
                time,
                pid: record.header.pid,
                tid: record.header.tid,
                comm: record.header.comm(),
                connection: place.connection,
                direction: record.direction,
                stream_offset: record.stream_offset,
                call_length: record.call_length,
                call_offset: record.call_offset,
                truncated: if missing == Some(Missing::Truncated) {
                    omitted
                } else {
                    0
                },
                payload: record.payload,
            }))?;
        }
        let reason = match missing {
            Some(Missing::Unreadable) => Loss::Unreadable,
            Some(Missing::TooLong) => Loss::CallTooLong,
            Some(Missing::Truncated) | None => return Ok(()),
        };
        let stream_offset = record.stream_offset.saturating_add(length);
        sink.event(&Event::Lost(Lost {
            time,
            place: Some(Place {
                stream_offset,
                ..place
            }),
            bytes: omitted,
            records: 1,
            reason,
        }))
    }

    fn close(
        &mut self,
        record: &CloseRecord,
        time: Timestamp,
        sink: &mut impl Sink,
    ) -> io::Result<()> {
        for direction in [Direction::Write, Direction::Read] {
            let index = direction.index();
            let end = Stream {
                offset: record.stream_length[index],
                sequence: record.sequence[index],
            };
            self.advance(&record.header, direction, end, end, time, sink)?;
        }
        self.connections.pop(&Key::of(&record.header));
        Ok(())
    }

    /// Moves a stream on to `end`, from where it was to `begin` first: that is a gap if there is
    /// anything in between. Returns the place where the stream was.
    fn advance<'a>(
        &mut self,
        header: &'a Header,
        direction: Direction,
        begin: Stream,
        end: Stream,
        time: Timestamp,
        sink: &mut impl Sink,
    ) -> io::Result<Place<'a>> {
        let totals = &mut self.totals;
        let connection = self.connections.get_or_insert_mut(Key::of(header), || {
            totals.connections += 1;
            Connection {
                number: totals.connections,
                streams: Default::default(),
            }
        });
        let expected = std::mem::replace(&mut connection.streams[direction.index()], end);
        let place = Place {
            pid: header.pid,
            comm: header.comm(),
            connection: connection.number,
            direction,
            stream_offset: expected.offset,
        };
        let bytes = begin.offset.saturating_sub(expected.offset);
        if bytes > 0 {
            let records = u64::from(begin.sequence.wrapping_sub(expected.sequence));
            totals.lost_records += records;
            totals.lost_bytes += bytes;
            let (place, reason) = (Some(place), Loss::BufferFull);
            sink.event(&Event::Lost(Lost {
                time,
                place,
                bytes,
                records,
                reason,
            }))?;
        }
        Ok(place)
    }
}
