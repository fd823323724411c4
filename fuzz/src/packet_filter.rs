//! Packet filters: what the kernel says of a packet is what libpcap says of it.

use arbitrary::{Arbitrary, Unstructured};
use capture::LinkType;

/// An expression of tcpdump's language.
#[derive(Arbitrary, Debug)]
enum Expression {
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Not(Box<Expression>),
    Protocol(Protocol),
    Port(Option<Side>, u16),
    Portrange(u16, u16),
    Host4(Option<Side>, [u8; 4]),
    Net4([u8; 4], u8),
    Host6(Option<Side>, [u16; 8]),
    Greater(u16),
    Vlan(Option<u16>),
    Relation(Arithmetic, Comparison, Arithmetic),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Side {
    Src,
    Dst,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Protocol {
    Ether,
    Ip,
    Ip6,
    Tcp,
    Udp,
    Icmp,
}

#[derive(Arbitrary, Debug)]
enum Arithmetic {
    Number(u32),
    Length,
    Byte(Protocol, Box<Arithmetic>, Width),
    Combined(Box<Arithmetic>, Operator, Box<Arithmetic>),
    Negative(Box<Arithmetic>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Width {
    One,
    Two,
    Four,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    And,
    Or,
    Xor,
    Left,
    Right,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// An expression, and a packet behind it.
pub fn run(bytes: &[u8]) {
    let Some((text, link_type, packet)) = decode(bytes) else {
        return;
    };
    if let Some((kernel, libpcap)) = capture::verdicts(&text, link_type, packet) {
        assert_eq!(kernel, libpcap, "{text}: {packet:02x?}");
    }
}

fn decode(bytes: &[u8]) -> Option<(String, LinkType, &[u8])> {
    let mut input = Unstructured::new(bytes);
    let (expression, ethernet) = <(Expression, bool)>::arbitrary(&mut input).ok()?;
    let mut text = String::new();
    expression.write(&mut text);
    let link_type = match ethernet {
        true => LinkType::Ethernet,
        false => LinkType::RawIp,
    };
    Some((text, link_type, input.take_rest()))
}

/// Each kind of expression with each kind of packet.
pub fn seeds() -> Vec<Vec<u8>> {
    let variants = |of: &[(u32, u32)]| -> Vec<u8> {
        let bytes = of.iter().flat_map(|&(index, count)| variant(index, count));
        bytes.collect()
    };
    let [
        and,
        or,
        not,
        protocol,
        port,
        portrange,
        host4,
        net4,
        host6,
        greater,
        vlan,
        relation,
    ] = std::array::from_fn(|index| variant(index as u32, 12).to_vec());
    let [ip, ip6, tcp] = [1, 2, 3].map(|index| variant(index, 6).to_vec());
    let [source, destination] = [0, 1].map(|index| [&[1][..], &variant(index, 2)].concat());
    let https = [port.clone(), vec![0], 443_u16.to_le_bytes().to_vec()].concat();
    // A TCP header's length: (tcp[12:1] & 240) >> 2, as in tcpdump's manual.
    let header_length = [
        variants(&[(3, 5), (3, 5), (2, 5)]),
        tcp.clone(),
        variants(&[(0, 5)]),
        12_u32.to_le_bytes().to_vec(),
        variants(&[(0, 3), (5, 10), (0, 5)]),
        240_u32.to_le_bytes().to_vec(),
        variants(&[(9, 10), (0, 5)]),
        2_u32.to_le_bytes().to_vec(),
    ];
    let localhost6 = [0, 0, 0, 0, 0, 0, 0, 1_u16].map(u16::to_le_bytes);
    let expressions: Vec<(&str, Vec<Vec<u8>>)> = vec![
        (
            "(tcp and port 443)",
            vec![and, protocol.clone(), tcp.clone(), https.clone()],
        ),
        (
            "(vlan or src host 127.0.0.1)",
            vec![
                or.clone(),
                vlan.clone(),
                vec![0],
                host4,
                source,
                vec![127, 0, 0, 1],
            ],
        ),
        ("not port 443", vec![not, https.clone()]),
        ("ip6", vec![protocol.clone(), ip6]),
        (
            "(dst port 443 or portrange 0-1023)",
            vec![
                or.clone(),
                port,
                destination.clone(),
                443_u16.to_le_bytes().to_vec(),
                portrange,
                vec![0, 0],
                1023_u16.to_le_bytes().to_vec(),
            ],
        ),
        ("net 10.0.0.0/8", vec![net4, vec![10, 0, 0, 0], vec![0]]),
        (
            "dst host ::1",
            vec![host6, destination, localhost6.concat()],
        ),
        (
            "(vlan 7 or greater 1000)",
            vec![
                or,
                vlan,
                vec![1, 7, 0],
                greater,
                1000_u16.to_le_bytes().to_vec(),
            ],
        ),
        (
            "((tcp[12:1] & 240) >> 2) != len",
            vec![
                relation.clone(),
                header_length.concat(),
                variants(&[(1, 6), (1, 5)]),
            ],
        ),
        (
            "ip[(0 - 1):4] <= 5",
            vec![
                relation,
                variants(&[(2, 5)]),
                ip,
                variants(&[(4, 5), (0, 5)]),
                1_u32.to_le_bytes().to_vec(),
                variants(&[(2, 3), (3, 6), (0, 5)]),
                5_u32.to_le_bytes().to_vec(),
            ],
        ),
    ];
    let mut seeds = Vec::new();
    for (text, expression) in &expressions {
        for packet in packets() {
            for (link_type, ethernet) in [(LinkType::RawIp, 0), (LinkType::Ethernet, 1)] {
                let frame = match link_type {
                    LinkType::Ethernet => ethernet_frame(&packet),
                    LinkType::RawIp => packet.clone(),
                };
                let seed = [&expression.concat()[..], &[ethernet], &frame].concat();
                assert_eq!(
                    decode(&seed).map(|(text, _, packet)| (text, packet.to_vec())),
                    Some((text.to_string(), frame))
                );
                seeds.push(seed);
            }
        }
    }
    seeds
}

/// What [`Arbitrary`] takes for this one of an enumeration's variants.
fn variant(index: u32, count: u32) -> [u8; 4] {
    let first = (u64::from(index) << 32).div_ceil(u64::from(count));
    (first as u32).to_le_bytes()
}

/// TCP in IPv4, a later fragment of it, and TCP in IPv6.
fn packets() -> [Vec<u8>; 3] {
    let tcp = |from: u16, to: u16| {
        let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
        [
            &ports[..],
            &[0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 2, 0, 0, 0, 0, 0, b'x'],
        ]
        .concat()
    };
    let ipv4 = |fragment: u16| {
        let [high, low] = fragment.to_be_bytes();
        let header = [0x45, 0, 0, 41, 0, 1, high, low, 64, 6, 0, 0];
        [
            &header[..],
            &[127, 0, 0, 1],
            &[10, 0, 0, 1],
            &tcp(443, 40000),
        ]
        .concat()
    };
    let mut ipv6 = vec![0x60, 0, 0, 0, 0, 21, 6, 64];
    ipv6.extend([&std::net::Ipv6Addr::LOCALHOST.octets()[..]; 2].concat());
    ipv6.extend(tcp(40000, 443));
    [ipv4(0x4000), ipv4(100), ipv6]
}

/// The packet behind a VLAN's tag and an Ethernet header.
fn ethernet_frame(packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = match packet[0] >> 4 {
        6 => [0x86, 0xdd],
        _ => [0x08, 0],
    };
    [&[2; 12][..], &[0x81, 0, 0, 7], &ethertype, packet].concat()
}

impl Expression {
    fn write(&self, to: &mut String) {
        use std::fmt::Write;

        let side = |side: &Option<Side>| match side {
            None => "",
            Some(Side::Src) => "src ",
            Some(Side::Dst) => "dst ",
        };
        let result = match self {
            Self::And(a, b) | Self::Or(a, b) => {
                to.push('(');
                a.write(to);
                to.push_str(if matches!(self, Self::And(..)) {
                    " and "
                } else {
                    " or "
                });
                b.write(to);
                to.push(')');
                Ok(())
            }
            Self::Not(a) => {
                to.push_str("not ");
                a.write(to);
                Ok(())
            }
            Self::Protocol(Protocol::Ether) => write!(to, "ether multicast"),
            Self::Protocol(protocol) => write!(to, "{}", protocol.name()),
            Self::Port(from, port) => write!(to, "{}port {port}", side(from)),
            Self::Portrange(a, b) => write!(to, "portrange {}-{}", a.min(b), a.max(b)),
            Self::Host4(from, [a, b, c, d]) => write!(to, "{}host {a}.{b}.{c}.{d}", side(from)),
            Self::Net4([a, ..], bits) => write!(to, "net {a}.0.0.0/{}", bits % 8 + 8),
            Self::Host6(from, words) => {
                let address = std::net::Ipv6Addr::from(*words);
                write!(to, "{}host {address}", side(from))
            }
            Self::Greater(length) => write!(to, "greater {length}"),
            Self::Vlan(None) => write!(to, "vlan"),
            Self::Vlan(Some(tag)) => write!(to, "vlan {}", tag % 4096),
            Self::Relation(a, comparison, b) => {
                a.write(to);
                to.push_str(comparison.symbol());
                b.write(to);
                Ok(())
            }
        };
        result.expect("writing to a string");
    }
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Ether => "ether",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

impl Arithmetic {
    fn write(&self, to: &mut String) {
        match self {
            Self::Number(number) => to.push_str(&number.to_string()),
            Self::Length => to.push_str("len"),
            Self::Byte(protocol, at, width) => {
                to.push_str(protocol.name());
                to.push('[');
                at.write(to);
                to.push_str(match width {
                    Width::One => ":1]",
                    Width::Two => ":2]",
                    Width::Four => ":4]",
                });
            }
            Self::Combined(a, operator, b) => {
                to.push('(');
                a.write(to);
                to.push_str(operator.symbol());
                b.write(to);
                to.push(')');
            }
            Self::Negative(a) => {
                to.push_str("(0 - ");
                a.write(to);
                to.push(')');
            }
        }
    }
}

impl Operator {
    fn symbol(self) -> &'static str {
        match self {
            Self::Add => " + ",
            Self::Subtract => " - ",
            Self::Multiply => " * ",
            Self::Divide => " / ",
            Self::Modulo => " % ",
            Self::And => " & ",
            Self::Or => " | ",
            Self::Xor => " ^ ",
            Self::Left => " << ",
            Self::Right => " >> ",
        }
    }
}

impl Comparison {
    fn symbol(self) -> &'static str {
        match self {
            Self::Equal => " = ",
            Self::Unequal => " != ",
            Self::Less => " < ",
            Self::LessOrEqual => " <= ",
            Self::Greater => " > ",
            Self::GreaterOrEqual => " >= ",
        }
    }
}
