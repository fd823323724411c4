//! What is not shown is counted, and said where it is missing: calls cut by `--tsize`, and losses
//! when the buffer is full.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::capture::{Capture, Data, Direction, Line};
use crate::exchange::{Log, Program};
use crate::payload;

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn tsize_keeps_the_beginning_of_each_call() -> Result<()> {
    for limit in [1, 100, 16384, 20000] {
        let program = Program::newest()?;
        let capture = Capture::of(&program.path(), &format!("--tsize {limit}"))?;
        let log = program.run(&format!("-sizes {}", sizes(SIZES)))?;
        let captured = capture.stop()?;

        let streams = Streams::of(&log, SIZES);
        let mut calls: BTreeMap<_, Vec<u64>> = BTreeMap::new();
        for line in captured.lines() {
            let Line::Data(data) = line? else {
                anyhow::bail!("--tsize {limit}: nothing is lost by cutting")
            };
            let end = data.call_offset + data.length;
            let kept = data.call_length.min(limit);
            ensure!(end <= kept, "--tsize {limit}: {data:?}");
            if end == kept {
                assert_eq!(data.truncated, data.call_length - kept, "--tsize {limit}");
            } else {
                assert_eq!(data.truncated, 0, "--tsize {limit}");
            }
            let stream = streams.find(&data)?;
            stream.check(&data)?;
            if data.call_offset == 0 {
                let calls = calls.entry((data.conn, data.direction)).or_default();
                assert_eq!(data.offset, calls.iter().sum::<u64>(), "--tsize {limit}");
                calls.push(data.call_length);
            }
        }
        let mut calls: Vec<_> = calls.into_values().collect();
        let mut expected: Vec<_> = log.streams.iter().map(|s| s.calls.clone()).collect();
        calls.sort();
        expected.sort();
        assert_eq!(calls, expected, "--tsize {limit}");
    }
    Ok(())
}

/// The smallest buffer, and more traffic than any consumer can carry away.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn every_lost_byte_is_counted_where_it_is_missing() -> Result<()> {
    let program = Program::newest()?;
    let capture = Capture::of(&program.path(), "--mapsize 64")?;
    let log = program.run(&format!("-conns 8 -rounds 2 -sizes {}", sizes(SIZES)))?;
    let captured = capture.stop()?;

    let streams = Streams::of(&log, SIZES);
    let mut seen: BTreeMap<_, Seen> = BTreeMap::new();
    let mut unplaced = (0, 0);
    let (mut lost_records, mut lost_bytes) = (0, 0);
    for line in captured.lines() {
        match line? {
            Line::Connection(_) | Line::Close(_) => {}
            Line::Data(data) => {
                let seen = seen.entry((data.conn, data.direction)).or_default();
                assert_eq!(data.offset, seen.end, "a gap that nobody mentions");
                seen.end += data.length;
                seen.pieces.push(data);
            }
            Line::Lost(lost) => {
                assert_eq!(lost.reason, "buffer_full");
                lost_records += lost.records;
                lost_bytes += lost.bytes;
                match lost.place {
                    Some(place) => {
                        let seen = seen.entry((place.conn, place.direction)).or_default();
                        assert_eq!(place.offset, seen.end, "a loss in the wrong place");
                        seen.end += lost.bytes;
                    }
                    None => unplaced = (unplaced.0 + 1, unplaced.1 + lost.bytes),
                }
            }
        }
    }
    assert!(lost_bytes > 0, "the buffer was large enough: no test");
    assert!(unplaced.0 <= 1, "one closing line is enough");
    assert_eq!(
        (captured.summary.lost_events, captured.summary.lost_bytes),
        (lost_records, lost_bytes)
    );

    // Each stream: what was shown is right, and does not reach beyond its end.
    let mut missing = streams.total();
    for (key, seen) in &seen {
        missing = missing
            .checked_sub(seen.end)
            .context("more bytes than sent")?;
        // Only the streams that begin with what we saw can be this one.
        let Some(first) = seen.pieces.first() else {
            continue;
        };
        let stream = streams.find(first)?;
        ensure!(seen.end <= stream.bytes.len() as u64, "{key:?} is too long");
        for piece in &seen.pieces {
            stream.check(piece)?;
        }
    }
    // All of them: received + lost == sent.
    assert_eq!(missing, unplaced.1, "bytes that nobody accounts for");
    Ok(())
}

const SIZES: &[u64] = &[1000, 4096, 16384, 16385, 102_400, 1_048_576];

fn sizes(sizes: &[u64]) -> String {
    let sizes: Vec<_> = sizes.iter().map(u64::to_string).collect();
    sizes.join(",")
}

#[derive(Default)]
struct Seen {
    /// Where the next piece has to begin.
    end: u64,
    pieces: Vec<Data>,
}

/// What really passed.
struct Streams(Vec<Stream>);

struct Stream {
    pid: u32,
    direction: Direction,
    bytes: Vec<u8>,
}

impl Streams {
    fn of(log: &Log, sizes: &[u64]) -> Self {
        let stream = |log: &crate::exchange::StreamLog| {
            let direction = match log.direction.as_str() {
                "write" => Direction::Write,
                _ => Direction::Read,
            };
            let sender = match (log.role.as_str(), direction) {
                ("client", Direction::Write) | ("server", Direction::Read) => "client",
                _ => "server",
            };
            let length: u64 = log.calls.iter().sum();
            Stream {
                pid: log.pid,
                direction,
                bytes: payload::stream(sender, log.id, sizes, length),
            }
        };
        Self(log.streams.iter().map(stream).collect())
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|stream| stream.bytes.len() as u64).sum()
    }

    /// The stream that this is a piece of: payloads are random, so there is only one.
    fn find(&self, data: &Data) -> Result<&Stream> {
        self.0
            .iter()
            .find(|stream| stream.check(data).is_ok())
            .with_context(|| format!("these bytes were never sent at this place: {data:?}"))
    }
}

impl Stream {
    fn check(&self, data: &Data) -> Result<()> {
        let begin = usize::try_from(data.offset)?;
        let sent = self.bytes.get(begin..begin + data.payload.len());
        ensure!(
            (self.pid, self.direction) == (data.pid, data.direction) && sent == Some(&data.payload),
            "wrong bytes at offset {begin}"
        );
        Ok(())
    }
}
