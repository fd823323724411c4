//! Fuzz targets for every parser of untrusted bytes, in one program: building many takes long.
//!
//! A target is a module with two functions: `run` takes an input, and `seeds` says what the corpus begins
//! with. A target fails by a panic, by memory or time beyond the fuzzer's limits, or where it says so.
//!
//! `ECAPTURE_FUZZ_TARGET` names the one to run. Without it, the program lists all; with
//! `ECAPTURE_FUZZ_SEEDS`, it writes the target's seeds into that directory.
#![no_main]

mod bodies;
mod connection;
mod conversation;
mod exchanges;
mod executable;
mod hpack;
mod http1;
mod http2;
mod http2_joined;
mod outputs;
mod packet_filter;
mod patched_executable;
mod protobuf;
mod recording;
mod records;
mod websocket;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// A fuzz target.
struct Target {
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:ident)*) => {
        &[$(Target { name: stringify!($name), run: $name::run, seeds: $name::seeds }),*]
    };
}

const TARGETS: &[Target] = targets![
    bodies
    conversation
    exchanges
    executable
    hpack
    http1
    http2
    http2_joined
    packet_filter
    patched_executable
    protobuf
    recording
    records
    websocket
];

static TARGET: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        TARGET.get_or_init(chosen);
    },
    |bytes: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.run)(bytes);
        }
    }
);

/// The target that the environment names. Where something else is wanted, that is done and the
/// process ends.
fn chosen() -> &'static Target {
    let Ok(name) = std::env::var("ECAPTURE_FUZZ_TARGET") else {
        for target in TARGETS {
            println!("{}", target.name);
        }
        std::process::exit(0);
    };
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        eprintln!("ECAPTURE_FUZZ_TARGET: there is no target {name}");
        std::process::exit(2);
    };
    if let Some(directory) = std::env::var_os("ECAPTURE_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            let path = Path::new(&directory).join(format!("seed-{number}"));
            fs::write(path, seed).expect("a seed can be written");
        }
        std::process::exit(0);
    }
    target
}
