//! A capture file that can be decrypted in one pass: the keys of a TLS session precede its packets.
//!
//! A program computes its keys when the first encrypted packets are there already. So packets wait, in
//! the order of time, for [`PacketSink::HOLD_NS`] before they are written, and keys don't. What waits is
//! bounded by [`PacketSink::WAITING_MAX`] bytes: beyond that, the oldest packets are written earlier.

use std::collections::VecDeque;
use std::io::{self, Write};

use events::{KeyRecord, PacketProcess, PacketRecord};

use crate::escape::escape_name;
use crate::keylog::{KeyLines, KeyTotals};
use crate::pcapng::{InterfaceStatistics, Packet, PacketDirection, PcapngWriter};
use crate::time::Timestamp;

/// What passed through a [`PacketSink`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketTotals {
    /// Packets.
    pub packets: u64,
    /// Bytes of them, as captured.
    pub bytes: u64,
}

/// Writes packets and keys to a pcapng file.
#[derive(Debug)]
pub struct PacketSink<W> {
    writer: PcapngWriter<W>,
    keys: KeyLines,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    written: PacketTotals,
    flushed: PacketTotals,
}

/// A packet on its way.
#[derive(Debug)]
struct Waiting {
    time_ns: u64,
    time: Timestamp,
    interface: u32,
    direction: PacketDirection,
    length: u32,
    bytes: Box<[u8]>,
    comment: Option<String>,
}

impl<W: Write> PacketSink<W> {
    /// How long a packet waits for keys.
    pub const HOLD_NS: u64 = 500_000_000;

    /// How many bytes of packets wait at most.
    pub const WAITING_MAX: usize = 64 * 1024 * 1024;

    /// Goes on where `writer` has described the interfaces.
    pub fn new(writer: PcapngWriter<W>) -> Self {
        Self {
            writer,
            keys: KeyLines::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            written: PacketTotals::default(),
            flushed: PacketTotals::default(),
        }
    }

    /// What passed so far. Packets count once they have been handed on.
    pub fn totals(&self) -> (PacketTotals, KeyTotals) {
        (self.flushed, self.keys.totals())
    }

    /// Takes a key.
    pub fn key(&mut self, key: &KeyRecord<'_>) {
        self.keys.key(key);
    }

    /// Lines of the key log that are not yet in the file, for whom else wants them.
    pub fn new_key_lines(&self) -> &[u8] {
        self.keys.lines()
    }

    /// Takes a packet. `realtime_offset_ns` leads from its clock to the wall clock.
    pub fn packet(&mut self, packet: &PacketRecord<'_>, realtime_offset_ns: i64) -> io::Result<()> {
        self.waiting_bytes += packet.bytes.len();
        // Processors note the time before they get their place in the ring buffer, so that neighbours
        // can be in the wrong order. Nearly always the place is the last one.
        let before = |waiting: &Waiting| waiting.time_ns <= packet.time_ns;
        let place = self
            .waiting
            .iter()
            .rposition(before)
            .map_or(0, |last| last + 1);
        let waiting = Waiting {
            time_ns: packet.time_ns,
            time: Timestamp::from_monotonic(packet.time_ns, realtime_offset_ns),
            interface: packet.interface,
            direction: match packet.direction {
                events::PacketDirection::Inbound => PacketDirection::Inbound,
                events::PacketDirection::Outbound => PacketDirection::Outbound,
            },
            length: packet.length,
            bytes: packet.bytes.into(),
            comment: comment(packet.sender.as_ref(), packet.receiver.as_ref()),
        };
        self.waiting.insert(place, waiting);
        if self.waiting_bytes > Self::WAITING_MAX {
            self.write_keys()?;
            self.write_oldest()?;
        }
        Ok(())
    }

    /// Writes the keys, and the packets that have waited long enough. `now_ns` is a time of the
    /// packets' clock up to which all keys have been taken.
    pub fn release(&mut self, now_ns: u64) -> io::Result<()> {
        self.write_keys()?;
        let waited = |packet: &Waiting| packet.time_ns.saturating_add(Self::HOLD_NS) <= now_ns;
        while self.waiting.front().is_some_and(waited) {
            self.write_oldest()?;
        }
        Ok(())
    }

    /// Writes everything that waits, and how the interfaces' packets fared.
    pub fn finish(&mut self, statistics: &[InterfaceStatistics]) -> io::Result<()> {
        self.release(u64::MAX)?;
        for statistics in statistics {
            self.writer.statistics(statistics)?;
        }
        self.flush()
    }

    /// Hands everything written so far on.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()?;
        self.flushed = self.written;
        Ok(())
    }

    fn write_keys(&mut self) -> io::Result<()> {
        if !self.keys.lines().is_empty() {
            self.writer.key_log(self.keys.lines())?;
            self.keys.clear();
        }
        Ok(())
    }

    fn write_oldest(&mut self) -> io::Result<()> {
        let Some(packet) = self.waiting.pop_front() else {
            return Ok(());
        };
        self.waiting_bytes -= packet.bytes.len();
        self.written.packets += 1;
        self.written.bytes += packet.bytes.len() as u64;
        self.writer.packet(&Packet {
            interface: packet.interface,
            time: packet.time,
            length: packet.length,
            bytes: &packet.bytes,
            direction: packet.direction,
            comment: packet.comment.as_deref(),
        })
    }
}

/// Whose packet it is: `sent by caddy[42]`, `for curl[43]`.
fn comment(sender: Option<&PacketProcess>, receiver: Option<&PacketProcess>) -> Option<String> {
    let name =
        |process: &PacketProcess| format!("{}[{}]", escape_name(process.comm()), process.pid);
    match (sender, receiver) {
        (Some(sender), Some(receiver)) => {
            Some(format!("sent by {} for {}", name(sender), name(receiver)))
        }
        (Some(sender), None) => Some(format!("sent by {}", name(sender))),
        (None, Some(receiver)) => Some(format!("for {}", name(receiver))),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use events::Header;

    use super::*;
    use crate::pcapng::Section;

    fn packet(time_ns: u64, bytes: &[u8]) -> PacketRecord<'_> {
        PacketRecord {
            time_ns,
            interface: 0,
            direction: events::PacketDirection::Outbound,
            sender: Some(PacketProcess {
                pid: 42,
                comm: *b"caddy\0\0\0\0\0\0\0\0\0\0\0",
            }),
            receiver: None,
            length: bytes.len() as u32,
            bytes,
        }
    }

    fn key(sink: &mut PacketSink<impl Write>) {
        sink.key(&KeyRecord {
            header: Header {
                time_ns: 0,
                conn: 0,
                first_seen_ns: 0,
                pid: 1,
                tid: 1,
                comm: [0; 16],
            },
            label: b"CLIENT_RANDOM",
            client_random: &[7; 32],
            secret: &[8; 48],
        });
    }

    /// The types of the blocks behind the section header.
    fn blocks(mut file: &[u8]) -> Vec<u32> {
        let word = |bytes: &[u8]| u32::from_le_bytes(*bytes.first_chunk().unwrap());
        let mut types = Vec::new();
        while !file.is_empty() {
            types.push(word(file));
            file = &file[word(&file[4..]) as usize..];
        }
        types.remove(0);
        types
    }

    const KEYS: u32 = 0x0a;
    const PACKET: u32 = 6;

    /// How long packets wait does not depend on a clock that can be set.
    #[test]
    fn steps_of_the_clock_hold_no_packet_back() {
        let mut file = Vec::new();
        let writer = PcapngWriter::new(&mut file, &Section::default(), &[]).unwrap();
        let mut sink = PacketSink::new(writer);
        for (time_ns, offset) in [(1000, 1 << 60), (2000, -(1 << 60)), (3000, i64::MIN)] {
            sink.packet(&packet(time_ns, b"x"), offset).unwrap();
        }
        sink.release(2000 + PacketSink::<Vec<u8>>::HOLD_NS).unwrap();
        assert_eq!(sink.totals().0.packets, 0, "nothing is flushed yet");
        sink.flush().unwrap();
        assert_eq!(sink.totals().0.packets, 2);
        drop(sink);
        assert_eq!(blocks(&file), [PACKET, PACKET]);
    }

    #[test]
    fn packets_wait_for_keys_that_come_later() {
        let mut file = Vec::new();
        let writer = PcapngWriter::new(&mut file, &Section::default(), &[]).unwrap();
        let mut sink = PacketSink::new(writer);
        sink.packet(&packet(1000, b"early"), 0).unwrap();
        sink.release(1000).unwrap();
        key(&mut sink);
        sink.packet(&packet(2000, b"late"), 0).unwrap();
        sink.release(1000 + PacketSink::<Vec<u8>>::HOLD_NS).unwrap();
        sink.flush().unwrap();
        assert_eq!(sink.totals().0.packets, 1);
        sink.finish(&[]).unwrap();
        assert_eq!(
            sink.totals().0,
            PacketTotals {
                packets: 2,
                bytes: 9
            }
        );
        assert_eq!(blocks(&file), [KEYS, PACKET, PACKET]);
    }

    #[test]
    fn packets_are_written_in_order_of_time() {
        let mut file = Vec::new();
        let writer = PcapngWriter::new(&mut file, &Section::default(), &[]).unwrap();
        let mut sink = PacketSink::new(writer);
        for (time, name) in [(10, b"c"), (5, b"a"), (7, b"b"), (11, b"d")] {
            sink.packet(&packet(time, name), 0).unwrap();
        }
        sink.finish(&[]).unwrap();
        let names: Vec<_> = file
            .windows(4)
            .filter(|window| window[1..] == [0, 0, 0] && (b'a'..=b'd').contains(&window[0]))
            .map(|window| window[0])
            .collect();
        assert_eq!(names, b"abcd");
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut sink =
            PacketSink::new(PcapngWriter::new(io::sink(), &Section::default(), &[]).unwrap());
        let large = vec![0; 1024 * 1024];
        for time in 0..100 {
            sink.packet(&packet(time, &large), 0).unwrap();
            assert!(sink.waiting_bytes <= PacketSink::<io::Sink>::WAITING_MAX);
        }
        sink.flush().unwrap();
        assert_eq!(sink.totals().0.packets, 36);
    }

    #[test]
    fn what_a_full_disk_did_not_take_does_not_count() {
        let mut disk = [0; 256];
        let out = io::BufWriter::new(&mut disk[..]);
        let mut sink = PacketSink::new(PcapngWriter::new(out, &Section::default(), &[]).unwrap());
        sink.packet(&packet(0, b"fits"), 0).unwrap();
        sink.release(u64::MAX).unwrap();
        sink.flush().unwrap();
        sink.packet(&packet(1, &[0; 256]), 0).unwrap();
        sink.release(u64::MAX).unwrap();
        assert!(sink.flush().is_err());
        assert_eq!(sink.totals().0.packets, 1);
    }

    #[test]
    fn comment_says_whose_packet_it_is() {
        let process = |pid| PacketProcess {
            pid,
            comm: *b"a\x1bb\0\0\0\0\0\0\0\0\0\0\0\0\0",
        };
        let (a, b) = (process(1), process(2));
        assert_eq!(comment(None, None), None);
        assert_eq!(comment(Some(&a), None).unwrap(), "sent by a\\x1bb[1]");
        assert_eq!(
            comment(Some(&a), Some(&b)).unwrap(),
            "sent by a\\x1bb[1] for a\\x1bb[2]"
        );
    }
}
