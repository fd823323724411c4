//! Go code in shared libraries and plugins is captured, whoever has loaded them.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use xtask::matrix::GoRelease;
use xtask::process::{Child, Stream};
use xtask::run;
use xtask::standalone::shared::{self, HOST, LIBRARY, Loading};

use crate::capture::{Capture, Line, ecapture};
use crate::exchange::{Exchange, LONG};
use crate::faults::Storm;
use crate::keylog::{KeyCapture, KeyLog};
use crate::wrong_input::{WRONG_INPUT, refused};

/// Copies of a library and of a program that loads it, which nobody else probes.
struct Shared {
    directory: TempDir,
    name: &'static str,
}

impl Shared {
    fn new(release: GoRelease, loading: Loading) -> Result<Self> {
        Self::named(HOST, release, loading)
    }

    /// With this name for the program.
    fn named(name: &'static str, release: GoRelease, loading: Loading) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("ecapture-shared-")
            .tempdir()?;
        let built = shared::build(release, loading)?;
        for (from, to) in [(HOST, name), (LIBRARY, LIBRARY)] {
            let mut copy = Command::new("cp");
            run::output(copy.arg(built.join(from)).arg(directory.path().join(to)))?;
        }
        Ok(Self { directory, name })
    }

    fn library(&self) -> PathBuf {
        self.directory.path().join(LIBRARY)
    }

    fn host(&self) -> PathBuf {
        self.directory.path().join(self.name)
    }

    fn command(&self, flags: &str) -> Command {
        let mut command = Command::new(self.host());
        command.args(flags.split_whitespace());
        command.env("EXCHANGE_LIBRARY", self.library());
        command
    }

    fn start(&self, flags: &str) -> Result<Exchange> {
        Exchange::spawn(&mut self.command(flags))
    }
}

fn releases(loading: Loading) -> &'static [GoRelease] {
    match loading {
        Loading::Dlopen => &[
            GoRelease::Go1_15,
            GoRelease::Go1_19,
            GoRelease::Go1_24,
            GoRelease::Go1_27,
        ],
        Loading::Linked | Loading::Plugin => &[GoRelease::Go1_24, GoRelease::Go1_27],
    }
}

/// By the library's path, in a process that starts later; and of a process that has loaded it.
fn every_byte_is_captured(loading: Loading) -> Result<()> {
    for &release in releases(loading) {
        let shared = Shared::new(release, loading)?;
        let capture = Capture::of(&shared.library(), "")?;
        let log = shared.start("-conns 2 -sizes 1,100,16385")?.finish()?;
        let captured = capture.stop()?;
        captured.connections()?.assert_equal(&log.connections());

        let mut target = shared.start("-hold -sizes 1,100,16385")?;
        let capture = Capture::of_pid(target.pid(), "")?;
        assert!(capture.attached.contains(LIBRARY), "{}", capture.attached);
        target.go()?;
        let log = target.finish()?;
        let captured = capture.finish()?;
        captured.connections()?.assert_equal(&log.connections());
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn every_byte_of_a_library_that_is_loaded_is_captured() -> Result<()> {
    every_byte_is_captured(Loading::Dlopen)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn every_byte_of_a_library_that_is_linked_with_is_captured() -> Result<()> {
    every_byte_is_captured(Loading::Linked)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn every_byte_of_a_plugin_is_captured() -> Result<()> {
    every_byte_is_captured(Loading::Plugin)
}

/// By its path, of one of the processes that have loaded it.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_library_of_one_process_is_captured_once() -> Result<()> {
    let shared = Shared::new(GoRelease::NEWEST, Loading::Dlopen)?;
    let mut target = shared.start("-hold -sizes 1,100,16385")?;
    let mut other = shared.start("-hold")?;
    let capture = Capture::of(&shared.library(), &format!("--pid {}", target.pid()))?;
    for program in [&mut other, &mut target] {
        program.go()?;
    }
    other.finish()?;
    let log = target.finish()?;
    let captured = capture.finish()?;
    captured.connections()?.assert_equal(&log.connections());
    Ok(())
}

/// Addresses, what was agreed on, and goroutines.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn connections_of_a_library_are_told() -> Result<()> {
    for release in [GoRelease::Go1_19, GoRelease::Go1_24, GoRelease::Go1_27] {
        let shared = Shared::new(release, Loading::Dlopen)?;
        let capture = Capture::of(&shared.library(), "")?;
        let target = shared.start("-sizes 100")?;
        let server = target.addr().to_owned();
        target.finish()?;
        let captured = capture.stop()?;
        let mut roles = Vec::new();
        for line in captured.lines() {
            match line? {
                Line::Connection(opened) => {
                    let ends = [&opened.local, &opened.remote];
                    ensure!(ends.contains(&&Some(server.clone())), "{opened:?}");
                    ensure!(opened.tls_version.as_deref() == Some("1.3"), "{opened:?}");
                    ensure!(opened.fd.is_some(), "{opened:?}");
                    roles.extend(opened.role);
                }
                Line::Data(data) => ensure!(data.goroutine.is_some(), "{data:?}"),
                _ => {}
            }
        }
        roles.sort_unstable();
        assert_eq!(roles, ["client", "server"], "Go {release}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn keys_of_a_library_are_those_that_the_program_logs() -> Result<()> {
    let shared = Shared::new(GoRelease::NEWEST, Loading::Dlopen)?;
    let own = shared.directory.path().join("own");
    let library = shared.library();
    let capture = KeyCapture::of(&library, "")?;
    shared
        .start(&format!("-sizes 100 -keylog {}", own.display()))?
        .finish()?;
    assert_eq!(capture.stop()?.log.set(), KeyLog::read(&own)?.set());
    Ok(())
}

/// With a selector, so that other tests' programs are left alone.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn libraries_are_found_in_all_processes() -> Result<()> {
    for loading in Loading::ALL {
        let shared = Shared::named("sharing", GoRelease::Go1_24, loading)?;
        let mut target = shared.start("-hold -sizes 1,100,16385")?;
        let mut command = ecapture();
        command.args(["gotls", "--format", "json", "--comm", "sharing"]);
        let capture = Capture::spawn(&mut command)?;
        assert!(
            capture.attached.contains("1 executable and 1 process:"),
            "{}",
            capture.attached
        );
        target.go()?;
        let log = target.finish()?;
        let captured = capture.stop()?;
        captured.connections()?.assert_equal(&log.connections());
    }
    Ok(())
}

/// The program is not Go's when it starts, or has no TLS; the library makes it one that is captured. What
/// `meanwhile` returns lives until then.
fn are_captured_when_loaded<T>(
    name: &'static str,
    meanwhile: impl Fn() -> Result<T>,
) -> Result<()> {
    for loading in Loading::ALL {
        let shared = Shared::named(name, GoRelease::Go1_24, loading)?;
        let mut command = ecapture();
        command.args(["gotls", "--format", "json", "--comm", name]);
        let mut capture = Capture::spawn(&mut command)?;
        assert!(
            capture.attached.contains("nothing yet"),
            "{}",
            capture.attached
        );
        let _meanwhile = meanwhile()?;

        let mut command = shared.command("-hold -sizes 1,100,16385");
        let mut child = Child::spawn(command.env("EXCHANGE_WAIT", "1"))?;
        if loading != Loading::Linked {
            child.wait_for_line(Stream::Stdout, LONG, |line| line.contains("waiting"))?;
            child.send_line("")?;
        }
        let mut target = Exchange::of(child)?;
        let library = shared.library().display().to_string();
        capture
            .child()
            .wait_for_line(Stream::Stderr, LONG, |line| {
                line.contains("also capturing") && line.contains(&library)
            })?;
        target.go()?;
        let log = target.finish()?;
        let captured = capture.stop()?;
        captured.connections()?.assert_equal(&log.connections());
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn libraries_that_are_loaded_later_are_captured() -> Result<()> {
    are_captured_when_loaded("sharinglater", || Ok(()))
}

/// Long enough for a capture to see that programs start all the time, or that they don't any more.
const WHILE: Duration = Duration::from_millis(500);

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn libraries_that_are_loaded_in_a_storm_of_processes_are_captured() -> Result<()> {
    are_captured_when_loaded("sharingstorm", || {
        let storm = Storm::start()?;
        thread::sleep(WHILE);
        Ok(storm)
    })
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn libraries_that_are_loaded_after_a_storm_of_processes_are_captured() -> Result<()> {
    are_captured_when_loaded("sharingafter", || {
        let storm = Storm::start()?;
        thread::sleep(WHILE);
        drop(storm);
        thread::sleep(WHILE);
        Ok(())
    })
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn list_shows_processes_with_their_libraries() -> Result<()> {
    for loading in Loading::ALL {
        let shared = Shared::new(GoRelease::NEWEST, loading)?;
        let mut target = shared.start("-hold")?;
        let pid = target.pid().to_string();
        let mut list = ecapture();
        let lines = run::output(list.args(["list", "--format", "json", "--pid", &pid]))?;
        let process: Value = serde_json::from_str(&lines).context(lines)?;
        assert_eq!(
            process["library"],
            shared.library().to_string_lossy().as_ref()
        );
        assert_eq!(
            process["executable"],
            shared.host().to_string_lossy().as_ref()
        );
        assert_eq!(process["build_mode"], "shared library", "{process}");
        assert_eq!(process["capture"], true, "{process}");
        let text = run::output(ecapture().args(["list", "--pid", &pid]))?;
        let expected = format!("  yes, in {}\n", shared.library().display());
        assert!(text.contains(&expected), "{text}");
        target.go()?;
        target.finish()?;
    }
    Ok(())
}

/// Nobody can tell whose packets are meant.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn packets_of_a_library_need_a_process() -> Result<()> {
    let shared = Shared::new(GoRelease::NEWEST, Loading::Dlopen)?;
    let mut command = ecapture();
    command.args(["gotls", "-m", "pcap", "-w", "/dev/null", "-e"]);
    refused(command.arg(shared.library()), WRONG_INPUT, "give --pid N")
}

/// Before it has loaded the library, there is nothing in the process.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_process_without_its_library_is_refused() -> Result<()> {
    let shared = Shared::new(GoRelease::NEWEST, Loading::Dlopen)?;
    let mut command = shared.command("");
    let child = Child::spawn(command.env("EXCHANGE_WAIT", "1"))?;
    child.wait_for_line(Stream::Stdout, LONG, |line| line.contains("waiting"))?;
    let mut capture = ecapture();
    capture.args(["gotls", "--pid", &child.pid().to_string()]);
    refused(&mut capture, WRONG_INPUT, "not a Go program")
}
