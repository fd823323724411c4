//! Records and their decoding: the Rust mirror of `include/record.h`.

use std::fmt;

/// The byte layouts, for comparison with the compiled C structures.
///
/// They are never cast to or from memory: [`Record::decode`] reads field by field.
pub mod layout {
    /// `struct record_header`
    #[allow(missing_docs)] // Documented in record.h.
    #[repr(C)]
    pub struct RecordHeader {
        pub time_ns: u64,
        pub conn: u64,
        pub first_seen_ns: u64,
        pub pid: u32,
        pub tid: u32,
        pub comm: [u8; 16],
        pub kind: u8,
        pub reserved: [u8; 7],
    }

    /// `struct data_record`
    #[allow(missing_docs)] // Documented in record.h.
    #[repr(C)]
    pub struct DataRecord {
        pub header: RecordHeader,
        pub stream_offset: u64,
        pub call_length: u64,
        pub call_offset: u64,
        pub omitted: u64,
        pub length: u32,
        pub sequence: u32,
        pub direction: u8,
        pub missing: u8,
        pub reserved: [u8; 6],
    }

    /// `struct close_record`
    #[allow(missing_docs)] // Documented in record.h.
    #[repr(C)]
    pub struct CloseRecord {
        pub header: RecordHeader,
        pub stream_length: [u64; 2],
        pub sequence: [u32; 2],
    }

    /// `struct packet_process`
    #[allow(missing_docs)] // Documented in record.h.
    #[repr(C)]
    pub struct PacketProcess {
        pub pid: u32,
        pub comm: [u8; 16],
    }

    /// `struct packet_record`
    #[allow(missing_docs)] // Documented in record.h.
    #[repr(C)]
    pub struct PacketRecord {
        pub time_ns: u64,
        pub sender: PacketProcess,
        pub receiver: PacketProcess,
        pub kind: u8,
        pub direction: u8,
        pub reserved: [u8; 2],
        pub interface: u32,
        pub length: u32,
        pub captured: u32,
    }

    // The kind tells the two kinds of header apart.
    const _: () = assert!(
        std::mem::offset_of!(RecordHeader, kind) == std::mem::offset_of!(PacketRecord, kind)
    );

    /// `struct key_record`
    #[allow(missing_docs)] // Documented in record.h.
    #[repr(C)]
    pub struct KeyRecord {
        pub header: RecordHeader,
        pub label_length: u8,
        pub secret_length: u8,
        pub reserved: [u8; 6],
        pub label: [u8; 40],
        pub client_random: [u8; 32],
        pub secret: [u8; 64],
    }

    /// `struct shared_state`
    #[allow(missing_docs)] // Documented in record.h.
    #[repr(C)]
    pub struct SharedState {
        pub wake: u32,
        pub reserved: u32,
        pub lost_records: u64,
        pub lost_bytes: u64,
        pub unreadable_records: u64,
        pub unreadable_bytes: u64,
        pub too_long_bytes: u64,
        pub unknown_calls: u64,
    }

    /// `enum record_kind`: `RECORD_DATA`
    pub const RECORD_DATA: u8 = 1;
    /// `enum record_kind`: `RECORD_CLOSE`
    pub const RECORD_CLOSE: u8 = 2;
    /// `enum record_kind`: `RECORD_KEY`
    pub const RECORD_KEY: u8 = 3;
    /// `enum record_kind`: `RECORD_PACKET`
    pub const RECORD_PACKET: u8 = 4;
}

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
}

/// A connection was closed by the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseRecord {
    /// Who and when.
    pub header: Header,
    /// Bytes that passed in each direction, delivered or not; indexed by [`Direction::index`].
    pub stream_length: [u64; 2],
    /// Records of each direction, delivered or lost; wraps.
    pub sequence: [u32; 2],
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
    /// Plaintext.
    Data(DataRecord<'a>),
    /// The end of a connection.
    Close(CloseRecord),
    /// A TLS secret.
    Key(KeyRecord<'a>),
    /// A packet.
    Packet(PacketRecord<'a>),
}

/// What is wrong with the bytes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than the record's fixed part has, or its length field says.
    #[error("record of {have} bytes is too short: it needs {need}")]
    TooShort {
        /// Bytes that are there.
        have: usize,
        /// Bytes that ought to be there.
        need: usize,
    },
    /// A value outside of its enumeration.
    #[error("record has the unknown {field} {value}")]
    UnknownValue {
        /// The field's name.
        field: &'static str,
        /// What it holds.
        value: u8,
    },
    /// More bytes of a packet than it has.
    #[error("record has {captured} bytes of a packet of {length}")]
    TooManyCaptured {
        /// Bytes of the packet.
        length: u32,
        /// Bytes that are said to be here.
        captured: u32,
    },
}

impl<'a> Record<'a> {
    /// Decodes one record, as the ring buffer delivers it. The ring's size classes may leave unused
    /// bytes behind the payload; they are ignored.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader { bytes, position: 0 };
        let kind = std::mem::offset_of!(layout::RecordHeader, kind);
        if bytes.get(kind) == Some(&layout::RECORD_PACKET) {
            return reader.packet().map(Self::Packet);
        }
        let (header, kind) = reader.header()?;
        match kind {
            layout::RECORD_DATA => reader.data(header).map(Self::Data),
            layout::RECORD_CLOSE => reader.close(header).map(Self::Close),
            layout::RECORD_KEY => reader.key(header).map(Self::Key),
            value => Err(DecodeError::UnknownValue {
                field: "kind",
                value,
            }),
        }
    }

    /// What a record of TLS begins with; a packet has no such header.
    pub fn header(&self) -> Option<&Header> {
        match self {
            Self::Data(record) => Some(&record.header),
            Self::Close(record) => Some(&record.header),
            Self::Key(record) => Some(&record.header),
            Self::Packet(_) => None,
        }
    }

    /// When it happened: CLOCK_MONOTONIC, in ns.
    pub fn time_ns(&self) -> u64 {
        match self {
            Self::Data(record) => record.header.time_ns,
            Self::Close(record) => record.header.time_ns,
            Self::Key(record) => record.header.time_ns,
            Self::Packet(record) => record.time_ns,
        }
    }
}

/// Reads fields in the order of their declaration in record.h, which leaves no implicit padding.
struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn header(&mut self) -> Result<(Header, u8), DecodeError> {
        let header = Header {
            time_ns: self.u64()?,
            conn: self.u64()?,
            first_seen_ns: self.u64()?,
            pid: self.u32()?,
            tid: self.u32()?,
            comm: self.array()?,
        };
        let kind = self.u8()?;
        self.array::<7>()?;
        Ok((header, kind))
    }

    fn data(&mut self, header: Header) -> Result<DataRecord<'a>, DecodeError> {
        let stream_offset = self.u64()?;
        let call_length = self.u64()?;
        let call_offset = self.u64()?;
        let omitted = self.u64()?;
        let length = self.u32()?;
        let sequence = self.u32()?;
        let direction = match self.u8()? {
            0 => Direction::Write,
            1 => Direction::Read,
            value => {
                return Err(DecodeError::UnknownValue {
                    field: "direction",
                    value,
                });
            }
        };
        let omitted = match self.u8()? {
            0 => None,
            1 => Some((Missing::Truncated, omitted)),
            2 => Some((Missing::Unreadable, omitted)),
            3 => Some((Missing::TooLong, omitted)),
            value => {
                return Err(DecodeError::UnknownValue {
                    field: "missing",
                    value,
                });
            }
        };
        self.array::<6>()?;
        let payload = self.slice(length as usize)?;
        Ok(DataRecord {
            header,
            direction,
            stream_offset,
            call_length,
            call_offset,
            sequence,
            payload,
            omitted,
        })
    }

    fn close(&mut self, header: Header) -> Result<CloseRecord, DecodeError> {
        Ok(CloseRecord {
            header,
            stream_length: [self.u64()?, self.u64()?],
            sequence: [self.u32()?, self.u32()?],
        })
    }

    fn key(&mut self, header: Header) -> Result<KeyRecord<'a>, DecodeError> {
        let label_length = self.u8()?;
        let secret_length = self.u8()?;
        self.array::<6>()?;
        let label = self.slice(40)?;
        let client_random = self.slice(32)?;
        let secret = self.slice(64)?;
        Ok(KeyRecord {
            header,
            label: part("label length", label, label_length)?,
            client_random: client_random.try_into().map_err(|_| self.too_short(0))?,
            secret: part("secret length", secret, secret_length)?,
        })
    }

    fn packet(&mut self) -> Result<PacketRecord<'a>, DecodeError> {
        let time_ns = self.u64()?;
        let sender = self.packet_process()?;
        let receiver = self.packet_process()?;
        self.u8()?; // The kind, looked at before.
        let direction = match self.u8()? {
            0 => PacketDirection::Inbound,
            1 => PacketDirection::Outbound,
            value => {
                return Err(DecodeError::UnknownValue {
                    field: "direction",
                    value,
                });
            }
        };
        self.array::<2>()?;
        let interface = self.u32()?;
        let length = self.u32()?;
        let captured = self.u32()?;
        if captured > length {
            return Err(DecodeError::TooManyCaptured { length, captured });
        }
        let bytes = self.slice(captured as usize)?;
        Ok(PacketRecord {
            time_ns,
            interface,
            direction,
            sender,
            receiver,
            length,
            bytes,
        })
    }

    fn packet_process(&mut self) -> Result<Option<PacketProcess>, DecodeError> {
        let process = PacketProcess {
            pid: self.u32()?,
            comm: self.array()?,
        };
        Ok((process.pid != 0).then_some(process))
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let too_short = self.too_short(N);
        self.slice(N)?.try_into().map_err(|_| too_short)
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let slice = self
            .bytes
            .get(self.position..)
            .and_then(|rest| rest.get(..length))
            .ok_or(self.too_short(length))?;
        self.position += length;
        Ok(slice)
    }

    fn too_short(&self, length: usize) -> DecodeError {
        DecodeError::TooShort {
            have: self.bytes.len(),
            need: self.position.saturating_add(length),
        }
    }
}

/// The used part of a field of fixed size.
fn part<'a>(field: &'static str, bytes: &'a [u8], length: u8) -> Result<&'a [u8], DecodeError> {
    match bytes.get(..usize::from(length)) {
        Some(part) if !part.is_empty() => Ok(part),
        _ => Err(DecodeError::UnknownValue {
            field,
            value: length,
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [1u64, 2, 3] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [4u32, 5] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(b"caddy\0\0\0\0\0\0\0\0\0\0\0");
        bytes.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    fn data(length: u32, missing: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = header(layout::RECORD_DATA);
        for number in [10u64, 20, 5, 7] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [length, 9] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend([1, missing, 0, 0, 0, 0, 0, 0]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn data_record_is_decoded_field_by_field() {
        // The ring's size class leaves room behind the payload.
        let bytes = data(5, 1, b"hello, and what was there before");
        let Ok(Record::Data(record)) = Record::decode(&bytes) else {
            panic!("{bytes:?}")
        };
        assert_eq!(record.header.comm(), b"caddy");
        assert_eq!((record.header.time_ns, record.header.conn), (1, 2));
        assert_eq!((record.header.pid, record.header.tid), (4, 5));
        assert_eq!(record.direction, Direction::Read);
        assert_eq!(
            (record.stream_offset, record.call_length, record.call_offset),
            (10, 20, 5)
        );
        assert_eq!(record.omitted, Some((Missing::Truncated, 7)));
        assert_eq!((record.sequence, record.payload), (9, &b"hello"[..]));
    }

    #[test]
    fn what_is_wrong_with_a_record_is_said() {
        let bytes = data(5, 0, b"hell");
        let error = Record::decode(&bytes).unwrap_err();
        assert_eq!(
            error,
            DecodeError::TooShort {
                have: 108,
                need: 109
            }
        );
        assert_eq!(
            error.to_string(),
            "record of 108 bytes is too short: it needs 109"
        );
        let error = Record::decode(&header(77)).unwrap_err();
        assert_eq!(error.to_string(), "record has the unknown kind 77");
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let mut bytes = header(layout::RECORD_KEY);
        bytes.extend([13, 3, 0, 0, 0, 0, 0, 0]);
        bytes.extend(b"CLIENT_RANDOM");
        bytes.resize(bytes.len() + 27, b'x');
        bytes.extend([1; 32]);
        bytes.extend([222; 64]);
        let Ok(Record::Key(key)) = Record::decode(&bytes) else {
            panic!("{bytes:?}")
        };
        assert_eq!(
            (key.label, key.secret),
            (&b"CLIENT_RANDOM"[..], &[222u8; 3][..])
        );
        assert!(!format!("{key:?}").contains("222"));
    }

    /// A record of a packet of 1000 bytes of which 5 were captured, with unused bytes behind them.
    fn packet() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(77u64.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(4321u32.to_le_bytes());
        bytes.extend(*b"server\0\0\0\0\0\0\0\0\0\0");
        bytes.extend([layout::RECORD_PACKET, 1, 0, 0]);
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(1000u32.to_le_bytes());
        bytes.extend(5u32.to_le_bytes());
        assert_eq!(bytes.len(), size_of::<layout::PacketRecord>());
        bytes.extend(*b"hello, and what the ring had before");
        bytes
    }

    #[test]
    fn packet_is_decoded_with_the_end_that_is_known() {
        let bytes = packet();
        let Ok(Record::Packet(record)) = Record::decode(&bytes) else {
            panic!("not decoded as a packet");
        };
        assert_eq!(record.time_ns, 77);
        assert_eq!(record.interface, 3);
        assert_eq!(record.direction, PacketDirection::Outbound);
        assert_eq!((record.length, record.bytes), (1000, &b"hello"[..]));
        assert_eq!(record.sender, None);
        let owner = record.owner().expect("the receiver is known");
        assert_eq!((owner.pid, owner.comm()), (4321, &b"server"[..]));
        assert_eq!(Record::Packet(record).time_ns(), 77);
    }

    #[test]
    fn packet_that_ends_early_is_refused_at_every_length() {
        let bytes = packet();
        for length in 0..size_of::<layout::PacketRecord>() + 5 {
            let error = Record::decode(&bytes[..length]).unwrap_err();
            assert!(matches!(error, DecodeError::TooShort { .. }), "{length}");
        }
    }

    #[test]
    fn packet_with_impossible_fields_is_refused() {
        let direction = std::mem::offset_of!(layout::PacketRecord, direction);
        let mut bytes = packet();
        bytes[direction] = 2;
        assert_eq!(
            Record::decode(&bytes),
            Err(DecodeError::UnknownValue {
                field: "direction",
                value: 2
            })
        );
        let length = std::mem::offset_of!(layout::PacketRecord, length);
        let mut bytes = packet();
        bytes[length..length + 4].copy_from_slice(&4u32.to_le_bytes());
        assert_eq!(
            Record::decode(&bytes),
            Err(DecodeError::TooManyCaptured {
                length: 4,
                captured: 5
            })
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..5) {
            let _ = Record::decode(&bytes);
            let mut with_kind = header(kind);
            with_kind.extend(bytes);
            let _ = Record::decode(&with_kind);
        }
    }
}
