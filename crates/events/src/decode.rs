//! Decoding of records, which trusts nothing of what it reads.

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
            layout::RECORD_DATA => self.data(header).map(Record::Data),
            layout::RECORD_CLOSE => self.close(header).map(Record::Close),
            layout::RECORD_KEY => self.key(header).map(Record::Key),
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

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..5) {
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
}
