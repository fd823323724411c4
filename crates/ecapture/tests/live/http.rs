//! What is decoded of HTTP, compared with what the program's client and server logged, exchange by
//! exchange.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use xtask::matrix::{GoRelease, Variant};
use xtask::process::{Child, Stream};
use xtask::standalone;

use crate::capture::{Capture, Signal, ecapture};
use crate::exchange::{LONG, Program};
use crate::har;
use crate::third_party::{Caddy, Etcd, Site};

/// An exchange as the program logged it.
#[derive(Debug, Deserialize)]
struct Logged {
    number: u64,
    method: String,
    path: String,
    status: u64,
    request_headers: BTreeMap<String, Vec<String>>,
    response_headers: BTreeMap<String, Vec<String>>,
    trailers: Option<BTreeMap<String, Option<Vec<String>>>>,
    request_sha256: String,
    response_sha256: String,
}

/// A copy of the test program, which nobody else runs.
fn http(release: GoRelease) -> Result<Program> {
    Program::copy_of(&standalone::Program::Http.binary(release, Variant::Default)?)
}

/// The exchanges that the program logged.
fn logged(child: Child) -> Result<Vec<Logged>> {
    let finished = child.finish(LONG)?.success()?;
    let lines = finished.stdout_text();
    let lines = lines.lines().filter(|line| line.contains(r#""exchange""#));
    lines
        .map(|line| serde_json::from_str(line).context(line.to_owned()))
        .collect()
}

/// Starts a capture that shows exchanges as JSON lines.
fn capture(target: &[&str], flags: &str) -> Result<Capture> {
    let mut command = ecapture();
    command
        .args(["gotls", "--format", "json", "--mapsize", "65536"])
        .args(target);
    Capture::spawn(command.args(flags.split_whitespace()))
}

/// Ends a capture: its lines.
fn lines(mut capture: Capture) -> Result<Vec<Value>> {
    capture.child().signal(Signal::INT)?;
    lines_to_the_end(capture)
}

/// Waits for the end of a capture: its lines.
fn lines_to_the_end(capture: Capture) -> Result<Vec<Value>> {
    let finished = capture.end()?.success()?;
    let text = finished.stdout_text();
    text.lines()
        .map(|line| serde_json::from_str(line).context(line.to_owned()))
        .collect()
}

/// Of these, the exchanges.
fn exchanges(lines: &[Value]) -> Vec<&Value> {
    lines.iter().filter(|line| line["type"] == "http").collect()
}

/// Header fields that Go takes out of what a handler or a caller gets, some releases more than others.
const TAKEN_OUT: [&str; 4] = ["host", "transfer-encoding", "trailer", "connection"];

/// The name and value of all header fields, in order of names, save [`TAKEN_OUT`].
fn headers(message: &Value) -> Vec<(String, Option<String>)> {
    let fields = message["headers"].as_array().into_iter().flatten();
    let mut headers: Vec<_> = fields
        .map(|field| {
            let name = field[0].as_str().unwrap_or_default().to_lowercase();
            (name, field[1].as_str().map(str::to_owned))
        })
        .filter(|(name, _)| !TAKEN_OUT.contains(&name.as_str()))
        .collect();
    headers.sort();
    headers
}

fn expected_headers(logged: &BTreeMap<String, Vec<String>>) -> Vec<(String, Option<String>)> {
    let all = logged.iter().flat_map(|(name, values)| {
        let name = name.to_lowercase();
        values
            .iter()
            .map(move |value| (name.clone(), Some(value.clone())))
    });
    let mut headers: Vec<_> = all
        .filter(|(name, _)| !TAKEN_OUT.contains(&name.as_str()))
        .collect();
    headers.sort();
    headers
}

/// The checksum of a body as it is shown.
fn sha256(message: &Value) -> Result<String> {
    let body = &message["body"];
    let content = match (body["text"].as_str(), body["data_base64"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(encoded)) => STANDARD.decode(encoded)?,
        (None, None) => Vec::new(),
    };
    let digest = Sha256::digest(content);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Which exchange of the log a line shows.
fn number(exchange: &Value) -> Option<u64> {
    let url = exchange["request"]["url"].as_str()?;
    let (_, behind) = url.split_once("/number/")?;
    behind.split_once('?')?.0.parse().ok()
}

/// Compares an exchange with the log.
fn compare(found: &Value, logged: &Logged) -> Result<()> {
    let (request, response) = (&found["request"], &found["response"]);
    ensure!(
        found["complete"] == true && found["ending"] == "complete",
        "incomplete"
    );
    ensure!(request["method"] == logged.method.as_str(), "method");
    let url = request["url"].as_str().context("no URL")?;
    let (origin, path) = url.split_at(url.find("/number").context("no path")?);
    ensure!(origin.starts_with("https://127.0.0.1:"), "{origin}");
    ensure!(path == logged.path, "path");
    ensure!(response["status"] == logged.status, "status");
    let expected = expected_headers(&logged.request_headers);
    ensure!(headers(request) == expected, "request headers {expected:?}");
    let expected = expected_headers(&logged.response_headers);
    ensure!(
        headers(response) == expected,
        "response headers {expected:?}"
    );
    ensure!(sha256(request)? == logged.request_sha256, "request body");
    ensure!(sha256(response)? == logged.response_sha256, "response body");
    if logged.method != "HEAD" && logged.trailers.as_ref().is_some_and(|all| !all.is_empty()) {
        ensure!(response["trailers"][0][1] == "the end", "trailers");
    }
    ensure!(found["duration_ns"].as_u64().is_some(), "no duration");
    Ok(())
}

/// Both ends of every logged exchange are there, each once, and right.
fn compare_all(lines: &[Value], logged: &[Logged]) -> Result<()> {
    let found = exchanges(lines);
    for role in ["client", "server"] {
        for logged in logged {
            let same =
                |found: &&&Value| found["role"] == role && number(found) == Some(logged.number);
            let mut found = found.iter().filter(same);
            let first = found.next();
            let first = first.with_context(|| format!("{role}: {} is missing", logged.number))?;
            ensure!(found.next().is_none(), "{role}: {} twice", logged.number);
            compare(first, logged).with_context(|| format!("{role}: {first:#}"))?;
        }
    }
    ensure!(found.len() == 2 * logged.len(), "{} exchanges", found.len());
    let other = lines
        .iter()
        .find(|line| line["type"] == "undecoded" || line["type"] == "lost");
    ensure!(other.is_none(), "{other:?}");
    Ok(())
}

fn decoded_equals_logged(release: GoRelease, flags: &str) -> Result<()> {
    decoded_with("", release, flags)
}

/// The same with more flags for ecapture.
fn decoded_with(capture_flags: &str, release: GoRelease, flags: &str) -> Result<()> {
    let program = http(release)?;
    let path = program.path().to_str().context("not UTF-8")?.to_owned();
    let capture_flags = format!("--events http,undecoded,lost {capture_flags}");
    let capture = capture(&["-e", &path], &capture_flags)?;
    let logged = logged(Child::spawn(&mut program.command(flags))?)?;
    ensure!(!logged.is_empty(), "nothing logged");
    compare_all(&lines(capture)?, &logged).with_context(|| format!("Go {release}, {flags}"))
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn decoded_http_is_what_both_ends_logged() -> Result<()> {
    for release in [
        GoRelease::Go1_15,
        GoRelease::Go1_19,
        GoRelease::Go1_24,
        GoRelease::Go1_27,
    ] {
        for flags in ["-proto h1", "-proto h2", "-proto h1 -concurrent 5"] {
            decoded_equals_logged(release, flags)?;
        }
    }
    Ok(())
}

/// Bodies of 3 MB; every other one of unknown length, in chunks of all sizes.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn uploads_in_chunks_are_what_both_ends_logged() -> Result<()> {
    for release in [GoRelease::Go1_15, GoRelease::NEWEST] {
        for proto in ["h1", "h2"] {
            let flags = format!("-proto {proto} -requests 7 -upload 3000000");
            decoded_with("--max-body 4000000", release, &flags)?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn two_hundred_streams_of_one_connection_are_told_apart() -> Result<()> {
    decoded_equals_logged(GoRelease::NEWEST, "-proto h2 -concurrent 200 -requests 400")
}

/// Attached in the middle of an HTTP/2 connection, a capture may not know every field. What it shows
/// must be right.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_connection_joined_in_the_middle_shows_no_wrong_header() -> Result<()> {
    for release in [GoRelease::Go1_15, GoRelease::NEWEST] {
        let program = http(release)?;
        let mut child = Child::spawn(&mut program.command("-proto h2 -hold"))?;
        child.wait_for_prefix(Stream::Stdout, LONG, r#"{"event":"ready""#)?;
        let capture = capture(&["--pid", &child.pid().to_string()], "--events http")?;
        child.send_line("go")?;
        let logged = logged(child)?;
        // The process was all that it captured from.
        let lines = lines_to_the_end(capture)?;
        let (mut right, mut unknown) = (0, 0);
        for found in exchanges(&lines) {
            let Some(number) = number(found) else {
                unknown += 1;
                continue;
            };
            let logged = logged.iter().find(|logged| logged.number == number);
            let logged = logged.with_context(|| format!("never asked: {found:#}"))?;
            for (message, truth) in [
                (&found["request"], expected_headers(&logged.request_headers)),
                (
                    &found["response"],
                    expected_headers(&logged.response_headers),
                ),
            ] {
                for (name, value) in headers(message) {
                    let possible = |(truth_name, truth): &(String, Option<String>)| {
                        *truth_name == name && (value.is_none() || *truth == value)
                    };
                    ensure!(truth.iter().any(possible), "{name}: {value:?} in {found:#}");
                    right += usize::from(value.is_some());
                }
            }
            let status = &found["response"]["status"];
            ensure!(status.is_null() || *status == logged.status, "{found:#}");
            // Without its coding, a body can't be decoded.
            let coded = logged.response_headers.contains_key("Content-Encoding");
            let right_body = sha256(&found["response"])? == logged.response_sha256;
            ensure!(coded || right_body, "{found:#}");
        }
        ensure!(
            right > 20 && unknown == 0,
            "{right} fields, {unknown} unknown exchanges"
        );
    }
    Ok(())
}

/// Of heads that are cut, the beginning is shown, and why there is no more.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn heads_cut_by_tsize_are_shown_as_far_as_they_go() -> Result<()> {
    for (proto, limit, head) in [("h1", "100", " /number/"), ("h2", "20", "PRI * HTTP/2.0")] {
        let program = http(GoRelease::NEWEST)?;
        let mut command = ecapture();
        command.args(["gotls", "--tsize", limit, "-e"]);
        let mut capture = Capture::spawn(command.arg(program.path()))?;
        let flags = format!("-proto {proto}");
        let logged = logged(Child::spawn(&mut program.command(&flags))?)?;
        capture.child().signal(Signal::INT)?;
        let text = capture.end()?.success()?.stdout_text();

        let told = text.contains(" bytes were not captured (--tsize)\n");
        ensure!(told, "{proto}: {text}");
        for wrong in ["seen in the middle", "before the capture", "malformed"] {
            ensure!(!text.contains(wrong), "{proto}: {wrong}: {text}");
        }
        let exchanges = if proto == "h1" { logged.len() } else { 1 };
        let heads = text.matches(head).count();
        ensure!(heads >= 2 * exchanges, "{proto}: {heads} heads: {text}");
    }
    Ok(())
}

/// The smallest buffer, and more traffic than any consumer can carry away.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn nothing_is_called_malformed_because_of_losses() -> Result<()> {
    let program = http(GoRelease::NEWEST)?;
    let mut command = ecapture();
    command.args(["gotls", "--format", "json", "--mapsize", "64", "-e"]);
    let capture = Capture::spawn(command.arg(program.path()))?;
    let flags = "-proto h1 -concurrent 20 -requests 400 -upload 300000";
    logged(Child::spawn(&mut program.command(flags))?)?;
    let lines = lines(capture)?;
    ensure!(lines.iter().any(|line| line["type"] == "lost"), "no losses");
    let undecoded = lines.iter().map(|line| &line["reason"]);
    let incomplete = lines.iter().flat_map(|line| line["incomplete"].as_array());
    let mut reasons = undecoded
        .chain(incomplete.flatten())
        .filter_map(Value::as_str);
    let malformed = reasons.find(|reason| reason.contains("malformed"));
    ensure!(malformed.is_none(), "{malformed:?}");
    Ok(())
}

/// No secret of a redacted field is in any output, and what is not redacted still is.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn redacted_values_are_in_no_output() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for (proto, format) in [
        ("h1", "text"),
        ("h2", "text"),
        ("h1", "json"),
        ("h2", "json"),
    ] {
        let program = http(GoRelease::NEWEST)?;
        let path = directory.path().join(format!("{proto}-{format}.har"));
        let mut command = ecapture();
        command.args(["gotls", "--redact", "default", "--format", format, "-e"]);
        command.arg(program.path()).arg("--har").arg(&path);
        let mut capture = Capture::spawn(&mut command)?;
        let logged = logged(Child::spawn(
            &mut program.command(&format!("-proto {proto}")),
        )?)?;
        capture.child().signal(Signal::INT)?;
        let stdout = capture.end()?.success()?.stdout_text();
        let har = fs::read_to_string(&path)?;
        for text in [&stdout, &har] {
            ensure!(!text.contains("secret-"), "{proto} {format}: {text}");
            ensure!(text.contains("[redacted]") && text.contains("always the same"));
        }
        let har = har::valid(&path)?;
        let entries = har["log"]["entries"].as_array().context("no entries")?;
        ensure!(
            entries.len() == 2 * logged.len(),
            "{} entries",
            entries.len()
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_har_file_is_private_and_complete_even_if_nobody_reads_the_text() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir()?;
    let path = directory.path().join("x.har");
    let program = http(GoRelease::NEWEST)?;
    let mut command = ecapture();
    command
        .arg("gotls")
        .arg("-e")
        .arg(program.path())
        .arg("--har")
        .arg(&path);
    let (reader, writer) = std::io::pipe()?;
    let capture = Capture::attached(Child::spawn_to(&mut command, writer.into())?)?;
    drop(reader);
    capture.end()?.success()?;
    ensure!(
        fs::metadata(&path)?.permissions().mode() & 0o777 == 0o600,
        "mode"
    );
    let har = har::valid(&path)?;
    ensure!(har["log"]["version"] == "1.2", "{har}");
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn caddys_answers_to_curl() -> Result<()> {
    let site = Site::new()?;
    let hello = "Grüße from caddy: plain as day\n".repeat(100);
    fs::write(site.path("hello.txt"), &hello)?;
    let big: String = (0..620_000).map(|n| format!("{n:07}\n")).collect();
    fs::write(site.path("big.txt"), &big)?;
    let caddy = Caddy::serve(&site, "encode /hello.txt gzip")?;
    let pid = caddy.process.pid().to_string();
    let capture = capture(
        &["--pid", &pid],
        "--events http,undecoded,lost --max-body 6000000",
    )?;
    let curl = |path: &str, flags: &str| caddy.curl(&site, path, flags);
    for version in ["--http1.1", "--http2"] {
        ensure!(curl("hello.txt", version)? == hello);
        ensure!(curl("hello.txt", &format!("{version} --compressed"))? == hello);
        ensure!(curl("big.txt", version)? == big);
    }
    let lines = lines(capture)?;
    let found = exchanges(&lines);
    ensure!(found.len() == 6, "{} exchanges", found.len());
    for (index, (version, coding, expected)) in [
        ("HTTP/1.1", None, &hello),
        ("HTTP/1.1", Some("gzip"), &hello),
        ("HTTP/1.1", None, &big),
        ("HTTP/2", None, &hello),
        ("HTTP/2", Some("gzip"), &hello),
        ("HTTP/2", None, &big),
    ]
    .into_iter()
    .enumerate()
    {
        let (request, response) = (&found[index]["request"], &found[index]["response"]);
        ensure!(
            found[index]["complete"] == true,
            "{index}: {:#}",
            found[index]["incomplete"]
        );
        ensure!(request["version"] == version && request["method"] == "GET");
        ensure!(response["status"] == 200);
        let body = &response["body"];
        ensure!(
            body["coding"].as_str() == coding,
            "{index}: {}",
            body["coding"]
        );
        ensure!(body["text"] == expected.as_str(), "{index}: the body");
        let length = body["length"].as_u64().context("no length")?;
        let smaller = length < expected.len() as u64;
        ensure!(smaller == coding.is_some(), "{index}: {length} bytes");
    }
    Ok(())
}

/// Codings that Go itself does not have.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn brotli_and_zstd_from_caddy_are_undone() -> Result<()> {
    let site = Site::new()?;
    let hello = "Grüße from caddy: plain as day\n".repeat(100);
    fs::create_dir(site.path("br"))?;
    for name in ["br/hello.txt", "zstd.txt"] {
        fs::write(site.path(name), &hello)?;
    }
    // Made by the reference encoder, which caddy doesn't have.
    fs::write(site.path("br/hello.txt.br"), include_bytes!("hello.txt.br"))?;
    let directives = "encode /zstd.txt zstd\n\tfile_server /br/* {\n\t\tprecompressed br\n\t}";
    let caddy = Caddy::serve(&site, directives)?;
    let pid = caddy.process.pid().to_string();
    let capture = capture(&["--pid", &pid], "--events http,undecoded,lost")?;
    let asked = [
        ("br/hello.txt", "br", "--http1.1"),
        ("br/hello.txt", "br", "--http2"),
        ("zstd.txt", "zstd", "--http1.1"),
        ("zstd.txt", "zstd", "--http2"),
    ];
    for (path, _, version) in asked {
        ensure!(caddy.curl(&site, path, &format!("{version} --compressed"))? == hello);
    }
    let lines = lines(capture)?;
    let found = exchanges(&lines);
    ensure!(found.len() == asked.len(), "{} exchanges", found.len());
    for (exchange, (path, coding, version)) in found.into_iter().zip(asked) {
        let body = &exchange["response"]["body"];
        ensure!(
            exchange["complete"] == true && body["coding"] == coding,
            "{path} {version}: {exchange:#}"
        );
        ensure!(
            body["text"] == hello.as_str(),
            "{path} {version}: {exchange:#}"
        );
        ensure!(
            body["length"].as_u64().is_some_and(|length| length < 1000),
            "{exchange:#}"
        );
    }
    Ok(())
}

/// What lasts is announced, its messages are shown as they pass, and its end tells how it went.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_watch_is_shown_while_it_lasts() -> Result<()> {
    let site = Site::new()?;
    let etcd = Etcd::start(&site)?;
    let mut command = ecapture();
    command.args(["gotls", "--pid", &etcd.process.pid().to_string()]);
    let mut capture = Capture::spawn(&mut command)?;
    let watch = Child::spawn(&mut etcd.ctl(&site, &["watch", "live/key"])?)?;
    let mut exchange = String::new();
    capture.wait_for_line(|line| {
        let announced =
            line.contains("/etcdserverpb.Watch/Watch → ") && line.ends_with(", not finished");
        if announced && let Some(at) = line.find('#') {
            exchange = line[at..].split(' ').next().unwrap_or_default().to_owned();
        }
        announced
    })?;
    // Its creation is the first message: from then on it sees what is put.
    capture.wait_for_line(|line| line.contains(&format!(" {exchange} → message of ")))?;
    xtask::run::output(&mut etcd.ctl(&site, &["put", "live/key", "the value"])?)?;
    let mut messages = 0;
    capture.wait_for_line(|line| {
        messages += usize::from(line.contains(&format!(" {exchange} → message of ")));
        messages == 2
    })?;
    drop(watch); // It is killed, and so ends the connection.
    let end = format!(" {exchange} ← POST ");
    capture.wait_for_line(|line| line.contains(&end) && !line.ends_with(", not finished"))?;
    capture.child().signal(Signal::INT)?;
    let text = capture.end()?.success()?.stdout_text();
    let events: Vec<_> = text
        .split(&format!(" {exchange} → message of "))
        .skip(1)
        .collect();
    ensure!(events.len() == 2, "{} messages: {text}", events.len());
    ensure!(
        events[1].contains("live/key") && events[1].contains("the value"),
        "{text}"
    );
    let last = text
        .lines()
        .rfind(|line| line.contains(&end))
        .unwrap_or_default();
    ensure!(
        last.contains(", 3 messages"),
        "one of the client, two of the server: {last}"
    );
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn etcds_calls_are_grpc() -> Result<()> {
    let site = Site::new()?;
    let etcd = Etcd::start(&site)?;
    let etcdctl = |arguments: &[&str]| etcd.ctl(&site, arguments);

    let pid = etcd.process.pid().to_string();
    let capture = capture(
        &["--pid", &pid],
        "--events connection,http,message,undecoded,lost",
    )?;
    let watch = Child::spawn(&mut etcdctl(&["watch", "live/key"])?)?;
    // The watch is announced once it has lasted, and then it is in place.
    capture.wait_for_line(|line| line.contains(r#""message""#))?;
    for value in ["first value", "second value"] {
        xtask::run::output(&mut etcdctl(&["put", "live/key", value])?)?;
    }
    xtask::run::output(&mut etcdctl(&["get", "live/key"])?)?;
    watch.wait_for_line(Stream::Stdout, LONG, |line| line.contains("second value"))?;
    drop(watch);
    let lines = lines(capture)?;

    let calls = |method: &str| -> Vec<&Value> {
        let found = exchanges(&lines);
        found
            .into_iter()
            .filter(|call| call["grpc"]["method"] == method)
            .collect()
    };
    let message = |call: &Value, from: &str| -> Result<Vec<u8>> {
        let messages = call["messages"].as_array().context("no messages")?;
        let message = messages.iter().find(|message| message["from"] == from);
        let message = message.context("no such message")?;
        Ok(STANDARD.decode(message["data_base64"].as_str().context("no data")?)?)
    };
    let holds = |bytes: &[u8], text: &str| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    let puts = calls("Put");
    ensure!(puts.len() == 2, "{puts:#?}");
    for (put, value) in puts.iter().zip(["first value", "second value"]) {
        ensure!(put["grpc"]["service"] == "etcdserverpb.KV", "{put:#}");
        ensure!(
            put["grpc"]["status"] == 0 && put["complete"] == true,
            "{put:#}"
        );
        let request = message(put, "client")?;
        ensure!(
            holds(&request, "live/key") && holds(&request, value),
            "{put:#}"
        );
    }
    let gets = calls("Range");
    ensure!(
        gets.len() == 1 && holds(&message(gets[0], "server")?, "second value"),
        "{gets:#?}"
    );
    // The watch was seen while it lasted: its creation and both events, as they came.
    let seen = lines
        .iter()
        .filter(|line| line["type"] == "message" && line["from"] == "server");
    let seen: Vec<_> = seen
        .filter_map(|line| STANDARD.decode(line["data_base64"].as_str()?).ok())
        .collect();
    for value in ["first value", "second value"] {
        ensure!(
            seen.iter().any(|message| holds(message, value)),
            "{value}: {lines:#?}"
        );
    }
    ensure!(calls("Watch").len() == 1, "the watch ends too");
    // Of each connection, one end is where etcd listens: it connects to itself, too.
    let listening = ["127.0.0.1", "[::1]"].map(|ip| format!("{ip}:{}", etcd.port));
    let mut served = 0;
    for connection in lines.iter().filter(|line| line["type"] == "connection") {
        served += usize::from(connection["role"] == "server");
        let end = match connection["role"].as_str() {
            Some("server") => &connection["local"],
            _ => &connection["remote"],
        };
        ensure!(
            listening.iter().any(|address| end == address.as_str()),
            "{listening:?}: {connection:#}"
        );
    }
    ensure!(served >= 4, "{served} connections of etcdctl");
    let other = lines
        .iter()
        .find(|line| line["type"] == "undecoded" || line["type"] == "lost");
    ensure!(other.is_none(), "{other:?}");
    Ok(())
}
