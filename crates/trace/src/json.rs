//! JSON lines: one object per event, for scripts. docs/json-lines.md describes the fields; they are
//! never renamed, only added to.

use std::fmt;
use std::io::{self, Write};

use base64_simd::{Out, STANDARD};
use events::{CloseCause, Container};
use protocol::Notice;
use serde::Serialize;

use crate::address::{address_text, network};
use crate::event::{Closed, Data, Event, Http, Lost, Opened, Sink};
use crate::exchange_json::{ExchangeJson, MessageJson};
use crate::exchange_text::side_name;
use crate::time::{TimeFormat, Timestamp};
use crate::tls_names::{CipherSuite, TlsVersion};

/// Bytes that are encoded at once: a multiple of 3, so that only the last ones need padding.
const ENCODED_AT_ONCE: usize = 3 * 1024;

/// The types of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineType {
    /// A connection.
    Connection,
    /// Plaintext.
    Data,
    /// An HTTP exchange that ended.
    Http,
    /// A message of an exchange that lasts.
    Message,
    /// Something that is HTTP and could not be decoded.
    Undecoded,
    /// Plaintext that is missing.
    Lost,
    /// The end of a connection.
    Close,
}

impl LineType {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Connection,
        Self::Data,
        Self::Http,
        Self::Message,
        Self::Undecoded,
        Self::Lost,
        Self::Close,
    ];

    /// What stands in `type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Data => "data",
            Self::Http => "http",
            Self::Message => "message",
            Self::Undecoded => "undecoded",
            Self::Lost => "lost",
            Self::Close => "close",
        }
    }

    /// Whether such lines need HTTP to be decoded.
    pub fn is_decoded(self) -> bool {
        matches!(self, Self::Http | Self::Message | Self::Undecoded)
    }

    /// The type of the line for an event; `None` if there is none.
    fn of(event: &Event<'_>) -> Option<Self> {
        Some(match event {
            Event::Opened(_) => Self::Connection,
            Event::Data(_) => Self::Data,
            Event::Lost(_) => Self::Lost,
            Event::Closed(_) => Self::Close,
            Event::Http(http) => match http.notice {
                Notice::Finished(_) => Self::Http,
                Notice::Message(..) => Self::Message,
                Notice::Trouble(..) => Self::Undecoded,
                // Their exchange comes later.
                Notice::Began(_) | Notice::Response(_) => return None,
            },
        })
    }
}

/// Writes events as JSON lines.
#[derive(Debug)]
pub struct JsonSink<W> {
    out: W,
    /// Types of lines that are written.
    types: Vec<LineType>,
    time: TimeFormat,
    /// Room for [`ENCODED_AT_ONCE`] bytes in base64.
    encoded: Box<[u8]>,
}

// Lines are put together by hand: a serializer would walk through every payload character by
// character, to escape what needs no escaping.
impl<W: Write> JsonSink<W> {
    /// A sink that writes to `out`, which ought to be buffered.
    pub fn new(out: W) -> Self {
        Self {
            out,
            types: LineType::ALL.to_vec(),
            time: TimeFormat::rfc3339(),
            encoded: vec![0; ENCODED_AT_ONCE / 3 * 4].into(),
        }
    }

    /// Writes only lines of these types.
    pub fn only(mut self, types: Vec<LineType>) -> Self {
        self.types = types;
        self
    }

    fn data(&mut self, data: &Data<'_>) -> io::Result<()> {
        self.begin(LineType::Data, data.time)?;
        self.connection(data.pid, data.tid, data.comm, data.connection)?;
        write!(
            self.out,
            r#","direction":"{}","offset":{},"length":{},"call_offset":{},"call_length":{}"#,
            data.direction,
            data.stream_offset,
            data.payload.len(),
            data.call_offset,
            data.call_length,
        )?;
        if data.truncated > 0 {
            write!(self.out, r#","truncated":{}"#, data.truncated)?;
        }
        if let Some(goroutine) = data.goroutine {
            write!(self.out, r#","goroutine":{goroutine}"#)?;
        }
        self.out.write_all(br#","data_base64":""#)?;
        self.base64(data.payload)?;
        self.out.write_all(b"\"}\n")
    }

    fn lost(&mut self, lost: &Lost<'_>) -> io::Result<()> {
        self.begin(LineType::Lost, lost.time)?;
        if let Some(place) = lost.place {
            write!(
                self.out,
                r#","pid":{},"comm":{},"conn":{},"direction":"{}","offset":{}"#,
                place.pid,
                Text(place.comm),
                place.connection,
                place.direction,
                place.stream_offset,
            )?;
        }
        writeln!(
            self.out,
            r#","reason":"{}","bytes":{},"records":{}}}"#,
            lost.reason.name(),
            lost.bytes,
            lost.records,
        )
    }

    fn http(&mut self, http: &Http<'_>) -> io::Result<()> {
        match http.notice {
            Notice::Finished(exchange) => {
                self.begin(LineType::Http, http.time)?;
                self.conversation(http)?;
                self.members(&ExchangeJson::new(exchange, http.requests))
            }
            Notice::Message(exchange, message) => {
                self.begin(LineType::Message, http.time)?;
                self.conversation(http)?;
                write!(self.out, r#","stream":{}"#, exchange.stream.0)?;
                self.members(&MessageJson::alone(message))
            }
            Notice::Trouble(side, offset, trouble) => {
                self.begin(LineType::Undecoded, http.time)?;
                self.conversation(http)?;
                let (from, reason) = (
                    side_name(*side),
                    Text(trouble.to_string().as_bytes()).to_string(),
                );
                writeln!(
                    self.out,
                    r#","from":"{from}","offset":{offset},"reason":{reason}}}"#
                )
            }
            Notice::Began(_) | Notice::Response(_) => Ok(()),
        }
    }

    /// The members of an object, behind those that the line has, and the line's end.
    fn members(&mut self, object: &impl Serialize) -> io::Result<()> {
        let object = serde_json::to_string(object).map_err(io::Error::other)?;
        let members = object.strip_prefix('{').unwrap_or(&object);
        writeln!(self.out, ",{members}")
    }

    fn conversation(&mut self, http: &Http<'_>) -> io::Result<()> {
        let (pid, comm, connection) = (http.pid, Text(http.comm), http.connection);
        write!(
            self.out,
            r#","pid":{pid},"comm":{comm},"conn":{connection}"#
        )
    }

    fn opened(&mut self, opened: &Opened<'_>) -> io::Result<()> {
        self.begin(LineType::Connection, opened.time)?;
        self.connection(opened.pid, opened.tid, opened.comm, opened.connection)?;
        if let Some(address) = opened.local.or(opened.remote) {
            write!(self.out, r#","network":"{}""#, network(&address))?;
        }
        for (name, address) in [("local", opened.local), ("remote", opened.remote)] {
            if let Some(address) = address {
                write!(self.out, r#","{name}":{}"#, Text(&address_text(&address)))?;
            }
        }
        if let Some(fd) = opened.fd {
            write!(self.out, r#","fd":{fd}"#)?;
        }
        if let Some(agreed) = opened.agreed {
            write!(
                self.out,
                r#","role":"{}","tls_version":"{}","cipher_suite":"{}","resumed":{}"#,
                agreed.role,
                TlsVersion(agreed.version),
                CipherSuite(agreed.cipher_suite),
                agreed.resumed,
            )?;
            for (name, text) in [("sni", agreed.server_name), ("alpn", agreed.protocol)] {
                if let Some(text) = text {
                    write!(self.out, r#","{name}":{}"#, Text(text))?;
                }
            }
        }
        if let Some(container) = &opened.container {
            self.container(container)?;
        }
        writeln!(self.out, r#","from_start":{}}}"#, opened.from_start)
    }

    fn container(&mut self, container: &Container<'_>) -> io::Result<()> {
        write!(self.out, r#","container":{{"id":{}"#, Text(container.id))?;
        for (name, text) in [
            ("runtime", container.runtime),
            ("pod_uid", container.pod_uid),
            ("pod", container.pod),
            ("namespace", container.namespace),
        ] {
            if !text.is_empty() {
                write!(self.out, r#","{name}":{}"#, Text(text))?;
            }
        }
        write!(self.out, "}}")
    }

    fn closed(&mut self, closed: &Closed<'_>) -> io::Result<()> {
        self.begin(LineType::Close, closed.time)?;
        self.connection(closed.pid, closed.tid, closed.comm, closed.connection)?;
        let [written, read] = closed.bytes;
        let cause = match closed.cause {
            CloseCause::Called => "closed",
            CloseCause::Dropped => "dropped",
        };
        let duration = closed.duration.as_nanos();
        writeln!(
            self.out,
            r#","cause":"{cause}","written":{written},"read":{read},"duration_ns":{duration}}}"#
        )
    }

    fn connection(&mut self, pid: u32, tid: u32, comm: &[u8], number: u64) -> io::Result<()> {
        let comm = Text(comm);
        write!(
            self.out,
            r#","pid":{pid},"tid":{tid},"comm":{comm},"conn":{number}"#
        )
    }

    fn begin(&mut self, line: LineType, time: Timestamp) -> io::Result<()> {
        let (second, nanoseconds) = self.time.second(time);
        write!(
            self.out,
            r#"{{"type":"{}","time":"{second}.{nanoseconds:09}Z""#,
            line.name()
        )
    }

    fn base64(&mut self, payload: &[u8]) -> io::Result<()> {
        for part in payload.chunks(ENCODED_AT_ONCE) {
            let encoded = STANDARD.encode(part, Out::from_slice(&mut self.encoded));
            self.out.write_all(encoded)?;
        }
        Ok(())
    }
}

impl<W: Write> Sink for JsonSink<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        if LineType::of(event).is_none_or(|line| !self.types.contains(&line)) {
            return Ok(());
        }
        match event {
            Event::Opened(opened) => self.opened(opened),
            Event::Data(data) => self.data(data),
            Event::Lost(lost) => self.lost(lost),
            Event::Http(http) => self.http(http),
            Event::Closed(closed) => self.closed(closed),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A JSON string. A thread's name is bytes, but JSON has only text: what is not UTF-8 becomes U+FFFD.
struct Text<'a>(&'a [u8]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(self.0);
        let plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        if text.bytes().all(plain) {
            return write!(f, "\"{text}\"");
        }
        let text = serde_json::to_string(&text).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use events::{Address, Agreed, Direction, Role};
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::event::{Loss, Place};

    fn line(event: &Event<'_>) -> Value {
        let mut out = Vec::new();
        JsonSink::new(&mut out).event(event).unwrap();
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1);
        serde_json::from_slice(&out).unwrap()
    }

    proptest! {
        #[test]
        fn every_event_is_one_line_of_json_that_gives_it_back(
            payload in proptest::collection::vec(any::<u8>(), 1..10_000),
            comm in proptest::collection::vec(any::<u8>(), 0..16),
            truncated in 0..2u64,
            goroutine in proptest::option::of(any::<u64>()),
        ) {
            let found = line(&Event::Data(Data {
                time: Timestamp(1_795_379_103_123_456_789),
                pid: 42,
                tid: 43,
                comm: &comm,
                connection: 7,
                direction: Direction::Read,
                stream_offset: 100,
                call_length: 20_000,
                call_offset: 50,
                truncated,
                goroutine,
                payload: &payload,
            }));
            let mut expected = serde_json::json!({
                "type": "data",
                "time": "2026-11-22T20:25:03.123456789Z",
                "pid": 42,
                "tid": 43,
                "comm": String::from_utf8_lossy(&comm),
                "conn": 7,
                "direction": "read",
                "offset": 100,
                "length": payload.len(),
                "call_offset": 50,
                "call_length": 20_000,
                "data_base64": STANDARD.encode(&payload),
            });
            if truncated > 0 {
                expected["truncated"] = truncated.into();
            }
            if let Some(goroutine) = goroutine {
                expected["goroutine"] = goroutine.into();
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn an_apostrophe_in_a_name_needs_no_escape() {
        assert_eq!(Text(b"it's").to_string(), "\"it's\"");
    }

    #[test]
    fn a_loss_says_where_if_that_is_known() {
        let mut lost = Lost {
            time: Timestamp(0),
            place: None,
            bytes: 16384,
            records: 1,
            reason: Loss::BufferFull,
        };
        let mut expected = serde_json::json!({
            "type": "lost", "time": "1970-01-01T00:00:00.000000000Z",
            "reason": "buffer_full", "bytes": 16384, "records": 1,
        });
        assert_eq!(line(&Event::Lost(lost)), expected);

        lost.place = Some(Place {
            pid: 1,
            comm: b"a\"b\\",
            connection: 2,
            direction: Direction::Write,
            stream_offset: 3,
        });
        for (key, value) in [("pid", 1), ("conn", 2), ("offset", 3)] {
            expected[key] = value.into();
        }
        expected["comm"] = "a\"b\\".into();
        expected["direction"] = "write".into();
        assert_eq!(line(&Event::Lost(lost)), expected);
    }

    #[test]
    fn a_connection_has_what_is_known_of_it() {
        let mut opened = Opened {
            time: Timestamp(0),
            pid: 1,
            tid: 2,
            comm: b"caddy",
            connection: 3,
            from_start: true,
            fd: Some(7),
            local: Some(Address::Tcp {
                ip: "fe80::1".parse().unwrap(),
                port: 443,
                zone: b"eth\"0",
            }),
            remote: Some(Address::Tcp {
                ip: "10.0.0.9".parse().unwrap(),
                port: 50_000,
                zone: b"",
            }),
            agreed: Some(Agreed {
                role: Role::Client,
                version: 0x0303,
                cipher_suite: 0xc02f,
                resumed: true,
                server_name: Some(b"\xff"),
                protocol: None,
            }),
            container: Some(Container {
                id: b"3f4e",
                runtime: b"docker",
                pod: b"web-\"0",
                ..Container::default()
            }),
        };
        let mut expected = serde_json::json!({
            "type": "connection", "time": "1970-01-01T00:00:00.000000000Z",
            "pid": 1, "tid": 2, "comm": "caddy", "conn": 3, "from_start": true, "fd": 7,
            "network": "tcp", "local": "[fe80::1%eth\"0]:443", "remote": "10.0.0.9:50000",
            "role": "client", "tls_version": "1.2", "resumed": true, "sni": "\u{fffd}",
            "cipher_suite": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "container": {"id": "3f4e", "runtime": "docker", "pod": "web-\"0"},
        });
        assert_eq!(line(&Event::Opened(opened)), expected);

        opened = Opened {
            from_start: false,
            fd: None,
            local: None,
            remote: Some(Address::Unix(b"@x")),
            agreed: None,
            container: None,
            ..opened
        };
        expected = serde_json::json!({
            "type": "connection", "time": "1970-01-01T00:00:00.000000000Z",
            "pid": 1, "tid": 2, "comm": "caddy", "conn": 3, "from_start": false,
            "network": "unix", "remote": "@x",
        });
        assert_eq!(line(&Event::Opened(opened)), expected);
    }

    #[test]
    fn the_end_of_a_connection_has_its_totals() {
        let closed = Closed {
            time: Timestamp(0),
            pid: 1,
            tid: 2,
            comm: b"caddy",
            connection: 3,
            bytes: [10, 20],
            duration: Duration::from_micros(1500),
            cause: CloseCause::Called,
        };
        let expected = serde_json::json!({
            "type": "close", "time": "1970-01-01T00:00:00.000000000Z", "pid": 1, "tid": 2,
            "comm": "caddy", "conn": 3, "cause": "closed", "written": 10, "read": 20,
            "duration_ns": 1_500_000,
        });
        assert_eq!(line(&Event::Closed(closed)), expected);
    }
}
