//! Plaintext as packets: each connection as TCP over IP, with the bytes that the program wrote and read
//! where the network had ciphertext, so that Wireshark's dissectors and "Follow stream" work without keys.
//!
//! Made up are the handshake, the acknowledgements, and what is not known of the ends: addresses, and which
//! is the client. A connection that was first seen in the middle has no handshake. Sequence numbers begin at 0, so that the one of a byte is its offset in the
//! stream plus 1, and what was lost is a jump: Wireshark's "previous segment not captured".

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};
use std::num::NonZeroUsize;

use events::{Direction, Role};
use lru::LruCache;

use crate::endpoints::{Endpoints, FourTuple, begins_like_http2, first_sender_serves};
use crate::escape::escape_name;
use crate::event::{Closed, Data, Event, Opened, Sink, opposite};
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
    held: Option<Held>,
}

/// What the server of an HTTP/2 connection said before its client: Go's doesn't wait for the preface, but
/// Wireshark has to see that first.
#[derive(Debug)]
struct Held {
    direction: Direction,
    calls: Vec<Call<'static>>,
}

impl Held {
    /// Bytes that wait at most: SETTINGS has a few dozen.
    const MOST: usize = 4096;

    fn takes(&self, call: &Call<'_>) -> bool {
        let bytes: usize = self.calls.iter().map(|call| call.payload.len()).sum();
        self.direction == call.direction && bytes + call.payload.len() <= Self::MOST
    }
}

/// Plaintext of a call, or of a part of it.
#[derive(Debug)]
struct Call<'a> {
    time: Timestamp,
    direction: Direction,
    stream_offset: u64,
    truncated: u64,
    comment: String,
    payload: Cow<'a, [u8]>,
}

impl Call<'_> {
    fn into_owned(self) -> Call<'static> {
        Call {
            payload: Cow::Owned(self.payload.into_owned()),
            time: self.time,
            direction: self.direction,
            stream_offset: self.stream_offset,
            truncated: self.truncated,
            comment: self.comment,
        }
    }
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
        while let Some((_, state)) = self.connections.pop_lru() {
            if let State::Begun(mut connection) = state {
                self.release_held(&mut connection)?;
            }
        }
        self.writer.statistics(&InterfaceStatistics {
            interface: 0,
            start: self.start,
            end: now,
            received: self.totals.packets.saturating_add(lost_records),
            dropped: lost_records,
        })?;
        self.writer.flush()
    }

    fn open(&mut self, opened: &Opened<'_>) -> io::Result<()> {
        if self.connections.contains(&opened.connection) {
            return Ok(()); // The record was late, so that it had to begin without.
        }
        let agreed = opened.agreed.as_ref();
        let local_serves = agreed.map(|agreed| agreed.role == Role::Server);
        let opening = Opening {
            endpoints: Endpoints::known(opened.local.as_ref(), opened.remote.as_ref()),
            local_serves,
            http2: agreed.is_some_and(|agreed| agreed.protocol == Some(b"h2")),
            from_start: opened.from_start,
        };
        self.keep(opened.connection, State::Opened(opening))
    }

    /// Ends a connection: both ends say that they send no more.
    fn close(&mut self, closed: &Closed<'_>) -> io::Result<()> {
        let Some(State::Begun(mut connection)) = self.connections.pop(&closed.connection) else {
            return Ok(());
        };
        self.release_held(&mut connection)?;
        self.release(&connection);
        let time = closed.time;
        // What was lost at its very end.
        for direction in [Direction::Write, Direction::Read] {
            let sent = &mut connection.sent[direction.index()];
            *sent = (*sent).max(closed.bytes[direction.index()].saturating_add(1));
        }
        for direction in [Direction::Write, Direction::Read] {
            self.segment(&mut connection, direction, time, Flags::FinAck, &[], None)?;
            let sent = &mut connection.sent[direction.index()];
            *sent = sent.saturating_add(1);
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
        let call = Call {
            time: data.time,
            direction: data.direction,
            stream_offset: data.stream_offset,
            truncated: data.truncated,
            comment: whose.to_string(),
            payload: Cow::Borrowed(data.payload),
        };
        match connection.held.as_mut() {
            Some(held) if held.takes(&call) => held.calls.push(call.into_owned()),
            Some(held) if held.direction != call.direction => {
                let held = std::mem::take(&mut held.calls);
                connection.held = None;
                self.call(&mut connection, &call)?;
                for call in &held {
                    self.call(&mut connection, call)?;
                }
            }
            _ => {
                self.release_held(&mut connection)?;
                self.call(&mut connection, &call)?;
            }
        }
        self.keep(data.connection, State::Begun(connection))
    }

    /// Writes what waited for the client's first bytes.
    fn release_held(&mut self, connection: &mut Connection) -> io::Result<()> {
        let held = connection.held.take();
        for call in held.iter().flat_map(|held| &held.calls) {
            self.call(connection, call)?;
        }
        Ok(())
    }

    fn call(&mut self, connection: &mut Connection, call: &Call<'_>) -> io::Result<()> {
        let sequence = call.stream_offset.saturating_add(1);
        let sent = &mut connection.sent[call.direction.index()];
        let missing = sequence.saturating_sub(*sent);
        *sent = sequence;
        let mut comment = call.comment.clone();
        if missing > 0 {
            comment += &format!("; {missing} bytes before this are missing");
        }
        if call.truncated > 0 {
            comment += &format!("; {} bytes behind this were left out", call.truncated);
        }
        let comment = Some(comment.as_str());
        for payload in call.payload.chunks(segment::PAYLOAD_MAX) {
            let flags = Flags::PshAck;
            self.segment(
                connection,
                call.direction,
                call.time,
                flags,
                payload,
                comment,
            )?;
            let sent = &mut connection.sent[call.direction.index()];
            *sent = sent.saturating_add(payload.len() as u64);
        }
        self.acknowledge(connection, call)
    }

    /// Acknowledges before Wireshark thinks that the window is full.
    fn acknowledge(&mut self, connection: &mut Connection, call: &Call<'_>) -> io::Result<()> {
        let index = call.direction.index();
        let waiting = connection.sent[index].saturating_sub(connection.acknowledged[index]);
        if waiting < Self::UNACKNOWLEDGED_MAX {
            return Ok(());
        }
        let back = opposite(call.direction);
        self.segment(connection, back, call.time, Flags::Ack, &[], None)
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
            held: None,
        };
        if opening.from_start {
            self.handshake(&mut connection, local_serves, first.time, &comment)?;
            let direction = server_direction(local_serves);
            let calls = Vec::new();
            connection.held = http2.then_some(Held { direction, calls });
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
        let server = server_direction(local_serves);
        let client = opposite(server);
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

    fn keep(&mut self, number: u64, state: State) -> io::Result<()> {
        if let Some((_, State::Begun(mut forgotten))) = self.connections.push(number, state) {
            self.release_held(&mut forgotten)?;
            self.release(&forgotten);
        }
        Ok(())
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

/// Where what the server sends goes, from the program's point of view.
fn server_direction(local_serves: bool) -> Direction {
    if local_serves {
        Direction::Write
    } else {
        Direction::Read
    }
}

impl<W: Write> Sink for PlaintextPackets<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Opened(opened) => self.open(opened),
            Event::Data(data) => self.data(data),
            Event::Closed(closed) => self.close(closed),
            // The next segment's sequence number tells.
            Event::Lost(_) => Ok(()),
            // Made of the same bytes.
            Event::Http(_) => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
