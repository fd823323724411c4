//! Records and their decoding: the Rust mirror of `include/record.h`.

use std::fmt;
use std::net::IpAddr;

/// Which way plaintext went, from the target's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The target passed it to `crypto/tls`, to be sent.
    Write,
    /// The target got it from `crypto/tls`.
    Read,
}

impl Direction {
    /// Index of this direction in a pair of streams.
    pub fn index(self) -> usize {
        match self {
            Self::Write => 0,
            Self::Read => 1,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write => "write",
            Self::Read => "read",
        })
    }
}

/// Why bytes of a call are not in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Missing {
    /// The user asked for no more bytes of a call.
    Truncated,
    /// The target's memory could not be read.
    Unreadable,
    /// The call passed more bytes than a probe is allowed to copy.
    TooLong,
}

/// What a record of a TLS connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// When the probe was hit: CLOCK_MONOTONIC, in ns.
    pub time_ns: u64,
    /// The address of the `tls.Conn` in the target.
    pub conn: u64,
    /// When this `tls.Conn` was first seen (CLOCK_MONOTONIC, ns); together with `pid` and `conn`
    /// unique to a connection.
    pub first_seen_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// The thread's name, padded with NUL; not necessarily text.
    pub comm: [u8; 16],
}

impl Header {
    /// The thread's name without its padding.
    pub fn comm(&self) -> &[u8] {
        without_padding(&self.comm)
    }
}

fn without_padding(comm: &[u8; 16]) -> &[u8] {
    let end = comm.iter().position(|&byte| byte == 0);
    &comm[..end.unwrap_or(comm.len())]
}

/// A part of one call's plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRecord<'a> {
    /// Who and when.
    pub header: Header,
    /// From the target's point of view.
    pub direction: Direction,
    /// Bytes that passed in this direction of the connection before this record, delivered or not.
    pub stream_offset: u64,
    /// Bytes of the whole call.
    pub call_length: u64,
    /// How many of the call's bytes came before this record.
    pub call_offset: u64,
    /// Records of this direction of the connection before this one, delivered or lost; wraps.
    pub sequence: u32,
    /// The plaintext.
    pub payload: &'a [u8],
    /// Bytes behind the payload that were not captured, and why.
    pub omitted: Option<(Missing, u64)>,
    /// The id of the goroutine, as in Go's stack traces, if it is known.
    pub goroutine: Option<u64>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCause {
    /// The target called `Close`.
    Called,
    /// The target dropped it without a call, some time ago: another connection has its memory now.
    Dropped,
}

/// The end of a connection. What had been decrypted before may still be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseRecord {
    /// Who and when.
    pub header: Header,
    /// Bytes that passed in each direction, delivered or not; indexed by [`Direction::index`].
    pub stream_length: [u64; 2],
    /// Records of each direction, delivered or lost; wraps.
    pub sequence: [u32; 2],
    /// How it came.
    pub cause: CloseCause,
}

/// Which end of a connection the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It sent the ClientHello.
    Client,
    /// It answered.
    Server,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// One end of a connection, as Go's `net.Addr` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Address<'a> {
    /// Of a TCP socket.
    Tcp {
        /// IPv4-mapped IPv6 addresses are IPv4 addresses here; the unspecified one if Go has none.
        ip: IpAddr,
        /// The port.
        port: u16,
        /// The zone of a link-local IPv6 address, an interface's name; mostly empty.
        zone: &'a [u8],
    },
    /// The name of a Unix socket: its path, `@` and a name in the abstract namespace, or nothing; not
    /// necessarily text.
    Unix(&'a [u8]),
}

/// What the ends of a connection agreed on in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Agreed<'a> {
    /// Which end the target is.
    pub role: Role,
    /// The TLS version as on the wire: 0x0304 is TLS 1.3.
    pub version: u16,
    /// The cipher suite by its number in IANA's registry.
    pub cipher_suite: u16,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// The server's name that the client asked for (SNI), if any; not necessarily text.
    pub server_name: Option<&'a [u8]>,
    /// The application protocol that was selected (ALPN), if any; not necessarily text.
    pub protocol: Option<&'a [u8]>,
}

/// What a connection connects, and what its ends agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionRecord<'a> {
    /// Who and when.
    pub header: Header,
    /// Whether the handshake was seen, so that nothing of the plaintext was missed before.
    pub from_start: bool,
    /// The socket's file descriptor, if it is known.
    pub fd: Option<u32>,
    /// The target's own end, if it is known.
    pub local: Option<Address<'a>>,
    /// The other end, if it is known.
    pub remote: Option<Address<'a>>,
    /// What the handshake led to, if that is known.
    pub agreed: Option<Agreed<'a>>,
}

/// A container, and what is known of the pod that it belongs to. None of it is necessarily text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Container<'a> {
    /// Its id; empty if the process is in no container.
    pub id: &'a [u8],
    /// Who runs it: `docker`, `containerd`, …; empty if that is not known, as everything below.
    pub runtime: &'a [u8],
    /// Kubernetes' unique id of the pod.
    pub pod_uid: &'a [u8],
    /// The pod's name.
    pub pod: &'a [u8],
    /// The pod's namespace.
    pub namespace: &'a [u8],
}

impl<'a> Container<'a> {
    pub(crate) fn texts(&self) -> [&'a [u8]; 5] {
        [
            self.id,
            self.runtime,
            self.pod_uid,
            self.pod,
            self.namespace,
        ]
    }
}

/// Where a process runs, as user space found out. Comes ahead of a connection of the process, and is true
/// until another one comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessRecord<'a> {
    /// Which process, and when it was looked at; no connection.
    pub header: Header,
    /// In which container it is.
    pub container: Container<'a>,
}

/// A process that owns one end of a packet's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PacketProcess {
    /// Process id.
    pub pid: u32,
    /// The name of the thread that made the socket, padded with NUL; not necessarily text.
    pub comm: [u8; 16],
}

impl PacketProcess {
    /// The thread's name without its padding.
    pub fn comm(&self) -> &[u8] {
        without_padding(&self.comm)
    }
}

/// Which way a packet went, from the interface's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PacketDirection {
    /// It was received. On `lo`, which receives what it sends, every packet is reported as received.
    Inbound,
    /// It was sent.
    Outbound,
}

/// A packet, as it passed an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketRecord<'a> {
    /// When it passed: CLOCK_MONOTONIC, in ns.
    pub time_ns: u64,
    /// Index of the interface among those that are captured.
    pub interface: u32,
    /// From the interface's point of view.
    pub direction: PacketDirection,
    /// Who sent it, if that is a target's socket on this machine.
    pub sender: Option<PacketProcess>,
    /// Whom it is for, if that is a target's socket on this machine.
    pub receiver: Option<PacketProcess>,
    /// Bytes of the whole packet.
    pub length: u32,
    /// Its first bytes, from the link-layer header on if the interface's link type has one.
    pub bytes: &'a [u8],
}

impl PacketRecord<'_> {
    /// The process that the packet belongs to: the sender, if both are known.
    pub fn owner(&self) -> Option<&PacketProcess> {
        self.sender.as_ref().or(self.receiver.as_ref())
    }
}

/// A TLS secret, as it stands in a key log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyRecord<'a> {
    /// Who and when; the connection is not known.
    pub header: Header,
    /// What kind of secret: `CLIENT_RANDOM`, `CLIENT_TRAFFIC_SECRET_0`, …; as the target passed it.
    pub label: &'a [u8],
    /// The random of the handshake's ClientHello, which tells whose secret it is.
    pub client_random: &'a [u8; 32],
    /// The secret, 1 to 64 bytes.
    pub secret: &'a [u8],
}

impl fmt::Debug for KeyRecord<'_> {
    /// Keeps the secret to itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRecord")
            .field("header", &self.header)
            .field("label", &String::from_utf8_lossy(self.label))
            .finish_non_exhaustive()
    }
}

/// One record of the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// What a connection connects.
    Connection(ConnectionRecord<'a>),
    /// Plaintext.
    Data(DataRecord<'a>),
    /// The end of a connection.
    Close(CloseRecord),
    /// A TLS secret.
    Key(KeyRecord<'a>),
    /// A packet.
    Packet(PacketRecord<'a>),
    /// Where a process runs.
    Process(ProcessRecord<'a>),
}

impl<'a> Record<'a> {
    /// What a record of a TLS connection begins with; a packet has no such header.
    pub fn header(&self) -> Option<&Header> {
        match self {
            Self::Connection(record) => Some(&record.header),
            Self::Data(record) => Some(&record.header),
            Self::Close(record) => Some(&record.header),
            Self::Key(record) => Some(&record.header),
            Self::Process(record) => Some(&record.header),
            Self::Packet(_) => None,
        }
    }

    /// When it happened: CLOCK_MONOTONIC, in ns.
    pub fn time_ns(&self) -> u64 {
        match self {
            Self::Connection(record) => record.header.time_ns,
            Self::Data(record) => record.header.time_ns,
            Self::Close(record) => record.header.time_ns,
            Self::Key(record) => record.header.time_ns,
            Self::Packet(record) => record.time_ns,
            Self::Process(record) => record.header.time_ns,
        }
    }
}
