//! Programs in containers: in namespaces and a cgroup of their own, on an overlay that is mounted only
//! there and has the only copy of the executable. Needs namespaces of all kinds, overlayfs and cgroup v2, and
//! the programs unshare, mount, ip, stat and chroot.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use xtask::matrix::{GoRelease, Variant};
use xtask::process::{Child, Stream, patient};
use xtask::run;

use crate::capture::{self, Capture, Captured, Line};
use crate::exchange::{Connections, Exchange, LONG};
use crate::exec_gate::guard_of;
use crate::fleet::Fleet;
use crate::https;

/// What Docker would call the container of this number.
fn id(number: u32) -> String {
    format!("{number:064x}")
}

/// The shell of a container, which executes its program once it is told to.
struct Container {
    shell: Child,
    /// Device number of its overlay.
    device: u64,
}

impl Container {
    /// Moves the executable into a new container.
    fn new(path: &Path, number: u32) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let directory = path.parent().unwrap_or(path).display();
        let outside = format!(
            "set -e; mount -t cgroup2 none /mnt; mkdir -p /mnt/{group}; \
             echo $$ > /mnt/{group}/cgroup.procs; umount /mnt; \
             mount -t tmpfs none /mnt; mkdir /mnt/up /mnt/work /mnt/all; mount -t overlay overlay \
             -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work /mnt/all; \
             mv {directory}/{name} /mnt/all/{name}; \
             exec unshare --user --map-root-user --mount --pid --net --uts --ipc --cgroup --fork \
             --kill-child sh -c \"$0\"",
            group = group(number),
        );
        let inside = format!(
            "set -e; ip link set lo up; mount -t proc proc /mnt/all/proc; stat -c %d /mnt/all; \
             export HOSTNAME=web-0 POD_NAMESPACE=shop; \
             read flags; exec chroot /mnt/all /{name} $flags"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &outside, &inside]);
        let shell = Child::spawn(&mut command)?;
        let is_number = |line: &str| line.parse::<u64>().is_ok();
        let device = shell.wait_for_line(Stream::Stdout, LONG, is_number)?;
        ensure!(!path.exists(), "it is only in the container");
        Ok(Self {
            shell,
            device: device.parse()?,
        })
    }

    /// Has it execute its program.
    fn start(mut self, flags: &str) -> Result<Exchange> {
        self.shell.send_line(flags)?;
        Exchange::of(self.shell)
    }

    /// Waits until programs on its overlay are held: the capture has to notice first that it is mounted.
    fn wait_until_held(&self, capture: &Capture) -> Result<()> {
        wait_for_mark(capture, self.device, true)
    }
}

/// Waits until the kernel asks the capture about programs on this device, or does not ask any more.
fn wait_for_mark(capture: &Capture, device: u64, is_there: bool) -> Result<()> {
    // proc(5), fdinfo: the kernel's own notation of device numbers, with 20 bits of minor number.
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let mark = format!("fanotify sdev:{:x} ", (major << 20) | minor);
    let guard = guard_of(capture)?;
    let deadline = Instant::now() + patient(LONG);
    loop {
        let mut found = false;
        for entry in fs::read_dir(format!("/proc/{guard}/fdinfo"))? {
            // A descriptor that has been closed meanwhile.
            let info = fs::read_to_string(entry?.path()).unwrap_or_default();
            found |= info.contains(&mark);
        }
        if found == is_there {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{mark}: a mark: {found}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// The container of a pod, as kubelet calls it with the cgroupfs driver.
const POD: u32 = 10;
const POD_UID: &str = "9b1f2c3d-0000-4444-8888-0123456789ab";

/// Path of the container's cgroup.
fn group(number: u32) -> String {
    let id = id(number);
    if number == POD {
        format!("ecapture-test/kubepods/pod{POD_UID}/{id}")
    } else {
        format!("ecapture-test/docker-{id}.scope")
    }
}

/// The cgroups that tests made, when they are done.
struct Groups(std::ops::Range<u32>);

impl Drop for Groups {
    fn drop(&mut self) {
        let groups: Vec<_> = self.0.clone().map(group).collect();
        let script = format!(
            "mount -t cgroup2 none /mnt; cd /mnt; rmdir -p {}",
            groups.join(" ")
        );
        let mut command = Command::new("unshare");
        // What is still in use stays.
        let _ = run::output(command.args(["--mount", "sh", "-c", &script]));
    }
}

/// They know their pids in their own namespaces: 1.
fn without_pids(connections: &Connections) -> Connections {
    let stripped = connections.iter().map(|connection| {
        let mut connection = connection.clone();
        connection.pid = 0;
        connection
    });
    Connections::new(stripped.collect())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn programs_in_containers_are_captured() -> Result<()> {
    let _groups = Groups(10..13);
    let fleet = Fleet::new("boxed")?;
    let first = fleet.add(0, GoRelease::Go1_21, Variant::Default)?;
    let second = fleet.add(1, GoRelease::NEWEST, Variant::StrippedPie)?;
    let third = fleet.add(2, GoRelease::Go1_23, Variant::Default)?;
    let mut running = Container::new(&first, 10)?.start("-hold -seed 1")?;
    let all = fleet.capture()?;
    let one = fleet.capture_by(&["--container", &id(11)], "--longest-hold 60000")?;
    let later = Container::new(&second, 11)?;
    let short = Container::new(&third, 12)?;
    for capture in [&all, &one] {
        later.wait_until_held(capture)?;
        short.wait_until_held(capture)?;
    }
    let short = short.start("-sizes 100 -seed 3")?.finish()?.connections();
    let mut later = later.start("-hold -seed 2")?;
    running.go()?;
    later.go()?;
    let running = running.finish()?.connections();
    let later = later.finish()?.connections();
    let one = one.stop()?;
    without_pids(&one.connections()?).assert_equal(&without_pids(&later));
    let all = all.stop()?;
    let expected = running.and(later).and(short);
    without_pids(&all.connections()?).assert_equal(&without_pids(&expected));
    assert_eq!(all.pids()?.len(), 3);
    assert_eq!(containers(&all)?, [pod(), in_docker(11), in_docker(12)]);
    Ok(())
}

/// The kernel gives the device number of a filesystem that is gone to the next one, which is another.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn containers_that_follow_each_other_on_one_device_number_are_captured() -> Result<()> {
    /// Until a number comes again, though others mount and unmount meanwhile.
    const NUMBERS: std::ops::Range<u32> = 20..32;

    let _groups = Groups(NUMBERS);
    let fleet = Fleet::new("again")?;
    let capture = fleet.capture_with("--longest-hold 60000")?;
    let mut expected = Connections::default();
    let mut devices = HashSet::new();
    for number in NUMBERS {
        let path = fleet.add(number as usize, GoRelease::NEWEST, Variant::Stripped)?;
        let container = Container::new(&path, number)?;
        let device = container.device;
        let seen_before = !devices.insert(device);
        container.wait_until_held(&capture)?;
        let flags = format!("-sizes 100 -seed {number}");
        expected = expected.and(container.start(&flags)?.finish()?.connections());
        if seen_before {
            break;
        }
        // The file is released some time after the last program has ended, and with it the overlay.
        wait_for_mark(&capture, device, false)?;
    }
    ensure!(
        devices.len() < NUMBERS.len(),
        "all were different: {devices:?}"
    );
    let captured = capture.stop()?;
    without_pids(&captured.connections()?).assert_equal(&without_pids(&expected));
    Ok(())
}

/// As in a node of a cluster that is a container itself.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn programs_below_a_pid_namespace_that_is_not_the_initial_one_are_refused() -> Result<()> {
    const BELOW: &str = "in a pid namespace below ecapture's own";

    let program = https::program(GoRelease::NEWEST)?;
    let beside = https::program(GoRelease::NEWEST)?;
    let mut node = Child::spawn(Command::new("unshare").args([
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
    ]))?;
    let path = program.path();
    let (path, beside) = (path.display(), beside.path());
    // Until their input ends.
    let asks = "-requests 0 -interval 300ms";
    node.send_line(&format!(
        "sleep 1000 | unshare --pid --fork --kill-child --mount-proc {path} {asks} &"
    ))?;
    node.wait_for_prefix(Stream::Stdout, LONG, r#"{"addr":"#)?;
    node.send_line(&format!("sleep 1000 | {} {asks} >&2 &", beside.display()))?;
    node.wait_for_prefix(Stream::Stderr, LONG, r#"{"addr":"#)?;

    let mut commands = 0;
    let mut ecapture = |arguments: &str| -> Result<(String, String)> {
        commands += 1;
        let said = program.dir().join(format!("said-{commands}"));
        let ecapture = capture::ecapture().get_program().display().to_string();
        node.send_line(&format!(
            "{ecapture} {arguments} </dev/null >{said} 2>&1; echo end {commands} $?",
            said = said.display()
        ))?;
        let end = format!("end {commands} ");
        let code = node.wait_for_prefix(Stream::Stdout, LONG, &end)?;
        Ok((fs::read_to_string(said)?, code.replace(&end, "")))
    };
    let (listed, _) = ecapture(&format!("list --format json -e {path}"))?;
    let listed: serde_json::Value = serde_json::from_str(&listed).context(listed)?;
    assert_eq!(listed["capture"], false, "{listed}");
    assert!(listed["refusal"].to_string().contains(BELOW), "{listed}");
    let pid = &listed["pid"];
    let (listed, _) = ecapture(&format!("list --format json -e {}", beside.display()))?;
    let listed: serde_json::Value = serde_json::from_str(&listed).context(listed)?;
    assert_eq!(listed["capture"], true, "{listed}");
    let pid_beside = &listed["pid"];

    for pids in [format!("-p {pid}"), format!("-p {pid_beside} -p {pid}")] {
        let (said, code) = ecapture(&format!("gotls {pids}"))?;
        assert_eq!(code, "2", "{said}");
        assert!(said.contains(BELOW), "{said}");
    }
    let both = format!("-e {path} -e {}", beside.display());
    for (files, shows) in [(format!("-e {path}"), false), (both, true)] {
        let (said, code) = ecapture(&format!("gotls {files} --duration 2"))?;
        assert_eq!(code, "0", "{said}");
        assert_eq!(said.matches(BELOW).count(), 1, "{said}");
        assert_eq!(said.contains("POST https"), shows, "{said}");
    }
    let (said, _) = ecapture("doctor --mode text")?;
    assert!(said.contains("pid namespace not the initial one"), "{said}");
    Ok(())
}

fn in_docker(number: u32) -> capture::Container {
    capture::Container {
        id: id(number),
        runtime: Some("docker".into()),
        pod_uid: None,
        pod: None,
        namespace: None,
    }
}

fn pod() -> capture::Container {
    capture::Container {
        id: id(POD),
        runtime: None,
        pod_uid: Some(POD_UID.into()),
        pod: Some("web-0".into()),
        namespace: Some("shop".into()),
    }
}

/// Where all connections were, each place once.
fn containers(captured: &Captured) -> Result<Vec<capture::Container>> {
    let mut containers = Vec::new();
    for line in captured.lines() {
        if let Line::Connection(opened) = line? {
            containers.push(opened.container.context("no container")?);
        }
    }
    containers.sort();
    containers.dedup();
    Ok(containers)
}
