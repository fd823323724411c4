//! Connections that become something else: `Upgrade` and `CONNECT` (RFC 9110 sections 7.8 and 9.3.6).
//!
//! What a client sends behind such a request is held until the response tells what it is.

use super::head::{self, Asked};
use super::{HELD_MAX, Http1, Input, State};
use crate::event::{HttpEvent, HttpSink, ResponseHead, Side, StreamId, Trouble};

impl Http1 {
    pub(super) fn hold(
        &mut self,
        id: StreamId,
        input: Input<'_>,
        sink: &mut HttpSink<'_>,
    ) -> usize {
        let stream = self.stream(input.side);
        if stream.buffer.is_empty() {
            stream.buffer_offset = input.offset;
        }
        if stream.buffer.len() + input.bytes.len() <= HELD_MAX {
            stream.buffer.extend(input.bytes);
            return input.bytes.len();
        }
        let offset = stream.buffer_offset;
        sink(HttpEvent::End(id, Side::Client));
        let why = Trouble::TooMuch("bytes behind a request to switch protocols", HELD_MAX);
        self.lose(Side::Client, None, offset, why, sink);
        input.bytes.len()
    }

    /// The response to a request that might have turned the connection into something else is none
    /// that does, or is missing.
    pub(super) fn release(&mut self, id: StreamId, sink: &mut HttpSink<'_>) {
        let stream = self.stream(Side::Client);
        stream.may_switch = false;
        if !matches!(stream.state, State::Held(held) if held == id) {
            return;
        }
        stream.state = State::Head;
        let offset = stream.buffer_offset;
        let bytes = stream.take_buffer();
        sink(HttpEvent::End(id, Side::Client));
        let held = Input {
            side: Side::Client,
            offset,
            bytes: &bytes,
            begins: true,
        };
        self.feed(held, sink);
    }

    /// From here on the connection carries something else.
    pub(super) fn switch(&mut self, id: StreamId, protocol: Vec<u8>, sink: &mut HttpSink<'_>) {
        sink(HttpEvent::Switched(id, protocol));
        self.stream(Side::Server).state = State::Tunnel(id);
        let client = self.stream(Side::Client);
        match client.state {
            State::Body(..) | State::BodyOrHead(..) => {
                self.switched = Some(id);
                return;
            }
            State::Held(held) if held != id => sink(HttpEvent::End(held, Side::Client)),
            _ => {}
        }
        let client = self.stream(Side::Client);
        client.state = State::Tunnel(id);
        let bytes = client.take_buffer();
        if !bytes.is_empty() {
            sink(HttpEvent::Body(id, Side::Client, &bytes));
        }
    }
}

/// What the connection carries behind a response (RFC 9110 sections 7.8 and 9.3.6).
pub(super) fn switches_to(
    head: &ResponseHead,
    asked: Option<Asked>,
) -> Result<Option<Vec<u8>>, Trouble> {
    match (head.status, asked) {
        (Some(101), None | Some(Asked::Upgrade)) => {
            let protocol = head::values(&head.fields, "upgrade").next();
            Ok(Some(protocol.unwrap_or_default().to_vec()))
        }
        (Some(101), Some(_)) => Err(Trouble::Malformed("101 to a request without Upgrade")),
        (Some(200..=299), Some(Asked::Connect)) => Ok(Some(b"CONNECT".to_vec())),
        _ => Ok(None),
    }
}
