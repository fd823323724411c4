//! Filter expressions in tcpdump's syntax: libpcap compiles them, the kernel runs them.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys::{self, bpf_insn};

use crate::error::kernel_release;
use crate::libpcap::{self, Instruction};
use crate::translate::{Continuation, Hook, translate};
use crate::{Error, LinkType};

/// An expression, compiled for one link type.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    expression: String,
    link_type: LinkType,
    program: Vec<Instruction>,
}

impl Filter {
    /// Compiles it, and finds out whether the kernel can run it, without loading anything.
    pub(crate) fn compile(
        expression: &str,
        link_type: LinkType,
        snaplen: u32,
    ) -> Result<Self, Error> {
        let wrong = |message: String| Error::Filter {
            expression: expression.into(),
            message,
        };
        let program = libpcap::compile(expression, link_type, snaplen).map_err(wrong)?;
        let filter = Self {
            expression: expression.into(),
            link_type,
            program,
        };
        let nowhere = Continuation {
            programs: -1,
            index: 0,
        };
        filter.instructions(Hook::Ingress, nowhere)?;
        Ok(filter)
    }

    /// Loads it as a program for one of the hooks, which goes on with a program of `programs` if
    /// a packet matches.
    pub(crate) fn load(
        &self,
        hook: Hook,
        programs: BorrowedFd<'_>,
        index: u32,
    ) -> Result<OwnedFd, Error> {
        let continuation = Continuation {
            programs: programs.as_raw_fd(),
            index,
        };
        load(NAME, &self.instructions(hook, continuation)?)
    }

    fn instructions(&self, hook: Hook, continuation: Continuation) -> Result<Vec<bpf_insn>, Error> {
        translate(&self.program, self.link_type, hook, continuation).map_err(|reason| {
            Error::Filter {
                expression: self.expression.clone(),
                message: format!("can't be run in the kernel: {reason}"),
            }
        })
    }
}

/// As `bpftool prog` shows it.
const NAME: &CStr = c"ecapture_filter";

/// Loads a program for the ingress and egress hooks.
fn load(name: &CStr, instructions: &[bpf_insn]) -> Result<OwnedFd, Error> {
    let mut log = vec![0u8; 64 * 1024];
    let mut options = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let mut attempt = |with_log: bool| {
        if with_log {
            options.log_level = 1;
            options.log_size = log.len() as u32;
            options.log_buf = log.as_mut_ptr().cast();
        }
        // SAFETY: The strings end with NUL, the instructions are as many as said, and the log has
        // the length said; all of them live until the call returns.
        unsafe {
            libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
                name.as_ptr(),
                c"Dual MIT/GPL".as_ptr(),
                instructions.as_ptr(),
                instructions.len() as libbpf_sys::size_t,
                &mut options,
            )
        }
    };
    let mut fd = attempt(false);
    if fd < 0 {
        fd = attempt(true);
    }
    if fd >= 0 {
        // SAFETY: A new descriptor, which nobody else has.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let said = String::from_utf8_lossy(&log[..end]);
    let lines: Vec<_> = said
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("processed "))
        .collect();
    if lines.is_empty() {
        let reason = std::io::Error::from_raw_os_error(-fd).to_string();
        return Err(Error::Load { reason });
    }
    Err(Error::Verifier {
        kernel: kernel_release(),
        summary: lines[lines.len().saturating_sub(2)..].join(" | "),
    })
}

#[cfg(any(test, fuzzing))]
pub(crate) mod test_run;
#[cfg(test)]
mod tests;
