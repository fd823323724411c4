//! Addresses as Go's `net.Addr` writes them.

use std::borrow::Cow;
use std::net::IpAddr;

use events::Address;

/// `127.0.0.1:443`, `[fe80::1%eth0]:443`, or the name of a Unix socket. The zone and the name are not
/// necessarily text.
pub(crate) fn address_text<'a>(address: &Address<'a>) -> Cow<'a, [u8]> {
    match *address {
        Address::Unix(name) => Cow::Borrowed(name),
        Address::Tcp {
            ip: IpAddr::V6(ip),
            port,
            zone,
        } => {
            let mut text = format!("[{ip}").into_bytes();
            if !zone.is_empty() {
                text.push(b'%');
                text.extend_from_slice(zone);
            }
            text.extend_from_slice(format!("]:{port}").as_bytes());
            Cow::Owned(text)
        }
        Address::Tcp { ip, port, .. } => Cow::Owned(format!("{ip}:{port}").into_bytes()),
    }
}

/// As Go's `net` calls it: `tcp` or `unix`.
pub(crate) fn network(address: &Address<'_>) -> &'static str {
    match address {
        Address::Tcp { .. } => "tcp",
        Address::Unix(_) => "unix",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(ip: &str, port: u16, zone: &'static str) -> String {
        let address = Address::Tcp {
            ip: ip.parse().unwrap(),
            port,
            zone: zone.as_bytes(),
        };
        String::from_utf8(address_text(&address).into_owned()).unwrap()
    }

    #[test]
    fn addresses_are_written_as_go_does() {
        assert_eq!(tcp("10.1.2.3", 443, ""), "10.1.2.3:443");
        assert_eq!(tcp("2001:db8::1", 8443, ""), "[2001:db8::1]:8443");
        assert_eq!(tcp("fe80::1", 1, "eth0"), "[fe80::1%eth0]:1");
        let unix = Address::Unix(b"@abstract");
        assert_eq!(&*address_text(&unix), b"@abstract");
        assert_eq!(network(&unix), "unix");
    }
}
