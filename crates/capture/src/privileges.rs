//! Privileges: which ones a capture needs, and giving up what it needed only to begin
//! (capabilities(7)).

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::Error;

/// To load programs that read the memory of processes, and to attach them as uprobes.
const TRACE: [(CapabilitySet, &str); 2] = [
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
];

/// Checks the capabilities that loading and attaching uprobes need: CAP_BPF and CAP_PERFMON (Linux 5.8
/// and newer), or CAP_SYS_ADMIN for both.
pub fn effective_user_can_trace() -> Result<(), Error> {
    let Some(held) = held() else {
        return Ok(()); // We can't tell; the kernel will.
    };
    require("load and attach eBPF programs", missing_to_trace(held))
}

/// The same for packets, which take CAP_NET_ADMIN besides.
pub fn effective_user_can_capture_packets() -> Result<(), Error> {
    let Some(held) = held() else {
        return Ok(());
    };
    let mut missing = missing_to_trace(held);
    if !held.contains(CapabilitySet::NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    require("capture packets", missing)
}

fn missing_to_trace(held: CapabilitySet) -> Vec<&'static str> {
    if held.contains(CapabilitySet::SYS_ADMIN) {
        return Vec::new();
    }
    let missing = TRACE
        .iter()
        .filter(|&&(capability, _)| !held.contains(capability));
    missing.map(|&(_, name)| name).collect()
}

fn require(what: &'static str, missing: Vec<&str>) -> Result<(), Error> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::MissingCapabilities {
        what,
        missing: missing.join(" and "),
    })
}

/// Whether we hold CAP_SYS_ADMIN; true if we can't tell.
pub(crate) fn is_admin() -> bool {
    held().is_none_or(|held| held.contains(CapabilitySet::SYS_ADMIN))
}

/// Whether other users' processes can be told apart by what they run, and their sockets be had.
pub(crate) fn can_look_at_any_process() -> bool {
    held().is_none_or(|held| {
        held.contains(CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH)
    })
}

/// Why the kernel does not show processes to us, for the user.
pub fn why_processes_are_hidden() -> &'static str {
    if held().is_some_and(|held| held.contains(CapabilitySet::SYS_PTRACE)) {
        "the kernel refuses it in spite of CAP_SYS_PTRACE, as for processes of another user namespace, or because of a \
         security module"
    } else {
        "run as root, or with CAP_SYS_PTRACE"
    }
}

/// The error for a process that the kernel does not show.
pub(crate) fn hidden_process(pid: u32) -> Error {
    Error::HiddenProcess {
        pid,
        why: why_processes_are_hidden(),
    }
}

/// The calling thread's effective capabilities.
fn held() -> Option<CapabilitySet> {
    capabilities(None).ok().map(|sets| sets.effective)
}

/// What takes bpf(2) on kernels before 5.19, where the administrator has closed it to ordinary users,
/// even if the descriptors are there.
pub(crate) fn for_maps() -> CapabilitySet {
    if held().is_none_or(|held| held.contains(CapabilitySet::BPF)) {
        CapabilitySet::BPF
    } else {
        CapabilitySet::SYS_ADMIN
    }
}

/// Takes all capabilities from the calling thread, and from threads that it starts, for good: also
/// programs that it might execute could not get any. Other threads keep theirs.
pub fn give_up_privileges() -> Result<(), Error> {
    keep_only(CapabilitySet::empty())
}

/// The same, but for what it takes to attach to further programs: looking at processes and their files,
/// and uprobes.
pub fn keep_privileges_to_attach() -> Result<(), Error> {
    keep_only(
        CapabilitySet::SYS_ADMIN
            | CapabilitySet::BPF
            | CapabilitySet::PERFMON
            | CapabilitySet::SYS_PTRACE
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::DAC_OVERRIDE,
    )
}

/// The same, but for what it takes to begin files anew where they could be made at first: in directories of
/// other users, and in place of their files.
pub fn keep_privileges_to_rename_files() -> Result<(), Error> {
    keep_only(CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER)
}

/// The same, but for some capabilities, as far as they are held.
pub(crate) fn keep_only(needed: CapabilitySet) -> Result<(), Error> {
    let given_up = || -> rustix::io::Result<()> {
        set_no_new_privs(true)?;
        clear_ambient_capability_set()?;
        let now = capabilities(None)?;
        if now.effective.contains(CapabilitySet::SETPCAP) {
            clear_bounding_set();
        }
        let kept = now.permitted & needed;
        set_capabilities(
            None,
            CapabilitySets {
                effective: kept,
                permitted: kept,
                inheritable: CapabilitySet::empty(),
            },
        )
    };
    given_up().map_err(|errno| Error::System {
        what: "giving up privileges",
        reason: errno.into(),
    })
}

/// The capabilities that a program could have which we execute.
fn clear_bounding_set() {
    for bit in 0..u64::BITS {
        // Of those that the kernel does not know, none is in it.
        let _ = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each test runs in a thread of its own, and threads have capabilities of their own.
    #[test]
    fn what_is_given_up_is_gone_for_this_thread_and_those_that_it_starts() {
        let before = capabilities(None).unwrap();
        keep_only(CapabilitySet::NET_ADMIN).unwrap();
        let kept = before.permitted & CapabilitySet::NET_ADMIN;
        let now = capabilities(None).unwrap();
        assert_eq!((now.effective, now.permitted), (kept, kept));

        give_up_privileges().unwrap();
        let none = CapabilitySet::empty();
        let inherited = std::thread::spawn(|| capabilities(None).unwrap());
        let inherited = inherited.join().unwrap();
        assert_eq!((inherited.effective, inherited.permitted), (none, none));
        assert!(rustix::thread::no_new_privs().unwrap());
    }

    #[test]
    fn either_the_two_or_the_one_above_them_is_enough() {
        let two = CapabilitySet::BPF | CapabilitySet::PERFMON;
        assert!(missing_to_trace(two).is_empty());
        assert!(missing_to_trace(CapabilitySet::SYS_ADMIN).is_empty());
        assert_eq!(missing_to_trace(CapabilitySet::BPF), ["CAP_PERFMON"]);
        assert_eq!(
            missing_to_trace(CapabilitySet::empty()),
            ["CAP_BPF", "CAP_PERFMON"]
        );
    }
}
