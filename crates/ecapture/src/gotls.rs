//! `ecapture gotls`: from the command line to a running capture, and to its summary.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use capture::{
    Executable, Filters, NetworkNamespace, Options, PacketCapture, PacketOptions, PacketTarget,
    Probes, Process, Wanted,
};
use gobin::{Analysis, KeyPlan};
use trace::escape_name;

use crate::args::{Format, GotlsArgs, Mode};
use crate::consume::{Outcome, Output};
use crate::failure::Failure;
use crate::keylog_mode::{self, Keys};
use crate::many;
use crate::output::StdoutSink;
use crate::pcap_mode::{self, Files, PacketFile};
use crate::selectors::One;
use crate::session::{DebugLog, Session, print_summary};
use crate::supervise::Signals;
use crate::text_mode::{self, Plaintext};

/// Packets still come after their process has ended: the kernel closes its connections.
const LAST_PACKETS: Duration = Duration::from_millis(500);

/// Room for keys beside packets, in KiB: several thousand.
const KEYS_KIB: u64 = 1024;

/// Runs the command.
pub(crate) fn run(args: &GotlsArgs) -> Result<(), Failure> {
    check_combination(args)?;
    let filter = pcap_mode::filter(args)?;
    capture::set_debug(args.debug);
    let log = DebugLog::new(args.debug);

    let Some(one) = args.selectors.one() else {
        return many::run(args, log);
    };
    let process = one.pid.map(Process::open).transpose()?;
    let executable = open_executable(one.elfpath, process.as_ref())?;
    let analysis = gobin::analyze(&executable.map()?)
        .map_err(|error| Failure::executable(executable.name(), error))?;
    log.say("executable analysed");

    let command = Command {
        args,
        one,
        executable: &executable,
        analysis: &analysis,
        process: process.as_ref(),
        log,
    };
    match args.model {
        Mode::Text => command.text(),
        Mode::Keylog => command.keylog(),
        Mode::Pcap => command.pcap(filter),
    }
}

/// The command, with what it is about looked up.
#[derive(Debug)]
struct Command<'a> {
    args: &'a GotlsArgs,
    one: One<'a>,
    executable: &'a Executable,
    analysis: &'a Analysis,
    process: Option<&'a Process>,
    log: DebugLog,
}

impl<'a> Command<'a> {
    fn text(&self) -> Result<(), Failure> {
        let plan = self
            .analysis
            .plan(self.args.read_site.into())
            .map_err(|error| self.wrong_executable(error))?;
        let sink = StdoutSink::new(self.args)
            .context("standard output")
            .map_err(Failure::Runtime)?;
        let session = self.session(Duration::ZERO)?;
        let probes = self.attach(Wanted::Plaintext(&plan), self.args.mapsize)?;
        let Some(outcome) = session.run(probes, Plaintext::new(sink))? else {
            return Ok(());
        };
        print_summary(&outcome, &text_mode::summary(&outcome));
        written(outcome)
    }

    fn keylog(&self) -> Result<(), Failure> {
        let plan = self.key_plan()?;
        let path = self.args.keylogfile.as_deref();
        let keys = Keys::open(path.unwrap_or(Path::new(keylog_mode::DEFAULT_FILE)))?;
        let session = self.session(Duration::ZERO)?;
        let probes = self.attach(Wanted::Keys(&plan), self.args.mapsize)?;
        let Some(outcome) = session.run(probes, keys)? else {
            return Ok(());
        };
        print_summary(&outcome, &keylog_mode::summary(&outcome));
        written(outcome)
    }

    fn pcap(&self, filter: Option<String>) -> Result<(), Failure> {
        let plan = self.key_plan()?;
        let files = Files::open(self.args)?;
        let options = PacketOptions {
            interfaces: pcap_mode::interfaces(self.args),
            network_namespace: match self.process {
                Some(process) => NetworkNamespace::of_process(process)?,
                None => NetworkNamespace::ours(),
            },
            filter,
            snaplen: self.args.snaplen.unwrap_or(PacketOptions::SNAPLEN_MAX),
            all_packets: self.args.all_packets,
            ring_kib: self.args.mapsize,
            filters: self.filters(),
            hooks: None,
            uprobes: self.args.uprobes.into(),
        };
        let target = self.analysis.entry_offset.map(|entry| PacketTarget {
            executable: self.executable,
            entry,
        });
        // From here on a signal must not end us before everything is taken away again.
        let session = self.session(LAST_PACKETS)?;
        let keys = self.attach(Wanted::Keys(&plan), KEYS_KIB)?;
        let packets = PacketCapture::attach(target, &options)?;
        pcap_mode::print_warnings(&packets);
        let (output, attached) = PacketFile::begin(files, packets, keys, options.snaplen)
            .context("writing the capture file")
            .map_err(Failure::Runtime)?;
        let Some(outcome) = session.run(attached, output)? else {
            return Ok(());
        };
        print_summary(&outcome, &pcap_mode::summary(&outcome));
        written(outcome)
    }

    /// The plan for keys; what it can't give is said on stderr.
    fn key_plan(&self) -> Result<KeyPlan, Failure> {
        let plan = self
            .analysis
            .key_plan()
            .map_err(|error| self.wrong_executable(error))?;
        for note in keylog_mode::notes(&plan) {
            eprintln!("{note}");
        }
        Ok(plan)
    }

    fn attach(&self, wanted: Wanted<'_>, ring_kib: u64) -> Result<Probes, Failure> {
        let options = Options {
            filters: self.filters(),
            bytes_per_call: self.args.tsize.filter(|&bytes| bytes > 0),
            ring_kib,
            uprobes: self.args.uprobes.into(),
        };
        Ok(Probes::attach(self.executable, wanted, &options)?)
    }

    fn filters(&self) -> Filters {
        Filters {
            pid: self.one.pid,
            uid: self.one.uid,
        }
    }

    fn session(&self, after_target: Duration) -> Result<Session<'a>, Failure> {
        let signals = Signals::catch()
            .context("catching signals")
            .map_err(Failure::Runtime)?;
        Ok(Session {
            process: self.process,
            after_target,
            duration: self.args.duration,
            description: self.describe(),
            signals,
            log: self.log,
        })
    }

    fn describe(&self) -> String {
        let name = escape_name(self.executable.name().as_os_str().as_encoded_bytes());
        let whom = match self.process {
            Some(process) => format!("process {}, {name}", process.pid()),
            None => name.into_owned(),
        };
        let analysis = self.analysis;
        let (version, arch, abi) = (analysis.go_version(), analysis.arch, analysis.abi);
        format!("{whom} ({version}, {arch}, {abi} ABI)")
    }

    fn wrong_executable(&self, error: gobin::Error) -> Failure {
        Failure::executable(self.executable.name(), error)
    }
}

/// An option that would do nothing is refused.
fn check_combination(args: &GotlsArgs) -> Result<(), Failure> {
    let wrong = |error: &str| Err(Failure::WrongInput(anyhow!("{error}")));
    match args.model {
        Mode::Text => {
            if args.hex && args.format == Some(Format::Json) {
                return wrong("--hex is for text; JSON lines carry payloads in base64");
            }
            if args.keylogfile.is_some() {
                return wrong("--keylogfile is for keylog and pcap mode: add -m keylog or -m pcap");
            }
        }
        Mode::Keylog | Mode::Pcap => {
            if args.hex || args.format.is_some() || args.tsize.is_some() {
                return wrong(
                    "--hex, --format and --tsize are for text mode, which shows plaintext",
                );
            }
        }
    }
    let for_packets = args.pcapfile.is_some()
        || !args.ifname.is_empty()
        || args.snaplen.is_some()
        || args.all_packets
        || !args.filter.is_empty();
    if for_packets && args.model != Mode::Pcap {
        return wrong(
            "--pcapfile, --ifname, --snaplen, --all-packets and a filter are for pcap mode: add -m pcap",
        );
    }
    Ok(())
}

fn open_executable(path: Option<&Path>, process: Option<&Process>) -> Result<Executable, Failure> {
    match (path, process) {
        (Some(path), _) => Ok(Executable::open(path)?),
        (None, Some(process)) => Ok(Executable::of_process(process)?),
        (None, None) => Err(Failure::WrongInput(anyhow!(
            "give --elfpath PATH or --pid N to say which program"
        ))),
    }
}

pub(crate) fn written(outcome: Outcome<impl Output>) -> Result<(), Failure> {
    let destination = outcome.output.destination();
    outcome
        .result
        .or_else(|error| Failure::output(error, destination))
}
