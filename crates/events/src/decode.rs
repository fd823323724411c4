//! Decoding of records, which trusts nothing of what it reads.

use std::net::{IpAddr, Ipv6Addr};

use crate::layout;
use crate::record::*;

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

const KIND: &str = "kind";

impl DecodeError {
    /// Whether the record may well be right, and of a kind that came up later than this program.
    pub fn is_unknown_kind(&self) -> bool {
        matches!(self, Self::UnknownValue { field: KIND, .. })
    }
}

impl<'a> Record<'a> {
    /// Decodes one record, as the ring buffer delivers it. The ring's size classes may leave unused
    /// bytes behind the payload; they are ignored.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Self::decode_prefix(bytes).map(|(record, _)| record)
    }

    /// The same, with the number of bytes that the record occupies: what is behind them is unused.
    pub fn decode_prefix(bytes: &'a [u8]) -> Result<(Self, usize), DecodeError> {
        let mut reader = Reader { bytes, position: 0 };
        let record = reader.record()?;
        Ok((record, reader.position))
    }
}

/// Reads fields in the order of their declaration in record.h, which leaves no implicit padding.
struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn record(&mut self) -> Result<Record<'a>, DecodeError> {
        let kind = std::mem::offset_of!(layout::RecordHeader, kind);
        if self.bytes.get(kind) == Some(&layout::RECORD_PACKET) {
            return self.packet().map(Record::Packet);
        }
        let (header, kind) = self.header()?;
        match kind {
            layout::RECORD_CONNECTION => self.connection(header).map(Record::Connection),
            layout::RECORD_DATA => self.data(header).map(Record::Data),
            layout::RECORD_CLOSE => self.close(header).map(Record::Close),
            layout::RECORD_KEY => self.key(header).map(Record::Key),
            layout::RECORD_PROCESS => self.process(header).map(Record::Process),
            value => Err(DecodeError::UnknownValue { field: KIND, value }),
        }
    }

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
        let goroutine = self.u64()?;
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
            goroutine: (goroutine != 0).then_some(goroutine),
        })
    }

    fn close(&mut self, header: Header) -> Result<CloseRecord, DecodeError> {
        let stream_length = [self.u64()?, self.u64()?];
        let sequence = [self.u32()?, self.u32()?];
        let cause = match self.u8()? {
            0 => CloseCause::Called,
            1 => CloseCause::Dropped,
            value => {
                return Err(DecodeError::UnknownValue {
                    field: "cause",
                    value,
                });
            }
        };
        self.array::<7>()?;
        Ok(CloseRecord {
            header,
            stream_length,
            sequence,
            cause,
        })
    }

    fn connection(&mut self, header: Header) -> Result<ConnectionRecord<'a>, DecodeError> {
        let fd = self.u32()?;
        let version = self.u16()?;
        let cipher_suite = self.u16()?;
        let role = match self.u8()? {
            0 => None,
            1 => Some(Role::Client),
            2 => Some(Role::Server),
            value => {
                return Err(DecodeError::UnknownValue {
                    field: "role",
                    value,
                });
            }
        };
        let resumed = self.u8()? != 0;
        let from_start = self.u8()? != 0;
        let server_name_length = self.u8()?;
        let protocol_length = self.u8()?;
        self.array::<3>()?;
        let local = self.address()?;
        let remote = self.address()?;
        let server_name = self.slice(256)?;
        let protocol = self.slice(256)?;
        let agreed = match role {
            Some(role) if version != 0 => Some(Agreed {
                role,
                version,
                cipher_suite,
                resumed,
                server_name: optional(server_name, server_name_length),
                protocol: optional(protocol, protocol_length),
            }),
            _ => None,
        };
        Ok(ConnectionRecord {
            header,
            from_start,
            fd: i32::try_from(fd).is_ok().then_some(fd),
            local,
            remote,
            agreed,
        })
    }

    fn address(&mut self) -> Result<Option<Address<'a>>, DecodeError> {
        const ZONE_OFFSET: usize = 16;

        let family = self.u8()?;
        let length = self.u8()?;
        let zone_length = self.u8()?;
        self.u8()?;
        let port = self.u16()?;
        self.array::<2>()?;
        let bytes = self.slice(108)?;
        let wrong_length = |value| DecodeError::UnknownValue {
            field: "address length",
            value,
        };
        let part = |from: usize, length: u8| {
            bytes
                .get(from..from + usize::from(length))
                .ok_or(wrong_length(length))
        };
        match family {
            0 => Ok(None),
            1 => Ok(Some(Address::Tcp {
                ip: ip(part(0, length)?).ok_or(wrong_length(length))?,
                port,
                zone: part(ZONE_OFFSET, zone_length)?,
            })),
            2 => Ok(Some(Address::Unix(part(0, length)?))),
            value => Err(DecodeError::UnknownValue {
                field: "address family",
                value,
            }),
        }
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

    fn process(&mut self, header: Header) -> Result<ProcessRecord<'a>, DecodeError> {
        let mut lengths = [0; 5];
        for length in &mut lengths {
            *length = self.u16()?;
        }
        self.array::<6>()?;
        let mut texts = [&[][..]; 5];
        for (text, length) in texts.iter_mut().zip(lengths) {
            *text = self.slice(length.into())?;
        }
        let [id, runtime, pod_uid, pod, namespace] = texts;
        Ok(ProcessRecord {
            header,
            container: Container {
                id,
                runtime,
                pod_uid,
                pod,
                namespace,
            },
        })
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_ne_bytes)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
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

impl ProcessRecord<'_> {
    /// The bytes of the record, as [`Record::decode`] reads them. Texts that are longer than 65535 bytes are
    /// cut.
    pub fn encode(&self) -> Vec<u8> {
        let header = &self.header;
        let mut bytes = Vec::new();
        for number in [header.time_ns, header.conn, header.first_seen_ns] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [header.pid, header.tid] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(header.comm);
        bytes.extend([layout::RECORD_PROCESS, 0, 0, 0, 0, 0, 0, 0]);
        let length = |text: &[u8]| u16::try_from(text.len()).unwrap_or(u16::MAX);
        let texts = self.container.texts();
        for text in texts {
            bytes.extend(length(text).to_le_bytes());
        }
        bytes.extend([0; 6]);
        for text in texts {
            bytes.extend(&text[..length(text).into()]);
        }
        bytes
    }
}

/// As `net.IP` has it: 4 bytes, 16, or none.
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if bytes.is_empty() {
        return Some(Ipv6Addr::UNSPECIFIED.into());
    }
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = <[u8; 16]>::try_from(bytes).map(|v6| Ipv6Addr::from(v6).to_canonical());
    v4.or(v6).ok()
}

/// The used part of a field of fixed size, if any of it is used.
fn optional(bytes: &[u8], length: u8) -> Option<&[u8]> {
    bytes
        .get(..usize::from(length))
        .filter(|part| !part.is_empty())
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
    use crate::{Direction, PacketDirection};

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
        for number in [10u64, 20, 5, 7, 34] {
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
    fn process_record_is_decoded_as_it_was_encoded() {
        let record = ProcessRecord {
            header: Header {
                time_ns: 1,
                conn: 0,
                first_seen_ns: 0,
                pid: 4,
                tid: 5,
                comm: *b"caddy\0\0\0\0\0\0\0\0\0\0\0",
            },
            container: Container {
                id: b"3f4e",
                pod: b"web-0",
                namespace: b"\xff shop",
                ..Container::default()
            },
        };
        let bytes = record.encode();
        assert_eq!(
            Record::decode_prefix(&bytes),
            Ok((Record::Process(record), bytes.len()))
        );
        for length in 0..bytes.len() {
            assert!(Record::decode(&bytes[..length]).is_err(), "{length}");
        }
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
        assert_eq!(record.goroutine, Some(34));
    }

    #[test]
    fn what_is_wrong_with_a_record_is_said() {
        let bytes = data(5, 0, b"hell");
        let error = Record::decode(&bytes).unwrap_err();
        assert_eq!(
            error,
            DecodeError::TooShort {
                have: 116,
                need: 117
            }
        );
        assert_eq!(
            error.to_string(),
            "record of 116 bytes is too short: it needs 117"
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

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1000), kind in 0u8..7) {
            let _ = Record::decode(&bytes);
            let mut with_kind = header(kind);
            with_kind.extend(bytes);
            let _ = Record::decode(&with_kind);
        }
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

    /// What a record says of one end.
    fn address(
        family: u8,
        length: u8,
        zone_length: u8,
        port: u16,
        parts: &[(usize, &[u8])],
    ) -> Vec<u8> {
        let mut bytes = vec![family, length, zone_length, 0];
        bytes.extend(port.to_le_bytes());
        bytes.resize(size_of::<layout::Address>(), 0);
        for &(at, part) in parts {
            bytes[8 + at..][..part.len()].copy_from_slice(part);
        }
        bytes
    }

    fn connection(role: u8, local: &[u8], remote: &[u8]) -> Vec<u8> {
        let mut bytes = header(layout::RECORD_CONNECTION);
        bytes.extend(7i32.to_le_bytes());
        bytes.extend(0x0304u16.to_le_bytes());
        bytes.extend(0x1301u16.to_le_bytes());
        bytes.extend([role, 1, 1, 12, 2, 0, 0, 0]);
        bytes.extend(local);
        bytes.extend(remote);
        bytes.extend(b"greeter.test and what was there before");
        bytes.resize(bytes.len() + 256 - 38, 0);
        bytes.extend(b"h2");
        bytes.resize(bytes.len() + 254, 0);
        assert_eq!(bytes.len(), size_of::<layout::ConnectionRecord>());
        bytes
    }

    #[test]
    fn connection_is_decoded_field_by_field() {
        let v6: Ipv6Addr = "fe80::1".parse().unwrap();
        let local = address(1, 16, 4, 443, &[(0, &v6.octets()), (16, b"eth0")]);
        let mapped: Ipv6Addr = "::ffff:10.1.2.3".parse().unwrap();
        let remote = address(1, 16, 0, 50_000, &[(0, &mapped.octets())]);
        let bytes = connection(2, &local, &remote);
        let Ok(Record::Connection(record)) = Record::decode(&bytes) else {
            panic!("{bytes:?}")
        };
        assert_eq!((record.fd, record.from_start), (Some(7), true));
        let expected = Address::Tcp {
            ip: v6.into(),
            port: 443,
            zone: b"eth0",
        };
        assert_eq!(record.local, Some(expected));
        let expected = Address::Tcp {
            ip: "10.1.2.3".parse().unwrap(),
            port: 50_000,
            zone: b"",
        };
        assert_eq!(record.remote, Some(expected));
        let expected = Agreed {
            role: Role::Server,
            version: 0x0304,
            cipher_suite: 0x1301,
            resumed: true,
            server_name: Some(b"greeter.test"),
            protocol: Some(b"h2"),
        };
        assert_eq!(record.agreed, Some(expected));
    }

    #[test]
    fn what_is_not_known_of_a_connection_is_nothing() {
        let unix = address(2, 11, 0, 0, &[(0, b"/run/x.sock")]);
        let mut bytes = connection(0, &unix, &address(0, 9, 9, 9, &[]));
        let fd = std::mem::offset_of!(layout::ConnectionRecord, fd);
        bytes[fd..fd + 4].copy_from_slice(&(-1i32).to_le_bytes());
        let Ok(Record::Connection(record)) = Record::decode(&bytes) else {
            panic!("{bytes:?}")
        };
        assert_eq!(record.local, Some(Address::Unix(b"/run/x.sock")));
        assert_eq!(
            (record.remote, record.agreed, record.fd),
            (None, None, None)
        );
    }

    #[test]
    fn connection_with_impossible_fields_is_refused() {
        let unknown = address(0, 0, 0, 0, &[]);
        for (bytes, field, value) in [
            (connection(3, &unknown, &unknown), "role", 3),
            (
                connection(1, &address(9, 0, 0, 0, &[]), &unknown),
                "address family",
                9,
            ),
            (
                connection(1, &unknown, &address(1, 5, 0, 0, &[])),
                "address length",
                5,
            ),
            (
                connection(1, &unknown, &address(1, 4, 200, 0, &[])),
                "address length",
                200,
            ),
            (
                connection(1, &address(2, 109, 0, 0, &[]), &unknown),
                "address length",
                109,
            ),
        ] {
            let error = Record::decode(&bytes).unwrap_err();
            assert_eq!(error, DecodeError::UnknownValue { field, value });
        }
        let whole = connection(1, &unknown, &unknown);
        for length in 0..whole.len() {
            let error = Record::decode(&whole[..length]).unwrap_err();
            assert!(matches!(error, DecodeError::TooShort { .. }), "{length}");
        }
    }
}
