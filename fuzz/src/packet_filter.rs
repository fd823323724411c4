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
    let mut input = Unstructured::new(bytes);
    let Ok((expression, ethernet)) = <(Expression, bool)>::arbitrary(&mut input) else {
        return;
    };
    let packet = input.take_rest();
    let link_type = if ethernet {
        LinkType::Ethernet
    } else {
        LinkType::RawIp
    };
    let mut text = String::new();
    expression.write(&mut text);
    if let Some((kernel, libpcap)) = capture::verdicts(&text, link_type, packet) {
        assert_eq!(kernel, libpcap, "{text}: {packet:02x?}");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    Vec::new()
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
