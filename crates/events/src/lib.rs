//! The contract between the eBPF programs and user space: the layout of records in the ring buffer
//! and their decoding.
//!
//! `include/record.h` is the C side. The bytes come from the kernel, or from a file that somebody
//! recorded elsewhere, so [`Record::decode`] trusts nothing: every malformed record is a
//! [`DecodeError`] and never a panic.
#![forbid(unsafe_code)]

mod decode;
pub mod layout;
mod record;

pub use decode::DecodeError;
pub use layout::LAYOUT_VERSION;
pub use record::{
    Address, Agreed, CloseCause, CloseRecord, ConnectionRecord, Container, DataRecord, Direction,
    Header, KeyRecord, Missing, PacketDirection, PacketProcess, PacketRecord, ProcessRecord,
    Record, Role,
};
