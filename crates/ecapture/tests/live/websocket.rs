//! WebSocket: what is decoded, and what tshark makes of the plaintext, compared with what both ends
//! logged, message by message and frame by frame.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use xtask::matrix::{GoRelease, Variant};
use xtask::process::{Child, Finished, Stream};
use xtask::standalone;

use crate::capture::{Capture, Signal, ecapture};
use crate::exchange::{LONG, Program};
use crate::har;
use crate::plain::{assert_clean, columns, fields};
use crate::third_party::{Caddy, Site};

/// A message, by what made it: `client`, `text`, content.
type Message = (String, String, Vec<u8>);

/// A line of the program's log.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Logged {
    Message {
        from: String,
        kind: String,
        content: String,
    },
    Frame(Frame),
    Held,
    Ready,
}

/// A frame as it was sent, before it was masked.
#[derive(Debug, Deserialize)]
struct Frame {
    from: String,
    fin: bool,
    opcode: u8,
    masked: bool,
    compressed: bool,
    payload: String,
}

fn program(release: GoRelease) -> Result<Program> {
    Program::copy_of(&standalone::Program::WebSocket.binary(release, Variant::Default)?)
}

fn log(finished: &Finished) -> Result<Vec<Logged>> {
    let text = finished.stdout_text();
    text.lines()
        .map(|line| serde_json::from_str(line).context(line.to_owned()))
        .collect()
}

/// What an end sent, in order.
fn sent(log: &[Logged], by: &str) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    for line in log {
        if let Logged::Message {
            from,
            kind,
            content,
        } = line
            && from == by
        {
            messages.push((from.clone(), kind.clone(), bytes(content)?));
        }
    }
    ensure!(messages.len() > 8, "{by} sent {} messages", messages.len());
    Ok(messages)
}

/// From hexadecimal digits.
fn bytes(digits: &str) -> Result<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect()
}

/// Of JSON messages, those of an end.
fn shown<'a>(messages: impl IntoIterator<Item = &'a Value>, by: &str) -> Result<Vec<Message>> {
    let mut found = Vec::new();
    for message in messages.into_iter().filter(|message| message["from"] == by) {
        let content = match (&message["text"], &message["data_base64"]) {
            (Value::String(text), _) => text.clone().into_bytes(),
            (_, Value::String(encoded)) => STANDARD.decode(encoded)?,
            _ => Vec::new(),
        };
        let kind = message["kind"].as_str().context("no kind")?;
        found.push((by.to_owned(), kind.to_owned(), content));
    }
    Ok(found)
}

/// Captures with these flags while the program talks to itself: what it logged and what was shown.
fn captured(release: GoRelease, flags: &str, args: &[&str]) -> Result<(Vec<Logged>, String)> {
    let program = program(release)?;
    let mut command = ecapture();
    command.args(["gotls", "-e"]).arg(program.path()).args(args);
    let mut capture = Capture::spawn(&mut command)?;
    let finished = Child::spawn(&mut program.command(flags))?
        .finish(LONG)?
        .success()?;
    capture.child().signal(Signal::INT)?;
    Ok((log(&finished)?, capture.end()?.success()?.stdout_text()))
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn messages_are_what_both_ends_logged() -> Result<()> {
    for (release, flags) in [
        (GoRelease::Go1_15, ""),
        (GoRelease::NEWEST, ""),
        (GoRelease::NEWEST, "-deflate"),
    ] {
        let args = [
            "--format",
            "json",
            "--events",
            "http,message,undecoded,lost",
        ];
        let (log, stdout) = captured(release, flags, &args)?;
        let lines: Vec<Value> = stdout
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        for role in ["client", "server"] {
            let exchange = lines.iter().find(|line| line["role"] == role);
            let exchange = exchange.with_context(|| format!("no {role}: {stdout}"))?;
            compare(exchange, &log).with_context(|| format!("{release} {flags}: {exchange:#}"))?;
            // They were shown as they passed, too.
            let passed =
                |line: &&Value| line["type"] == "message" && line["conn"] == exchange["conn"];
            for from in ["client", "server"] {
                let found = shown(lines.iter().filter(passed), from)?;
                ensure!(
                    found == sent(&log, from)?,
                    "{release} {flags} {role}: {found:?}"
                );
            }
        }
        let other = lines
            .iter()
            .find(|line| line["type"] == "undecoded" || line["type"] == "lost");
        ensure!(other.is_none(), "{other:?}");
    }
    Ok(())
}

/// Compares an exchange that became a WebSocket with the log.
fn compare(exchange: &Value, log: &[Logged]) -> Result<()> {
    ensure!(exchange["switched"] == "websocket");
    ensure!(exchange["response"]["status"] == 101);
    ensure!(exchange["complete"] == true, "incomplete");
    let url = exchange["request"]["url"].as_str().unwrap_or_default();
    ensure!(url.ends_with("/chat?room=1"), "{url}");
    let messages = exchange["messages"].as_array().context("no messages")?;
    for from in ["client", "server"] {
        let (found, expected) = (shown(messages, from)?, sent(log, from)?);
        ensure!(
            found == expected,
            "{from}: {found:?} instead of {expected:?}"
        );
    }
    Ok(())
}

/// The same as a person reads it: a line with its direction for each message, and what it says.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn messages_are_shown_as_they_pass() -> Result<()> {
    let program = program(GoRelease::NEWEST)?;
    let mut command = ecapture();
    command.args(["gotls", "-e"]).arg(program.path());
    let mut capture = Capture::spawn(&mut command)?;
    let mut child = Child::spawn(&mut program.command("-deflate -hold"))?;
    child.wait_for_line(Stream::Stdout, LONG, |line| line.contains(r#""held""#))?;
    // The connection is still open: its last ping is shown all the same.
    capture.wait_for_line(|line| line.ends_with(" ← pong with 0 bytes"))?;
    child.send_line("go")?;
    let log = log(&child.finish(LONG)?.success()?)?;
    capture.child().signal(Signal::INT)?;
    let text = capture.end()?.success()?.stdout_text();

    ensure!(
        text.contains("/chat?room=1 → 101 Switching Protocols, 0 bytes, not finished\n"),
        "{text}"
    );
    let length = sent(&log, "client")?.len() + sent(&log, "server")?.len();
    ensure!(
        text.matches(&format!(
            "/chat?room=1 → 101 Switching Protocols, {length} messages, "
        ))
        .count()
            == 2,
        "{length} messages: {text}"
    );
    for (from, arrows) in [("client", ["→", "←"]), ("server", ["←", "→"])] {
        for (_, kind, content) in sent(&log, from)? {
            let Ok(said) = String::from_utf8(content) else {
                continue;
            };
            let what = match kind.as_str() {
                "ping" | "pong" | "close" => format!("{kind} with "),
                _ => format!("{kind} message of "),
            };
            for arrow in arrows {
                let begin = format!("/1 {arrow} {what}");
                let shown = paragraphs(&text).any(|(head, body)| {
                    head.contains(&begin) && body.trim_end_matches('\n') == said
                });
                ensure!(shown || kind == "binary", "{begin}{said}: {text}");
            }
        }
    }
    Ok(())
}

/// Lines that begin with a time, with what follows up to the next one.
fn paragraphs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_head = |line: &str| line.contains(" exchange[");
    let mut starts: Vec<_> = text
        .match_indices('\n')
        .map(|(at, _)| at + 1)
        .filter(|&at| is_head(text[at..].lines().next().unwrap_or_default()))
        .collect();
    starts.insert(0, 0);
    starts.push(text.len());
    let pairs: Vec<_> = starts
        .windows(2)
        .map(|pair| &text[pair[0]..pair[1]])
        .collect();
    pairs.into_iter().filter_map(|part| part.split_once('\n'))
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn tshark_reads_the_frames_that_were_sent() -> Result<()> {
    for release in [GoRelease::Go1_15, GoRelease::NEWEST] {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("plain.pcapng");
        let path = file.to_str().context("not UTF-8")?;
        let (log, _) = captured(release, "", &["-m", "plain", "-w", path])?;
        assert_clean(&file)?;
        // Both ends, so each text that fits into a frame is there twice, unmasked.
        let texts = columns(&file, "websocket.opcode == 1", &["websocket.payload.text"])?;
        for (_, kind, content) in sent(&log, "server")? {
            let said = String::from_utf8_lossy(&content);
            let count = texts.iter().filter(|text| **text == said).count();
            ensure!(
                kind != "text" || said.is_empty() || count >= 2,
                "{said}: {texts:#?}"
            );
        }
        // Connection 0 is one end, connection 1 the other.
        for connection in 0..2 {
            for from in ["client", "server"] {
                let port = if from == "client" { "dst" } else { "src" };
                // The client made itself known by its first segment.
                let server = fields(
                    &file,
                    &format!(
                        "tcp.stream == {connection} && tcp.flags.syn == 1 && tcp.flags.ack == 0"
                    ),
                    &["tcp.dstport"],
                )?;
                let server = server.first().context("no connection")?;
                let filter = format!(
                    "websocket && tcp.stream == {connection} && tcp.{port}port == {server}"
                );
                let found = frames_seen(&file, &filter)?;
                let expected: Vec<_> = log
                    .iter()
                    .filter_map(|line| match line {
                        Logged::Frame(frame) if frame.from == from => Some(frame_line(frame)),
                        _ => None,
                    })
                    .collect();
                ensure!(
                    found == expected,
                    "{release} {connection} {from}: {found:#?} instead of {expected:#?}"
                );
            }
        }
        let close = fields(
            &file,
            "websocket.opcode == 8",
            &[
                "websocket.payload.close.status_code",
                "websocket.payload.close.reason",
            ],
        )?;
        ensure!(close == vec!["1000 that was it"; 4], "{close:?}");
    }
    Ok(())
}

/// Final or not, opcode, masked or not, compressed or not, length.
fn frame_line(frame: &Frame) -> String {
    let bit = u8::from;
    let Frame {
        fin,
        opcode,
        masked,
        compressed,
        payload,
        ..
    } = frame;
    let length = payload.len() / 2;
    format!(
        "{} {opcode} {} {} {length}",
        bit(*fin),
        bit(*masked),
        bit(*compressed)
    )
}

/// The same of tshark's frames. A packet may hold several.
fn frames_seen(file: &std::path::Path, filter: &str) -> Result<Vec<String>> {
    const NAMES: [&str; 7] = [
        "websocket.fin",
        "websocket.opcode",
        "websocket.mask",
        "websocket.pmc",
        "websocket.payload_length",
        "websocket.payload_length_ext_16",
        "websocket.payload_length_ext_64",
    ];
    let mut seen = Vec::new();
    for line in columns(file, filter, &NAMES)? {
        let columns: Vec<Vec<&str>> = line.split('\t').map(|cell| values(cell)).collect();
        let [fin, opcode, mask, compressed, length, medium, long] = &columns[..] else {
            anyhow::bail!("{line:?}");
        };
        let (mut medium, mut long) = (medium.iter(), long.iter());
        for n in 0..opcode.len() {
            // Where the length is 126 or 127, the real one is in another field.
            let length = match length[n] {
                "126" => medium.next(),
                "127" => long.next(),
                _ => Some(&length[n]),
            };
            let length = length.with_context(|| line.clone())?;
            let compressed = compressed.get(n).unwrap_or(&"0");
            seen.push(format!(
                "{} {} {} {compressed} {length}",
                fin[n], opcode[n], mask[n]
            ));
        }
    }
    Ok(seen)
}

fn values(cell: &str) -> Vec<&str> {
    cell.split(',').filter(|value| !value.is_empty()).collect()
}

/// What passes through a proxy is what the ends behind and before it say: caddy hands a WebSocket on.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_websocket_through_caddy() -> Result<()> {
    let program = program(GoRelease::NEWEST)?;
    let server = Child::spawn(&mut program.command("-role server"))?;
    let ready = server.wait_for_prefix(Stream::Stdout, LONG, r#"{"addr":"#)?;
    let ready: Value = serde_json::from_str(&ready)?;
    let behind = ready["addr"].as_str().context("no address")?;

    let site = Site::new()?;
    let caddy = Caddy::serve(&site, &format!("reverse_proxy {behind}"))?;
    let har = site.path("x.har");
    let mut command = ecapture();
    command.args([
        "gotls",
        "--format",
        "json",
        "--events",
        "http,undecoded,lost",
        "--pid",
    ]);
    command
        .arg(caddy.process.pid().to_string())
        .arg("--har")
        .arg(&har);
    let mut capture = Capture::spawn(&mut command)?;
    let client = format!("-role client -addr {}", caddy.address());
    let client = Child::spawn(&mut program.command(&client))?
        .finish(LONG)?
        .success()?;
    let server = server.finish(LONG)?.success()?;
    capture.wait_for_line(|line| line.contains(r#""http""#))?;
    capture.child().signal(Signal::INT)?;
    let stdout = capture.end()?.success()?.stdout_text();

    let log = [log(&client)?, log(&server)?]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
    let exchange: Value = serde_json::from_str(stdout.trim_end()).context(stdout)?;
    ensure!(exchange["role"] == "server", "{exchange:#}");
    compare(&exchange, &log).with_context(|| format!("{exchange:#}"))?;
    let har = har::valid(&har)?;
    let messages = har["log"]["entries"][0]["_webSocketMessages"].as_array();
    let count = sent(&log, "client")?.len() + sent(&log, "server")?.len();
    ensure!(
        messages.is_some_and(|messages| messages.len() == count),
        "{har:#}"
    );
    Ok(())
}
