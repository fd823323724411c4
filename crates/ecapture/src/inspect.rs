//! `ecapture inspect`: prints what is in a Go executable and where it would be probed.

use std::fmt::Write as _;

use capture::Executable;
use gobin::{
    Analysis, Argument, EntryProbe, Error, FunctionReport, Linkage, Probes, ReadProbe,
    ReadSitePreference, Site, TlsPackage,
};
use serde_json::{Value, json};
use trace::escape_name;

use crate::args::{Format, InspectArgs};
use crate::failure::Failure;
use crate::output;
use crate::pipeline::Destination;

/// Runs the command. An executable that can't be captured from is reported all the same; the exit
/// code tells.
pub(crate) fn run(args: &InspectArgs) -> Result<(), Failure> {
    let executable = Executable::open(&args.path)?;
    let wrong_executable = |error| Failure::executable(executable.name(), error);
    let analysis = executable.read(gobin::analyze)?.map_err(wrong_executable)?;
    let path = executable.name().to_string_lossy();
    let report = match args.format {
        Format::Text => text(&path, &analysis),
        Format::Json => format!("{:#}\n", json(&path, &analysis)),
    };
    output::print(&report).or_else(|error| Failure::output(error, &Destination::Stdout))?;
    analysis
        .plans(ReadSitePreference::Auto)
        .map(drop)
        .map_err(wrong_executable)
}

fn text(path: &str, analysis: &Analysis) -> String {
    let mut out = String::new();
    // What comes from the file is escaped: this goes to a terminal.
    let mut line = |name: &str, value: &str| {
        // Writing to a string does not fail; here and below.
        let _ = writeln!(out, "{name:<13} {}", escape_name(value.as_bytes()));
    };
    let info = &analysis.build_info;
    line("executable", path);
    line("go version", analysis.go_version().as_str());
    line("architecture", &analysis.arch.to_string());
    line(
        "abi",
        &format!("{} (how functions get their arguments)", analysis.abi),
    );
    line(
        "build mode",
        &format!("{}, {}", analysis.build_mode, linkage(&analysis.linkage)),
    );
    line("stripped", yes_no(analysis.stripped));
    if let Some(package) = &info.path {
        line("package", package);
    }
    if let Some(module) = &info.module {
        let version = info.module_version.as_deref().unwrap_or_default();
        line("module", format!("{module} {version}").trim_end());
    }
    let table = &analysis.pclntab;
    line(
        "pclntab",
        &format!(
            "at {} (file offset {}), {}, found by {}, {} functions, text starts at {}",
            table.vaddr,
            table.offset,
            table.generation,
            table.located,
            table.functions,
            table.text_start
        ),
    );
    match analysis.plans(ReadSitePreference::Auto) {
        Ok(_) => line("capture", "possible"),
        Err(error) => line("capture", &format!("not possible: {error}")),
    }
    if analysis.goroutine_id.is_none() {
        line("goroutines", "their ids are not known");
    }
    for package in analysis.packages() {
        package_text(&mut out, package, analysis);
    }
    out
}

fn package_text(out: &mut String, package: &TlsPackage, analysis: &Analysis) {
    // One line among the others, unless there are several packages.
    if !analysis.copies.is_empty() {
        out.push('\n');
    }
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<13} {}", escape_name(value.as_bytes()));
    };
    if !analysis.copies.is_empty() {
        line("tls package", &tls_package(package));
    }
    line("connections", &connections(package));
    for report in &package.functions {
        let _ = writeln!(out, "\n{}", escape_name(report.symbol.as_bytes()));
        match &report.code {
            Err(error) => {
                let _ = writeln!(out, "  {}", escape_name(error.to_string().as_bytes()));
            }
            Ok(code) => {
                let _ = writeln!(
                    out,
                    "  code    {}-{}, file offset {}",
                    code.range.start, code.range.end, code.offset
                );
                probes_text(out, report, analysis);
            }
        }
    }
}

/// Its import path, and whether it can be captured.
fn tls_package(package: &TlsPackage) -> String {
    let path = &package.import_path;
    let what = if package.is_copy() {
        format!("{path}, a copy of crypto/tls")
    } else {
        path.clone()
    };
    match package.plan(ReadSitePreference::Auto) {
        Ok(_) => what,
        Err(Error::NoTls) => format!("{what}, without connections"),
        Err(error) => format!("{what}, can't be captured: {error}"),
    }
}

/// Which connections' addresses can be told.
fn connections(package: &TlsPackage) -> String {
    match &package.connections {
        Ok(plan) => {
            let wrappers: Vec<_> = plan.wrappers().map(|known| known.name.as_str()).collect();
            format!(
                "addresses are known of TCP and Unix sockets, also below {}",
                wrappers.join(", ")
            )
        }
        Err(error) => format!("only their plaintext is known: {error}"),
    }
}

fn probes_text(out: &mut String, report: &FunctionReport, analysis: &Analysis) {
    let refusal = |out: &mut String, what: &str, error: &Error| {
        let _ = writeln!(
            out,
            "  {what:<7} {}",
            escape_name(error.to_string().as_bytes())
        );
    };
    match &report.probes {
        Probes::Entry(Ok(probe)) => entry_text(out, probe, analysis),
        Probes::Entry(Err(error)) => refusal(out, "no site", error),
        Probes::Read { copy, returns } => match (copy, returns) {
            (Ok(probe), _) => read_text(out, probe, analysis),
            (Err(error), Ok(probe)) => {
                refusal(out, "no copy", error);
                read_text(out, probe, analysis);
            }
            (Err(copy), Err(returns)) => {
                refusal(out, "no copy", copy);
                refusal(out, "no site", returns);
            }
        },
    }
}

fn entry_text(out: &mut String, probe: &EntryProbe, analysis: &Analysis) {
    site_text(out, &probe.site);
    arguments_text(out, &probe.arguments, analysis);
}

fn read_text(out: &mut String, probe: &ReadProbe, analysis: &Analysis) {
    for site in probe.sites() {
        site_text(out, site);
    }
    arguments_text(out, &read_arguments(probe), analysis);
}

fn site_text(out: &mut String, site: &Site) {
    let _ = writeln!(
        out,
        "  probe   {}, file offset {}: {}",
        site.vaddr, site.offset, site.kind
    );
}

fn arguments_text(out: &mut String, arguments: &[Argument], analysis: &Analysis) {
    let places: Vec<_> = arguments
        .iter()
        .map(|argument| {
            format!(
                "{} in {}",
                argument.name,
                argument.location.assembly(analysis.arch)
            )
        })
        .collect();
    let _ = writeln!(out, "  values  {}", places.join(", "));
}

/// What a probe in `Read` needs, as a list like the other functions'.
fn read_arguments(probe: &ReadProbe) -> Vec<Argument> {
    let argument = |name, location| Argument { name, location };
    match *probe {
        ReadProbe::Copy {
            receiver,
            source,
            length,
            ..
        } => vec![
            argument("c", receiver),
            argument("source", source),
            argument("length", length),
        ],
        ReadProbe::Returns {
            receiver,
            buffer,
            capacity,
            count,
            ..
        } => vec![
            argument("c", receiver),
            argument("b.ptr", buffer),
            argument("b.len", capacity),
            argument("n", count),
        ],
    }
}

fn linkage(linkage: &Linkage) -> String {
    match linkage {
        Linkage::Static => "statically linked".into(),
        Linkage::Dynamic(Some(interpreter)) => format!("dynamically linked, {interpreter}"),
        Linkage::Dynamic(None) => "dynamically linked".into(),
    }
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn json(path: &str, analysis: &Analysis) -> Value {
    let plan = analysis.plans(ReadSitePreference::Auto);
    let crypto_tls = &analysis.crypto_tls;
    let info = &analysis.build_info;
    let table = &analysis.pclntab;
    json!({
        "path": path,
        "go_version": analysis.go_version().as_str(),
        "architecture": analysis.arch.to_string(),
        "abi": analysis.abi.to_string(),
        "build_mode": analysis.build_mode.to_string(),
        "linkage": linkage(&analysis.linkage),
        "stripped": analysis.stripped,
        "package": info.path,
        "module": info.module,
        "module_version": info.module_version,
        "settings": info.settings.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "pclntab": {
            "address": table.vaddr.0,
            "file_offset": table.offset.0,
            "generation": table.generation.to_string(),
            "found_by": table.located.to_string(),
            "functions": table.functions,
            "text_start": table.text_start.0,
        },
        "copies": analysis.copies.iter().map(|copy| copy_json(copy, analysis)).collect::<Vec<_>>(),
        "capture": plan.is_ok(),
        "refusal": plan.err().map(|error| error.to_string()),
        "connections": connections_json(crypto_tls),
        "goroutine_ids": analysis.goroutine_id.is_some(),
        "functions": functions_json(crypto_tls, analysis),
    })
}

fn copy_json(copy: &TlsPackage, analysis: &Analysis) -> Value {
    let plan = copy.plan(ReadSitePreference::Auto);
    json!({
        "import_path": copy.import_path,
        "capture": plan.is_ok(),
        "refusal": plan.err().map(|error| error.to_string()),
        "connections": connections_json(copy),
        "functions": functions_json(copy, analysis),
    })
}

fn connections_json(package: &TlsPackage) -> Value {
    match &package.connections {
        Ok(plan) => json!({
            "wrappers": plan.wrappers().map(|known| &known.name).collect::<Vec<_>>(),
        }),
        Err(error) => json!({"refusal": error.to_string()}),
    }
}

fn functions_json(package: &TlsPackage, analysis: &Analysis) -> Vec<Value> {
    let reports = package.functions.iter();
    reports
        .map(|report| function_json(report, analysis))
        .collect()
}

fn function_json(report: &FunctionReport, analysis: &Analysis) -> Value {
    let code = match &report.code {
        Ok(code) => code,
        Err(error) => return json!({"name": report.symbol, "refusal": error.to_string()}),
    };
    let (sites, arguments, refusal) = match &report.probes {
        Probes::Entry(Ok(probe)) => (vec![probe.site], probe.arguments.clone(), None),
        Probes::Entry(Err(error)) => (vec![], vec![], Some(error)),
        Probes::Read {
            copy: Ok(probe), ..
        }
        | Probes::Read {
            returns: Ok(probe), ..
        } => (probe.sites().to_vec(), read_arguments(probe), None),
        Probes::Read {
            returns: Err(error),
            ..
        } => (vec![], vec![], Some(error)),
    };
    json!({
        "name": report.symbol,
        "address": code.range.start.0,
        "end": code.range.end.0,
        "file_offset": code.offset.0,
        "refusal": refusal.map(|error| error.to_string()),
        "sites": sites
            .iter()
            .map(|site| json!({
                "address": site.vaddr.0,
                "file_offset": site.offset.0,
                "reason": site.kind.to_string(),
            }))
            .collect::<Vec<_>>(),
        "values": arguments
            .iter()
            .map(|argument| {
                (argument.name.to_owned(), argument.location.assembly(analysis.arch).into())
            })
            .collect::<serde_json::Map<_, _>>(),
    })
}
