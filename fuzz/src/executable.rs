//! Executables: ELF, build info, the function table, type descriptors, and where to probe.

use std::path::PathBuf;

use gobin::ReadSitePreference;

/// Any bytes as a file.
pub fn run(bytes: &[u8]) {
    analyze(bytes);
}

/// Everything that is looked for in a file.
pub fn analyze(bytes: &[u8]) {
    let Ok(analysis) = gobin::analyze(bytes) else {
        return;
    };
    for preference in [
        ReadSitePreference::Auto,
        ReadSitePreference::Copy,
        ReadSitePreference::Returns,
    ] {
        for plan in analysis.plans(preference).iter().flat_map(|all| &all.plans) {
            let sites = plan.read.sites().iter().chain([&plan.write.site]);
            for site in sites {
                let offset = site.offset.0;
                assert!(offset < bytes.len() as u64, "a site outside of the file");
            }
        }
    }
    for connections in analysis.packages().flat_map(|package| &package.connections) {
        assert!(connections.types.len() <= gobin::ConnectionPlan::TYPES_MAX);
    }
    let _ = analysis.key_plans();
}

/// The executables to begin with: `ECAPTURE_FUZZ_EXECUTABLES`, separated by colons.
pub fn bases() -> Vec<PathBuf> {
    let paths = std::env::var_os("ECAPTURE_FUZZ_EXECUTABLES")
        .expect("ECAPTURE_FUZZ_EXECUTABLES names no Go executables: use `cargo xtask fuzz`");
    std::env::split_paths(&paths).collect()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for path in bases().into_iter().chain(["/bin/true".into()]) {
        let bytes = std::fs::read(path).expect("an executable to begin with");
        for length in [64, 4096, 65536] {
            seeds.push(bytes[..bytes.len().min(length)].to_vec());
        }
    }
    seeds
}
