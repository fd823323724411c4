//! Standard output: what it is, and the sink that writes to it.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

use trace::{Event, JsonSink, Palette, PayloadStyle, Sink, TextSink};

use crate::args::{Format, OutputArgs};

/// Standard output with a buffer of its own: the standard library's would flush every line.
pub(crate) type Stdout = BufWriter<File>;

/// The sink that was asked for.
#[derive(Debug)]
pub(crate) enum StdoutSink {
    Text(TextSink<Stdout>),
    Json(JsonSink<Stdout>),
}

impl StdoutSink {
    pub(crate) fn new(args: &OutputArgs) -> io::Result<Self> {
        let out = stdout()?;
        Ok(match args.format.unwrap_or(Format::Text) {
            Format::Json => Self::Json(JsonSink::new(out)),
            Format::Text => {
                let style = if args.hex {
                    PayloadStyle::Hex
                } else {
                    PayloadStyle::Text
                };
                let zone = jiff::tz::TimeZone::system();
                Self::Text(TextSink::new(out, style, palette(), zone))
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
