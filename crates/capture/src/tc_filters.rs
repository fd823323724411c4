//! The filters at an interface's clsact hooks, listed by netlink (rtnetlink(7), RTM_GETTFILTER;
//! include/uapi/linux/rtnetlink.h and pkt_cls.h): ours, and whether there are others.

use std::io;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// A filter at a clsact hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TcFilter {
    pub(crate) handle: u32,
    pub(crate) priority: u32,
    /// Of an eBPF filter: as libbpf sets it, `PROGRAM:[ID]`.
    pub(crate) name: Option<Vec<u8>>,
}

const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
/// struct nlmsghdr, struct tcmsg
const HEADER: usize = 16;
const TCMSG: usize = 20;

/// The filters of the calling thread's network namespace at one parent (TC_H_CLSACT with ingress or
/// egress) of an interface. None, if there is no clsact either.
pub(crate) fn list(ifindex: u32, parent: u32) -> io::Result<Vec<TcFilter>> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // NETLINK_ROUTE is 0
    )?;
    let mut request = Vec::with_capacity(HEADER + TCMSG);
    request.extend(((HEADER + TCMSG) as u32).to_ne_bytes());
    request.extend(RTM_GETTFILTER.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]); // sequence and port
    request.extend([0; 4]); // family
    request.extend(ifindex.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend(parent.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, &request, SendFlags::empty(), &kernel)?;

    let mut filters = Vec::new();
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        let (length, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length.min(64 * 1024)];
        while let Some((kind, body, behind)) = next_message(rest) {
            rest = behind;
            match kind {
                NLMSG_DONE => return Ok(filters),
                NLMSG_ERROR => {
                    let code = word(body, 0).unwrap_or(0).cast_signed();
                    // An interface without qdisc, or one that has just gone.
                    return match Errno::from_raw_os_error(-code) {
                        _ if code == 0 => Ok(filters),
                        Errno::NODEV | Errno::NOENT | Errno::INVAL => Ok(filters),
                        errno => Err(errno.into()),
                    };
                }
                RTM_NEWTFILTER => filters.extend(filter(body)),
                _ => {}
            }
        }
        if length == 0 {
            return Ok(filters);
        }
    }
}

/// Type, body and what follows.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = word(bytes, 0)? as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    let behind = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    Some((kind, body, behind))
}

fn filter(body: &[u8]) -> Option<TcFilter> {
    let handle = word(body, 8)?;
    let priority = word(body, 16)? >> 16;
    // The head of a priority is listed without a handle.
    if handle == 0 {
        return None;
    }
    let name = attribute(body.get(TCMSG..)?, TCA_OPTIONS)
        .and_then(|options| attribute(options, TCA_BPF_NAME))
        .map(|name| name.strip_suffix(b"\0").unwrap_or(name).to_vec());
    Some(TcFilter {
        handle,
        priority,
        name,
    })
}

fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        // The upper bits are flags: nested, network byte order.
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_answers_end_without_a_filter() {
        assert!(next_message(&[0; 15]).is_none());
        assert!(next_message(&[3, 0, 0, 0, 44, 0, 0, 0]).is_none());
        assert_eq!(attribute(&[0, 0, 2, 0], 2), None);
        assert_eq!(attribute(&[8, 0, 2, 0, 1], 2), None);
        assert_eq!(filter(&[1; 19]), None);
    }
}
