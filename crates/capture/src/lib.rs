//! All contact with the kernel, and all `unsafe` of the project: mapping executables, looking at
//! processes, loading and attaching the eBPF programs, and reading the ring buffer.
//!
//! [`Probes::attach`] turns a [`gobin::ProbePlan`] into attached uprobes; [`Probes::reader`] gives
//! the records that they produce, undecoded. Dropping [`Probes`] detaches everything, and so does the
//! kernel if the process dies in any other way: nothing is pinned.
//!
//! [`PacketCapture::attach`] does the same for the packets of processes. On kernels without tcx, what
//! it attaches to interfaces outlives a process that is killed; the next capture removes it.
#![deny(unsafe_op_in_unsafe_fn)]

mod cgroup;
mod clock;
mod error;
mod exec_events;
mod exec_gate;
mod executable;
mod fanotify;
mod filter;
mod follower;
mod hooks;
mod interfaces;
mod layout;
mod libbpf_log;
mod libpcap;
mod libraries;
mod load;
mod mapped_file;
mod mapping_events;
mod mounts;
mod names;
mod network_namespace;
mod overwrites;
#[cfg(test)]
mod own_process;
mod packets;
mod privileges;
mod probe_set;
mod probes;
mod proc_files;
mod process;
mod processes;
mod reader;
mod rehearsal;
mod ring;
mod scheduling;
mod sockets;
mod target;
mod tc_filters;
mod translate;
mod uprobes;

pub use clock::{monotonic_ns, realtime_offset_ns};
pub use error::{Error, operating_system};
pub use exec_events::ExecEvents;
pub use exec_gate::{
    ExecGate, StartingProgram, Verdict, guard_exec_gate, raise_limit_of_open_files,
    rehearse_exec_gate,
};
pub use executable::{Executable, Identity};
#[cfg(fuzzing)]
pub use filter::test_run::verdicts;
pub use interfaces::{Interface, InterfaceSelection, LinkType};
pub use libbpf_log::set_debug;
pub use libraries::Library;
pub use mapping_events::{MappedFileId, MappingEvent, MappingEvents};
pub use names::look_names_up_without_plugins;
pub use network_namespace::NetworkNamespace;
pub use packets::{HookKind, InterfaceStatistics, PacketCapture, PacketOptions, PacketTarget};
pub use privileges::{
    effective_user_can_capture_packets, effective_user_can_trace, give_up_privileges,
    keep_privileges_to_attach, keep_privileges_to_rename_files, why_processes_are_hidden,
};
pub use probe_set::{Objects, ProbeSet, Selection, SetOptions, Taking, TargetId};
pub use probes::{Filters, Options, Part, Probes, Wanted};
pub use process::{OUT_OF_SIGHT, Process, is_in_initial_pid_namespace, is_out_of_sight};
pub use processes::{ProcessInfo, cgroup_of, environment_variable, executed_file, running};
pub use reader::{Counters, Reader, StopSwitch, Stopped};
pub use rehearsal::{Host, UprobeSupport, rehearse_packets, rehearse_uprobes};
pub use scheduling::run_promptly;
pub use uprobes::UprobeKind;

/// A module with what libbpf-cargo generates of an eBPF object.
macro_rules! skeleton {
    ($module:ident, $file:literal) => {
        #[allow(
            clippy::all,
            missing_docs,
            unreachable_pub,
            clippy::undocumented_unsafe_blocks,
            unsafe_op_in_unsafe_fn,
            dead_code,
            reason = "generated code"
        )]
        mod $module {
            include!(concat!(env!("OUT_DIR"), $file));
        }
    };
}

// The program that tells of processes that start.
skeleton!(exec_skeleton, "/execs.skel.rs");

// The packet programs.
skeleton!(packet_skeleton, "/packets.skel.rs");

// The programs at crypto/tls.
skeleton!(skeleton, "/gotls.skel.rs");
