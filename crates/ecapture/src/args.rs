//! The command line, as typed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use trace::{LineType, Redaction};

use crate::event_output::{self, EventAddress, Limits};
use crate::selectors::Selectors;
use crate::{keylog_mode, pcap_mode, plain_mode};

/// Shows what Go programs say over TLS, on a live Linux machine: no proxy, no certificate, no restart
/// of the program and no change to it.
#[derive(Debug, Parser)]
#[command(name = "ecapture", version, about, before_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ecapture gotls --pid 4242                      what process 4242 says, as text
  ecapture gotls                                 all Go programs, also those that start later
  ecapture gotls -e /usr/bin/caddy               every process that runs this executable
  ecapture gotls -e ./server --format json       JSON lines, for scripts
  ecapture gotls -e ./server --duration 10 >log  ten seconds, into a file
  ecapture gotls -m pcap -w x.pcapng -e ./server packets, for Wireshark, decrypted
  ecapture gotls -m plain -w x.pcapng -e ./server plaintext, for Wireshark, without packets
  ecapture gotls -m keylog -k keys -e ./server   TLS keys
  ecapture gotls --record x.rec -e ./server      everything, for `ecapture replay x.rec` later
  ecapture list                                  the Go programs that run now
  ecapture doctor                                does it work on this host
  ecapture inspect ./server                      can it be captured, and how (needs no root)";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Capture the TLS plaintext of a Go program
    #[command(visible_alias = "tlsgo", before_help = GOTLS_EXAMPLES)]
    Gotls(Box<GotlsArgs>),
    /// Make any output of what `gotls --record` wrote (needs no root)
    #[command(before_help = REPLAY_EXAMPLES)]
    Replay(ReplayArgs),
    /// Show what is in a Go executable and where it can be probed
    #[command(before_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// Show the Go programs that run now, and whether they can be captured
    #[command(before_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// Show what this host offers, and which modes work on it
    Doctor(DoctorArgs),
    /// Write man pages or shell completions, which packages of ecapture contain
    #[command(subcommand, hide = true)]
    Generate(Generated),
    /// Hold programs that start; a capture executes itself with this
    #[command(hide = true)]
    ExecGate {
        /// For no longer than this
        milliseconds: u32,
    },
}

const GOTLS_EXAMPLES: &str = "\
Examples:
  ecapture gotls
  ecapture gotls --user www-data --exclude-comm 'node_*'
  ecapture gotls --pid 4242
  ecapture gotls -e /usr/bin/caddy --hex
  ecapture gotls -e /usr/bin/caddy -u 33 --tsize 200
  ecapture gotls -m keylog -k keys.log -e /usr/bin/caddy
  ecapture gotls -m pcap -i eth0 -w caddy.pcapng -e /usr/bin/caddy tcp port 443
  ecapture gotls -m pcap -w - -p 4242 | wireshark -k -i -
  ecapture gotls -e ./server --format json | jq -r 'select(.type==\"data\").data_base64' | base64 -d";

const REPLAY_EXAMPLES: &str = "\
Examples:
  ecapture replay server.rec                     as `gotls` would have shown it
  ecapture replay server.rec --format json
  ecapture replay server.rec -m plain -w server.pcapng
  ssh host ecapture gotls --record - -p 4242 | ecapture replay -";

const INSPECT_EXAMPLES: &str = "\
Examples:
  ecapture inspect /usr/bin/caddy
  ecapture inspect ./server --format json";

const LIST_EXAMPLES: &str = "\
Examples:
  ecapture list
  ecapture list --user www-data --exclude-comm 'node_*'
  ecapture list --format json | jq -r 'select(.capture).pid'";

/// `ecapture gotls`
#[derive(Debug, clap::Args)]
pub(crate) struct GotlsArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// Write the records of the capture to this file, `-` for stdout, for `ecapture replay`. Nothing else is
    /// written then, but what is asked for by --format, --hex, --raw, --har, --eventaddr, --pcapfile or --keylogfile
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,

    /// Interface for pcap mode, may be repeated; `any` for all that are up [default: any]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) ifname: Vec<String>,

    /// Cut packets to this many bytes in pcap mode [default: whole packets]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) snaplen: Option<u32>,

    /// In pcap mode, also the packets of other programs
    #[arg(long)]
    pub(crate) all_packets: bool,

    /// Which packets in pcap mode: an expression as for tcpdump, such as `tcp port 443`
    #[arg(value_name = "FILTER")]
    pub(crate) filter: Vec<String>,

    /// Capture only the first so many bytes of each call; 0 stands for all of them [default: 0]
    #[arg(short, long, value_name = "BYTES")]
    pub(crate) tsize: Option<u64>,

    /// Size of the buffer between kernel and ecapture in KiB, from 64 to 1048576, rounded up to a power
    /// of two
    #[arg(long, value_name = "KIB", default_value_t = 32 * 1024)]
    pub(crate) mapsize: u64,

    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) duration: Option<Duration>,

    /// Where many programs are captured, hold one that starts for no longer than this until it is attached
    /// to; 0 for not at all [default: 250]
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u32).range(..=60_000))]
    pub(crate) longest_hold: Option<u32>,

    /// Say on stderr what is being done, with all that the kernel's verifier says
    #[arg(short, long)]
    pub(crate) debug: bool,

    /// eCapture's, to be refused by what it is instead of being taken for a filter
    #[arg(short, long, value_name = "MODE", hide = true)]
    pub(crate) btf: Option<Option<String>>,

    /// Likewise
    #[arg(long, value_name = "ADDRESS", hide = true)]
    pub(crate) listen: Option<Option<String>>,

    /// Where to take what a program reads from: for tests
    #[arg(long, value_enum, default_value_t = ReadSite::Auto, hide = true)]
    pub(crate) read_site: ReadSite,

    /// How to attach uprobes: for tests
    #[arg(long, value_enum, default_value_t = Uprobes::Auto, hide = true)]
    pub(crate) uprobes: Uprobes,

    /// How to tell many executables apart: for tests
    #[arg(long, value_enum, default_value_t = Objects::Auto, hide = true)]
    pub(crate) objects: Objects,

    /// Without any, all Go programs with TLS are captured, also those that start later
    #[command(flatten)]
    pub(crate) selectors: Selectors,
}

impl Args {
    /// What was typed; otherwise, ends the program with what is wrong about it.
    pub(crate) fn of_command_line() -> Self {
        Self::try_parse().unwrap_or_else(|error| without_wrong_tip(error).exit())
    }
}

/// An option that is not there is none the more so behind `--`: it would be taken for a filter or a path.
fn without_wrong_tip(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::StyledStrs(mut tips)) = error.remove(ContextKind::Suggested) {
        tips.retain(|tip| !tip.to_string().contains("as a value, use"));
        if !tips.is_empty() {
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
        }
    }
    error
}

impl GotlsArgs {
    /// Whether an output that was asked for tells of goroutines: JSON lines do, and what a recording holds may
    /// be made into them.
    pub(crate) fn tell_goroutines(&self) -> bool {
        let json = self.output.format == Some(Format::Json) || self.output.eventaddr.is_some();
        json || self.record.is_some()
    }
}

/// What to make of records, of a capture or of a recording
#[derive(Debug, clap::Args)]
pub(crate) struct OutputArgs {
    /// What to show [default: text; in replay, what was recorded]
    #[arg(short, long, visible_alias = "mode", value_enum)]
    pub(crate) model: Option<Mode>,

    /// File for keys in keylog and pcap mode, `-` for stdout; appended to [default in keylog mode:
    /// ecapture_gotls_key.log]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) keylogfile: Option<PathBuf>,

    /// File for packets in pcap mode and plain mode, `-` for stdout [default: ecapture_gotls.pcapng, in plain
    /// mode ecapture_gotls_plain.pcapng]
    #[arg(short = 'w', long, value_name = "FILE")]
    pub(crate) pcapfile: Option<PathBuf>,

    /// Show payloads and bodies as a hex dump
    #[arg(long)]
    pub(crate) hex: bool,

    /// Show calls one by one as they are, also those that carry HTTP
    #[arg(long)]
    pub(crate) raw: bool,

    /// Indent JSON in bodies
    #[arg(long)]
    pub(crate) indent_json: bool,

    /// Which types of JSON lines, with commas between them [default: all]
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = line_type)]
    pub(crate) events: Vec<LineType>,

    /// Also write HTTP exchanges to this file as HAR 1.2; `-` for stdout, in place of text
    #[arg(long, value_name = "FILE")]
    pub(crate) har: Option<PathBuf>,

    /// Mask the values of these header fields, with commas between them; `default` stands for those
    /// that carry credentials: authorization, cookie, set-cookie, x-api-key and the like
    #[arg(long, value_name = "HEADER", value_delimiter = ',', value_parser = header)]
    pub(crate) redact: Vec<String>,

    /// Keep so many bytes of each HTTP body and message [default: 1048576]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub(crate) max_body: Option<u32>,

    /// Text for people or JSON lines for scripts [default: text]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,

    /// Send JSON lines there instead of showing them: a file, tcp://HOST:PORT, ws://… or wss://…; beside them,
    /// stdout has what --format or --hex ask for
    #[arg(long, value_name = "ADDRESS", value_parser = event_output::parse)]
    pub(crate) eventaddr: Option<EventAddress>,

    /// Begin a new file for --eventaddr when it has so many MB
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=65535))]
    pub(crate) eventroratesize: Option<u64>,

    /// Begin a new file for --eventaddr after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=65535))]
    pub(crate) eventroratetime: Option<u64>,

    /// File for what is said on stderr otherwise, with times; appended to
    #[arg(short, long, value_name = "FILE")]
    pub(crate) logaddr: Option<PathBuf>,
}

impl OutputArgs {
    /// When a file of events is full.
    pub(crate) fn event_limits(&self) -> Limits {
        Limits {
            bytes: self.eventroratesize.map(|megabytes| megabytes << 20),
            age: self.eventroratetime.map(Duration::from_secs),
        }
    }

    /// The types of JSON lines that are written. Plaintext is none of them if something is to be masked.
    pub(crate) fn line_types(&self) -> Vec<LineType> {
        if !self.events.is_empty() {
            return self.events.clone();
        }
        let masked = !self.redact.is_empty();
        let shown = |line: &LineType| *line != LineType::Data || !masked;
        LineType::ALL.into_iter().filter(shown).collect()
    }

    /// How standard output shows plaintext, if it does. Beside a recording (not `alone`) only what is asked for is
    /// written.
    pub(crate) fn shown(&self, mode: Mode, alone: bool) -> Option<Format> {
        let wanted = self.format.is_some() || self.hex || self.raw;
        let taken = self.har.as_deref() == Some(Path::new("-"));
        let shown = wanted || (alone && self.eventaddr.is_none() && !taken);
        (mode == Mode::Text && shown).then(|| self.format.unwrap_or(Format::Text))
    }

    /// The file for packets, `-` for stdout, if there is to be one.
    pub(crate) fn packet_file(&self, mode: Mode, alone: bool) -> Option<&Path> {
        let default = match mode {
            Mode::Pcap => pcap_mode::DEFAULT_FILE,
            Mode::Plain => plain_mode::DEFAULT_FILE,
            Mode::Text | Mode::Keylog => return None,
        };
        let default = alone.then_some(Path::new(default));
        self.pcapfile.as_deref().or(default)
    }

    /// The file for keys, `-` for stdout, if there is to be one.
    pub(crate) fn key_file(&self, mode: Mode, alone: bool) -> Option<&Path> {
        let default = match mode {
            Mode::Keylog => alone.then_some(Path::new(keylog_mode::DEFAULT_FILE)),
            Mode::Pcap => None,
            Mode::Text | Mode::Plain => return None,
        };
        self.keylogfile.as_deref().or(default)
    }

    /// Whether what is written in this format needs HTTP to be decoded.
    pub(crate) fn is_decoding(&self, format: Format) -> bool {
        match format {
            Format::Json => self.line_types().into_iter().any(LineType::is_decoded),
            Format::Text => !self.raw,
        }
    }

    /// Header fields to mask.
    pub(crate) fn redaction(&self) -> Redaction {
        let names = self.redact.iter().flat_map(|name| match name.as_str() {
            "default" => Redaction::DEFAULT.to_vec(),
            name => vec![name],
        });
        Redaction::new(names)
    }
}

/// `ecapture replay`
#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArgs {
    /// What `ecapture gotls --record` wrote; `-` for stdin
    #[arg(value_name = "RECORDING")]
    pub(crate) recording: PathBuf,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `ecapture inspect`
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// The executable, of any machine
    pub(crate) path: PathBuf,

    /// Text for people or JSON for scripts
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// `ecapture doctor`
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Only what this mode needs; the exit code is about it alone
    #[arg(short, long, alias = "model", value_enum)]
    pub(crate) mode: Option<Mode>,

    /// Text for people or JSON for scripts
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// `ecapture list`
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) selectors: Selectors,

    /// Go programs without crypto/tls too
    #[arg(short, long)]
    pub(crate) all: bool,

    /// A table for people or JSON lines for scripts
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// `ecapture generate`: made from this definition.
#[derive(Debug, Subcommand)]
pub(crate) enum Generated {
    /// Write a man page for each command
    Man {
        /// An existing directory for them
        directory: PathBuf,
    },
    /// Print completions for bash
    Bash,
    /// Print completions for zsh
    Zsh,
    /// Print completions for fish
    Fish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// The plaintext
    Text,
    /// The plaintext as packets, as a pcapng file that Wireshark reads without keys
    Plain,
    /// The keys of TLS sessions, as a key log for Wireshark and others
    #[value(alias = "key")]
    Keylog,
    /// The packets, as a pcapng file that Wireshark opens decrypted
    #[value(alias = "pcapng")]
    Pcap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For scripts
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReadSite {
    Auto,
    Copy,
    Ret,
}

impl From<ReadSite> for gobin::ReadSitePreference {
    fn from(site: ReadSite) -> Self {
        match site {
            ReadSite::Auto => Self::Auto,
            ReadSite::Copy => Self::Copy,
            ReadSite::Ret => Self::Returns,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Uprobes {
    Auto,
    Multi,
    Perf,
}

impl From<Uprobes> for Option<capture::UprobeKind> {
    fn from(uprobes: Uprobes) -> Self {
        match uprobes {
            Uprobes::Auto => None,
            Uprobes::Multi => Some(capture::UprobeKind::Multi),
            Uprobes::Perf => Some(capture::UprobeKind::Perf),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Objects {
    Auto,
    One,
    Each,
}

impl From<Objects> for Option<capture::Objects> {
    fn from(objects: Objects) -> Self {
        match objects {
            Objects::Auto => None,
            Objects::One => Some(capture::Objects::One),
            Objects::Each => Some(capture::Objects::OnePerExecutable),
        }
    }
}

fn line_type(name: &str) -> Result<LineType, String> {
    let found = LineType::ALL.into_iter().find(|line| line.name() == name);
    found.ok_or_else(|| {
        let names = LineType::ALL.map(LineType::name).join(", ");
        format!("there are {names}")
    })
}

/// The name of a header field (RFC 9110 section 5.1).
fn header(name: &str) -> Result<String, String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !name.is_empty() && name.bytes().all(token) {
        Ok(name.to_owned())
    } else {
        Err("give the name of a header field, such as authorization, or default".to_owned())
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().unwrap_or(f64::NAN);
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Err(_) if seconds > 0.0 => {
            Err("that is too long; without --duration, Ctrl-C ends the capture".to_owned())
        }
        _ => Err("give a number of seconds greater than 0, such as 10 or 0.5".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn ecaptures_spelling_is_understood() {
        for line in [
            "ecapture gotls --elfpath=/bin/x --hex --pid=3423",
            "ecapture tlsgo -m text -e /bin/x -t 100 --mapsize 5120 -u 1000 -d",
            "ecapture gotls --model text -p 1",
            "ecapture gotls -m keylog -k ecapture_gotls_key.log --elfpath=/bin/x --pid=3423",
            "ecapture gotls -m key --keylogfile=x -e /bin/x",
            "ecapture gotls -m pcap --pcapfile=save.pcapng -i eth0 --elfpath=/bin/x tcp port 443",
            "ecapture gotls -e /bin/x --eventaddr tls.log --eventroratesize=1 --eventroratetime=30",
            "ecapture gotls -e /bin/x --eventaddr=tcp://127.0.0.1:8090 -l /tmp/ecapture.log",
            "ecapture gotls -e /bin/x --eventaddr ws://127.0.0.1:8090/x --logaddr=/tmp/ecapture.log",
            "ecapture gotls -m pcapng -w save.pcapng -i lo -i eth0 -p 3 host 1.2.3.4 and not udp",
        ] {
            Args::try_parse_from(line.split(' ')).unwrap();
        }
    }

    #[test]
    fn options_that_are_not_there_are_not_offered_as_values() {
        for line in [
            "ecapture gotls --no-such-option",
            "ecapture gotls -z",
            "ecapture inspect -e ./server",
            "ecapture replay x.rec --record y.rec",
        ] {
            let error = Args::try_parse_from(line.split(' ')).unwrap_err();
            let error = without_wrong_tip(error).to_string();
            assert!(error.contains("unexpected argument"), "{error}");
            assert!(!error.contains("'-- "), "{error}");
        }
        let error = Args::try_parse_from(["ecapture", "gotls", "--tsiz", "1"]).unwrap_err();
        let error = without_wrong_tip(error).to_string();
        assert!(error.contains("'--tsize'"), "{error}");
    }

    #[test]
    fn durations_are_positive_numbers_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "ten", "", "NaN", "-inf", "1e-300"] {
            let error = seconds(wrong).unwrap_err();
            assert!(error.contains("greater than 0"), "{wrong}: {error}");
        }
        for long in ["1e30", "inf", "1e400"] {
            let error = seconds(long).unwrap_err();
            assert!(error.contains("too long"), "{long}: {error}");
        }
    }
}
