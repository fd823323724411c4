//! `-m pcap`: the packets of the targets with the keys that decrypt them, as a pcapng file.

use std::fs::File;
use std::io::{self, BufWriter};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use capture::{InterfaceSelection, InterfaceStatistics, LinkType, PacketCapture, Probes, Reader};
use events::Record;
use trace::{KeyLog, PacketSink, PcapngWriter, Section, Timestamp, escape_name};

use crate::args::GotlsArgs;
use crate::failure::Failure;
use crate::log;
use crate::pipeline::{Destination, Ending, Output};
use crate::recorder::{CapturedInterface, Context};
use crate::secret_file::{Place, empty, open};
use crate::session::Attached;

/// Where packets go unless `-w` says otherwise: eCapture's default.
pub(crate) const DEFAULT_FILE: &str = "ecapture_gotls.pcapng";

/// The files, opened before anything is attached.
#[derive(Debug)]
pub(crate) struct Files {
    packets: (Destination, File),
    keys: Option<(Destination, File)>,
}

impl Files {
    pub(crate) fn open(packets: &Path, keys: Option<&Path>) -> Result<Self, Failure> {
        let keys = keys.map(|path| open(path, Destination::KeyLog, Place::append));
        Ok(Self {
            packets: open(packets, Destination::Packets, Place::create)?,
            keys: keys.transpose()?,
        })
    }
}

impl Files {
    /// Where packets go.
    pub(crate) fn packets(&self) -> &Destination {
        &self.packets.0
    }
}

/// The filter expression, checked: an error in it is the user's, and no reason to attach anything.
pub(crate) fn filter(args: &GotlsArgs) -> Result<Option<String>, Failure> {
    if args.filter.is_empty() {
        return Ok(None);
    }
    let expression = args.filter.join(" ");
    PacketCapture::compile_filter(&expression, &[LinkType::Ethernet, LinkType::RawIp])?;
    Ok(Some(expression))
}

/// The interfaces that were asked for.
pub(crate) fn interfaces(args: &GotlsArgs) -> InterfaceSelection {
    if args.ifname.is_empty() {
        InterfaceSelection::All
    } else {
        InterfaceSelection::Named(args.ifname.clone())
    }
}

/// Everything that is attached in this mode.
#[derive(Debug)]
pub(crate) struct PacketsAndKeys {
    pub(crate) packets: PacketCapture,
    pub(crate) keys: Probes,
}

impl Attached for PacketsAndKeys {
    fn readers(&self) -> Result<Vec<Reader>, capture::Error> {
        Ok(vec![self.packets.reader()?, self.keys.reader()?])
    }

    fn extent(&self) -> String {
        let names: Vec<_> = self
            .packets
            .interfaces()
            .iter()
            .map(|found| &*found.name)
            .collect();
        let keys = self.keys.extent();
        let names = escape_name(names.join(", ").as_bytes()).into_owned();
        format!("{keys} for keys, packets on {names}")
    }

    fn give_up_privileges(&self) -> Result<(), capture::Error> {
        self.packets.give_up_privileges()
    }

    fn detach(&mut self) {
        self.packets.detach();
        self.keys.detach();
    }

    fn overwrites(&self) -> Vec<BorrowedFd<'_>> {
        let overwrites = [self.packets.overwrites(), self.keys.overwrites()];
        overwrites.into_iter().flatten().collect()
    }

    fn detach_overwritten(&mut self) -> Vec<PathBuf> {
        let mut names = self.keys.detach_overwritten();
        for name in self.packets.detach_overwritten() {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    fn unwatched(&self) -> Option<&io::Error> {
        self.keys.unwatched()
    }

    fn interface_statistics(&self) -> Vec<InterfaceStatistics> {
        self.packets.statistics()
    }
}

/// Writes packets and keys.
#[derive(Debug)]
pub(crate) struct PacketFile {
    sink: PacketSink<BufWriter<File>>,
    destination: Destination,
    keys: Option<KeyLog<File>>,
    start: Timestamp,
    /// Whether all that is to be had has been written.
    finished: bool,
}

impl PacketFile {
    /// Describes the interfaces in the file, so that even a short capture is a complete one.
    pub(crate) fn begin(files: Files, context: &Context) -> io::Result<Self> {
        let (destination, file) = files.packets;
        if destination != Destination::Stdout {
            empty(&file)?;
        }
        let interfaces = context.interfaces.iter().map(CapturedInterface::describe);
        let interfaces: Vec<_> = interfaces.collect();
        // For small blocks; packets come many at a time.
        let out = BufWriter::with_capacity(32 * 1024, file);
        let section = section(context);
        let mut sink = PacketSink::new(PcapngWriter::new(out, &section, &interfaces)?);
        sink.flush()?;
        Ok(Self {
            sink,
            destination,
            keys: files.keys.map(|(_, file)| KeyLog::new(file)),
            start: context.started(),
            finished: false,
        })
    }
}

/// Who captured where, for a pcapng file.
pub(crate) fn section(context: &Context) -> Section<'_> {
    Section {
        hardware: &context.hardware,
        os: &context.os,
        application: &context.application,
    }
}

impl Output for PacketFile {
    fn destination(&self) -> &Destination {
        &self.destination
    }

    fn record(&mut self, record: &Record<'_>, realtime_offset_ns: i64) -> io::Result<()> {
        match record {
            Record::Packet(packet) => self.sink.packet(packet, realtime_offset_ns),
            Record::Key(key) => {
                self.sink.key(key);
                match &mut self.keys {
                    Some(keys) => keys.key(key),
                    None => Ok(()),
                }
            }
            Record::Connection(_) | Record::Data(_) | Record::Close(_) | Record::Process(_) => {
                Ok(())
            }
        }
    }

    fn turn(&mut self, _: bool, now_ns: u64) -> io::Result<()> {
        self.sink.release(now_ns)?;
        self.flush()
    }

    fn finish(&mut self, now: Timestamp, ending: &Ending) -> io::Result<()> {
        let statistics: Vec<_> = (0u32..)
            .zip(&ending.interfaces)
            .map(|(interface, found)| trace::InterfaceStatistics {
                interface,
                start: self.start,
                end: now,
                received: found.matched,
                dropped: found.dropped,
            })
            .collect();
        self.sink.finish(&statistics)?;
        self.finished = true;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(keys) = &mut self.keys {
            keys.flush()?;
        }
        self.sink.flush()
    }

    fn summary(&self, ending: &Ending) -> String {
        let (packets, keys) = self.sink.totals();
        let lost = if self.finished {
            ending.lost_packets()
        } else {
            let wanted: u64 = ending.interfaces.iter().map(|found| found.matched).sum();
            wanted.saturating_sub(packets.packets)
        };
        let mut summary = format!(
            "{} packets, {} bytes, {} keys; lost: {lost} packets",
            packets.packets, packets.bytes, keys.keys
        );
        let lost_keys = ending.lost_keys();
        if self.finished && lost_keys > 0 {
            summary += &format!(", {lost_keys} keys");
        }
        summary
    }
}

/// What the user should know before anything is captured.
pub(crate) fn print_warnings(packets: &PacketCapture) {
    for warning in packets.warnings() {
        log::line(&format!("note: {}", escape_name(warning.as_bytes())));
    }
}
