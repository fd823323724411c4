//! Plaintext as packets: each connection as TCP over IP, with the bytes that the program wrote and read
//! where the network had ciphertext, so that Wireshark's dissectors and "Follow stream" work without keys.
//!
//! Made up are the handshake, the acknowledgements, and what is not known of the ends: addresses, and which
//! is the client. A connection that was first seen in the middle has no handshake. Sequence numbers begin at 0, so that the one of a byte is its offset in the
//! stream plus 1, and what was lost is a jump: Wireshark's "previous segment not captured".

use std::collections::HashMap;
use std::io::{self, Write};
use std::num::NonZeroUsize;

use events::{Direction, Role};
use lru::LruCache;

use crate::endpoints::{Endpoints, FourTuple, begins_like_http2, first_sender_serves};
use crate::escape::escape_name;
use crate::event::{Closed, Data, Event, Opened, Sink};
use crate::packets::PacketTotals;
use crate::pcapng::{Interface, InterfaceStatistics, Packet, PacketDirection, PcapngWriter};
use crate::segment::{self, Flags, Segment};
use crate::time::Timestamp;
use crate::tracker::Tracker;

/// Writes plaintext to a pcapng file. Holds at most [`Tracker::CONNECTIONS_MAX`] connections.
#[derive(Debug)]
pub struct PlaintextPackets<W> {
    writer: PcapngWriter<W>,
    connections: LruCache<u64, State>,
    /// Which connection has which addresses.
    taken: HashMap<FourTuple, u64>,
    start: Timestamp,
    totals: PacketTotals,
    packet: Vec<u8>,
}

/// What is known of a connection.
#[derive(Debug)]
enum State {
    /// Nothing of it is in the file yet.
    Opened(Opening),
    Begun(Connection),
}

/// What a connection will begin with.
#[derive(Debug)]
struct Opening {
    endpoints: Option<Endpoints>,
    local_serves: Option<bool>,
    http2: bool,
    from_start: bool,
}

impl Opening {
    /// Of a connection of which nobody told.
    const UNKNOWN: Self = Self {
        endpoints: None,
        local_serves: None,
        http2: false,
        from_start: true,
    };
}

/// A connection that has begun in the file.
#[derive(Debug)]
struct Connection {
    tuple: FourTuple,
    /// Of local (what is written) and remote (what is read), by [`Direction::index`]: the next sequence
    /// number, and the last one that the other end has acknowledged.
    sent: [u64; 2],
    acknowledged: [u64; 2],
}

/// Who is meant, for comments.
#[derive(Clone, Copy, Debug)]
struct Whose<'a> {
    pid: u32,
    comm: &'a [u8],
    connection: u64,
}

impl std::fmt::Display for Whose<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let comm = escape_name(self.comm);
        write!(f, "{comm}[{}] connection {}", self.pid, self.connection)
    }
}

impl<W: Write> PlaintextPackets<W> {
    /// The interface of the packets: they begin with an IP header.
    pub const INTERFACE: Interface<'static> = Interface {
        name: "plaintext",
        link_type: 101, // LINKTYPE_RAW
        snaplen: 0,
        filter: None,
    };

    /// Bytes that an end may have sent without an acknowledgement: half of the window that it was offered.
    const UNACKNOWLEDGED_MAX: u64 = 512 * 1024 * 1024;

    /// Goes on where `writer` has described [`Self::INTERFACE`]. `start` is when the capture began.
    pub fn new(writer: PcapngWriter<W>, start: Timestamp) -> Self {
        // One that is bounded from the start takes all its memory at once.
        let mut connections = LruCache::unbounded();
        let most = NonZeroUsize::new(Tracker::CONNECTIONS_MAX).unwrap_or(NonZeroUsize::MIN);
        connections.resize(most);
        Self {
            writer,
            connections,
            taken: HashMap::new(),
            start,
            totals: PacketTotals::default(),
            packet: Vec::new(),
        }
    }

    /// What was written so far.
    pub fn totals(&self) -> PacketTotals {
        self.totals
    }

    /// What it was written to.
    pub fn into_inner(self) -> W {
        self.writer.into_inner()
    }

    /// Ends the file: says how many records were lost.
    pub fn finish(&mut self, now: Timestamp, lost_records: u64) -> io::Result<()> {
        self.writer.statistics(&InterfaceStatistics {
            interface: 0,
            start: self.start,
            end: now,
            received: self.totals.packets + lost_records,
            dropped: lost_records,
        })?;
        self.writer.flush()
    }

    fn open(&mut self, opened: &Opened<'_>) {
        if self.connections.contains(&opened.connection) {
            return; // The record was late, so that it had to begin without.
        }
        let agreed = opened.agreed.as_ref();
        let local_serves = agreed.map(|agreed| agreed.role == Role::Server);
        let opening = Opening {
            endpoints: Endpoints::known(opened.local.as_ref(), opened.remote.as_ref()),
            local_serves,
            http2: agreed.is_some_and(|agreed| agreed.protocol == Some(b"h2")),
            from_start: opened.from_start,
        };
        self.keep(opened.connection, State::Opened(opening));
    }

    /// Ends a connection: both ends say that they send no more.
    fn close(&mut self, closed: &Closed<'_>) -> io::Result<()> {
        let Some(State::Begun(mut connection)) = self.connections.pop(&closed.connection) else {
            return Ok(());
        };
        self.release(&connection);
        let time = closed.time;
        // What was lost at its very end.
        for direction in [Direction::Write, Direction::Read] {
            let sent = &mut connection.sent[direction.index()];
            *sent = (*sent).max(closed.bytes[direction.index()].saturating_add(1));
        }
        for direction in [Direction::Write, Direction::Read] {
            self.segment(&mut connection, direction, time, Flags::FinAck, &[], None)?;
            connection.sent[direction.index()] += 1;
        }
        self.segment(
            &mut connection,
            Direction::Write,
            time,
            Flags::Ack,
            &[],
            None,
        )
    }

    fn data(&mut self, data: &Data<'_>) -> io::Result<()> {
        let whose = Whose {
            pid: data.pid,
            comm: data.comm,
            connection: data.connection,
        };
        let mut connection = match self.connections.pop(&data.connection) {
            Some(State::Begun(connection)) => connection,
            Some(State::Opened(opening)) => self.begin(whose, &opening, data)?,
            None => self.begin(whose, &Opening::UNKNOWN, data)?,
        };
        let sequence = data.stream_offset.saturating_add(1);
        let sent = &mut connection.sent[data.direction.index()];
        let missing = sequence.saturating_sub(*sent);
        *sent = sequence;
        let mut comment = whose.to_string();
        if missing > 0 {
            comment += &format!("; {missing} bytes before this are missing");
        }
        if data.truncated > 0 {
            comment += &format!("; {} bytes behind this were left out", data.truncated);
        }
        let comment = Some(comment.as_str());
        for payload in data.payload.chunks(segment::PAYLOAD_MAX) {
            let flags = Flags::PshAck;
            self.segment(
                &mut connection,
                data.direction,
                data.time,
                flags,
                payload,
                comment,
            )?;
            connection.sent[data.direction.index()] += payload.len() as u64;
        }
        self.acknowledge(&mut connection, data)?;
        self.keep(data.connection, State::Begun(connection));
        Ok(())
    }

    /// Acknowledges before Wireshark thinks that the window is full.
    fn acknowledge(&mut self, connection: &mut Connection, data: &Data<'_>) -> io::Result<()> {
        let index = data.direction.index();
        let waiting = connection.sent[index].saturating_sub(connection.acknowledged[index]);
        if waiting < Self::UNACKNOWLEDGED_MAX {
            return Ok(());
        }
        let back = opposite(data.direction);
        self.segment(connection, back, data.time, Flags::Ack, &[], None)
    }

    /// Puts a connection's handshake into the file, in front of its first bytes.
    fn begin(
        &mut self,
        whose: Whose<'_>,
        opening: &Opening,
        first: &Data<'_>,
    ) -> io::Result<Connection> {
        let local_serves = opening.local_serves.unwrap_or_else(|| {
            (first.direction == Direction::Write) == first_sender_serves(first.payload)
        });
        let http2 = opening.http2 || begins_like_http2(first.payload);
        let made_up = Endpoints::made_up(whose.connection, local_serves);
        let known = opening.endpoints.unwrap_or(made_up);
        let mut comment = format!("{whose}, {}", known.describe());
        let mut tuple = known.four_tuple(local_serves, http2);
        if let Some(other) = self.other_end(&tuple) {
            tuple = made_up.four_tuple(local_serves, http2);
            comment +=
                &format!("; the other end is connection {other}, so the addresses are made up");
        } else if tuple != known.four_tuple(local_serves, false) {
            comment += "; port 80 makes Wireshark read HTTP/2";
        }
        self.taken.insert(tuple, whose.connection);
        let mut connection = Connection {
            tuple,
            sent: [0; 2],
            acknowledged: [0; 2],
        };
        if opening.from_start {
            self.handshake(&mut connection, local_serves, first.time, &comment)?;
        } else {
            connection.sent = [1; 2];
        }
        Ok(connection)
    }

    fn handshake(
        &mut self,
        connection: &mut Connection,
        local_serves: bool,
        time: Timestamp,
        comment: &str,
    ) -> io::Result<()> {
        let (client, server) = if local_serves {
            (Direction::Read, Direction::Write)
        } else {
            (Direction::Write, Direction::Read)
        };
        self.segment(connection, client, time, Flags::Syn, &[], Some(comment))?;
        connection.sent[client.index()] = 1;
        self.segment(connection, server, time, Flags::SynAck, &[], None)?;
        connection.sent[server.index()] = 1;
        self.segment(connection, client, time, Flags::Ack, &[], None)
    }

    /// Which connection has these addresses already: of one within the machine, both ends may be captured.
    fn other_end(&self, tuple: &FourTuple) -> Option<u64> {
        let found = self.taken.get(&tuple.reversed());
        found.or_else(|| self.taken.get(tuple)).copied()
    }

    fn keep(&mut self, number: u64, state: State) {
        if let Some((_, State::Begun(forgotten))) = self.connections.push(number, state) {
            self.release(&forgotten);
        }
    }

    fn release(&mut self, connection: &Connection) {
        self.taken.remove(&connection.tuple);
    }

    fn segment(
        &mut self,
        connection: &mut Connection,
        direction: Direction,
        time: Timestamp,
        flags: Flags,
        payload: &[u8],
        comment: Option<&str>,
    ) -> io::Result<()> {
        let back = opposite(direction).index();
        let (source, destination) = match direction {
            Direction::Write => (connection.tuple.local, connection.tuple.remote),
            Direction::Read => (connection.tuple.remote, connection.tuple.local),
        };
        if flags.acknowledges() {
            connection.acknowledged[back] = connection.sent[back];
        }
        self.packet.clear();
        let segment = Segment {
            source,
            destination,
            // They count modulo 2^32 (RFC 9293 section 3.4).
            sequence: connection.sent[direction.index()] as u32,
            acknowledgement: connection.sent[back] as u32,
            flags,
            payload,
        };
        segment.write(&mut self.packet)?;
        self.totals.packets += 1;
        self.totals.bytes += self.packet.len() as u64;
        self.writer.packet(&Packet {
            interface: 0,
            time,
            length: self.packet.len() as u32,
            bytes: &self.packet,
            direction: match direction {
                Direction::Write => PacketDirection::Outbound,
                Direction::Read => PacketDirection::Inbound,
            },
            comment,
        })
    }
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Write => Direction::Read,
        Direction::Read => Direction::Write,
    }
}

impl<W: Write> Sink for PlaintextPackets<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Opened(opened) => {
                self.open(opened);
                Ok(())
            }
            Event::Data(data) => self.data(data),
            Event::Closed(closed) => self.close(closed),
            // The next segment's sequence number tells.
            Event::Lost(_) => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
