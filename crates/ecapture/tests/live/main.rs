//! Live tests: the real `ecapture` on this kernel, with real Go programs.
//!
//! Most need root and the test binaries, so they are ignored unless asked for; `cargo xtask test`
//! does all the set-up and asks for them. Without root they fail, they don't skip.
//!
//! [`exchange`] is the Go program whose log says what really went through crypto/tls, [`capture`]
//! is ecapture and what it showed; a test compares the two.
#![forbid(unsafe_code)]

mod accounting;
mod capture;
mod connections;
mod containers;
mod copies;
mod decryption;
mod doctor;
mod event_address;
mod exact;
mod exchange;
mod exec_gate;
mod faults;
mod fleet;
mod har;
mod harmless;
mod hostile;
mod http;
mod https;
mod incomplete;
mod inspect;
mod kernel;
mod keylog;
mod keylog_file;
mod libraries;
mod list;
mod many;
mod obfuscated;
mod output;
mod payload;
mod pcap;
mod plain;
mod privileges;
mod process;
mod recording;
mod third_party;
mod websocket;
mod wireshark;
mod wrong_input;

/// Virtual machines run a choice of these tests by their names.
#[test]
fn names_that_machines_use_are_names_of_tests() {
    assert_eq!(xtask::vm::names_of_no_test("live").unwrap(), [""; 0]);
}
