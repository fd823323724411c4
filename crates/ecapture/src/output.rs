//! Where plaintext and conversations go: standard output, a HAR file, or both.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;

use trace::{Event, JsonSink, Palette, PayloadStyle, Sink, TextSink};

use crate::args::{Format, GotlsArgs};
use crate::failure::Failure;
use crate::har_file::HarFile;

/// Standard output with a buffer of its own: the standard library's would flush every line.
pub(crate) type Stdout = BufWriter<File>;

/// The sinks that were asked for.
#[derive(Debug)]
pub(crate) struct Sinks {
    stdout: Option<StdoutSink>,
    har: Option<HarFile>,
}

impl Sinks {
    /// Opens what `args` name; nothing is written yet.
    pub(crate) fn open(args: &GotlsArgs) -> Result<Self, Failure> {
        let har = args.har.as_deref().map(HarFile::open).transpose()?;
        let taken = args.har.as_deref() == Some(Path::new("-"));
        let stdout = (!taken).then(|| StdoutSink::new(args)).transpose();
        let failed = |error| Failure::Runtime(anyhow::Error::new(error).context("standard output"));
        Ok(Self {
            stdout: stdout.map_err(failed)?,
            har,
        })
    }

    /// Makes room in the files, now that nothing else can go wrong.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        self.har.as_mut().map_or(Ok(()), HarFile::begin)
    }

    /// The capture has ended.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.har.as_mut().map_or(Ok(()), HarFile::finish)
    }

    /// How many exchanges were written to the HAR file, if there is one.
    pub(crate) fn har_entries(&self) -> Option<u64> {
        self.har.as_ref().map(HarFile::entries)
    }
}

impl Sink for Sinks {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        if let Some(har) = &mut self.har {
            har.event(event)?;
        }
        self.stdout
            .as_mut()
            .map_or(Ok(()), |sink| sink.event(event))
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(har) = &mut self.har {
            har.flush()?;
        }
        self.stdout.as_mut().map_or(Ok(()), Sink::flush)
    }
}

/// What people or scripts read.
#[derive(Debug)]
enum StdoutSink {
    Text(TextSink<Stdout>),
    Json(JsonSink<Stdout>),
}

impl StdoutSink {
    fn new(args: &GotlsArgs) -> io::Result<Self> {
        let out = stdout()?;
        Ok(match args.format.unwrap_or(Format::Text) {
            Format::Json => Self::Json(JsonSink::new(out).only(args.line_types())),
            Format::Text => {
                let style = if args.hex {
                    PayloadStyle::Hex
                } else {
                    PayloadStyle::Text
                };
                let zone = jiff::tz::TimeZone::system();
                let sink = TextSink::new(out, style, palette(), zone)
                    .indent_json(args.indent_json)
                    .withhold_plaintext(!args.redact.is_empty());
                Self::Text(sink)
            }
        })
    }
}

impl Sink for StdoutSink {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match self {
            Self::Text(sink) => sink.event(event),
            Self::Json(sink) => sink.event(event),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Text(sink) => sink.flush(),
            Self::Json(sink) => sink.flush(),
        }
    }
}

/// Writes a whole report at once.
pub(crate) fn print(report: &str) -> io::Result<()> {
    let mut out = stdout()?;
    out.write_all(report.as_bytes())?;
    out.flush()
}

fn stdout() -> io::Result<Stdout> {
    let descriptor = io::stdout().as_fd().try_clone_to_owned()?;
    Ok(BufWriter::with_capacity(64 * 1024, File::from(descriptor)))
}

/// Colours only for a terminal that shows them, and never against <https://no-color.org>.
fn palette() -> Palette {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    if io::stdout().is_terminal() && !set("NO_COLOR") && !dumb {
        Palette::COLOURED
    } else {
        Palette::PLAIN
    }
}
