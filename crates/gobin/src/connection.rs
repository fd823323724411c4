//! What a connection is made of: where `tls.Conn`, and the `net.Conn` below it, keep the addresses
//! and what the handshake agreed on.
//!
//! All of it is read from the executable's own type descriptors ([`crate::rtype`]), which say what
//! DWARF would say, but are in stripped executables too and cost next to nothing to read. So it
//! holds for development versions and for forks of Go.
//!
//! The dynamic type of a `net.Conn` is not known before the program runs. Therefore the plan lists the
//! types that can be followed, by the address of their descriptors: the kinds of sockets, and structs
//! that hold exactly one `net.Conn`, as `tls.Conn` itself does. Anything else is not guessed at.

use crate::rtype::{Field, Kind, Types};
use crate::{Error, Vaddr};

/// Fields of `crypto/tls.Conn`, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsConnLayout {
    /// `conn net.Conn`: two words, the itab and the data.
    pub conn: u32,
    /// `isClient bool`
    pub is_client: u32,
    /// `isHandshakeComplete atomic.Bool` (Go 1.21 and newer), `handshakeStatus uint32` (Go 1.12 to
    /// 1.20) or `handshakeComplete bool`: the first byte is 1 once the handshake is complete.
    pub handshake: u32,
    /// `vers uint16`
    pub version: u32,
    /// `cipherSuite uint16`
    pub cipher_suite: u32,
    /// `didResume bool`
    pub resumed: u32,
    /// `serverName string`
    pub server_name: u32,
    /// `clientProtocol string`: what ALPN selected.
    pub protocol: u32,
}

/// Where the socket below a `net.TCPConn` or a `net.UnixConn` keeps what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketLayout {
    /// The pointer `fd *netFD` of `net.TCPConn` and `net.UnixConn`.
    pub fd: u32,
    /// `pfd.Sysfd int` of `net.netFD`
    pub descriptor: u32,
    /// `laddr net.Addr` of `net.netFD`: two words.
    pub local: u32,
    /// `raddr net.Addr` of `net.netFD`: two words.
    pub remote: u32,
}

/// Fields of `net.TCPAddr`, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpAddrLayout {
    /// `IP []byte`: 4 or 16 of them.
    pub ip: u32,
    /// `Port int`
    pub port: u32,
    /// `Zone string`
    pub zone: u32,
}

/// A type that the value of an interface can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicType {
    /// The address of its descriptor as linked: what an itab points at.
    pub descriptor: Vaddr,
    /// Its name, such as `*tls.Conn`. From an untrusted file: escape before printing.
    pub name: String,
    /// What it is good for.
    pub role: TypeRole,
}

/// What is found behind the data word of an interface whose value has a certain type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TypeRole {
    /// A `net.TCPConn`.
    TcpConn,
    /// A `net.UnixConn`.
    UnixConn,
    /// A `net.TCPAddr`.
    TcpAddr,
    /// A `net.UnixAddr`.
    UnixAddr,
    /// A struct whose only `net.Conn` is so many bytes from its start.
    Wrapper(u32),
}

/// How to find out about a connection, from the address of its `tls.Conn`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionPlan {
    /// `tls.Conn`
    pub tls_conn: TlsConnLayout,
    /// What is below the sockets' types.
    pub socket: SocketLayout,
    /// `net.TCPAddr`
    pub tcp_addr: TcpAddrLayout,
    /// `Name string` of `net.UnixAddr`; `None` in programs without Unix sockets.
    pub unix_name: Option<u32>,
    /// All types that can be followed, at most [`ConnectionPlan::TYPES_MAX`].
    pub types: Vec<DynamicType>,
}

/// The methods that tell a `net.Conn`: an interface with these holds one, under whatever name.
const NET_CONN_METHODS: [&str; 5] = ["Close", "LocalAddr", "Read", "RemoteAddr", "Write"];

/// How deep structs inside of structs are looked into.
const NESTED_MAX: usize = 8;
/// How many fields a struct that is looked into may have in all.
const FIELDS_MAX: usize = 4096;

impl ConnectionPlan {
    /// How many types a plan lists at most. Programs of a hundred megabytes have a few dozen.
    pub const TYPES_MAX: usize = 256;

    /// Reads it from the type descriptors, for the TLS package with this import path.
    pub(crate) fn read(types: &Types<'_>, package: &str) -> Result<Self, Error> {
        let problem = |missing: &'static str| Error::NoConnections { missing };
        let tls_conn = types
            .find_struct(package, "Conn")
            .ok_or(problem("the TLS package's Conn"))?;
        let layout = tls_conn_layout(types, tls_conn).ok_or(problem("a field of tls.Conn"))?;
        let net_conn = types
            .field(tls_conn, "conn")
            .map(|field| field.of_type)
            .filter(|&at| types.kind(at) == Kind::Interface && types.is(at, "net", "Conn"))
            .ok_or(problem("net.Conn"))?;
        let net = |name| types.find_struct("net", name);
        let tcp_conn = net("TCPConn").ok_or(problem("net.TCPConn"))?;
        let tcp_addr = net("TCPAddr").ok_or(problem("net.TCPAddr"))?;
        let (unix_conn, unix_addr) = (net("UnixConn"), net("UnixAddr"));
        let socket = socket_layout(types, tcp_conn).ok_or(problem("a field of net.netFD"))?;

        let mut plan = Self {
            tls_conn: layout,
            socket,
            tcp_addr: tcp_addr_layout(types, tcp_addr).ok_or(problem("a field of net.TCPAddr"))?,
            unix_name: unix_addr.and_then(|at| offset(types.field(at, "Name")?)),
            types: Vec::new(),
        };
        let unix_conn = unix_conn.filter(|&at| socket_layout(types, at) == Some(socket));
        let with_name = unix_addr.filter(|_| plan.unix_name.is_some());
        for (at, role) in [
            (Some(tcp_conn), TypeRole::TcpConn),
            (unix_conn, TypeRole::UnixConn),
            (Some(tcp_addr), TypeRole::TcpAddr),
            (with_name, TypeRole::UnixAddr),
        ] {
            plan.add_pointers(types, at, role);
        }
        let sockets = Sockets {
            net_conn,
            concrete: [Some(tcp_conn), unix_conn],
        };
        // The TLS connection's own first, in case that there are too many.
        for at in std::iter::once(tls_conn).chain(types.structs().filter(|&at| at != tls_conn)) {
            plan.add_wrapper(types, at, &sockets);
        }
        Ok(plan)
    }

    /// The structs that are followed to the `net.Conn` that they hold.
    pub fn wrappers(&self) -> impl Iterator<Item = &DynamicType> {
        self.types
            .iter()
            .filter(|listed| matches!(listed.role, TypeRole::Wrapper(_)))
    }

    fn add_pointers(&mut self, types: &Types<'_>, at: Option<Vaddr>, role: TypeRole) {
        for &pointer in at.map_or(&[][..], |at| types.pointers_to(at)) {
            self.add(types, pointer, role);
        }
    }

    /// The struct, if it is a net.Conn that holds exactly one. A value of it in an interface lies in
    /// memory of its own like one that is pointed to: it is larger than a word.
    fn add_wrapper(&mut self, types: &Types<'_>, at: Vaddr, sockets: &Sockets) {
        let mut search = Search::default();
        search.fields(types, at, 0, 0, sockets);
        let Some(role) = search.only().map(TypeRole::Wrapper) else {
            return;
        };
        for candidate in std::iter::once(&at).chain(types.pointers_to(at)) {
            if types.has_methods(*candidate, &NET_CONN_METHODS) {
                self.add(types, *candidate, role);
            }
        }
    }

    fn add(&mut self, types: &Types<'_>, descriptor: Vaddr, role: TypeRole) {
        let Some(name) = types.name(descriptor) else {
            return;
        };
        if self.types.len() < Self::TYPES_MAX {
            self.types.push(DynamicType {
                descriptor,
                name: String::from_utf8_lossy(name).into_owned(),
                role,
            });
        }
    }
}

/// `g.goid`, in bytes from the start of `runtime.g`.
pub(crate) fn goroutine_id(types: &Types<'_>) -> Option<u32> {
    let g = types.find_struct("runtime", "g")?;
    offset(types.field(g, "goid")?)
}

fn tls_conn_layout(types: &Types<'_>, at: Vaddr) -> Option<TlsConnLayout> {
    let field = |name| offset(types.field(at, name)?);
    Some(TlsConnLayout {
        conn: field("conn")?,
        is_client: field("isClient")?,
        handshake: field("isHandshakeComplete")
            .or_else(|| field("handshakeStatus"))
            .or_else(|| field("handshakeComplete"))?,
        version: field("vers")?,
        cipher_suite: field("cipherSuite")?,
        resumed: field("didResume")?,
        server_name: field("serverName")?,
        protocol: field("clientProtocol")?,
    })
}

/// From `net.TCPConn` or `net.UnixConn`, which have nothing but the embedded `net.conn`, which has
/// nothing but a pointer to a `net.netFD`.
fn socket_layout(types: &Types<'_>, at: Vaddr) -> Option<SocketLayout> {
    let conn = types.field(at, "conn")?;
    let fd = types.field(conn.of_type, "fd")?;
    let net_fd = types
        .element(fd.of_type)
        .filter(|&at| types.is(at, "net", "netFD"))?;
    let pfd = types.field(net_fd, "pfd")?;
    let descriptor = types.field(pfd.of_type, "Sysfd")?;
    Some(SocketLayout {
        fd: offset(conn)?.checked_add(offset(fd)?)?,
        descriptor: offset(pfd)?.checked_add(offset(descriptor)?)?,
        local: offset(types.field(net_fd, "laddr")?)?,
        remote: offset(types.field(net_fd, "raddr")?)?,
    })
}

fn tcp_addr_layout(types: &Types<'_>, at: Vaddr) -> Option<TcpAddrLayout> {
    let field = |name| offset(types.field(at, name)?);
    Some(TcpAddrLayout {
        ip: field("IP")?,
        port: field("Port")?,
        zone: field("Zone")?,
    })
}

/// A field's offset; no struct that we look at has more than a megabyte.
fn offset(field: Field<'_>) -> Option<u32> {
    u32::try_from(field.offset).ok().filter(|&at| at < 1 << 20)
}

/// The types that a connection can be behind.
struct Sockets {
    net_conn: Vaddr,
    concrete: [Option<Vaddr>; 2],
}

/// The search for the `net.Conn` that a struct holds.
#[derive(Default)]
struct Search {
    found: Vec<u32>,
    /// There are other fields which may hold a connection, so nobody knows which one it is about.
    ambiguous: bool,
    fields: usize,
}

impl Search {
    /// The offset of the one `net.Conn` there is.
    fn only(&self) -> Option<u32> {
        match self.found[..] {
            [only] if !self.ambiguous => Some(only),
            _ => None,
        }
    }

    /// Looks at all fields, and at those of structs that are fields.
    fn fields(&mut self, types: &Types<'_>, at: Vaddr, base: u32, depth: usize, sockets: &Sockets) {
        for field in types.fields(at) {
            self.fields += 1;
            let place = offset(field).and_then(|place| place.checked_add(base));
            let (Some(place), true) = (place, depth < NESTED_MAX && self.fields < FIELDS_MAX)
            else {
                self.ambiguous = true;
                return;
            };
            if field.of_type == sockets.net_conn {
                self.found.push(place);
            } else if types.kind(field.of_type) == Kind::Struct {
                self.fields(types, field.of_type, place, depth + 1, sockets);
            } else if leads_to_connection(types, field.of_type, sockets) {
                self.ambiguous = true;
            }
        }
    }
}

/// Whether a field of this type can be, or hold, a connection other than by way of a struct that is none
/// itself.
fn leads_to_connection(types: &Types<'_>, mut at: Vaddr, sockets: &Sockets) -> bool {
    for _ in 0..NESTED_MAX {
        if at == sockets.net_conn || sockets.concrete.contains(&Some(at)) {
            return true;
        }
        // Something to read from and write to that is no net.Conn can have a connection of its own.
        if types.kind(at) == Kind::Interface {
            return types.has_methods(at, &["Read", "Write"]);
        }
        if types.has_methods(at, &NET_CONN_METHODS) {
            return true;
        }
        match types.element(at) {
            Some(element) => at = element,
            None => return false,
        }
    }
    true
}
