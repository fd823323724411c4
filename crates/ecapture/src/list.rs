//! `ecapture list`: the Go programs that run now, and whether they can be captured.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use capture::{Executable, Identity, Library, Process, ProcessInfo};
use gobin::{Analysis, CRYPTO_TLS, Error, ReadSitePreference};
use serde_json::{Value, json};
use trace::escape_name;

use crate::args::{Format, ListArgs};
use crate::container::Container;
use crate::failure::Failure;
use crate::output;
use crate::parts::analyze_library;
use crate::pipeline::Destination;
use crate::users::UserNames;

/// Runs the command. That nothing was found is no failure, but said; that a process does not exist is one.
pub(crate) fn run(args: &ListArgs) -> Result<(), Failure> {
    for &pid in &args.selectors.pids {
        // One that isn't there is not just no Go program.
        Process::open(pid)?;
    }
    let (processes, hidden) = capture::running()?;
    let hidden = hidden.into_iter();
    let hidden = hidden
        .filter(|&pid| args.selectors.may_mean_pid(pid))
        .count();
    let mut verdicts = Verdicts::default();
    let (mut asked_for, mut found) = (0, Vec::new());
    for process in &processes {
        let container = Container::of(process);
        let libraries: Vec<_> = Library::of(process.pid)
            .into_iter()
            .filter(|library| {
                let container = container.as_ref();
                args.selectors
                    .matches_with(process, container, Some(library))
            })
            .collect();
        let is_meant = args.selectors.matches(process, container.as_ref());
        asked_for += usize::from(is_meant || !libraries.is_empty());
        let executable = is_meant.then(|| verdicts.of(process)).flatten();
        let is_out_of_sight = capture::is_out_of_sight(process.pid);
        let mut list = |mut verdict: Verdict, library| {
            if is_out_of_sight {
                verdict.packages.clear();
                verdict.refusal = Some(capture::OUT_OF_SIGHT.to_owned());
            }
            if args.all || verdict.has_tls {
                let container = container.clone();
                found.push(Found {
                    process,
                    container,
                    verdict,
                    library,
                });
            }
        };
        executable
            .into_iter()
            .for_each(|verdict| list(verdict, None));
        for library in libraries {
            if let Some(verdict) = verdicts.of_library(&library) {
                list(verdict, Some(library.name));
            }
        }
    }

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
        let why = capture::why_processes_are_hidden();
        eprintln!("ecapture: processes that can't be looked at: {hidden}; {why}");
    }
    Ok(())
}

/// A process with Go code, in its executable or in a library that it has mapped.
struct Found<'a> {
    process: &'a ProcessInfo,
    container: Option<Container>,
    verdict: Verdict,
    library: Option<PathBuf>,
}

impl Found<'_> {
    /// Whether it can be captured, where, and if that is not just crypto/tls, which packages.
    fn capture(&self) -> String {
        let mut text = match &self.verdict.refusal {
            None => "yes".to_owned(),
            Some(reason) => format!("no: {reason}"),
        };
        if let Some(library) = &self.library {
            text += &format!(", in {}", library.display());
        }
        if self
            .verdict
            .packages
            .iter()
            .any(|package| package != CRYPTO_TLS)
        {
            text += &format!(": {}", self.verdict.packages.join(", "));
        }
        text
    }
}

/// What an executable is.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    go_version: String,
    abi: String,
    build: String,
    has_tls: bool,
    /// The import paths of the packages that can be captured.
    packages: Vec<String>,
    /// Why it can't be captured.
    refusal: Option<String>,
}

impl Verdict {
    fn of(analysis: &Analysis) -> Self {
        let (packages, refusal) = match analysis.plans(ReadSitePreference::Auto) {
            Ok(plans) => (
                plans.plans.into_iter().map(|plan| plan.package).collect(),
                None,
            ),
            Err(error) => (Vec::new(), Some(error)),
        };
        Self {
            go_version: analysis.go_version().as_str().into(),
            abi: analysis.abi.to_string(),
            build: analysis.build_mode.to_string(),
            has_tls: !matches!(refusal, Some(Error::NoTls)),
            packages,
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
        let file = (process.identity, process.changed_ns);
        if let Some(verdict) = self.0.get(&file) {
            return verdict.clone();
        }
        let executable = Executable::of_process(&process.open().ok()?).ok()?;
        // It may have begun to execute another one.
        if !executable.is(process.identity, process.changed_ns) {
            return None;
        }
        let verdict = verdict(executable.read(gobin::analyze).ok()?);
        self.0.entry(file).or_insert(verdict).clone()
    }

    fn of_library(&mut self, library: &Library) -> Option<Verdict> {
        let file = (library.identity, library.changed_ns);
        if let Some(verdict) = self.0.get(&file) {
            return verdict.clone();
        }
        let analysis = analyze_library(&library.open_file().ok()?).ok()?;
        self.0
            .entry(file)
            .or_insert(analysis.and_then(verdict))
            .clone()
    }
}

fn verdict(analysis: Result<Analysis, Error>) -> Option<Verdict> {
    match analysis {
        Ok(analysis) => Some(Verdict::of(&analysis)),
        Err(error) => refused(&error),
    }
}

/// Something of Go that we can't make sense of is worth a line; another program is not.
pub(crate) fn refused(error: &Error) -> Option<Verdict> {
    let go_version = match error {
        Error::NoPclntab { go_version } | Error::GoTooOld { go_version } => go_version.to_string(),
        Error::Gccgo => "gccgo".into(),
        Error::TinyGo => "TinyGo".into(),
        Error::Packed { .. }
        | Error::NoGoVersion
        | Error::UnknownGoVersion { .. }
        | Error::NamesNotFound => "?".into(),
        _ => return None,
    };
    Some(Verdict {
        go_version,
        abi: "?".into(),
        build: "?".into(),
        has_tls: true,
        packages: Vec::new(),
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
    rows.extend(found.iter().map(|found| {
        let (process, verdict) = (found.process, &found.verdict);
        let container = found.container.as_ref();
        let container = container.map_or("-", Container::short_id);
        [
            process.pid.to_string(),
            users.of(process.uid),
            String::from_utf8_lossy(&process.comm).into_owned(),
            container.to_owned(),
            verdict.go_version.clone(),
            verdict.abi.clone(),
            verdict.build.clone(),
            found.capture(),
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

fn json(found: &Found<'_>, users: &UserNames) -> Value {
    let (process, verdict) = (found.process, &found.verdict);
    json!({
        "pid": process.pid,
        "uid": process.uid,
        "user": users.of(process.uid),
        "comm": String::from_utf8_lossy(&process.comm),
        "executable": process.executable.to_string_lossy(),
        "cgroup": process.cgroup.to_string_lossy(),
        "container": found.container,
        "library": found.library.as_ref().map(|path| path.to_string_lossy()),
        "go_version": verdict.go_version,
        "abi": verdict.abi,
        "build_mode": verdict.build,
        "tls": verdict.has_tls,
        "packages": verdict.packages,
        "capture": verdict.refusal.is_none(),
        "refusal": verdict.refusal,
    })
}
