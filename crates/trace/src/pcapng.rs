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
        writer.write(|block| section_header(block, section))?;
        for interface in interfaces {
            writer.write(|block| interface_description(block, interface))?;
        }
        Ok(writer)
    }

    /// Adds a decryption secrets block with lines of a TLS key log. It has to precede the packets that
    /// they decrypt.
    pub fn key_log(&mut self, lines: &[u8]) -> io::Result<()> {
        /// "TLSK"
        const TLS_KEY_LOG: u32 = 0x544c_534b;

        self.write(|out| {
            let mut block = Block::begin(out, 0x0a);
            block.u32(TLS_KEY_LOG);
            block.u32(length_field(lines.len())?);
            block.padded(lines);
            block.end()
        })
    }

    /// Adds a packet.
    pub fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        self.write(|block| packet.encode(block))
    }

    /// Says at the end how an interface's packets fared.
    pub fn statistics(&mut self, statistics: &InterfaceStatistics) -> io::Result<()> {
        self.write(|out| {
            let mut block = Block::begin(out, 0x05);
            block.u32(statistics.interface);
            block.time(statistics.end);
            block.option(2, &split_time(statistics.start)); // isb_starttime
            block.option(3, &split_time(statistics.end)); // isb_endtime
            block.option(4, &statistics.received.to_le_bytes()); // isb_ifrecv
            block.option(5, &statistics.dropped.to_le_bytes()); // isb_ifdrop
            block.option(OPT_ENDOFOPT, &[]);
            block.end()
        })
    }

    /// Adds blocks that are encoded already.
    pub(crate) fn encoded(&mut self, blocks: &[u8]) -> io::Result<()> {
        self.out.write_all(blocks)
    }

    /// What it was written to.
    pub fn into_inner(self) -> W {
        self.out
    }

    /// Hands everything written so far on.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn write(&mut self, encode: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> io::Result<()> {
        self.block.clear();
        encode(&mut self.block)?;
        self.out.write_all(&self.block)
    }
}

impl Packet<'_> {
    /// How long its block is at most.
    pub(crate) fn encoded_max(&self) -> usize {
        /// All but the packet and the comment, with their padding.
        const REST: usize = 64;

        self.bytes.len() + self.comment.map_or(0, str::len) + REST
    }

    /// Appends its block.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let mut block = Block::begin(out, 0x06);
        block.u32(self.interface);
        block.time(self.time);
        block.u32(length_field(self.bytes.len())?);
        block.u32(self.length);
        block.padded(self.bytes);
        if let Some(comment) = self.comment {
            block.option(OPT_COMMENT, comment.as_bytes());
        }
        let direction: u32 = match self.direction {
            PacketDirection::Inbound => 1,
            PacketDirection::Outbound => 2,
        };
        block.option(2, &direction.to_le_bytes()); // epb_flags
        block.option(OPT_ENDOFOPT, &[]);
        block.end()
    }
}

fn section_header(out: &mut Vec<u8>, section: &Section<'_>) -> io::Result<()> {
    let mut block = Block::begin(out, 0x0a0d_0d0a);
    block.u32(0x1a2b_3c4d); // tells the byte order
    block.out.extend([1, 0, 0, 0]); // version 1.0
    block.out.extend([0xff; 8]); // length of the section: not known in advance
    block.option(2, section.hardware.as_bytes()); // shb_hardware
    block.option(3, section.os.as_bytes()); // shb_os
    block.option(4, section.application.as_bytes()); // shb_userappl
    block.option(OPT_ENDOFOPT, &[]);
    block.end()
}

fn interface_description(out: &mut Vec<u8>, interface: &Interface<'_>) -> io::Result<()> {
    let mut block = Block::begin(out, 0x01);
    block.out.extend(interface.link_type.to_le_bytes());
    block.out.extend([0, 0]);
    block.u32(interface.snaplen);
    block.option(2, interface.name.as_bytes()); // if_name
    block.option(9, &[9]); // if_tsresol: 10^-9 s
    if let Some(filter) = interface.filter {
        block.option(11, &[&[0], filter.as_bytes()].concat()); // if_filter, as text
    }
    block.option(OPT_ENDOFOPT, &[]);
    block.end()
}

/// A block that is being encoded, at the end of what is there.
struct Block<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Block<'a> {
    fn begin(out: &'a mut Vec<u8>, block_type: u32) -> Self {
        let start = out.len();
        let mut block = Self { out, start };
        block.u32(block_type);
        block.u32(0); // its length, once that is known
        block
    }

    fn end(self) -> io::Result<()> {
        let length = length_field(self.out.len() - self.start + 4)?.to_le_bytes();
        self.out[self.start + 4..self.start + 8].copy_from_slice(&length);
        self.out.extend(length);
        Ok(())
    }

    fn u32(&mut self, number: u32) {
        self.out.extend(number.to_le_bytes());
    }

    fn time(&mut self, time: Timestamp) {
        self.out.extend(split_time(time));
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        // Names and comments are short; one that is not is cut rather than refused.
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.out.extend(code.to_le_bytes());
        self.out.extend((value.len() as u16).to_le_bytes());
        self.padded(value);
    }

    fn padded(&mut self, bytes: &[u8]) {
        const ZEROS: [u8; 3] = [0; 3];

        self.out.extend_from_slice(bytes);
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.out.extend_from_slice(&ZEROS[..padding]);
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
