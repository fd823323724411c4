//! `-m pcap`: the packets of the targets with the keys that decrypt them, as a pcapng file.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::mpsc;

use capture::{
    Counters, InterfaceSelection, InterfaceStatistics, LinkType, PacketCapture, Probes, Reader,
    monotonic_ns, realtime_offset_ns,
};
use events::Record;
use trace::{Interface, KeyLog, PacketSink, PcapngWriter, Section, Timestamp, escape_name};

use crate::args::GotlsArgs;
use crate::consume::{Destination, Outcome, Output};
use crate::failure::Failure;
use crate::secret_file::{append_secrets, create_secrets, empty, open};
use crate::session::Attached;

/// Where packets go unless `-w` says otherwise: eCapture's default.
const DEFAULT_FILE: &str = "ecapture_gotls.pcapng";

/// The files, opened before anything is attached.
#[derive(Debug)]
pub(crate) struct Files {
    packets: (Destination, File),
    keys: Option<(Destination, File)>,
}

impl Files {
    pub(crate) fn open(args: &GotlsArgs) -> Result<Self, Failure> {
        let path = args.pcapfile.as_deref();
        let path = path.unwrap_or(Path::new(DEFAULT_FILE));
        let keys = args.keylogfile.as_deref();
        let keys = keys.map(|path| open(path, Destination::KeyLog, append_secrets));
        Ok(Self {
            packets: open(path, Destination::Packets, create_secrets)?,
            keys: keys.transpose()?,
        })
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
    packets: PacketCapture,
    keys: Probes,
    statistics: mpsc::Sender<Vec<InterfaceStatistics>>,
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
        // The output waits for nothing, so nobody minds if it has gone.
        let _ = self.statistics.send(self.packets.statistics());
    }
}

/// Writes packets and keys.
#[derive(Debug)]
pub(crate) struct PacketFile {
    sink: PacketSink<BufWriter<File>>,
    destination: Destination,
    keys: Option<KeyLog<File>>,
    start: Timestamp,
    statistics: mpsc::Receiver<Vec<InterfaceStatistics>>,
    /// Packets that should be in the file.
    wanted: u64,
    /// Those of them that never got to us; known when all others have been written.
    dropped: Option<u64>,
}

impl PacketFile {
    /// Describes the interfaces in the file, so that even a short capture is a complete one.
    pub(crate) fn begin(
        files: Files,
        packets: PacketCapture,
        keys: Probes,
        snaplen: u32,
    ) -> io::Result<(Self, PacketsAndKeys)> {
        let (destination, file) = files.packets;
        if destination != Destination::Stdout {
            empty(&file)?;
        }
        let interfaces: Vec<_> = packets
            .interfaces()
            .iter()
            .map(|found| Interface {
                name: &found.name,
                link_type: found.link_type.number(),
                snaplen,
                filter: found.filter.as_deref(),
            })
            .collect();
        let os = capture::operating_system();
        let section = Section {
            hardware: std::env::consts::ARCH,
            os: &os,
            application: concat!("ecapture ", env!("CARGO_PKG_VERSION")),
        };
        let out = BufWriter::with_capacity(256 * 1024, file);
        let mut sink = PacketSink::new(PcapngWriter::new(out, &section, &interfaces)?);
        sink.flush()?;
        let (sender, receiver) = mpsc::channel();
        let output = Self {
            sink,
            destination,
            keys: files.keys.map(|(_, file)| KeyLog::new(file)),
            start: now(),
            statistics: receiver,
            wanted: 0,
            dropped: None,
        };
        let attached = PacketsAndKeys {
            packets,
            keys,
            statistics: sender,
        };
        Ok((output, attached))
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
            Record::Connection(_) | Record::Data(_) | Record::Close(_) => Ok(()), // Not probed for.
        }
    }

    fn turn(&mut self, _: bool, now_ns: u64) -> io::Result<()> {
        self.sink.release(now_ns)?;
        self.flush()
    }

    fn finish(&mut self, now: Timestamp, _: &Counters) -> io::Result<()> {
        // Sent when the programs were detached, which was before this was called.
        let statistics = self.statistics.try_recv().unwrap_or_default();
        let dropped = statistics.iter().map(|interface| interface.dropped).sum();
        self.wanted = wanted(&statistics);
        let statistics: Vec<_> = (0u32..)
            .zip(statistics)
            .map(|(interface, found)| trace::InterfaceStatistics {
                interface,
                start: self.start,
                end: now,
                received: found.matched,
                dropped: found.dropped,
            })
            .collect();
        self.sink.finish(&statistics)?;
        self.dropped = Some(dropped);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(keys) = &mut self.keys {
            keys.flush()?;
        }
        self.sink.flush()
    }
}

fn wanted(statistics: &[InterfaceStatistics]) -> u64 {
    statistics.iter().map(|interface| interface.matched).sum()
}

fn now() -> Timestamp {
    Timestamp::from_monotonic(monotonic_ns(), realtime_offset_ns())
}

/// What the user should know before anything is captured.
pub(crate) fn print_warnings(packets: &PacketCapture) {
    for warning in packets.warnings() {
        eprintln!("note: {}", escape_name(warning.as_bytes()));
    }
}

/// The closing line, without what all modes have.
pub(crate) fn summary(outcome: &Outcome<PacketFile>) -> String {
    let output = &outcome.output;
    let (packets, keys) = output.sink.totals();
    let lost = output.dropped.unwrap_or_else(|| {
        // Writing failed, before the programs were detached or after.
        let statistics = output.statistics.try_recv();
        let wanted = statistics.map_or(output.wanted, |statistics| wanted(&statistics));
        wanted.saturating_sub(packets.packets)
    });
    let mut summary = format!(
        "{} packets, {} bytes, {} keys; lost: {lost} packets",
        packets.packets, packets.bytes, keys.keys
    );
    // Both ring buffers count what they had no room for; of packets the interfaces do, too.
    let lost_keys = output.dropped.map_or(0, |dropped| {
        outcome.counters.lost_records.saturating_sub(dropped)
    });
    if lost_keys > 0 {
        summary += &format!(", {lost_keys} keys");
    }
    summary
}
