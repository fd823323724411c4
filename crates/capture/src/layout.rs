//! Compares the record layouts of the eBPF programs with those of the crate `events`, so that a
//! difference fails the build. The C side comes from the compiled object's BTF.

use std::mem::{offset_of, size_of};

use events::layout;

use crate::packet_skeleton::types as packet_types;
use crate::skeleton::types;

macro_rules! same_layout {
    ($c:ident, $rust:ident, $($field:ident),+) => {
        same_layout!(types::$c, layout::$rust, $($field),+);
    };
    ($c:ty, $rust:ty, $($field:ident),+) => {
        const _: () = {
            assert!(size_of::<$c>() == size_of::<$rust>());
            $(assert!(offset_of!($c, $field) == offset_of!($rust, $field));)+
        };
    };
}

same_layout!(
    record_header,
    RecordHeader,
    time_ns,
    conn,
    first_seen_ns,
    pid,
    tid,
    comm,
    kind
);
same_layout!(
    data_record,
    DataRecord,
    header,
    stream_offset,
    call_length,
    call_offset,
    omitted,
    goroutine,
    length,
    sequence,
    direction,
    missing
);
same_layout!(
    close_record,
    CloseRecord,
    header,
    stream_length,
    sequence,
    cause
);
same_layout!(address, Address, family, length, zone_length, port, bytes);
same_layout!(
    connection_record,
    ConnectionRecord,
    header,
    fd,
    version,
    cipher_suite,
    role,
    resumed,
    from_start,
    server_name_length,
    protocol_length,
    local,
    remote,
    server_name,
    protocol
);
same_layout!(
    key_record,
    KeyRecord,
    header,
    label_length,
    secret_length,
    label,
    client_random,
    secret
);
same_layout!(
    shared_state,
    SharedState,
    wake,
    lost_records,
    lost_bytes,
    unreadable_records,
    unreadable_bytes,
    too_long_bytes,
    unknown_calls,
    unowned_sockets
);

// The reader finds the shared state at the start of .bss.
const _: () = assert!(offset_of!(types::bss, shared) == 0);

same_layout!(
    packet_types::packet_process,
    layout::PacketProcess,
    pid,
    comm
);
same_layout!(
    packet_types::packet_record,
    layout::PacketRecord,
    time_ns,
    sender,
    receiver,
    kind,
    direction,
    interface,
    length,
    captured
);
same_layout!(
    packet_types::shared_state,
    layout::SharedState,
    wake,
    lost_records,
    lost_bytes,
    unowned_sockets
);
const _: () = assert!(offset_of!(packet_types::bss, shared) == 0);
