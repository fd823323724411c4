//! From the events of a connection to all outputs, through all decoders.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use events::{Address, Agreed, CloseCause, Container, Direction, Role};
use protocol::{Hint, Limits, Redaction, Side};
use trace::{
    Closed, ConversationOptions, Conversations, Data, Event, Loss, Lost, Opened, Place, Plaintext,
    Sink, Timestamp,
};

use crate::connection::{Step, steps};
use crate::conversation::{self, hint};
use crate::outputs::Outputs;

/// A hint (bits 5 to 7: which plaintext is shown, and whether fields are masked), and steps.
pub fn run(bytes: &[u8]) {
    let Some((&options, bytes)) = bytes.split_first() else {
        return;
    };
    let redaction = match options & 0x80 {
        0 => Redaction::default(),
        _ => Redaction::new(Redaction::DEFAULT),
    };
    let plaintext = match options >> 5 & 3 {
        0 => Plaintext::All,
        1 => Plaintext::None,
        _ => Plaintext::Undecoded,
    };
    let mut sink = Conversations::new(
        Outputs::new(),
        ConversationOptions {
            limits: Limits {
                body: 4096,
                connection: 256 << 10,
                total: 512 << 10,
            },
            redaction,
            plaintext,
        },
    );
    let mut connection = Connection {
        time: Timestamp(0),
        ends: [0; 2],
    };
    let hint = hint(options);
    let opened = connection.opened(&hint);
    let event = |sink: &mut Conversations<Outputs>, event: &Event<'_>| {
        sink.event(event).expect("writing to memory");
    };
    event(&mut sink, &Event::Opened(opened));
    for step in steps(bytes) {
        event(&mut sink, &connection.step(&step));
        sink.tick(connection.time).expect("writing to memory");
    }
    if bytes.len() % 2 == 0 {
        event(&mut sink, &Event::Closed(connection.closed()));
    }
    sink.finish(connection.time).expect("writing to memory");
    std::mem::replace(sink.sink_mut(), Outputs::new()).check();
}

/// What events need that the steps don't say.
struct Connection {
    time: Timestamp,
    ends: [u64; 2],
}

const COMM: &[u8] = b"evil\x1b[2J\xff";

impl Connection {
    fn opened<'a>(&self, hint: &'a Hint) -> Opened<'a> {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let address = Address::Tcp {
            ip,
            port: 443,
            zone: b"\x1b",
        };
        Opened {
            time: self.time,
            pid: 1,
            tid: 2,
            comm: COMM,
            connection: 1,
            from_start: hint.from_beginning,
            fd: Some(3),
            local: Some(address),
            remote: Some(Address::Unix(b"\0\x1b")),
            agreed: hint.role.map(|role| Agreed {
                role: match role {
                    Side::Client => Role::Client,
                    Side::Server => Role::Server,
                },
                version: 0x0304,
                cipher_suite: 0x1301,
                resumed: false,
                server_name: Some(b"\x1b]0;evil"),
                protocol: hint.alpn.as_deref(),
            }),
            container: hint.from_beginning.then_some(Container {
                id: COMM,
                runtime: COMM,
                pod_uid: COMM,
                pod: COMM,
                namespace: COMM,
            }),
        }
    }

    /// The next event, a third of a second later.
    fn step<'a>(&mut self, step: &Step<'a>) -> Event<'a> {
        self.time.0 += 333_000_000;
        let (server, length) = match step {
            Step::Data(server, data) | Step::Lost(server, data) => (*server, data.len() as u64),
            Step::Missing(server, length) => (*server, *length),
        };
        let direction = match server {
            false => Direction::Write,
            true => Direction::Read,
        };
        let end = &mut self.ends[direction.index()];
        let stream_offset = *end;
        *end = end.saturating_add(length);
        match step {
            Step::Data(_, payload) => Event::Data(Data {
                time: self.time,
                pid: 1,
                tid: 2,
                comm: COMM,
                connection: 1,
                direction,
                stream_offset,
                call_length: length,
                call_offset: 0,
                truncated: 0,
                goroutine: Some(7),
                payload,
            }),
            Step::Lost(..) | Step::Missing(..) => Event::Lost(Lost {
                time: self.time,
                place: Some(Place {
                    pid: 1,
                    comm: COMM,
                    connection: 1,
                    direction,
                    stream_offset,
                }),
                bytes: length,
                records: 1,
                reason: Loss::BufferFull,
            }),
        }
    }

    fn closed(&self) -> Closed<'static> {
        Closed {
            time: self.time,
            pid: 1,
            tid: 2,
            comm: COMM,
            connection: 1,
            bytes: self.ends,
            duration: Duration::from_nanos(1),
            cause: CloseCause::Called,
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    conversation::seeds()
}
