//! One measurement: the Go program exchanges messages with itself while it is captured, or not.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::mode::{Counts, Mode, PATIENCE};
use super::program::Programs;
use crate::process::{Child, Stream};

/// What the Go program exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    /// `pingpong`, `stream` or `upload`.
    pub(super) role: &'static str,
    pub(super) conns: u32,
    /// Bytes of a message.
    pub(super) size: u32,
    /// Round trips or messages of each connection.
    pub(super) count: u32,
    /// `text` or `binary`.
    pub(super) payload: &'static str,
}

impl Work {
    pub(super) const fn pingpong(size: u32, count: u32) -> Self {
        Self {
            role: "pingpong",
            conns: 1,
            size,
            count,
            payload: "text",
        }
    }

    pub(super) const fn stream(size: u32, count: u32) -> Self {
        Self {
            role: "stream",
            ..Self::pingpong(size, count)
        }
    }

    /// From the captured process to another one, which is not captured.
    pub(super) const fn upload(size: u32, count: u32) -> Self {
        Self {
            role: "upload",
            ..Self::pingpong(size, count)
        }
    }

    /// Starts the program, which waits.
    pub(super) fn spawn(&self, programs: &Programs) -> Result<Child> {
        let mut command = Command::new(&programs.load);
        command.args(["-role", self.role, "-payload", self.payload]);
        for (flag, number) in [
            ("-conns", self.conns),
            ("-size", self.size),
            ("-count", self.count),
        ] {
            command.args([flag, &number.to_string()]);
        }
        let child = Child::spawn(&mut command)?;
        child.wait_for_prefix(Stream::Stdout, PATIENCE, "{\"addr\"")?;
        Ok(child)
    }

    /// Has the program work; its result.
    pub(super) fn perform(&self, target: &mut Child) -> Result<Value> {
        result(target, self.role)
    }
}

/// Has a waiting program begin; the line with its result.
pub(super) fn result(target: &mut Child, event: &str) -> Result<Value> {
    target.send_line("go")?;
    let event = format!("\"event\":\"{event}\"");
    let line = target.wait_for_line(Stream::Stdout, PATIENCE, |line| line.contains(&event))?;
    Ok(serde_json::from_str(&line)?)
}

/// A field of a result.
pub(super) fn number(result: &Value, field: &str) -> Result<f64> {
    result[field]
        .as_f64()
        .with_context(|| format!("{field} is not in the result: {result}"))
}

/// What one measurement gave.
pub(super) struct Sample {
    /// For one round trip or message, in ns: time, and CPU time of the program with all that the kernel
    /// does on its behalf.
    pub(super) wall: f64,
    pub(super) cpu: f64,
    /// For all of them and for the warm-up, whose events are counted too, in ns: time, and CPU time of the
    /// thread that takes the records.
    pub(super) total: f64,
    pub(super) consumer: f64,
    pub(super) counts: Counts,
}

impl Sample {
    /// CPU time of the consumer for one record that it got, in ns.
    pub(super) fn consumer_per_event(&self) -> f64 {
        self.consumer / (self.counts.events as f64).max(1.0)
    }

    pub(super) fn events_per_second(&self) -> f64 {
        self.counts.events as f64 * 1e9 / self.total
    }

    pub(super) fn measure(programs: &Programs, work: Work, mode: Mode) -> Result<Self> {
        let mut target = work.spawn(programs)?;
        let capture = mode.attach(programs, target.pid(), &[])?;
        let before = capture.consumer_ns()?;
        let result = work.perform(&mut target)?;
        let consumer = (capture.settled_consumer_ns()? - before) as f64;
        target.finish(PATIENCE)?.success()?;
        let counts = capture.finish()?;
        let (ns, turns) = (number(&result, "ns")?, number(&result, "turns")?);
        if mode.has_plaintext() {
            accounted_for(&counts, number(&result, "bytes")? as u64, mode)?;
        }
        Ok(Self {
            wall: ns / turns,
            cpu: number(&result, "cpu_ns")? / turns,
            total: number(&result, "total_ns")?,
            consumer,
            counts,
        })
    }
}

/// Every byte that the program wrote or read was delivered, or counted as lost.
pub(super) fn accounted_for(counts: &Counts, bytes: u64, mode: Mode) -> Result<()> {
    ensure!(
        counts.bytes + counts.lost_bytes == bytes,
        "{}: {bytes} bytes were written and read, the summary tells of {counts:?}",
        mode.name()
    );
    Ok(())
}
