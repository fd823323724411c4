//! All contact with the kernel, and all `unsafe` of the project: mapping executables, looking at
//! processes, loading and attaching the eBPF programs, and reading the ring buffer.
//!
//! [`Probes::attach`] turns a [`gobin::ProbePlan`] into attached uprobes; [`Probes::reader`] gives
//! the records that they produce, undecoded. Dropping [`Probes`] detaches everything, and so does the
//! kernel if the process dies in any other way: nothing is pinned.
#![deny(unsafe_op_in_unsafe_fn)]

mod clock;
mod error;
mod executable;
mod layout;
mod libbpf_log;
mod load;
mod probes;
mod process;
mod reader;
mod ring;
mod target;

pub use clock::{monotonic_ns, realtime_offset_ns};
pub use error::Error;
pub use executable::{Executable, Identity, MappedFile};
pub use libbpf_log::set_debug;
pub use probes::{Filters, Options, Probes, Wanted};
pub use process::{Process, effective_user_can_trace};
pub use reader::{Counters, Reader, StopSwitch, Stopped};

/// The eBPF programs, as libbpf-cargo's skeleton.
#[allow(
    clippy::all,
    missing_docs,
    unreachable_pub,
    clippy::undocumented_unsafe_blocks,
    unsafe_op_in_unsafe_fn,
    dead_code,
    reason = "generated code"
)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/gotls.skel.rs"));
}
