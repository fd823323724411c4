//! Runs filters on packets that never were on an interface, for tests and for fuzzing.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::*;

/// A program that a matching packet goes on to, and a way to run filters.
pub(super) struct Kernel {
    continuations: OwnedFd,
}

/// What such a program returns.
pub(super) const MATCHED: u32 = 7;

/// `mov r0, value; exit`
fn constant(value: u32) -> OwnedFd {
    let mut mov = bpf_insn {
        code: 0xb7,
        imm: value.cast_signed(),
        ..Default::default()
    };
    mov.set_dst_reg(0);
    let exit = bpf_insn {
        code: 0x95,
        ..Default::default()
    };
    load(c"constant", &[mov, exit]).expect("needs root: run `cargo xtask test`")
}

pub(super) fn program_array(program: &OwnedFd) -> OwnedFd {
    let key = 0u32;
    let value = program.as_raw_fd();
    // SAFETY: The name ends with NUL, key and value have the sizes of the map.
    unsafe {
        let map = libbpf_sys::bpf_map_create(
            libbpf_sys::BPF_MAP_TYPE_PROG_ARRAY,
            c"programs".as_ptr(),
            4,
            4,
            1,
            std::ptr::null(),
        );
        assert!(map >= 0, "needs root: run `cargo xtask test`");
        let updated = libbpf_sys::bpf_map_update_elem(
            map,
            (&raw const key).cast(),
            (&raw const value).cast(),
            0,
        );
        assert_eq!(updated, 0);
        OwnedFd::from_raw_fd(map)
    }
}

#[cfg(test)]
pub(super) fn run(program: &OwnedFd, packet: &[u8]) -> u32 {
    test_run(program, packet).unwrap_or_else(|| panic!("test run of {} bytes", packet.len()))
}

/// What a program returns for a packet; `None` if the kernel does not take such a packet.
fn test_run(program: &OwnedFd, packet: &[u8]) -> Option<u32> {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: packet.as_ptr().cast(),
        data_size_in: packet.len() as u32,
        repeat: 1,
        ..Default::default()
    };
    // SAFETY: The packet has the length said.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) };
    (result == 0).then_some(options.retval)
}

impl Kernel {
    pub(super) fn new() -> Self {
        // The array keeps the program alive.
        Self {
            continuations: program_array(&constant(MATCHED)),
        }
    }

    pub(super) fn load(&self, filter: &Filter, hook: Hook) -> OwnedFd {
        filter
            .load(hook, self.continuations.as_fd(), 0)
            .unwrap_or_else(|error| panic!("{}: {error}", filter.expression))
    }
}

/// Whether a packet matches an expression: what the kernel says, and what libpcap's own interpreter
/// says. `None` if the expression is refused or asks for the packet's type, which the interpreter does
/// not know, or if the kernel's test run takes no such packet.
#[cfg(fuzzing)]
pub fn verdicts(expression: &str, link_type: LinkType, packet: &[u8]) -> Option<(bool, bool)> {
    let filter = Filter::compile(expression, link_type, crate::PacketOptions::SNAPLEN_MAX).ok()?;
    if filter.program.iter().any(Instruction::loads_packet_type) {
        return None;
    }
    let kernel = Kernel::new();
    let program = kernel.load(&filter, Hook::Ingress);
    let found = match test_run(&program, packet)? {
        MATCHED => true,
        u32::MAX => false,
        other => panic!("{expression}: the program returned {other}"),
    };
    Some((found, libpcap::interpret(&filter.program, packet)))
}
