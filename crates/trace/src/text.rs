//! Text for people: a header line for each event, then its payload. What HTTP exchanges look like is in
//! `exchange_text.rs`.

use std::fmt;
use std::io::{self, Write};

use events::{Address, Agreed, CloseCause, Container, Direction, Role};
use jiff::tz::TimeZone;
use protocol::{Notice, Side};

use crate::address::address_text;
use crate::body_text::BodyText;
use crate::escape::{escape_name, escape_payload};
use crate::event::{Closed, Data, Event, Http, Loss, Lost, Opened, Place, Sink, opposite};
use crate::exchange_text::ExchangeText;
use crate::hexdump::write_hexdump;
use crate::time::{TimeFormat, Timestamp};
use crate::tls_names::{CipherSuite, TlsVersion};

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
    connection: &'static str,
    pub(crate) reset: &'static str,
}

impl Palette {
    /// For files and pipes.
    pub const PLAIN: Self = Self {
        write: "",
        read: "",
        lost: "",
        connection: "",
        reset: "",
    };
    /// For terminals.
    pub const COLOURED: Self = Self {
        write: "\x1b[1;36m",
        read: "\x1b[1;32m",
        lost: "\x1b[1;31m",
        connection: "\x1b[1;33m",
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
    withhold: bool,
    time: TimeFormat,
    /// What is not written yet: text is made here, in its place, and copied nowhere else.
    text: Vec<u8>,
}

/// How much text waits before it is written.
const PENDING: usize = 64 << 10;

impl<W: Write> TextSink<W> {
    /// A sink that writes to `out`, in large parts, with times in `zone`.
    pub fn new(out: W, style: PayloadStyle, palette: Palette, zone: TimeZone) -> Self {
        Self {
            out,
            style,
            palette,
            indent_json: false,
            withhold: false,
            time: TimeFormat::time_of_day(zone),
            text: Vec::with_capacity(2 * PENDING),
        }
    }

    /// Whether JSON in bodies is indented.
    pub fn indent_json(mut self, indent: bool) -> Self {
        self.indent_json = indent;
        self
    }

    /// Whether plaintext that is not HTTP is only counted, because nobody knows what secrets are in it.
    pub fn withhold_plaintext(mut self, withhold: bool) -> Self {
        self.withhold = withhold;
        self
    }

    fn hand_on(&mut self) -> io::Result<()> {
        let result = self.out.write_all(&self.text);
        self.text.clear();
        // One large event must not hold memory for good.
        self.text.shrink_to(2 * PENDING);
        result
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
            self.text,
            "{colour}{second}.{fraction:06} {comm}[{pid}] #{}",
            http.connection
        )?;
        if let Notice::Trouble(..) = http.notice {
            self.text.write_all(b" ")?;
        }
        let text = ExchangeText {
            body: BodyText {
                style: self.style,
                indent: self.indent_json,
            },
            palette: self.palette,
        };
        text.notice(&mut self.text, http.requests, http.notice);
        Ok(())
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
        write!(self.text, "{}", Bytes(length))?;
        if length < data.call_length {
            let last = data.call_offset.saturating_add(length);
            write!(
                self.text,
                ", {}-{last} of {}",
                data.call_offset, data.call_length
            )?;
        }
        if data.truncated > 0 {
            write!(self.text, ", the rest not captured (--tsize)")?;
        }
        if self.withhold {
            return writeln!(self.text, ", not shown{}", self.palette.reset);
        }
        writeln!(self.text, "{}", self.palette.reset)?;

        match self.style {
            PayloadStyle::Hex => write_hexdump(&mut self.text, data.payload, data.call_offset),
            PayloadStyle::Text => {
                let start = self.text.len();
                escape_payload(&mut self.text, data.payload);
                if !self.text[start..].ends_with(b"\n") {
                    self.text.push(b'\n');
                }
                Ok(())
            }
        }
    }

    fn lost(&mut self, lost: &Lost<'_>) -> io::Result<()> {
        self.header(lost.time, self.palette.lost, lost.place.as_ref())?;
        write!(self.text, "{} lost", Bytes(lost.bytes))?;
        match lost.reason {
            Loss::BufferFull => {
                let plural = if lost.records == 1 { "" } else { "s" };
                write!(
                    self.text,
                    " in {} record{plural}: the buffer was full (--mapsize makes it larger)",
                    lost.records
                )?;
            }
            Loss::Unreadable => write!(self.text, ": the program's memory could not be read")?,
            Loss::CallTooLong => write!(self.text, ": the call was too long to be copied")?,
        }
        writeln!(self.text, "{}", self.palette.reset)
    }

    /// `20:25:03.123456 caddy[4242] #1 → write ` in colour.
    fn header(
        &mut self,
        time: Timestamp,
        colour: &str,
        place: Option<&Place<'_>>,
    ) -> io::Result<()> {
        self.time(time, colour)?;
        let Some(place) = place else { return Ok(()) };
        self.connection(place.comm, place.pid, place.connection)?;
        let arrow = match place.direction {
            Direction::Write => "→",
            Direction::Read => "←",
        };
        write!(self.text, "{arrow} {} ", place.direction)
    }

    fn time(&mut self, time: Timestamp, colour: &str) -> io::Result<()> {
        let (second, nanoseconds) = self.time.second(time);
        write!(self.text, "{colour}{second}.{:06} ", nanoseconds / 1000)
    }

    fn connection(&mut self, comm: &[u8], pid: u32, number: u64) -> io::Result<()> {
        write!(self.text, "{}[{pid}] #{number} ", escape_name(comm))
    }

    fn opened(&mut self, opened: &Opened<'_>) -> io::Result<()> {
        self.time(opened.time, self.palette.connection)?;
        self.connection(opened.comm, opened.pid, opened.connection)?;
        let begun = if opened.from_start {
            "opened"
        } else {
            "seen in the middle"
        };
        write!(self.text, "{begun}: ")?;
        self.ends(opened)?;
        if let Some(agreed) = &opened.agreed {
            self.agreed(agreed)?;
        }
        if let Some(container) = &opened.container {
            self.container(container)?;
        }
        writeln!(self.text, "{}", self.palette.reset)
    }

    /// `server 10.0.0.1:443 ← 10.0.0.9:51234`: the arrow goes from the client to the server.
    fn ends(&mut self, opened: &Opened<'_>) -> io::Result<()> {
        let role = opened.agreed.map(|agreed| agreed.role);
        if let Some(role) = role {
            write!(self.text, "{role} ")?;
        }
        if opened.local.is_none() && opened.remote.is_none() {
            return write!(self.text, "addresses unknown");
        }
        let shown = |address: &Option<Address<'_>>| match address {
            Some(address) => escape_name(&address_text(address)).into_owned(),
            None => "?".to_owned(),
        };
        let arrow = match role {
            Some(Role::Client) => "→",
            Some(Role::Server) => "←",
            None => "–",
        };
        let (local, remote) = (shown(&opened.local), shown(&opened.remote));
        write!(self.text, "{local} {arrow} {remote}")
    }

    /// `, container 3f4e5a6b7c8d` or `, pod shop/web-0`
    fn container(&mut self, container: &Container<'_>) -> io::Result<()> {
        let Container {
            id, pod, namespace, ..
        } = *container;
        if pod.is_empty() {
            return write!(self.text, ", container {}", escape_name(shortened(id)));
        }
        write!(self.text, ", pod ")?;
        if !namespace.is_empty() {
            write!(self.text, "{}/", escape_name(namespace))?;
        }
        write!(self.text, "{}", escape_name(pod))
    }

    fn agreed(&mut self, agreed: &Agreed<'_>) -> io::Result<()> {
        let (version, suite) = (agreed.version, agreed.cipher_suite);
        write!(
            self.text,
            ", TLS {}, {}",
            TlsVersion(version),
            CipherSuite(suite)
        )?;
        if let Some(protocol) = agreed.protocol {
            write!(self.text, ", ALPN {}", escape_name(protocol))?;
        }
        if let Some(name) = agreed.server_name {
            write!(self.text, ", SNI {}", escape_name(name))?;
        }
        if agreed.resumed {
            write!(self.text, ", resumed")?;
        }
        Ok(())
    }

    fn closed(&mut self, closed: &Closed<'_>) -> io::Result<()> {
        self.time(closed.time, self.palette.connection)?;
        self.connection(closed.comm, closed.pid, closed.connection)?;
        match closed.cause {
            CloseCause::Called => {
                let seconds = closed.duration.as_secs_f64();
                write!(self.text, "closed after {seconds:.3} s: ")?;
            }
            CloseCause::Dropped => write!(self.text, "dropped without Close: ")?,
        }
        let [written, read] = closed.bytes.map(Bytes);
        let reset = self.palette.reset;
        writeln!(self.text, "{written} written, {read} read{reset}")
    }
}

impl<W: Write> Sink for TextSink<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Opened(opened) => self.opened(opened),
            Event::Data(data) => self.data(data),
            Event::Lost(lost) => self.lost(lost),
            Event::Http(http) => self.http(http),
            Event::Closed(closed) => self.closed(closed),
        }?;
        if self.text.len() >= PENDING {
            self.hand_on()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hand_on()?;
        self.out.flush()
    }
}

/// An id of 64 hexadecimal digits is shown by its first 12, as container tools do.
fn shortened(id: &[u8]) -> &[u8] {
    if id.len() == 64 && id.iter().all(u8::is_ascii_hexdigit) {
        &id[..12]
    } else {
        id
    }
}

struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} byte{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}
