//! The records that the eBPF programs send: one C header, its Rust mirror, and their decoding.
