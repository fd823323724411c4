//! Child processes that a test drives: wait for what they print, talk to them, and be sure that
//! they are gone at the end.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fmt, io};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::run;

/// A time limit of a test on this machine: `limit`, or as many times that as the variable
/// `ECAPTURE_TEST_PATIENCE` says, which is for machines that are slow because they are emulated.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    let factor = env::var("ECAPTURE_TEST_PATIENCE")
        .ok()
        .and_then(|factor| factor.parse().ok())
        .unwrap_or(1);
    limit.saturating_mul(factor)
}

/// One of a child's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A running program with all three streams piped. Dropping it kills it and waits for its end.
pub struct Child {
    name: String,
    process: std::process::Child,
    stdin: Option<ChildStdin>,
    stdout: Collector,
    stderr: Collector,
}

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

impl Child {
    /// Starts the command. Both outputs are read by threads from the start, so it never blocks
    /// on a full pipe.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        Self::spawn_to(command, Stdio::piped())
    }

    /// The same with standard output going elsewhere, as to a file: then it is not collected.
    pub fn spawn_to(command: &mut Command, stdout: Stdio) -> Result<Self> {
        let name = run::shown(command);
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name}: can't be started"))?;
        let stdout = Collector::start(process.stdout.take());
        let stderr = Collector::start(process.stderr.take());
        Ok(Self {
            name,
            stdin: process.stdin.take(),
            process,
            stdout,
            stderr,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits for a line (without its newline) that `matches` accepts, among those already printed
    /// too. An error if the stream ends or the time is up first; see [`patient`].
    pub fn wait_for_line(
        &self,
        stream: Stream,
        timeout: Duration,
        mut matches: impl FnMut(&str) -> bool,
    ) -> Result<String> {
        let collector = self.collector(stream);
        let timeout = patient(timeout);
        let deadline = Instant::now() + timeout;
        let mut checked = 0;
        let mut output = collector.lock();
        loop {
            while let Some(length) = output.bytes[checked..].iter().position(|&b| b == b'\n') {
                let line = String::from_utf8_lossy(&output.bytes[checked..checked + length]);
                if matches(&line) {
                    return Ok(line.into_owned());
                }
                checked += length + 1;
            }
            if output.ended {
                drop(output);
                bail!("{}: ended without the expected line\n{self:?}", self.name);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(output);
                bail!("{}: no expected line in {timeout:?}\n{self:?}", self.name);
            }
            output = match collector.shared.1.wait_timeout(output, left) {
                Ok((output, _)) => output,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Waits for a line that begins with `prefix`.
    pub fn wait_for_prefix(
        &self,
        stream: Stream,
        timeout: Duration,
        prefix: &str,
    ) -> Result<String> {
        self.wait_for_line(stream, timeout, |line| line.starts_with(prefix))
    }

    /// What a stream has brought up to now.
    #[must_use]
    pub fn so_far(&self, stream: Stream) -> Vec<u8> {
        self.collector(stream).lock().bytes.clone()
    }

    /// Writes a line to its standard input.
    pub fn send_line(&mut self, line: &str) -> Result<()> {
        let Some(stdin) = &mut self.stdin else {
            bail!("{}: its standard input is closed already", self.name);
        };
        writeln!(stdin, "{line}")
            .and_then(|()| stdin.flush())
            .with_context(|| format!("{}: doesn't read its input", self.name))
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal. No error if it has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Not reaped yet, so the id can't be another process's.
        if self.process.try_wait()?.is_none()
            && let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw)
        {
            rustix::process::kill_process(pid, signal)
                .with_context(|| format!("{}: can't be signalled", self.name))?;
        }
        Ok(())
    }

    /// Its exit status if it has ended.
    pub fn try_status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.process.try_wait()?)
    }

    /// Closes its standard input and waits for its end. An error, and the program killed, if
    /// the time is up first ([`patient`]); the exit status is the caller's to judge.
    pub fn finish(mut self, timeout: Duration) -> Result<Finished> {
        self.close_stdin();
        let timeout = patient(timeout);
        let deadline = Instant::now() + timeout;
        // The end of both outputs is what can be waited for; normally it is the program's end.
        for collector in [&self.stdout, &self.stderr] {
            if !collector.wait_for_end(deadline) {
                bail!("{}: still running after {timeout:?}\n{self:?}", self.name);
            }
        }
        while self.process.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                bail!("{}: still running after {timeout:?}\n{self:?}", self.name);
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(Finished {
            status: self.process.wait()?,
            stdout: std::mem::take(&mut self.stdout.lock().bytes),
            stderr: std::mem::take(&mut self.stderr.lock().bytes),
        })
    }

    fn collector(&self, stream: Stream) -> &Collector {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.stdout.join();
        self.stderr.join();
    }
}

/// The command and what it has printed, for a test's failure message.
impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (pid {})", self.name, self.pid())?;
        for (name, stream) in [("stdout", Stream::Stdout), ("stderr", Stream::Stderr)] {
            let bytes = self.so_far(stream);
            let tail = &bytes[bytes.len().saturating_sub(4096)..];
            writeln!(f, "--- {name}, {} bytes", bytes.len())?;
            writeln!(f, "{}", String::from_utf8_lossy(tail))?;
        }
        Ok(())
    }
}

impl Finished {
    /// The output if the program succeeded, else an error with what it said.
    pub fn success(self) -> Result<Self> {
        if !self.status.success() {
            bail!("{}\n{}", self.status, self.stderr_text());
        }
        Ok(self)
    }

    /// Standard output as text.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Reads a pipe to its end in a thread.
struct Collector {
    shared: Arc<(Mutex<Output>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

struct Output {
    bytes: Vec<u8>,
    ended: bool,
}

impl Collector {
    fn start(pipe: Option<impl io::Read + Send + 'static>) -> Self {
        // Without a pipe there is nothing to wait for.
        let output = Output {
            bytes: Vec::new(),
            ended: pipe.is_none(),
        };
        let shared = Arc::new((Mutex::new(output), Condvar::new()));
        let thread = pipe.map(|pipe| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let mut pipe = BufReader::with_capacity(1 << 16, pipe);
                loop {
                    let read = match pipe.fill_buf() {
                        Ok(bytes) => {
                            lock(&shared.0).bytes.extend_from_slice(bytes);
                            bytes.len()
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(_) => 0,
                    };
                    pipe.consume(read);
                    if read == 0 {
                        lock(&shared.0).ended = true;
                    }
                    shared.1.notify_all();
                    if read == 0 {
                        return;
                    }
                }
            })
        });
        Self { shared, thread }
    }

    fn lock(&self) -> MutexGuard<'_, Output> {
        lock(&self.shared.0)
    }

    /// Whether the stream ended before the deadline.
    fn wait_for_end(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        match self
            .shared
            .1
            .wait_timeout_while(self.lock(), left, |output| !output.ended)
        {
            Ok((output, _)) => output.ended,
            Err(poisoned) => poisoned.into_inner().0.ended,
        }
    }

    /// Ends the thread if it is at the pipe's end. A grandchild may keep the pipe open: nobody
    /// waits for that.
    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            let _ = thread.join();
        }
    }
}

fn lock(output: &Mutex<Output>) -> MutexGuard<'_, Output> {
    output
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Child {
        Child::spawn(Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn a_line_is_waited_for_and_answered() {
        let mut child = shell("echo ready >&2; read line; echo got $line; read line");
        child
            .wait_for_prefix(Stream::Stderr, LONG, "ready")
            .unwrap();
        child.send_line("hello").unwrap();
        assert_eq!(
            child.wait_for_prefix(Stream::Stdout, LONG, "got").unwrap(),
            "got hello"
        );
        let finished = child.finish(LONG).unwrap();
        assert_eq!(finished.stdout, b"got hello\n");
    }

    #[test]
    fn a_program_that_ends_early_is_an_error_with_its_output() {
        let child = shell("echo sorry >&2; exit 1");
        let error = child
            .wait_for_prefix(Stream::Stdout, LONG, "ready")
            .unwrap_err()
            .to_string();
        assert!(error.contains("ended without the expected line"), "{error}");
        assert!(!child.finish(LONG).unwrap().status.success());
    }

    #[test]
    fn a_silent_program_runs_into_the_time_limit() {
        let child = shell("read line");
        let limit = Duration::from_millis(10);
        let error = child
            .wait_for_prefix(Stream::Stdout, limit, "ready")
            .unwrap_err();
        assert!(
            error.to_string().contains("no expected line in 10ms"),
            "{error}"
        );
    }

    #[test]
    fn dropping_kills() {
        let child = shell("exec sleep 1000");
        let proc = format!("/proc/{}", child.pid());
        drop(child);
        assert!(!std::path::Path::new(&proc).exists());
    }

    #[test]
    fn a_signal_reaches_it() {
        let mut child =
            shell("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done");
        child
            .wait_for_prefix(Stream::Stdout, LONG, "ready")
            .unwrap();
        child.signal(Signal::TERM).unwrap();
        let finished = child.finish(LONG).unwrap();
        assert_eq!(
            (finished.status.code(), finished.stdout_text()),
            (Some(7), "ready\nbye\n".into())
        );
    }
}
