//! From the events of a decoder to exchanges: pairs requests with responses, keeps bodies, and finds
//! the messages in them.
//!
//! An exchange is handed out when it ends. One that lasts, such as a WebSocket, a stream of
//! server-sent events, a gRPC stream or a slow answer, is announced before: its heads, and then each
//! message or piece of text as it passes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::body::Body;
use crate::budget::{Budget, Limits, Reservation};
use crate::event::{
    Cause, Field, HttpEvent, Missing, RequestHead, ResponseHead, Side, StreamId, Trouble,
};
use crate::event_stream::EventStream;
use crate::exchange::{
    Ended, Ending, Exchange, Message, MessageKind, Redaction, Time, field_value,
};
use crate::grpc::{Deframer, Framed, Grpc, is_grpc};
use crate::media::essence;
use crate::websocket::{self, WebSocket, WebSocketEvent, WebSocketSink};

/// What became known of the exchanges of a connection.
#[derive(Debug)]
pub enum Notice<'a> {
    /// This one lasts. Its request is known, and maybe its response's head.
    Began(&'a Exchange),
    /// The response's head of one that was announced without it.
    Response(&'a Exchange),
    /// A message of one that was announced, or more of its body's text.
    Message(&'a Exchange, &'a Message),
    /// This one ended.
    Finished(&'a Exchange),
    /// Something could not be decoded that belongs to no exchange: who sent it, at which offset.
    Trouble(Side, u64, Trouble),
}

/// Takes notices.
pub type NoticeSink<'s> = dyn FnMut(Notice<'_>) + 's;

/// Bytes that are kept of media types and the like.
const NAMES_MAX: usize = 256;

/// What the exchanges of a connection have in common.
#[derive(Debug)]
struct Means {
    limits: Limits,
    budget: Budget,
    redaction: Arc<Redaction>,
}

/// The exchanges of one connection.
#[derive(Debug)]
pub struct Exchanges {
    means: Arc<Means>,
    open: BTreeMap<StreamId, Box<Open>>,
    ended: Ended,
    untracked: u64,
}

impl Exchanges {
    /// How many exchanges of a connection may be open.
    pub const OPEN_MAX: usize = 1024;

    /// How long an exchange may go on before it is announced, in ns.
    pub const ANNOUNCED_AFTER: u64 = 1_000_000_000;

    /// No exchange yet. Memory is taken from `total`, and no more of it than the limit for one
    /// connection.
    pub fn new(limits: Limits, total: &Budget, redaction: Arc<Redaction>) -> Self {
        let budget = total.part(limits.connection);
        Self {
            means: Arc::new(Means {
                limits,
                budget,
                redaction,
            }),
            open: BTreeMap::new(),
            ended: Ended::default(),
            untracked: 0,
        }
    }

    /// How many exchanges were left out for lack of memory.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Whether no exchange is open.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes the next event, which the call at `time` brought.
    pub fn event(&mut self, time: Time, event: HttpEvent<'_>, sink: &mut NoticeSink<'_>) {
        match event {
            HttpEvent::Request(stream, head) => {
                if let Some(open) = self.open(stream, sink) {
                    open.request(time, head);
                }
            }
            HttpEvent::Response(stream, head) => {
                if let Some(open) = self.open(stream, sink) {
                    open.response(time, head, sink);
                }
            }
            HttpEvent::Body(stream, side, bytes) => {
                if let Some(open) = self.open(stream, sink) {
                    open.bytes(time, side, bytes, sink);
                }
            }
            HttpEvent::Missing(stream, side, bytes, cause) => {
                if let Some(open) = self.open(stream, sink) {
                    open.missing(time, side, bytes, cause, sink);
                }
            }
            HttpEvent::Trailers(stream, side, fields) => {
                if let Some(open) = self.open(stream, sink) {
                    open.trailers(time, side, fields);
                }
            }
            HttpEvent::End(stream, side) => self.end(time, stream, side, sink),
            HttpEvent::Reset(stream, side, code) => {
                if let Some(open) = self.open(stream, sink) {
                    open.touch(side, time);
                    self.finish(time, stream, Ending::Reset(side, code), sink);
                    self.ended.insert(stream);
                }
            }
            HttpEvent::Switched(stream, protocol) => {
                if let Some(open) = self.open(stream, sink) {
                    open.switched(protocol, sink);
                }
            }
            HttpEvent::Trouble(Some(stream), side, _, trouble) => {
                if let Some(open) = self.open(stream, sink) {
                    // Of a request that was missed, nothing more comes.
                    let (request, response) = (&open.exchange.request, &open.exchange.response);
                    if side == Side::Server || request.is_seen() || !response.is_seen() {
                        open.touch(side, time);
                    }
                    open.trouble(side, trouble);
                }
            }
            HttpEvent::Trouble(None, side, offset, trouble) => {
                sink(Notice::Trouble(side, offset, trouble));
            }
        }
    }

    /// Announces what has been going on for a while at `now`.
    pub fn tick(&mut self, now: Time, sink: &mut NoticeSink<'_>) {
        for open in self.open.values_mut() {
            let began = open.exchange.began();
            if began.is_some_and(|began| now.since(began) >= Self::ANNOUNCED_AFTER) {
                open.announce(sink);
            }
        }
    }

    /// Ends all exchanges that are open.
    pub fn close(&mut self, time: Time, ending: Ending, sink: &mut NoticeSink<'_>) {
        while let Some(mut open) = self.open.first_entry() {
            let stream = *open.key();
            let ending = open.get_mut().cease().unwrap_or(ending);
            self.finish(time, stream, ending, sink);
        }
    }

    /// The open exchange of this stream, if need be a new one. `None` if it has ended, or if there is
    /// no memory for it.
    fn open(&mut self, stream: StreamId, sink: &mut NoticeSink<'_>) -> Option<&mut Open> {
        if !self.open.contains_key(&stream) {
            if self.ended.contains(stream) {
                return None;
            }
            let exchange = loop {
                let full = self.open.len() >= Self::OPEN_MAX;
                if let Some(exchange) = Exchange::new(stream, &self.means.budget).filter(|_| !full)
                {
                    break exchange;
                }
                let Some((&oldest, open)) = self.open.first_key_value() else {
                    self.untracked += 1;
                    self.ended.insert(stream);
                    return None;
                };
                let latest = open.exchange.latest().unwrap_or(Time::at(0, 0));
                self.finish(latest, oldest, Ending::Displaced, sink);
                self.ended.insert(oldest);
            };
            self.open
                .insert(stream, Box::new(Open::new(exchange, self.means.clone())));
        }
        self.open.get_mut(&stream).map(|open| &mut **open)
    }

    fn end(&mut self, time: Time, stream: StreamId, side: Side, sink: &mut NoticeSink<'_>) {
        let Some(open) = self.open(stream, sink) else {
            return;
        };
        open.end(time, side, sink);
        let request_unseen = !open.exchange.request.is_seen();
        if open.exchange.is_whole() && !open.is_switching() {
            self.finish(time, stream, Ending::Complete, sink);
            if request_unseen {
                self.ended.insert(stream);
            }
        }
    }

    fn finish(&mut self, time: Time, stream: StreamId, ending: Ending, sink: &mut NoticeSink<'_>) {
        if let Some(mut open) = self.open.remove(&stream) {
            for side in [Side::Client, Side::Server] {
                open.settle(time, side, sink);
            }
            open.exchange.ending = Some(ending);
            sink(Notice::Finished(&open.exchange));
        }
    }
}

/// An exchange that has not ended, and what its bodies are taken apart with.
#[derive(Debug)]
struct Open {
    means: Arc<Means>,
    exchange: Exchange,
    /// What each side's body is taken for ([`Side::index`]).
    bodies: [Framing; 2],
    socket: Option<Box<Socket>>,
    /// Which sides sent a WebSocket's closing message ([`Side::index`]).
    closing: [bool; 2],
    settled: [bool; 2],
    message_bytes: u64,
}

/// What is in a body.
#[derive(Debug)]
enum Framing {
    /// Bytes.
    None,
    /// Messages of gRPC, and their compression.
    Grpc(Deframer, Vec<u8>),
    /// Server-sent events.
    Events(EventStream),
}

/// What an exchange has become behind its heads.
#[derive(Debug)]
struct Socket {
    decoder: WebSocket,
    /// For what the decoder holds.
    reservation: Reservation,
}

impl Open {
    fn new(exchange: Exchange, means: Arc<Means>) -> Self {
        Self {
            means,
            exchange,
            bodies: [Framing::None, Framing::None],
            socket: None,
            closing: [false; 2],
            settled: [false; 2],
            message_bytes: 0,
        }
    }

    fn request(&mut self, time: Time, mut head: RequestHead) {
        let exchange = &mut self.exchange;
        exchange.request.touch(time);
        exchange.request.content_type = owned(&head.fields, "content-type");
        exchange.request.content_encoding = owned(&head.fields, "content-encoding");
        exchange.request.content_length = content_length(&head.fields);
        if exchange
            .request
            .content_type
            .as_deref()
            .is_some_and(is_grpc)
        {
            exchange.grpc = Some(Grpc::of(Some(&head)));
            self.bodies[Side::Client.index()] = grpc_framing(&head.fields);
        }
        self.means.redaction.apply(&mut head.fields);
        let line = [&head.method, &head.scheme, &head.authority, &head.target];
        // The target also gives the names of a gRPC call.
        let line: usize = line.into_iter().flatten().map(|part| 2 * part.len()).sum();
        if !self.granted(Side::Client, &head.fields, line) {
            head = RequestHead {
                method: None,
                scheme: None,
                authority: None,
                target: None,
                fields: Vec::new(),
                ..head
            };
            self.exchange.grpc = None;
        }
        self.exchange.request.head = Some(head);
    }

    fn response(&mut self, time: Time, mut head: ResponseHead, sink: &mut NoticeSink<'_>) {
        let interim = head
            .status
            .is_some_and(|status| (100..200).contains(&status) && status != 101);
        let full = self.exchange.interim.len() == Exchange::INTERIM_MAX;
        if self.exchange.response.head.is_some() || interim && full {
            return;
        }
        let content_type = owned(&head.fields, "content-type");
        let content_encoding = owned(&head.fields, "content-encoding");
        let content_length = content_length(&head.fields);
        let framing = self.response_framing(&head, content_type.as_deref());
        self.means.redaction.apply(&mut head.fields);
        if !self.granted(Side::Server, &head.fields, head.reason.len()) {
            head.fields = Vec::new();
            head.reason = Vec::new();
        }
        if interim {
            self.exchange.interim.push(head);
            return;
        }
        let response = &mut self.exchange.response;
        response.touch(time);
        response.head = Some(head);
        response.content_type = content_type;
        response.content_encoding = content_encoding;
        response.content_length = content_length;
        let lasts = matches!(framing, Framing::Events(_));
        self.bodies[Side::Server.index()] = framing;
        if self.exchange.announced.is_some() {
            sink(Notice::Response(&self.exchange));
        } else if lasts {
            self.announce(sink);
        }
    }

    fn response_framing(&mut self, head: &ResponseHead, content_type: Option<&[u8]>) -> Framing {
        let Some(content_type) = content_type else {
            return Framing::None;
        };
        if is_grpc(content_type) {
            let request = self.exchange.request.head.as_ref();
            let grpc = self.exchange.grpc.get_or_insert_with(|| Grpc::of(request));
            grpc.outcome(&head.fields);
            return grpc_framing(&head.fields);
        }
        let plain = field_value(&head.fields, "content-encoding").is_none();
        if plain && essence(content_type) == "text/event-stream" {
            return Framing::Events(EventStream::new(&self.means.budget));
        }
        Framing::None
    }

    fn bytes(&mut self, time: Time, side: Side, bytes: &[u8], sink: &mut NoticeSink<'_>) {
        self.touch(side, time);
        if self.socket.is_some() {
            self.body(side).count(bytes.len() as u64);
            return self.socket(time, side, sink, |socket, sink| {
                socket.data(side, bytes, sink)
            });
        }
        match &mut self.bodies[side.index()] {
            Framing::None => {
                let limit = self.means.limits.body;
                let kept = self.body(side).push(bytes, limit);
                if self.exchange.announced.is_some() && self.exchange.is_shown_in_pieces(side) {
                    self.piece(time, side, &bytes[..kept], sink);
                }
            }
            Framing::Grpc(deframer, _) => {
                let mut messages = Vec::new();
                let result =
                    deframer.push(bytes, self.means.limits.body, &self.means.budget, |m| {
                        messages.push(m)
                    });
                self.body(side).count(bytes.len() as u64);
                if let Err(wrong) = result {
                    self.trouble(side, Trouble::Malformed(wrong));
                }
                for message in messages {
                    self.grpc(time, side, message, sink);
                }
            }
            Framing::Events(events) => {
                let mut found = Vec::new();
                events.push(bytes, self.means.limits.body, &self.means.budget, |event| {
                    found.push(event)
                });
                let limit = self.means.limits.body;
                self.body(side).push(bytes, limit);
                for body in found {
                    self.message(time, side, MessageKind::Event, body, sink);
                }
            }
        }
    }

    fn missing(
        &mut self,
        time: Time,
        side: Side,
        bytes: u64,
        cause: Cause,
        sink: &mut NoticeSink<'_>,
    ) {
        self.touch(side, time);
        self.body(side).skip(bytes, cause);
        if self.socket.is_some() {
            return self.socket(time, side, sink, |socket, sink| {
                socket.missing(side, bytes, cause, sink)
            });
        }
        match &mut self.bodies[side.index()] {
            Framing::None => {}
            Framing::Grpc(deframer, _) => {
                if let Some(message) = deframer.skip(bytes, cause) {
                    self.grpc(time, side, message, sink);
                }
            }
            Framing::Events(events) => {
                if let Some(body) = events.skip(bytes, cause, &self.means.budget) {
                    self.message(time, side, MessageKind::Event, body, sink);
                }
            }
        }
    }

    fn trailers(&mut self, time: Time, side: Side, mut fields: Vec<Field>) {
        self.touch(side, time);
        if let Some(grpc) = &mut self.exchange.grpc {
            grpc.outcome(&fields);
        }
        self.means.redaction.apply(&mut fields);
        if !self.granted(side, &fields, 0) {
            return;
        }
        match side {
            Side::Client => self.exchange.request.trailers = fields,
            Side::Server => self.exchange.response.trailers = fields,
        }
    }

    fn switched(&mut self, mut protocol: Vec<u8>, sink: &mut NoticeSink<'_>) {
        protocol.truncate(NAMES_MAX);
        self.exchange.switched = Some(protocol);
        self.exchange.request.complete = false;
        self.exchange.response.complete = false;
        self.settled = [false; 2];
        if self.exchange.is_web_socket() {
            let head = self.exchange.response.head.as_ref();
            let extensions = head.map(|head| joined(&head.fields, "sec-websocket-extensions"));
            self.socket = Some(Box::new(Socket {
                decoder: WebSocket::new(&extensions.unwrap_or_default()),
                reservation: Reservation::none(&self.means.budget),
            }));
        }
        self.announce(sink);
    }

    /// Feeds the WebSocket and takes what comes of it.
    fn socket(
        &mut self,
        time: Time,
        side: Side,
        sink: &mut NoticeSink<'_>,
        feed: impl FnOnce(&mut WebSocket, &mut WebSocketSink<'_>),
    ) {
        let Some(mut socket) = self.socket.take() else {
            return;
        };
        feed(&mut socket.decoder, &mut |event| {
            self.socket_event(time, event, sink)
        });
        if socket.reservation.resize(socket.decoder.held()) {
            self.socket = Some(socket);
        } else {
            let trouble = Trouble::TooMuch("memory for WebSockets", self.means.limits.connection);
            self.trouble(side, trouble);
            // What follows counts as a body of bytes.
            self.body(side).cut();
        }
    }

    fn socket_event(&mut self, time: Time, event: WebSocketEvent<'_>, sink: &mut NoticeSink<'_>) {
        let mut whole = true;
        let none = (0, Missing::default());
        let (side, kind, payload, (length, missing)) = match event {
            WebSocketEvent::Message(side, message) => {
                let kind = match message.kind {
                    websocket::MessageKind::Text => MessageKind::Text,
                    websocket::MessageKind::Binary => MessageKind::Binary,
                };
                let sizes = (message.wire_length, message.missing);
                whole = message.length == Some(message.payload.len() as u64);
                (side, kind, Cow::Borrowed(message.payload), sizes)
            }
            WebSocketEvent::Ping(side, data) => (side, MessageKind::Ping, data.into(), none),
            WebSocketEvent::Pong(side, data) => (side, MessageKind::Pong, data.into(), none),
            WebSocketEvent::Close(side, code, reason) => {
                self.closing[side.index()] = true;
                let code = code.map(u16::to_be_bytes);
                let payload = [code.as_ref().map_or(&[][..], |code| code), reason].concat();
                (side, MessageKind::Close, Cow::Owned(payload), none)
            }
            WebSocketEvent::Trouble(side, _, trouble) => return self.trouble(side, trouble),
        };
        let limit = self.means.limits.body;
        let length = length.max(payload.len() as u64);
        let mut body = Body::of(&payload, length, missing, limit, &self.means.budget);
        if !whole {
            body.cut();
        }
        self.message(time, side, kind, body, sink);
    }

    fn end(&mut self, time: Time, side: Side, sink: &mut NoticeSink<'_>) {
        self.touch(side, time);
        match side {
            Side::Client => self.exchange.request.complete = true,
            Side::Server => self.exchange.response.complete = true,
        }
        // Of an upgrade, the bodies are still to come.
        if !self.is_switching() {
            self.settle(time, side, sink);
        }
    }

    /// Neither side sends any more: how it ended, if all was said nevertheless.
    fn cease(&mut self) -> Option<Ending> {
        let exchange = &mut self.exchange;
        if exchange.switched.is_none() {
            exchange.request.cease();
            exchange.response.cease();
        }
        // RFC 6455 section 7.1.4: then a WebSocket was closed cleanly; the connection's end says no more.
        let closed = self.closing == [true; 2];
        (closed || exchange.is_whole() && !self.is_switching()).then_some(Ending::Complete)
    }

    /// Whether the protocol changes behind the heads, of which the decoder is about to tell.
    fn is_switching(&self) -> bool {
        let exchange = &self.exchange;
        let status = exchange.response.head.as_ref().and_then(|head| head.status);
        status == Some(101) && exchange.switched.is_none()
    }

    /// Nothing more comes from this side: takes the last message, and decodes the body.
    fn settle(&mut self, time: Time, side: Side, sink: &mut NoticeSink<'_>) {
        if std::mem::replace(&mut self.settled[side.index()], true) {
            return;
        }
        self.socket(time, side, sink, WebSocket::close);
        match &mut self.bodies[side.index()] {
            Framing::None => {}
            Framing::Grpc(deframer, _) => {
                if let Some(message) = deframer.end() {
                    self.grpc(time, side, message, sink);
                }
                return;
            }
            Framing::Events(events) => {
                if let Some(body) = events.end(&self.means.budget) {
                    self.message(time, side, MessageKind::Event, body, sink);
                }
            }
        }
        let (body, complete, coding) = match side {
            Side::Client => {
                let sent = &mut self.exchange.request;
                (&mut sent.body, sent.complete, &sent.content_encoding)
            }
            Side::Server => {
                let sent = &mut self.exchange.response;
                (&mut sent.body, sent.complete, &sent.content_encoding)
            }
        };
        if !complete {
            body.cut();
        }
        if let Some(coding) = coding
            .as_deref()
            .filter(|_| self.exchange.switched.is_none())
        {
            body.decode(coding, self.means.limits.body, &self.means.budget);
        }
    }

    /// Takes a message of gRPC.
    fn grpc(&mut self, time: Time, side: Side, framed: Framed, sink: &mut NoticeSink<'_>) {
        let mut body = framed.body;
        if let (true, Framing::Grpc(_, coding)) = (framed.compressed, &self.bodies[side.index()]) {
            body.decode(coding, self.means.limits.body, &self.means.budget);
        }
        if !framed.trailers {
            self.message(time, side, MessageKind::Grpc, body, sink);
            return;
        }
        let fields: Vec<_> = body
            .content()
            .split(|&byte| byte == b'\n')
            .filter_map(field)
            .collect();
        if let Some(grpc) = &mut self.exchange.grpc {
            grpc.outcome(&fields);
        }
    }

    /// Takes a message. It is kept if there is room, save server-sent events: these are the body.
    fn message(
        &mut self,
        time: Time,
        side: Side,
        kind: MessageKind,
        body: Body,
        sink: &mut NoticeSink<'_>,
    ) {
        let message = Message {
            time,
            side,
            kind,
            body,
        };
        self.exchange.messages_seen[side.index()] += 1;
        if self.exchange.announced.is_some() {
            sink(Notice::Message(&self.exchange, &message));
        }
        let bytes = self.message_bytes + message.body.content().len() as u64;
        let room = self.exchange.messages.len() < Exchange::MESSAGES_MAX
            && bytes <= self.means.limits.body as u64
            && self.exchange.reservation.grow(size_of::<Message>());
        if kind != MessageKind::Event && room {
            self.message_bytes = bytes;
            self.exchange.messages.push(message);
        }
        if self.exchange.messages_seen[side.index()] > 1 {
            self.announce(sink);
        }
    }

    /// Shows more of a body that is being sent.
    fn piece(&self, time: Time, side: Side, bytes: &[u8], sink: &mut NoticeSink<'_>) {
        let mut body = Body::new(&self.means.budget);
        if body.push(bytes, bytes.len()) > 0 {
            let message = Message {
                time,
                side,
                kind: MessageKind::Piece,
                body,
            };
            sink(Notice::Message(&self.exchange, &message));
        }
    }

    /// Makes known that this exchange lasts, with its messages so far.
    fn announce(&mut self, sink: &mut NoticeSink<'_>) {
        if self.exchange.announced.is_some() {
            return;
        }
        let complete = [Side::Client, Side::Server].map(|side| self.exchange.is_complete(side));
        self.exchange.announced = Some(complete);
        let exchange = &self.exchange;
        sink(Notice::Began(exchange));
        for message in &exchange.messages {
            sink(Notice::Message(exchange, message));
        }
        let (request, response) = (&exchange.request, &exchange.response);
        for (side, complete, latest) in [
            (Side::Client, request.complete, request.latest),
            (Side::Server, response.complete, response.latest),
        ] {
            if let (false, true, Some(time)) =
                (complete, self.exchange.is_shown_in_pieces(side), latest)
            {
                self.piece(time, side, exchange.body(side).content(), sink);
            }
        }
    }

    /// Whether there is memory for header fields and `more` bytes.
    fn granted(&mut self, side: Side, fields: &[Field], more: usize) -> bool {
        let cost = |field: &Field| {
            size_of::<Field>() + field.name.len() + field.value.as_ref().map_or(0, Vec::len)
        };
        let bytes = more + fields.iter().map(cost).sum::<usize>();
        let granted = self.exchange.reservation.grow(bytes);
        if !granted {
            let trouble = Trouble::TooMuch("memory for heads", self.means.limits.total);
            self.trouble(side, trouble);
        }
        granted
    }

    fn trouble(&mut self, side: Side, trouble: Trouble) {
        if self.exchange.trouble.len() < Exchange::TROUBLE_MAX {
            self.exchange.trouble.push((side, trouble));
        }
    }

    fn touch(&mut self, side: Side, time: Time) {
        match side {
            Side::Client => self.exchange.request.touch(time),
            Side::Server => self.exchange.response.touch(time),
        }
    }

    fn body(&mut self, side: Side) -> &mut Body {
        match side {
            Side::Client => &mut self.exchange.request.body,
            Side::Server => &mut self.exchange.response.body,
        }
    }
}

/// A copy of a field's value, of what one can reasonably be.
fn owned(fields: &[Field], name: &str) -> Option<Vec<u8>> {
    let value = field_value(fields, name)?;
    Some(value[..value.len().min(NAMES_MAX)].to_vec())
}

/// `Content-Length`, if it is one number (RFC 9110 section 8.6).
fn content_length(fields: &[Field]) -> Option<u64> {
    let digits = field_value(fields, "content-length")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The values of all fields of this name, as one list (RFC 9110 section 5.3).
fn joined(fields: &[Field], name: &str) -> Vec<u8> {
    let named = |field: &&Field| field.name.eq_ignore_ascii_case(name.as_bytes());
    let values = fields
        .iter()
        .filter(named)
        .filter_map(|field| field.value.as_deref());
    values.collect::<Vec<_>>().join(&b", "[..])
}

fn grpc_framing(fields: &[Field]) -> Framing {
    let coding = owned(fields, "grpc-encoding").unwrap_or_default();
    Framing::Grpc(Deframer::new(), coding)
}

/// A header line of gRPC-Web's trailers.
fn field(line: &[u8]) -> Option<Field> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    Some(Field {
        name: line[..colon].trim_ascii().to_ascii_lowercase(),
        value: Some(line[colon + 1..].trim_ascii().to_vec()),
    })
}

#[cfg(test)]
mod tests;
