//! The thread that sends events to a server, and finds it again when it was away.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};

use super::address::EventAddress;
use super::queue::Queue;
use crate::log;

/// Pauses between two attempts to reach the server: from the first one on they double.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long a server may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often an idle connection is looked after: WebSocket's pings want an answer.
const IDLE: Duration = Duration::from_secs(5);

/// How long to wait for the rest of what the server has begun to say.
const GLANCE: Duration = Duration::from_millis(1);

/// Starts the thread. It ends when the queue is closed and empty.
pub(crate) fn start(address: EventAddress, queue: Arc<Queue>) -> io::Result<()> {
    let sender = thread::Builder::new().name("events".into());
    sender.spawn(move || {
        // What talks to a server needs no privilege for it. If they can't be given up, the main thread says so.
        let _ = capture::give_up_privileges();
        run(&address, &queue);
        queue.end();
    })?;
    Ok(())
}

fn run(address: &EventAddress, queue: &Queue) {
    let mut pause = FIRST_PAUSE;
    let mut trouble = Trouble::default();
    loop {
        let sent = Server::connect(address).and_then(|mut server| {
            server.send_all(queue, &mut pause)?;
            server.bye();
            Ok(())
        });
        let Err(error) = sent else {
            return;
        };
        if queue.is_done() {
            return;
        }
        trouble.say(address, &error);
        queue.pause(pause, FIRST_PAUSE);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What kept events from being sent, of which nobody wants to read at each attempt.
#[derive(Default)]
struct Trouble(String);

impl Trouble {
    fn say(&mut self, address: &EventAddress, error: &io::Error) {
        let said = format!("events to {address}: {error}; ecapture keeps trying");
        if self.0 != said {
            log::line(&format!("note: {}", trace::escape_name(said.as_bytes())));
            self.0 = said;
        }
    }
}

/// A connection to a server.
enum Server {
    Tcp(TcpStream),
    WebSocket(Box<WebSocket<MaybeTlsStream<TcpStream>>>),
}

impl Server {
    fn connect(address: &EventAddress) -> io::Result<Self> {
        match address {
            EventAddress::Tcp(server) => connect_tcp(server).map(Self::Tcp),
            EventAddress::WebSocket(uri) => {
                let default = if uri.scheme_str() == Some("wss") {
                    443
                } else {
                    80
                };
                let host = uri.host().unwrap_or_default();
                let port = uri.port_u16().unwrap_or(default);
                let stream = connect_tcp(&format!("{host}:{port}"))?;
                // The handshake must not wait for ever.
                stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
                let (socket, _) = tungstenite::client_tls(uri, stream).map_err(io::Error::other)?;
                let server = Self::WebSocket(Box::new(socket));
                if let Some(stream) = server.stream() {
                    stream.set_read_timeout(Some(GLANCE))?;
                }
                Ok(server)
            }
            EventAddress::File(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Sends lines until the queue is closed and empty.
    fn send_all(&mut self, queue: &Queue, pause: &mut Duration) -> io::Result<()> {
        loop {
            match queue.next(IDLE) {
                Ok(Some(line)) => {
                    self.glance()?;
                    self.send(&line)?;
                    queue.sent();
                    *pause = FIRST_PAUSE;
                }
                Ok(None) => self.glance()?,
                Err(super::queue::Closed) => return Ok(()),
            }
        }
    }

    fn send(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(line),
            Self::WebSocket(socket) => {
                let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
                socket.send(Message::text(text)).map_err(io::Error::other)
            }
        }
    }

    /// Notices that the server has gone; answers pings. What else it says is of no interest.
    fn glance(&mut self) -> io::Result<()> {
        let Some(stream) = self.stream() else {
            return Ok(());
        };
        stream.set_nonblocking(true)?;
        let seen = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        match seen {
            Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        match self {
            Self::Tcp(stream) => stream.read(&mut [0; 4096]).map(drop),
            Self::WebSocket(socket) => match socket.read() {
                Ok(_) => Ok(()),
                // Part of a frame, or something of TLS.
                Err(tungstenite::Error::Io(error))
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    Ok(())
                }
                Err(error) => Err(io::Error::other(error)),
            },
        }
    }

    /// Ends the connection as the protocol wants it.
    fn bye(&mut self) {
        match self {
            Self::Tcp(stream) => {
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
            Self::WebSocket(socket) => {
                let _ = socket.close(None);
                let _ = socket.flush();
            }
        }
    }

    fn stream(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::WebSocket(socket) => match socket.get_ref() {
                MaybeTlsStream::Plain(stream) => Some(stream),
                MaybeTlsStream::Rustls(tls) => Some(tls.get_ref()),
                _ => None,
            },
        }
    }
}

fn connect_tcp(server: &str) -> io::Result<TcpStream> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for address in server.to_socket_addrs()? {
        result = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT);
        if let Ok(stream) = &result {
            stream.set_nodelay(true)?;
            break;
        }
    }
    result
}
