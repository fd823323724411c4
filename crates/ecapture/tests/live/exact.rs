//! What is shown is what the program handed to crypto/tls and got from it, byte for byte and call
//! for call: for every Go release, every way of building, and every way of using a connection.

use std::os::unix::process::CommandExt;

use anyhow::Result;
use xtask::matrix::{GoRelease, Variant};

use crate::capture::Capture;
use crate::exchange::{Exchange, Log, NOBODY, Program};

/// A buffer in KiB that holds all that most of these tests send, so that nothing is lost however
/// busy the machine is. What happens when it is too small is tested elsewhere.
const ENOUGH: u64 = 64 * 1024;

/// All message sizes over both protocol versions, a few connections at once.
fn everything_is_shown(release: GoRelease, variant: Variant, flags: &str) -> Result<()> {
    let program = Program::new(release, variant)?;
    let flags = format!("--mapsize {ENOUGH} {flags}");
    let capture = Capture::of(&program.path(), &flags)?;
    let old = program.run("-tls 1.2 -conns 2")?;
    let new = program.run("-tls 1.3 -conns 2")?;
    let captured = capture.stop()?.connections()?;
    let expected = old.connections().and(new.connections());
    assert_eq!(expected.len(), 8, "two runs, two connections, two ends");
    captured.assert_equal(&expected);
    Ok(())
}

macro_rules! releases {
    ($($module:ident: $release:ident {
        $($(#[$attribute:meta])* $test:ident: $variant:ident),* $(,)?
    })*) => {$(
        mod $module {
            use super::*;

            $(
                $(#[$attribute])*
                #[test]
                #[ignore = "needs root and the test binaries: run `cargo xtask test`"]
                fn $test() -> Result<()> {
                    everything_is_shown(GoRelease::$release, Variant::$variant, "")
                }
            )*

            /// The probes that binaries without a recognisable copy get.
            #[test]
            #[ignore = "needs root and the test binaries: run `cargo xtask test`"]
            fn reads_from_returns() -> Result<()> {
                everything_is_shown(GoRelease::$release, Variant::Default, "--read-site ret")
            }
        }
    )*};
}

// Of other architectures than amd64 there are fewer variants.
releases! {
    go_1_15: Go1_15 {
        default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie,
        #[cfg(target_arch = "x86_64")] external: External,
        #[cfg(target_arch = "x86_64")] external_pie: ExternalPie,
        #[cfg(target_arch = "x86_64")] noopt: NoOpt,
    }
    go_1_19: Go1_19 { default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie }
    go_1_21: Go1_21 {
        default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie,
        #[cfg(target_arch = "x86_64")] noopt: NoOpt,
        #[cfg(target_arch = "x86_64")] race: Race,
    }
    go_1_22: Go1_22 { default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie }
    go_1_23: Go1_23 { default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie }
    go_1_24: Go1_24 {
        default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie,
        #[cfg(target_arch = "x86_64")] noopt: NoOpt,
        #[cfg(target_arch = "x86_64")] race: Race,
    }
    go_1_25: Go1_25 { default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie }
    go_1_26: Go1_26 { default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie }
    go_1_27: Go1_27 {
        default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie,
        #[cfg(target_arch = "x86_64")] external: External,
        #[cfg(target_arch = "x86_64")] external_pie: ExternalPie,
        #[cfg(target_arch = "x86_64")] noopt: NoOpt,
        #[cfg(target_arch = "x86_64")] race: Race,
    }
}

/// A binary from each generation of code that the compiler makes: the stack ABI, the register ABI
/// with and without a frame pointer, the current one.
const GENERATIONS: [GoRelease; 4] = [
    GoRelease::Go1_15,
    GoRelease::Go1_19,
    GoRelease::Go1_24,
    GoRelease::Go1_27,
];

/// Runs the program with these flags under a capture and compares.
fn exact(program: &Program, capture_flags: &str, flags: &str) -> Result<Log> {
    let capture_flags = if capture_flags.contains("--mapsize") {
        capture_flags.to_owned()
    } else {
        format!("--mapsize {ENOUGH} {capture_flags}")
    };
    let capture = Capture::into_file(&program.path(), &capture_flags)?;
    let log = program.run(flags)?;
    capture
        .stop()?
        .connections()?
        .assert_equal(&log.connections());
    Ok(log)
}

/// At a pace, and with a buffer, with which a machine busy with other tests keeps up. What the default buffer
/// holds is the benchmark's business.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn fifty_connections_at_once_lose_nothing() -> Result<()> {
    let program = Program::newest()?;
    let flags = "-conns 50 -scenario slow -chunk 1024";
    let log = exact(&program, "--mapsize 65536", flags)?;
    assert_eq!(log.connections().len(), 100);
    Ok(())
}

/// As fast as the program can. The buffer holds all of its 240 MB, however busy the machine is.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn fifty_connections_at_full_speed_lose_nothing() -> Result<()> {
    for (release, variant) in [
        (GoRelease::OLDEST, Variant::Default),
        (GoRelease::Go1_22, Variant::StrippedPie),
        (GoRelease::NEWEST, Variant::Default),
    ] {
        let program = Program::new(release, variant)?;
        let log = exact(&program, "--mapsize 262144", "-conns 50")?;
        assert_eq!(log.connections().len(), 100);
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn many_small_messages_lose_nothing() -> Result<()> {
    let log = exact(
        &Program::newest()?,
        "",
        "-conns 8 -rounds 2000 -sizes 1,100",
    )?;
    let calls: usize = log.streams.iter().map(|stream| stream.calls.len()).sum();
    assert!(calls >= 8 * 2000 * 2 * 4, "{calls}");
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_stack_that_moves_during_read_does_no_harm() -> Result<()> {
    for release in GENERATIONS {
        for site in ["copy", "ret"] {
            let program = Program::new(release, Variant::Default)?;
            let flags = "-stackbuf -conns 4 -sizes 1,100,4096,16385";
            exact(&program, &format!("--read-site {site}"), flags)?;
        }
    }
    Ok(())
}

/// Not only equal to the log, but to each other, piece for piece.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn both_ways_to_capture_reads_agree() -> Result<()> {
    for release in GENERATIONS {
        let program = Program::new(release, Variant::Default)?;
        let copy = Capture::of(
            &program.path(),
            &format!("--read-site copy --mapsize {ENOUGH}"),
        )?;
        let ret = Capture::of(
            &program.path(),
            &format!("--read-site ret --mapsize {ENOUGH}"),
        )?;
        let log = program.run("-conns 3 -chunk 20000")?;
        let copy = copy.stop()?.connections()?;
        copy.assert_equal(&log.connections());
        ret.stop()?.connections()?.assert_equal(&copy);
    }
    Ok(())
}

/// The last data and close_notify arrive together: Read returns data and io.EOF in one.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn data_that_comes_with_an_error_is_shown() -> Result<()> {
    for release in GENERATIONS {
        for site in ["copy", "ret"] {
            let program = Program::new(release, Variant::Default)?;
            // In TLS 1.3 Read can't tell beforehand that the next record is an alert.
            let flags = "-scenario eof -conns 7 -tls 1.2";
            let log = exact(&program, &format!("--read-site {site}"), flags)?;
            let with_error: u64 = log.streams.iter().map(|s| s.data_with_error).sum();
            assert!(with_error > 0, "Go {release}: no read was of this kind");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn empty_calls_show_nothing_and_disturb_nothing() -> Result<()> {
    for release in GENERATIONS {
        for site in ["copy", "ret"] {
            let program = Program::new(release, Variant::Default)?;
            let flags = "-scenario empty -conns 2";
            let log = exact(&program, &format!("--read-site {site}"), flags)?;
            assert!(log.streams.iter().all(|stream| stream.empty_calls > 0));
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn half_closed_connections_are_shown_to_their_end() -> Result<()> {
    for release in GENERATIONS {
        let program = Program::new(release, Variant::Default)?;
        exact(&program, "", "-scenario closewrite -conns 3")?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn connections_reset_midway_are_shown_up_to_there() -> Result<()> {
    for release in GENERATIONS {
        let program = Program::new(release, Variant::Default)?;
        // It sends as much as the kernel's socket buffers take.
        let flags = "-scenario abort -conns 6 -sizes 1,100,4096,16384,102400";
        let log = exact(&program, "--mapsize 131072", flags)?;
        assert!(log.streams.iter().any(|stream| stream.failed.is_some()));
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn messages_with_pauses_between_are_shown() -> Result<()> {
    let flags = "-scenario slow -conns 3 -sizes 1,100,4096,16385";
    exact(&Program::newest()?, "", flags)?;
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn writes_and_reads_at_the_same_time_keep_their_order() -> Result<()> {
    for release in GENERATIONS {
        let program = Program::new(release, Variant::Default)?;
        exact(&program, "", "-scenario duplex -conns 3 -rounds 2")?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_write_of_20_mib_is_shown_whole() -> Result<()> {
    let flags = "-sizes 20971520 -chunk 1048576";
    let log = exact(&Program::newest()?, "--mapsize 131072", flags)?;
    let longest = log.streams.iter().flat_map(|s| &s.calls).max();
    assert_eq!(longest, Some(&20_971_520));
    Ok(())
}

/// Where only one end is captured, only that end is shown.
#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_client_or_a_server_alone_is_shown_alone() -> Result<()> {
    for release in [GoRelease::OLDEST, GoRelease::NEWEST] {
        for target in ["client", "server"] {
            let program = Program::new(release, Variant::Default)?;
            let mut server = program.start("-role server -conns 2 -hold")?;
            let flags = format!("-role client -conns 2 -hold -addr {}", server.addr());
            let mut client = program.start(&flags)?;
            let pid = match target {
                "client" => client.pid(),
                _ => server.pid(),
            };
            let capture = Capture::of_pid(pid, "")?;
            server.go()?;
            client.go()?;
            let (client, server) = (client.finish()?, server.finish()?);
            let expected = if target == "client" { client } else { server };
            let captured = capture.finish()?;
            assert_eq!(captured.pids()?, [pid]);
            captured
                .connections()?
                .assert_equal(&expected.connections());
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_pid_keeps_other_processes_of_the_same_file_out() -> Result<()> {
    let program = Program::newest()?;
    let mut wanted = program.start("-hold -seed 2")?;
    let mut other = program.start("-hold -seed 3")?;
    let capture = Capture::of(&program.path(), &format!("--pid {}", wanted.pid()))?;
    other.go()?;
    wanted.go()?;
    other.finish()?;
    let log = wanted.finish()?;
    let captured = capture.finish()?;
    assert_eq!(captured.pids()?, [log.pid]);
    captured.connections()?.assert_equal(&log.connections());
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn a_uid_keeps_other_users_processes_out() -> Result<()> {
    let program = Program::newest()?;
    for (uid, of_nobody) in [(NOBODY, true), (0, false)] {
        let capture = Capture::of(&program.path(), &format!("--uid {uid}"))?;
        let roots = program.run("-seed 2")?;
        let nobodys = Exchange::spawn(program.command("-seed 3").uid(NOBODY))?.finish()?;
        let log = if of_nobody { nobodys } else { roots };
        let captured = capture.stop()?;
        assert_eq!(captured.pids()?, [log.pid]);
        captured.connections()?.assert_equal(&log.connections());
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the test binaries: run `cargo xtask test`"]
fn two_captures_of_one_program_both_show_it() -> Result<()> {
    let program = Program::newest()?;
    let first = Capture::of(&program.path(), "")?;
    let second = Capture::of(&program.path(), "")?;
    let log = program.run("-conns 2")?;
    for capture in [first, second] {
        capture
            .stop()?
            .connections()?
            .assert_equal(&log.connections());
    }
    Ok(())
}
