//! What a connection's plaintext says: HTTP/1, HTTP/2, gRPC and WebSocket.
//!
//! Nothing here touches the kernel, the file system or the clock. Three layers, each of which can be
//! tested alone:
//!
//! ```text
//! bytes ──► Conversation ──► Decoder (http1, http2, websocket) ──► HttpEvent ──► Exchanges ──► Exchange
//! (both ways, with gaps)     (bytes on the wire, framing)          (heads, body)  (pairing, content
//!                                                                                 decoding, gRPC)
//! ```
//!
//! Every byte is untrusted: it comes from a program and its peers. Decoders never panic, hold bounded
//! memory whatever they are fed, and say where and why they stopped understanding.
#![forbid(unsafe_code)]

mod body;
mod budget;
mod conversation;
mod event;
mod event_stream;
mod exchange;
mod exchanges;
mod grpc;
mod hpack;
pub mod http1;
pub mod http2;
mod media;
mod protobuf;
pub mod websocket;

pub use body::{Body, Coding, ContentState};
pub use budget::{Budget, Limits};
pub use conversation::{
    Conversation, ConversationEvent, ConversationSink, Hint, Protocol, RAW_MAX, UNDECIDED_MAX,
};
pub use event::{
    Cause, Decoder, Field, HttpEvent, HttpSink, Missing, RequestHead, ResponseHead, Side, StreamId,
    Trouble, Version,
};
pub use exchange::{
    Ending, Exchange, Message, MessageKind, Redaction, Sent, Time, field_value, reset_name,
};
pub use exchanges::{Exchanges, Notice, NoticeSink};
pub use grpc::Grpc;
pub use http1::Http1;
pub use http2::Http2;
pub use media::{Kind, MultipartPart, is_text, multipart_parts, to_utf8};
pub use protobuf::{ProtobufField, ProtobufValue, parse_protobuf};
pub use websocket::{WebSocket, WebSocketEvent};
