//! The key log alone makes Wireshark's decoders read what went over the wire.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use xtask::matrix::GoRelease;

use crate::https::{Parties, requests};
use crate::keylog::{KeyCapture, KeyCaptured, KeyLog};
use crate::wireshark::{Recording, Seen, Tcpdump};

macro_rules! generations {
    ($($test:ident: $release:ident),* $(,)?) => {
        /// Every request over TLS 1.2 and 1.3, HTTP/1.1 and HTTP/2, with the keys from either side.
        mod every_request_is_decrypted {
            use super::*;
            $(
                #[test]
                #[ignore = "needs root and the test binaries: run `cargo xtask test`"]
                fn $test() -> Result<()> {
                    every_request_is_decrypted(GoRelease::$release)
                }
            )*
        }

        /// Three connections, of which two resume: Go's own key log has the first one's key only.
        mod resumed_sessions_are_decrypted {
            use super::*;
            $(
                #[test]
                #[ignore = "needs root and the test binaries: run `cargo xtask test`"]
                fn $test() -> Result<()> {
                    resumed_sessions_are_decrypted(GoRelease::$release)
                }
            )*
        }
    };
}

generations! {
    go_1_15: Go1_15,
    go_1_19: Go1_19,
    go_1_21: Go1_21,
    go_1_24: Go1_24,
    go_1_27: Go1_27,
}

fn every_request_is_decrypted(release: GoRelease) -> Result<()> {
    let parties = Parties::new(release)?;
    let mut servers = Vec::new();
    for tls in ["1.2", "1.3"] {
        for (proto, protocol) in [("h1", "HTTP/1.1"), ("h2", "HTTP/2.0")] {
            let flags = format!("-tls {tls} -proto {proto}");
            servers.push((parties.serve(&flags)?, flags, tls, protocol));
        }
    }
    let ports: Vec<_> = servers.iter().map(|(s, ..)| s.addr().port()).collect();
    let watch = Watch::start(&parties, &ports)?;

    let mut expected = BTreeSet::new();
    for (server, flags, tls, protocol) in servers {
        let addr = server.addr();
        let asked = parties.ask(addr, &format!("{flags} -requests 3"))?;
        let served = server.finish()?;
        assert_eq!(requests(&asked).count(), 3);
        assert!(
            requests(&asked).eq(requests(&served)),
            "{asked:?} {served:?}"
        );
        for logged in &asked {
            assert_eq!((&*logged.tls, &*logged.request.protocol), (tls, protocol));
        }
        expected.extend(requests(&asked).map(|request| (addr.port(), request.clone())));
    }
    let watched = watch.stop()?;

    assert_eq!(expected.len(), 12, "no request is like another");
    for side in [&watched.client, &watched.server] {
        let seen = watched.recording.http(&side.file)?;
        assert_eq!(seen.len(), 12);
        let seen: BTreeSet<_> = seen
            .into_iter()
            .map(|s| (s.server_port, s.request))
            .collect();
        assert_eq!(seen, expected, "{}", side.file.display());
    }
    // What this would be worth if the keys were not needed.
    assert_eq!(watched.recording.http(Path::new("/dev/null"))?, []);
    Ok(())
}

fn resumed_sessions_are_decrypted(release: GoRelease) -> Result<()> {
    let parties = Parties::new(release)?;
    let dir = tempfile::tempdir()?;
    let own = |side: &str| dir.path().join(side);
    let server = parties.serve(&format!("-tls 1.2 -keylog {}", own("server").display()))?;
    let addr = server.addr();
    let watch = Watch::start(&parties, &[addr.port()])?;
    let flags = "-tls 1.2 -resume -requests 3";
    let asked = parties.ask(
        addr,
        &format!("{flags} -keylog {}", own("client").display()),
    )?;
    let resumed: Vec<_> = asked.iter().map(|logged| logged.resumed).collect();
    assert_eq!(resumed, [false, true, true]);
    drop(server);
    let watched = watch.stop()?;

    let randoms = watched.recording.client_randoms()?;
    assert_eq!(randoms.len(), 3);
    for (side, name) in [(&watched.client, "client"), (&watched.server, "server")] {
        assert_eq!(
            side.log.count_by_label(),
            [("CLIENT_RANDOM".into(), 3)].into()
        );
        assert_eq!(side.log.client_randoms(), randoms);
        let own = KeyLog::read(&own(name))?;
        assert_eq!(own.count_by_label(), [("CLIENT_RANDOM".into(), 1)].into());
        assert!(own.set().is_subset(&side.log.set()));
        let lacking = dir.path().join("lacking");
        side.log.without(&own).write(&lacking)?;

        // Its two keys are good, not only the one that tshark might carry over to the rest.
        for (keys, expected) in [(&side.file, &asked[..]), (&lacking, &asked[1..])] {
            let seen = watched.recording.http(keys)?;
            let same = seen.iter().map(|s| &s.request).eq(requests(expected));
            assert!(same, "{name}: {seen:?}");
            assert_eq!(connections(&seen).len(), expected.len());
        }
    }
    Ok(())
}

fn connections(seen: &[Seen]) -> BTreeSet<u32> {
    seen.iter().map(|seen| seen.connection).collect()
}

/// Keys of both sides are being captured, and their packets recorded.
struct Watch {
    tcpdump: Tcpdump,
    client: KeyCapture,
    server: KeyCapture,
}

struct Watched {
    recording: Recording,
    client: KeyCaptured,
    server: KeyCaptured,
}

impl Watch {
    fn start(parties: &Parties, ports: &[u16]) -> Result<Self> {
        Ok(Self {
            tcpdump: Tcpdump::of_ports(ports)?,
            client: KeyCapture::of(&parties.client.path(), "")?,
            server: KeyCapture::of(&parties.server.path(), "")?,
        })
    }

    fn stop(self) -> Result<Watched> {
        Ok(Watched {
            recording: self.tcpdump.stop()?,
            client: self.client.stop()?,
            server: self.server.stop()?,
        })
    }
}
