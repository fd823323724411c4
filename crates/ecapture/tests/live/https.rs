//! The test program `https`: it logs the requests that it sent or served.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use xtask::matrix::{self, GoRelease, Variant};
use xtask::process::{Child, Stream};

use crate::exchange::{LONG, Program};

/// A copy of the program, which nobody else runs or probes.
pub(crate) fn program(release: GoRelease) -> Result<Program> {
    let binary = matrix::binary(release, Variant::Default, matrix::Program::Https)?;
    Program::copy_of(&binary)
}

/// A running `https`.
#[derive(Debug)]
pub(crate) struct Https {
    child: Child,
    addr: SocketAddr,
}

/// A request and its response. Bodies are told by their checksums.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Request {
    pub(crate) protocol: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) status: u16,
    pub(crate) request_sha256: String,
    pub(crate) response_sha256: String,
}

/// What the program says of a request.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Logged {
    #[serde(flatten)]
    pub(crate) request: Request,
    /// The protocol version: `1.2`.
    pub(crate) tls: String,
    /// Whether the connection resumed an earlier one's session.
    pub(crate) resumed: bool,
}

impl Https {
    /// Starts the program with its flags and waits until it is ready.
    pub(crate) fn start(program: &Program, flags: &str) -> Result<Self> {
        Self::spawn(&mut program.command(flags))
    }

    /// Starts the command and waits until it is ready.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        #[derive(Deserialize)]
        struct Ready {
            addr: SocketAddr,
        }

        let child = Child::spawn(command)?;
        let line = child.wait_for_prefix(Stream::Stdout, LONG, r#"{"addr":"#)?;
        let Ready { addr } = serde_json::from_str(&line).context(line)?;
        Ok(Self { child, addr })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Where its server listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits until it has logged so many requests.
    pub(crate) fn wait_for_requests(&self, count: usize) -> Result<()> {
        let mut seen = 0;
        self.child.wait_for_line(Stream::Stdout, LONG, |line| {
            seen += usize::from(line.contains(r#""request""#));
            seen == count
        })?;
        Ok(())
    }

    /// Waits until a request fails, which ends it.
    pub(crate) fn wait_until_failed(&self) -> Result<()> {
        self.child
            .wait_for_prefix(Stream::Stderr, LONG, "https: ")?;
        Ok(())
    }

    /// How many requests it has logged up to now.
    pub(crate) fn requests_so_far(&self) -> usize {
        let stdout = self.child.so_far(Stream::Stdout);
        let text = String::from_utf8_lossy(&stdout);
        text.matches(r#""event":"request""#).count()
    }

    /// Ends the wait that `-hold` asked for.
    pub(crate) fn go(&mut self) -> Result<()> {
        self.child.send_line("go")
    }

    /// Waits for its end, which for a server is at once: its requests, in order.
    pub(crate) fn finish(self) -> Result<Vec<Logged>> {
        let finished = self.child.finish(LONG)?.success()?;
        let mut requests = Vec::new();
        for line in finished.stdout_text().lines() {
            let value: serde_json::Value = serde_json::from_str(line).context(line.to_owned())?;
            if value["event"] == "request" {
                requests.push(serde_json::from_value(value)?);
            }
        }
        Ok(requests)
    }
}

/// A client and a server, in executables of their own.
#[derive(Debug)]
pub(crate) struct Parties {
    pub(crate) client: Program,
    pub(crate) server: Program,
}

impl Parties {
    pub(crate) fn new(release: GoRelease) -> Result<Self> {
        Ok(Self {
            client: program(release)?,
            server: program(release)?,
        })
    }

    /// Starts a server.
    pub(crate) fn serve(&self, flags: &str) -> Result<Https> {
        Https::start(&self.server, &format!("-role server {flags}"))
    }

    /// Runs a client to its end: its requests.
    pub(crate) fn ask(&self, addr: SocketAddr, flags: &str) -> Result<Vec<Logged>> {
        self.client(addr, flags)?.finish()
    }

    /// Starts a client.
    pub(crate) fn client(&self, addr: SocketAddr, flags: &str) -> Result<Https> {
        Https::start(&self.client, &format!("-role client -addr {addr} {flags}"))
    }
}

/// What was asked and answered.
pub(crate) fn requests(logged: &[Logged]) -> impl Iterator<Item = &Request> {
    logged.iter().map(|logged| &logged.request)
}
