//! Packet capture, live: what is captured is compared, byte for byte, with what a packet socket sees
//! at the same interface. The targets are copies of this test's own executable.
//!
//! Each test works in network namespaces of its own, so that nobody else's packets are there.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use capture::{
    Executable, Filters, HookKind, InterfaceSelection, NetworkNamespace, PacketCapture,
    PacketOptions, PacketTarget, Process, Reader,
};
use events::{PacketDirection, Record};
use gobin::elf::Elf;
use xtask::process::patient;

/* ---- Programs: this executable, started again with a role ---- */

/// Not a test: what the child processes run.
#[test]
#[ignore = "only as a child process of the other tests"]
fn role() {
    match std::env::var("PACKETS_ROLE").as_deref() {
        Ok("server") => serve(),
        Ok("client") => be_client(),
        Ok("inherit") => inherit(),
        Ok("become") => become_client(),
        _ => {}
    }
}

/// Virtual machines run a choice of these tests by their names.
#[test]
fn names_that_machines_use_are_names_of_tests() {
    assert_eq!(xtask::vm::names_of_no_test("packets").unwrap(), [""; 0]);
}

/// Listens with a socket that somebody else has made: as standard input.
fn inherit() {
    let stdin = std::os::fd::AsFd::as_fd(&std::io::stdin())
        .try_clone_to_owned()
        .unwrap();
    let listener = TcpListener::from(stdin);
    say("ready");
    for stream in listener.incoming() {
        std::io::copy(&mut stream.as_ref().unwrap(), &mut stream.as_ref().unwrap()).unwrap();
    }
}

/// Executes another program, a client, as a launcher does.
fn become_client() {
    let mut command = Command::new(std::env::var_os("PACKETS_FILE").unwrap());
    command.args(std::env::args_os().skip(1));
    let error = std::os::unix::process::CommandExt::exec(command.env("PACKETS_ROLE", "client"));
    panic!("{error}");
}

/// Echoes over TCP and UDP.
fn serve() {
    let address: SocketAddr = std::env::var("PACKETS_ADDRESS").unwrap().parse().unwrap();
    let listener = if std::env::var_os("PACKETS_MULTIPATH").is_some() {
        use rustix::net::{AddressFamily, SocketType, ipproto};
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let socket = rustix::net::socket(family, SocketType::STREAM, Some(ipproto::MPTCP)).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, 16).unwrap();
        TcpListener::from(socket)
    } else {
        TcpListener::bind(address).unwrap()
    };
    let port = listener.local_addr().unwrap().port();
    let datagrams = UdpSocket::bind((address.ip(), port)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            datagrams.send_to(&buffer[..length], from).unwrap();
        }
    });
    say(&format!("port {port}"));
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                stream.write_all(&buffer[..length]).unwrap();
            }
        });
    }
}

/// Does what standard input says, a line at a time.
fn be_client() {
    let mut open = None;
    say("ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (verb, address) = line.split_once(' ').unwrap_or((&line, ""));
        match verb {
            "tcp" => {
                let stream = TcpStream::connect(address).unwrap();
                exchange(&stream, 300_000);
                finish(stream);
            }
            "open" => {
                let stream = TcpStream::connect(address).unwrap();
                exchange(&stream, 10);
                open = Some(stream);
            }
            "use" => exchange(open.as_ref().unwrap(), 5000),
            "close" => finish(open.take().unwrap()),
            "udp" | "udp-small" => {
                let address: SocketAddr = address.parse().unwrap();
                let any: IpAddr = if address.is_ipv4() {
                    "0.0.0.0".parse().unwrap()
                } else {
                    "::".parse().unwrap()
                };
                let socket = UdpSocket::bind((any, 0)).unwrap();
                socket.connect(address).unwrap();
                let mut buffer = [0; 65536];
                // The last one is fragmented, even on lo if it is large enough.
                let lengths = if verb == "udp" { 3 } else { 2 };
                for length in [1, 1000, 5000].into_iter().take(lengths) {
                    socket.send(&vec![9; length]).unwrap();
                    assert_eq!(socket.recv(&mut buffer).unwrap(), length);
                }
            }
            _ => panic!("{line}"),
        }
        say("done");
    }
}

fn exchange(mut stream: &TcpStream, length: usize) {
    let mut writer = stream.try_clone().unwrap();
    let thread = std::thread::spawn(move || writer.write_all(&vec![5; length]).unwrap());
    stream.read_exact(&mut vec![0; length]).unwrap();
    thread.join().unwrap();
}

fn finish(mut stream: TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

/// The test harness prints too: ours begins with a mark.
fn say(what: &str) {
    println!("\n@{what}");
    std::io::stdout().flush().unwrap();
}

/// A child process.
struct Program {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Program {
    fn start(file: &Path, namespace: &Namespace, role: &str, variables: &[(&str, &str)]) -> Self {
        let mut process = Command::new("ip")
            .args(["netns", "exec", &namespace.name])
            .arg(file)
            .args(["--exact", "role", "--include-ignored", "--nocapture"])
            .env("PACKETS_ROLE", role)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        Self {
            process,
            stdin,
            stdout,
        }
    }

    fn client(file: &Path, namespace: &Namespace) -> Self {
        let mut client = Self::start(file, namespace, "client", &[]);
        assert_eq!(client.hear(), "ready");
        client
    }

    /// With its port.
    fn server(file: &Path, namespace: &Namespace, address: &str) -> (Self, u16) {
        Self::server_with(file, namespace, &[("PACKETS_ADDRESS", address)])
    }

    fn server_with(file: &Path, namespace: &Namespace, variables: &[(&str, &str)]) -> (Self, u16) {
        let mut server = Self::start(file, namespace, "server", variables);
        let said = server.hear();
        let port = said.strip_prefix("port ").unwrap().parse().unwrap();
        (server, port)
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "it ended");
            if let Some(said) = line.trim_end().strip_prefix('@') {
                return said.to_owned();
            }
        }
    }

    fn tell(&mut self, order: &str) {
        writeln!(self.stdin, "{order}").unwrap();
        assert_eq!(self.hear(), "done");
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/* ---- Network namespaces ---- */

struct Namespace {
    name: String,
}

impl Namespace {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ecapture-test-{}-{number}", std::process::id());
        run(&["ip", "netns", "add", &name]);
        let namespace = Self { name };
        namespace.run(&["ip", "link", "set", "lo", "up"]);
        namespace
    }

    /// Two of them, joined: 10.9.0.1 and fd00:9::1 on `left` in the first, .2 and ::2 on `right` in
    /// the second one.
    fn pair() -> (Self, Self) {
        let (first, second) = (Self::new(), Self::new());
        first.run(&[
            "ip",
            "link",
            "add",
            "left",
            "type",
            "veth",
            "peer",
            "name",
            "right",
            "netns",
            &second.name,
        ]);
        for (namespace, interface, number) in [(&first, "left", 1), (&second, "right", 2)] {
            let (v4, v6) = (
                format!("10.9.0.{number}/24"),
                format!("fd00:9::{number}/64"),
            );
            namespace.run(&["ip", "addr", "add", &v4, "dev", interface]);
            namespace.run(&["ip", "addr", "add", &v6, "dev", interface, "nodad"]);
            namespace.run(&["ip", "link", "set", interface, "up"]);
        }
        (first, second)
    }

    fn run(&self, command: &[&str]) -> String {
        let mut all = vec!["ip", "netns", "exec", &self.name];
        all.extend(command);
        run(&all)
    }

    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
                    let network = Some(LinkNameSpaceType::Network);
                    move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), network).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

fn run(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", command[0]));
    assert!(
        output.status.success(),
        "needs root: run `cargo xtask test` ({command:?}: {})",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/* ---- What passes ---- */

/// A packet socket that sees what an interface sends and receives; of `lo`, what it sends.
struct Witness {
    socket: OwnedFd,
    loopback: bool,
    seen: Vec<Vec<u8>>,
}

impl Witness {
    fn new(namespace: &Namespace, interface: &str) -> Self {
        let loopback = interface == "lo";
        let socket = namespace.enter(|| {
            let all = (libc::ETH_P_ALL as u16).to_be();
            let index = rustix::net::netdevice::name_to_index(
                rustix::net::socket(
                    rustix::net::AddressFamily::INET,
                    rustix::net::SocketType::DGRAM,
                    None,
                )
                .unwrap(),
                interface,
            )
            .unwrap();
            // SAFETY: Plain numbers go in, the address is complete and has the length said.
            unsafe {
                let socket = libc::socket(
                    libc::AF_PACKET,
                    libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                    i32::from(all),
                );
                assert!(socket >= 0);
                let socket = OwnedFd::from_raw_fd(socket);
                let size = 256 * 1024 * 1024;
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_RCVBUFFORCE,
                    (&raw const size).cast(),
                    size_of::<i32>() as u32,
                );
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                address.sll_family = libc::AF_PACKET as u16;
                address.sll_protocol = all;
                address.sll_ifindex = index as i32;
                let bound = libc::bind(
                    socket.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of_val(&address) as u32,
                );
                assert_eq!(bound, 0);
                socket
            }
        });
        Self {
            socket,
            loopback,
            seen: Vec::new(),
        }
    }

    fn look(&mut self) -> &[Vec<u8>] {
        let mut buffer = vec![0u8; 300_000];
        loop {
            // SAFETY: Buffer and address have the lengths said.
            let (length, kind) = unsafe {
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                let mut size = size_of_val(&address) as u32;
                let length = libc::recvfrom(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut address).cast(),
                    &mut size,
                );
                (length, address.sll_pkttype)
            };
            let Ok(length) = usize::try_from(length) else {
                return &self.seen;
            };
            const OUTGOING: u8 = 4;
            if !self.loopback || kind == OUTGOING {
                self.seen.push(buffer[..length].to_vec());
            }
        }
    }
}

/// What was captured of a packet.
#[derive(Clone, Debug)]
struct Captured {
    bytes: Vec<u8>,
    sender: Option<u32>,
    receiver: Option<u32>,
    direction: PacketDirection,
    comm: Option<String>,
    time_ns: u64,
}

struct Collector {
    reader: Reader,
    captured: Vec<Captured>,
}

impl Collector {
    fn new(capture: &PacketCapture) -> Self {
        Self {
            reader: capture.reader().unwrap(),
            captured: Vec::new(),
        }
    }

    fn look(&mut self) -> &[Captured] {
        let captured = &mut self.captured;
        self.reader.drain(usize::MAX, |bytes| {
            let Ok(Record::Packet(record)) = Record::decode(bytes) else {
                panic!("not a packet: {bytes:02x?}");
            };
            assert_eq!(record.length as usize, record.bytes.len());
            let comm = |process: &events::PacketProcess| {
                String::from_utf8_lossy(process.comm()).into_owned()
            };
            captured.push(Captured {
                bytes: record.bytes.to_vec(),
                sender: record.sender.map(|process| process.pid),
                receiver: record.receiver.map(|process| process.pid),
                direction: record.direction,
                comm: record.owner().map(comm),
                time_ns: record.time_ns,
            });
        });
        &self.captured
    }
}

/// How long to wait for what has to come, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(10);

/// After how long without packets no more are expected.
const QUIET: Duration = Duration::from_millis(200);

/// Waits until what was captured is what the witness saw of these ports and nothing more comes, and
/// says what it was.
fn agree(witness: &mut Witness, collector: &mut Collector, ports: &[u16]) -> Vec<Captured> {
    agree_on(|_| true, witness, collector, ports)
}

/// The same, but compares only packets that are `comparable`.
fn agree_on(
    comparable: fn(&[u8]) -> bool,
    witness: &mut Witness,
    collector: &mut Collector,
    ports: &[u16],
) -> Vec<Captured> {
    let deadline = Instant::now() + patient(PATIENCE);
    let mut agreed = (0, 0);
    loop {
        let seen = witness.look().iter().filter(|packet| is_of(packet, ports));
        let expected = counted(seen.map(Vec::as_slice).filter(|bytes| comparable(bytes)));
        let captured = collector.look();
        let bytes = captured.iter().map(|packet| packet.bytes.as_slice());
        let found = counted(bytes.filter(|bytes| comparable(bytes)));
        let total: usize = expected.values().sum();
        if found == expected && total > 0 {
            if agreed == (total, captured.len()) {
                return captured.to_vec();
            }
            agreed = (total, captured.len());
            std::thread::sleep(QUIET);
            continue;
        }
        if Instant::now() > deadline {
            let missing: Vec<_> = expected
                .iter()
                .filter(|&(packet, count)| found.get(packet) != Some(count))
                .map(|(packet, count)| (summary(packet), *count))
                .collect();
            let surplus: Vec<_> = found
                .iter()
                .filter(|&(packet, count)| expected.get(packet) != Some(count))
                .map(|(packet, count)| (summary(packet), *count))
                .collect();
            panic!(
                "{} captured, {total} of ports {ports:?} passed; missing: {missing:#?}; surplus: \
                 {surplus:#?}",
                captured.len()
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn counted<'a>(packets: impl Iterator<Item = &'a [u8]>) -> BTreeMap<&'a [u8], usize> {
    let mut counts = BTreeMap::new();
    for packet in packets {
        *counts.entry(packet).or_default() += 1;
    }
    counts
}

fn summary(packet: &[u8]) -> String {
    let flags = packet.get(if packet[12] == 8 { 47 } else { 67 });
    format!(
        "{:?} of {} bytes, TCP flags {flags:02x?}",
        ports_of(packet),
        packet.len()
    )
}

/// Whether one of the ports is the packet's; a later fragment has none, and counts.
fn is_of(packet: &[u8], ports: &[u16]) -> bool {
    match ports_of(packet) {
        Some((from, to)) => ports.contains(&from) || ports.contains(&to),
        None => packet[12..14] == [8, 0] && packet[20] & 0x1f != 0 || is_later_ipv6(packet),
    }
}

fn is_later_ipv6(packet: &[u8]) -> bool {
    packet[12..14] == [0x86, 0xdd] && packet[20] == 44 && packet[56..58] != [0, 1]
}

fn ports_of(packet: &[u8]) -> Option<(u16, u16)> {
    let at = match packet[12..14] {
        [8, 0] if packet[20] & 0x1f == 0 && packet[21] == 0 && [6, 17].contains(&packet[23]) => 34,
        [0x86, 0xdd] if [6, 17].contains(&packet[20]) => 54,
        // The first fragment.
        [0x86, 0xdd] if packet[20] == 44 && packet[56..58] == [0, 1] => 62,
        _ => return None,
    };
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    Some((port(at), port(at + 2)))
}

/* ---- Targets ---- */

/// A copy of this executable: another file, so others that run ours are no targets.
struct TargetFile {
    path: PathBuf,
}

impl TargetFile {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("target-{}-{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::copy("/proc/self/exe", &path).unwrap();
        Self { path }
    }

    fn capture(&self, options: &PacketOptions) -> PacketCapture {
        let executable = Executable::open(&self.path).unwrap();
        let bytes = fs::read(&self.path).unwrap();
        let elf = Elf::parse(&bytes).unwrap();
        let target = PacketTarget {
            executable: &executable,
            entry: elf.file_offset(elf.entry()).unwrap(),
        };
        let capture = PacketCapture::attach(Some(target), options)
            .unwrap_or_else(|error| panic!("needs root: run `cargo xtask test` ({error})"));
        assert_eq!(capture.warnings(), &[] as &[String]);
        capture
    }
}

impl Drop for TargetFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn others() -> PathBuf {
    fs::read_link("/proc/self/exe").unwrap()
}

/// Captures in the namespace of a process that is in it.
fn options_in(somebody: &Program, interface: &str) -> PacketOptions {
    PacketOptions {
        interfaces: InterfaceSelection::Named(vec![interface.into()]),
        network_namespace: NetworkNamespace::of_process(&Process::open(somebody.pid()).unwrap())
            .unwrap(),
        ..PacketOptions::default()
    }
}

/// Each direction of a flow: several processors have no order among them.
fn assert_in_order(captured: &[Captured]) {
    let mut last = BTreeMap::new();
    for packet in captured {
        let before = last.insert(ports_of(&packet.bytes), packet.time_ns);
        assert!(before <= Some(packet.time_ns), "{}", summary(&packet.bytes));
    }
}

/// A target and somebody else talk to the same server at the same time.
/// How this kernel lets programs be attached to interfaces.
fn hook_kinds() -> &'static [HookKind] {
    match capture::rehearse_packets().unwrap() {
        HookKind::Tcx => &[HookKind::Tcx, HookKind::Clsact],
        HookKind::Clsact => &[HookKind::Clsact],
    }
}

fn client_is_told_apart(local: &str, kind: Option<HookKind>, after: bool) {
    let namespace = Namespace::new();
    let file = TargetFile::new();
    let (_server, port) = Program::server(&others(), &namespace, &format!("{local}:0"));
    let mut other = Program::client(&others(), &namespace);
    let mut early = (!after).then(|| Program::client(&file.path, &namespace));
    let address = format!("{local}:{port}");
    if let Some(early) = &mut early {
        early.tell(&format!("open {address}"));
    }
    other.tell(&format!("open {address}"));
    let mut witness = Witness::new(&namespace, "lo");
    let options = PacketOptions {
        hooks: kind,
        ..options_in(&other, "lo")
    };
    let capture = file.capture(&options);
    let mut collector = Collector::new(&capture);

    let opened_before = early.is_some();
    let mut target = early.unwrap_or_else(|| Program::client(&file.path, &namespace));
    if opened_before {
        target.tell("use");
        other.tell("use");
        target.tell("close");
        other.tell("close");
    }
    target.tell(&format!("tcp {address}"));
    other.tell(&format!("tcp {address}"));
    target.tell(&format!("udp {address}"));
    other.tell(&format!("udp {address}"));
    target.tell(&format!("tcp {address}"));

    // The target's ports are those of the captured packets that were sent by it; and nobody else's.
    let (captured, ports) = {
        // Wait for the end of the last connection.
        let mut ports = Vec::new();
        let deadline = Instant::now() + patient(PATIENCE);
        while Instant::now() < deadline && ports.len() < 3 + usize::from(opened_before) {
            ports = collector
                .look()
                .iter()
                .filter_map(|packet| ports_of(&packet.bytes))
                .flat_map(|(from, to)| [from, to])
                .filter(|&found| found != port)
                .collect();
            ports.sort_unstable();
            ports.dedup();
        }
        assert_eq!(ports.len(), 3 + usize::from(opened_before), "{ports:?}");
        (agree(&mut witness, &mut collector, &ports), ports)
    };
    assert_in_order(&captured);
    let pid = target.pid();
    for packet in &captured {
        assert!(packet.sender == Some(pid) || packet.receiver == Some(pid));
        assert!(packet.sender.is_none() || packet.receiver.is_none());
        assert_eq!(packet.direction, PacketDirection::Inbound);
        assert!(packet.comm.as_deref().is_some_and(|comm| !comm.is_empty()));
    }
    let statistics = capture.statistics()[0];
    assert_eq!(statistics.matched, captured.len() as u64);
    assert_eq!(statistics.dropped, 0);
    eprintln!(
        "{} packets of the target, of {} in all",
        captured.len(),
        witness.look().len()
    );
    // The other program's connections were there to be left out.
    let others = witness
        .look()
        .iter()
        .filter_map(|packet| ports_of(packet))
        .flat_map(|(from, to)| [from, to])
        .filter(|&found| found != port && !ports.contains(&found))
        .collect::<HashSet<_>>();
    assert!(others.len() >= 2, "{others:?}");
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn client_that_was_there_before_is_told_apart_on_lo() {
    client_is_told_apart("127.0.0.1", None, false);
    client_is_told_apart("[::1]", None, false);
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn client_that_starts_later_is_told_apart_on_lo() {
    client_is_told_apart("127.0.0.1", None, true);
    client_is_told_apart("[::1]", None, true);
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn client_is_told_apart_by_clsact_filters_too() {
    client_is_told_apart("127.0.0.1", Some(HookKind::Clsact), false);
    client_is_told_apart("[::1]", Some(HookKind::Clsact), true);
}

/// A server, from another namespace.
fn server_is_told_apart(listen: &str, remote: &str, after: bool, multipath: bool) {
    let (here, there) = Namespace::pair();
    let file = TargetFile::new();
    let (other, other_port) = Program::server(&others(), &here, listen);
    let start = || {
        let mut variables = vec![("PACKETS_ADDRESS", listen)];
        if multipath {
            variables.push(("PACKETS_MULTIPATH", "1"));
        }
        Program::server_with(&file.path, &here, &variables)
    };
    let mut client = Program::client(&others(), &there);
    let early = (!after).then(start);
    if let Some((_, port)) = early {
        client.tell(&format!("open {remote}:{port}"));
    }
    let mut witness = Witness::new(&here, "left");
    let capture = file.capture(&options_in(&other, "left"));
    let mut collector = Collector::new(&capture);
    let opened_before = early.is_some();
    let (target, port) = early.unwrap_or_else(start);

    if opened_before {
        client.tell("use");
        client.tell("close");
    }
    for port in [port, other_port, port] {
        client.tell(&format!("tcp {remote}:{port}"));
        client.tell(&format!("udp {remote}:{port}"));
    }
    // Fragments behind the first have no port that the witness could go by: leave them out.
    let whole = |packet: &[u8]| ports_of(packet).is_some();
    let captured = agree_on(whole, &mut witness, &mut collector, &[port]);
    // 5000 bytes of UDP, twice in each direction, are 4 packets each, of which 3 have no ports.
    let later = |packet: &&[u8]| ports_of(packet).is_none();
    let fragments = captured
        .iter()
        .map(|packet| &packet.bytes[..])
        .filter(later);
    assert_eq!(fragments.count(), 2 * 2 * 3);
    for packet in &captured {
        let owner = match packet.direction {
            PacketDirection::Inbound => (None, Some(target.pid())),
            PacketDirection::Outbound => (Some(target.pid()), None),
        };
        assert_eq!((packet.sender, packet.receiver), owner);
    }
    eprintln!(
        "{} packets of the target, of {} in all",
        captured.len(),
        witness.look().len()
    );
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn server_that_listens_already_is_told_apart_across_namespaces() {
    server_is_told_apart("10.9.0.1:0", "10.9.0.1", false, false);
    server_is_told_apart("[::]:0", "[fd00:9::1]", false, false);
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn server_that_starts_later_is_told_apart_across_namespaces() {
    server_is_told_apart("0.0.0.0:0", "10.9.0.1", true, false);
    server_is_told_apart("[fd00:9::1]:0", "[fd00:9::1]", true, false);
}

/// Go listens for multipath TCP by default since 1.24.
#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn multipath_server_is_told_apart() {
    server_is_told_apart("10.9.0.1:0", "10.9.0.1", true, true);
    server_is_told_apart("10.9.0.1:0", "10.9.0.1", false, true);
    server_is_told_apart("[::]:0", "[fd00:9::1]", false, true);
}

/// Packets of a process that is killed end with a RST or FIN, and with answers when it is gone.
#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn packets_that_outlive_their_process_are_captured() {
    let (here, there) = Namespace::pair();
    let file = TargetFile::new();
    let (_server, port) = Program::server(&others(), &there, "10.9.0.2:0");
    let mut target = Program::client(&file.path, &here);
    let mut witness = Witness::new(&here, "left");
    let capture = file.capture(&options_in(&target, "left"));
    let mut collector = Collector::new(&capture);
    target.tell(&format!("open 10.9.0.2:{port}"));
    target.process.kill().unwrap();
    target.process.wait().unwrap();
    let captured = agree(&mut witness, &mut collector, &[port]);
    let last = captured.last().unwrap();
    assert_ne!(last.bytes[47] & 0x15, 0, "{}", summary(&last.bytes));
}

/// A TCP segment from 10.9.0.1 to 10.9.0.2 as an IPv4 packet for a raw socket, which fills in the rest. Its
/// checksum is wrong, so that nobody answers.
fn segment(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 9, 0x40, 0, 64];
    packet.extend([libc::IPPROTO_TCP as u8, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    packet.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
    packet.extend([7, 7, 7, 7, 0, 0, 0, 0, 5 << 4, flags, 2, 0, 0, 0, 0, 0]);
    packet.extend(b"somebody else's");
    packet
}

/// What is forwarded with this host's address has no socket here, and may have the port of a target's
/// connection that has ended.
#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn connections_of_others_with_a_targets_port_are_not_the_targets() {
    use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

    const SYN: u8 = 2;
    const ACK: u8 = 16;

    let (here, there) = Namespace::pair();
    let file = TargetFile::new();
    let (_server, port) = Program::server(&others(), &there, "10.9.0.2:0");
    let mut target = Program::client(&file.path, &here);
    let mut witness = Witness::new(&here, "left");
    let capture = file.capture(&options_in(&target, "left"));
    let mut collector = Collector::new(&capture);
    target.tell(&format!("tcp 10.9.0.2:{port}"));
    let captured = agree(&mut witness, &mut collector, &[port]);
    let ended = ports_of(&captured[0].bytes).unwrap().0;
    let send = |flags| {
        here.enter(|| {
            let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).unwrap();
            let to: SocketAddr = "10.9.0.2:0".parse().unwrap();
            let packet = segment(ended, port, flags);
            sendto(&raw, &packet, SendFlags::empty(), &to).unwrap();
        });
    };
    // A packet is in the ring before whoever sends it goes on.
    let mut raw_packets = || {
        let is_raw = |packet: &&Captured| packet.bytes.ends_with(b"somebody else's");
        collector.look().iter().filter(is_raw).count()
    };
    // As far as anybody can tell, a late one of the ended connection.
    send(ACK);
    assert_eq!(raw_packets(), 1);
    send(SYN);
    send(ACK);
    assert_eq!(raw_packets(), 1);
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn only_the_process_that_was_asked_for_is_captured() {
    let namespace = Namespace::new();
    let file = TargetFile::new();
    let (server, port) = Program::server(&others(), &namespace, "127.0.0.1:0");
    let mut wanted = Program::client(&file.path, &namespace);
    let mut unwanted = Program::client(&file.path, &namespace);
    let options = PacketOptions {
        filters: Filters {
            pid: Some(wanted.pid()),
            uid: None,
        },
        ..options_in(&server, "lo")
    };
    let capture = file.capture(&options);
    let mut collector = Collector::new(&capture);
    let order = format!("tcp 127.0.0.1:{port}");
    unwanted.tell(&order);
    wanted.tell(&order);
    unwanted.tell(&order);
    let mut late = Program::client(&file.path, &namespace);
    late.tell(&format!("tcp 127.0.0.1:{port}"));
    let captured = collector.look();
    assert!(!captured.is_empty());
    for packet in captured {
        let ends = (packet.sender, packet.receiver);
        let wanted = Some(wanted.pid());
        assert!(ends == (wanted, None) || ends == (None, wanted), "{ends:?}");
    }
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn both_ends_are_known_if_both_are_targets() {
    let namespace = Namespace::new();
    let file = TargetFile::new();
    let (server, port) = Program::server(&file.path, &namespace, "127.0.0.1:0");
    let mut client = Program::client(&file.path, &namespace);
    let mut witness = Witness::new(&namespace, "lo");
    let capture = file.capture(&options_in(&server, "lo"));
    let mut collector = Collector::new(&capture);
    client.tell(&format!("tcp 127.0.0.1:{port}"));
    let captured = agree(&mut witness, &mut collector, &[port]);
    let (one, two) = (Some(client.pid()), Some(server.pid()));
    for packet in captured {
        let from_server = ports_of(&packet.bytes).unwrap().0 == port;
        let ends = if from_server { (two, one) } else { (one, two) };
        assert_eq!(
            (packet.sender, packet.receiver),
            ends,
            "{}",
            summary(&packet.bytes)
        );
    }
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn filter_and_snaplen_hold_and_all_packets_are_all() {
    let namespace = Namespace::new();
    let (server, port) = Program::server(&others(), &namespace, "127.0.0.1:0");
    let mut client = Program::client(&others(), &namespace);
    for &kind in hook_kinds() {
        let options = PacketOptions {
            all_packets: true,
            filter: Some(format!("udp and dst port {port}")),
            snaplen: 60,
            hooks: Some(kind),
            ..options_in(&server, "lo")
        };
        let capture = PacketCapture::attach(None, &options).unwrap();
        assert_eq!(capture.hook_kind(), kind);
        let mut reader = capture.reader().unwrap();
        client.tell(&format!("tcp 127.0.0.1:{port}"));
        client.tell(&format!("udp 127.0.0.1:{port}"));
        let mut found = Vec::new();
        reader.drain(usize::MAX, |bytes| match Record::decode(bytes) {
            Ok(Record::Packet(record)) => found.push((
                record.length,
                record.bytes.len(),
                record.sender.map(|it| it.pid),
                record.receiver.map(|it| it.pid),
            )),
            other => panic!("{other:?}"),
        });
        let ends = |length, captured| (length, captured, Some(client.pid()), Some(server.pid()));
        assert_eq!(found, [ends(43, 43), ends(1042, 60), ends(5042, 60)]);
    }
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn full_ring_is_counted_for_its_interface() {
    let namespace = Namespace::new();
    let (server, port) = Program::server(&others(), &namespace, "127.0.0.1:0");
    let mut client = Program::client(&others(), &namespace);
    let options = PacketOptions {
        all_packets: true,
        ring_kib: 64,
        ..options_in(&server, "lo")
    };
    let capture = PacketCapture::attach(None, &options).unwrap();
    let mut collector = Collector::new(&capture);
    client.tell(&format!("tcp 127.0.0.1:{port}"));
    let counters = collector.reader.counters();
    let captured = collector.look().len() as u64;
    let statistics = capture.statistics()[0];
    assert!(statistics.dropped > 0);
    assert_eq!(statistics.matched, captured + statistics.dropped);
    assert_eq!(counters.lost_records, statistics.dropped);
    assert!(counters.lost_bytes > 0);
}

/// As systemd starts a server that it listens for, and a server its successor.
#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn socket_that_a_target_inherits_is_its_own() {
    let namespace = Namespace::new();
    let file = TargetFile::new();
    let mut client = Program::client(&others(), &namespace);
    let listener = namespace.enter(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    let capture = file.capture(&options_in(&client, "lo"));
    let mut collector = Collector::new(&capture);
    let mut target = Command::new(&file.path)
        .args(["--exact", "role", "--include-ignored", "--nocapture"])
        .env("PACKETS_ROLE", "inherit")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(target.stdout.take().unwrap());
    assert!(stdout.lines().any(|line| line.unwrap() == "@ready"));
    // The listener is taken over within moments, not at once.
    let deadline = Instant::now() + patient(PATIENCE);
    while collector.look().is_empty() && Instant::now() < deadline {
        client.tell(&format!("open 127.0.0.1:{port}"));
        client.tell("close");
    }
    let found = collector.look().first().map(|packet| packet.receiver);
    target.kill().unwrap();
    target.wait().unwrap();
    assert_eq!(found, Some(Some(target.id())));
}

/// As launchers do, which set an environment up for another program and execute that.
#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn sockets_of_a_program_that_a_target_executes_are_not_the_targets() {
    let namespace = Namespace::new();
    let file = TargetFile::new();
    let (server, port) = Program::server(&others(), &namespace, "127.0.0.1:0");
    let capture = file.capture(&options_in(&server, "lo"));
    let mut collector = Collector::new(&capture);
    let others = others();
    let variables = [("PACKETS_FILE", others.to_str().unwrap())];
    let begun = Instant::now();
    let mut launched = Program::start(&file.path, &namespace, "become", &variables);
    assert_eq!(launched.hear(), "ready");
    launched.tell(&format!("open 127.0.0.1:{port}"));
    let mut target = Program::client(&file.path, &namespace);
    target.tell(&format!("open 127.0.0.1:{port}"));
    // Meanwhile those that have started are looked at again, several times.
    while begun.elapsed() < Duration::from_millis(1500) {
        launched.tell("use");
        target.tell("use");
    }
    let wanted = Some(target.pid());
    let captured = collector.look();
    assert!(!captured.is_empty());
    for packet in captured {
        let ends = (packet.sender, packet.receiver);
        assert!(ends == (wanted, None) || ends == (None, wanted), "{ends:?}");
    }
}

/// The first fragment of a datagram to 10.9.0.1, or the one behind it, as an IPv4 packet for a raw socket,
/// which fills in lengths, checksums and the source.
fn fragment(identification: u16, port: u16, is_first: bool) -> Vec<u8> {
    /// There are more fragments.
    const MORE: u16 = 0x2000;

    // Each has 16 bytes; offsets count in eights.
    let place = if is_first { MORE } else { 2 };
    let mut packet = vec![0x45, 0, 0, 0];
    packet.extend(identification.to_be_bytes());
    packet.extend(place.to_be_bytes());
    packet.extend([64, libc::IPPROTO_UDP as u8, 0, 0, 0, 0, 0, 0, 10, 9, 0, 1]);
    if is_first {
        for word in [9, port, 32, 0] {
            packet.extend(word.to_be_bytes());
        }
        packet.extend([1; 8]);
    } else {
        packet.extend([2; 16]);
    }
    packet
}

/// Senders that have no more identifications begin anew.
#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn fragments_of_others_with_a_targets_identification_are_not_the_targets() {
    use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

    let (here, there) = Namespace::pair();
    let file = TargetFile::new();
    let (_other, other_port) = Program::server(&others(), &here, "10.9.0.1:0");
    let (target, port) = Program::server(&file.path, &here, "10.9.0.1:0");
    let capture = file.capture(&options_in(&target, "left"));
    let mut collector = Collector::new(&capture);
    there.enter(|| {
        let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).unwrap();
        let to: SocketAddr = "10.9.0.1:0".parse().unwrap();
        // The target's second fragment gets lost.
        for packet in [
            fragment(7, port, true),
            fragment(7, other_port, true),
            fragment(7, other_port, false),
            fragment(8, port, true),
            fragment(8, port, false),
        ] {
            sendto(&raw, &packet, SendFlags::empty(), &to).unwrap();
        }
    });
    let is_last = |packet: &Captured| packet.bytes[14..][4..8] == [0, 8, 0, 2];
    let deadline = Instant::now() + patient(PATIENCE);
    while !collector.look().iter().any(is_last) && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let found = collector.look().iter();
    let found: Vec<_> = found
        .filter(|packet| packet.direction == PacketDirection::Inbound)
        .map(|packet| packet.bytes[14..][4..8].to_vec())
        .collect();
    assert_eq!(found, [[0, 7, 0x20, 0], [0, 8, 0x20, 0], [0, 8, 0, 2]]);
}

/// The kernel takes VLAN tags out of packets; in a capture they are where they were.
#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn vlan_tags_are_put_back() {
    let (here, there) = Namespace::pair();
    let somebody = Program::client(&others(), &here);
    let options = PacketOptions {
        all_packets: true,
        filter: Some("vlan 100 and udp dst port 53 and len = 64".into()),
        ..options_in(&somebody, "left")
    };
    let capture = PacketCapture::attach(None, &options).unwrap();
    let mut collector = Collector::new(&capture);
    let mut packet = vec![0xff; 6];
    packet.extend([2, 0, 0, 0, 0, 9, 0x81, 0x00, 0x20, 100, 0x08, 0x00]);
    packet.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend([10, 9, 0, 9, 10, 9, 0, 1, 0x30, 0x39, 0, 53, 0, 26, 0, 0]);
    packet.extend(*b"eighteen bytes....");
    assert_eq!(packet.len(), 64);
    let sender = Witness::new(&there, "right");
    // SAFETY: The packet has the length said.
    let send = |packet: &[u8]| unsafe {
        libc::send(
            sender.socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
        )
    };
    let mut untagged = packet.clone();
    untagged.drain(12..16);
    assert_eq!(send(&untagged), 60);
    assert_eq!(send(&packet), 64);
    let deadline = Instant::now() + patient(PATIENCE);
    while collector.look().is_empty() && Instant::now() < deadline {}
    let found: Vec<_> = collector.look().iter().map(|found| &found.bytes).collect();
    assert_eq!(found, [&packet]);
}

/// A tun device has no link-layer header.
#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn packets_of_a_tunnel_begin_with_ip() {
    let namespace = Namespace::new();
    let file = TargetFile::new();
    namespace.run(&["ip", "tuntap", "add", "mode", "tun", "name", "tun0"]);
    namespace.run(&["ip", "addr", "add", "10.8.0.1/24", "dev", "tun0"]);
    namespace.run(&["ip", "link", "set", "tun0", "up"]);
    let mut tunnel = namespace.enter(open_tunnel);
    let mut target = Program::client(&file.path, &namespace);
    let options = PacketOptions {
        filter: Some("udp and host 10.8.0.2".into()),
        ..options_in(&target, "tun0")
    };
    let capture = file.capture(&options);
    assert_eq!(capture.interfaces()[0].link_type, capture::LinkType::RawIp);
    assert_eq!(capture.interfaces()[0].link_type.number(), 101);
    let mut collector = Collector::new(&capture);
    // Answers what the target sends by turning it around.
    let answers = std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        let mut turned = 0;
        while turned < 2 {
            let length = tunnel.read(&mut buffer).unwrap();
            let packet = &mut buffer[..length];
            if packet[0] != 0x45 || packet[9] != 17 {
                continue;
            }
            let (source, destination) = packet[12..20].split_at_mut(4);
            source.swap_with_slice(destination);
            let (from, to) = packet[20..24].split_at_mut(2);
            from.swap_with_slice(to);
            tunnel.write_all(packet).unwrap();
            turned += 1;
        }
    });
    target.tell("udp-small 10.8.0.2:7");
    answers.join().unwrap();
    let pid = Some(target.pid());
    let found: Vec<_> = collector
        .look()
        .iter()
        .map(|packet| {
            (
                packet.bytes.len(),
                packet.direction,
                packet.sender,
                packet.receiver,
            )
        })
        .collect();
    let (sent, received) = (PacketDirection::Outbound, PacketDirection::Inbound);
    assert_eq!(
        found,
        [
            (29, sent, pid, None),
            (29, received, None, pid),
            (1028, sent, pid, None),
            (1028, received, None, pid)
        ]
    );
}

fn open_tunnel() -> fs::File {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // struct ifreq: a name, then flags (include/uapi/linux/if_tun.h: IFF_TUN | IFF_NO_PI).
    let mut request = [0u8; 40];
    request[..4].copy_from_slice(b"tun0");
    request[16..18].copy_from_slice(&0x1001u16.to_ne_bytes());
    const TUNSETIFF: libc::Ioctl = 0x400454ca;
    // SAFETY: The request has the size of struct ifreq.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0);
    file
}

/// What `bpftool net` and `tc` say of a namespace.
fn attached(namespace: &Namespace) -> (usize, usize, usize) {
    let tcx = namespace.run(&["bpftool", "net"]);
    let filters = ["ingress", "egress"].map(|hook| {
        namespace.run(&["tc", "filter", "show", "dev", "lo", hook])
            + &namespace.run(&["tc", "filter", "show", "dev", "left", hook])
    });
    let qdiscs = namespace.run(&["tc", "qdisc", "show"]);
    (
        tcx.matches("ecapture_").count(),
        filters.concat().matches("name ecapture_").count(),
        qdiscs.matches("clsact").count(),
    )
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn nothing_stays_attached() {
    let (namespace, _there) = Namespace::pair();
    let somebody = Program::client(&others(), &namespace);
    let options = |kind| PacketOptions {
        interfaces: InterfaceSelection::All,
        all_packets: true,
        hooks: Some(kind),
        ..options_in(&somebody, "lo")
    };
    if hook_kinds().contains(&HookKind::Tcx) {
        drop(PacketCapture::attach(None, &options(HookKind::Tcx)).unwrap());
    }
    assert_eq!(attached(&namespace), (0, 0, 0));

    let mut capture = PacketCapture::attach(None, &options(HookKind::Clsact)).unwrap();
    let names: Vec<_> = capture.interfaces().iter().map(|it| &it.name).collect();
    assert_eq!(names, ["lo", "left"]);
    assert_eq!(attached(&namespace).1, 4);
    // A second one goes beside it, and leaves it alone.
    let second = PacketCapture::attach(None, &options(HookKind::Clsact)).unwrap();
    assert_eq!(attached(&namespace).1, 8);
    drop(second);
    assert_eq!(attached(&namespace).1, 4);
    capture.detach();
    assert_eq!(attached(&namespace), (0, 0, 0));

    // Somebody else's clsact stays, and so does a filter that came meanwhile.
    namespace.run(&["tc", "qdisc", "add", "dev", "lo", "clsact"]);
    let capture = PacketCapture::attach(None, &options(HookKind::Clsact)).unwrap();
    namespace.run(&[
        "tc", "filter", "add", "dev", "left", "egress", "protocol", "all", "prio", "50", "u32",
        "match", "u32", "0", "0", "classid", "1:1",
    ]);
    drop(capture);
    assert_eq!(attached(&namespace), (0, 0, 2));
    let left = namespace.run(&["tc", "filter", "show", "dev", "left", "egress"]);
    assert!(left.contains("u32"), "{left}");
}

/// One that ends must not take away the qdisc that another one is about to use, or has begun to use.
#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn captures_that_begin_and_end_at_the_same_time_leave_each_other_alone() {
    const AT_ONCE: usize = 3;
    const TIMES: usize = 25;

    let namespace = Namespace::new();
    let somebody = Program::client(&others(), &namespace);
    let assert_filters_are_there = || {
        let both: String = ["ingress", "egress"]
            .map(|hook| namespace.run(&["tc", "filter", "show", "dev", "lo", hook]))
            .concat();
        let found = both.matches("name ecapture_").count();
        assert!(found >= 2, "{found} filters: {both}");
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                for _ in 0..TIMES {
                    let options = PacketOptions {
                        hooks: Some(HookKind::Clsact),
                        all_packets: true,
                        ..options_in(&somebody, "lo")
                    };
                    let capture = PacketCapture::attach(None, &options).unwrap();
                    assert_filters_are_there();
                    drop(capture);
                }
            });
        }
    });
    assert_eq!(
        namespace
            .run(&["tc", "qdisc", "show"])
            .matches("clsact")
            .count(),
        0
    );
}

/// Not a test: a capture that will be killed, or told to end.
#[test]
#[ignore = "only as a child process of the other tests"]
fn capture_until_told() {
    let Ok(pid) = std::env::var("PACKETS_NAMESPACE_OF") else {
        return;
    };
    let process = Process::open(pid.parse().unwrap()).unwrap();
    let options = PacketOptions {
        network_namespace: NetworkNamespace::of_process(&process).unwrap(),
        all_packets: true,
        hooks: Some(HookKind::Clsact),
        filter: Some("tcp".into()),
        ..PacketOptions::default()
    };
    let capture = PacketCapture::attach(None, &options).unwrap();
    say("attached");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    capture.give_up_privileges().unwrap();
    drop(capture);
    say("detached");
}

/// Starts that, and waits until it has attached.
fn start_capture(somebody: &Program) -> (Child, BufReader<ChildStdout>) {
    let mut capture = Command::new(others())
        .args([
            "--exact",
            "capture_until_told",
            "--include-ignored",
            "--nocapture",
        ])
        .env("PACKETS_NAMESPACE_OF", somebody.pid().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(capture.stdout.take().unwrap());
    assert!(hears(&mut stdout, "@attached"));
    (capture, stdout)
}

fn hears(stdout: &mut impl BufRead, wanted: &str) -> bool {
    stdout.lines().any(|line| line.unwrap() == wanted)
}

/// Filters of another network namespace: what takes the most to remove.
#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn what_remains_of_the_privileges_is_enough_to_detach() {
    let (namespace, _there) = Namespace::pair();
    let somebody = Program::client(&others(), &namespace);
    let (mut capture, mut stdout) = start_capture(&somebody);
    assert_eq!(attached(&namespace).1, 4);
    writeln!(capture.stdin.take().unwrap()).unwrap();
    assert!(hears(&mut stdout, "@detached"));
    assert!(capture.wait().unwrap().success());
    assert_eq!(attached(&namespace), (0, 0, 0));
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn filters_of_a_capture_that_was_killed_are_removed_by_the_next_one() {
    let (namespace, _there) = Namespace::pair();
    let somebody = Program::client(&others(), &namespace);
    let (mut killed, _) = start_capture(&somebody);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(attached(&namespace).1, 4, "they stay, as the kernel has it");

    // Even if the next one captures somewhere else.
    let options = PacketOptions {
        all_packets: true,
        hooks: Some(HookKind::Clsact),
        ..options_in(&somebody, "lo")
    };
    let capture = PacketCapture::attach(None, &options).unwrap();
    assert_eq!(attached(&namespace).1, 2);
    drop(capture);
    assert_eq!(attached(&namespace), (0, 0, 0));
}

#[test]
#[ignore = "needs root: run `cargo xtask test`"]
fn wrong_input_is_told_before_anything_is_attached() {
    let options = PacketOptions {
        interfaces: InterfaceSelection::Named(vec!["nosuch0".into()]),
        ..PacketOptions::default()
    };
    let error = PacketCapture::attach(None, &options).unwrap_err();
    assert!(
        error.is_wrong_input() && error.to_string().contains("nosuch0"),
        "{error}"
    );
    let options = PacketOptions {
        filter: Some("tcp prot 80".into()),
        ..PacketOptions::default()
    };
    let error = PacketCapture::attach(None, &options).unwrap_err();
    assert!(
        error.is_wrong_input() && error.to_string().contains("syntax"),
        "{error}"
    );
}
