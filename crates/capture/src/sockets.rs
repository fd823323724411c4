//! The sockets that target processes had before we came, or inherited: each is taken over for a
//! moment with pidfd_getfd(2), to write its owner into its local storage.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};
use memmap2::MmapRaw;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketType, ipproto, sockopt};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use rustix::thread::CapabilitySet;

use crate::packet_skeleton::types;
use crate::{Error, Process, privileges};

/// The maps of the packet programs that say who owns what.
#[derive(Debug)]
pub(crate) struct Ownership {
    pub(crate) targets: MapHandle,
    pub(crate) owners: MapHandle,
    /// Whether everybody's sockets are to be known, not only those of targets.
    pub(crate) of_all: bool,
    pub(crate) multipath_listeners: MapHandle,
    /// The programs' .bss.
    pub(crate) variables: MmapRaw,
}

impl Ownership {
    /// What it takes to look after the sockets of processes, be they another user's: to list them
    /// (`/proc/PID/fd` is its owner's), to take them over, and to enter their owner.
    pub(crate) fn privileges() -> CapabilitySet {
        CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH | privileges::for_maps()
    }

    /// Enters an owner for a socket of ours, which is closed at once: the programs can't tell if the kernel
    /// has no memory for owners, as Linux 7.2 on processors without cmpxchg16b, and packets would be missing.
    pub(crate) fn try_out(&self) -> Result<(), Error> {
        let socket = match net::socket(AddressFamily::INET, SocketType::DGRAM, None) {
            Ok(socket) => socket,
            Err(Errno::AFNOSUPPORT) => return Ok(()), // IPv6 alone
            Err(errno) => {
                return Err(Error::System {
                    what: "making a socket",
                    reason: errno.into(),
                });
            }
        };
        self.adopt(&socket, &types::packet_process::default())
            .map(drop)
    }

    /// Makes a process a target: the sockets that it makes from now on are its own.
    pub(crate) fn add_target(&self, pid: u32) -> Result<(), Error> {
        self.targets
            .update(&pid.to_ne_bytes(), &[1], MapFlags::ANY)
            .map_err(|error| Error::System {
                what: "entering a target process",
                reason: io::Error::other(error),
            })
    }

    /// Whether the sockets of the process that has this pid now are to be known. It may have begun to execute
    /// another program, or have ended.
    fn is_wanted(&self, pid: u32) -> bool {
        let found = || self.targets.lookup(&pid.to_ne_bytes(), MapFlags::ANY);
        self.of_all || found().is_ok_and(|found| found.is_some())
    }

    /// Enters the process as the owner of its sockets while it is a target, and returns of how many it was not
    /// known.
    pub(crate) fn adopt_sockets(&self, process: &Process) -> Result<usize, Error> {
        let pid = process.pid();
        if !self.is_wanted(pid) {
            return Ok(0);
        }
        let failed_without = |missing: &'static str, what: &'static str| {
            move |reason: io::Error| match reason.kind() {
                io::ErrorKind::NotFound => Error::NoSuchProcess { pid },
                io::ErrorKind::PermissionDenied => Error::MissingCapabilities {
                    what: "take over the sockets that a process has",
                    missing: missing.into(),
                },
                _ => Error::Process { pid, what, reason },
            }
        };
        let failed = |what| failed_without("CAP_SYS_PTRACE", what);
        // The directory is its owner's alone.
        let not_listed = || failed_without("CAP_DAC_READ_SEARCH", "listing its sockets");
        let mut owner = types::packet_process {
            pid,
            ..Default::default()
        };
        let comm = fs::read(format!("/proc/{pid}/comm")).map_err(failed("reading its name"))?;
        let comm = comm.strip_suffix(b"\n").unwrap_or(&comm);
        let length = comm.len().min(owner.comm.len() - 1);
        owner.comm[..length].copy_from_slice(&comm[..length]);

        let mut adopted = 0;
        let directory = format!("/proc/{pid}/fd");
        for entry in fs::read_dir(&directory).map_err(not_listed())? {
            let entry = entry.map_err(not_listed())?;
            // It may be closed by now.
            let Ok(link) = fs::read_link(entry.path()) else {
                continue;
            };
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let (true, Some(number)) = (
                link.as_os_str().as_encoded_bytes().starts_with(b"socket:"),
                number,
            ) else {
                continue;
            };
            let socket = match pidfd_getfd(process, number, PidfdGetfdFlags::empty()) {
                Ok(socket) => socket,
                Err(Errno::BADF) => continue,
                Err(Errno::SRCH) => return Err(Error::NoSuchProcess { pid }),
                Err(errno) => return Err(failed("taking over its sockets")(errno.into())),
            };
            // If it is, no other program can have opened this socket.
            if !self.is_wanted(pid) {
                break;
            }
            if self.adopt(&socket, &owner)? {
                adopted += 1;
            }
        }
        Ok(adopted)
    }

    /// Whether the socket had no owner before.
    fn adopt(&self, socket: &OwnedFd, owner: &types::packet_process) -> Result<bool, Error> {
        let family = sockopt::socket_domain(socket);
        if !matches!(family, Ok(AddressFamily::INET | AddressFamily::INET6)) {
            return Ok(false);
        }
        let owner = owner_bytes(owner);
        let key = socket.as_raw_fd().to_ne_bytes();
        let new = match self.owners.update(&key, &owner, MapFlags::NO_EXIST) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => {
                return Err(Error::System {
                    what: "entering the owner of a socket",
                    reason: io::Error::other(error),
                });
            }
        };
        self.adopt_multipath_listener(socket, &owner);
        Ok(new)
    }

    /// The packets of a multipath TCP socket are those of TCP sockets inside of it. For a listener
    /// the programs can find these by its address.
    fn adopt_multipath_listener(&self, socket: &OwnedFd, owner: &[u8]) {
        let multipath = sockopt::socket_protocol(socket) == Ok(Some(ipproto::MPTCP));
        if !multipath || !sockopt::socket_acceptconn(socket).unwrap_or(false) {
            return;
        }
        let Ok(Ok(address)) = rustix::net::getsockname(socket).map(SocketAddr::try_from) else {
            return;
        };
        let mut keys = vec![listener_key(address.ip(), address.port())];
        let any_version = matches!(address.ip(), IpAddr::V6(ip) if ip.is_unspecified())
            && !sockopt::ipv6_v6only(socket).unwrap_or(true);
        if any_version {
            let any = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
            keys.push(listener_key(any, address.port()));
        }
        for key in keys {
            // If there are thousands of them, the rest goes without.
            let _ = self.multipath_listeners.update(&key, owner, MapFlags::ANY);
        }
        let offset = std::mem::offset_of!(types::bss, has_multipath_listeners);
        // SAFETY: An aligned 32-bit field in the mapped .bss, which the programs only read.
        unsafe { AtomicU32::from_ptr(self.variables.as_mut_ptr().add(offset).cast()) }
            .store(1, Ordering::Relaxed);
    }
}

fn owner_bytes(owner: &types::packet_process) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&owner.pid.to_ne_bytes());
    bytes[4..].copy_from_slice(&owner.comm);
    bytes
}

/// `struct listener_key`
fn listener_key(address: IpAddr, port: u16) -> [u8; 20] {
    const _: () = assert!(size_of::<types::listener_key>() == 20);

    let mut key = [0; 20];
    let version = match address.to_canonical() {
        IpAddr::V4(ip) => {
            key[..4].copy_from_slice(&ip.octets());
            4
        }
        IpAddr::V6(ip) => {
            key[..16].copy_from_slice(&ip.octets());
            6
        }
    };
    key[16..18].copy_from_slice(&port.to_be_bytes());
    key[18] = version;
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listener_keys_hold_addresses_as_packets_do() {
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        let key = listener_key(mapped, 443);
        assert_eq!(key[..5], [192, 0, 2, 1, 0]);
        assert_eq!(key[16..], [1, 187, 4, 0]);
    }
}
