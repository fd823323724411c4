//! What a machine's log says about its tests.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

/// The test binaries that a machine runs.
pub(super) const BINARIES: [&str; 2] = ["live", "packets"];

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
    /// Reads a log. `outcome` is how the machine itself ended. Only a filter of the user's may leave
    /// nothing to run of a binary.
    pub(super) fn new(
        name: &str,
        log: &str,
        outcome: Result<()>,
        is_filtered: bool,
        took: Duration,
    ) -> Self {
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
        let (mut tally, mut ended) = (Tally::default(), Vec::new());
        for line in log.lines() {
            if let Some(result) = line.strip_prefix("test result: ") {
                tally.result = Totals::parse(result);
            } else if let Some(test) = line.strip_prefix("test ") {
                report.add_test(current, test, log, &mut tally);
            } else if let Some(announced) = line.strip_prefix("running ") {
                tally.announced = number_before(announced, "test");
            } else if let Some(fact) = line.strip_prefix("vm: ") {
                if let Some(binary) = fact.strip_prefix("begin ") {
                    current = Some(binary);
                    tally = Tally::default();
                } else if let Some(said) = fact.strip_prefix("doctor: ") {
                    report.kernel.push(said.to_owned());
                } else if let Some(end) = fact.strip_prefix("end ") {
                    report.check_end(end, &tally, is_filtered);
                    ended.extend(current.take());
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
        // Its lines may have been cut in two by others on the serial line.
        for binary in BINARIES.iter().filter(|name| done && !ended.contains(name)) {
            let what = format!("the log does not tell where {binary} begins and ends");
            report.troubles.push(what);
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

    fn add_test(&mut self, binary: Option<&str>, test: &str, log: &str, tally: &mut Tally) {
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
            tally.passed += 1;
        } else {
            counts.1 += 1;
            tally.failed += 1;
            self.failed.push((name.to_owned(), reason(log, name)));
        }
    }

    /// A test binary's end: its code, its own count of tests and the lines of its tests have to agree. The
    /// kernel and child processes write to the same serial line, so any of it may be unreadable.
    fn check_end(&mut self, end: &str, tally: &Tally, is_filtered: bool) {
        let (binary, code) = end.split_once(' ').unwrap_or((end, "unknown"));
        let mut trouble = |what: String| self.troubles.push(format!("{binary} {what}"));
        let Some(result) = tally.result else {
            trouble(format!("ended with code {code}, without a result"));
            return;
        };
        let Totals {
            passed,
            failed,
            ignored,
        } = result;
        if code != if failed == 0 { "0" } else { "101" } {
            trouble(format!("ended with code {code}: {result:?}"));
        }
        if tally.announced != Some(passed + failed + ignored) {
            let announced = tally.announced;
            trouble(format!("was to run {announced:?} tests: {result:?}"));
        }
        if tally.failed != failed || tally.passed > passed {
            trouble(format!("has other tests in the log: {result:?}, {tally:?}"));
        }
        if passed + failed == 0 && !is_filtered {
            trouble("ran no test".into());
        }
        // Of these the log has no line, or not in one piece.
        let unnamed = passed.saturating_sub(tally.passed);
        if unnamed > 0 {
            self.groups.entry(binary.to_owned()).or_default().0 += unnamed;
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

/// What the log says of the tests of a binary.
#[derive(Debug, Default)]
struct Tally {
    /// In `running 3 tests`.
    announced: Option<usize>,
    /// Lines of tests.
    passed: usize,
    failed: usize,
    result: Option<Totals>,
}

/// What libtest counted.
#[derive(Clone, Copy, Debug)]
struct Totals {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Totals {
    /// `FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1.02s`
    fn parse(result: &str) -> Option<Self> {
        let (_, counts) = result.split_once(". ")?;
        let count = |of: &str| {
            let mut counts = counts.split("; ");
            counts.find_map(|count| number_before(count, of))
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }
}

/// The number in `3 tests`.
fn number_before(text: &str, what: &str) -> Option<usize> {
    let (number, unit) = text.split_once(' ')?;
    unit.starts_with(what).then(|| number.parse().ok())?
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

running 3 tests
test exact::go_1_15::pie ... ok
test keylog::one ... FAILED
test keylog::two ... ok
failures:

---- keylog::one stdout ----
thread 'keylog::one' (7) panicked at crates/x.rs:3:5:
no such key

failures:
    keylog::one

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.02s

vm: end live 101
vm: begin packets

running 2 tests
test tunnel ... ok
test tunnel ... ignored

test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s

vm: end packets 0
vm: done 3.5 s
";

    fn report(log: &str, outcome: Result<()>) -> Report {
        Report::new("6.1", log, outcome, false, Duration::ZERO)
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

    /// The log of a machine where everything passed.
    fn all_ok() -> String {
        LOG.replace("FAILED. 2 passed; 1 failed", "ok. 3 passed; 0 failed")
            .replace("FAILED", "ok")
            .replace("101", "0")
    }

    #[test]
    fn a_machine_that_ends_early_has_not_passed() {
        let all_ok = all_ok();
        assert!(report(&all_ok, Ok(())).passed());
        let crashed = &all_ok[..all_ok.find("test keylog::two").unwrap()];
        let report_of_crash = report(crashed, Ok(()));
        assert_eq!(report_of_crash.troubles, ["the machine ended amid live"]);
        assert!(!report(&all_ok, Err(anyhow::anyhow!("killed"))).passed());
        assert!(!report(&all_ok.replace("packets 0", "packets 139"), Ok(())).passed());
        assert!(!report("vm: done", Ok(())).passed(), "nothing was tested");
    }

    #[test]
    fn a_failure_whose_line_is_cut_in_two_is_one() {
        let cut = LOG.replace(
            "test keylog::one ... FAILED",
            "test keylog::one ... [ 3.5] x\nFAILED",
        );
        let report = report(&cut, Ok(()));
        assert!(!report.passed());
        assert_eq!(report.troubles.len(), 1, "{:?}", report.troubles);
    }

    #[test]
    fn a_test_that_passed_is_counted_even_if_its_line_is_cut_in_two() {
        let cut = all_ok().replace("test tunnel ... ok", "test tunnel ... [ 3.5] x\nok");
        let report = report(&cut, Ok(()));
        assert!(report.passed(), "{:?}", report.troubles);
        assert_eq!(
            (report.cell("packets"), report.total()),
            ("1 ok".into(), "4 of 4".into())
        );
    }

    #[test]
    fn codes_and_counts_that_do_not_agree_are_trouble() {
        for (from, to) in [
            ("live 0", "live 101"),
            ("running 3 tests", "running 4 tests"),
            ("running 3 tests", "[ 3.5] x running 3 tests"),
            ("3 passed; 0 failed", "2 passed; 1 failed"),
            ("3 passed", "2 passed"),
            ("test result: ok. 3", "[ 3.5] x test result: ok. 3"),
            ("vm: begin packets", "[ 3.5] x vm: begin packets"),
            ("vm: end packets 0", "[ 3.5] x vm: end packets 0"),
        ] {
            let log = all_ok().replace(from, to);
            assert!(!report(&log, Ok(())).passed(), "{from} → {to}");
        }
        let failed_with_0 = LOG.replace("live 101", "live 0");
        assert_eq!(report(&failed_with_0, Ok(())).troubles.len(), 1);
    }

    #[test]
    fn a_binary_that_runs_nothing_is_trouble_unless_the_user_chose_the_tests() {
        let none = all_ok()
            .replace("running 2 tests", "running 0 tests")
            .replace("test tunnel ... ok\ntest tunnel ... ignored\n", "")
            .replace(
                "1 passed; 0 failed; 1 ignored",
                "0 passed; 0 failed; 0 ignored",
            );
        assert_eq!(report(&none, Ok(())).troubles, ["packets ran no test"]);
        assert!(Report::new("6.1", &none, Ok(()), true, Duration::ZERO).passed());
    }
}
