//! Where connections keep what is told of them, as read from type descriptors: compared with the same
//! binary's DWARF, and for all binaries, also those without it, with a table that experiments gave.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Binary, binaries};
use gimli::{AttributeValue, DwAt, EndianSlice, LittleEndian};
use gobin::{ConnectionPlan, TcpAddrLayout, TlsConnLayout, TypeRole};
use object::{Object as _, ObjectSection as _};

/// `DW_AT_go_runtime_type`: the type's descriptor (src/cmd/internal/dwarf/dwarf.go).
const GO_RUNTIME_TYPE: DwAt = DwAt(0x2904);

/// The types that are looked at, as DWARF names them.
const TYPES: [&str; 8] = [
    "crypto/tls.Conn",
    "net.TCPConn",
    "net.conn",
    "net.netFD",
    "internal/poll.FD",
    "net.TCPAddr",
    "net.UnixAddr",
    "runtime.g",
];

/// A binary's types as its DWARF describes them.
#[derive(Debug, Default)]
struct Dwarf {
    /// Offsets of fields, by struct and field.
    fields: BTreeMap<(String, String), u64>,
    /// What DWARF says of the descriptors of all types, by their names.
    descriptors: BTreeMap<String, u64>,
}

impl Dwarf {
    /// `None` if the binary has none.
    fn of(binary: &Binary) -> Option<Self> {
        let bytes = binary.read();
        let file = object::File::parse(&*bytes).unwrap();
        file.section_by_name(".debug_info")?;
        let section = |id: gimli::SectionId| -> Result<_, gimli::Error> {
            let section = file.section_by_name(id.name());
            Ok(section.map_or(Vec::new(), |s| s.uncompressed_data().unwrap().into_owned()))
        };
        let sections = gimli::DwarfSections::load(section).unwrap();
        let dwarf = sections.borrow(|bytes| EndianSlice::new(bytes, LittleEndian));
        let mut found = Self::default();
        found.read(&dwarf).unwrap();
        Some(found)
    }

    fn read(&mut self, dwarf: &gimli::Dwarf<EndianSlice<'_, LittleEndian>>) -> gimli::Result<()> {
        let mut units = dwarf.units();
        while let Some(header) = units.next()? {
            let unit = dwarf.unit(header)?;
            let mut in_struct = None;
            let mut entries = unit.entries();
            while let Some(entry) = entries.next_dfs()? {
                let name = match entry.attr_value(gimli::DW_AT_name) {
                    Some(name) => dwarf
                        .attr_string(&unit, name)?
                        .to_string_lossy()
                        .into_owned(),
                    None => continue,
                };
                if let Some(value) = entry.attr_value(GO_RUNTIME_TYPE) {
                    let descriptor = match value {
                        AttributeValue::Addr(address) => address,
                        other => other.udata_value().unwrap(),
                    };
                    self.descriptors.insert(name.clone(), descriptor);
                }
                match entry.tag() {
                    gimli::DW_TAG_structure_type => in_struct = Some(name),
                    gimli::DW_TAG_member => {
                        let Some(parent) = in_struct.as_ref() else {
                            continue;
                        };
                        if !TYPES.contains(&parent.as_str()) {
                            continue;
                        }
                        let place = entry.attr_value(gimli::DW_AT_data_member_location);
                        let place = place.and_then(|place| place.udata_value()).unwrap();
                        self.fields.insert((parent.clone(), name), place);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn field(&self, parent: &str, name: &str) -> Option<u32> {
        let key = (parent.to_owned(), name.to_owned());
        self.fields.get(&key).map(|&place| place as u32)
    }
}

fn plan(binary: &Binary) -> ConnectionPlan {
    let connections = binary.analysis().crypto_tls.connections;
    connections.unwrap_or_else(|error| panic!("{binary}: {error}"))
}

#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn type_descriptors_say_what_dwarf_says() {
    let mut compared = BTreeSet::new();
    for binary in binaries("exchange") {
        let Some(dwarf) = Dwarf::of(&binary) else {
            assert!(binary.variant.contains("stripped"), "{binary}");
            continue;
        };
        let field = |parent: &str, name: &str| {
            let field = dwarf.field(parent, name);
            field.unwrap_or_else(|| panic!("{binary}: no {name} in {parent}"))
        };
        let conn = |name| field("crypto/tls.Conn", name);
        let plan = plan(&binary);
        let handshake = if binary.minor() >= 21 {
            "isHandshakeComplete"
        } else {
            "handshakeStatus"
        };
        let expected = TlsConnLayout {
            conn: conn("conn"),
            is_client: conn("isClient"),
            handshake: conn(handshake),
            version: conn("vers"),
            cipher_suite: conn("cipherSuite"),
            resumed: conn("didResume"),
            server_name: conn("serverName"),
            protocol: conn("clientProtocol"),
        };
        assert_eq!(plan.tls_conn, expected, "{binary}");
        let socket = plan.socket;
        let fd = field("net.TCPConn", "conn") + field("net.conn", "fd");
        let descriptor = field("net.netFD", "pfd") + field("internal/poll.FD", "Sysfd");
        assert_eq!((socket.fd, socket.descriptor), (fd, descriptor), "{binary}");
        let ends = (field("net.netFD", "laddr"), field("net.netFD", "raddr"));
        assert_eq!((socket.local, socket.remote), ends, "{binary}");
        let expected = TcpAddrLayout {
            ip: field("net.TCPAddr", "IP"),
            port: field("net.TCPAddr", "Port"),
            zone: field("net.TCPAddr", "Zone"),
        };
        assert_eq!(plan.tcp_addr, expected, "{binary}");
        let name = Some(field("net.UnixAddr", "Name"));
        assert_eq!(plan.unix_name, name, "{binary}");
        let goroutine = binary.analysis().goroutine_id;
        assert_eq!(goroutine, Some(field("runtime.g", "goid")), "{binary}");
        compared.insert((binary.minor(), binary.arch().to_string()));
    }
    assert_eq!(compared.len(), 2 * 9, "{compared:?}");
}

/// DWARF has the descriptors' addresses, or since Go 1.22 how far they are behind the first one.
#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn type_descriptors_are_where_dwarf_says() {
    for binary in binaries("exchange") {
        let Some(dwarf) = Dwarf::of(&binary) else {
            continue;
        };
        let distances: BTreeMap<_, _> = plan(&binary)
            .types
            .iter()
            .filter_map(|known| {
                let name = known.name.replace("tls.", "crypto/tls.");
                let said = dwarf.descriptors.get(&name)?;
                Some((name, known.descriptor.0.wrapping_sub(*said)))
            })
            .collect();
        for name in [
            "*net.TCPConn",
            "*net.UnixConn",
            "*net.TCPAddr",
            "*crypto/tls.Conn",
        ] {
            assert!(
                distances.contains_key(name),
                "{binary}: {name}: {distances:?}"
            );
        }
        let different: BTreeSet<_> = distances.values().collect();
        assert_eq!(different.len(), 1, "{binary}: {distances:?}");
    }
}

#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn layouts_are_those_of_the_release() {
    for binary in binaries("exchange") {
        // handshake, version, cipherSuite, didResume, serverName, clientProtocol, g.goid
        let expected = match binary.minor() {
            15 | 19 => [32, 64, 90, 88, 192, 328, 152],
            21 | 22 => [40, 72, 98, 97, 224, 360, 152],
            23 | 24 => [40, 72, 100, 97, 224, 368, 160],
            25 | 26 => [40, 72, 100, 97, 208, 352, 152],
            27 => [40, 72, 100, 97, 232, 376, 152],
            other => panic!("{binary}: what are the layouts of Go 1.{other}?"),
        };
        let plan = plan(&binary);
        let conn = plan.tls_conn;
        let found = [
            conn.handshake,
            conn.version,
            conn.cipher_suite,
            conn.resumed,
            conn.server_name,
            conn.protocol,
            binary.analysis().goroutine_id.unwrap(),
        ];
        assert_eq!(found, expected, "{binary}");
        assert_eq!((conn.conn, conn.is_client), (0, 16), "{binary}");
        let socket = plan.socket;
        let found = [socket.fd, socket.descriptor, socket.local, socket.remote];
        assert_eq!(found, [0, 16, 96, 112], "{binary}");
        let tcp = plan.tcp_addr;
        assert_eq!((tcp.ip, tcp.port, tcp.zone), (0, 24, 32), "{binary}");
        assert_eq!(plan.unix_name, Some(0), "{binary}");

        let roles: BTreeMap<_, _> = plan
            .types
            .iter()
            .map(|known| (known.name.as_str(), known.role))
            .collect();
        for (name, role) in [
            ("*net.TCPConn", TypeRole::TcpConn),
            ("*net.UnixConn", TypeRole::UnixConn),
            ("*net.TCPAddr", TypeRole::TcpAddr),
            ("*net.UnixAddr", TypeRole::UnixAddr),
            ("*tls.Conn", TypeRole::Wrapper(0)),
        ] {
            assert_eq!(roles.get(name), Some(&role), "{binary}: {name}");
        }
    }
}

/// Damage to the type descriptors gives another plan or none, and neither a panic nor an endless loop.
#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn damaged_type_descriptors_never_panic() {
    for binary in binaries("exchange") {
        if !matches!(binary.variant.as_str(), "default" | "arm64-stripped-pie")
            || ![15, 21, 27].contains(&binary.minor())
        {
            continue;
        }
        let original = binary.read();
        let file = object::File::parse(&*original).unwrap();
        let types = plan(&binary).types;
        let mut bytes = original.clone();
        for known in &types {
            let section = file
                .sections()
                .find(|s| (s.address()..s.address() + s.size()).contains(&known.descriptor.0))
                .unwrap();
            let start = section.file_range().unwrap().0;
            let at = (start + known.descriptor.0 - section.address()) as usize;
            for place in at..at + 96 {
                for value in [0, 0xff, original[place] ^ 0x18] {
                    bytes[place] = value;
                    if let Ok(analysis) = gobin::analyze(&bytes)
                        && let Ok(plan) = analysis.crypto_tls.connections
                    {
                        assert!(plan.types.len() <= ConnectionPlan::TYPES_MAX, "{binary}");
                    }
                }
                bytes[place] = original[place];
            }
        }
    }
}

#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn a_program_without_tls_has_no_connections_to_tell_of() {
    for binary in binaries("notls") {
        let error = binary.analysis().crypto_tls.connections.unwrap_err();
        assert!(error.to_string().contains("Conn is missing"), "{error}");
    }
}
