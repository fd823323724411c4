//! From plaintext to conversations: feeds each connection's bytes to the decoders, and hands on what
//! they say.
//!
//! Memory is bounded: [`Conversations::CONNECTIONS_MAX`] connections are followed at a time, what their
//! decoders hold is limited to [`Conversations::HELD_MAX`], and what is kept of exchanges to
//! [`Limits::total`]. Where one of these is reached, the connection that was silent for the longest time
//! is given up: its exchanges are handed on as they are, and it is begun anew with its next bytes.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use events::{Direction, Role};
use lru::LruCache;
use protocol::{
    Budget, Cause, Conversation, ConversationEvent, Ending, Exchanges, Hint, HttpEvent, Limits,
    Notice, Protocol, Redaction, Side, Time, Trouble,
};

use crate::event::{Closed, Data, Event, Http, Lost, Opened, Sink};
use crate::time::Timestamp;
use crate::tracker::Tracker;

/// Calls of a connection that are held until it is known whether it speaks HTTP.
const UNDECIDED_CALLS_MAX: usize = 64;

/// Which plaintext is handed on as it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plaintext {
    /// All of it.
    All,
    /// What is not HTTP, and calls of which nothing can be decoded because they were cut.
    #[default]
    Undecoded,
    /// None.
    None,
}

/// How conversations are followed.
#[derive(Clone, Debug, Default)]
pub struct ConversationOptions {
    /// How much is kept.
    pub limits: Limits,
    /// Header fields whose values are masked.
    pub redaction: Redaction,
    /// Which plaintext is handed on.
    pub plaintext: Plaintext,
}

/// Stands between the [`Tracker`] and a sink, and adds what the plaintext says.
pub struct Conversations<S> {
    sink: S,
    limits: Limits,
    redaction: Arc<Redaction>,
    plaintext: Plaintext,
    budget: Budget,
    /// By number.
    connections: LruCache<u64, Box<Connection>>,
    /// Those that were closed last: what is still read of them is no new conversation.
    closed: LruCache<u64, ()>,
    held: usize,
    /// From the records' clock to the wall clock.
    realtime_offset_ns: i64,
    last_tick: Option<Time>,
}

/// A connection that is followed.
struct Connection {
    pid: u32,
    comm: Vec<u8>,
    conversation: Conversation,
    exchanges: Exchanges,
    /// The direction of requests, once it is known.
    requests: Option<Direction>,
    /// Calls that have not been handed on, because they may be HTTP.
    undecided: Vec<Call>,
    /// Bytes that were last counted in [`Conversations::held`].
    held: usize,
}

/// A [`Data`] event by itself.
struct Call {
    data: Data<'static>,
    comm: Vec<u8>,
    payload: Vec<u8>,
}

impl<S: Sink> Conversations<S> {
    /// Connections that are followed at a time.
    pub const CONNECTIONS_MAX: usize = 16384;

    /// Bytes that all decoders may hold together.
    pub const HELD_MAX: usize = 128 << 20;

    /// How often those exchanges are looked for that have been going on for a while, in ns.
    const TICK: u64 = 1_000_000_000;

    /// Hands everything on to `sink`.
    pub fn new(sink: S, options: ConversationOptions) -> Self {
        // One that is bounded from the start takes all its memory at once.
        let mut connections = LruCache::unbounded();
        connections.resize(NonZeroUsize::new(Self::CONNECTIONS_MAX).unwrap_or(NonZeroUsize::MIN));
        let mut closed = LruCache::unbounded();
        closed.resize(NonZeroUsize::new(Tracker::CLOSED_MAX).unwrap_or(NonZeroUsize::MIN));
        Self {
            sink,
            limits: options.limits,
            redaction: Arc::new(options.redaction),
            plaintext: options.plaintext,
            budget: Budget::new(options.limits.total),
            connections,
            closed,
            held: 0,
            realtime_offset_ns: 0,
            last_tick: None,
        }
    }

    /// The sink.
    pub fn sink(&self) -> &S {
        &self.sink
    }

    /// The sink.
    pub fn sink_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    /// What separates the records' clock from the wall clock, from the next event on: durations don't
    /// change with it, when somebody sets the wall clock.
    pub fn set_realtime_offset(&mut self, realtime_offset_ns: i64) {
        self.realtime_offset_ns = realtime_offset_ns;
    }

    fn time(&self, timestamp: Timestamp) -> Time {
        Time::at(timestamp.0, self.realtime_offset_ns)
    }

    /// Announces exchanges that have been going on for a while; does so at most once a second, and says
    /// whether it did.
    pub fn tick(&mut self, now: Timestamp) -> io::Result<bool> {
        let time = self.time(now);
        let ticked = |last: Time| time.since(last) < Self::TICK;
        if self.last_tick.is_some_and(ticked) {
            return Ok(false);
        }
        self.last_tick = Some(time);
        for (number, connection) in &mut self.connections {
            let Connection {
                pid,
                comm,
                exchanges,
                requests,
                ..
            } = &mut **connection;
            if exchanges.is_idle() {
                continue;
            }
            let mut out = Out::new(&mut self.sink, now, *pid, comm, *number);
            out.requests = *requests;
            exchanges.tick(time, &mut |notice| out.notice(&notice));
            out.result?;
        }
        Ok(true)
    }

    /// The capture ends: hands on what there is of exchanges that have not ended.
    pub fn finish(&mut self, now: Timestamp) -> io::Result<()> {
        let mut numbers: Vec<u64> = self.connections.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        for number in numbers {
            self.end(number, now, Ending::CaptureEnded)?;
        }
        Ok(())
    }

    fn opened(&mut self, opened: &Opened<'_>) -> io::Result<()> {
        let agreed = opened.agreed.as_ref();
        let hint = Hint {
            role: agreed.map(|agreed| match agreed.role {
                Role::Client => Side::Client,
                Role::Server => Side::Server,
            }),
            alpn: agreed
                .and_then(|agreed| agreed.protocol)
                .map(<[u8]>::to_vec),
            from_beginning: opened.from_start,
        };
        if self.connections.contains(&opened.connection) {
            // It came late.
            return Ok(());
        }
        let connection = self.connection(opened.pid, opened.comm, hint);
        self.insert(opened.connection, connection, opened.time)
    }

    fn data(&mut self, data: &Data<'_>) -> io::Result<()> {
        if self.plaintext == Plaintext::All {
            self.sink.event(&Event::Data(*data))?;
        }
        if self.closed.contains(&data.connection) {
            return match self.plaintext {
                Plaintext::Undecoded => self.sink.event(&Event::Data(*data)),
                Plaintext::All | Plaintext::None => Ok(()),
            };
        }
        self.find(
            data.pid,
            data.comm,
            data.connection,
            data.stream_offset,
            data.time,
        )?;
        let end = data.stream_offset.saturating_add(data.payload.len() as u64);
        let truncated = (data.truncated > 0).then_some(data.truncated);
        self.feed(
            data.connection,
            data.time,
            Some(data),
            |conversation, sink| {
                conversation.data(data.direction, data.stream_offset, data.payload, sink);
                if let Some(truncated) = truncated {
                    let cause = Cause::LeftOut;
                    conversation.missing(data.direction, end, truncated, cause, sink);
                }
            },
        )
    }

    fn lost(&mut self, lost: &Lost<'_>) -> io::Result<()> {
        let Some(place) = lost.place else {
            return self.sink.event(&Event::Lost(*lost));
        };
        if self.closed.contains(&place.connection) {
            return self.sink.event(&Event::Lost(*lost));
        }
        self.find(
            place.pid,
            place.comm,
            place.connection,
            place.stream_offset,
            lost.time,
        )?;
        // What was held comes before.
        let mut undecided = Vec::new();
        if let Some(connection) = self.connections.peek_mut(&place.connection) {
            std::mem::swap(&mut undecided, &mut connection.undecided);
        }
        self.hand_on(undecided)?;
        self.sink.event(&Event::Lost(*lost))?;
        self.feed(place.connection, lost.time, None, |conversation, sink| {
            let (offset, cause) = (place.stream_offset, Cause::Lost);
            conversation.missing(place.direction, offset, lost.bytes, cause, sink);
        })
    }

    fn closed(&mut self, closed: &Closed<'_>) -> io::Result<()> {
        self.closed.put(closed.connection, ());
        self.end(closed.connection, closed.time, Ending::ConnectionClosed)
    }

    /// Makes sure that a connection is followed.
    fn find(
        &mut self,
        pid: u32,
        comm: &[u8],
        number: u64,
        offset: u64,
        time: Timestamp,
    ) -> io::Result<()> {
        if self.connections.get(&number).is_some() {
            return Ok(());
        }
        let hint = Hint {
            role: None,
            alpn: None,
            from_beginning: offset == 0,
        };
        let connection = self.connection(pid, comm, hint);
        self.insert(number, connection, time)
    }

    fn connection(&self, pid: u32, comm: &[u8], hint: Hint) -> Box<Connection> {
        Box::new(Connection {
            pid,
            comm: comm.to_vec(),
            requests: requests(hint.role),
            conversation: Conversation::new(hint),
            exchanges: Exchanges::new(self.limits, &self.budget, self.redaction.clone()),
            undecided: Vec::new(),
            held: 0,
        })
    }

    fn insert(
        &mut self,
        number: u64,
        connection: Box<Connection>,
        time: Timestamp,
    ) -> io::Result<()> {
        if self.connections.len() >= Self::CONNECTIONS_MAX {
            self.give_up_oldest(time)?;
        }
        self.connections.put(number, connection);
        Ok(())
    }

    fn give_up_oldest(&mut self, time: Timestamp) -> io::Result<()> {
        match self.connections.peek_lru() {
            Some((&number, _)) => self.end(number, time, Ending::Displaced),
            None => Ok(()),
        }
    }

    /// Has a connection's decoder take something: `call`, if it is that.
    fn feed(
        &mut self,
        number: u64,
        time: Timestamp,
        call: Option<&Data<'_>>,
        feed: impl FnOnce(&mut Conversation, &mut dyn FnMut(ConversationEvent<'_>)),
    ) -> io::Result<()> {
        let at = self.time(time);
        let Some(connection) = self.connections.get_mut(&number) else {
            return Ok(());
        };
        let Connection {
            pid,
            comm,
            conversation,
            exchanges,
            requests: known,
            ..
        } = &mut **connection;
        let mut out = Out::new(&mut self.sink, time, *pid, comm, number);
        out.requests = *known;
        let mut raw = false;
        // Of this call's bytes: some could not be decoded without those that were left out, some were.
        let (mut undecoded, mut decoded) = (false, false);
        feed(conversation, &mut |event| match event {
            ConversationEvent::Protocol(_, role) => out.requests = requests(role),
            ConversationEvent::Http(event) => {
                match event {
                    HttpEvent::Trouble(.., Trouble::LeftOut { .. }) => undecoded = true,
                    HttpEvent::Trouble(..) => {}
                    _ => decoded = true,
                }
                exchanges.event(at, event, &mut |notice| out.notice(&notice));
            }
            ConversationEvent::Raw(..) | ConversationEvent::RawMissing(..) => raw = true,
        });
        *known = out.requests;
        let result = out.result;
        raw |= undecoded && !decoded;

        let decided = connection.conversation.protocol().is_some();
        let mut undecided = Vec::new();
        if raw || decided || connection.undecided.len() >= UNDECIDED_CALLS_MAX {
            std::mem::swap(&mut undecided, &mut connection.undecided);
        }
        if !raw && decided {
            undecided.clear();
        }
        if let (false, false, Some(call)) = (raw, decided, call)
            && self.plaintext == Plaintext::Undecoded
        {
            connection.undecided.push(Call::of(call));
        }
        self.count(number);
        result?;
        self.hand_on(undecided)?;
        if let (true, Some(call)) = (raw && self.plaintext == Plaintext::Undecoded, call) {
            self.sink.event(&Event::Data(*call))?;
        }
        while self.held > Self::HELD_MAX && !self.connections.is_empty() {
            self.give_up_oldest(time)?;
        }
        Ok(())
    }

    /// Counts anew what a connection holds.
    fn count(&mut self, number: u64) {
        if let Some(connection) = self.connections.peek_mut(&number) {
            let calls = connection.undecided.iter().map(Call::memory);
            let held = connection.conversation.held() + calls.sum::<usize>();
            self.held = self.held - connection.held + held;
            connection.held = held;
        }
    }

    fn hand_on(&mut self, calls: Vec<Call>) -> io::Result<()> {
        for call in calls {
            let data = Data {
                comm: &call.comm,
                payload: &call.payload,
                ..call.data
            };
            self.sink.event(&Event::Data(data))?;
        }
        Ok(())
    }

    /// Follows a connection no longer.
    fn end(&mut self, number: u64, time: Timestamp, ending: Ending) -> io::Result<()> {
        let at = self.time(time);
        let Some(mut connection) = self.connections.pop(&number) else {
            return Ok(());
        };
        self.held -= connection.held;
        self.hand_on(std::mem::take(&mut connection.undecided))?;
        let Connection {
            pid,
            comm,
            conversation,
            exchanges,
            requests,
            ..
        } = &mut *connection;
        let mut out = Out::new(&mut self.sink, time, *pid, comm, number);
        out.requests = *requests;
        // HTTP/1 takes the end of the connection for the end of some bodies.
        let over = ending == Ending::ConnectionClosed;
        if over || conversation.protocol() == Some(Protocol::Http2) {
            conversation.close(&mut |event| {
                if let ConversationEvent::Http(event) = event {
                    exchanges.event(at, event, &mut |notice| out.notice(&notice));
                }
            });
        }
        exchanges.close(at, ending, &mut |notice| out.notice(&notice));
        out.result
    }
}

impl<S: Sink> Sink for Conversations<S> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Opened(opened) => {
                self.sink.event(event)?;
                self.opened(opened)
            }
            Event::Data(data) => self.data(data),
            Event::Lost(lost) => self.lost(lost),
            Event::Closed(closed) => {
                self.closed(closed)?;
                self.sink.event(event)
            }
            Event::Http(_) => self.sink.event(event),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// The direction in which requests go, if the program is this end.
fn requests(role: Option<Side>) -> Option<Direction> {
    role.map(|role| match role {
        Side::Client => Direction::Write,
        Side::Server => Direction::Read,
    })
}

impl Call {
    fn of(data: &Data<'_>) -> Self {
        Self {
            comm: data.comm.to_vec(),
            payload: data.payload.to_vec(),
            data: Data {
                comm: &[],
                payload: &[],
                ..*data
            },
        }
    }

    fn memory(&self) -> usize {
        size_of::<Self>() + self.comm.capacity() + self.payload.capacity()
    }
}

/// Hands notices on as events, until one fails.
struct Out<'a, S> {
    sink: &'a mut S,
    time: Timestamp,
    pid: u32,
    comm: &'a [u8],
    connection: u64,
    requests: Option<Direction>,
    result: io::Result<()>,
}

impl<'a, S: Sink> Out<'a, S> {
    fn new(sink: &'a mut S, time: Timestamp, pid: u32, comm: &'a [u8], connection: u64) -> Self {
        Self {
            sink,
            time,
            pid,
            comm,
            connection,
            requests: None,
            result: Ok(()),
        }
    }

    fn notice(&mut self, notice: &Notice<'_>) {
        if self.result.is_err() {
            return;
        }
        let began = match notice {
            Notice::Finished(exchange) | Notice::Began(exchange) => exchange.began(),
            Notice::Message(_, message) => Some(message.time),
            _ => None,
        };
        self.result = self.sink.event(&Event::Http(Http {
            time: began.map_or(self.time, |began| Timestamp(began.wall_ns)),
            pid: self.pid,
            comm: self.comm,
            connection: self.connection,
            requests: self.requests,
            notice,
        }));
    }
}
