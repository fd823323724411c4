//! The outputs that were asked for: opened before anything is attached, begun when everything is.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context as _, anyhow};

use crate::args::{Format, Mode, OutputArgs};
use crate::event_output::EventAddress;
use crate::failure::Failure;
use crate::har_file::HarFile;
use crate::keylog_mode::Keys;
use crate::pcap_mode::{Files, PacketFile};
use crate::pipeline::{Destination, Output, Pipeline};
use crate::plain_mode::PlainFile;
use crate::recorder::{Context, Recorder, open_recording};
use crate::secret_file::{Place, open};
use crate::text_mode::Plaintext;

/// Files and connections, with nothing written to them yet: what can't begin must not cost the user
/// what was there before.
#[derive(Default)]
pub(crate) struct Outputs {
    ready: Vec<Box<dyn Output>>,
    packets: Option<Files>,
    plain: Option<(Destination, File)>,
    har: Option<(Destination, File)>,
    recording: Option<(Destination, File)>,
}

impl Outputs {
    /// Opens what the arguments ask for, for a capture (`live`) or a replay. With a recording, nothing else is
    /// written unless it is asked for.
    pub(crate) fn open(
        args: &OutputArgs,
        mode: Mode,
        recording: Option<&Path>,
        live: bool,
    ) -> Result<Self, Failure> {
        let alone = recording.is_none();
        check_combination(args, mode, alone)?;
        let mut outputs = Self::default();
        let packets = args.packet_file(mode, alone);
        match (mode, packets, args.key_file(mode, alone)) {
            (Mode::Text, ..) => outputs.open_text(args, alone, live)?,
            (Mode::Plain, Some(path), _) => {
                outputs.plain = Some(open(path, Destination::Packets, Place::create)?);
            }
            (_, Some(packets), keys) => outputs.packets = Some(Files::open(packets, keys)?),
            // Beside a recording, keys may be wanted without packets.
            (_, None, Some(path)) => outputs.ready.push(Box::new(Keys::open(path)?)),
            (_, None, None) => {}
        }
        outputs.recording = recording.map(open_recording).transpose()?;
        Ok(outputs)
    }

    fn open_text(&mut self, args: &OutputArgs, alone: bool, live: bool) -> Result<(), Failure> {
        self.har = args.har.as_deref().map(HarFile::open).transpose()?;
        let shown = args.shown(Mode::Text, alone).is_some();
        if shown {
            let output = Plaintext::on_stdout(args).context("standard output");
            self.ready.push(Box::new(output.map_err(Failure::Runtime)?));
        }
        if let Some(events) = Plaintext::as_events(args, live, shown)? {
            self.ready.push(Box::new(events));
        }
        Ok(())
    }

    /// Writes what each output begins with.
    pub(crate) fn begin(self, args: &OutputArgs, context: &Context) -> Result<Pipeline, Failure> {
        let mut outputs = self.ready;
        if let Some(files) = self.packets {
            let destination = files.packets().clone();
            let begun = PacketFile::begin(files, context);
            outputs.push(Box::new(begun.map_err(beginning(destination))?));
        }
        if let Some(file) = self.plain {
            let destination = file.0.clone();
            let begun = PlainFile::begin(file, context);
            outputs.push(Box::new(begun.map_err(beginning(destination))?));
        }
        if let Some(file) = self.har {
            let destination = file.0.clone();
            let begun = HarFile::begin(file, args);
            outputs.push(Box::new(begun.map_err(beginning(destination))?));
        }
        let recorder = self.recording.map(|file| {
            let destination = file.0.clone();
            Recorder::begin(file, context).map_err(beginning(destination))
        });
        Ok(Pipeline::new(outputs, recorder.transpose()?))
    }
}

/// What becomes of an error when the beginning of an output is written.
fn beginning(destination: Destination) -> impl FnOnce(io::Error) -> Failure {
    move |error| {
        let context = format!("writing the beginning of {destination}");
        Failure::Runtime(anyhow::Error::new(error).context(context))
    }
}

/// An option that would do nothing is refused. Beside a recording (not `alone`) that depends on what else is asked
/// for.
pub(crate) fn check_combination(args: &OutputArgs, mode: Mode, alone: bool) -> Result<(), Failure> {
    let wrong = |error: &str| Err(Failure::WrongInput(anyhow!("{error}")));
    if !alone && !args.redact.is_empty() {
        return wrong("--redact can't mask what --record writes: use it with ecapture replay");
    }
    if args.hex && args.format == Some(Format::Json) {
        return wrong("--hex is for text; JSON lines carry payloads in base64");
    }
    let decoded = args.raw
        || args.indent_json
        || !args.events.is_empty()
        || args.har.is_some()
        || args.max_body.is_some();
    if decoded && mode != Mode::Text {
        return wrong(
            "--raw, --indent-json, --events, --har and --max-body are for text mode, which shows plaintext",
        );
    }
    if !args.redact.is_empty() && mode != Mode::Text {
        return wrong("--redact is for text mode: packets and keys hold everything");
    }
    check_decoding(args, args.shown(mode, alone))?;
    if (args.hex || args.format.is_some()) && mode != Mode::Text {
        return wrong("--hex and --format are for text mode, which shows plaintext");
    }
    if args.eventaddr.is_some() && mode != Mode::Text {
        return wrong("--eventaddr is for text mode, which shows plaintext");
    }
    let rotates = args.eventroratesize.is_some() || args.eventroratetime.is_some();
    if rotates && !matches!(args.eventaddr, Some(EventAddress::File(_))) {
        return wrong("--eventroratesize and --eventroratetime go with --eventaddr and a file");
    }
    if args.keylogfile.is_some() && !matches!(mode, Mode::Keylog | Mode::Pcap) {
        return wrong("--keylogfile is for keylog and pcap mode: add -m keylog or -m pcap");
    }
    if args.pcapfile.is_some() && !matches!(mode, Mode::Plain | Mode::Pcap) {
        return wrong("--pcapfile is for pcap and plain mode: add -m pcap or -m plain");
    }
    Ok(())
}

/// An option that would do nothing, or would show what another one is to mask, is refused. Standard output has `shown`.
fn check_decoding(args: &OutputArgs, shown: Option<Format>) -> Result<(), Failure> {
    let wrong = |error: &str| Err(Failure::WrongInput(anyhow!("{error}")));
    let json = args.format == Some(Format::Json);
    let lines = json || args.eventaddr.is_some();
    if json && (args.raw || args.indent_json) {
        return wrong(
            "--raw and --indent-json are for text; --events data selects plaintext in JSON lines",
        );
    }
    if !lines && !args.events.is_empty() {
        return wrong("--events is for JSON lines: add --format json or --eventaddr");
    }
    if args.raw && args.indent_json {
        return wrong("--indent-json is for decoded bodies, and --raw decodes none");
    }
    if !args.redact.is_empty() && (args.raw || args.events.contains(&trace::LineType::Data)) {
        return wrong(
            "--redact masks header fields of decoded HTTP; --raw and --events data show everything",
        );
    }
    let stdout = args.har.as_deref() == Some(Path::new("-"));
    if stdout && (args.format.is_some() || args.raw || args.hex || args.indent_json) {
        return wrong(
            "--har - takes standard output for itself: name a file, or leave out --format, --raw, --hex and --indent-json",
        );
    }
    if args.indent_json && shown != Some(Format::Text) {
        return wrong("--indent-json is for text, of which none is shown: add --format text");
    }
    let decoding = args.har.is_some()
        || (args.eventaddr.is_some() && args.is_decoding(Format::Json))
        || shown.is_some_and(|format| args.is_decoding(format));
    if !decoding && (!args.redact.is_empty() || args.max_body.is_some()) {
        return wrong(
            "--redact and --max-body are for decoded HTTP, of which nothing is asked for",
        );
    }
    Ok(())
}
