//! The two ways to put a program on instructions of an executable, and which of them the kernel has.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use gobin::FileOffset;
use libbpf_rs::libbpf_sys::{self, bpf_insn};
use libbpf_rs::{Link, OpenProgramMut, ProgramAttachType, ProgramMut, UprobeMultiOpts, UprobeOpts};

/// How uprobes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UprobeKind {
    /// One link for all instructions that a program is put on (Linux 6.6). They are detached together,
    /// and CAP_BPF with CAP_PERFMON is enough.
    Multi,
    /// One perf event for each instruction. Since Linux 6.16 they want CAP_SYS_ADMIN, and each takes
    /// a while to be detached.
    Perf,
}

impl UprobeKind {
    /// The better one of those that the kernel has. `one_process` says that only one is to be probed.
    ///
    /// Before Linux 6.10 a multi-uprobe link compared threads where it was asked for a process (commit
    /// 46ba0e49b642, "bpf: fix multi-uprobe PID filtering logic"), which would lose what the others do.
    pub(crate) fn best(one_process: bool) -> Self {
        match MultiLinks::of_this_kernel() {
            Some(links) if links.know_processes || !one_process => Self::Multi,
            _ => Self::Perf,
        }
    }

    /// Tells a program that is to be loaded how it will be attached.
    pub(crate) fn prepare(self, program: &mut OpenProgramMut<'_>) {
        if self == Self::Multi {
            program.set_attach_type(ProgramAttachType::TraceUprobeMulti);
        }
    }

    /// Whether the kernel tells a program what it was attached with, a number of our choice: Linux 5.15
    /// for perf events.
    pub(crate) fn has_cookies(self) -> bool {
        // SAFETY: Plain numbers go in and out.
        let answer = unsafe {
            libbpf_sys::libbpf_probe_bpf_helper(
                libbpf_sys::BPF_PROG_TYPE_KPROBE,
                libbpf_sys::BPF_FUNC_get_attach_cookie,
                std::ptr::null(),
            )
        };
        self == Self::Multi || answer == 1
    }

    /// Attaches a program to all of these instructions, in one process or in all. The program is told
    /// the cookie, if there is one, at each hit.
    pub(crate) fn attach(
        self,
        program: &ProgramMut<'_>,
        pid: Option<u32>,
        executable: &Path,
        offsets: &[FileOffset],
        cookie: Option<u64>,
    ) -> libbpf_rs::Result<Vec<Link>> {
        // libbpf: -1 stands for all processes. The pid was found by pidfd_open, so it fits.
        let pid = pid.map_or(-1, |pid| pid as i32);
        let mut offsets = offsets.iter().map(|offset| offset.0 as usize);
        match self {
            Self::Multi => {
                let options = UprobeMultiOpts {
                    cookies: cookie.map_or(Vec::new(), |cookie| vec![cookie; offsets.len()]),
                    offsets: offsets.collect(),
                    ..UprobeMultiOpts::default()
                };
                let link = program.attach_uprobe_multi_with_opts(pid, executable, "", options)?;
                Ok(vec![link])
            }
            Self::Perf => offsets.try_fold(Vec::new(), |mut links, offset| {
                let options = UprobeOpts {
                    cookie: cookie.unwrap_or_default(),
                    ..UprobeOpts::default()
                };
                links.push(program.attach_uprobe_with_opts(pid, executable, offset, options)?);
                Ok(links)
            }),
        }
    }
}

/// Detaches all links at the same time: the kernel waits for each until no processor can be running its
/// program, and these waits can be one.
pub(crate) fn drop_at_once(links: &mut Vec<Link>) {
    std::thread::scope(|scope| {
        for link in links.drain(..) {
            // If no thread can be had, the link is dropped with what the thread would have done.
            let _ = std::thread::Builder::new().spawn_scoped(scope, || drop(link));
        }
    });
}

/// What a kernel that has multi-uprobe links can do with them.
#[derive(Clone, Copy, Debug)]
struct MultiLinks {
    know_processes: bool,
}

impl MultiLinks {
    /// Asks the kernel for a link that it must refuse, and sees why it does. As in libbpf's
    /// probe_uprobe_multi_link: `/` is not a file that could be probed, which is found before anything
    /// else is looked at, but behind a check of the process by kernels that know what one is.
    fn of_this_kernel() -> Option<Self> {
        let program = do_nothing().ok()?;
        if refusal(&program, 0) != Some(libc::EBADF) {
            return None;
        }
        let no_process = u32::MAX;
        Some(Self {
            know_processes: refusal(&program, no_process) == Some(libc::EINVAL),
        })
    }
}

/// Loads a program that could be attached by a multi-uprobe link.
fn do_nothing() -> io::Result<OwnedFd> {
    // r0 = 0; exit
    let instruction = |code: u32| bpf_insn {
        code: code as u8,
        ..Default::default()
    };
    let instructions = [
        instruction(libbpf_sys::BPF_ALU64 | libbpf_sys::BPF_MOV | libbpf_sys::BPF_K),
        instruction(libbpf_sys::BPF_JMP | libbpf_sys::BPF_EXIT),
    ];
    let mut options = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: libbpf_sys::BPF_TRACE_UPROBE_MULTI,
        ..Default::default()
    };
    // SAFETY: The strings end with NUL, the instructions are as many as said, and the options are
    // complete; all of them live until the call returns.
    let program = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_KPROBE,
            c"ecapture_probe".as_ptr(),
            c"Dual MIT/GPL".as_ptr(),
            instructions.as_ptr(),
            instructions.len() as libbpf_sys::size_t,
            &mut options,
        )
    };
    if program < 0 {
        return Err(io::Error::from_raw_os_error(-program));
    }
    // SAFETY: A new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

/// The error with which the kernel refuses to put a program on the directory `/`.
fn refusal(program: &OwnedFd, pid: u32) -> Option<i32> {
    let offset = 0;
    let mut options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    options.__bindgen_anon_1.uprobe_multi =
        libbpf_sys::bpf_link_create_opts__bindgen_ty_1__bindgen_ty_3 {
            path: c"/".as_ptr(),
            offsets: &offset,
            cnt: 1,
            pid,
            ..Default::default()
        };
    // SAFETY: The program's descriptor is open, and what the options point to lives until the call
    // returns.
    let link = unsafe {
        libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            -1,
            libbpf_sys::BPF_TRACE_UPROBE_MULTI,
            &options,
        )
    };
    if link < 0 {
        return Some(-link);
    }
    // SAFETY: A new descriptor, which nobody else has.
    drop(unsafe { OwnedFd::from_raw_fd(link) });
    None
}
