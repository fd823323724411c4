//! Standard output: what it is, and the sinks that write there or elsewhere.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

use trace::{Event, JsonSink, Palette, PayloadStyle, Sink, TextSink};

use crate::args::{Format, OutputArgs};

/// Where a sink writes, with a buffer: standard output's own would flush every line.
pub(crate) type Out = BufWriter<Box<dyn Write + Send>>;

/// The sink that was asked for.
pub(crate) enum PlaintextSink {
    Text(TextSink<Out>),
    Json(JsonSink<Out>),
}

impl PlaintextSink {
    pub(crate) fn stdout(args: &OutputArgs) -> io::Result<Self> {
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

impl PlaintextSink {
    /// JSON lines to anywhere.
    pub(crate) fn json_to(args: &OutputArgs, out: impl Write + Send + 'static) -> Self {
        Self::Json(JsonSink::new(buffered(out)).only(args.line_types()))
    }
}

fn buffered(out: impl Write + Send + 'static) -> Out {
    BufWriter::with_capacity(64 * 1024, Box::new(out))
}

impl Sink for PlaintextSink {
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

fn stdout() -> io::Result<Out> {
    let descriptor = io::stdout().as_fd().try_clone_to_owned()?;
    Ok(buffered(File::from(descriptor)))
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
