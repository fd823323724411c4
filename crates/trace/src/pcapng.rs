//! Writing pcapng files (draft-ietf-opsawg-pcapng): the blocks that we need, in little-endian byte
//! order. What is written first is complete: a reader can follow the file while it grows.

use std::io::{self, Write};

use crate::Timestamp;

/// Which way a packet went, from its interface's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketDirection {
    /// It came in.
    Inbound,
    /// It went out.
    Outbound,
}

/// Who captured where: the section header block.
#[derive(Clone, Copy, Debug, Default)]
pub struct Section<'a> {
    /// The machine.
    pub hardware: &'a str,
    /// Operating system and kernel.
    pub os: &'a str,
    /// This program and its version.
    pub application: &'a str,
}

/// An interface description block.
#[derive(Clone, Copy, Debug)]
pub struct Interface<'a> {
    /// Its name, such as `eth0`.
    pub name: &'a str,
    /// LINKTYPE number, see <https://www.tcpdump.org/linktypes.html>.
    pub link_type: u16,
    /// Packets are cut to this many bytes; 0 stands for no limit.
    pub snaplen: u32,
    /// The capture filter in libpcap's syntax.
    pub filter: Option<&'a str>,
}

/// An enhanced packet block.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Index of its interface, in the order of their descriptions.
    pub interface: u32,
    /// When it passed.
    pub time: Timestamp,
    /// Bytes that it had on the wire.
    pub length: u32,
    /// Those that were captured.
    pub bytes: &'a [u8],
    /// Which way it went.
    pub direction: PacketDirection,
    /// For people.
    pub comment: Option<&'a str>,
}

/// An interface statistics block.
#[derive(Clone, Copy, Debug)]
pub struct InterfaceStatistics {
    /// Index of the interface.
    pub interface: u32,
    /// When the capture began and ended.
    pub start: Timestamp,
    /// When the capture ended.
    pub end: Timestamp,
    /// Packets that were wanted.
    pub received: u64,
    /// Those of them that were lost.
    pub dropped: u64,
}

/// Writes blocks.
#[derive(Debug)]
pub struct PcapngWriter<W> {
    out: W,
    block: Vec<u8>,
}

impl<W: Write> PcapngWriter<W> {
    /// Begins a section and describes its interfaces.
    pub fn new(out: W, section: &Section<'_>, interfaces: &[Interface<'_>]) -> io::Result<Self> {
        let mut writer = Self {
            out,
            block: Vec::new(),
        };
        writer.section_header(section)?;
        for interface in interfaces {
            writer.interface_description(interface)?;
        }
        Ok(writer)
    }

    /// Adds a decryption secrets block with lines of a TLS key log. It has to precede the packets that
    /// they decrypt.
    pub fn key_log(&mut self, lines: &[u8]) -> io::Result<()> {
        /// "TLSK"
        const TLS_KEY_LOG: u32 = 0x544c_534b;

        self.begin(0x0a);
        self.u32(TLS_KEY_LOG);
        self.u32(length_field(lines.len())?);
        self.padded(lines);
        self.end()
    }

    /// Adds a packet.
    pub fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        self.begin(0x06);
        self.u32(packet.interface);
        self.time(packet.time);
        self.u32(length_field(packet.bytes.len())?);
        self.u32(packet.length);
        self.padded(packet.bytes);
        if let Some(comment) = packet.comment {
            self.option(OPT_COMMENT, comment.as_bytes());
        }
        let direction: u32 = match packet.direction {
            PacketDirection::Inbound => 1,
            PacketDirection::Outbound => 2,
        };
        self.option(2, &direction.to_le_bytes()); // epb_flags
        self.option(OPT_ENDOFOPT, &[]);
        self.end()
    }

    /// Says at the end how an interface's packets fared.
    pub fn statistics(&mut self, statistics: &InterfaceStatistics) -> io::Result<()> {
        self.begin(0x05);
        self.u32(statistics.interface);
        self.time(statistics.end);
        self.option(2, &split_time(statistics.start)); // isb_starttime
        self.option(3, &split_time(statistics.end)); // isb_endtime
        self.option(4, &statistics.received.to_le_bytes()); // isb_ifrecv
        self.option(5, &statistics.dropped.to_le_bytes()); // isb_ifdrop
        self.option(OPT_ENDOFOPT, &[]);
        self.end()
    }

    /// What it was written to.
    pub fn into_inner(self) -> W {
        self.out
    }

    /// Hands everything written so far on.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn section_header(&mut self, section: &Section<'_>) -> io::Result<()> {
        self.begin(0x0a0d_0d0a);
        self.u32(0x1a2b_3c4d); // tells the byte order
        self.block.extend([1, 0, 0, 0]); // version 1.0
        self.block.extend([0xff; 8]); // length of the section: not known in advance
        self.option(2, section.hardware.as_bytes()); // shb_hardware
        self.option(3, section.os.as_bytes()); // shb_os
        self.option(4, section.application.as_bytes()); // shb_userappl
        self.option(OPT_ENDOFOPT, &[]);
        self.end()
    }

    fn interface_description(&mut self, interface: &Interface<'_>) -> io::Result<()> {
        self.begin(0x01);
        self.block.extend(interface.link_type.to_le_bytes());
        self.block.extend([0, 0]);
        self.u32(interface.snaplen);
        self.option(2, interface.name.as_bytes()); // if_name
        self.option(9, &[9]); // if_tsresol: 10^-9 s
        if let Some(filter) = interface.filter {
            self.option(11, &[&[0], filter.as_bytes()].concat()); // if_filter, as text
        }
        self.option(OPT_ENDOFOPT, &[]);
        self.end()
    }

    fn begin(&mut self, block_type: u32) {
        self.block.clear();
        self.u32(block_type);
        self.u32(0); // its length, once that is known
    }

    fn end(&mut self) -> io::Result<()> {
        let length = length_field(self.block.len() + 4)?.to_le_bytes();
        self.block[4..8].copy_from_slice(&length);
        self.block.extend(length);
        self.out.write_all(&self.block)
    }

    fn u32(&mut self, number: u32) {
        self.block.extend(number.to_le_bytes());
    }

    fn time(&mut self, time: Timestamp) {
        self.block.extend(split_time(time));
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        // Names and comments are short; one that is not is cut rather than refused.
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.block.extend(code.to_le_bytes());
        self.block.extend((value.len() as u16).to_le_bytes());
        self.padded(value);
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.block.extend_from_slice(bytes);
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }
}

const OPT_ENDOFOPT: u16 = 0;
const OPT_COMMENT: u16 = 1;

fn length_field(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(|_| io::Error::other("a pcapng block of 4 GiB or more"))
}

/// Timestamps are 64 bits in two words, the high one first.
fn split_time(time: Timestamp) -> [u8; 8] {
    let time = u64::try_from(time.0).unwrap_or(0);
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&((time >> 32) as u32).to_le_bytes());
    bytes[4..].copy_from_slice(&(time as u32).to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the blocks of a file: types and bodies.
    fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
        let word =
            |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let length = word(file, 4) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(word(file, length - 4) as usize, length);
            blocks.push((word(file, 0), &file[8..length - 4]));
            file = &file[length..];
        }
        blocks
    }

    #[test]
    fn blocks_are_well_formed_and_in_order() {
        let mut file = Vec::new();
        let interface = Interface {
            name: "lo",
            link_type: 1,
            snaplen: 0,
            filter: Some("tcp port 443"),
        };
        let mut writer = PcapngWriter::new(&mut file, &Section::default(), &[interface]).unwrap();
        writer.key_log(b"CLIENT_RANDOM 00 11\n").unwrap();
        writer
            .packet(&Packet {
                interface: 0,
                time: Timestamp(0x1_0000_0002),
                length: 1500,
                bytes: b"12345",
                direction: PacketDirection::Outbound,
                comment: Some("caddy[42]"),
            })
            .unwrap();
        let statistics = InterfaceStatistics {
            interface: 0,
            start: Timestamp(1),
            end: Timestamp(2),
            received: 3,
            dropped: 4,
        };
        writer.statistics(&statistics).unwrap();

        let blocks = blocks(&file);
        let types: Vec<_> = blocks.iter().map(|(block_type, _)| *block_type).collect();
        assert_eq!(types, [0x0a0d_0d0a, 1, 0x0a, 6, 5]);
        let packet = blocks[3].1;
        assert_eq!(packet[4..12], [1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(packet[12..20], [5, 0, 0, 0, 0xdc, 5, 0, 0]);
        assert_eq!(&packet[20..28], b"12345\0\0\0");
        assert_eq!(&packet[28..44], b"\x01\0\x09\0caddy[42]\0\0\0");
        assert_eq!(packet[44..], [2, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    }
}
