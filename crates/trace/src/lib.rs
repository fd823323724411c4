//! What happened: turns the records of the eBPF programs into events, and events into text or JSON
//! lines.
//!
//! Nothing here touches the kernel, the file system or the clock, so a list of recorded records
//! gives the same output anywhere:
//!
//! ```text
//! records ──► Tracker ──► Event ──► Sink (TextSink, JsonSink) ──► impl Write
//!         ├─► KeyLog ──────────────────────────────────────────► impl Write
//!         ├─► PacketSink ──────────────────────────────────────► impl Write
//!         └─► RecordingWriter ──► RecordingReader ──► records
//! ```
//!
//! Records are untrusted in what they carry: names and payloads come from the target and its peers.
//! Memory is bounded by [`Tracker::CONNECTIONS_MAX`] connections, whatever comes.
#![forbid(unsafe_code)]

mod address;
mod block_store;
mod body_text;
mod conversations;
mod endpoints;
mod escape;
mod event;
mod exchange_json;
mod exchange_text;
mod har;
mod hexdump;
mod json;
mod keylog;
mod packets;
mod pcapng;
mod plaintext_packets;
mod processes;
mod recording;
mod segment;
mod text;
mod time;
mod tls_names;
mod tracker;
mod units;

pub use conversations::{ConversationOptions, Conversations, Plaintext};
pub use escape::{escape_name, escape_payload};
pub use event::{Closed, Data, Event, Http, Loss, Lost, Opened, Place, Sink};
pub use har::HarSink;
pub use hexdump::write_hexdump;
pub use json::{JsonSink, LineType};
pub use keylog::{KeyLines, KeyLog, KeyTotals};
pub use packets::{PacketSink, PacketTotals};
pub use pcapng::{Interface, InterfaceStatistics, Packet, PacketDirection, PcapngWriter, Section};
pub use plaintext_packets::PlaintextPackets;
pub use protocol::{Limits, Redaction};
pub use recording::{Entry, RecordingError, RecordingReader, RecordingWriter};
pub use text::{Palette, PayloadStyle, TextSink};
pub use time::Timestamp;
pub use tracker::{Totals, Tracker};
