//! Commands that run to their end: their failure as an error that tells what they said.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, thread};

use anyhow::{Context, Result, bail};

/// Runs the command silently; its standard output. An error holds the command and the end of
/// what it wrote.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{}: can't be started", shown(command)))?;
    let stdout = String::from_utf8_lossy(&out.stdout);
    if out.status.success() {
        return Ok(stdout.into_owned());
    }
    let said = format!("{stdout}{}", String::from_utf8_lossy(&out.stderr));
    bail!(
        "{}: {}\n{}",
        shown(command),
        out.status,
        last_lines(&said, 40)
    );
}

/// Runs the command with our own output and no input; an error if it fails.
pub fn visibly(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{}: can't be started", shown(command)))?;
    if !status.success() {
        bail!("{}: {status}", shown(command));
    }
    Ok(())
}

/// Whether a program of this name can be run: somewhere in `$PATH`, or where administrators'
/// tools are, which an ordinary user's `$PATH` may lack.
#[must_use]
pub fn exists(program: &str) -> bool {
    find(program).is_some()
}

/// The full path of a program, as [`exists`] looks for it.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
}

/// A command that may be where [`find`] looks for it.
pub fn command(program: &str) -> Result<Command> {
    find(program)
        .map(Command::new)
        .with_context(|| format!("{program} is not installed"))
}

fn is_executable(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether we are root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that runs as root: directly if we are, else through sudo.
///
/// `sudo` must be able to ask for a password, so this is the one command with our own input.
pub fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if !exists("sudo") {
        bail!(
            "{} has to run as root: become root, or install sudo",
            Path::new(program.as_ref()).display()
        );
    }
    let mut command = Command::new("sudo");
    command.arg("--").arg(program);
    Ok(command)
}

/// Calls `job` for each item on as many threads as there are processors; the first error ends it.
pub fn in_parallel<T: Send>(items: Vec<T>, job: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let queue = std::sync::Mutex::new(items.into_iter());
    let next = || queue.lock().ok()?.next();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    while let Some(item) = next() {
                        if let Err(error) = job(item) {
                            if let Ok(mut rest) = queue.lock() {
                                rest.by_ref().for_each(drop);
                            }
                            return Err(error);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        for worker in workers {
            match worker.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
}

/// The command as one would type it, without its environment.
pub(crate) fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        line.push(' ');
        if arg.is_empty() || arg.contains(|c: char| c.is_whitespace() || c == '\'') {
            line.push_str(&format!("{arg:?}"));
        } else {
            line.push_str(&arg);
        }
    }
    line
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_failed_command_tells_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("exit status: 3\none\ntwo"), "{text}");
    }

    #[test]
    fn every_item_is_worked_on_once() {
        let sum = AtomicUsize::new(0);
        in_parallel((1..=100).collect(), |n| {
            sum.fetch_add(n, Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
        assert_eq!(sum.into_inner(), 5050);
    }

    #[test]
    fn the_first_error_is_told() {
        let result = in_parallel(
            vec![1, 2, 3],
            |n| if n == 2 { bail!("two") } else { Ok(()) },
        );
        assert_eq!(result.unwrap_err().to_string(), "two");
    }
}
