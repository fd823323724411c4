//! `ecapture gotls`: from the command line to a running capture, and to its summary.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use capture::{
    Executable, Filters, Identity, NetworkNamespace, Options, PacketCapture, PacketOptions,
    PacketTarget, Probes, Process, ProcessInfo,
};
use gobin::{Analysis, BuildMode};
use trace::escape_name;

use crate::args::{GotlsArgs, Mode};
use crate::container::Container;
use crate::destinations;
use crate::failure::Failure;
use crate::keylog_mode;
use crate::log;
use crate::many;
use crate::outputs::{Outputs, check_combination as check_outputs};
use crate::parts::{FilePlans, GoFile, go_files};
use crate::pcap_mode::{self, PacketsAndKeys};
use crate::places::{KnownPlaces, Places};
use crate::recorder::{CapturedInterface, Context, now_ns};
use crate::selectors::One;
use crate::session::{Attached, DebugLog, PathOfFile, Session};
use crate::supervise::Signals;
use crate::users::UserNames;

/// Packets still come after their process has ended: the kernel closes its connections.
const LAST_PACKETS: Duration = Duration::from_millis(500);

/// Room for keys beside packets, in KiB: several thousand.
const KEYS_KIB: u64 = 1024;

/// Runs the command.
pub(crate) fn run(args: &GotlsArgs) -> Result<(), Failure> {
    let mode = args.output.model.unwrap_or(Mode::Text);
    check_combination(args, mode)?;
    destinations::check(&args.output, mode, args.record.as_deref(), None)?;
    if let Some(path) = &args.output.logaddr {
        log::open(path)?;
    }
    let filter = pcap_mode::filter(args)?;
    capture::set_debug(args.debug);
    let log = DebugLog::new(args.debug);

    let Some(one) = args.selectors.one() else {
        return many::run(args, mode, log);
    };
    if args.longest_hold.is_some() {
        return wrong("--longest-hold is for captures of many programs: nothing is held for one");
    }
    let process = one.pid.map(Process::open_to_capture).transpose()?;
    let executable = open_executable(one.elfpath, process.as_ref())?;
    let identity = executable.identity();
    if let Some(process) = &process {
        check_process(process, one, &executable)?;
    } else {
        tell_of_processes_out_of_sight(&executable)?;
    }
    let files = go_files(executable, process.as_ref())?;
    log.say("executable analysed");

    let command = Command {
        args,
        one,
        mode,
        identity,
        files: &files,
        process: process.as_ref(),
        log,
    };
    match mode {
        Mode::Text | Mode::Plain => command.plaintext(),
        Mode::Keylog => command.keylog(),
        Mode::Pcap => command.pcap(filter),
    }
}

/// The command, with what it is about looked up.
#[derive(Debug)]
struct Command<'a> {
    args: &'a GotlsArgs,
    one: One<'a>,
    mode: Mode,
    /// The file that was asked for.
    identity: Identity,
    /// What there is to capture from; at least one.
    files: &'a [GoFile],
    process: Option<&'a Process>,
    log: DebugLog,
}

impl<'a> Command<'a> {
    fn plaintext(&self) -> Result<(), Failure> {
        let preference = self.args.read_site.into();
        let plans = self.plans(|analysis| FilePlans::plaintext(analysis, preference))?;
        let outputs = self.outputs()?;
        let session = self.session(Duration::ZERO, &plans)?;
        let probes = self.attach(&plans, self.args.mapsize)?;
        self.capture(session, probes, outputs, Vec::new())
    }

    fn keylog(&self) -> Result<(), Failure> {
        let plans = self.key_plans()?;
        let outputs = self.outputs()?;
        let session = self.session(Duration::ZERO, &plans)?;
        let probes = self.attach(&plans, self.args.mapsize)?;
        self.capture(session, probes, outputs, Vec::new())
    }

    fn pcap(&self, filter: Option<String>) -> Result<(), Failure> {
        let plans = self.key_plans()?;
        let target = self.packet_target()?;
        let outputs = self.outputs()?;
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
        // From here on a signal must not end us before everything is taken away again.
        let session = self.session(LAST_PACKETS, &plans)?;
        let keys = self.attach(&plans, KEYS_KIB)?;
        let packets = PacketCapture::attach(target, &options)?;
        pcap_mode::print_warnings(&packets);
        let interfaces = CapturedInterface::all(&packets, options.snaplen);
        let attached = PacketsAndKeys { packets, keys };
        self.capture(session, attached, outputs, interfaces)
    }

    fn outputs(&self) -> Result<Outputs, Failure> {
        check_privileges(self.mode)?;
        Outputs::open(
            &self.args.output,
            self.mode,
            self.args.record.as_deref(),
            true,
        )
    }

    /// Captures until the end, and says what came of it.
    fn capture(
        &self,
        session: Session<'_>,
        attached: impl Attached,
        outputs: Outputs,
        interfaces: Vec<CapturedInterface>,
    ) -> Result<(), Failure> {
        let pipeline = outputs.begin(&self.args.output, &self.context(interfaces))?;
        let known = KnownPlaces::default();
        if let Some(pid) = self.one.pid {
            // While we may look at its environment.
            known.set(pid, Container::of_pid(pid));
        }
        let pipeline = pipeline.with_places(Places::new(known));
        match session.run(attached, pipeline)? {
            Some(outcome) => outcome.conclude(),
            None => Ok(()),
        }
    }

    fn context(&self, interfaces: Vec<CapturedInterface>) -> Context {
        let file = &self.files[0];
        Context {
            application: concat!("ecapture ", env!("CARGO_PKG_VERSION")).into(),
            hardware: std::env::consts::ARCH.into(),
            os: capture::operating_system(),
            mode: self.mode,
            executable: file.executable.name().display().to_string(),
            go_version: file.analysis.go_version().to_string(),
            architecture: file.analysis.arch.to_string(),
            pid: self.one.pid,
            uid: self.one.uid,
            bytes_per_call: self.args.tsize.filter(|&bytes| bytes > 0),
            started_ns: now_ns(),
            interfaces,
        }
    }

    /// Plans for all files; what they can't give is said on stderr.
    fn plans(
        &self,
        plan: impl Fn(&Analysis) -> Result<(FilePlans, Vec<gobin::Error>), gobin::Error>,
    ) -> Result<Plans<'a>, Failure> {
        let (mut plans, mut refused) = (Vec::new(), Vec::new());
        for file in self.files {
            match plan(&file.analysis) {
                Ok((planned, refusals)) => {
                    plans.push((file, planned));
                    refused.extend(refusals.into_iter().map(|error| (file, error)));
                }
                Err(error) => refused.push((file, error)),
            }
        }
        if plans.is_empty() {
            let (file, error) = refused.swap_remove(0);
            return Err(Failure::executable(file.executable.name(), error));
        }
        for (file, error) in refused {
            let note = format!("note: {}: {error}", file.executable.name().display());
            log::line(&escape_name(note.as_bytes()));
        }
        Ok(plans)
    }

    fn key_plans(&self) -> Result<Plans<'a>, Failure> {
        let plans = self.plans(FilePlans::keys)?;
        for note in plans
            .iter()
            .flat_map(|(_, plans)| keylog_mode::notes(plans))
        {
            log::line(&note);
        }
        Ok(plans)
    }

    /// The executable whose processes' packets are captured; `None` if it is one process's, whatever it
    /// runs.
    fn packet_target(&self) -> Result<Option<PacketTarget<'a>>, Failure> {
        let file = &self.files[0];
        let entry = file.analysis.entry_offset;
        let entry = entry.filter(|_| file.analysis.build_mode != BuildMode::SharedLibrary);
        if entry.is_none() && self.process.is_none() {
            let name = file.executable.name().display();
            return Err(Failure::WrongInput(anyhow!(
                "{name}: a library, which does not tell whose packets to capture in pcap mode; \
                 give --pid N of a process that has loaded it"
            )));
        }
        Ok(entry.map(|entry| PacketTarget {
            executable: &file.executable,
            entry,
        }))
    }

    fn attach(&self, plans: &Plans<'_>, ring_kib: u64) -> Result<Probes, Failure> {
        let options = Options {
            filters: self.filters(),
            bytes_per_call: self.args.tsize.filter(|&bytes| bytes > 0),
            goroutines: self.args.tell_goroutines(),
            ring_kib,
            uprobes: self.args.uprobes.into(),
        };
        let parts: Vec<_> = plans
            .iter()
            .flat_map(|(file, plans)| plans.parts(&file.executable))
            .collect();
        Ok(Probes::attach(&parts, &options)?)
    }

    fn filters(&self) -> Filters {
        Filters {
            pid: self.one.pid,
            uid: self.one.uid,
        }
    }

    fn session(&self, after_targets: Duration, plans: &Plans<'_>) -> Result<Session<'a>, Failure> {
        let signals = Signals::catch()
            .context("catching signals")
            .map_err(Failure::Runtime)?;
        Ok(Session {
            targets: self.process.map_or(&[], std::slice::from_ref),
            after_targets,
            duration: self.args.duration,
            description: self.describe(plans),
            signals,
            log: self.log,
            path: self.path(),
        })
    }

    /// What a process runs stays the same.
    fn path(&self) -> Option<PathOfFile> {
        let path = self.one.elfpath.filter(|_| self.process.is_none())?;
        Some(PathOfFile {
            path: path.to_owned(),
            identity: self.identity,
        })
    }

    fn describe(&self, plans: &Plans<'_>) -> String {
        let files: Vec<_> = plans
            .iter()
            .map(|(file, plans)| file.describe(&plans.packages()))
            .collect();
        let files = files.join(" and ");
        match self.process {
            Some(process) => format!("process {}, {files}", process.pid()),
            None => files,
        }
    }
}

/// Where to probe which file; at least one.
type Plans<'a> = Vec<(&'a GoFile, FilePlans)>;
fn wrong(error: &str) -> Result<(), Failure> {
    Err(Failure::WrongInput(anyhow!("{error}")))
}

/// Files that an ordinary user has made in vain would be in the way of root's next attempt.
pub(crate) fn check_privileges(mode: Mode) -> Result<(), Failure> {
    let checked = match mode {
        Mode::Text | Mode::Plain | Mode::Keylog => capture::effective_user_can_trace(),
        Mode::Pcap => capture::effective_user_can_capture_packets(),
    };
    Ok(checked?)
}

/// An option that would do nothing is refused.
fn check_combination(args: &GotlsArgs, mode: Mode) -> Result<(), Failure> {
    if args.btf.is_some() {
        return wrong("--btf is not needed: nothing here depends on the kernel's BTF");
    }
    if args.listen.is_some() {
        return wrong(
            "--listen is not there: a capture can't be changed while it runs; end it, and begin another one",
        );
    }
    check_outputs(&args.output, mode, args.record.is_none())?;
    if args.tsize.is_some() && matches!(mode, Mode::Keylog | Mode::Pcap) {
        return wrong("--tsize is for text and plain mode, which show plaintext");
    }
    let for_packets = !args.ifname.is_empty()
        || args.snaplen.is_some()
        || args.all_packets
        || !args.filter.is_empty();
    if for_packets && mode != Mode::Pcap {
        if let Some(word) = args.filter.first()
            && let Some(advice) = instead_of_filter(word)
        {
            return wrong(&format!(
                "{word} would be a packet filter, which is for pcap mode; {advice}"
            ));
        }
        return wrong(
            "--ifname, --snaplen, --all-packets and a filter are for pcap mode: add -m pcap",
        );
    }
    Ok(())
}

/// What was meant, if no filter looks like this.
fn instead_of_filter(word: &str) -> Option<String> {
    if word.bytes().all(|byte| byte.is_ascii_digit()) {
        Some(format!("for a process give --pid {word}"))
    } else if Path::new(word).is_file() {
        Some(format!("for an executable give --elfpath {word}"))
    } else {
        None
    }
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

/// A process that is not what else was asked for would never be captured.
fn check_process(process: &Process, one: One<'_>, executable: &Executable) -> Result<(), Failure> {
    let pid = process.pid();
    if let Some(path) = one.elfpath
        && let Some(found) = process.runs_instead_of(executable)?
    {
        return Err(Failure::WrongInput(anyhow!(
            "process {pid} runs {}, not the file at {}: give --pid {pid} alone to capture what it runs",
            found.display(),
            path.display()
        )));
    }
    if let Some(wanted) = one.uid
        && let Some(user) = process.user()
        && user != wanted
    {
        let users = UserNames::read();
        return Err(Failure::WrongInput(anyhow!(
            "process {pid} is of user {}, not of {}",
            users.of(user),
            users.of(wanted)
        )));
    }
    Ok(())
}

/// Says if one of the processes that run the file is not seen from here.
fn tell_of_processes_out_of_sight(executable: &Executable) -> Result<(), Failure> {
    if capture::is_in_initial_pid_namespace() {
        return Ok(());
    }
    let (running, _) = capture::running()?;
    let found = running.iter().find(|process| {
        process.identity == executable.identity() && capture::is_out_of_sight(process.pid)
    });
    if let Some(process) = found {
        log::line(&note_on_process_out_of_sight(process));
    }
    Ok(())
}

/// What is said once, of the first one.
pub(crate) fn note_on_process_out_of_sight(process: &ProcessInfo) -> String {
    let note = format!(
        "note: pid {}, {}, and perhaps others can't be captured: {}",
        process.pid,
        process.executable.display(),
        capture::OUT_OF_SIGHT
    );
    escape_name(note.as_bytes()).to_string()
}
