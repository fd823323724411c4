//! The byte layouts of `include/record.h`, for comparison with the compiled C structures.
//!
//! They are never cast to or from memory: [`Record::decode`](crate::Record::decode) reads field by field.

/// Version of these layouts, for records that are kept in files. It changes when a record of a known kind
/// means something else than before, not when a kind is added.
pub const LAYOUT_VERSION: u16 = 1;

/// `struct record_header`
#[allow(missing_docs)] // Documented in record.h.
#[repr(C)]
pub struct RecordHeader {
    pub time_ns: u64,
    pub conn: u64,
    pub first_seen_ns: u64,
    pub pid: u32,
    pub tid: u32,
    pub comm: [u8; 16],
    pub kind: u8,
    pub reserved: [u8; 7],
}

/// `struct data_record`
#[allow(missing_docs)] // Documented in record.h.
#[repr(C)]
pub struct DataRecord {
    pub header: RecordHeader,
    pub stream_offset: u64,
    pub call_length: u64,
    pub call_offset: u64,
    pub omitted: u64,
    pub goroutine: u64,
    pub length: u32,
    pub sequence: u32,
    pub direction: u8,
    pub missing: u8,
    pub reserved: [u8; 6],
}

/// `struct close_record`
#[allow(missing_docs)] // Documented in record.h.
#[repr(C)]
pub struct CloseRecord {
    pub header: RecordHeader,
    pub stream_length: [u64; 2],
    pub sequence: [u32; 2],
    pub cause: u8,
    pub reserved: [u8; 7],
}

/// `struct address`
#[allow(missing_docs)] // Documented in record.h.
#[repr(C)]
pub struct Address {
    pub family: u8,
    pub length: u8,
    pub zone_length: u8,
    pub reserved: u8,
    pub port: u16,
    pub reserved2: [u8; 2],
    pub bytes: [u8; 108],
}

/// `struct connection_record`
#[allow(missing_docs)] // Documented in record.h.
#[repr(C)]
pub struct ConnectionRecord {
    pub header: RecordHeader,
    pub fd: i32,
    pub version: u16,
    pub cipher_suite: u16,
    pub role: u8,
    pub resumed: u8,
    pub from_start: u8,
    pub server_name_length: u8,
    pub protocol_length: u8,
    pub reserved: [u8; 3],
    pub local: Address,
    pub remote: Address,
    pub server_name: [u8; 256],
    pub protocol: [u8; 256],
}

/// `struct packet_process`
#[allow(missing_docs)] // Documented in record.h.
#[repr(C)]
pub struct PacketProcess {
    pub pid: u32,
    pub comm: [u8; 16],
}

/// `struct packet_record`
#[allow(missing_docs)] // Documented in record.h.
#[repr(C)]
pub struct PacketRecord {
    pub time_ns: u64,
    pub sender: PacketProcess,
    pub receiver: PacketProcess,
    pub kind: u8,
    pub direction: u8,
    pub reserved: [u8; 2],
    pub interface: u32,
    pub length: u32,
    pub captured: u32,
}

// The kind tells the two kinds of header apart.
const _: () =
    assert!(std::mem::offset_of!(RecordHeader, kind) == std::mem::offset_of!(PacketRecord, kind));

/// `struct key_record`
#[allow(missing_docs)] // Documented in record.h.
#[repr(C)]
pub struct KeyRecord {
    pub header: RecordHeader,
    pub label_length: u8,
    pub secret_length: u8,
    pub reserved: [u8; 6],
    pub label: [u8; 40],
    pub client_random: [u8; 32],
    pub secret: [u8; 64],
}

/// `struct shared_state`
#[allow(missing_docs)] // Documented in record.h.
#[repr(C)]
pub struct SharedState {
    pub wake: u32,
    pub reserved: u32,
    pub lost_records: u64,
    pub lost_bytes: u64,
    pub unreadable_records: u64,
    pub unreadable_bytes: u64,
    pub too_long_bytes: u64,
    pub unknown_calls: u64,
    pub unowned_sockets: u64,
}

/// `enum record_kind`: `RECORD_DATA`
pub const RECORD_DATA: u8 = 1;
/// `enum record_kind`: `RECORD_CLOSE`
pub const RECORD_CLOSE: u8 = 2;
/// `enum record_kind`: `RECORD_KEY`
pub const RECORD_KEY: u8 = 3;
/// `enum record_kind`: `RECORD_PACKET`
pub const RECORD_PACKET: u8 = 4;
/// `enum record_kind`: `RECORD_CONNECTION`
pub const RECORD_CONNECTION: u8 = 5;
/// `enum record_kind`: `RECORD_PROCESS`
pub const RECORD_PROCESS: u8 = 6;
