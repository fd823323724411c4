//! What a machine's log says about its tests.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

/// The outcome of the tests in one machine.
#[derive(Debug)]
pub(super) struct Report {
    name: String,
    /// Passed and failed tests of each group.
    groups: BTreeMap<String, (usize, usize)>,
    /// Names of failed tests, with the reason.
    failed: Vec<(String, String)>,
    /// What the kernel has, and what it lacks, as `ecapture doctor` says.
    kernel: Vec<String>,
    /// Why the log can't be trusted, or what the kernel itself complained of.
    troubles: Vec<String>,
    took: Duration,
}

impl Report {
    /// Reads a log. `outcome` is how the machine itself ended.
    pub(super) fn new(name: &str, log: &str, outcome: Result<()>, took: Duration) -> Self {
        let mut report = Self {
            name: name.trim().to_owned(),
            groups: BTreeMap::new(),
            failed: Vec::new(),
            kernel: Vec::new(),
            troubles: Vec::new(),
            took,
        };
        if let Err(error) = outcome {
            report.troubles.push(format!("the machine: {error:#}"));
        }
        let (mut current, mut done) = (None, false);
        for line in log.lines() {
            if let Some(test) = line.strip_prefix("test ") {
                report.add_test(current, test, log);
            } else if let Some(fact) = line.strip_prefix("vm: ") {
                if let Some(binary) = fact.strip_prefix("begin ") {
                    current = Some(binary);
                } else if let Some(said) = fact.strip_prefix("doctor: ") {
                    report.kernel.push(said.to_owned());
                } else if let Some(end) = fact.strip_prefix("end ") {
                    report.check_end(end);
                    current = None;
                } else if fact.starts_with("done") {
                    done = true;
                } else if fact.starts_with("kernel says: ") || fact.contains("can't") {
                    report.troubles.push(fact.to_owned());
                }
            }
        }
        if !done {
            let what = current.unwrap_or("start-up");
            report
                .troubles
                .push(format!("the machine ended amid {what}"));
        }
        if report.groups.is_empty() {
            report.troubles.push("no test was run".into());
        }
        report
    }

    /// Demands that the kernel was set up as intended: a line of `ecapture doctor` begins like this.
    pub(super) fn expect(&mut self, fact: &str) {
        let found = self.kernel.iter().any(|line| {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            words(line).starts_with(fact)
        });
        if !found {
            self.troubles
                .push(format!("the kernel should be one with: {fact}"));
        }
    }

    /// Whether everything was run and passed.
    pub(super) fn passed(&self) -> bool {
        self.failed.is_empty() && self.troubles.is_empty()
    }

    fn add_test(&mut self, binary: Option<&str>, test: &str, log: &str) {
        let Some((name, verdict)) = test.rsplit_once(" ... ") else {
            return;
        };
        let passed = match verdict {
            "ok" => true,
            "FAILED" => false,
            _ => return,
        };
        // The tests of `live` are in modules named for what they are about.
        let group = match (binary, name.split_once("::")) {
            (Some("live"), Some((module, _))) => module,
            (Some(binary), _) => binary,
            (None, _) => return,
        };
        let counts = self.groups.entry(group.to_owned()).or_default();
        if passed {
            counts.0 += 1;
        } else {
            counts.1 += 1;
            self.failed.push((name.to_owned(), reason(log, name)));
        }
    }

    /// A test binary that ends otherwise than by a verdict on its tests.
    fn check_end(&mut self, end: &str) {
        if let Some((binary, code)) = end.split_once(' ')
            && !["0", "101"].contains(&code)
        {
            self.troubles
                .push(format!("{binary} ended with code {code}"));
        }
    }

    /// Tells what failed and why.
    pub(super) fn print_failures(&self, log: &Path) {
        for (name, reason) in &self.failed {
            eprintln!("{}: {name} FAILED: {reason}", self.name);
        }
        for trouble in &self.troubles {
            eprintln!("{}: {trouble}", self.name);
        }
        if !self.passed() {
            eprintln!("{}: all of it is in {}", self.name, log.display());
        }
    }
}

/// The first line that says why: behind libtest's `---- NAME stdout ----`.
fn reason(log: &str, name: &str) -> String {
    let header = format!("---- {name} stdout ----");
    let said = log.split_once(&header).map(|(_, rest)| rest);
    let said = said.unwrap_or_default().trim_start();
    let said = said.split("\n----").next().unwrap_or_default();
    let mut lines = said.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().unwrap_or("it doesn't say why");
    if first.contains("panicked at") {
        return lines.next().unwrap_or(first).to_owned();
    }
    first.to_owned()
}

/// Prints a table in Markdown: a row for each machine, a column for each group of tests.
pub(super) fn print_table(reports: &[Report]) {
    let mut groups: Vec<&str> = Vec::new();
    for report in reports {
        for group in report.groups.keys() {
            if !groups.contains(&group.as_str()) {
                groups.push(group);
            }
        }
    }
    println!("| kernel | passed | took | {} |", groups.join(" | "));
    println!("|---|---|---|{}", "---|".repeat(groups.len()));
    for report in reports {
        let cells: Vec<_> = groups.iter().map(|group| report.cell(group)).collect();
        println!(
            "| {} | {} | {} s | {} |",
            report.name,
            report.total(),
            report.took.as_secs(),
            cells.join(" | ")
        );
    }
    for report in reports {
        println!("\n{}, in ecapture's words:", report.name);
        for line in report.kernel.iter().filter(|line| is_of_interest(line)) {
            println!("    {line}");
        }
        for trouble in &report.troubles {
            println!("\n{}: {trouble}", report.name);
        }
    }
}

/// Whether a line of `ecapture doctor` tells kernels apart.
fn is_of_interest(line: &str) -> bool {
    const TOPICS: [&str; 9] = [
        "uprobes",
        "long calls",
        "paged out",
        "interfaces",
        "BTF",
        "lockdown",
        "text",
        "keylog",
        "pcap",
    ];
    TOPICS.iter().any(|topic| line.starts_with(topic))
}

impl Report {
    /// `12 of 12`
    fn total(&self) -> String {
        let passed: usize = self.groups.values().map(|(passed, _)| passed).sum();
        format!("{passed} of {}", passed + self.failed.len())
    }

    fn cell(&self, group: &str) -> String {
        match self.groups.get(group) {
            None => "-".into(),
            Some((passed, 0)) => format!("{passed} ok"),
            Some((passed, failed)) => format!("{passed} ok, {failed} FAILED"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
vm: doctor: BTF           there, not needed
vm: doctor: limits        open files 9
vm: begin live
test exact::go_1_15::pie ... ok
test keylog::one ... FAILED
test keylog::two ... ok
failures:

---- keylog::one stdout ----
thread 'keylog::one' (7) panicked at crates/x.rs:3:5:
no such key

failures:
    keylog::one
vm: end live 101
vm: begin packets
test tunnel ... ok
test tunnel ... ignored
vm: end packets 0
vm: done 3.5 s
";

    fn report(log: &str, outcome: Result<()>) -> Report {
        Report::new("6.1", log, outcome, Duration::ZERO)
    }

    #[test]
    fn tests_are_counted_in_their_groups() {
        let mut report = report(LOG, Ok(()));
        assert_eq!(report.cell("exact"), "1 ok");
        assert_eq!(report.cell("keylog"), "1 ok, 1 FAILED");
        assert_eq!(report.cell("packets"), "1 ok");
        assert_eq!(report.cell("other"), "-");
        assert_eq!(report.total(), "3 of 4");
        assert_eq!(
            report.failed,
            [("keylog::one".into(), "no such key".into())]
        );
        assert_eq!(report.kernel.len(), 2);
        assert!(is_of_interest(&report.kernel[0]) && !is_of_interest(&report.kernel[1]));
        assert_eq!(report.troubles, [""; 0]);
        assert!(!report.passed());
        report.expect("BTF there");
        assert_eq!(report.troubles, [""; 0]);
        report.expect("BTF not there");
        assert_eq!(report.troubles.len(), 1);
    }

    #[test]
    fn a_machine_that_ends_early_has_not_passed() {
        let all_ok = LOG.replace("FAILED", "ok").replace("101", "0");
        assert!(report(&all_ok, Ok(())).passed());
        let crashed = &all_ok[..all_ok.find("test keylog::two").unwrap()];
        let report_of_crash = report(crashed, Ok(()));
        assert_eq!(report_of_crash.troubles, ["the machine ended amid live"]);
        assert!(!report(&all_ok, Err(anyhow::anyhow!("killed"))).passed());
        assert!(!report(&all_ok.replace("packets 0", "packets 139"), Ok(())).passed());
        assert!(!report("vm: done", Ok(())).passed(), "nothing was tested");
    }
}
