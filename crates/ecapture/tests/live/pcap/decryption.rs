//! tshark reads every request in the file: in one pass, with the keys that are in it.

use anyhow::Result;
use xtask::matrix::GoRelease;

use super::{PacketCapture, ensure_decrypted};
use crate::https::{Parties, requests};

macro_rules! generations {
    ($($test:ident: $release:ident),* $(,)?) => {$(
        #[test]
        #[ignore = "needs root and the test binaries: run `cargo xtask test`"]
        fn $test() -> Result<()> {
            every_request_is_decrypted(GoRelease::$release)
        }
    )*};
}

generations! {
    go_1_15: Go1_15,
    go_1_19: Go1_19,
    go_1_21: Go1_21,
    go_1_24: Go1_24,
    go_1_27: Go1_27,
}

/// TLS 1.2 and 1.3, HTTP/1.1 and HTTP/2, from either side, over IPv4 and IPv6 in turn.
fn every_request_is_decrypted(release: GoRelease) -> Result<()> {
    const REQUESTS: usize = 3;

    let parties = Parties::new(release)?;
    let client = PacketCapture::of(&parties.client.path(), "")?;
    let server = PacketCapture::of(&parties.server.path(), "")?;
    let mut logged = Vec::new();
    let kinds = [("1.2", "h1"), ("1.2", "h2"), ("1.3", "h2"), ("1.3", "h1")];
    for (index, (tls, proto)) in kinds.into_iter().enumerate() {
        // From one release to the next it is the other way round.
        let address = match (index + GoRelease::GENERATIONS.partition_point(|&r| r < release)) % 2 {
            0 => "127.0.0.1:0",
            _ => "[::1]:0",
        };
        let flags = format!("-tls {tls} -proto {proto}");
        let server = parties.serve(&format!("{flags} -addr {address}"))?;
        let addr = server.addr();
        let asked = parties.ask(addr, &format!("{flags} -requests {REQUESTS}"))?;
        let served = server.finish()?;
        assert!(requests(&asked).eq(requests(&served)));
        assert!(asked.iter().all(|logged| logged.tls == tls));
        logged.extend(asked.into_iter().map(|asked| (addr.port(), asked)));
    }
    assert_eq!(logged.len(), REQUESTS * kinds.len());

    let logged: Vec<_> = logged.iter().map(|(port, asked)| (*port, asked)).collect();
    let mut ports: Vec<_> = logged.iter().map(|(port, _)| *port).collect();
    ports.dedup();
    for capture in [client, server] {
        let captured = capture.stop(&ports)?;
        ensure_decrypted(captured.recording.http_by_own_keys()?, &logged)?;
        // One for each session of TLS 1.2, four for one of TLS 1.3.
        assert_eq!(captured.summary.keys, 2 * (1 + 4));
    }
    Ok(())
}
