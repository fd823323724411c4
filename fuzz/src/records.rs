//! Records of the ring buffer, up to what a user sees or a file holds.

use std::mem::offset_of;

use events::{Record, layout};
use trace::{
    ConversationOptions, Conversations, Interface, InterfaceStatistics, KeyLog, PacketSink,
    PcapngWriter, PlaintextPackets, Section, Sink, Timestamp, Tracker,
};

use crate::outputs::{Memory, Outputs, assert_clean};

/// A list of records, each behind its length (16 bits, little-endian), through every output.
pub fn run(mut bytes: &[u8]) {
    let mut raw = Outputs::new();
    let mut decoded = Conversations::new(Outputs::new(), ConversationOptions::default());
    let (mut for_raw, mut for_decoded) = (Tracker::new(), Tracker::new());
    let key_log = Memory::default();
    let mut key_file = KeyLog::new(key_log.clone());
    let capture = Memory::default();
    let interface = Interface {
        name: "lo",
        link_type: 1,
        snaplen: 0,
        filter: None,
    };
    let mut packets = PacketSink::new(writer(capture.clone(), interface));
    let plaintext = Memory::default();
    let interface = PlaintextPackets::<Memory>::INTERFACE;
    let mut framed = PlaintextPackets::new(writer(plaintext.clone(), interface), Timestamp(0));
    let mut for_framed = Tracker::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let (record, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        bytes = rest;
        let Ok(record) = Record::decode(record) else {
            continue;
        };
        match &record {
            Record::Key(key) => {
                key_file.key(key).expect("writing to memory");
                packets.key(key);
            }
            Record::Packet(packet) => packets.packet(packet, 0).expect("writing to memory"),
            _ => {}
        }
        for_raw
            .record(&record, 0, &mut raw)
            .expect("writing to memory");
        for_framed
            .record(&record, 0, &mut framed)
            .expect("writing to memory");
        for_decoded
            .record(&record, 0, &mut decoded)
            .expect("writing to memory");
        packets
            .release(record.time_ns())
            .expect("writing to memory");
    }
    let end = Timestamp(0);
    for_framed
        .finish(end, 1, 1, &mut framed)
        .expect("writing to memory");
    framed.finish(end, 1).expect("writing to memory");
    for_raw
        .finish(end, 1, 1, &mut raw)
        .expect("writing to memory");
    for_decoded
        .finish(end, 1, 1, &mut decoded)
        .expect("writing to memory");
    decoded.finish(end).expect("writing to memory");
    packets.finish(&[statistics()]).expect("writing to memory");
    key_file.flush().expect("writing to memory");
    raw.flush().expect("writing to memory");
    raw.check();
    std::mem::replace(decoded.sink_mut(), Outputs::new()).check();
    assert_clean(&key_log.take());
    assert_blocks(&capture.take());
    assert_blocks(&plaintext.take());
}

fn writer(out: Memory, interface: Interface<'_>) -> PcapngWriter<Memory> {
    let section = Section {
        hardware: "fuzz",
        os: "fuzz",
        application: "fuzz",
    };
    PcapngWriter::new(out, &section, &[interface]).expect("writing to memory")
}

fn statistics() -> InterfaceStatistics {
    InterfaceStatistics {
        interface: 0,
        start: Timestamp(0),
        end: Timestamp(1),
        received: 1,
        dropped: 0,
    }
}

/// A pcapng file consists of blocks whose length stands at both ends.
fn assert_blocks(mut file: &[u8]) {
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    while !file.is_empty() {
        let length = number(&file[4..8]) as usize;
        assert!(length >= 12 && length % 4 == 0);
        assert_eq!(number(&file[length - 4..length]) as usize, length);
        file = &file[length..];
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let opened = || {
        let mut record = Builder::header(
            layout::RECORD_CONNECTION,
            size_of::<layout::ConnectionRecord>(),
        );
        record.put(
            offset_of!(layout::ConnectionRecord, fd),
            &7u32.to_le_bytes(),
        );
        record.put(
            offset_of!(layout::ConnectionRecord, version),
            b"\x04\x03\x01\x13\x01\x00\x01",
        );
        record.put(
            offset_of!(layout::ConnectionRecord, server_name_length),
            b"\x06\x02",
        );
        record.put(offset_of!(layout::ConnectionRecord, server_name), b"a.test");
        record.put(offset_of!(layout::ConnectionRecord, protocol), b"h2");
        record.put(
            offset_of!(layout::ConnectionRecord, local),
            &address(1, 4, 0, 443, b"\x7f\0\0\x01"),
        );
        let zone = b"\xfe\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\x01eth0";
        record.put(
            offset_of!(layout::ConnectionRecord, remote),
            &address(1, 16, 4, 5000, zone),
        );
        record
    };
    let unix = || {
        let mut record = opened();
        record.put(offset_of!(layout::ConnectionRecord, fd), &[0xff; 4]);
        record.put(offset_of!(layout::ConnectionRecord, version), &[0; 9]);
        record.put(
            offset_of!(layout::ConnectionRecord, local),
            &address(2, 1, 0, 0, b"@"),
        );
        record.put(
            offset_of!(layout::ConnectionRecord, remote),
            &address(2, 11, 0, 0, b"/run/x.sock"),
        );
        record
    };
    let data = |direction, missing, offset: u64, sequence: u32, payload: &[u8]| {
        let mut record = Builder::header(layout::RECORD_DATA, size_of::<layout::DataRecord>());
        let length = payload.len() as u64;
        let numbers = [offset, length, 0, u64::from(missing) * 100, 34];
        let numbers = numbers.map(u64::to_le_bytes).concat();
        record.put(offset_of!(layout::DataRecord, stream_offset), &numbers);
        record.put(
            offset_of!(layout::DataRecord, length),
            &(length as u32).to_le_bytes(),
        );
        record.put(
            offset_of!(layout::DataRecord, sequence),
            &sequence.to_le_bytes(),
        );
        record.put(
            offset_of!(layout::DataRecord, direction),
            &[direction, missing],
        );
        record.0.extend(payload);
        record
    };
    let close = |cause| {
        let mut record = Builder::header(layout::RECORD_CLOSE, size_of::<layout::CloseRecord>());
        record.put(
            offset_of!(layout::CloseRecord, stream_length),
            &[9, 0, 0, 0, 0, 0, 0, 0, 9],
        );
        record.put(offset_of!(layout::CloseRecord, cause), &[cause]);
        record
    };
    let key = || {
        let mut record = Builder::header(layout::RECORD_KEY, size_of::<layout::KeyRecord>());
        record.put(offset_of!(layout::KeyRecord, label_length), &[13, 48]);
        record.put(offset_of!(layout::KeyRecord, label), b"CLIENT_RANDOM");
        record
    };
    let packet = |direction| {
        let mut record = Builder(vec![0; size_of::<layout::PacketRecord>()]);
        record.put(
            offset_of!(layout::PacketRecord, sender),
            b"\x2a\0\0\0caddy\x1b",
        );
        record.put(
            offset_of!(layout::PacketRecord, kind),
            &[layout::RECORD_PACKET, direction],
        );
        record.put(
            offset_of!(layout::PacketRecord, length),
            b"\x40\0\0\0\x08\0\0\0",
        );
        record.0.extend(b"packet!!");
        record
    };
    let get = data(0, 0, 0, 0, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let ok = data(
        1,
        0,
        0,
        0,
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
    );
    let cut = data(1, 1, 41, 1, b"defghi");
    let late = data(0, 2, 400, 4, b"\x1b[2J\xe2\x80\xae");
    let mut seeds = vec![
        list([opened(), get.clone(), ok, cut, close(0)]),
        list([unix(), late, close(1), key(), key()]),
        list([key(), packet(0), packet(1)]),
        list([get]),
    ];
    let mut offsets = [0u64; 2];
    let mut records = vec![opened()];
    for (server, bytes) in crate::connection::http2() {
        let offset = &mut offsets[usize::from(server)];
        records.push(data(u8::from(server), 0, *offset, 0, &bytes));
        *offset += bytes.len() as u64;
    }
    seeds.push(list(records));
    seeds
}

/// A record byte by byte.
#[derive(Clone)]
struct Builder(Vec<u8>);

impl Builder {
    fn header(kind: u8, length: usize) -> Self {
        let mut record = Self(vec![0; length]);
        let numbers = [3_723_000_004_567u64, 0xc000_1234, 5].map(u64::to_le_bytes);
        record.put(0, &numbers.concat());
        record.put(
            offset_of!(layout::RecordHeader, pid),
            b"\x2a\0\0\0\x2b\0\0\0ca\x1bddy",
        );
        record.put(offset_of!(layout::RecordHeader, kind), &[kind]);
        record
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// `struct address`
fn address(family: u8, length: u8, zone_length: u8, port: u16, bytes: &[u8]) -> Vec<u8> {
    let port = port.to_le_bytes();
    [&[family, length, zone_length, 0], &port[..], &[0; 2], bytes].concat()
}

fn list(records: impl IntoIterator<Item = Builder>) -> Vec<u8> {
    let with_length =
        |record: Builder| [&(record.0.len() as u16).to_le_bytes(), &record.0[..]].concat();
    records.into_iter().flat_map(with_length).collect()
}
