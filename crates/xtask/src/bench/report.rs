//! What the sections found, as Markdown with charts.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::chart::Chart;
use super::stats::Spread;

/// What one section found.
#[derive(Default)]
pub(super) struct Findings {
    /// Markdown.
    pub(super) text: String,
    /// File names and contents of the charts that the text refers to.
    pub(super) charts: Vec<(String, String)>,
    pub(super) checks: Vec<Check>,
}

impl Findings {
    /// Begins a part with a heading and what is measured.
    pub(super) fn part(&mut self, heading: &str, what: &str) {
        // Writing to a string does not fail; here and below.
        let _ = write!(self.text, "\n## {heading}\n\n{what}\n");
    }

    /// Adds a paragraph.
    pub(super) fn paragraph(&mut self, text: &str) {
        let _ = write!(self.text, "\n{text}\n");
    }

    /// Adds a table.
    pub(super) fn table(&mut self, table: &Table) {
        let _ = write!(self.text, "\n{}", table.markdown());
    }

    /// Adds a chart, in a file of its own.
    pub(super) fn chart(&mut self, file: &str, chart: &Chart) -> Result<()> {
        let _ = write!(self.text, "\n![{}]({file})\n", chart.title);
        self.charts.push((file.to_owned(), chart.svg()?));
        Ok(())
    }

    /// Compares a figure with what it may be at most.
    pub(super) fn at_most(&mut self, what: &str, figure: f64, limit: f64, unit: &str) {
        self.check(what, figure, "at most", limit, unit, figure <= limit);
    }

    /// Compares a figure with what it has to be at least.
    pub(super) fn at_least(&mut self, what: &str, figure: f64, limit: f64, unit: &str) {
        self.check(what, figure, "at least", limit, unit, figure >= limit);
    }

    fn check(
        &mut self,
        what: &str,
        figure: f64,
        relation: &str,
        limit: f64,
        unit: &str,
        passed: bool,
    ) {
        let number = |value: f64| match value.fract() {
            0.0 => format!("{value}{unit}"),
            _ => format!("{value:.3}{unit}"),
        };
        self.checks.push(Check {
            what: what.to_owned(),
            figure: number(figure),
            target: format!("{relation} {}", number(limit)),
            passed,
        });
    }
}

/// A target, and what came of it.
pub(super) struct Check {
    what: String,
    figure: String,
    target: String,
    passed: bool,
}

/// A Markdown table.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[&str]) -> Self {
        Self {
            rows: vec![columns.iter().map(|&column| column.to_owned()).collect()],
        }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn markdown(&self) -> String {
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if number == 0 {
                let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
            }
        }
        text
    }
}

/// `21.4 (20.9–23.0)`: the median and the extremes.
pub(super) fn with_extremes(spread: Spread, digits: usize) -> String {
    let Spread { median, min, max } = spread;
    format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
}

/// What of a whole run goes into the file.
pub(super) struct Report {
    /// Where and how it was measured, in Markdown.
    pub(super) circumstances: String,
    pub(super) findings: Vec<Findings>,
}

impl Report {
    /// Writes `results.md` and the charts into `dir`.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let write = |name: &str, contents: &str| {
            let path = dir.join(name);
            fs::write(&path, contents).with_context(|| path.display().to_string())
        };
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        for (name, svg) in self.findings.iter().flat_map(|found| &found.charts) {
            write(name, svg)?;
        }
        write("results.md", &self.markdown())
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "# Results\n\nWritten by `cargo xtask bench`; [README.md](README.md) tells what is measured and \
             what follows from it.\n\n{}",
            self.circumstances
        );
        if let Some(checks) = self.checks() {
            let _ = write!(text, "\n## Targets\n\n{}", checks.markdown());
        }
        for findings in &self.findings {
            text += &findings.text;
        }
        text
    }

    /// The targets as a table, if any was measured.
    pub(super) fn checks(&self) -> Option<Table> {
        let mut table = Table::new(&["target", "limit", "measured", ""]);
        for check in self.findings.iter().flat_map(|found| &found.checks) {
            let verdict = if check.passed { "PASS" } else { "FAIL" };
            table.row([
                check.what.clone(),
                check.target.clone(),
                check.figure.clone(),
                verdict.into(),
            ]);
        }
        (table.rows.len() > 1).then_some(table)
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.markdown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_pass_or_fail_with_their_figure() {
        let mut findings = Findings::default();
        findings.at_most("round trip", 1.2, 1.25, "×");
        findings.at_least("throughput", 0.8, 0.85, "×");
        findings.at_most("lost", 0.0, 0.0, "");
        let report = Report {
            circumstances: String::new(),
            findings: vec![findings],
        };
        let lines = report.checks().unwrap().to_string();
        assert!(
            lines.contains("| round trip | at most 1.250× | 1.200× | PASS |"),
            "{lines}"
        );
        assert!(
            lines.contains("| throughput | at least 0.850× | 0.800× | FAIL |"),
            "{lines}"
        );
        assert!(lines.contains("| lost | at most 0 | 0 | PASS |"), "{lines}");
    }
}
