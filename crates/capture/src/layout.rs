//! Compares the record layouts of the eBPF programs with those of the crate `events`, so that a
//! difference fails the build. The C side comes from the compiled object's BTF.

use std::mem::{offset_of, size_of};

use events::layout;

use crate::skeleton::types;

macro_rules! same_layout {
    ($c:ident, $rust:ident, $($field:ident),+) => {
        const _: () = {
            assert!(size_of::<types::$c>() == size_of::<layout::$rust>());
            $(assert!(offset_of!(types::$c, $field) == offset_of!(layout::$rust, $field));)+
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
    length,
    sequence,
    direction,
    missing
);
same_layout!(close_record, CloseRecord, header, stream_length, sequence);
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
    unknown_calls
);

// The reader finds the shared state at the start of .bss.
const _: () = assert!(offset_of!(types::bss, shared) == 0);
