//! How the program fails: one line on stderr and an exit code.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use trace::escape_name;

use crate::log;
use crate::pipeline::Destination;

/// Why the program ends before its work is done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was asked for can't be done: a file that isn't a Go program, a process that isn't there.
    WrongInput(anyhow::Error),
    /// Something went wrong on the way.
    Runtime(anyhow::Error),
}

impl Failure {
    /// A file that can't be captured from, with the reason.
    pub(crate) fn executable(path: &Path, error: gobin::Error) -> Self {
        Self::WrongInput(anyhow::Error::new(error).context(path.display().to_string()))
    }

    /// Writing the output failed. A reader that went away is no failure: it has seen enough.
    pub(crate) fn output(error: io::Error, destination: &Destination) -> Result<(), Self> {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Ok(());
        }
        let context = format!("writing to {destination}");
        Err(Self::Runtime(anyhow::Error::new(error).context(context)))
    }

    /// Tells the user, and the shell: 2 for a wrong input, 1 for everything else.
    pub(crate) fn report(&self) -> ExitCode {
        let (error, code) = match self {
            Self::WrongInput(error) => (error, 2),
            Self::Runtime(error) => (error, 1),
        };
        // Paths and names come from elsewhere, and this goes to a terminal.
        log::failure(&format!(
            "ecapture: {}",
            escape_name(format!("{error:#}").as_bytes())
        ));
        ExitCode::from(code)
    }
}

impl From<capture::Error> for Failure {
    fn from(error: capture::Error) -> Self {
        if error.is_wrong_input() {
            Self::WrongInput(error.into())
        } else {
            Self::Runtime(error.into())
        }
    }
}
