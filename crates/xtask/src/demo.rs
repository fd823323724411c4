//! `cargo xtask demo`: a Go server and client talk HTTPS, and ecapture shows what they say.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, process};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::matrix::{self, GoRelease, Program, Variant};
use crate::process::{Child, Stream};
use crate::setup::{self, Group};
use crate::{cargo, run};

/// How long starting a program may take on a busy machine; building is not in it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Does all the set-up, captures for `seconds`, and shows it. An error if nothing was captured.
pub fn run(seconds: u32) -> Result<()> {
    setup::ensure(Group::Demo)?;
    let ecapture = cargo::build_release("ecapture")?;
    let https = matrix::binary(GoRelease::NEWEST, Variant::Default, Program::Https)?;

    // Ctrl-C reaches ecapture too, as it is in our process group: it writes its summary, and we
    // end the rest.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }

    // Both Go programs end when their standard input does, so they don't outlive us.
    let server = Child::spawn(Command::new(&https).args(["-role", "server"]))?;
    let ready = server.wait_for_prefix(Stream::Stdout, PATIENCE, "{\"addr\"")?;
    let ready: serde_json::Value = serde_json::from_str(&ready)?;
    let address = ready["addr"]
        .as_str()
        .context("the server's ready line has no address")?;
    let client = Child::spawn(
        Command::new(&https)
            .args(["-role", "client", "-addr", address])
            .args(["-requests", "0", "-interval", "1s"]),
    )?;
    client.wait_for_prefix(Stream::Stdout, PATIENCE, "{\"addr\"")?;

    let mut command = run::as_root(&ecapture)?;
    command.arg("gotls").arg("--elfpath").arg(&https);
    command.args(["--duration", &seconds.to_string()]);
    println!(
        "\nAn HTTPS server (pid {}) and its client (pid {}), ordinary Go programs, talk to each\n\
         other on {address}. They were not prepared for this. In another terminal you would type:\n\
         \n  {}\n",
        server.pid(),
        client.pid(),
        run::shown(&command)
    );

    let captured = Capture::start(&mut command)?.finish(
        &interrupted,
        Duration::from_secs(u64::from(seconds)) + PATIENCE,
    )?;
    drop((client, server));
    if interrupted.load(Ordering::Relaxed) {
        process::exit(130);
    }
    if !captured.status.success() {
        bail!("ecapture failed: {}", captured.status);
    }
    for expected in ["POST /greet HTTP/1.1", "Hello, gopher!"] {
        if !captured.text.contains(expected) {
            bail!("ecapture ran, but {expected:?} is not in what it captured");
        }
    }
    println!(
        "\nThat was the plaintext inside TLS: the client's POST with its JSON body, and the server's\n\
         answer. Each message appears twice, once where it was written and once where it was read."
    );
    Ok(())
}

/// ecapture at work: what it prints is passed on, and kept.
struct Capture {
    child: process::Child,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
    attached: Receiver<()>,
}

struct Captured {
    status: ExitStatus,
    text: String,
}

impl Capture {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}: can't be started", run::shown(command)))?;
        let (send, attached) = mpsc::channel();
        let stdout = pass_on(child.stdout.take(), io::stdout(), |_| {});
        let stderr = pass_on(child.stderr.take(), io::stderr(), move |line| {
            if line.starts_with(b"attached") {
                // Nobody waits for it once the time is up.
                let _ = send.send(());
            }
        });
        Ok(Self {
            child,
            stdout,
            stderr,
            attached,
        })
    }

    fn finish(mut self, interrupted: &AtomicBool, limit: Duration) -> Result<Captured> {
        let deadline = Instant::now() + limit;
        let mut told = false;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline || (interrupted.load(Ordering::Relaxed) && !told) {
                told = true;
                // Under sudo this may be refused: then --duration ends it.
                if let Ok(pid) = i32::try_from(self.child.id())
                    && let Some(pid) = rustix::process::Pid::from_raw(pid)
                {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
            }
            if Instant::now() > deadline + PATIENCE {
                bail!("ecapture doesn't end");
            }
            thread::sleep(Duration::from_millis(20));
        };
        let text = self.stdout.join().unwrap_or_default();
        let _ = self.stderr.join();
        if status.success() && self.attached.try_recv().is_err() {
            bail!("ecapture ended without saying that its probes were attached");
        }
        Ok(Captured { status, text })
    }
}

/// Copies lines in a thread, which returns all of them.
fn pass_on(
    from: Option<impl Read + Send + 'static>,
    mut to: impl Write + Send + 'static,
    mut seen: impl FnMut(&[u8]) + Send + 'static,
) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        let Some(from) = from else {
            return String::new();
        };
        let mut from = BufReader::new(from);
        loop {
            let start = text.len();
            match from.read_until(b'\n', &mut text) {
                Ok(0) | Err(_) => return String::from_utf8_lossy(&text).into_owned(),
                Ok(_) => {}
            }
            let line = &text[start..];
            seen(line);
            // A reader that went away is no reason to stop ecapture half-way.
            let _ = to.write_all(line).and_then(|()| to.flush());
        }
    })
}
