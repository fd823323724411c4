//! `ecapture doctor`: what this host offers, and which modes work on it.

use std::fmt::Write as _;

use capture::{HookKind, Host, UprobeKind, UprobeSupport};
use serde_json::{Value, json};
use trace::escape_name;

use crate::args::{DoctorArgs, Format, Mode};
use crate::failure::Failure;
use crate::output;
use crate::pipeline::Destination;

/// Runs the command. It fails if one of the modes in question does not work.
pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let modes = match args.mode {
        Some(mode) => vec![mode],
        None => vec![Mode::Text, Mode::Keylog, Mode::Pcap],
    };
    let findings = Findings {
        host: Host::look(),
        modes: modes
            .into_iter()
            .map(|mode| (mode, Rehearsal::of(mode)))
            .collect(),
        gate: capture::rehearse_exec_gate().map_err(|error| error.to_string()),
    };
    let report = match args.format {
        Format::Text => findings.text(),
        Format::Json => format!("{:#}\n", findings.json()),
    };
    output::print(&report).or_else(|error| Failure::output(error, &Destination::Stdout))?;
    let failed: Vec<_> = findings
        .modes
        .iter()
        .filter(|(_, rehearsal)| rehearsal.reason.is_some())
        .map(|&(mode, _)| name(mode))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::Runtime(anyhow::anyhow!(
        "on this host {} won't work",
        failed.join(" and ")
    )))
}

fn name(mode: Mode) -> &'static str {
    match mode {
        Mode::Text => "text mode",
        Mode::Plain => "plain mode",
        Mode::Keylog => "keylog mode",
        Mode::Pcap => "pcap mode",
    }
}

/// How a mode's start went.
#[derive(Debug, Default)]
struct Rehearsal {
    /// Why the mode does not work.
    reason: Option<String>,
    uprobes: Option<UprobeSupport>,
    hooks: Option<HookKind>,
}

impl Rehearsal {
    fn of(mode: Mode) -> Self {
        let mut rehearsal = Self::default();
        let result = match mode {
            Mode::Text | Mode::Plain => rehearsal.probe(false),
            Mode::Keylog => rehearsal.probe(true),
            // Packets are of no use without keys.
            Mode::Pcap => rehearsal.probe(true).and_then(|()| {
                rehearsal.hooks = Some(capture::rehearse_packets()?);
                Ok(())
            }),
        };
        rehearsal.reason = result.err().map(|error| error.to_string());
        rehearsal
    }

    fn probe(&mut self, keys: bool) -> Result<(), capture::Error> {
        self.uprobes = Some(capture::rehearse_uprobes(keys)?);
        Ok(())
    }
}

#[derive(Debug)]
struct Findings {
    host: Host,
    modes: Vec<(Mode, Rehearsal)>,
    /// Why programs can't be held when they start.
    gate: Result<(), String>,
}

impl Findings {
    fn uprobes(&self) -> Option<UprobeSupport> {
        self.modes
            .iter()
            .find_map(|(_, rehearsal)| rehearsal.uprobes)
    }

    fn hooks(&self) -> Option<HookKind> {
        self.modes.iter().find_map(|(_, rehearsal)| rehearsal.hooks)
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(out, "{name:<13} {}", escape_name(value.as_bytes()));
        };
        let host = &self.host;
        line(
            "kernel",
            &format!("Linux {}, {}", host.kernel, std::env::consts::ARCH),
        );
        if let Some(uprobes) = self.uprobes() {
            line("uprobes", describe_kind(uprobes.kind));
            line(
                "long calls",
                &format!("copied up to {} MiB", uprobes.call_bytes_max >> 20),
            );
            line(
                "paged out",
                if uprobes.reads_paged_out {
                    "memory of a program is fetched"
                } else {
                    "memory of a program is reported as unreadable (Linux 6.0 can fetch it)"
                },
            );
        }
        line(
            "new programs",
            &match &self.gate {
                Ok(()) => "are held until they are attached to".into(),
                Err(reason) => format!("are attached to when they run already: {reason}"),
            },
        );
        if let Some(hooks) = self.hooks() {
            line("interfaces", describe_hooks(hooks));
        }
        if !host.initial_pid_namespace {
            line(
                "pid namespace",
                "not the initial one: processes of namespaces below it can't be captured",
            );
        }
        line(
            "cgroup v2",
            &match &host.cgroup {
                Some(path) => path.display().to_string(),
                None => "not mounted: pcap mode needs it".into(),
            },
        );
        line(
            "BTF",
            if host.btf {
                "there, not needed"
            } else {
                "not there, not needed"
            },
        );
        if let Some(mode) = &host.lockdown {
            let effect = if mode == "confidentiality" {
                ": eBPF programs may not read memory"
            } else {
                ", which does not matter"
            };
            line("lockdown", &format!("{mode}{effect}"));
        }
        let [have, lack] = &host.capabilities;
        let list = |names: &[&str]| match names {
            [] => "none".to_owned(),
            names => names.join(", "),
        };
        line(
            "capabilities",
            &format!("held: {}; not held: {}", list(have), list(lack)),
        );
        let [memory, files] = host.limits;
        let limit = |value: Option<u64>| value.map_or("no limit".into(), |n| n.to_string());
        line(
            "limits",
            &format!(
                "open files {}; locked memory {} bytes, which matters before Linux 5.11",
                limit(files),
                limit(memory)
            ),
        );
        out.push('\n');
        for (mode, rehearsal) in &self.modes {
            let verdict = match &rehearsal.reason {
                None => "works".to_owned(),
                Some(reason) => format!("does not work: {reason}"),
            };
            let _ = writeln!(
                out,
                "{:<13} {}",
                name(*mode),
                escape_name(verdict.as_bytes())
            );
        }
        out
    }

    fn json(&self) -> Value {
        let host = &self.host;
        let [have, lack] = &host.capabilities;
        let uprobes = self.uprobes();
        let modes: serde_json::Map<_, _> = self
            .modes
            .iter()
            .map(|(mode, rehearsal)| {
                let works = rehearsal.reason.is_none();
                let name = name(*mode).trim_end_matches(" mode").to_owned();
                (name, json!({"works": works, "reason": rehearsal.reason}))
            })
            .collect();
        json!({
            "kernel": host.kernel,
            "machine": std::env::consts::ARCH,
            "uprobe_multi": uprobes.map(|uprobes| uprobes.kind == UprobeKind::Multi),
            "reads_paged_out_memory": uprobes.map(|uprobes| uprobes.reads_paged_out),
            "call_bytes_max": uprobes.map(|uprobes| uprobes.call_bytes_max),
            "tcx": self.hooks().map(|hooks| hooks == HookKind::Tcx),
            "holds_new_programs": self.gate.is_ok(),
            "initial_pid_namespace": host.initial_pid_namespace,
            "cgroup2": host.cgroup,
            "btf": host.btf,
            "lockdown": host.lockdown,
            "unprivileged_bpf_disabled": host.unprivileged_bpf_disabled,
            "capabilities_held": have,
            "capabilities_missing": lack,
            "memlock_limit": host.limits[0],
            "open_files_limit": host.limits[1],
            "modes": modes,
        })
    }
}

fn describe_kind(kind: UprobeKind) -> &'static str {
    match kind {
        UprobeKind::Multi => "by multi-uprobe links (Linux 6.6)",
        UprobeKind::Perf => "by perf events, one for each site (before Linux 6.6)",
    }
}

fn describe_hooks(kind: HookKind) -> &'static str {
    match kind {
        HookKind::Tcx => "by tcx links (Linux 6.6)",
        HookKind::Clsact => "by clsact filters (before Linux 6.6)",
    }
}
