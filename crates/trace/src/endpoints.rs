//! The addresses that plaintext gets as packets.

use std::net::{Ipv4Addr, SocketAddr};

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
    /// Whether the program accepted the connection.
    local_serves: bool,
    /// Whether the addresses are not the connection's own.
    made_up: bool,
}

/// The addresses of a connection in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FourTuple {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

impl Endpoints {
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
            local_serves,
            made_up: true,
        }
    }

    /// The addresses in the file. Wireshark would not recognise HTTP/2 at any port: there, the server's is 80.
    pub(crate) fn four_tuple(&self, http2: bool) -> FourTuple {
        let (mut local, mut remote) = (self.local, self.remote);
        let server = if self.local_serves {
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
            return "its addresses are not known, these are made up".into();
        }
        format!("from {} to {}", self.local, self.remote)
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
