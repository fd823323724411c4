//! What is not shown is counted, and said where it is missing: calls cut by `--tsize`, and losses
//! when the buffer is full.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

use crate::accounting::Streams;
use crate::capture::{Capture, Line, Signal};
use crate::exchange::Program;
use crate::exec_gate::stop;

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
            let data = match line? {
                Line::Data(data) => data,
                Line::Lost(lost) => bail!("--tsize {limit}: nothing is lost by cutting: {lost:?}"),
                Line::Connection(_) | Line::Close(_) => continue,
            };
            let end = data.call_offset + data.length;
            let kept = data.call_length.min(limit);
            ensure!(end <= kept, "--tsize {limit}: {data:?}");
            if end == kept {
                assert_eq!(data.truncated, data.call_length - kept, "--tsize {limit}");
            } else {
                assert_eq!(data.truncated, 0, "--tsize {limit}");
            }
            streams.find(&data)?;
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

    let account = Streams::of(&log, SIZES).account(&captured)?;
    println!("{account}");
    assert!(account.lost > 0, "the buffer was large enough: no test");
    Ok(())
}

/// A record takes about as much of the buffer as its message. While nobody reads, 4 records of each of 100
/// rounds, with 100 bytes of payload, have to fit: there is room for 640 bytes each.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_buffer_holds_as_many_small_messages_as_fit() -> Result<()> {
    let program = Program::newest()?;
    let mut target = program.start("-hold -rounds 100 -sizes 100")?;
    let mut capture = Capture::of(&program.path(), "--mapsize 256")?;
    stop(&mut capture)?;
    target.go()?;
    let log = target.finish()?;
    capture.child().signal(Signal::CONT)?;
    capture
        .stop()?
        .connections()?
        .assert_equal(&log.connections());
    Ok(())
}

const SIZES: &[u64] = &[1000, 4096, 16384, 16385, 102_400, 1_048_576];

fn sizes(sizes: &[u64]) -> String {
    let sizes: Vec<_> = sizes.iter().map(u64::to_string).collect();
    sizes.join(",")
}
