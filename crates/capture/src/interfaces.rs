//! Network interfaces: which there are, and what their packets begin with.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::{Error, network_namespace};

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
    let found = list().map_err(|reason| Error::System {
        what: "listing the network interfaces",
        reason,
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

/// By if_nameindex(3) and the requests of netdevice(7). (getifaddrs(3) would be one call, but says
/// nothing of interfaces that have no hardware address.)
fn list() -> io::Result<Vec<Found>> {
    let socket = network_namespace::local_socket()?;
    let mut found: Vec<_> = names()?
        .into_iter()
        // One that has gone meanwhile is left out.
        .filter_map(|(ifindex, name)| look_up(&socket, ifindex, name).ok())
        .collect();
    found.sort_by_key(|interface| interface.ifindex);
    Ok(found)
}

fn names() -> io::Result<Vec<(u32, CString)>> {
    // SAFETY: Nothing goes in.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut names = Vec::new();
    let mut next = list;
    loop {
        // SAFETY: The list goes on until an entry with index 0.
        let entry = unsafe { &*next };
        if entry.if_index == 0 {
            break;
        }
        // SAFETY: A C string that belongs to the entry.
        let name = unsafe { CStr::from_ptr(entry.if_name) };
        names.push((entry.if_index, name.to_owned()));
        // SAFETY: This was not the last one.
        next = unsafe { next.add(1) };
    }
    // SAFETY: Made by if_nameindex, and not used any more.
    unsafe { libc::if_freenameindex(list) };
    Ok(names)
}

fn look_up(socket: &OwnedFd, ifindex: u32, name: CString) -> io::Result<Found> {
    let ask = |what: libc::Ioctl| {
        // SAFETY: Zeros are a valid struct ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, &from) in request.ifr_name.iter_mut().zip(name.as_bytes_with_nul()) {
            *to = from as libc::c_char;
        }
        // SAFETY: The kernel reads and fills in the structure.
        match unsafe { libc::ioctl(socket.as_raw_fd(), what, &mut request) } {
            0 => Ok(request.ifr_ifru),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: This request fills in this member of the union.
    let flags = i32::from(unsafe { ask(libc::SIOCGIFFLAGS)?.ifru_flags });
    // SAFETY: And this one this member.
    let hardware = unsafe { ask(libc::SIOCGIFHWADDR)?.ifru_hwaddr.sa_family };
    Ok(Found {
        name: name.to_string_lossy().into_owned(),
        ifindex,
        hardware,
        up: flags & libc::IFF_UP != 0,
        loopback: flags & libc::IFF_LOOPBACK != 0,
    })
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
