//! What is shown is what the program handed to crypto/tls and got from it, byte for byte and call
//! for call: for every Go release, every way of building, and every way of using a connection.

use anyhow::Result;
use xtask::matrix::{GoRelease, Variant};

use crate::capture::Capture;
use crate::exchange::Program;

/// All message sizes over both protocol versions, a few connections at once.
fn everything_is_shown(release: GoRelease, variant: Variant, flags: &str) -> Result<()> {
    let program = Program::new(release, variant)?;
    let capture = Capture::of(&program.path(), flags)?;
    let old = program.run("-tls 1.2 -conns 2")?;
    let new = program.run("-tls 1.3 -conns 2")?;
    let captured = capture.stop()?.connections()?;
    let expected = old.connections().and(new.connections());
    assert_eq!(expected.len(), 8, "two runs, two connections, two ends");
    captured.assert_equal(&expected);
    Ok(())
}

macro_rules! releases {
    ($($module:ident: $release:ident { $($test:ident: $variant:ident),* $(,)? })*) => {$(
        mod $module {
            use super::*;

            $(
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

releases! {
    go_1_15: Go1_15 {
        default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie,
        external: External, external_pie: ExternalPie, noopt: NoOpt,
    }
    go_1_19: Go1_19 { default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie }
    go_1_21: Go1_21 {
        default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie,
        noopt: NoOpt, race: Race,
    }
    go_1_22: Go1_22 { default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie }
    go_1_23: Go1_23 { default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie }
    go_1_24: Go1_24 {
        default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie,
        noopt: NoOpt, race: Race,
    }
    go_1_25: Go1_25 { default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie }
    go_1_26: Go1_26 { default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie }
    go_1_27: Go1_27 {
        default: Default, stripped: Stripped, pie: Pie, stripped_pie: StrippedPie,
        external: External, external_pie: ExternalPie, noopt: NoOpt, race: Race,
    }
}
