//! What a kernel may lack, and what is done instead.

use std::fmt;

/// Something that this kernel doesn't have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The helper `bpf_loop` in uprobe programs.
    Loop,
    /// Uprobe programs that may wait for memory to be fetched.
    SleepableUprobes,
    /// Links at the hooks of interfaces.
    Tcx,
}

/// For people: what, since when kernels have it, and what follows.
impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loop => "bpf_loop (Linux 5.17): of a call, 1 MiB is captured at most",
            Self::SleepableUprobes => {
                "sleepable uprobes (Linux 6.0): memory that is paged out is reported as unreadable"
            }
            Self::Tcx => "tcx (Linux 6.6): packets are captured by clsact filters",
        })
    }
}
