//! From records to events: numbers the connections and notices what is missing.
//!
//! The eBPF programs count every byte and record of a stream, also those that find no room in the
//! ring buffer. So a gap is where a record begins behind the end of its predecessor.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::time::Duration;

use events::{CloseRecord, ConnectionRecord, DataRecord, Direction, Header, Missing, Record};
use lru::LruCache;

use crate::event::{Closed, Data, Event, Loss, Lost, Opened, Place, Sink};
use crate::processes::Processes;
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
    /// Those of them that were closed, in that order.
    closed: VecDeque<Key>,
    processes: Processes,
    totals: Totals,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// It has been told what it connects.
    opened: bool,
    /// It has been told that it ended.
    closed: bool,
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

    /// How many of them may have been closed: what had been decrypted before `Close` is still read, and a
    /// `Write` that waited for its turn goes on.
    pub(crate) const CLOSED_MAX: usize = 1024;

    /// A tracker that has seen nothing.
    pub fn new() -> Self {
        // One that is bounded from the start takes all its memory at once: megabytes.
        let mut connections = LruCache::unbounded();
        connections.resize(NonZeroUsize::new(Self::CONNECTIONS_MAX).unwrap_or(NonZeroUsize::MIN));
        Self {
            connections,
            closed: VecDeque::new(),
            processes: Processes::default(),
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
        let time = Timestamp::from_monotonic(record.time_ns(), realtime_offset_ns);
        match record {
            Record::Connection(record) => self.open(record, time, sink),
            Record::Data(record) => self.data(record, time, sink),
            Record::Close(record) => self.close(record, time, sink),
            Record::Process(record) => {
                self.processes.place(record);
                Ok(())
            }
            // These belong to no connection that we know.
            Record::Key(_) | Record::Packet(_) => Ok(()),
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
        self.totals.lost_records = self.totals.lost_records.saturating_add(records);
        self.totals.lost_bytes = self.totals.lost_bytes.saturating_add(bytes);
        sink.event(&Event::Lost(Lost {
            time,
            place: None,
            bytes,
            records,
            reason: Loss::BufferFull,
        }))
    }

    fn open(
        &mut self,
        record: &ConnectionRecord<'_>,
        time: Timestamp,
        sink: &mut impl Sink,
    ) -> io::Result<()> {
        let connection = self.connection(&record.header);
        let number = connection.number;
        // Two threads of the program that used it first at the same time have told of it twice.
        if std::mem::replace(&mut connection.opened, true) {
            return Ok(());
        }
        sink.event(&Event::Opened(Opened {
            time,
            pid: record.header.pid,
            tid: record.header.tid,
            comm: record.header.comm(),
            connection: number,
            from_start: record.from_start,
            fd: record.fd,
            local: record.local,
            remote: record.remote,
            agreed: record.agreed,
            container: self.processes.container(record.header.pid),
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
        self.totals.bytes = self.totals.bytes.saturating_add(length);
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
                goroutine: record.goroutine,
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
        let connection = self.connection(&record.header);
        if std::mem::replace(&mut connection.closed, true) {
            return Ok(());
        }
        let number = connection.number;
        // A call that was going on has come further by now.
        let bytes = connection.streams.map(|stream| stream.offset);
        self.forget_later(Key::of(&record.header));
        let header = &record.header;
        let duration = header.time_ns.saturating_sub(header.first_seen_ns);
        sink.event(&Event::Closed(Closed {
            time,
            pid: header.pid,
            tid: header.tid,
            comm: header.comm(),
            connection: number,
            bytes,
            duration: Duration::from_nanos(duration),
            cause: record.cause,
        }))
    }

    /// Forgets a connection that was closed, once enough others were.
    fn forget_later(&mut self, key: Key) {
        self.closed.push_back(key);
        if self.closed.len() > Self::CLOSED_MAX
            && let Some(key) = self.closed.pop_front()
        {
            self.connections.pop(&key);
        }
    }

    /// The connection that a record belongs to; a new one if it is not known.
    fn connection(&mut self, header: &Header) -> &mut Connection {
        let totals = &mut self.totals;
        self.connections.get_or_insert_mut(Key::of(header), || {
            totals.connections += 1;
            Connection {
                number: totals.connections,
                opened: false,
                closed: false,
                streams: Default::default(),
            }
        })
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
        let connection = self.connection(header);
        let stream = &mut connection.streams[direction.index()];
        let expected = *stream;
        // A call that was going on at the connection's end counts only once it is over.
        if end.offset >= expected.offset {
            *stream = end;
        }
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
            self.totals.lost_records = self.totals.lost_records.saturating_add(records);
            self.totals.lost_bytes = self.totals.lost_bytes.saturating_add(bytes);
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

#[cfg(test)]
mod tests {
    use events::{Address, Agreed, CloseCause, Role};
    use jiff::tz::TimeZone;

    use super::*;
    use crate::{Palette, PayloadStyle, TextSink};

    /// What a person gets to see of these records.
    fn shown(style: PayloadStyle, records: &[Record<'_>], lost: (u64, u64)) -> (String, Totals) {
        let mut out = Vec::new();
        let mut tracker = Tracker::new();
        let mut sink = TextSink::new(&mut out, style, Palette::PLAIN, TimeZone::UTC);
        for record in records {
            tracker.record(record, 0, &mut sink).unwrap();
        }
        tracker
            .finish(Timestamp(9_000_000_000), lost.0, lost.1, &mut sink)
            .unwrap();
        sink.flush().unwrap();
        (String::from_utf8(out).unwrap(), tracker.totals())
    }

    fn header(conn: u64, first_seen_ns: u64) -> Header {
        Header {
            time_ns: 3_723_000_004_567,
            conn,
            first_seen_ns,
            pid: 42,
            tid: 43,
            comm: *b"ca\x1bddy\0\0\0\0\0\0\0\0\0\0",
        }
    }

    fn data(header: Header, offset: u64, sequence: u32, payload: &[u8]) -> DataRecord<'_> {
        DataRecord {
            header,
            direction: Direction::Write,
            stream_offset: offset,
            call_length: payload.len() as u64,
            call_offset: 0,
            sequence,
            payload,
            omitted: None,
            goroutine: Some(34),
        }
    }

    /// The wall clock may be set while a capture runs: to the years 2001, 1677 (the first that there
    /// is) and back.
    #[test]
    fn steps_of_the_clock_change_times_and_nothing_else() {
        const STEPS: [i64; 4] = [1_000_000_000_000_000_000, i64::MIN, -1, 0];

        let show = |offsets: [i64; 4]| {
            let mut out = Vec::new();
            let mut tracker = Tracker::new();
            let (style, zone) = (PayloadStyle::Text, TimeZone::UTC);
            let mut sink = TextSink::new(&mut out, style, Palette::PLAIN, zone);
            for (number, offset) in (0..).zip(offsets) {
                // Each second record was lost.
                let record = data(header(1, 5), u64::from(number) * 4, number * 2, b"ab");
                let record = Record::Data(record);
                tracker.record(&record, offset, &mut sink).unwrap();
            }
            sink.flush().unwrap();
            let mut text = String::from_utf8(out).unwrap();
            let times: Vec<_> = text
                .lines()
                .filter(|line| line.contains("ca\\x1bddy"))
                .map(|line| line.split(' ').next().unwrap().to_owned())
                .collect();
            for time in &times {
                text = text.replace(time, "TIME");
            }
            (times, text, tracker.totals())
        };
        let (times, text, totals) = show(STEPS);
        let (steady_times, steady_text, steady_totals) = show([0; 4]);
        assert_eq!((text, totals), (steady_text, steady_totals));
        assert_eq!(times.len(), 4 + 3, "records, and losses between them");
        assert_eq!(times.last(), steady_times.last());
        assert_ne!(times, steady_times);
    }

    #[test]
    fn text_shows_who_wrote_and_read_what() {
        let answer = DataRecord {
            direction: Direction::Read,
            ..data(header(1, 5), 0, 0, b"HTTP/1.1 200 OK\r\n\r\n\x1b[2J")
        };
        let part = DataRecord {
            call_length: 20_000,
            call_offset: 16_384,
            ..data(header(2, 5), 0, 0, "gr\u{fc}\u{df}e\n".as_bytes())
        };
        let truncated = DataRecord {
            call_length: 9,
            omitted: Some((Missing::Truncated, 8)),
            ..data(header(2, 5), 8, 1, b"x")
        };
        let records = [
            Record::Data(data(header(1, 5), 0, 0, b"GET / HTTP/1.1\r\n\r\n")),
            Record::Data(answer),
            Record::Data(part),
            Record::Data(truncated),
        ];
        let (text, totals) = shown(PayloadStyle::Text, &records, (0, 0));
        assert_eq!(
            text,
            "01:02:03.000004 ca\\x1bddy[42] #1 \u{2192} write 18 bytes\n\
             GET / HTTP/1.1\n\n\
             01:02:03.000004 ca\\x1bddy[42] #1 \u{2190} read 23 bytes\n\
             HTTP/1.1 200 OK\n\n\\x1b[2J\n\
             01:02:03.000004 ca\\x1bddy[42] #2 \u{2192} write 8 bytes, 16384-16392 of 20000\n\
             gr\u{fc}\u{df}e\n\
             01:02:03.000004 ca\\x1bddy[42] #2 \u{2192} write 1 byte, 0-1 of 9, \
             the rest not captured (--tsize)\nx\n"
        );
        assert_eq!(
            (totals.records, totals.bytes, totals.connections),
            (4, 50, 2)
        );
    }

    fn connection<'a>(local: Address<'a>, remote: Option<Address<'a>>) -> ConnectionRecord<'a> {
        ConnectionRecord {
            header: header(1, 3_721_499_995_567),
            from_start: true,
            fd: Some(7),
            local: Some(local),
            remote,
            agreed: Some(Agreed {
                role: Role::Server,
                version: 0x0304,
                cipher_suite: 0x1301,
                resumed: false,
                server_name: Some(b"greeter.test\x1b"),
                protocol: Some(b"h2"),
            }),
        }
    }

    fn tcp(ip: &str, port: u16) -> Address<'static> {
        Address::Tcp {
            ip: ip.parse().unwrap(),
            port,
            zone: b"",
        }
    }

    #[test]
    fn text_shows_where_a_connection_begins_and_ends() {
        let opened = connection(tcp("10.0.0.1", 443), Some(tcp("2001:db8::1", 50_000)));
        let mut client = connection(Address::Unix(b"@"), Some(Address::Unix(b"/run/x.sock")));
        client.header = header(2, 5);
        client.from_start = false;
        client.agreed = client.agreed.map(|_| Agreed {
            role: Role::Client,
            version: 0x0303,
            cipher_suite: 0xabcd,
            resumed: true,
            server_name: None,
            protocol: None,
        });
        let unknown = ConnectionRecord {
            header: header(3, 5),
            from_start: true,
            fd: None,
            local: None,
            remote: None,
            agreed: None,
        };
        let close = |header, cause| {
            Record::Close(CloseRecord {
                header,
                stream_length: [0, 1],
                sequence: [0, 1],
                cause,
            })
        };
        let one = DataRecord {
            direction: Direction::Read,
            ..data(opened.header, 0, 0, b"a")
        };
        let records = [
            Record::Connection(opened),
            // Another thread tells of it too.
            Record::Connection(opened),
            Record::Data(one),
            close(opened.header, CloseCause::Called),
            Record::Connection(client),
            Record::Connection(unknown),
            close(unknown.header, CloseCause::Dropped),
        ];
        let (text, totals) = shown(PayloadStyle::Text, &records, (0, 0));
        let begin = "01:02:03.000004 ca\\x1bddy[42]";
        let expected = [
            format!(
                "{begin} #1 opened: server 10.0.0.1:443 \u{2190} [2001:db8::1]:50000, TLS 1.3, \
                 TLS_AES_128_GCM_SHA256, ALPN h2, SNI greeter.test\\x1b"
            ),
            format!("{begin} #1 \u{2190} read 1 byte"),
            "a".to_owned(),
            format!("{begin} #1 closed after 1.500 s: 0 bytes written, 1 byte read"),
            format!(
                "{begin} #2 seen in the middle: client @ \u{2192} /run/x.sock, TLS 1.2, 0xabcd, \
                 resumed"
            ),
            format!("{begin} #3 opened: addresses unknown"),
            format!(
                "{begin} #3 \u{2190} read 1 byte lost in 1 record: the buffer was full \
                     (--mapsize makes it larger)"
            ),
            format!("{begin} #3 dropped without Close: 0 bytes written, 1 byte read"),
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        assert_eq!(totals.connections, 3);
    }

    #[test]
    fn hex_dump_counts_from_the_start_of_the_call() {
        let part = DataRecord {
            call_offset: 16_384,
            ..data(header(1, 5), 16_384, 1, b"ab\0")
        };
        let first = data(header(1, 5), 0, 0, b"");
        let first = DataRecord {
            omitted: Some((Missing::Unreadable, 16_384)),
            ..first
        };
        let records = [Record::Data(first), Record::Data(part)];
        let (text, _) = shown(PayloadStyle::Hex, &records, (0, 0));
        let dump = text.lines().last().unwrap();
        assert_eq!(
            dump,
            "00004000  61 62 00                                          |ab.|"
        );
    }

    #[test]
    fn what_is_missing_is_shown_where_it_is_missing() {
        let unreadable = DataRecord {
            omitted: Some((Missing::Unreadable, 100)),
            ..data(header(1, 5), 30, 4, b"")
        };
        let records = [
            Record::Data(data(header(1, 5), 0, 0, b"a")),
            // Two records with 28 bytes did not make it.
            Record::Data(data(header(1, 5), 29, 3, b"b")),
            Record::Data(unreadable),
            Record::Close(CloseRecord {
                header: header(1, 5),
                stream_length: [135, 7],
                sequence: [6, 1],
                cause: CloseCause::Called,
            }),
        ];
        // One more loss, of which no record tells.
        let (text, totals) = shown(PayloadStyle::Text, &records, (5, 50));
        let lines: Vec<_> = text
            .lines()
            .filter_map(|line| line.split_once("lost"))
            .collect();
        let expected = [
            (
                "#1 \u{2192} write 28 bytes ",
                " in 2 records: the buffer was full",
            ),
            (
                "#1 \u{2192} write 100 bytes ",
                ": the program's memory could not be read",
            ),
            (
                "#1 \u{2192} write 5 bytes ",
                " in 1 record: the buffer was full",
            ),
            (
                "#1 \u{2190} read 7 bytes ",
                " in 1 record: the buffer was full",
            ),
            (
                "00:00:09.000000 10 bytes ",
                " in 1 record: the buffer was full",
            ),
        ];
        assert_eq!(lines.len(), expected.len(), "{text}");
        for ((before, after), (head, tail)) in lines.into_iter().zip(expected) {
            assert!(before.ends_with(head) && after.starts_with(tail), "{text}");
        }
        assert_eq!((totals.lost_records, totals.lost_bytes), (5, 50));
    }

    #[test]
    fn losses_beyond_counting_are_counted_as_far_as_possible() {
        let records = [
            Record::Data(data(header(1, 5), u64::MAX, 1, b"a")),
            Record::Data(data(header(2, 5), u64::MAX, 1, b"b")),
        ];
        let (_, totals) = shown(PayloadStyle::Text, &records, (0, 0));
        assert_eq!((totals.lost_records, totals.lost_bytes), (2, u64::MAX));
    }

    #[test]
    fn offsets_beyond_counting_are_shown_as_far_as_possible() {
        let part = DataRecord {
            call_offset: u64::MAX,
            call_length: u64::MAX,
            ..data(header(1, 5), u64::MAX, 1, b"a payload of two rows")
        };
        for style in [PayloadStyle::Text, PayloadStyle::Hex] {
            let (text, _) = shown(style, &[Record::Data(part)], (0, 0));
            let place = format!("{max}-{max} of {max}", max = u64::MAX);
            assert!(text.contains(&place), "{text}");
        }
    }

    #[test]
    fn packets_are_written_of_plaintext_at_offsets_beyond_counting() {
        use crate::{PcapngWriter, PlaintextPackets, Section};

        let interface = PlaintextPackets::<Vec<u8>>::INTERFACE;
        let writer = PcapngWriter::new(Vec::new(), &Section::default(), &[interface]).unwrap();
        let mut sink = PlaintextPackets::new(writer, Timestamp(0));
        let mut tracker = Tracker::new();
        for sequence in 0..3 {
            let record = Record::Data(data(header(1, 5), u64::MAX - 1, sequence, b"abc"));
            tracker.record(&record, 0, &mut sink).unwrap();
        }
        sink.finish(Timestamp(0), u64::MAX).unwrap();
        assert!(sink.totals().packets > 0);
    }

    #[test]
    fn an_address_that_is_used_again_is_another_connection() {
        let records = [
            Record::Data(data(header(1, 5), 0, 0, b"a")),
            Record::Data(data(header(1, 6), 0, 0, b"b")),
            Record::Data(data(header(1, 5), 1, 1, b"c")),
        ];
        let (text, totals) = shown(PayloadStyle::Text, &records, (0, 0));
        let numbers: Vec<_> = text
            .lines()
            .filter_map(|line| line.split(" #").nth(1)?.split(' ').next())
            .collect();
        assert_eq!(numbers, ["1", "2", "1"]);
        assert_eq!(totals.connections, 2);
    }

    #[test]
    fn what_comes_after_the_end_belongs_to_the_connection() {
        let part = |offset, sequence| {
            let payload = &[b'a'; 4];
            Record::Data(DataRecord {
                call_length: 8,
                call_offset: offset - 2,
                ..data(header(1, 5), offset, sequence, payload)
            })
        };
        let close = Record::Close(CloseRecord {
            header: header(1, 5),
            stream_length: [2, 0],
            sequence: [1, 0],
            cause: CloseCause::Called,
        });
        let records = [
            Record::Data(data(header(1, 5), 0, 0, b"ab")),
            // Closed while this call was going on, and perhaps once more.
            part(2, 1),
            close,
            close,
            part(6, 2),
            Record::Data(data(header(1, 5), 10, 3, b"c")),
            Record::Data(data(header(2, 5), 0, 0, b"d")),
        ];
        let (text, totals) = shown(PayloadStyle::Text, &records, (0, 0));
        let lines: Vec<_> = text
            .lines()
            .filter_map(|line| line.split_once('#').map(|(_, what)| what))
            .collect();
        let expected = [
            "1 \u{2192} write 2 bytes",
            "1 \u{2192} write 4 bytes, 0-4 of 8",
            "1 closed after 3723.000 s: 6 bytes written, 0 bytes read",
            "1 \u{2192} write 4 bytes, 4-8 of 8",
            "1 \u{2192} write 1 byte",
            "2 \u{2192} write 1 byte",
        ];
        assert_eq!(lines, expected);
        assert_eq!((totals.connections, totals.lost_bytes), (2, 0));
    }

    #[test]
    fn closed_connections_are_forgotten_in_time() {
        let mut tracker = Tracker::new();
        let mut out = std::io::sink();
        let mut sink = TextSink::new(&mut out, PayloadStyle::Text, Palette::PLAIN, TimeZone::UTC);
        for number in 0..10_000 {
            let close = Record::Close(CloseRecord {
                header: header(number, 5),
                stream_length: [1, 0],
                sequence: [1, 0],
                cause: CloseCause::Called,
            });
            tracker.record(&close, 0, &mut sink).unwrap();
        }
        assert_eq!(tracker.connections.len(), Tracker::CLOSED_MAX);
        assert_eq!(tracker.closed.len(), Tracker::CLOSED_MAX);
        assert_eq!(tracker.totals().connections, 10_000);
    }

    #[test]
    fn table_of_connections_is_bounded() {
        let mut tracker = Tracker::new();
        let mut out = std::io::sink();
        let mut sink = TextSink::new(&mut out, PayloadStyle::Text, Palette::PLAIN, TimeZone::UTC);
        for number in 0..Tracker::CONNECTIONS_MAX as u64 + 10 {
            let record = Record::Data(data(header(number, 5), 0, 0, b"a"));
            tracker.record(&record, 0, &mut sink).unwrap();
        }
        assert_eq!(tracker.connections.len(), Tracker::CONNECTIONS_MAX);
    }
}
