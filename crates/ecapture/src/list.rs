//! `ecapture list`: the Go programs that run now, and whether they can be captured.

use std::collections::HashMap;
use std::fmt::Write as _;

use capture::{Executable, Identity, ProcessInfo};
use gobin::{Analysis, Error, ReadSitePreference};
use serde_json::{Value, json};
use trace::escape_name;

use crate::args::{Format, ListArgs};
use crate::container::Container;
use crate::failure::Failure;
use crate::output;
use crate::pipeline::Destination;
use crate::users::UserNames;

/// Runs the command. That nothing was found is no failure, but said.
pub(crate) fn run(args: &ListArgs) -> Result<(), Failure> {
    let (processes, hidden) = capture::running()?;
    let mut verdicts = Verdicts::default();
    let (mut asked_for, mut found) = (0, Vec::new());
    for process in &processes {
        let container = Container::of(process);
        if !args.selectors.matches(process, container.as_ref()) {
            continue;
        }
        asked_for += 1;
        if let Some(verdict) = verdicts.of(process) {
            found.push((process, container, verdict));
        }
    }
    found.retain(|(_, _, verdict)| args.all || verdict.has_tls);

    let users = UserNames::read();
    let report = match args.format {
        Format::Text => text(&found, &users),
        Format::Json => found
            .iter()
            .map(|found| format!("{}\n", json(found, &users)))
            .collect(),
    };
    output::print(&report).or_else(|error| Failure::output(error, &Destination::Stdout))?;
    if found.is_empty() {
        let what = if args.all {
            "Go programs"
        } else {
            "Go programs with crypto/tls"
        };
        let all = processes.len();
        let looked_at = if args.selectors.is_empty() {
            format!("{all} processes")
        } else {
            format!("{asked_for} processes that were asked for, of {all} that run,")
        };
        eprintln!("ecapture: none of the {looked_at} are {what}");
    }
    if hidden > 0 {
        eprintln!("ecapture: {hidden} more could not be looked at, which takes CAP_SYS_PTRACE");
    }
    Ok(())
}

type Found<'a> = (&'a ProcessInfo, Option<Container>, Verdict);

/// What an executable is.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    go_version: String,
    abi: String,
    build: String,
    has_tls: bool,
    /// Why it can't be captured.
    refusal: Option<String>,
}

impl Verdict {
    fn of(analysis: &Analysis) -> Self {
        let refusal = analysis.plan(ReadSitePreference::Auto).err();
        Self {
            go_version: analysis.go_version().as_str().into(),
            abi: analysis.abi.to_string(),
            build: analysis.build_mode.to_string(),
            has_tls: !matches!(refusal, Some(Error::NoTls { .. })),
            refusal: refusal.map(|error| error.to_string()),
        }
    }
}

/// What is known of executables: each is looked at once, however many processes run it.
#[derive(Debug, Default)]
struct Verdicts(HashMap<(Identity, i128), Option<Verdict>>);

impl Verdicts {
    /// `None` if it is no Go program, or is gone.
    fn of(&mut self, process: &ProcessInfo) -> Option<Verdict> {
        self.0
            .entry((process.identity, process.changed_ns))
            .or_insert_with(|| {
                let executable = Executable::of_process(&process.open().ok()?).ok()?;
                let analysis = gobin::analyze(&executable.map().ok()?);
                match analysis {
                    Ok(analysis) => Some(Verdict::of(&analysis)),
                    Err(error) => refused(&error),
                }
            })
            .clone()
    }
}

/// Something of Go that we can't make sense of is worth a line; another program is not.
pub(crate) fn refused(error: &Error) -> Option<Verdict> {
    let go_version = match error {
        Error::NoPclntab { go_version } | Error::GoTooOld { go_version } => go_version.to_string(),
        Error::Gccgo => "gccgo".into(),
        Error::TinyGo => "TinyGo".into(),
        Error::Packed { .. } | Error::NoGoVersion | Error::UnknownGoVersion { .. } => "?".into(),
        _ => return None,
    };
    Some(Verdict {
        go_version,
        abi: "?".into(),
        build: "?".into(),
        has_tls: true,
        refusal: Some(error.to_string()),
    })
}

const HEADINGS: [&str; 8] = [
    "PID",
    "USER",
    "COMM",
    "CONTAINER",
    "GO",
    "ABI",
    "BUILD",
    "CAPTURE",
];

fn text(found: &[Found<'_>], users: &UserNames) -> String {
    if found.is_empty() {
        return String::new();
    }
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(found.iter().map(|(process, container, verdict)| {
        let container = container.as_ref().map_or("-", Container::short_id);
        let capture = match &verdict.refusal {
            None => "yes".to_owned(),
            Some(reason) => format!("no: {reason}"),
        };
        [
            process.pid.to_string(),
            users.of(process.uid),
            String::from_utf8_lossy(&process.comm).into_owned(),
            container.to_owned(),
            verdict.go_version.clone(),
            verdict.abi.clone(),
            verdict.build.clone(),
            capture,
        ]
        // What processes and executables say of themselves goes to a terminal.
        .map(|cell| escape_name(cell.as_bytes()).to_string())
    }));
    let widths: [usize; HEADINGS.len()] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    });
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string does not fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn json((process, container, verdict): &Found<'_>, users: &UserNames) -> Value {
    json!({
        "pid": process.pid,
        "uid": process.uid,
        "user": users.of(process.uid),
        "comm": String::from_utf8_lossy(&process.comm),
        "executable": process.executable.to_string_lossy(),
        "cgroup": process.cgroup.to_string_lossy(),
        "container": container,
        "go_version": verdict.go_version,
        "abi": verdict.abi,
        "build_mode": verdict.build,
        "tls": verdict.has_tls,
        "capture": verdict.refusal.is_none(),
        "refusal": verdict.refusal,
    })
}
