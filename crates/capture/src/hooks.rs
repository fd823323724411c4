//! The ingress and egress hooks of interfaces: tcx links where the kernel has them (Linux 6.6), and
//! filters of a clsact qdisc otherwise.
//!
//! A tcx link is gone with its descriptor. A clsact filter stays until somebody removes it, so a
//! process that is killed leaves its own behind. To tell these from the filters of another capture
//! that runs now, each capture takes a slot: an abstract Unix socket, which is there for the network
//! namespace and vanishes with its owner, and a handle of filters. Whoever can take a slot may remove
//! all filters with its handle and our name. Other such sockets say whose turn it is to begin or end, and
//! which qdiscs nobody but captures had asked for: the last capture removes them.
//!
//! We go first at a hook: most programs end the chain for a packet, so whoever comes behind does not
//! see it. Outgoing packets are thus seen even if a later program drops them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use libbpf_rs::libbpf_sys;
use rustix::net::SocketAddrUnix;
use rustix::thread::CapabilitySet;

use crate::error::kernel_release;
use crate::tc_filters::{self, TcFilter};
use crate::translate::Hook;
use crate::{Error, NetworkNamespace, interfaces, libbpf_log, network_namespace};

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// As tcx links.
    Tcx,
    /// As filters of a clsact qdisc.
    Clsact,
}

/// What is attached to the interfaces of a network namespace; removed when dropped.
#[derive(Debug)]
pub(crate) struct Hooks {
    namespace: NetworkNamespace,
    links: Vec<OwnedFd>,
    filters: Vec<Filter>,
    /// Clsact qdiscs that are ours to remove, if nobody else uses them by then.
    qdiscs: Vec<Qdisc>,
    slot: Option<Slot>,
}

/// The clsact qdisc of an interface that we made, or another capture beside which we used it: whichever ends
/// last removes it.
#[derive(Debug)]
struct Qdisc {
    ifindex: u32,
    /// Tells others so; `None` if they can't be told.
    _claim: Option<OwnedFd>,
}

/// A filter of ours.
#[derive(Debug)]
struct Filter {
    ifindex: u32,
    hook: Hook,
    handle: u32,
    priority: u32,
}

/// A handle for filters, and what says that its owner lives.
#[derive(Debug)]
struct Slot {
    handle: u32,
    _socket: OwnedFd,
}

/// Only one capture of a network namespace at a time begins or ends: one that ends must not remove the qdisc
/// that another one has found and not used yet.
#[derive(Debug)]
struct Turn {
    _socket: OwnedFd,
}

/// What to attach where.
#[derive(Debug)]
pub(crate) struct Attachment<'a> {
    pub(crate) ifindex: u32,
    pub(crate) name: &'a str,
    pub(crate) hook: Hook,
    pub(crate) program: BorrowedFd<'a>,
}

impl Hooks {
    /// Attaches everything or nothing. Without `kind`, the kernel decides.
    pub(crate) fn attach(
        namespace: &NetworkNamespace,
        attachments: &[Attachment<'_>],
        kind: Option<HookKind>,
    ) -> Result<Self, Error> {
        let mut hooks = Self {
            namespace: namespace.clone(),
            links: Vec::new(),
            filters: Vec::new(),
            qdiscs: Vec::new(),
            slot: None,
        };
        // An error drops `hooks`, and with it what was attached so far.
        namespace.enter(|| {
            if kind != Some(HookKind::Clsact) {
                match hooks.attach_links(attachments) {
                    Ok(()) => return Ok(()),
                    Err((_, errno)) if kind.is_none() && means_no_tcx(&errno) => {
                        hooks.links.clear();
                    }
                    Err((place, reason)) => return Err(attach_error(place, &reason)),
                }
            }
            hooks.attach_filters(attachments)
        })??;
        Ok(hooks)
    }

    pub(crate) fn kind(&self) -> HookKind {
        if self.slot.is_some() {
            HookKind::Clsact
        } else {
            HookKind::Tcx
        }
    }

    /// What [`Self::detach`] needs: links go with their descriptors, filters have to be removed.
    pub(crate) fn privileges_to_detach(&self) -> CapabilitySet {
        let mut needed = CapabilitySet::empty();
        if self.kind() == HookKind::Clsact {
            needed |= CapabilitySet::NET_ADMIN;
            if !self.namespace.is_ours() {
                needed |= CapabilitySet::SYS_ADMIN; // to enter it
            }
        }
        needed
    }

    /// Takes everything away.
    pub(crate) fn detach(&mut self) {
        self.links.clear();
        if self.filters.is_empty() && self.qdiscs.is_empty() {
            self.slot = None;
            return;
        }
        let filters = std::mem::take(&mut self.filters);
        let qdiscs = std::mem::take(&mut self.qdiscs);
        // If we can't enter the namespace any more, the next capture there removes them.
        let _ = self.namespace.enter(|| {
            let _turn = Turn::take();
            for filter in &filters {
                remove_filter(filter);
            }
            for qdisc in &qdiscs {
                remove_unused_qdisc(qdisc.ifindex);
            }
        });
        self.slot = None;
    }

    fn attach_links(&mut self, attachments: &[Attachment<'_>]) -> Result<(), (String, io::Error)> {
        for attachment in attachments {
            let options = libbpf_sys::bpf_link_create_opts {
                sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
                flags: libbpf_sys::BPF_F_BEFORE, // before all others
                ..Default::default()
            };
            let kind = match attachment.hook {
                Hook::Ingress => libbpf_sys::BPF_TCX_INGRESS,
                Hook::Egress => libbpf_sys::BPF_TCX_EGRESS,
            };
            // SAFETY: The program's descriptor is open, and the options are complete.
            let link = unsafe {
                libbpf_sys::bpf_link_create(
                    attachment.program.as_raw_fd(),
                    attachment.ifindex.cast_signed(),
                    kind,
                    &options,
                )
            };
            if link < 0 {
                return Err((attachment.place(), io::Error::from_raw_os_error(-link)));
            }
            // SAFETY: A new descriptor, which nobody else has.
            self.links.push(unsafe { OwnedFd::from_raw_fd(link) });
        }
        Ok(())
    }

    fn attach_filters(&mut self, attachments: &[Attachment<'_>]) -> Result<(), Error> {
        let _turn = Turn::take();
        let (slot, stale) = Slot::take()?;
        let handle = slot.handle;
        self.slot = Some(slot);
        // What remains of a capture that was killed, its qdiscs included.
        for filter in &stale {
            remove_filter(filter);
            self.own_qdisc(filter.ifindex, handle);
        }
        for attachment in attachments {
            let hook = both_hooks(attachment.ifindex);
            // SAFETY: The structure is complete.
            let (created, _) =
                libbpf_log::listen(|| unsafe { libbpf_sys::bpf_tc_hook_create(&mut { hook }) });
            match created {
                0 => self.own_qdisc(attachment.ifindex, handle),
                failed if failed == -rustix::io::Errno::EXIST.raw_os_error() => {
                    if another_made_qdisc(attachment.ifindex, handle) {
                        self.own_qdisc(attachment.ifindex, handle);
                    }
                }
                failed => {
                    let reason = io::Error::from_raw_os_error(-failed);
                    return Err(attach_error(attachment.place(), &reason));
                }
            }
            self.attach_filter(attachment, handle)?;
        }
        Ok(())
    }

    /// The qdisc is to be removed once nobody uses it.
    fn own_qdisc(&mut self, ifindex: u32, handle: u32) {
        if !self.qdiscs.iter().any(|qdisc| qdisc.ifindex == ifindex) {
            self.qdiscs.push(Qdisc {
                ifindex,
                _claim: bind_name(&qdisc_name(ifindex, handle)).ok(),
            });
        }
    }

    /// A priority may be taken by filters of another kind, which don't mix.
    fn attach_filter(&mut self, attachment: &Attachment<'_>, handle: u32) -> Result<(), Error> {
        const PRIORITIES: std::ops::RangeInclusive<u32> = 1..=8;

        let hook = tc_hook(attachment.ifindex, attachment.hook);
        let mut reason = io::Error::from(io::ErrorKind::AddrInUse);
        for priority in PRIORITIES {
            let mut options = libbpf_sys::bpf_tc_opts {
                sz: size_of::<libbpf_sys::bpf_tc_opts>() as libbpf_sys::size_t,
                prog_fd: attachment.program.as_raw_fd(),
                handle,
                priority,
                ..Default::default()
            };
            // SAFETY: The program's descriptor is open, and the structures are complete.
            let (result, _) =
                libbpf_log::listen(|| unsafe { libbpf_sys::bpf_tc_attach(&hook, &mut options) });
            if result == 0 {
                self.filters.push(Filter {
                    ifindex: attachment.ifindex,
                    hook: attachment.hook,
                    handle,
                    priority,
                });
                return Ok(());
            }
            reason = io::Error::from_raw_os_error(-result);
        }
        Err(attach_error(attachment.place(), &reason))
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Attachment<'_> {
    fn place(&self) -> String {
        match self.hook {
            Hook::Ingress => format!("incoming packets of {}", self.name),
            Hook::Egress => format!("outgoing packets of {}", self.name),
        }
    }
}

impl Slot {
    const FIRST_HANDLE: u32 = 0xECA_0001;
    const COUNT: u32 = 8;

    /// Takes the first free slot of the calling thread's network namespace, and tells which filters
    /// the free slots have.
    fn take() -> Result<(Self, Vec<Filter>), Error> {
        let system = |reason: rustix::io::Errno| Error::System {
            what: "taking a place among the captures of this network namespace",
            reason: reason.into(),
        };
        let mut free = Vec::new();
        for handle in Self::FIRST_HANDLE..Self::FIRST_HANDLE + Self::COUNT {
            match bind_name(&format!("ecapture/clsact/{handle:x}")) {
                Ok(socket) => free.push(Self {
                    handle,
                    _socket: socket,
                }),
                Err(rustix::io::Errno::ADDRINUSE) => {}
                Err(errno) => return Err(system(errno)),
            }
        }
        let mut stale = Vec::new();
        for ifindex in interfaces::all_indices().unwrap_or_default() {
            for hook in [Hook::Ingress, Hook::Egress] {
                let found = tc_filters::list(ifindex, parent(hook)).unwrap_or_default();
                stale.extend(
                    found
                        .into_iter()
                        .filter(is_ours)
                        .filter(|filter| free.iter().any(|slot| slot.handle == filter.handle))
                        .map(|filter| Filter {
                            ifindex,
                            hook,
                            handle: filter.handle,
                            priority: filter.priority,
                        }),
                );
            }
        }
        match free.into_iter().next() {
            Some(slot) => Ok((slot, stale)),
            None => Err(Error::AttachPlace {
                place: "the interfaces".into(),
                reason: format!("{} captures run here already", Self::COUNT),
            }),
        }
    }
}

impl Turn {
    /// Longer than any capture takes, unless it is stopped in the middle.
    const PATIENCE: Duration = Duration::from_secs(5);
    const PAUSE: Duration = Duration::from_millis(2);

    /// Waits until nobody else has it. `None` if that takes too long: then it is the lesser evil to go on.
    fn take() -> Option<Self> {
        let begun = Instant::now();
        loop {
            match bind_name("ecapture/clsact/turn") {
                Ok(socket) => return Some(Self { _socket: socket }),
                Err(rustix::io::Errno::ADDRINUSE) if begun.elapsed() < Self::PATIENCE => {
                    std::thread::sleep(Self::PAUSE);
                }
                Err(_) => return None,
            }
        }
    }
}

/// Binds a socket to a name of the calling thread's network namespace, which nobody else can have as long as
/// the socket is open.
fn bind_name(name: &str) -> rustix::io::Result<OwnedFd> {
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
    let socket = network_namespace::local_socket()?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// Held by the capture with this handle, if it has made the interface's qdisc, or used it beside one that has.
fn qdisc_name(ifindex: u32, handle: u32) -> String {
    format!("ecapture/clsact/{handle:x}/{ifindex}")
}

fn another_made_qdisc(ifindex: u32, own_handle: u32) -> bool {
    (Slot::FIRST_HANDLE..Slot::FIRST_HANDLE + Slot::COUNT)
        .filter(|&handle| handle != own_handle)
        .any(|handle| {
            bind_name(&qdisc_name(ifindex, handle))
                .is_err_and(|errno| errno == rustix::io::Errno::ADDRINUSE)
        })
}

/// Every packet program of ours has such a name, the filter program included.
fn is_ours(filter: &TcFilter) -> bool {
    filter
        .name
        .as_ref()
        .is_some_and(|name| name.starts_with(b"ecapture_"))
}

fn remove_filter(filter: &Filter) {
    let hook = tc_hook(filter.ifindex, filter.hook);
    let options = libbpf_sys::bpf_tc_opts {
        sz: size_of::<libbpf_sys::bpf_tc_opts>() as libbpf_sys::size_t,
        handle: filter.handle,
        priority: filter.priority,
        ..Default::default()
    };
    // The interface may be gone, and the filter with it.
    // SAFETY: The structures are complete.
    let _ = libbpf_log::listen(|| unsafe { libbpf_sys::bpf_tc_detach(&hook, &options) });
}

fn remove_unused_qdisc(ifindex: u32) {
    let used = [Hook::Ingress, Hook::Egress].iter().any(|&hook| {
        tc_filters::list(ifindex, parent(hook)).map_or(true, |filters| !filters.is_empty())
    });
    if !used {
        let hook = both_hooks(ifindex);
        // SAFETY: The structure is complete.
        let _ = libbpf_log::listen(|| unsafe { libbpf_sys::bpf_tc_hook_destroy(&mut { hook }) });
    }
}

fn tc_hook(ifindex: u32, hook: Hook) -> libbpf_sys::bpf_tc_hook {
    libbpf_sys::bpf_tc_hook {
        attach_point: match hook {
            Hook::Ingress => libbpf_sys::BPF_TC_INGRESS,
            Hook::Egress => libbpf_sys::BPF_TC_EGRESS,
        },
        ..both_hooks(ifindex)
    }
}

/// The qdisc, which has both.
fn both_hooks(ifindex: u32) -> libbpf_sys::bpf_tc_hook {
    libbpf_sys::bpf_tc_hook {
        sz: size_of::<libbpf_sys::bpf_tc_hook>() as libbpf_sys::size_t,
        ifindex: ifindex.cast_signed(),
        attach_point: libbpf_sys::BPF_TC_INGRESS | libbpf_sys::BPF_TC_EGRESS,
        ..Default::default()
    }
}

/// include/uapi/linux/pkt_sched.h: TC_H_CLSACT with TC_H_MIN_INGRESS or TC_H_MIN_EGRESS
fn parent(hook: Hook) -> u32 {
    match hook {
        Hook::Ingress => 0xFFFF_FFF2,
        Hook::Egress => 0xFFFF_FFF3,
    }
}

/// What kernels before 6.6, or without CONFIG_NET_XGRESS, answer.
fn means_no_tcx(error: &io::Error) -> bool {
    /// include/linux/errno.h: ENOTSUPP
    const NOT_SUPPORTED: i32 = 524;

    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | NOT_SUPPORTED | libc::E2BIG)
    )
}

fn attach_error(place: String, reason: &io::Error) -> Error {
    match reason.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::MissingCapabilities {
            what: "attach to network interfaces",
            missing: "CAP_NET_ADMIN".into(),
        },
        // libbpf creates the qdisc: the kernel has none of this name.
        Some(libc::ENOENT) => Error::Unsupported {
            feature: "clsact qdisc",
            kernel: kernel_release(),
            since: "4.5",
            option: "CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF",
        },
        _ => Error::AttachPlace {
            place,
            reason: reason.to_string(),
        },
    }
}
