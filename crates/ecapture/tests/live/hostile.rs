//! A server that means harm to whoever looks on: what it sends leaves the terminal and our memory alone.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use xtask::matrix::{GoRelease, Variant};
use xtask::process::{Child, Stream};
use xtask::standalone;

use crate::capture::{Capture, Signal, ecapture};
use crate::exchange::{LONG, Program};
use crate::{har, kernel};

/// What ecapture may have of memory at most, in bytes, with this buffer: see docs/reliability.md.
const MEMORY_MAX: u64 = 256 << 20;
const MAPSIZE: [&str; 2] = ["--mapsize", "16384"];

fn program() -> Result<Program> {
    let binary = standalone::Program::Hostile.binary(GoRelease::NEWEST, Variant::Default)?;
    Program::copy_of(&binary)
}

/// Captures with these arguments, to a file, while the program does its worst: the most memory that took.
fn peak_memory(program: &Program, flags: &str, args: &[&str], output: &Path) -> Result<u64> {
    let mut command = ecapture();
    command.args(["gotls", "-e"]).arg(program.path());
    command.args(MAPSIZE).args(args);
    let child = Child::spawn_to(&mut command, File::create(output)?.into())?;
    let mut capture = Capture::attached(child)?;
    let pid = capture.pid();
    let target = Child::spawn(&mut program.command(flags))?;
    target.wait_for_line(Stream::Stdout, LONG, |line| line.contains(r#""done""#))?;
    // The connections are still open, and all that is kept of them is kept.
    capture.child().signal(Signal::INT)?;
    let mut peak = 0;
    while capture.child().try_status()?.is_none() {
        peak = kernel::peak_memory(pid).unwrap_or(peak);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    capture.end()?.success()?;
    target.finish(LONG)?.success()?;
    ensure!(peak > 0, "no figure");
    Ok(peak)
}

/// Characters that control a terminal, change the direction of writing, or are not seen.
fn is_harmful(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        '\u{61c}' | '\u{feff}' => true,
        '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => true,
        '\u{e0000}'..='\u{e007f}' => true,
        _ => c.is_control(),
    }
}

fn assert_harmless(output: &Path) -> Result<String> {
    let text = String::from_utf8(fs::read(output)?).context("not UTF-8")?;
    let found = text.char_indices().find(|&(_, c)| is_harmful(c));
    if let Some((at, c)) = found {
        let around: String = text[..at].chars().rev().take(200).collect();
        let around: String = around.chars().rev().collect();
        anyhow::bail!("{c:?} at byte {at}, behind {around:?}");
    }
    Ok(text)
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn no_scenario_gets_through_to_the_terminal_or_beyond_the_memory() -> Result<()> {
    let program = program()?;
    let dir = tempfile::tempdir()?;
    let output = dir.path().join("text");
    for args in [&[][..], &["--hex"], &["--raw"]] {
        let peak = peak_memory(&program, "", args, &output)?;
        println!("text {args:?}: {peak} bytes at most");
        ensure!(peak <= MEMORY_MAX, "{args:?}: {peak} bytes");
        let text = assert_harmless(&output).with_context(|| format!("{args:?}"))?;
        ensure!(text.contains("SNI hpack-bomb.test"), "nothing was captured");
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn json_lines_and_har_of_it_are_valid() -> Result<()> {
    let program = program()?;
    let dir = tempfile::tempdir()?;
    let (output, file) = (dir.path().join("json"), dir.path().join("har"));
    let har = file.to_str().context("not UTF-8")?;
    let args = [
        "--format",
        "json",
        "--events",
        "http,message,undecoded,lost",
        "--har",
        har,
    ];
    let peak = peak_memory(&program, "", &args, &output)?;
    println!("JSON lines and HAR: {peak} bytes at most");
    ensure!(peak <= MEMORY_MAX, "{peak} bytes");
    let text = fs::read_to_string(&output)?;
    let mut exchanges = 0;
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).context(line.to_owned())?;
        exchanges += usize::from(line["type"] == "http");
    }
    ensure!(exchanges > 28, "{exchanges} exchanges");
    let entries = har::valid(&file)?;
    let entries = entries["log"]["entries"].as_array().map_or(0, Vec::len);
    ensure!(entries == exchanges, "{entries} instead of {exchanges}");
    Ok(())
}

/// Everything eight times at the same time: limits are for all connections together.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn many_hostile_connections_share_one_limit() -> Result<()> {
    let program = program()?;
    let peak = peak_memory(&program, "-copies 8", &[], Path::new("/dev/null"))?;
    println!("eight times everything: {peak} bytes at most");
    ensure!(peak <= MEMORY_MAX, "{peak} bytes");
    Ok(())
}

/// What a terminal must not get is shown all the same, as escapes. What is no HTTP is not, except call by call.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn escape_sequences_are_shown_for_what_they_are() -> Result<()> {
    let program = program()?;
    let dir = tempfile::tempdir()?;
    let output = dir.path().join("text");
    let shown = r"\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[6n";
    let fields = ["\nX-Evil: ", "\nSet-Cookie: ", " → 200 ", "\nHTTP/1.1 200 "];
    for (scenario, args, fields) in [
        ("escapes", &[][..], &fields[..]),
        ("escapes-h2", &[], &["\nx-evil: "]),
        ("escapes-json", &[], &["{\""]),
        ("not-http", &["--raw"], &["\n"]),
    ] {
        peak_memory(&program, &format!("-only {scenario}"), args, &output)?;
        let text = assert_harmless(&output)?;
        for field in fields {
            let count = text.matches(&format!("{field}{shown}")).count();
            ensure!(count >= 2, "{scenario}, {field:?}: {count} times in {text}");
        }
        ensure!(text.contains(r"\u{202e}"), "{scenario}: {text}");
    }
    Ok(())
}
