//! Copies of crypto/tls are found under their import paths, and probed where the original is.

use std::path::Path;

use gobin::{Analysis, Function, Probes, ReadSitePreference, Site, TlsPackage};
use object::{Object as _, ObjectSymbol as _};
use xtask::matrix::{GoRelease, Variant};
use xtask::standalone::copied::{self, Place};

fn analyze(path: &Path) -> (Vec<u8>, Analysis) {
    let bytes = std::fs::read(path).unwrap();
    let analysis = gobin::analyze(&bytes).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    (bytes, analysis)
}

/// Of each function, its sites in bytes from its start.
fn sites(package: &TlsPackage) -> Vec<(Function, Vec<u64>)> {
    let of = |report: &gobin::FunctionReport| {
        let start = report.code.as_ref().unwrap().range.start;
        let probed: Vec<Site> = match &report.probes {
            Probes::Entry(probe) => vec![probe.as_ref().unwrap().site],
            Probes::Read { copy, returns } => {
                let both = [copy.as_ref().unwrap(), returns.as_ref().unwrap()];
                both.into_iter()
                    .flat_map(|probe| probe.sites().to_vec())
                    .collect()
            }
        };
        let distance = |site: &Site| site.vaddr.0 - start.0;
        (report.function, probed.iter().map(distance).collect())
    };
    package.functions.iter().map(of).collect()
}

/// Both are made from the same source by the same compiler.
#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn a_copy_is_probed_where_the_original_is() {
    for (release, variant) in [
        (GoRelease::Go1_19, Variant::Default),
        (GoRelease::Go1_19, Variant::Arm64StrippedPie),
        (GoRelease::Go1_24, Variant::StrippedPie),
        (GoRelease::NEWEST, Variant::Default),
        (GoRelease::NEWEST, Variant::Arm64),
    ] {
        let path = copied::both(release, variant).unwrap();
        let (_, analysis) = analyze(&path);
        let [copy] = &analysis.copies[..] else {
            panic!("Go {release}, {variant}: {:?}", analysis.copies);
        };
        assert!(copy.is_copy());
        assert_eq!(copy.import_path, Place::Module.import_path());
        let original = &analysis.crypto_tls;
        assert_eq!(sites(copy), sites(original), "Go {release}, {variant}");

        let plans = analysis.plans(ReadSitePreference::Auto).unwrap();
        assert!(plans.refusals.is_empty(), "{:?}", plans.refusals);
        let packages: Vec<_> = plans.plans.iter().map(|plan| &*plan.package).collect();
        assert_eq!(packages, [gobin::CRYPTO_TLS, Place::Module.import_path()]);
        assert_eq!(analysis.key_plans().unwrap().plans.len(), 2);

        let of_original = original.connections.as_ref().unwrap();
        let of_copy = copy.connections.as_ref().unwrap();
        assert_eq!(of_copy.tls_conn, of_original.tls_conn);
        assert_eq!(of_copy.socket, of_original.socket);
        // Either can be inside of the other: both are types that are followed, by name the same.
        for plan in [of_original, of_copy] {
            let conns = plan.wrappers().filter(|known| known.name == "*tls.Conn");
            assert_eq!(conns.count(), 2, "Go {release}, {variant}");
        }
    }
}

/// Up to Go 1.15, names lie between other data: none of it belongs to the import path.
#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn a_copy_has_the_symbol_tables_names_and_addresses() {
    for (release, place) in [
        (GoRelease::Go1_15, Place::Vendor),
        (GoRelease::Go1_19, Place::Vendor),
        (GoRelease::Go1_19, Place::Module),
        (GoRelease::NEWEST, Place::Module),
    ] {
        let path = copied::exchange(release, Variant::Default, place).unwrap();
        let (bytes, analysis) = analyze(&path);
        assert!(!analysis.crypto_tls.is_linked_in(), "Go {release}");
        let [copy] = &analysis.copies[..] else {
            panic!("Go {release}, {place:?}: {:?}", analysis.copies);
        };
        assert_eq!(copy.import_path, place.import_path());
        copy.plan(ReadSitePreference::Copy).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        for report in &copy.functions {
            let symbol = file
                .symbols()
                .find(|symbol| symbol.name() == Ok(&report.symbol));
            let symbol = symbol.unwrap_or_else(|| panic!("Go {release}: {}", report.symbol));
            let start = report.code.as_ref().unwrap().range.start.0;
            assert_eq!(symbol.address(), start, "Go {release}: {}", report.symbol);
        }
    }
}
