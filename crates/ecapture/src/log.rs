//! The tool's own log: what it says of itself, on stderr or in the file that `-l` names.
//!
//! One thread writes it. Whoever says something waits until that is written, so that it is in order with what
//! libbpf and panics write, and there when the program ends; but not for long: a reader that has stopped reading
//! must neither hold up the capture nor its end.

mod queue;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use trace::escape_name;

use crate::failure::Failure;
use crate::secret_file::Place;
use queue::{Line, Queue, To};

/// Text that waits at most.
const QUEUE_BYTES: usize = 256 * 1024;

/// How long somebody who says something waits until it is written.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long the end of the program waits for what has not been written.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

static QUEUE: Queue = Queue::new(QUEUE_BYTES);

/// Whether there is a thread that writes. It is started when there is something to write.
static WRITER: OnceLock<bool> = OnceLock::new();

/// Where the log goes if that is not stderr.
static LOG_FILE: OnceLock<LogFile> = OnceLock::new();

/// A file in place of stderr.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    /// What stderr was.
    terminal: File,
    /// It can't be written, and stderr is the terminal again.
    is_given_up: AtomicBool,
}

/// Sends everything that would go to stderr to this file, libbpf's words and a panic's among them.
pub(crate) fn open(path: &Path) -> Result<(), Failure> {
    if let Some((scheme, _)) = path.to_str().and_then(|path| path.split_once("://")) {
        return Err(Failure::WrongInput(anyhow!(
            "--logaddr {}: the log goes to a file, not to {scheme}://; events go there with --eventaddr",
            path.display()
        )));
    }
    let redirect = || {
        let file = Place::of(path)?.append()?;
        let terminal = io::stderr().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stderr(&file)?;
        Ok::<_, io::Error>(terminal)
    };
    let terminal = redirect()
        .with_context(|| format!("log {}", path.display()))
        .map_err(Failure::WrongInput)?;
    // Only one is ever opened.
    let _ = LOG_FILE.set(LogFile {
        path: path.into(),
        terminal: terminal.into(),
        is_given_up: AtomicBool::new(false),
    });
    Ok(())
}

/// Says something, in a file with the time.
pub(crate) fn line(text: &str) {
    say(text, To::Log);
}

/// Says why the program ends: to whoever started it, too.
pub(crate) fn failure(text: &str) {
    say(text, To::Log);
    say(text, To::Terminal);
}

/// Sees to it that what was said has been written when the program ends, if anybody reads it.
pub(crate) fn finish() {
    QUEUE.finish(LAST_PATIENCE);
}

fn say(text: &str, to: To) {
    let line = Line {
        time: jiff::Timestamp::now(),
        text: text.into(),
        to,
    };
    let start = || thread::Builder::new().name("log".into()).spawn(run).is_ok();
    if *WRITER.get_or_init(start) {
        QUEUE.say(line, PATIENCE);
    } else {
        write(&line);
    }
}

fn run() {
    // What writes a few lines needs no privilege for it. If they can't be given up, the main thread says so.
    let _ = capture::give_up_privileges();
    loop {
        let line = QUEUE.next();
        write(&line);
        QUEUE.written(&line);
    }
}

/// Writes a line where it belongs. If that is not possible, there is nobody left to tell.
fn write(line: &Line) {
    let Line { time, text, to } = line;
    let file = LOG_FILE.get();
    match file.filter(|file| !file.is_given_up.load(Ordering::Relaxed)) {
        Some(file) if *to == To::Terminal => {
            let _ = put(&file.terminal, text);
        }
        Some(file) => {
            if let Err(errno) = put(io::stderr(), &format!("{time} {text}")) {
                file.give_up(errno);
                let _ = put(&file.terminal, text);
            }
        }
        None if *to == To::Terminal => {} // It has been said there.
        None => {
            let _ = put(io::stderr(), text);
        }
    }
}

impl LogFile {
    /// Goes on where whoever started the program sees it.
    fn give_up(&self, errno: Errno) {
        self.is_given_up.store(true, Ordering::Relaxed);
        let _ = rustix::stdio::dup2_stderr(&self.terminal);
        let path = self.path.display();
        let reason = io::Error::from(errno);
        let note = format!("note: log {path} can't be written, it goes on here: {reason}");
        let _ = put(&self.terminal, &escape_name(note.as_bytes()));
    }
}

/// Writes a line, in one piece if that is possible. Not by way of [`io::Stderr`], which would make a panic wait
/// for it.
fn put(out: impl AsFd, line: &str) -> Result<(), Errno> {
    let line = format!("{line}\n");
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(&out, rest) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            // Somebody who has the same terminal or pipe may have made it so.
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&out, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            },
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
