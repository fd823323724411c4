//! The command line, as typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::selectors::Selectors;

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
  ecapture gotls -m keylog -k keys -e ./server   TLS keys
  ecapture list                                  the Go programs that run now
  ecapture doctor                                does it work on this host
  ecapture inspect ./server                      can it be captured, and how (needs no root)";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Capture the TLS plaintext of a Go program
    #[command(visible_alias = "tlsgo", before_help = GOTLS_EXAMPLES)]
    Gotls(GotlsArgs),
    /// Show what is in a Go executable and where it can be probed
    #[command(before_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// Show the Go programs that run now, and whether they can be captured
    #[command(before_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// Show what this host offers, and which modes work on it
    Doctor(DoctorArgs),
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
    /// What to show
    #[arg(short, long, visible_alias = "mode", value_enum, default_value_t = Mode::Text)]
    pub(crate) model: Mode,

    /// File for keys in keylog and pcap mode, `-` for stdout; appended to [default in keylog mode:
    /// ecapture_gotls_key.log]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) keylogfile: Option<PathBuf>,

    /// File for packets in pcap mode, `-` for stdout [default: ecapture_gotls.pcapng]
    #[arg(short = 'w', long, value_name = "FILE")]
    pub(crate) pcapfile: Option<PathBuf>,

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

    /// Show payloads as a hex dump
    #[arg(long)]
    pub(crate) hex: bool,

    /// Text for people or JSON lines for scripts [default: text]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,

    /// Capture only the first so many bytes of each call; 0 stands for all of them [default: 0]
    #[arg(short, long, value_name = "BYTES")]
    pub(crate) tsize: Option<u64>,

    /// Size of the buffer between kernel and ecapture in KiB, rounded up to a power of two
    #[arg(long, value_name = "KIB", default_value_t = 16 * 1024)]
    pub(crate) mapsize: u64,

    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) duration: Option<Duration>,

    /// Say on stderr what is being done, with all that the kernel's verifier says
    #[arg(short, long)]
    pub(crate) debug: bool,

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
    #[arg(short, long, value_enum)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// The plaintext
    Text,
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

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "give a number of seconds greater than 0, such as 10 or 0.5".to_owned())
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
            "ecapture gotls -m pcapng -w save.pcapng -i lo -i eth0 -p 3 host 1.2.3.4 and not udp",
        ] {
            Args::try_parse_from(line.split(' ')).unwrap();
        }
    }

    #[test]
    fn durations_are_positive_numbers_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "ten", "", "NaN", "inf", "1e400"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
