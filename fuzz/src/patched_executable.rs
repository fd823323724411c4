//! Real executables with a few bytes changed where it matters: nobody would find these places by chance.

use std::cell::RefCell;
use std::ops::Range;

use arbitrary::{Arbitrary, Unstructured};
use gobin::elf::Elf;
use gobin::{Analysis, ReadSitePreference};

use crate::executable::{analyze, bases};

/// A change of an executable.
#[derive(Arbitrary, Debug)]
struct Patch {
    region: u8,
    /// Where in the region; wraps around.
    offset: u32,
    bytes: [u8; 8],
    length: u8,
}

/// An executable and the parts of it that the analysis looks at.
struct Base {
    bytes: Vec<u8>,
    regions: Vec<Range<usize>>,
}

/// Which executable (one byte), and a list of changes.
pub fn run(bytes: &[u8]) {
    thread_local! {
        static BASES: RefCell<Vec<Base>> = RefCell::new(bases().iter().map(|path| {
            Base::new(std::fs::read(path).expect("an executable to begin with"))
        }).collect());
    }
    let mut input = Unstructured::new(bytes);
    let Ok((base, patches)) = <(u8, Vec<Patch>)>::arbitrary(&mut input) else {
        return;
    };
    BASES.with_borrow_mut(|bases| {
        let base = usize::from(base) % bases.len();
        bases[base].with(&patches, analyze);
    });
}

impl Base {
    fn new(bytes: Vec<u8>) -> Self {
        let elf = Elf::parse(&bytes).expect("an ELF file");
        let analysis = gobin::analyze(&bytes).expect("a Go program with crypto/tls");
        let mut regions = places(&bytes, &elf, &analysis);
        regions.extend(sections(&bytes, &elf));
        regions.retain(|region| !region.is_empty());
        Self { bytes, regions }
    }

    /// Changes the executable, looks at it, and changes it back.
    fn with(&mut self, patches: &[Patch], look: impl FnOnce(&[u8])) {
        let mut undo = Vec::new();
        for patch in patches {
            let region = &self.regions[usize::from(patch.region) % self.regions.len()];
            let start = region.start + patch.offset as usize % region.len();
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

/// Headers, tables by their marks, the probed functions, and the types that connections have.
fn places(bytes: &[u8], elf: &Elf<'_>, analysis: &Analysis) -> Vec<Range<usize>> {
    let mut regions = Vec::new();
    let mut add = |start: usize, length: usize| {
        let start = start.min(bytes.len());
        regions.push(start..bytes.len().min(start.saturating_add(length)));
    };
    // The ELF header with the program headers; the section headers, which mostly come last.
    add(0, 4096);
    add(bytes.len().saturating_sub(64 * 40), 4096);
    // The build info, and the function table of Go 1.16, 1.18 and 1.20, which 1.15 lacks.
    let marks: [&[u8]; 5] = [
        b"\xff Go buildinf:",
        b"\xfb\xff\xff\xff\0\0",
        b"\xfa\xff\xff\xff\0\0",
        b"\xf0\xff\xff\xff\0\0",
        b"\xf1\xff\xff\xff\0\0",
    ];
    for mark in marks {
        for at in (0..bytes.len()).filter(|&at| bytes[at..].starts_with(mark)) {
            add(at, 512);
        }
    }
    let plan = analysis
        .crypto_tls
        .plan(ReadSitePreference::Auto)
        .expect("it can be captured");
    for site in plan.read.sites().iter().chain([&plan.write.site]) {
        add((site.offset.0 as usize).saturating_sub(64), 256);
    }
    for function in &analysis.crypto_tls.functions {
        if let Ok(code) = &function.code {
            add(code.offset.0 as usize, 1024);
        }
    }
    let types = analysis
        .crypto_tls
        .connections
        .iter()
        .flat_map(|plan| &plan.types);
    for one in types.take(32) {
        if let Some(offset) = elf.file_offset(one.descriptor) {
            add(offset.0 as usize, 512);
        }
    }
    regions
}

/// Sections as a whole.
fn sections(bytes: &[u8], elf: &Elf<'_>) -> Vec<Range<usize>> {
    let names = [
        ".go.buildinfo",
        ".go.module",
        ".gopclntab",
        ".itablink",
        ".typelink",
        ".go.type",
        ".noptrdata",
        ".data.rel.ro",
        ".symtab",
        ".rela.dyn",
        ".dynamic",
    ];
    let file = bytes.as_ptr_range();
    let range = |part: &[u8]| {
        let start = part.as_ptr() as usize - file.start as usize;
        start..start + part.len()
    };
    let sections = names.iter().filter_map(|name| elf.section(name));
    sections.map(|section| range(section.bytes)).collect()
}

pub fn seeds() -> Vec<Vec<u8>> {
    // Each region of each executable, with a byte of another value.
    let mut seeds = Vec::new();
    for base in 0..bases().len() as u8 {
        for region in 0..48 {
            // One patch: region, offset, bytes, length; then its end.
            let patch = [
                &[base, 1, region],
                &[8, 0, 0, 0][..],
                &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0],
            ];
            seeds.push(patch.concat());
        }
    }
    seeds
}
