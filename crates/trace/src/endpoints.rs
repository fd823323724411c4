//! The addresses that plaintext gets as packets.

use std::net::{Ipv4Addr, SocketAddr};

use events::Address;

/// The beginning of an HTTP/2 connection (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// TCP ports on which Wireshark expects HTTP unless it is told otherwise (4.0, http.tcp.port). On any
/// other it recognises HTTP/1, but not HTTP/2.
const HTTP_PORTS: [u16; 10] = [80, 1900, 2710, 2869, 3128, 3132, 5985, 8080, 8088, 11371];

/// What Wireshark takes for HTTP.
const HTTP_PORT: u16 = 80;

/// The addresses of a connection's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoints {
    local: SocketAddr,
    remote: SocketAddr,
    /// Whether the addresses are not the connection's own.
    made_up: bool,
}

/// The addresses of a connection in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FourTuple {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

impl FourTuple {
    /// As the other end sees it.
    pub(crate) fn reversed(&self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
        }
    }
}

impl Endpoints {
    /// The connection's own addresses, if both are those of TCP sockets of one family.
    pub(crate) fn known(local: Option<&Address<'_>>, remote: Option<&Address<'_>>) -> Option<Self> {
        let socket = |address: &Address<'_>| match *address {
            Address::Tcp { ip, port, .. } => Some(SocketAddr::new(ip, port)),
            Address::Unix(_) => None,
        };
        let (local, remote) = (socket(local?)?, socket(remote?)?);
        (local.is_ipv4() == remote.is_ipv4()).then_some(Self {
            local,
            remote,
            made_up: false,
        })
    }

    /// For a connection whose addresses are not known: a client in 198.18.0.0/16 and a server at port 80 in
    /// 198.19.0.0/16, which no network uses (RFC 2544). They are the connection's alone: number 1 gets
    /// 198.18.0.1 and 198.19.0.1.
    pub(crate) fn made_up(number: u64, local_serves: bool) -> Self {
        let [.., turn_high, turn_low, high, low] = number.to_be_bytes();
        // From 1024 on, another one whenever all addresses have been used.
        let port = u16::from_be_bytes([turn_high, turn_low]) % (u16::MAX - 1024) + 1024;
        let client = SocketAddr::from((Ipv4Addr::new(198, 18, high, low), port));
        let server = SocketAddr::from((Ipv4Addr::new(198, 19, high, low), HTTP_PORT));
        let (local, remote) = if local_serves {
            (server, client)
        } else {
            (client, server)
        };
        Self {
            local,
            remote,
            made_up: true,
        }
    }

    /// The addresses in the file. Wireshark recognises HTTP/2 at [`HTTP_PORTS`] only: if the server has
    /// another one, it gets port 80.
    pub(crate) fn four_tuple(&self, local_serves: bool, http2: bool) -> FourTuple {
        let (mut local, mut remote) = (self.local, self.remote);
        let server = if local_serves {
            &mut local
        } else {
            &mut remote
        };
        if http2 && !HTTP_PORTS.contains(&server.port()) {
            server.set_port(HTTP_PORT);
        }
        FourTuple { local, remote }
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        if self.made_up {
            return "whose addresses are not known, so these are made up".into();
        }
        format!("local {} remote {}", self.local, self.remote)
    }
}

/// Whether these are the first bytes of an HTTP/2 connection, of either end.
pub(crate) fn begins_like_http2(bytes: &[u8]) -> bool {
    is_http2_preface(bytes) || is_http2_settings(bytes)
}

/// Whether the end that sends these bytes first of all is the server. In most protocols the client begins;
/// servers of HTTP/2 don't wait for it.
pub(crate) fn first_sender_serves(bytes: &[u8]) -> bool {
    is_http2_settings(bytes)
}

fn is_http2_preface(bytes: &[u8]) -> bool {
    // Three bytes are enough: no method begins like it.
    bytes.len() >= 3 && HTTP2_PREFACE.starts_with(&bytes[..bytes.len().min(HTTP2_PREFACE.len())])
}

/// A SETTINGS frame (RFC 9113 section 6.5): a multiple of 6 bytes, type 4, no flags, stream 0.
fn is_http2_settings(bytes: &[u8]) -> bool {
    matches!(bytes, [0, 0, length, 4, 0, 0, 0, 0, 0, ..] if length % 6 == 0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn made_up_addresses_are_a_connections_own() {
        let mut seen = HashSet::new();
        for number in (1..200_000).chain([1 << 31]) {
            let tuple = Endpoints::made_up(number, false).four_tuple(false, true);
            assert_eq!(tuple.remote.port(), 80);
            assert!(seen.insert(tuple), "{number}");
            let served = Endpoints::made_up(number, true).four_tuple(true, true);
            assert_eq!(served, tuple.reversed());
        }
    }

    #[test]
    fn only_http2_loses_its_port_and_only_where_wireshark_would_not_know_it() {
        let tcp = |ip: &str, port| Address::Tcp {
            ip: ip.parse().unwrap(),
            port,
            zone: b"",
        };
        let port = |server: u16, http2| {
            let (server, client) = (tcp("192.0.2.1", server), tcp("192.0.2.2", 1000));
            let endpoints = Endpoints::known(Some(&client), Some(&server)).unwrap();
            endpoints.four_tuple(false, http2).remote.port()
        };
        assert_eq!((port(8443, false), port(8443, true)), (8443, 80));
        assert_eq!((port(443, false), port(443, true)), (443, 80));
        assert_eq!((port(8080, false), port(8080, true)), (8080, 8080));
        let unix = Address::Unix(b"@a");
        assert_eq!(Endpoints::known(Some(&unix), Some(&unix)), None);
        assert_eq!(Endpoints::known(None, Some(&tcp("::1", 1))), None);
        assert_eq!(
            Endpoints::known(Some(&tcp("127.0.0.1", 2)), Some(&tcp("::1", 1))),
            None
        );
    }

    #[test]
    fn http2_is_recognised_from_either_end() {
        assert!(begins_like_http2(HTTP2_PREFACE));
        assert!(begins_like_http2(b"PRI * HT"));
        assert!(!begins_like_http2(b"PR"));
        assert!(!begins_like_http2(b"PROPFIND / HTTP/1.1\r\n"));
        let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 250];
        assert!(begins_like_http2(&settings) && first_sender_serves(&settings));
        assert!(!first_sender_serves(HTTP2_PREFACE));
        assert!(!begins_like_http2(&[0, 0, 5, 4, 0, 0, 0, 0, 0]));
    }
}
