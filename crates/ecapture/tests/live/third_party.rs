//! Real programs nobody here wrote, as Debian builds them: caddy serving HTTPS to curl, and etcd
//! with etcdctl, which talk gRPC over TLS.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use xtask::process::{Child, Stream};

use crate::capture::{Capture, Captured, Direction, Line};
use crate::exchange::LONG;
use crate::kernel;
use crate::keylog::{KeyCapture, TLS_1_3};

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn caddy_serving_https_to_curl() -> Result<()> {
    let site = Site::new()?;
    fs::write(site.path("hello.txt"), "Grüße from caddy: plain as day\n")?;
    let big: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    fs::write(site.path("big.txt"), &big)?;
    let caddy = Caddy::serve(&site, "")?;

    let capture = Capture::of_pid(caddy.process.pid(), "")?;
    let curl = |path: &str, flags: &str| caddy.curl(&site, path, flags);
    let hello = curl("hello.txt", "--http1.1 --header X-Secret:swordfish")?;
    ensure!(curl("big.txt", "--http1.1 --tlsv1.3")? == big);
    ensure!(curl("big.txt", "--http1.1 --tls-max 1.2")? == big);
    ensure!(curl("hello.txt", "--http2")? == hello);
    let captured = capture.stop()?;

    let streams = Streams::of(&captured)?;
    let request = streams.containing(Direction::Read, "GET /hello.txt HTTP/1.1\r\n")?;
    ensure!(request.contains("X-Secret:swordfish") || request.contains("X-Secret: swordfish"));
    let response = streams.containing(Direction::Write, &hello)?;
    ensure!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    ensure!(response.ends_with(&hello), "{response}");
    let whole = streams.count(Direction::Write, |text| text.ends_with(&big));
    ensure!(whole == 2, "{whole} connections with the whole big file");
    // HTTP/2: its preface, and the body in a frame.
    streams.containing(Direction::Read, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    let bodies = streams.count(Direction::Write, |text| text.contains(&hello));
    ensure!(bodies == 2, "{bodies} connections with the greeting");
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn etcd_and_etcdctl_over_grpc() -> Result<()> {
    let site = Site::new()?;
    let etcd = Etcd::start(&site)?;
    let etcdctl = |arguments: &[&str]| xtask::run::output(&mut etcd.ctl(&site, arguments)?);

    let server = Capture::of_pid(etcd.process.pid(), "")?;
    let client = Capture::of(&program("etcdctl")?, "")?;
    let value = "the value of the key, 42";
    ensure!(etcdctl(&["put", "live/key", value])?.trim() == "OK");
    ensure!(etcdctl(&["get", "live/key"])?.contains(value));
    let (server, client) = (server.stop()?, client.stop()?);

    let server = Streams::of(&server)?;
    server.containing(Direction::Read, "live/key")?;
    server.containing(Direction::Read, value)?;
    server.containing(Direction::Write, value)?;
    let client = Streams::of(&client)?;
    client.containing(Direction::Write, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    client.containing(Direction::Write, value)?;
    client.containing(Direction::Read, value)?;
    // What one end wrote the other has read.
    for (direction, text) in &client.0 {
        if *direction == Direction::Write && text.contains(value) {
            ensure!(server.count(Direction::Read, |other| other == text) == 1);
        }
    }
    Ok(())
}

/// Has the kernel give back what is in memory of a process's constants, as under memory pressure.
const PAGE_OUT: &str = r#"
import ctypes, os, sys
class Range(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
SYS_process_madvise, MADV_PAGEOUT = 440, 21
libc, pid = ctypes.CDLL(None, use_errno=True), int(sys.argv[1])
file, pidfd = os.readlink(f"/proc/{pid}/exe"), os.pidfd_open(pid)
for line in open(f"/proc/{pid}/maps"):
    fields = line.split()
    if fields[1] == "r--p" and fields[-1] == file:
        begin, end = (int(address, 16) for address in fields[0].split("-"))
        pages = ctypes.byref(Range(begin, end - begin))
        if libc.syscall(SYS_process_madvise, pidfd, pages, 1, MADV_PAGEOUT, 0) < 0:
            sys.exit(os.strerror(ctypes.get_errno()))
"#;

/// The labels of secrets are constants of the program that nobody looks at unless it writes a key log. Sleepable
/// programs (Linux 6.0) fetch them.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn keys_come_whole_when_constants_are_not_in_memory() -> Result<()> {
    const CONNECTIONS: usize = 3;

    if kernel::version()? < (6, 0) {
        return Ok(());
    }
    let site = Site::new()?;
    fs::write(site.path("hello.txt"), "hello\n")?;
    let caddy = Caddy::serve(&site, "")?;
    let pid = caddy.process.pid().to_string();
    // What the first connection needs besides is there then.
    caddy.curl(&site, "hello.txt", "--tlsv1.3")?;
    let capture = KeyCapture::of(&program("caddy")?, "")?;
    for _ in 0..CONNECTIONS {
        xtask::run::output(Command::new("python3").args(["-c", PAGE_OUT, &pid]))?;
        caddy.curl(&site, "hello.txt", "--tlsv1.3")?;
    }
    let labels = capture.stop()?.log.count_by_label();
    ensure!(labels == TLS_1_3.map(|label| (label.to_owned(), CONNECTIONS)).into());
    Ok(())
}

/// The full path of a program.
fn program(name: &str) -> Result<PathBuf> {
    xtask::run::find(name).with_context(|| format!("{name} is missing: run `cargo xtask test`"))
}

/// A running caddy that serves the files of a site.
pub(crate) struct Caddy {
    pub(crate) process: Child,
    port: u16,
}

impl Caddy {
    /// Starts it, with more directives for its configuration, and waits until it serves.
    pub(crate) fn serve(site: &Site, directives: &str) -> Result<Self> {
        let port = free_port()?;
        let config = format!(
            "{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n\
             https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {cert} {key}\n\
             \troot * {root}\n\t{directives}\n\tfile_server\n}}\n",
            cert = site.path("cert.pem").display(),
            key = site.path("key.pem").display(),
            root = site.path("").display(),
        );
        fs::write(site.path("Caddyfile"), config)?;
        let process = Child::spawn(
            Command::new(program("caddy")?)
                .args(["run", "--adapter", "caddyfile", "--config"])
                .arg(site.path("Caddyfile"))
                .env("HOME", site.path("")),
        )?;
        process.wait_for_line(Stream::Stderr, LONG, |line| {
            line.contains("serving initial configuration")
        })?;
        Ok(Self { process, port })
    }

    /// Where it serves.
    pub(crate) fn address(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// What curl gets for a file.
    pub(crate) fn curl(&self, site: &Site, path: &str, flags: &str) -> Result<String> {
        xtask::run::output(
            Command::new(program("curl")?)
                .args(["--silent", "--show-error", "--fail", "--cacert"])
                .arg(site.path("cert.pem"))
                .args(flags.split_whitespace())
                .arg(format!("https://localhost:{}/{path}", self.port)),
        )
    }
}

/// A running etcd.
pub(crate) struct Etcd {
    pub(crate) process: Child,
    pub(crate) port: u16,
    url: String,
}

impl Etcd {
    /// Starts it and waits until it answers.
    pub(crate) fn start(site: &Site) -> Result<Self> {
        let port = free_port()?;
        let url = format!("https://localhost:{port}");
        let peer_url = format!("http://127.0.0.1:{}", free_port()?);
        let process = Child::spawn(
            Command::new(program("etcd")?)
                .args(["--name", "live", "--data-dir"])
                .arg(site.path("data"))
                .args(["--listen-client-urls", &url])
                .args(["--advertise-client-urls", &url])
                .args(["--listen-peer-urls", &peer_url])
                .args(["--initial-advertise-peer-urls", &peer_url])
                .args(["--initial-cluster", &format!("live={peer_url}")])
                .arg("--cert-file")
                .arg(site.path("cert.pem"))
                .arg("--key-file")
                .arg(site.path("key.pem"))
                .env_remove("ETCD_UNSUPPORTED_ARCH"),
        )?;
        process.wait_for_line(Stream::Stderr, LONG, |line| {
            line.contains("serving client requests") || line.contains("ready to serve client")
        })?;
        let etcd = Self { process, port, url };
        xtask::run::output(&mut etcd.ctl(site, &["get", "nothing"])?)?;
        Ok(etcd)
    }

    /// The command etcdctl.
    pub(crate) fn ctl(&self, site: &Site, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("etcdctl")?);
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url, "--cacert"])
            .arg(site.path("cert.pem"))
            .args(arguments);
        Ok(command)
    }
}

/// A port that was free just now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A directory with a certificate for `localhost` and its key.
pub(crate) struct Site(TempDir);

impl Site {
    pub(crate) fn new() -> Result<Self> {
        let site = Self(tempfile::tempdir()?);
        xtask::run::output(
            Command::new(program("openssl")?)
                .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
                .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
                .args(["-subj", "/CN=localhost"])
                .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
                .arg("-keyout")
                .arg(site.path("key.pem"))
                .arg("-out")
                .arg(site.path("cert.pem")),
        )?;
        Ok(site)
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }
}

/// The plaintext of each direction of each connection.
struct Streams(Vec<(Direction, String)>);

impl Streams {
    fn of(captured: &Captured) -> Result<Self> {
        // Complete and in order, or this is an error.
        captured.connections()?;
        let mut streams = std::collections::BTreeMap::<_, Vec<u8>>::new();
        for line in captured.lines() {
            if let Line::Data(data) = line? {
                streams
                    .entry((data.conn, data.direction))
                    .or_default()
                    .extend(data.payload);
            }
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Self(
            streams
                .into_iter()
                .map(|((_, direction), bytes)| (direction, text(bytes)))
                .collect(),
        ))
    }

    fn count(&self, direction: Direction, matches: impl Fn(&str) -> bool) -> usize {
        self.0
            .iter()
            .filter(|(of, text)| *of == direction && matches(text))
            .count()
    }

    /// The first stream with this in it.
    fn containing(&self, direction: Direction, wanted: &str) -> Result<&str> {
        self.0
            .iter()
            .find(|(of, text)| *of == direction && text.contains(wanted))
            .map(|(_, text)| text.as_str())
            .with_context(|| format!("no {direction:?} stream has {wanted:?}: {:?}", self.0))
    }
}
