//! A target in a network namespace of its own, and that nothing remains there afterwards.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xtask::matrix::GoRelease;
use xtask::process::patient;

use super::well_formed::assert_clean;
use super::{PacketCapture, assert_same_packets, ensure_decrypted};
use crate::capture::Signal;
use crate::exchange::{LONG, Program};
use crate::harmless::Held;
use crate::https::{Https, Parties};
use crate::kernel;
use crate::wireshark::program;

/// Two network namespaces, joined by a pair of virtual interfaces. Dropping removes them.
struct Namespaces {
    server: String,
    client: String,
}

/// The name of the interface on either side.
const INTERFACE: &str = "joint";

impl Namespaces {
    fn joined() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);

        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("ecapture-{}-{number}-{side}", std::process::id());
        // Removes what is there if the rest fails.
        let namespaces = Self {
            server: name("server"),
            client: name("client"),
        };
        let Self { server, client } = &namespaces;
        ip(&format!("netns add {server}"))?;
        ip(&format!("netns add {client}"))?;
        ip(&format!(
            "-n {server} link add {INTERFACE} type veth peer name {INTERFACE} netns {client}"
        ))?;
        for (namespace, host) in [(server, 1), (client, 2)] {
            for address in [
                format!("198.51.100.{host}/24"),
                // Without asking whether somebody has it already, which takes a second.
                format!("2001:db8::{host}/64 nodad"),
            ] {
                ip(&format!(
                    "-n {namespace} addr add {address} dev {INTERFACE}"
                ))?;
            }
            ip(&format!("-n {namespace} link set {INTERFACE} up"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        Ok(namespaces)
    }

    /// The program with its flags, run in a namespace.
    fn start(namespace: &str, program: &Program, flags: &str) -> Result<Https> {
        let mut command = Self::command(namespace);
        command.arg(program.path()).args(flags.split_whitespace());
        Https::spawn(&mut command)
    }

    fn command(namespace: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]);
        command
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.client] {
            // It may not be there yet.
            let _ = ip(&format!("netns del {namespace}"));
        }
    }
}

fn ip(arguments: &str) -> Result<()> {
    let mut command = Command::new("ip");
    xtask::run::output(command.args(arguments.split_whitespace()))?;
    Ok(())
}

/// Either end sees the same packets, on the interfaces that it has.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn either_end_of_a_joint_sees_the_same_packets() -> Result<()> {
    let namespaces = Namespaces::joined()?;
    let Namespaces { server, client } = &namespaces;
    let parties = Parties::new(GoRelease::NEWEST)?;
    for (address, proto) in [("198.51.100.1:0", "h1"), ("[2001:db8::1]:0", "h2")] {
        let flags = format!("-role server -addr {address} -proto {proto}");
        let server = Namespaces::start(server, &parties.server, &flags)?;
        let (addr, port) = (server.addr(), server.addr().port());
        let flags = format!("-role client -addr {addr} -proto {proto} -hold -requests 3");
        let mut client = Namespaces::start(client, &parties.client, &flags)?;

        let capture = |pid: u32| {
            let mut command = PacketCapture::command();
            PacketCapture::spawn(command.args(["--pid", &pid.to_string()]))
        };
        let captures = [capture(server.pid())?, capture(client.pid())?];
        client.go()?;
        let asked = client.finish()?;
        let asked: Vec<_> = asked.iter().map(|asked| (port, asked)).collect();
        server.finish()?;

        let mut found = Vec::new();
        // Each direction's number: inbound, outbound.
        for (capture, to_server) in captures.into_iter().zip([1, 2]) {
            let captured = capture.finish(&[port])?;
            assert_clean(&captured)?;
            ensure_decrypted(captured.recording.http_by_own_keys()?, &asked)?;
            let frames = captured.frames()?;
            for frame in &frames {
                assert_eq!(frame.interface, [INTERFACE]);
                let expected = if frame.ports()[1] == port {
                    to_server
                } else {
                    3 - to_server
                };
                assert_eq!(frame.direction, [format!("0x{expected:08x}")], "{frame:?}");
            }
            found.push(frames);
        }
        assert_same_packets(&found[0], &found[1]);
    }
    Ok(())
}

/// The kernel has no room for whose sockets they are, from when the capture has begun.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn sockets_that_could_not_be_remembered_are_told_of() -> Result<()> {
    let namespaces = Namespaces::joined()?;
    let Namespaces { server, client } = &namespaces;
    let parties = Parties::new(GoRelease::NEWEST)?;
    let running = Namespaces::start(server, &parties.server, "-role server -addr 198.51.100.1:0")?;
    let flags = format!("-role client -addr {} -hold -requests 3", running.addr());
    let mut asking = Namespaces::start(client, &parties.client, &flags)?;
    let mut command = PacketCapture::command();
    let capture = PacketCapture::spawn(command.args(["--pid", &asking.pid().to_string()]))?;
    let limit = "/proc/sys/net/core/optmem_max";
    let mut shell = Namespaces::command(client);
    // Since Linux 6.8 each network namespace has a limit of its own.
    shell.args([
        "sh",
        "-c",
        &format!("test ! -e {limit} || echo 0 > {limit}"),
    ]);
    xtask::run::output(&mut shell)?;
    asking.go()?;
    asking.finish()?;
    running.finish()?;
    let finished = capture.capture.end()?.success()?;
    let (said, has_limit) = (finished.stderr_text(), kernel::version()? >= (6, 8));
    let told = said.contains("sockets may be missing or name no process");
    assert_eq!(told, has_limit, "{said}");
    assert_eq!(said.contains("summary: 0 packets"), has_limit, "{said}");
    Ok(())
}

/// After a good end and after a bad one, once the next run has come and gone.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn nothing_of_ours_remains() -> Result<()> {
    let namespaces = Namespaces::joined()?;
    let namespace = &namespaces.server;
    let parties = Parties::new(GoRelease::NEWEST)?;
    let server = Namespaces::start(namespace, &parties.server, "-role server")?;
    let before = attached_to(namespace)?;
    let capture = || {
        let mut command = PacketCapture::command();
        PacketCapture::spawn(command.args(["--pid", &server.pid().to_string(), "tcp"]))
    };
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::KILL] {
        let mut running = capture()?;
        let held = Held::by(running.capture.pid())?;
        // At least two interfaces, three programs at the cgroup, two tracepoints, two uprobes.
        assert!(held.links.len() + held.programs.len() > 10, "{held:?}");
        if signal == Signal::KILL {
            running.capture.child().signal(signal)?;
            ensure!(!running.capture.end()?.status.success());
        } else {
            running.stop_by(signal, &[])?;
        }

        capture()?.stop(&[])?;
        // The kernel takes its time with what a killed process leaves.
        let deadline = Instant::now() + patient(LONG);
        while held.exist()? || attached_to(namespace)? != before {
            ensure!(Instant::now() < deadline, "{signal:?}: {held:?} remain");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// The target's end is the capture's, and its last packets are there.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn nothing_remains_after_the_targets_end() -> Result<()> {
    let namespaces = Namespaces::joined()?;
    let parties = Parties::new(GoRelease::NEWEST)?;
    let server = Namespaces::start(&namespaces.server, &parties.server, "-role server")?;
    let before = attached_to(&namespaces.server)?;
    let mut command = PacketCapture::command();
    let capture = PacketCapture::spawn(command.args(["--pid", &server.pid().to_string()]))?;
    let held = Held::by(capture.capture.pid())?;
    server.finish()?;
    capture.finish(&[])?;
    assert_eq!(attached_to(&namespaces.server)?, before);
    let deadline = Instant::now() + patient(LONG);
    while held.exist()? {
        ensure!(Instant::now() < deadline, "{held:?} remain");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// What bpftool and tc know of a namespace's interfaces. Other tests don't interfere there. Older
/// versions show no links: these are for [`Held`].
fn attached_to(namespace: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut add = |tool: &str, arguments: &str| -> Result<()> {
        let mut command = Namespaces::command(namespace);
        command.arg(program(tool)?);
        command.args(arguments.split_whitespace());
        found.insert(arguments.into(), xtask::run::output(&mut command)?);
        Ok(())
    };
    add("bpftool", "net show")?;
    for interface in ["lo", INTERFACE] {
        for hook in ["ingress", "egress"] {
            add("tc", &format!("filter show dev {interface} {hook}"))?;
        }
        add("tc", &format!("qdisc show dev {interface}"))?;
    }
    Ok(found)
}
