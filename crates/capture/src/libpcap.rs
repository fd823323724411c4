//! The five functions of libpcap that turn a filter expression into a classic BPF program. Nothing
//! of it captures packets here.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::Mutex;

use crate::LinkType;

/// An instruction of classic BPF (pcap-bpf.h, `struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) k: u32,
}

/// include/uapi/linux/filter.h: SKF_AD_OFF + SKF_AD_PKTTYPE, which libpcap uses for `inbound` and
/// `outbound`.
pub(crate) const ANCILLARY_PACKET_TYPE: u32 = 0xFFFF_F004;

impl Instruction {
    /// Whether this loads the packet's type, which a Linux socket filter finds at an offset beyond any
    /// packet, and libpcap's interpreter does not find: `ld [k]`, `ldh [k]` or `ldb [k]`.
    pub(crate) fn loads_packet_type(&self) -> bool {
        matches!(self.code, 0x20 | 0x28 | 0x30) && self.k == ANCILLARY_PACKET_TYPE
    }
}

#[repr(C)]
struct Program {
    length: c_uint,
    instructions: *mut Instruction,
}

/// pcap.h: PCAP_NETMASK_UNKNOWN, for `ip broadcast`, which is refused then.
const NETMASK_UNKNOWN: u32 = 0xFFFF_FFFF;

// SAFETY: The declarations are those of pcap.h (libpcap 1.0 and newer).
unsafe extern "C" {
    fn pcap_open_dead(link_type: c_int, snaplen: c_int) -> *mut c_void;
    fn pcap_compile(
        pcap: *mut c_void,
        program: *mut Program,
        expression: *const c_char,
        optimize: c_int,
        netmask: u32,
    ) -> c_int;
    fn pcap_geterr(pcap: *mut c_void) -> *const c_char;
    fn pcap_freecode(program: *mut Program);
    fn pcap_close(pcap: *mut c_void);
}

/// Compiles `expression` for packets of this link type; the error is libpcap's message.
pub(crate) fn compile(
    expression: &str,
    link_type: LinkType,
    snaplen: u32,
) -> Result<Vec<Instruction>, String> {
    // Before libpcap 1.8 the compiler kept its state in global variables.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());

    let expression = CString::new(expression)
        .map_err(|_| String::from("the expression has a NUL character in it"))?;
    // SAFETY: Plain numbers go in.
    let pcap = unsafe { pcap_open_dead(link_type.dlt(), snaplen.cast_signed()) };
    if pcap.is_null() {
        return Err("libpcap: out of memory".into());
    }
    let mut program = Program {
        length: 0,
        instructions: std::ptr::null_mut(),
    };
    // SAFETY: The handle was just made, the expression is a C string, the program is ours.
    let result =
        unsafe { pcap_compile(pcap, &mut program, expression.as_ptr(), 1, NETMASK_UNKNOWN) };
    let compiled = if result == 0 {
        // SAFETY: On success the program points to so many instructions, until it is freed.
        let instructions =
            unsafe { std::slice::from_raw_parts(program.instructions, program.length as usize) };
        let copy = instructions.to_vec();
        // SAFETY: It was filled in by pcap_compile, and is not used any more.
        unsafe { pcap_freecode(&mut program) };
        Ok(copy)
    } else {
        // SAFETY: The message is a C string inside of the handle, which is still open.
        let message = unsafe { CStr::from_ptr(pcap_geterr(pcap)) };
        Err(message.to_string_lossy().into_owned())
    };
    // SAFETY: Closed once, and not used any more.
    unsafe { pcap_close(pcap) };
    compiled
}

/// Debian's libpcap.a can capture from D-Bus too, which would link libdbus and libsystemd into our
/// binary. These two functions take the place of its own, as if it had been built without.
#[cfg(static_libpcap)]
mod without_dbus {
    use std::ffi::{c_char, c_int, c_void};

    #[unsafe(no_mangle)]
    extern "C" fn dbus_create(
        _device: *const c_char,
        _error: *mut c_char,
        is_ours: *mut c_int,
    ) -> *mut c_void {
        // SAFETY: libpcap passes the address of a variable.
        unsafe { *is_ours = 0 };
        std::ptr::null_mut()
    }

    #[unsafe(no_mangle)]
    extern "C" fn dbus_findalldevs(_devices: *mut c_void, _error: *mut c_char) -> c_int {
        0
    }
}

/// libpcap's own interpreter, which the tests compare with.
#[cfg(any(test, fuzzing))]
pub(crate) fn interpret(program: &[Instruction], packet: &[u8]) -> bool {
    // SAFETY: As in pcap/bpf.h.
    unsafe extern "C" {
        fn bpf_filter(
            program: *const Instruction,
            packet: *const u8,
            wire_length: c_uint,
            length: c_uint,
        ) -> c_uint;
    }
    let length = packet.len() as c_uint;
    // SAFETY: The program was made by libpcap and ends with a return; the packet has this length.
    unsafe { bpf_filter(program.as_ptr(), packet.as_ptr(), length, length) != 0 }
}
