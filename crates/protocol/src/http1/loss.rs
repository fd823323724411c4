//! What is missing or malformed, and how a side is understood again.

use std::mem;

use super::head::Framing;
use super::start_line::{Match, certain_start_line, status_line};
use super::{Http1, Input, State};
use crate::event::{Cause, HttpEvent, HttpSink, Side, StreamId, Trouble};

impl Http1 {
    pub(super) fn find_head(&mut self, input: Input<'_>, sink: &mut HttpSink<'_>) -> usize {
        if !input.begins {
            return input.bytes.len();
        }
        let stream = self.stream(input.side);
        if !stream.buffer.is_empty() {
            return self.again_with_buffer(input, sink);
        }
        match certain_start_line(input.side, input.bytes) {
            Match::Partial => {
                stream.buffer.extend(input.bytes);
                stream.buffer_offset = input.offset;
                input.bytes.len()
            }
            Match::Yes => {
                stream.state = State::Head;
                stream.unseen = false;
                if input.side == Side::Server && self.pairing.outstanding() > 1 {
                    self.doubt_all(input.offset, sink);
                }
                0
            }
            Match::No => {
                if mem::take(&mut stream.unseen) {
                    let why = Trouble::MidStream;
                    sink(HttpEvent::Trouble(None, input.side, input.offset, why));
                }
                if input.side == Side::Server && self.pairing.outstanding() > 0 {
                    self.doubt_all(input.offset, sink);
                }
                input.bytes.len()
            }
        }
    }

    pub(super) fn body_or_head(&mut self, input: Input<'_>, sink: &mut HttpSink<'_>) -> usize {
        let stream = self.stream(input.side);
        if !stream.buffer.is_empty() {
            return self.again_with_buffer(input, sink);
        }
        match status_line(input.bytes) {
            Match::Partial => {
                stream.buffer.extend(input.bytes);
                stream.buffer_offset = input.offset;
                return input.bytes.len();
            }
            Match::Yes => {
                let State::BodyOrHead(id, _) = stream.state else {
                    return 0;
                };
                self.end(input.side, id, sink);
            }
            Match::No => {
                let state = mem::replace(&mut stream.state, State::Lost);
                if let State::BodyOrHead(id, framing) = state {
                    stream.state = State::Body(id, framing);
                }
            }
        }
        0
    }

    /// Takes the held bytes and the new ones together.
    pub(super) fn again_with_buffer(&mut self, input: Input<'_>, sink: &mut HttpSink<'_>) -> usize {
        let stream = self.stream(input.side);
        let offset = stream.buffer_offset;
        let mut bytes = stream.take_buffer();
        bytes.extend(input.bytes);
        let again = Input {
            offset,
            bytes: &bytes,
            begins: true,
            ..input
        };
        self.feed(again, sink);
        input.bytes.len()
    }

    /// What the server sends does not fit what was asked.
    pub(super) fn doubt_all(&mut self, offset: u64, sink: &mut HttpSink<'_>) {
        let why = Trouble::Unpaired;
        let ids = self.pairing.give_up(why.clone());
        self.give_up(ids, Side::Server, offset, &why, sink);
    }

    /// This side cannot be understood until a message begins. `id` is the message that is incomplete.
    pub(super) fn lose(
        &mut self,
        side: Side,
        id: Option<StreamId>,
        offset: u64,
        why: Trouble,
        sink: &mut HttpSink<'_>,
    ) {
        let stream = self.stream(side);
        stream.take_buffer();
        stream.state = State::Lost;
        stream.unseen = false;
        stream.may_switch = false;
        if side == Side::Client {
            sink(HttpEvent::Trouble(id, side, offset, why.clone()));
            return self.pairing.client_lost(offset, why);
        }
        let ids = self.pairing.server_lost();
        let told = id.map_or(!ids.is_empty(), |id| ids.contains(&id));
        if !told {
            sink(HttpEvent::Trouble(id, side, offset, why.clone()));
        }
        self.give_up(ids, side, offset, &why, sink);
    }

    /// These requests get no response.
    pub(super) fn give_up(
        &mut self,
        ids: Vec<StreamId>,
        side: Side,
        offset: u64,
        why: &Trouble,
        sink: &mut HttpSink<'_>,
    ) {
        for id in &ids {
            sink(HttpEvent::Trouble(Some(*id), side, offset, why.clone()));
        }
        for id in ids {
            self.release(id, sink);
        }
    }

    pub(super) fn gap_in(
        &mut self,
        side: Side,
        offset: u64,
        bytes: u64,
        cause: Cause,
        sink: &mut HttpSink<'_>,
    ) {
        let why = cause.trouble(bytes);
        match &mut self.stream(side).state {
            State::Body(id, Framing::Length(left)) => {
                let id = *id;
                let missing = bytes.min(*left);
                *left -= missing;
                let complete = *left == 0;
                sink(HttpEvent::Missing(id, side, missing, cause));
                if complete {
                    self.end(side, id, sink);
                }
                if bytes > missing {
                    let offset = offset.saturating_add(missing);
                    self.gap_in(side, offset, bytes - missing, cause, sink);
                }
            }
            State::Body(id, Framing::Chunked(chunked)) => {
                let id = *id;
                if chunked.skip(bytes) {
                    sink(HttpEvent::Missing(id, side, bytes, cause));
                } else {
                    self.lose(side, Some(id), offset, why, sink);
                }
            }
            State::Body(id, Framing::UntilClose) | State::Tunnel(id) => {
                sink(HttpEvent::Missing(*id, side, bytes, cause));
            }
            State::BodyOrHead(id, _) => {
                let id = *id;
                self.lose(side, Some(id), offset, why, sink);
            }
            State::Held(id) => {
                sink(HttpEvent::End(*id, side));
                self.lose(side, None, offset, why, sink);
            }
            State::Head | State::Lost => self.lose(side, None, offset, why, sink),
        }
    }
}
