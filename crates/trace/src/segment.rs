//! One TCP segment in one IP packet (RFC 9293, RFC 791, RFC 8200), with valid checksums.

use std::io;
use std::net::SocketAddr;

use etherparse::{PacketBuilder, TcpOptionElement};

/// The most bytes of a segment: what fits behind an IPv4 header and a TCP header into 64 KiB.
pub(crate) const PAYLOAD_MAX: usize = 65_535 - 20 - 20;

/// The window is this many bits larger than the header says (RFC 7323 section 2.2): 1 GiB.
const WINDOW_SCALE: u8 = 14;
const WINDOW: u16 = 65_535;
const TTL: u8 = 64;

/// What a segment is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flags {
    Syn,
    SynAck,
    Ack,
    PshAck,
    FinAck,
}

impl Flags {
    /// Whether the acknowledgement number counts.
    pub(crate) fn acknowledges(self) -> bool {
        self != Self::Syn
    }
}

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: Flags,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub(crate) payload: &'a [u8],
}

impl Segment<'_> {
    /// Writes it from its IP header on. Both addresses have to be of the same family.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let ip = match (self.source, self.destination) {
            (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
                PacketBuilder::ipv4(source.ip().octets(), destination.ip().octets(), TTL)
            }
            (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
                PacketBuilder::ipv6(source.ip().octets(), destination.ip().octets(), TTL)
            }
            _ => return Err(io::Error::other("addresses of two families")),
        };
        let (from, to) = (self.source.port(), self.destination.port());
        let tcp = ip.tcp(from, to, self.sequence, WINDOW);
        let tcp = match self.flags {
            Flags::Syn => tcp.syn(),
            Flags::SynAck => tcp.syn().ack(self.acknowledgement),
            Flags::Ack => tcp.ack(self.acknowledgement),
            Flags::PshAck => tcp.psh().ack(self.acknowledgement),
            Flags::FinAck => tcp.fin().ack(self.acknowledgement),
        };
        let tcp = match self.flags {
            Flags::Syn | Flags::SynAck => tcp
                .options(&[
                    TcpOptionElement::MaximumSegmentSize(PAYLOAD_MAX as u16),
                    TcpOptionElement::WindowScale(WINDOW_SCALE),
                ])
                .map_err(io::Error::other)?,
            _ => tcp,
        };
        tcp.write(out, self.payload).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{IpHeaders, SlicedPacket, TransportSlice};

    use super::*;

    #[test]
    fn segments_have_valid_checksums_and_say_what_they_should() {
        let longest = vec![b'x'; PAYLOAD_MAX];
        for (source, destination) in [
            ("192.0.2.1:1000", "192.0.2.2:80"),
            ("[2001:db8::1]:1000", "[2001:db8::2]:80"),
        ] {
            for (flags, payload) in [
                (Flags::Syn, &b""[..]),
                (Flags::PshAck, b"hello"),
                (Flags::PshAck, &longest),
            ] {
                let segment = Segment {
                    source: source.parse().unwrap(),
                    destination: destination.parse().unwrap(),
                    sequence: u32::MAX,
                    acknowledgement: 7,
                    flags,
                    payload,
                };
                let mut packet = Vec::new();
                segment.write(&mut packet).unwrap();
                let (ip, _) = IpHeaders::from_slice(&packet).unwrap();
                let parsed = SlicedPacket::from_ip(&packet).unwrap();
                let Some(TransportSlice::Tcp(tcp)) = parsed.transport else {
                    panic!("no TCP");
                };
                assert_eq!(tcp.payload(), payload);
                assert_eq!((tcp.source_port(), tcp.destination_port()), (1000, 80));
                assert_eq!(tcp.sequence_number(), u32::MAX);
                assert_eq!(tcp.syn(), flags == Flags::Syn);
                assert_eq!(tcp.ack(), flags != Flags::Syn);
                let header = tcp.to_header();
                let expected = match ip {
                    IpHeaders::Ipv4(ip, _) => {
                        assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
                        header.calc_checksum_ipv4(&ip, payload)
                    }
                    IpHeaders::Ipv6(ip, _) => header.calc_checksum_ipv6(&ip, payload),
                };
                assert_eq!(expected.unwrap(), tcp.checksum());
            }
        }
    }
}
