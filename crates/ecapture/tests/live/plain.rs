//! `-m plain`: tshark reads the plaintext as HTTP, HTTP/2, gRPC and WebSocket, without keys or options.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use events::Direction;
use trace::{Data, Event, PcapngWriter, PlaintextPackets, Section, Sink, Timestamp};
use xtask::matrix::GoRelease;

use crate::capture::{Capture, Signal, ecapture};
use crate::https::{self, Parties, requests};
use crate::third_party::{Etcd, Site};
use crate::wireshark::{self, Recording};

/// tshark with the checks that are off by default.
fn tshark(file: &Path, args: &[&str]) -> Result<String> {
    let mut command = Command::new(wireshark::program("tshark")?);
    command.args(["-n", "-r"]).arg(file);
    for preference in ["ip.check_checksum:TRUE", "tcp.check_checksum:TRUE"] {
        command.args(["-o", preference]);
    }
    xtask::run::output(command.args(args))
}

/// The values of fields, a line for each packet that has any.
pub(crate) fn fields(file: &Path, filter: &str, names: &[&str]) -> Result<Vec<String>> {
    separated(file, filter, names, "separator= ")
}

/// The same with tabs between fields, and commas between several values of one.
pub(crate) fn columns(file: &Path, filter: &str, names: &[&str]) -> Result<Vec<String>> {
    separated(file, filter, names, "separator=/t")
}

fn separated(file: &Path, filter: &str, names: &[&str], separator: &str) -> Result<Vec<String>> {
    let mut args = vec!["-Y", filter, "-T", "fields", "-E", separator];
    for name in names {
        args.extend(["-e", name]);
    }
    let printed = tshark(file, &args)?;
    Ok(printed.lines().map(str::to_owned).collect())
}

/// Nothing that Wireshark would warn of.
pub(crate) fn assert_clean(file: &Path) -> Result<()> {
    let complaints = "_ws.malformed || _ws.expert.severity >= 6291456 \
                      || ip.checksum.status == 0 || tcp.checksum.status == 0 || tcp.analysis.flags";
    let found = fields(file, complaints, &["frame.number", "_ws.expert.message"])?;
    assert!(found.is_empty(), "{found:?}");
    Ok(())
}

fn requests_are_what_the_program_logged(release: GoRelease, flags: &str) -> Result<()> {
    let parties = Parties::new(release)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("plain.pcapng");
    let mut command = ecapture();
    command.args(["gotls", "-m", "plain", "-e"]);
    command.arg(parties.client.path()).arg("-w").arg(&file);
    let mut capture = Capture::spawn(&mut command)?;
    let server = parties.serve(flags)?;
    let port = server.addr().port();
    let logged = parties.ask(server.addr(), flags)?;
    capture.child().signal(Signal::INT)?;
    capture.end()?.success()?;
    assert!(!logged.is_empty());

    assert_clean(&file)?;
    let address = fields(
        &file,
        "tcp.flags.syn == 1 && tcp.flags.ack == 0",
        &["ip.dst", "tcp.dstport"],
    )?;
    let http2 = flags.contains("h2");
    let expected = if http2 { 80 } else { port };
    assert_eq!(address, [format!("127.0.0.1 {expected}")]);
    let recording = Recording::plain(dir, file, &[expected]);
    let seen = recording.http_by_own_keys()?;
    let seen: Vec<_> = seen.iter().map(|seen| &seen.request).collect();
    let logged: Vec<_> = requests(&logged).collect();
    assert_eq!(seen, logged);
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn http_and_http2_of_every_kind_of_go_are_what_the_program_logged() -> Result<()> {
    for release in [GoRelease::OLDEST, GoRelease::Go1_24, GoRelease::NEWEST] {
        for proto in ["-proto h1", "-proto h2"] {
            requests_are_what_the_program_logged(release, proto)
                .with_context(|| format!("{release:?} {proto}"))?;
        }
    }
    Ok(())
}

/// Both ends of a connection in one file must not look like one that says everything twice.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn both_ends_of_a_connection_are_two_connections() -> Result<()> {
    let program = https::program(GoRelease::NEWEST)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("plain.pcapng");
    let mut command = ecapture();
    command.args(["gotls", "-m", "plain", "-e"]);
    command.arg(program.path()).arg("-w").arg(&file);
    let mut capture = Capture::spawn(&mut command)?;
    let both = https::Https::start(&program, "-role both -proto h1")?;
    let logged = both.finish()?;
    capture.child().signal(Signal::INT)?;
    capture.end()?.success()?;
    assert_clean(&file)?;
    let paths = fields(&file, "http.request", &["tcp.stream", "http.request.uri"])?;
    assert_eq!(paths.len(), logged.len(), "each request twice: {paths:?}");
    assert_eq!(
        paths.iter().filter(|line| line.starts_with("0 ")).count(),
        logged.len() / 2
    );
    Ok(())
}

/// etcd's calls as tshark reads them are what was put and got.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn grpc_calls_of_etcd_are_what_was_put() -> Result<()> {
    let site = Site::new()?;
    let etcd = Etcd::start(&site)?;
    let file = site.path("plain.pcapng");
    let mut command = ecapture();
    command.args(["gotls", "-m", "plain", "--pid"]);
    command
        .arg(etcd.process.pid().to_string())
        .arg("-w")
        .arg(&file);
    let mut capture = Capture::spawn(&mut command)?;
    let values = ["first value", "second value"];
    for value in values {
        xtask::run::output(&mut etcd.ctl(&site, &["put", "live/key", value])?)?;
    }
    xtask::run::output(&mut etcd.ctl(&site, &["get", "live/key"])?)?;
    capture.child().signal(Signal::INT)?;
    capture.end()?.success()?;

    assert_clean(&file)?;
    let paths = fields(&file, "http2.headers.path", &["http2.headers.path"])?;
    let calls: Vec<_> = paths
        .iter()
        .filter(|path| path.contains("etcdserverpb.KV"))
        .collect();
    assert_eq!(
        calls,
        [
            "/etcdserverpb.KV/Put",
            "/etcdserverpb.KV/Put",
            "/etcdserverpb.KV/Range"
        ]
    );
    // PutRequest has the key as field 1 and the value as field 2 (etcd's rpc.proto).
    let put = |value: &str| {
        let mut message = vec![0x0a, 8];
        message.extend(b"live/key");
        message.extend([0x12, value.len() as u8]);
        message.extend(value.bytes());
        message
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let to_etcd = "grpc && http2.headers.path contains \"Put\" || grpc && !http2.headers.status && tcp.dstport != 0";
    let messages = columns(
        &file,
        to_etcd,
        &["grpc.message_length", "grpc.message_data"],
    )?;
    for value in values {
        let data = put(value);
        let expected = format!("{}\t{data}", data.len() / 2);
        let found = messages.iter().filter(|line| **line == expected).count();
        assert_eq!(found, 1, "{expected}: {messages:#?}");
    }
    let statuses = fields(
        &file,
        "http2.header.name == \"grpc-status\"",
        &["http2.headers.path"],
    )?;
    assert!(statuses.len() >= 3, "{statuses:?}");
    Ok(())
}

/// A connection, as a program that serves it would see it.
struct Served {
    sink: PlaintextPackets<Vec<u8>>,
    offsets: [u64; 2],
    time: i64,
}

impl Served {
    fn new(out: Vec<u8>) -> Result<Self> {
        let interface = PlaintextPackets::<Vec<u8>>::INTERFACE;
        let writer = PcapngWriter::new(out, &Section::default(), &[interface])?;
        Ok(Self {
            sink: PlaintextPackets::new(writer, Timestamp(0)),
            offsets: [0; 2],
            time: 1_700_000_000_000_000_000,
        })
    }

    fn says(&mut self, direction: Direction, payload: &[u8]) -> Result<()> {
        self.time += 1000;
        let offset = &mut self.offsets[direction.index()];
        self.sink.event(&Event::Data(Data {
            time: Timestamp(self.time),
            pid: 42,
            tid: 43,
            comm: b"server",
            connection: 1,
            direction,
            stream_offset: *offset,
            call_length: payload.len() as u64,
            call_offset: 0,
            truncated: 0,
            goroutine: None,
            payload,
        }))?;
        *offset += payload.len() as u64;
        Ok(())
    }

    fn misses(&mut self, direction: Direction, bytes: u64) {
        self.offsets[direction.index()] += bytes;
    }

    fn write_to(mut self, file: &Path) -> Result<()> {
        self.sink.finish(Timestamp(self.time), 0)?;
        std::fs::write(file, self.sink.into_inner())?;
        Ok(())
    }
}

/// An HTTP/2 frame (RFC 9113 section 4.1) on stream 1, or on stream 0 for SETTINGS.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, u8::from(kind != 4)]);
    frame.extend(payload);
    frame
}

/// A header field without indexing (RFC 7541 section 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0, name.len() as u8];
    field.extend(name.bytes());
    field.push(value.len() as u8);
    field.extend(value.bytes());
    field
}

#[test]
fn grpc_is_read_without_options() -> Result<()> {
    use Direction::{Read, Write};
    let mut served = Served::new(Vec::new())?;
    let request = [
        field(":method", "POST"),
        field(":scheme", "https"),
        field(":path", "/shop.Orders/Get"),
        field("content-type", "application/grpc"),
    ]
    .concat();
    let message = [0, 0, 0, 0, 2, 8, 42]; // length-prefixed: field 1 is 42
    let response = [
        field(":status", "200"),
        field("content-type", "application/grpc"),
    ]
    .concat();
    served.says(Write, &frame(4, 0, &[]))?; // Go's server doesn't wait for the preface.
    served.says(Read, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    served.says(Read, &frame(4, 0, &[]))?;
    served.says(Read, &frame(1, 4, &request))?;
    served.says(Read, &frame(0, 1, &message))?;
    served.says(Write, &frame(1, 4, &response))?;
    served.says(Write, &frame(0, 0, &message))?;
    served.says(Write, &frame(1, 5, &field("grpc-status", "0")))?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("plain.pcapng");
    served.write_to(&file)?;
    assert_clean(&file)?;
    let paths = fields(
        &file,
        "http2.headers.path",
        &["ip.dst", "http2.headers.path"],
    )?;
    assert_eq!(paths, ["198.19.0.1 /shop.Orders/Get"]);
    let settings = fields(&file, "http2.type == 4", &["frame.number"])?;
    assert_eq!(settings.len(), 2, "of the server, too: {settings:?}");
    let messages = fields(&file, "grpc", &["grpc.message_length"])?;
    assert_eq!(messages, ["2", "2"]);
    Ok(())
}

#[test]
fn websocket_is_read_without_options() -> Result<()> {
    use Direction::{Read, Write};
    let mut served = Served::new(Vec::new())?;
    served.says(
        Read,
        b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    )?;
    served.says(
        Write,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    )?;
    served.says(Write, b"\x81\x05hello")?;
    served.says(Read, b"\x81\x82\x01\x02\x03\x04ik")?; // "hi", masked
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("plain.pcapng");
    served.write_to(&file)?;
    assert_clean(&file)?;
    let texts = fields(
        &file,
        "websocket",
        &["websocket.payload_length", "websocket.mask"],
    )?;
    assert_eq!(
        texts.iter().map(|line| line.trim()).collect::<Vec<_>>(),
        ["5 0", "2 1"]
    );
    let followed = tshark(&file, &["-q", "-z", "follow,tcp,ascii,0"])?;
    assert!(followed.contains("GET /chat HTTP/1.1"), "{followed}");
    Ok(())
}

#[test]
fn what_is_missing_is_a_segment_that_was_not_captured() -> Result<()> {
    use Direction::{Read, Write};
    let mut served = Served::new(Vec::new())?;
    served.says(Read, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    served.says(
        Write,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1010\r\n\r\nbegin",
    )?;
    served.misses(Write, 1000);
    served.says(Write, b"ended")?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("plain.pcapng");
    served.write_to(&file)?;
    let lost = fields(
        &file,
        "tcp.analysis.lost_segment",
        &["tcp.seq", "tcp.len", "frame.comment"],
    )?;
    let comment = "server[42] connection 1; 1000 bytes before this are missing";
    assert_eq!(lost, [format!("1047 5 {comment}")]);
    Ok(())
}
