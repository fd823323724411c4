//! `--har`: a file of HTTP exchanges.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use anyhow::Context;
use trace::{Event, HarSink, Sink, escape_name};

use crate::consume::Destination;
use crate::failure::Failure;
use crate::secret_file::{create_secrets, empty, open};

/// A HAR file, which is complete however the capture ends, unless the program is killed.
#[derive(Debug)]
pub(crate) struct HarFile {
    sink: HarSink<BufWriter<File>>,
    file: File,
    path: PathBuf,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// What was in the file is still there.
    Opened,
    Begun,
    /// Nothing more may be written.
    Over,
}

impl HarFile {
    /// Opens the file, or standard output for `-`.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let (destination, file) = open(path, Destination::Har, create_secrets)?;
        let writer = file.try_clone().with_context(|| destination.to_string());
        Ok(Self {
            sink: HarSink::new(BufWriter::new(writer.map_err(Failure::Runtime)?)),
            file,
            path: path.to_owned(),
            state: State::Opened,
        })
    }

    /// Drops what was in the file.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        empty(&self.file)?;
        self.state = State::Begun;
        Ok(())
    }

    /// Completes the file.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.write(HarSink::finish)?;
        self.state = State::Over;
        Ok(())
    }

    /// How many exchanges were written.
    pub(crate) fn entries(&self) -> u64 {
        self.sink.entries()
    }

    /// Writes, unless that is over. If it fails, the error names the file.
    fn write(
        &mut self,
        write: impl FnOnce(&mut HarSink<BufWriter<File>>) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.state != State::Begun {
            return Ok(());
        }
        write(&mut self.sink).map_err(|error| {
            self.state = State::Over;
            if self.path == Path::new("-") {
                return error;
            }
            let path = escape_name(self.path.as_os_str().as_encoded_bytes());
            io::Error::new(error.kind(), format!("HAR file {path}: {error}"))
        })
    }
}

impl Sink for HarFile {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        self.write(|sink| sink.event(event))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write(Sink::flush)
    }
}

impl Drop for HarFile {
    /// Another output may have failed first, and then nobody is left to be told of a failure here.
    fn drop(&mut self) {
        let _ = self.finish();
    }
}
