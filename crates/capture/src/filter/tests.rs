//! What the kernel says of packets, compared with what libpcap's own interpreter says of them.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::test_run::{Kernel, MATCHED, program_array, run};
use super::*;
use crate::PacketOptions;

/// Expressions for either link type.
const EXPRESSIONS: &[&str] = &[
    "ip",
    "ip6",
    "tcp",
    "udp",
    "icmp",
    "icmp6",
    "ip proto 132",
    "ip6 proto 58",
    "host 10.1.2.3",
    "src host 10.1.2.3",
    "dst host 10.1.2.4",
    "host 2001:db8::1",
    "src host 2001:db8::2",
    "net 10.1.0.0/16",
    "src net 10.1.2.0/28",
    "dst net 192.0.2.0/24",
    "net 2001:db8::/32",
    "port 443",
    "src port 443",
    "dst port 8443",
    "tcp port 443",
    "udp port 53",
    "portrange 400-500",
    "src portrange 8000-9000",
    "tcp dst portrange 1-1023",
    "not port 443",
    "host 10.1.2.3 and port 443",
    "host 10.1.2.3 or host 10.1.2.4",
    "(src host 10.1.2.3 or src port 443) and not udp",
    "tcp and not (port 443 or port 53)",
    "tcp[13] & 2 != 0",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp[tcpflags] == tcp-syn|tcp-ack",
    "ip[0] & 0xf != 5",
    "ip[6:2] & 0x1fff = 0",
    "ip[2:2] > 100",
    "ip6[6] = 6",
    "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x16030101",
    "tcp[0:2] % 7 = 3",
    "ip[8] * 2 - 1 > 100",
    "ip[9] / ip[8] >= 0",
    "ip[9] << ip[8] > 1000",
    "ip[9] >> (ip[8] & 7) = 1",
    "udp[4:2] = length - 28",
    "ip[12:4] = 0x0a010203",
    "ip[12:4] > 0x80000000",
    "len > 100",
    "less 80",
    "greater 80",
    "len = 74 and tcp",
    "icmp[icmptype] = icmp-echo",
    "ip multicast",
    "ip and (tcp[2:2] ^ tcp[0:2]) & 0xff = 0",
    "tcp[1000:4] = 0",
    "-ip[8] & 0xff > 128",
    "proto 17",
    "inbound or tcp",
    // libpcap leaves instructions behind that nothing leads to.
    "ip and not (0 + 0) = 0",
];

/// Expressions that need Ethernet's header.
const ETHERNET_EXPRESSIONS: &[&str] = &[
    "ether host 02:00:00:00:00:01",
    "ether src 02:00:00:00:00:02",
    "ether broadcast",
    "ether multicast",
    "arp",
    "ether proto 0x88cc",
    "ether[12:2] = 0x8100",
    "ether[10:4] & 0xffff = 0x8100",
    "ether[11:4] > 0x40000000",
    "ether[14:2] & 0xfff = 100",
    "ether[15:4] & 0xff000000 = 0x64000000",
    "ether[ether[5] + 11:4] > 0x10000000",
    "ether[ether[5] + 13:2] & 0xff = 100",
    "ether[(ether[5] & 3) + 8] = 1",
    // Where a Linux socket filter finds the packet's type, as with `inbound`.
    "ether[0xfffff004:1] != 4",
    "vlan",
    "vlan 100",
    "vlan 100 and tcp port 443",
    "vlan and vlan 200",
    "not vlan",
    "vlan and ip6 and tcp",
    "tcp or (vlan and udp)",
    "len > 90 and vlan",
];

impl Kernel {
    /// A program that takes the VLAN tag of a packet out of it, as interfaces do, and goes on with
    /// the filter.
    fn behind_untagging(&self, filter: &OwnedFd) -> OwnedFd {
        let programs = program_array(filter);
        let instruction = |code, dst, src, imm| {
            let mut instruction = bpf_insn {
                code,
                imm,
                ..Default::default()
            };
            instruction.set_dst_reg(dst);
            instruction.set_src_reg(src);
            instruction
        };
        // The test's packets are IPv4 with tag 0x8100/100 at most: pop it, push it beside.
        let tci = 100;
        let program = [
            instruction(0xbf, 6, 1, 0),                            // r6 = r1
            instruction(0x85, 0, 0, 19),                           // bpf_skb_vlan_pop(r1)
            instruction(0xbf, 1, 6, 0),                            // r1 = r6
            instruction(0xb7, 2, 0, i32::from(0x8100u16.to_be())), // r2 = htons(0x8100)
            instruction(0xb7, 3, 0, tci),                          // r3 = tci
            instruction(0x85, 0, 0, 18),                           // bpf_skb_vlan_push(r1, r2, r3)
            instruction(0x55, 0, 0, 0).with_offset(5),             // if r0 != 0 goto failed
            instruction(0xbf, 1, 6, 0),                            // r1 = r6
            instruction(0x18, 2, 1, programs.as_raw_fd()),         // r2 = programs
            instruction(0, 0, 0, 0),
            instruction(0xb7, 3, 0, 0),  // r3 = 0
            instruction(0x85, 0, 0, 12), // bpf_tail_call(r1, r2, r3)
            instruction(0xb7, 0, 0, 99), // failed: r0 = 99
            instruction(0x95, 0, 0, 0),  // exit
        ];
        let program = load(c"untag", &program).expect("loading the program that takes tags out");
        std::mem::forget(programs); // Its entries last as long as the descriptor.
        program
    }
}

trait WithOffset {
    fn with_offset(self, offset: i16) -> Self;
}

impl WithOffset for bpf_insn {
    fn with_offset(mut self, offset: i16) -> Self {
        self.off = offset;
        self
    }
}

fn ports() -> impl Strategy<Value = u16> {
    prop_oneof![select(vec![443, 53, 8443, 450, 80, 1024]), any::<u16>()]
}

fn transport() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let flags = prop_oneof![select(vec![2, 0x12, 0x10, 0x11, 4, 0x18]), any::<u8>()];
    let tls = select(vec![
        b"\x16\x03\x01\x01\x00hello".to_vec(),
        vec![],
        vec![0; 90],
    ]);
    let tcp = (ports(), ports(), flags, 5u8..8, tls).prop_map(|(from, to, flags, words, data)| {
        let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, words << 4, flags, 1, 0, 0, 0, 0, 0]);
        bytes.extend(vec![1; usize::from(words - 5) * 4]);
        bytes.extend(data);
        (6, bytes)
    });
    let udp = (ports(), ports(), 0usize..100).prop_map(|(from, to, length)| {
        let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
        bytes.extend((8 + length as u16).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(vec![7; length]);
        (17, bytes)
    });
    let icmp = (select(vec![0u8, 3, 8]), select(vec![1u8, 58]))
        .prop_map(|(kind, protocol)| (protocol, vec![kind, 0, 0, 0, 1, 2, 3, 4]));
    let other = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..60));
    prop_oneof![4 => tcp, 3 => udp, 1 => icmp, 1 => other]
}

fn ipv4() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let address = prop_oneof![
        select(vec![
            [10, 1, 2, 3],
            [10, 1, 2, 4],
            [192, 0, 2, 9],
            [224, 0, 0, 1]
        ]),
        any::<[u8; 4]>()
    ];
    let fragment =
        prop_oneof![4 => Just(0u16), 1 => Just(0x4000), 1 => Just(0x2000), 1 => 1..100u16];
    (
        address.clone(),
        address,
        5u8..9,
        fragment,
        0u8..70,
        transport(),
    )
        .prop_map(
            |(source, destination, words, fragment, hops, (protocol, data))| {
                let length = usize::from(words) * 4 + data.len();
                let mut bytes = vec![0x40 | words, 0];
                bytes.extend((length as u16).to_be_bytes());
                bytes.extend([0, 9]);
                bytes.extend(fragment.to_be_bytes());
                bytes.extend([hops, protocol, 0, 0]);
                bytes.extend(source);
                bytes.extend(destination);
                bytes.extend(vec![1; usize::from(words - 5) * 4]);
                bytes.extend(data);
                (0x0800, bytes)
            },
        )
}

fn ipv6() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let address = (select(vec![0x2001u16, 0xfe80, 0xff02]), 1u8..4).prop_map(|(first, last)| {
        let mut address = [0u8; 16];
        address[..2].copy_from_slice(&first.to_be_bytes());
        address[2..4].copy_from_slice(&[0x0d, 0xb8]);
        address[15] = last;
        address
    });
    let extensions = prop::collection::vec(select(vec![0u8, 43, 44, 60]), 0..3);
    (address.clone(), address, extensions, transport()).prop_map(
        |(source, destination, extensions, (protocol, data))| {
            let mut payload = Vec::new();
            for (index, _) in extensions.iter().enumerate() {
                let next = extensions.get(index + 1).copied().unwrap_or(protocol);
                payload.extend([next, 0, 0, 0, 0, 0, 0, 1]);
            }
            payload.extend(data);
            let mut bytes = vec![0x60, 0, 0, 0];
            bytes.extend((payload.len() as u16).to_be_bytes());
            bytes.extend([extensions.first().copied().unwrap_or(protocol), 64]);
            bytes.extend(source);
            bytes.extend(destination);
            bytes.extend(payload);
            (0x86dd, bytes)
        },
    )
}

/// Type and network-layer bytes; some end early.
fn network() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let whole = prop_oneof![3 => ipv4(), 2 => ipv6()];
    (
        whole,
        prop::option::weighted(0.15, any::<prop::sample::Index>()),
    )
        .prop_map(|((kind, mut bytes), cut)| {
            if let Some(cut) = cut {
                // The kernel's test run wants the fixed header.
                let header = if kind == 0x0800 { 20 } else { 40 };
                bytes.truncate(header + cut.index(bytes.len() - header + 1));
            }
            (kind, bytes)
        })
}

fn ethernet(tags: impl Strategy<Value = Vec<(u16, u16)>>) -> impl Strategy<Value = Vec<u8>> {
    let mac = select(vec![
        [2, 0, 0, 0, 0, 1],
        [2, 0, 0, 0, 0, 2],
        [0xff; 6],
        [1, 0, 0x5e, 0, 0, 1],
        [2, 0, 0, 0, 1, 3],
    ]);
    let other = (
        select(vec![0x0806u16, 0x88cc, 0x0040]),
        prop::collection::vec(any::<u8>(), 28..60),
    );
    (
        mac.clone(),
        mac,
        tags,
        prop_oneof![8 => network(), 1 => other],
    )
        .prop_map(|(to, from, tags, (kind, data))| {
            let mut bytes = [to, from].concat();
            for (protocol, tci) in tags {
                bytes.extend(protocol.to_be_bytes());
                bytes.extend(tci.to_be_bytes());
            }
            bytes.extend(kind.to_be_bytes());
            bytes.extend(data);
            bytes
        })
}

fn some_tags() -> impl Strategy<Value = Vec<(u16, u16)>> {
    let tag = (
        select(vec![0x8100u16, 0x88a8]),
        select(vec![100u16, 200, 0x2064]),
    );
    prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec(tag, 1..3)]
}

/// Compares what the kernel says with what libpcap says, and returns how many of how many matched.
fn compare(
    expression: &str,
    link_type: LinkType,
    packets: impl Strategy<Value = Vec<u8>>,
    program: impl FnOnce(&Kernel, &Filter) -> OwnedFd,
) -> (u32, u32) {
    let filter = Filter::compile(expression, link_type, PacketOptions::SNAPLEN_MAX)
        .unwrap_or_else(|error| panic!("{error}"));
    let kernel = Kernel::new();
    let program = program(&kernel, &filter);
    let (matched, all) = (Cell::new(0), Cell::new(0));
    let config = Config {
        cases: 1500,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(3),
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&packets, |packet| {
            // The interpreter has no packet type; ours are received, so the expression holds.
            let expected = if filter.program.iter().any(Instruction::loads_packet_type) {
                true
            } else {
                libpcap::interpret(&filter.program, &packet)
            };
            let found = match run(&program, &packet) {
                MATCHED => true,
                u32::MAX => false,
                other => panic!("{expression}: the program returned {other}"),
            };
            prop_assert_eq!(found, expected, "{}: {:02x?}", expression, packet);
            matched.set(matched.get() + u32::from(found));
            all.set(all.get() + 1);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    (matched.get(), all.get())
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn kernel_agrees_with_libpcap_on_ethernet() {
    let mut telling = 0;
    for expression in EXPRESSIONS.iter().chain(ETHERNET_EXPRESSIONS) {
        let (matched, all) = compare(
            expression,
            LinkType::Ethernet,
            ethernet(some_tags()),
            |kernel, filter| kernel.load(filter, Hook::Ingress),
        );
        eprintln!("{matched:4} of {all} match {expression}");
        telling += u32::from(0 < matched && matched < all);
    }
    assert!(
        telling > 60,
        "only {telling} expressions tell packets apart"
    );
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn kernel_agrees_with_libpcap_on_raw_ip() {
    let mut telling = 0;
    for expression in EXPRESSIONS {
        let packets = network().prop_map(|(_, bytes)| bytes);
        let (matched, all) = compare(expression, LinkType::RawIp, packets, |kernel, filter| {
            kernel.load(filter, Hook::Ingress)
        });
        telling += u32::from(0 < matched && matched < all);
    }
    assert!(
        telling > 40,
        "only {telling} expressions tell packets apart"
    );
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn tag_that_the_kernel_keeps_beside_a_packet_is_seen_where_it_belongs() {
    let mut telling = 0;
    for expression in EXPRESSIONS.iter().chain(ETHERNET_EXPRESSIONS) {
        let packets = ethernet(Just(vec![(0x8100, 100)]));
        let (matched, all) = compare(expression, LinkType::Ethernet, packets, |kernel, filter| {
            let filter = kernel.load(filter, Hook::Ingress);
            kernel.behind_untagging(&filter)
        });
        telling += u32::from(0 < matched && matched < all);
    }
    assert!(telling > 8, "only {telling} expressions tell packets apart");
}

#[test]
fn wrong_expression_is_answered_in_libpcaps_words() {
    let error = Filter::compile("port http and", LinkType::Ethernet, 262_144).unwrap_err();
    assert!(error.is_wrong_input());
    let message = error.to_string();
    assert!(message.contains("syntax error"), "{message}");
    assert!(message.contains("port http and"), "{message}");
}

#[test]
fn loop_is_refused_by_its_name() {
    let error = Filter::compile("ip6 protochain 6", LinkType::RawIp, 262_144).unwrap_err();
    assert!(error.to_string().contains("protochain"), "{error}");
}

#[test]
fn expression_for_one_link_type_is_no_error_for_both() {
    use crate::PacketCapture;

    let expression = "ether host 02:00:00:00:00:01";
    let both = [LinkType::RawIp, LinkType::Ethernet];
    assert!(PacketCapture::compile_filter(expression, &both).is_ok());
    assert!(PacketCapture::compile_filter(expression, &[LinkType::RawIp]).is_err());
    assert!(PacketCapture::compile_filter("a \0 b", &both).is_err());
}

#[test]
fn all_expressions_compile_without_privileges() {
    for expression in EXPRESSIONS {
        for link_type in [LinkType::Ethernet, LinkType::RawIp] {
            let filter = Filter::compile(expression, link_type, 262_144);
            assert!(filter.is_ok(), "{}", filter.unwrap_err());
        }
    }
}
