//! tcpdump records what crosses the wire; tshark makes HTTP of it, as far as it has the keys.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tempfile::TempDir;
use xtask::process::{Child, Stream};

use crate::capture::{Signal, sha256};
use crate::exchange::LONG;
use crate::https::Request;

/// The preference that has tshark use no keys from elsewhere.
pub(crate) const NO_KEYS: &str = "tls.keylog_file:";

/// A running tcpdump.
#[derive(Debug)]
pub(crate) struct Tcpdump {
    tcpdump: Child,
    ports: Vec<u16>,
    /// Sends itself the packet after which nothing is of interest any more.
    marker: UdpSocket,
}

impl Tcpdump {
    /// Records TCP connections to these ports of this machine, and waits until it does.
    pub(crate) fn of_ports(ports: &[u16]) -> Result<Self> {
        let marker = UdpSocket::bind("127.0.0.1:0")?;
        marker.connect(marker.local_addr()?)?;
        let mut filter = format!("udp port {}", marker.local_addr()?.port());
        for port in ports {
            filter += &format!(" or tcp port {port}");
        }
        let tcpdump = Child::spawn(
            Command::new(program("tcpdump")?)
                // A buffer of 16 MiB: nothing may be dropped.
                .args(["-n", "-i", "lo", "-B", "16384", "-U", "-w", "-"])
                .arg(filter),
        )?;
        tcpdump.wait_for_line(Stream::Stderr, LONG, |line| line.contains("listening on"))?;
        Ok(Self {
            tcpdump,
            ports: ports.into(),
            marker,
        })
    }

    /// Ends the recording once everything up to now is in it.
    pub(crate) fn stop(mut self) -> Result<Recording> {
        self.marker.send(b"\nthis is the end\n")?;
        self.tcpdump
            .wait_for_line(Stream::Stdout, LONG, |line| line == "this is the end")?;
        self.tcpdump.signal(Signal::INT)?;
        let finished = self.tcpdump.finish(LONG)?.success()?;
        let said = finished.stderr_text();
        ensure!(said.contains("\n0 packets dropped by kernel"), "{said}");
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("recorded.pcap");
        fs::write(&file, finished.stdout)?;
        Ok(Recording::new(dir, file, &self.ports))
    }
}

/// Recorded packets, in a file of any format that Wireshark knows.
#[derive(Debug)]
pub(crate) struct Recording {
    file: PathBuf,
    ports: Vec<u16>,
    /// Whether TLS goes to these ports.
    encrypted: bool,
    _dir: TempDir,
}

/// A request, and in which connection tshark saw it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) server_port: u16,
    /// tshark's number of the connection.
    pub(crate) connection: u32,
    pub(crate) request: Request,
}

/// The fields of a packet. A field that occurs several times has several values.
pub(crate) type Packet = BTreeMap<String, Vec<String>>;

impl Recording {
    /// A file below `dir`, in which TLS goes to these ports.
    pub(crate) fn new(dir: TempDir, file: PathBuf, ports: &[u16]) -> Self {
        Self {
            file,
            ports: ports.into(),
            encrypted: true,
            _dir: dir,
        }
    }

    /// A file below `dir`, in which plaintext goes to these ports.
    pub(crate) fn plain(dir: TempDir, file: PathBuf, ports: &[u16]) -> Self {
        Self {
            encrypted: false,
            ..Self::new(dir, file, ports)
        }
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// The HTTP requests that can be read with these keys, those of a connection in their order.
    pub(crate) fn http(&self, keys: &Path) -> Result<Vec<Seen>> {
        self.http_with(&format!("tls.keylog_file:{}", keys.display()))
    }

    /// The same without any keys but those in the file.
    pub(crate) fn http_by_own_keys(&self) -> Result<Vec<Seen>> {
        self.http_with(NO_KEYS)
    }

    fn http_with(&self, preference: &str) -> Result<Vec<Seen>> {
        let packets = self.tshark(
            preference,
            "http or http2",
            &[
                "tcp.stream",
                "tcp.srcport",
                "tcp.dstport",
                "http.request.method",
                "http.request.uri",
                "http.response.code",
                "http.file_data",
                "http2.streamid",
                "http2.headers.method",
                "http2.headers.path",
                "http2.headers.status",
                "http2.data.data",
            ],
        )?;
        let mut messages = Messages::default();
        for packet in &packets {
            messages
                .add(packet, &self.ports)
                .with_context(|| format!("{packet:?}"))?;
        }
        messages.finish()
    }

    /// The client random of every connection, in hexadecimal digits.
    pub(crate) fn client_randoms(&self) -> Result<BTreeSet<String>> {
        let random = "tls.handshake.random";
        let hellos = self.tshark(NO_KEYS, "tls.handshake.type == 1", &[random])?;
        let randoms = hellos.iter().filter_map(|hello| hello.get(random));
        Ok(randoms
            .flatten()
            .map(|digits| digits.replace(':', ""))
            .collect())
    }

    /// These fields of the packets that the filter accepts.
    pub(crate) fn tshark(
        &self,
        preference: &str,
        filter: &str,
        fields: &[&str],
    ) -> Result<Vec<Packet>> {
        #[derive(Deserialize)]
        struct Element {
            #[serde(rename = "_source")]
            source: Source,
        }
        #[derive(Deserialize)]
        struct Source {
            #[serde(default)]
            layers: Packet,
        }

        let mut command = Command::new(program("tshark")?);
        command
            .args(["-n", "-r"])
            .arg(&self.file)
            .args(["-o", preference, "-Y", filter, "-T", "json"]);
        for port in self.ports.iter().filter(|_| self.encrypted) {
            command.args(["-d", &format!("tcp.port=={port},tls")]);
        }
        for field in fields {
            command.args(["-e", field]);
        }
        let printed = xtask::run::output(&mut command)?;
        let packets: Vec<Element> = serde_json::from_str(&printed).context(printed)?;
        Ok(packets
            .into_iter()
            .map(|packet| packet.source.layers)
            .collect())
    }
}

/// Requests and responses as far as they are put together.
#[derive(Debug, Default)]
struct Messages(Vec<Message>);

#[derive(Debug)]
struct Message {
    server_port: u16,
    connection: u32,
    /// Of HTTP/2: its number within the connection.
    stream: Option<u32>,
    method: String,
    path: String,
    status: Option<u16>,
    /// Of the request and of the response.
    bodies: [Vec<u8>; 2],
}

impl Messages {
    fn add(&mut self, packet: &Packet, ports: &[u16]) -> Result<()> {
        let connection = one(packet, "tcp.stream")?.context("no connection")?;
        let port = one(packet, "tcp.dstport")?.context("no port")?;
        let to_server = ports.contains(&port);
        let server_port = if to_server {
            port
        } else {
            one(packet, "tcp.srcport")?.context("no port")?
        };
        // Stream 0 carries the connection's own affairs.
        let mut streams = texts(packet, "http2.streamid").to_vec();
        streams.retain(|stream| stream != "0");
        streams.dedup();
        ensure!(
            streams.len() <= 1,
            "frames of several streams in one packet"
        );
        let stream = streams.first().map(|stream| stream.parse()).transpose()?;
        if stream.is_none() && packet.contains_key("http2.streamid") {
            return Ok(());
        }

        let [method, path, status, body] = match stream {
            Some(_) => [
                "http2.headers.method",
                "http2.headers.path",
                "http2.headers.status",
                "http2.data.data",
            ],
            None => [
                "http.request.method",
                "http.request.uri",
                "http.response.code",
                "http.file_data",
            ],
        };
        if let Some(method) = one(packet, method)? {
            self.0.push(Message {
                server_port,
                connection,
                stream,
                method,
                path: one(packet, path)?.context("no path")?,
                status: None,
                bodies: Default::default(),
            });
        }
        let mut open = self.0.iter_mut().rev();
        let message = open
            .find(|message| (message.connection, message.stream) == (connection, stream))
            .context("no request before this")?;
        if let Some(status) = one(packet, status)? {
            ensure!(message.status.is_none(), "a second response");
            message.status = Some(status);
        }
        for bytes in texts(packet, body) {
            message.bodies[usize::from(!to_server)].extend(decoded(bytes));
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<Seen>> {
        let seen = |message: Message| {
            let protocol = match message.stream {
                Some(_) => "HTTP/2.0",
                None => "HTTP/1.1",
            };
            Ok(Seen {
                server_port: message.server_port,
                connection: message.connection,
                request: Request {
                    protocol: protocol.into(),
                    method: message.method,
                    path: message.path,
                    status: message.status.context("a request without response")?,
                    request_sha256: sha256(&message.bodies[0]),
                    response_sha256: sha256(&message.bodies[1]),
                },
            })
        };
        self.0.into_iter().map(seen).collect()
    }
}

/// Every value of a field.
pub(crate) fn texts<'a>(packet: &'a Packet, field: &str) -> &'a [String] {
    packet.get(field).map_or(&[], Vec::as_slice)
}

/// The value of a field that occurs once at most.
fn one<T>(packet: &Packet, field: &str) -> Result<Option<T>>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let values = texts(packet, field);
    ensure!(values.len() <= 1, "{field} occurs several times");
    let value = values.first().map(|value| value.parse()).transpose();
    value.with_context(|| format!("{field}: {values:?}"))
}

/// The bytes of a body: tshark prints hexadecimal digits, but before 4.2 an HTTP/1 body as text.
/// The bodies here are JSON objects, which no hexadecimal number looks like.
fn decoded(value: &str) -> Vec<u8> {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = value.as_bytes().chunks(2).map(pair).collect();
    bytes.unwrap_or_else(|| value.into())
}

pub(crate) fn program(name: &str) -> Result<PathBuf> {
    xtask::run::find(name).with_context(|| format!("{name} is missing: run `cargo xtask test`"))
}
