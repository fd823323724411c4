//! Real connections between an `h2` client and server: what passed, and what both programs saw.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, client, server};
use http::{HeaderMap, Request, Response, StatusCode};
use protocol::Side;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// What passed at the client's end, in order.
pub(crate) type Passed = Vec<(Side, Vec<u8>)>;

/// Names and values, sorted.
pub(crate) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// What one program saw of the other's message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Method and path, or status.
    pub(crate) line: String,
    pub(crate) fields: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Fields,
    /// The error code, if it was reset.
    pub(crate) reset: Option<u32>,
}

/// By stream, the request as the server saw it, and the response as the client did.
pub(crate) type Seen = BTreeMap<u64, [Message; 2]>;

/// What the client asks for.
pub(crate) struct Plan {
    pub(crate) exchanges: usize,
    /// How many at a time.
    pub(crate) concurrent: usize,
    /// Length of the longest bodies.
    pub(crate) longest: usize,
    /// Length of a header field that a few requests have.
    pub(crate) huge: usize,
    /// `SETTINGS_HEADER_TABLE_SIZE` of the client.
    pub(crate) table: u32,
}

/// Runs the plan and returns what passed and what was seen.
pub(crate) fn record(plan: &Plan) -> (Passed, Seen) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let passed = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::new(Mutex::new(Seen::new()));
    let (near, far) = tokio::io::duplex(1 << 20);
    let tap = Tap {
        stream: near,
        passed: passed.clone(),
    };
    runtime.block_on(async {
        let serving = tokio::spawn(serve(far, seen.clone()));
        ask(tap, plan, seen.clone()).await;
        serving.await.unwrap();
    });
    drop(runtime);
    let passed = std::mem::take(&mut *passed.lock().unwrap());
    (passed, Arc::into_inner(seen).unwrap().into_inner().unwrap())
}

/// The body of an exchange: bytes that look random and differ between exchanges.
fn body(number: usize, longest: usize) -> Bytes {
    let mut state = number as u32 + 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next)
        .take(number * 37 % (longest + 1))
        .collect()
}

fn sorted(map: &HeaderMap) -> Fields {
    let own = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec())
    };
    let mut fields: Fields = map.iter().map(own).collect();
    fields.sort();
    fields
}

/// Which requests end otherwise than by a response: reset by the client, by the server.
fn resets(number: usize) -> [bool; 2] {
    [number % 23 == 22, number % 29 == 28]
}

async fn ask(tap: Tap, plan: &Plan, seen: Arc<Mutex<Seen>>) {
    let (sender, connection) = client::Builder::new()
        .header_table_size(plan.table)
        .handshake::<_, Bytes>(tap)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    for first in (0..plan.exchanges).step_by(plan.concurrent) {
        let last = plan.exchanges.min(first + plan.concurrent);
        let tasks = (first..last).map(|number| {
            let (longest, huge) = (plan.longest, plan.huge);
            tokio::spawn(exchange(
                sender.clone(),
                number,
                longest,
                huge,
                seen.clone(),
            ))
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    }
    drop(sender);
    connection.await.unwrap().unwrap();
}

async fn exchange(
    sender: client::SendRequest<Bytes>,
    number: usize,
    longest: usize,
    huge: usize,
    seen: Arc<Mutex<Seen>>,
) {
    let body = body(number, longest);
    let mut request = Request::builder()
        .method(["GET", "POST", "PUT", "DELETE"][number % 4])
        .uri(format!("https://a.example/path/{}", number % 7))
        .header("user-agent", "recording")
        .header("x-number", number.to_string());
    if number % 31 == 30 {
        request = request.header("x-huge", "huge ".repeat(huge / 5));
    }
    let mut sender = sender.ready().await.unwrap();
    let request = request.body(()).unwrap();
    let (response, mut out) = sender.send_request(request, body.is_empty()).unwrap();
    let id = u64::from(response.stream_id().as_u32());
    if resets(number)[0] {
        // Once its head is on its way.
        tokio::task::yield_now().await;
        out.send_reset(Reason::CANCEL);
    } else if !body.is_empty() {
        out.send_data(body, !number.is_multiple_of(3)).unwrap();
        if number.is_multiple_of(3) {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-check", number.into());
            out.send_trailers(trailers).unwrap();
        }
    }
    let mut message = Message::default();
    match response.await {
        Ok(response) => {
            message.line = response.status().as_str().into();
            message.fields = sorted(response.headers());
            receive(response.into_body(), &mut message).await;
        }
        Err(error) => message.reset = error.reason().map(Into::into),
    }
    seen.lock().unwrap().entry(id).or_default()[1] = message;
}

async fn serve(stream: DuplexStream, seen: Arc<Mutex<Seen>>) {
    let mut connection = server::Builder::new()
        .max_concurrent_streams(1000)
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 24)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    let mut tasks = Vec::new();
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.unwrap();
        tasks.push(tokio::spawn(answer(request, respond, seen.clone())));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: Arc<Mutex<Seen>>,
) {
    let id = u64::from(respond.stream_id().as_u32());
    let mut message = Message {
        line: format!("{} {}", request.method(), request.uri()),
        fields: sorted(request.headers()),
        ..Message::default()
    };
    let number: usize = request.headers()["x-number"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    receive(request.into_body(), &mut message).await;
    let reversed: Bytes = message.body.iter().rev().copied().collect();
    let was_reset = message.reset.is_some();
    seen.lock().unwrap().entry(id).or_default()[0] = message;
    if was_reset {
        return;
    }
    if resets(number)[1] {
        respond.send_reset(Reason::REFUSED_STREAM);
        return;
    }
    let status = [200, 201, 302, 404][number % 4];
    let response = Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header("server", "recording")
        .header("x-answer", (number % 11).to_string())
        .body(())
        .unwrap();
    // The client may be gone.
    let Ok(mut out) = respond.send_response(response, number % 5 == 4) else {
        return;
    };
    if number % 5 != 4 {
        let _ = out.send_data(reversed, false);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", (number % 16).into());
        let _ = out.send_trailers(trailers);
    }
}

async fn receive(mut stream: RecvStream, message: &mut Message) {
    while let Some(data) = stream.data().await {
        match data {
            Ok(data) => {
                let _ = stream.flow_control().release_capacity(data.len());
                message.body.extend(data);
            }
            Err(error) => {
                message.reset = error.reason().map(Into::into);
                return;
            }
        }
    }
    match stream.trailers().await {
        Ok(trailers) => message.trailers = trailers.as_ref().map(sorted).unwrap_or_default(),
        Err(error) => message.reset = error.reason().map(Into::into),
    }
}

/// Writes down what the client sends and receives.
struct Tap {
    stream: DuplexStream,
    passed: Arc<Mutex<Passed>>,
}

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let bytes = buffer.filled()[before..].to_vec();
        self.passed.lock().unwrap().push((Side::Server, bytes));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tap {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.passed
            .lock()
            .unwrap()
            .push((Side::Client, bytes[..count].to_vec()));
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
