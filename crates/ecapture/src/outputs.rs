//! The outputs that were asked for: opened before anything is attached, begun when everything is.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context as _, anyhow};

use crate::args::{Format, Mode, OutputArgs};
use crate::event_output::EventAddress;
use crate::failure::Failure;
use crate::keylog_mode::{self, Keys};
use crate::output::PlaintextSink;
use crate::pcap_mode::{Files, PacketFile};
use crate::pipeline::{Destination, Output, Pipeline};
use crate::plain_mode::PlainFile;
use crate::recorder::{Context, Recorder, open_recording};
use crate::secret_file::{create_secrets, open};
use crate::text_mode::Plaintext;

/// Files and connections, with nothing written to them yet: what can't begin must not cost the user
/// what was there before.
#[derive(Default)]
pub(crate) struct Outputs {
    ready: Vec<Box<dyn Output>>,
    packets: Option<Files>,
    plain: Option<(Destination, File)>,
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
        check_combination(args, mode)?;
        let mut outputs = Self::default();
        let alone = recording.is_none();
        match mode {
            Mode::Text => outputs.open_text(args, alone, live)?,
            Mode::Keylog if alone || args.keylogfile.is_some() => {
                let path = args.keylogfile.as_deref();
                let keys = Keys::open(path.unwrap_or(Path::new(keylog_mode::DEFAULT_FILE)))?;
                outputs.ready.push(Box::new(keys));
            }
            Mode::Pcap if alone || args.pcapfile.is_some() => {
                outputs.packets = Some(Files::open(args)?);
            }
            Mode::Plain if alone || args.pcapfile.is_some() => {
                let path = args.pcapfile.as_deref();
                let path = path.unwrap_or(Path::new(crate::plain_mode::DEFAULT_FILE));
                outputs.plain = Some(open(path, Destination::Packets, create_secrets)?);
            }
            Mode::Keylog | Mode::Pcap | Mode::Plain => {}
        }
        outputs.recording = recording.map(open_recording).transpose()?;
        outputs.check_destinations()?;
        Ok(outputs)
    }

    fn open_text(&mut self, args: &OutputArgs, alone: bool, live: bool) -> Result<(), Failure> {
        let wanted = args.format.is_some() || args.hex;
        let shown = wanted || (alone && args.eventaddr.is_none());
        if shown {
            let sink = PlaintextSink::stdout(args).context("standard output");
            let sink = sink.map_err(Failure::Runtime)?;
            self.ready.push(Box::new(Plaintext::on_stdout(sink)));
        }
        if let Some(events) = Plaintext::as_events(args, live, shown)? {
            self.ready.push(Box::new(events));
        }
        Ok(())
    }

    /// Writes what each output begins with.
    pub(crate) fn begin(self, context: &Context) -> Result<Pipeline, Failure> {
        let begun = || -> io::Result<Pipeline> {
            let mut outputs = self.ready;
            if let Some(files) = self.packets {
                outputs.push(Box::new(PacketFile::begin(files, context)?));
            }
            if let Some(file) = self.plain {
                outputs.push(Box::new(PlainFile::begin(file, context)?));
            }
            let recorder = self.recording.map(|file| Recorder::begin(file, context));
            Ok(Pipeline::new(outputs, recorder.transpose()?))
        };
        begun()
            .context("writing the file's beginning")
            .map_err(Failure::Runtime)
    }

    /// Two outputs in one place would be no output.
    fn check_destinations(&self) -> Result<(), Failure> {
        let ready = self.ready.iter().map(|output| output.destination());
        let files = self.packets.iter().flat_map(Files::destinations);
        let plain = self.plain.iter().chain(&self.recording);
        let all: Vec<_> = ready
            .chain(files)
            .chain(plain.map(|(destination, _)| destination))
            .collect();
        for (index, destination) in all.iter().enumerate() {
            let same = |other: &&Destination| match destination {
                Destination::Stdout => **other == Destination::Stdout,
                _ => other.path().is_some() && other.path() == destination.path(),
            };
            if all[..index].iter().any(same) {
                return Err(Failure::WrongInput(anyhow!(
                    "two outputs can't both go to {destination}"
                )));
            }
        }
        Ok(())
    }
}

/// An option that would do nothing is refused.
pub(crate) fn check_combination(args: &OutputArgs, mode: Mode) -> Result<(), Failure> {
    let wrong = |error: &str| Err(Failure::WrongInput(anyhow!("{error}")));
    if args.hex && args.format == Some(Format::Json) {
        return wrong("--hex is for text; JSON lines carry payloads in base64");
    }
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
