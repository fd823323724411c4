//! Executables: ELF, build info, the function table, and where to probe.

use std::cell::RefCell;

use arbitrary::{Arbitrary, Unstructured};
use gobin::ReadSitePreference;

/// Any bytes as a file.
pub fn executable(bytes: &[u8]) {
    analyze(bytes);
}

fn analyze(bytes: &[u8]) {
    let Ok(analysis) = gobin::analyze(bytes) else {
        return;
    };
    for preference in [
        ReadSitePreference::Auto,
        ReadSitePreference::Copy,
        ReadSitePreference::Returns,
    ] {
        if let Ok(plan) = analysis.plan(preference) {
            let sites = plan.read.sites().iter().chain([&plan.write.site]);
            for site in sites {
                assert!(
                    site.offset.0 < bytes.len() as u64,
                    "a site outside of the file"
                );
            }
        }
    }
    let _ = analysis.key_plan();
    for package in &analysis.other_packages {
        let _ = gobin::analyze_package(bytes, package);
    }
}

/// A change of a real executable.
#[derive(Arbitrary, Debug)]
struct Patch {
    region: u8,
    /// Where in the region; wraps around.
    offset: u16,
    bytes: [u8; 8],
    length: u8,
}

/// A real executable and the parts of it that the analysis looks at.
struct Base {
    bytes: Vec<u8>,
    regions: Vec<std::ops::Range<usize>>,
}

/// A real executable (`ECAPTURE_FUZZ_EXECUTABLE`) with a few bytes changed where it matters: nobody
/// would find these places by chance.
pub fn patched_executable(bytes: &[u8]) {
    thread_local! {
        static BASE: RefCell<Base> = RefCell::new(Base::load());
    }
    let mut input = Unstructured::new(bytes);
    let Ok(patches) = Vec::<Patch>::arbitrary(&mut input) else {
        return;
    };
    BASE.with_borrow_mut(|base| base.with(&patches, analyze));
}

impl Base {
    fn load() -> Self {
        let path = std::env::var_os("ECAPTURE_FUZZ_EXECUTABLE")
            .expect("ECAPTURE_FUZZ_EXECUTABLE names no Go executable: use `cargo xtask fuzz`");
        let bytes = std::fs::read(path).expect("the executable to begin with");
        let analysis = gobin::analyze(&bytes).expect("it is a Go program with crypto/tls");
        let plan = analysis
            .plan(ReadSitePreference::Auto)
            .expect("it can be captured");
        // The headers; build info, pclntab and moduledata by their marks; the probed functions.
        let mut starts = vec![0, bytes.len().saturating_sub(64 * 40)];
        let marks: [&[u8]; 5] = [
            b"\xff Go buildinf:",
            b"\xf1\xff\xff\xff\0\0",
            b"\xf0\xff\xff\xff\0\0",
            b"\xfa\xff\xff\xff\0\0",
            b"\xfb\xff\xff\xff\0\0",
        ];
        for mark in marks {
            starts.extend((0..bytes.len()).filter(|&at| bytes[at..].starts_with(mark)));
        }
        let sites = plan.read.sites().iter().chain([&plan.write.site]);
        starts.extend(sites.map(|site| (site.offset.0 as usize).saturating_sub(64)));
        starts.extend(
            analysis
                .functions
                .iter()
                .filter_map(|function| Some(function.code.as_ref().ok()?.offset.0 as usize)),
        );
        let regions = starts
            .into_iter()
            .map(|start| start..bytes.len().min(start + 4096))
            .filter(|region| !region.is_empty())
            .collect();
        Self { bytes, regions }
    }

    /// Changes the executable, looks at it, and changes it back.
    fn with(&mut self, patches: &[Patch], look: impl FnOnce(&[u8])) {
        let mut undo = Vec::new();
        for patch in patches {
            let region = &self.regions[usize::from(patch.region) % self.regions.len()];
            let start = region.start + usize::from(patch.offset) % region.len();
            let end = self
                .bytes
                .len()
                .min(start + usize::from(patch.length % 8) + 1);
            let place = &mut self.bytes[start..end];
            undo.push((start, place.to_vec()));
            place.copy_from_slice(&patch.bytes[..place.len()]);
        }
        look(&self.bytes);
        for (start, bytes) in undo.into_iter().rev() {
            self.bytes[start..][..bytes.len()].copy_from_slice(&bytes);
        }
    }
}
