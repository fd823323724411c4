//! The tool's own log: what it says of itself, on stderr or in the file that `-l` names.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, anyhow};

use crate::failure::Failure;
use crate::secret_file::append_secrets;

/// The terminal's stderr, while the log goes to a file.
static TERMINAL: OnceLock<File> = OnceLock::new();

/// Sends everything that would go to stderr to this file, libbpf's words and a panic's among them.
pub(crate) fn open(path: &Path) -> Result<(), Failure> {
    if let Some((scheme, _)) = path.to_str().and_then(|path| path.split_once("://")) {
        return Err(Failure::WrongInput(anyhow!(
            "--logaddr {}: the log goes to a file, not to {scheme}://; events go there with --eventaddr",
            path.display()
        )));
    }
    let redirect = || {
        let file = append_secrets(path)?;
        let terminal = io::stderr().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stderr(&file)?;
        Ok::<_, io::Error>(terminal)
    };
    let terminal = redirect()
        .with_context(|| format!("log {}", path.display()))
        .map_err(Failure::WrongInput)?;
    // Only one is ever opened.
    let _ = TERMINAL.set(terminal.into());
    Ok(())
}

/// Says something, in a file with the time.
pub(crate) fn line(text: &str) {
    // As with eprintln!, but a log that can't be written is no reason to panic.
    let _ = if TERMINAL.get().is_some() {
        writeln!(io::stderr(), "{} {text}", jiff::Timestamp::now())
    } else {
        writeln!(io::stderr(), "{text}")
    };
}

/// Says why the program ends: to whoever started it, too.
pub(crate) fn failure(text: &str) {
    line(text);
    if let Some(mut terminal) = TERMINAL.get() {
        let _ = writeln!(terminal, "{text}");
    }
}
