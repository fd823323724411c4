//! What a run of a fuzz target led to, as libFuzzer tells it.

use std::process::ExitStatus;

/// How a run went.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    executions: u64,
    /// Per second, over all of the time.
    speed: u64,
    /// Edges of the control flow that were reached.
    coverage: u64,
    /// Inputs of the corpus that reach something of their own.
    corpus: String,
    peak_mb: u64,
    /// What went wrong, and the input that shows it.
    pub(super) finding: Option<String>,
}

impl Outcome {
    /// What the program said until it ended.
    pub(super) fn of(said: &str, status: ExitStatus) -> Self {
        Self::read(said, status.success(), &status.to_string())
    }

    fn read(said: &str, success: bool, status: &str) -> Self {
        let number = |name: &str| {
            let line = said.lines().rev().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line[name.len()..].trim().parse().ok());
            value.unwrap_or(0)
        };
        // `#1234 DONE cov: 56 ft: 78 corp: 9/10Kb lim: …`
        let word_behind = |name: &str| {
            let line = said.lines().rev().find(|line| line.contains(name));
            let mut words = line.into_iter().flat_map(str::split_whitespace);
            words.find(|word| *word == name)?;
            words.next()
        };
        Self {
            executions: number("stat::number_of_executed_units:"),
            speed: number("stat::average_exec_per_sec:"),
            coverage: word_behind("cov:")
                .and_then(|word| word.parse().ok())
                .unwrap_or(0),
            corpus: word_behind("corp:").unwrap_or("-").to_owned(),
            peak_mb: number("stat::peak_rss_mb:"),
            finding: (!success).then(|| finding(said, status)),
        }
    }

    pub(super) fn summary(&self) -> String {
        let verdict = match self.finding {
            None => "no finding",
            Some(_) => "FINDING",
        };
        format!("{} executions, {verdict}", self.executions)
    }
}

/// The lines that tell what happened.
fn finding(said: &str, status: &str) -> String {
    let lines: Vec<_> = said.lines().collect();
    let is_input = |line: &&str| line.contains("Test unit written to ");
    let is_error = |line: &&str| line.contains("panicked at ") || line.contains("ERROR: libFuzzer");
    let mut told = Vec::new();
    if let Some(at) = lines.iter().position(is_error) {
        told.extend(lines[at..].iter().take(3).copied());
    }
    told.extend(lines.iter().copied().filter(|line| is_input(line)));
    if told.is_empty() {
        told.push(status);
    }
    told.join("\n")
}

/// Prints a table.
pub(super) fn print(outcomes: &[(String, Outcome)]) {
    println!(
        "{:<20} {:>12} {:>8} {:>9} {:>14} {:>8}  findings",
        "target", "executions", "exec/s", "coverage", "corpus", "peak MB"
    );
    for (target, outcome) in outcomes {
        println!(
            "{target:<20} {:>12} {:>8} {:>9} {:>14} {:>8}  {}",
            outcome.executions,
            outcome.speed,
            outcome.coverage,
            outcome.corpus,
            outcome.peak_mb,
            u8::from(outcome.finding.is_some())
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_a_finding_is_counted() {
        let said = "INFO: Seed: 1\n\
            #4096\tpulse  cov: 90 ft: 120 corp: 10/1Kb lim: 8 exec/s: 2048 rss: 40Mb\n\
            #9000\tDONE   cov: 100 ft: 150 corp: 20/3Kb lim: 8 exec/s: 1800 rss: 41Mb\n\
            Done 9000 runs in 5 second(s)\n\
            stat::number_of_executed_units: 9000\n\
            stat::average_exec_per_sec:     1800\n\
            stat::peak_rss_mb:              41\n";
        let expected = Outcome {
            executions: 9000,
            speed: 1800,
            coverage: 100,
            corpus: "20/3Kb".to_owned(),
            peak_mb: 41,
            finding: None,
        };
        assert_eq!(Outcome::read(said, true, "exit status: 0"), expected);
    }

    #[test]
    fn a_finding_is_told_with_its_input() {
        let said = "thread '<unnamed>' (1) panicked at src/x.rs:1:2:\n\
            attempt to add with overflow\n\
            note: run with `RUST_BACKTRACE=1`\n\
            ==1== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='/a/'; Test unit written to /a/crash-0\n\
            stat::number_of_executed_units: 7\n";
        let outcome = Outcome::read(said, false, "exit status: 77");
        let finding = outcome.finding.unwrap();
        assert!(
            finding.contains("attempt to add with overflow"),
            "{finding}"
        );
        assert!(finding.ends_with("written to /a/crash-0"), "{finding}");
        let outcome = Outcome::read("", false, "exit status: 1");
        assert_eq!(outcome.finding.as_deref(), Some("exit status: 1"));
    }
}
