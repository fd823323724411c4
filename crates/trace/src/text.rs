//! Text for people: a header line for each event, then its payload. What HTTP exchanges look like is in
//! `exchange_text.rs`.

use std::fmt;
use std::io::{self, Write};

use events::Direction;
use jiff::tz::TimeZone;
use protocol::{Notice, Side};

use crate::body_text::BodyText;
use crate::escape::{escape_name, escape_payload};
use crate::event::{Data, Event, Http, Loss, Lost, Place, Sink, opposite};
use crate::exchange_text::ExchangeText;
use crate::hexdump::write_hexdump;
use crate::time::{TimeFormat, Timestamp};

/// How payloads are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PayloadStyle {
    /// Printable UTF-8 as it is, everything else escaped.
    #[default]
    Text,
    /// As a hex dump.
    Hex,
}

/// The colours of header lines: ANSI escape sequences, or nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Palette {
    pub(crate) write: &'static str,
    pub(crate) read: &'static str,
    pub(crate) lost: &'static str,
    pub(crate) reset: &'static str,
}

impl Palette {
    /// For files and pipes.
    pub const PLAIN: Self = Self {
        write: "",
        read: "",
        lost: "",
        reset: "",
    };
    /// For terminals.
    pub const COLOURED: Self = Self {
        write: "\x1b[1;36m",
        read: "\x1b[1;32m",
        lost: "\x1b[1;31m",
        reset: "\x1b[0m",
    };
}

/// Writes events as text.
#[derive(Debug)]
pub struct TextSink<W> {
    out: W,
    style: PayloadStyle,
    palette: Palette,
    indent_json: bool,
    time: TimeFormat,
    /// The payload in hand, escaped.
    escaped: Vec<u8>,
}

impl<W: Write> TextSink<W> {
    /// A sink that writes to `out`, which ought to be buffered, with times in `zone`.
    pub fn new(out: W, style: PayloadStyle, palette: Palette, zone: TimeZone) -> Self {
        Self {
            out,
            style,
            palette,
            indent_json: false,
            time: TimeFormat::time_of_day(zone),
            escaped: Vec::new(),
        }
    }

    /// Whether JSON in bodies is indented.
    pub fn indent_json(mut self, indent: bool) -> Self {
        self.indent_json = indent;
        self
    }

    fn http(&mut self, http: &Http<'_>) -> io::Result<()> {
        let direction = match http.notice {
            Notice::Message(_, message) if message.side == Side::Server => {
                http.requests.map(opposite)
            }
            _ => http.requests,
        };
        let colour = match (http.notice, direction) {
            (Notice::Trouble(..), _) => self.palette.lost,
            (_, Some(Direction::Write)) => self.palette.write,
            (_, Some(Direction::Read)) | (_, None) => self.palette.read,
        };
        let (second, nanoseconds) = self.time.second(http.time);
        let fraction = nanoseconds / 1000;
        let (comm, pid) = (escape_name(http.comm), http.pid);
        write!(
            self.out,
            "{colour}{second}.{fraction:06} {comm}[{pid}] #{}",
            http.connection
        )?;
        if let Notice::Trouble(..) = http.notice {
            self.out.write_all(b" ")?;
        }
        let text = ExchangeText {
            body: BodyText {
                style: self.style,
                indent: self.indent_json,
            },
            palette: self.palette,
        };
        self.escaped.clear();
        text.notice(&mut self.escaped, http.requests, http.notice);
        self.out.write_all(&self.escaped)
    }

    fn data(&mut self, data: &Data<'_>) -> io::Result<()> {
        let colour = match data.direction {
            Direction::Write => self.palette.write,
            Direction::Read => self.palette.read,
        };
        let place = Place {
            pid: data.pid,
            comm: data.comm,
            connection: data.connection,
            direction: data.direction,
            stream_offset: data.stream_offset,
        };
        let length = data.payload.len() as u64;
        self.header(data.time, colour, Some(&place))?;
        write!(self.out, "{}", Bytes(length))?;
        if length < data.call_length {
            let last = data.call_offset + length;
            write!(
                self.out,
                ", {}-{last} of {}",
                data.call_offset, data.call_length
            )?;
        }
        if data.truncated > 0 {
            write!(self.out, ", the rest not captured (--tsize)")?;
        }
        writeln!(self.out, "{}", self.palette.reset)?;

        match self.style {
            PayloadStyle::Hex => write_hexdump(&mut self.out, data.payload, data.call_offset),
            PayloadStyle::Text => {
                self.escaped.clear();
                escape_payload(&mut self.escaped, data.payload);
                if !self.escaped.ends_with(b"\n") {
                    self.escaped.push(b'\n');
                }
                self.out.write_all(&self.escaped)
            }
        }
    }

    fn lost(&mut self, lost: &Lost<'_>) -> io::Result<()> {
        self.header(lost.time, self.palette.lost, lost.place.as_ref())?;
        write!(self.out, "{} lost", Bytes(lost.bytes))?;
        match lost.reason {
            Loss::BufferFull => {
                let plural = if lost.records == 1 { "" } else { "s" };
                write!(
                    self.out,
                    " in {} record{plural}: the buffer was full (--mapsize makes it larger)",
                    lost.records
                )?;
            }
            Loss::Unreadable => write!(self.out, ": the program's memory could not be read")?,
            Loss::CallTooLong => write!(self.out, ": the call was too long to be copied")?,
        }
        writeln!(self.out, "{}", self.palette.reset)
    }

    /// `20:25:03.123456 caddy[4242] #1 → write ` in colour.
    fn header(
        &mut self,
        time: Timestamp,
        colour: &str,
        place: Option<&Place<'_>>,
    ) -> io::Result<()> {
        let (second, nanoseconds) = self.time.second(time);
        write!(self.out, "{colour}{second}.{:06} ", nanoseconds / 1000)?;
        let Some(place) = place else { return Ok(()) };
        let comm = escape_name(place.comm);
        let arrow = match place.direction {
            Direction::Write => "→",
            Direction::Read => "←",
        };
        write!(
            self.out,
            "{comm}[{}] #{} {arrow} {} ",
            place.pid, place.connection, place.direction
        )
    }
}

impl<W: Write> Sink for TextSink<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Data(data) => self.data(data),
            Event::Lost(lost) => self.lost(lost),
            Event::Http(http) => self.http(http),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} byte{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}
