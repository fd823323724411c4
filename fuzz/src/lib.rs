//! What the fuzz targets do with their input. A target fails by a panic, by an allocation or a time
//! beyond the fuzzer's limits, or where it says so below.

mod executable;
mod packet_filter;
mod records;

pub use executable::{executable, patched_executable};
pub use packet_filter::packet_filter;
pub use records::records;
