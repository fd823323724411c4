//! Network interfaces: which there are, and what their packets begin with.

use std::ffi::CStr;
use std::io;

use crate::Error;

/// What the packets of an interface begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkType {
    /// An Ethernet header.
    Ethernet,
    /// An IPv4 or IPv6 header: tun, WireGuard, IP tunnels, PPP.
    RawIp,
}

impl LinkType {
    /// Its number in pcap and pcapng files (the list of LINKTYPE_ values at tcpdump.org).
    pub fn number(self) -> u16 {
        match self {
            Self::Ethernet => 1,
            Self::RawIp => 101,
        }
    }

    /// What libpcap calls it on Linux: the DLT_ number differs for raw IP.
    pub(crate) fn dlt(self) -> i32 {
        match self {
            Self::Ethernet => 1,
            Self::RawIp => 12,
        }
    }

    /// From the kernel's hardware type (include/uapi/linux/if_arp.h).
    fn from_hardware(hardware: u16) -> Option<Self> {
        const ETHER: u16 = 1;
        const PPP: u16 = 512; // Its own header is added behind the hook.
        const RAWIP: u16 = 519;
        const TUNNEL: u16 = 768;
        const TUNNEL6: u16 = 769;
        const LOOPBACK: u16 = 772;
        const SIT: u16 = 776;
        const NONE: u16 = 0xFFFE;

        match hardware {
            ETHER | LOOPBACK => Some(Self::Ethernet),
            PPP | RAWIP | TUNNEL | TUNNEL6 | SIT | NONE => Some(Self::RawIp),
            _ => None,
        }
    }
}

/// Which interfaces to capture on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum InterfaceSelection {
    /// Every one that is up, and whose link type we know.
    #[default]
    All,
    /// These. Each has to be there; it need not be up yet. The name `any` stands for all.
    Named(Vec<String>),
}

/// An interface whose packets are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name when the capture began.
    pub name: String,
    /// The kernel's number for it, unique in its network namespace.
    pub ifindex: u32,
    /// What its packets begin with.
    pub link_type: LinkType,
    /// Whether it is `lo`, of which each packet is captured once, as inbound.
    pub loopback: bool,
    /// The filter expression, if there is one.
    pub filter: Option<String>,
}

/// An interface, as the kernel lists it.
#[derive(Clone, Debug)]
struct Found {
    name: String,
    ifindex: u32,
    hardware: u16,
    up: bool,
    loopback: bool,
}

/// The interfaces of the calling thread's network namespace that are selected, and the names of those
/// that are left out because their link type is not known.
pub(crate) fn select(
    selection: &InterfaceSelection,
    filter: Option<&str>,
) -> Result<(Vec<Interface>, Vec<String>), Error> {
    let found = list().map_err(|source| Error::System {
        what: "listing the network interfaces",
        source,
    })?;
    let named = match selection {
        InterfaceSelection::Named(names) if !names.iter().any(|name| name == "any") => Some(names),
        _ => None,
    };
    let mut selected = Vec::new();
    let mut left_out = Vec::new();
    let mut add = |interface: &Found| match LinkType::from_hardware(interface.hardware) {
        Some(link_type) => {
            selected.push(Interface {
                name: interface.name.clone(),
                ifindex: interface.ifindex,
                link_type,
                loopback: interface.loopback,
                filter: filter.map(str::to_owned),
            });
            true
        }
        None => false,
    };
    match named {
        None => {
            for interface in found.iter().filter(|interface| interface.up) {
                if !add(interface) {
                    left_out.push(interface.name.clone());
                }
            }
        }
        Some(names) => {
            for (position, name) in names.iter().enumerate() {
                if names[..position].contains(name) {
                    continue;
                }
                let Some(interface) = found.iter().find(|interface| interface.name == *name) else {
                    let names: Vec<_> = found.iter().map(|other| other.name.as_str()).collect();
                    return Err(Error::NoSuchInterface {
                        name: name.clone(),
                        existing: names.join(", "),
                    });
                };
                if !add(interface) {
                    return Err(Error::UnknownLinkType {
                        name: name.clone(),
                        hardware: interface.hardware,
                    });
                }
            }
        }
    }
    if selected.is_empty() {
        let names: Vec<_> = found.iter().map(|other| other.name.as_str()).collect();
        return Err(Error::NoInterface {
            existing: names.join(", "),
        });
    }
    Ok((selected, left_out))
}

/// The numbers of all interfaces of the calling thread's network namespace.
pub(crate) fn all_indices() -> io::Result<Vec<u32>> {
    Ok(list()?.iter().map(|interface| interface.ifindex).collect())
}

/// getifaddrs(3) lists each interface once with an address of family AF_PACKET, in which the kernel's
/// number and hardware type stand.
fn list() -> io::Result<Vec<Found>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: The pointer to the list goes to a variable of ours.
    if unsafe { libc::getifaddrs(&mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = first;
    while !next.is_null() {
        // SAFETY: An entry of the list, which is freed below.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        if entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: Every address begins with its family.
        if i32::from(unsafe { (*entry.ifa_addr).sa_family }) != libc::AF_PACKET {
            continue;
        }
        // SAFETY: Addresses of this family have this form; libc allocates them aligned for all.
        let address = unsafe { &*entry.ifa_addr.cast::<libc::sockaddr_ll>() };
        // SAFETY: A C string in the entry.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) };
        found.push(Found {
            name: name.to_string_lossy().into_owned(),
            ifindex: address.sll_ifindex.cast_unsigned(),
            hardware: address.sll_hatype,
            up: entry.ifa_flags & libc::IFF_UP.cast_unsigned() != 0,
            loopback: entry.ifa_flags & libc::IFF_LOOPBACK.cast_unsigned() != 0,
        });
    }
    // SAFETY: Made by getifaddrs, and no entry of it is used any more.
    unsafe { libc::freeifaddrs(first) };
    found.sort_by_key(|interface| interface.ifindex);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_there_and_ethernet() {
        let named = InterfaceSelection::Named(vec!["lo".into(), "lo".into()]);
        let (interfaces, _) = select(&named, Some("tcp")).unwrap();
        assert_eq!(interfaces.len(), 1);
        assert!(interfaces[0].loopback);
        assert_eq!(interfaces[0].link_type, LinkType::Ethernet);
        assert_eq!(interfaces[0].filter.as_deref(), Some("tcp"));
    }

    #[test]
    fn interface_that_is_not_there_is_answered_with_those_that_are() {
        let named = InterfaceSelection::Named(vec!["nosuch0".into()]);
        let error = select(&named, None).unwrap_err();
        assert!(error.is_wrong_input());
        let message = error.to_string();
        assert!(
            message.contains("nosuch0") && message.contains("lo"),
            "{message}"
        );
    }

    #[test]
    fn any_stands_for_all() {
        let any = InterfaceSelection::Named(vec!["lo".into(), "any".into()]);
        assert_eq!(
            select(&any, None).unwrap(),
            select(&InterfaceSelection::All, None).unwrap()
        );
    }
}
