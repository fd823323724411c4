//! The analysis of real Go binaries, checked against objdump and against the table of sites that
//! experiments gave.

mod common;

use std::collections::BTreeMap;
use std::process::Command;

use common::{Binary, binaries};

use gobin::{
    Abi, Analysis, Arch, BuildMode, EntryProbe, Error, Function, Linkage, Location, ProbePlan,
    ReadProbe, ReadSitePreference, Site, SiteKind, Vaddr,
};

/// Address and text of each instruction.
type Listing = BTreeMap<u64, String>;

fn objdump(binary: &Binary, range: &std::ops::Range<Vaddr>) -> Listing {
    let tool = match binary.arch() {
        Arch::Amd64 => "objdump",
        Arch::Arm64 => "aarch64-linux-gnu-objdump",
    };
    let output = Command::new(tool)
        .args(["-d", "-w", "--no-show-raw-insn"])
        .arg(format!("--start-address={}", range.start))
        .arg(format!("--stop-address={}", range.end))
        .arg(&binary.path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{tool} {binary}");
    listing(&String::from_utf8(output.stdout).unwrap())
}

fn listing(text: &str) -> Listing {
    text.lines()
        .filter_map(|line| {
            let (address, instruction) = line.split_once(":\t")?;
            let address = u64::from_str_radix(address.trim(), 16).ok()?;
            Some((
                address,
                instruction.split_whitespace().collect::<Vec<_>>().join(" "),
            ))
        })
        .collect()
}

/// Address and size of all functions in the symbol table; empty if it is stripped.
fn symbols(binary: &Binary) -> BTreeMap<String, u64> {
    let output = Command::new("readelf")
        .args(["-sW"])
        .arg(&binary.path)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let address = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
            (fields.nth(1)? == "FUNC").then_some(())?;
            Some((fields.nth(3)?.to_owned(), address))
        })
        .collect()
}

fn check_site(binary: &Binary, site: &Site, listing: &Listing) {
    let text = listing.get(&site.vaddr.0).unwrap_or_else(|| {
        panic!(
            "{binary}: {} at {} is not an instruction",
            kind_name(site.kind),
            site.vaddr
        )
    });
    let right = match (site.kind, binary.arch()) {
        (SiteKind::PushFramePointer, _) => text == "push %rbp",
        (SiteKind::StackCheckJump, Arch::Amd64) => text.starts_with("jbe "),
        (SiteKind::StackCheckJump, Arch::Arm64) => text.starts_with("b.ls "),
        (SiteKind::MemmoveCall, Arch::Amd64) => text.starts_with("call "),
        (SiteKind::MemmoveCall, Arch::Arm64) => text.starts_with("bl "),
        (SiteKind::Return, _) => text == "ret",
        (SiteKind::FirstInstruction, _) => *listing.keys().next().unwrap() == site.vaddr.0,
    };
    assert!(
        right,
        "{binary}: {} at {} is {text:?}",
        kind_name(site.kind),
        site.vaddr
    );
    // Where there are names, the call's target has the right one.
    if site.kind == SiteKind::MemmoveCall
        && text.contains('<')
        && !binary.variant.contains("stripped")
    {
        assert!(
            text.contains("<runtime.memmove>") || text.contains("<runtime.memmove.abi0>"),
            "{binary}: {text}"
        );
    }
}

fn kind_name(kind: SiteKind) -> String {
    format!("{kind:?}")
}

fn plan(binary: &Binary, analysis: &Analysis, preference: ReadSitePreference) -> ProbePlan {
    analysis
        .crypto_tls
        .plan(preference)
        .unwrap_or_else(|error| panic!("{binary}: {error}"))
}

/// The instruction behind the stack check, in bytes from the function's entry: GO-BINARIES.md.
fn expected_entry(binary: &Binary, function: Function) -> Option<Vec<u64>> {
    let pie = binary.variant.contains("pie");
    let (read, write, key_log): (u64, u64, u64) = match (binary.arch(), binary.minor()) {
        (Arch::Amd64, 21..) => (10, 18, 15),
        (Arch::Amd64, 17..=20) => (10, 15, 15),
        (Arch::Amd64, _) if pie => (21, 26, 26),
        (Arch::Amd64, _) => (19, 24, 24),
        (Arch::Arm64, 19..) => (12, 16, 16),
        (Arch::Arm64, _) => (16, 16, 16),
    };
    match function {
        _ if !binary.is_optimised() => None,
        Function::Read => Some(vec![read]),
        Function::WriteRecordLocked => Some(vec![write]),
        Function::WriteKeyLog => Some(vec![key_log]),
        _ => None,
    }
}

fn check_entry(binary: &Binary, analysis: &Analysis, function: Function, probe: &EntryProbe) {
    let report = analysis.crypto_tls.function(function);
    let code = report.unwrap().code.as_ref().unwrap();
    let listing = objdump(binary, &code.range);
    check_site(binary, &probe.site, &listing);
    let kind = match (binary.arch(), binary.minor()) {
        (Arch::Amd64, 21..) => SiteKind::PushFramePointer,
        _ => SiteKind::StackCheckJump,
    };
    assert_eq!(probe.site.kind, kind, "{binary}: {function:?}");
    if let Some(expected) = expected_entry(binary, function) {
        let behind_check = match kind {
            SiteKind::PushFramePointer => probe.site.vaddr.0,
            _ => *listing.range(probe.site.vaddr.0 + 1..).next().unwrap().0,
        };
        let distance = behind_check - code.range.start.0;
        assert!(
            expected.contains(&distance),
            "{binary}: {function:?}: +{distance}, not {expected:?}"
        );
    }
    let first = probe.arguments[0];
    let expected = match binary.abi() {
        Abi::Register => Location::ArgumentRegister(0),
        Abi::Stack => Location::Stack(8),
    };
    assert_eq!(first.location, expected, "{binary}: {function:?}");
}

fn check_offset(binary: &Binary, site: &Site, bytes: &[u8], elf: &gobin::elf::Elf<'_>) {
    let at = usize::try_from(site.offset.0).unwrap();
    assert_eq!(
        elf.bytes_at(site.vaddr, 8),
        bytes.get(at..at + 8),
        "{binary}: {}",
        site.vaddr
    );
}

#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn every_site_is_the_instruction_that_objdump_shows() {
    for binary in binaries("exchange") {
        let bytes = binary.read();
        let elf = gobin::elf::Elf::parse(&bytes).unwrap();
        let analysis = binary.analysis();
        let plan = plan(&binary, &analysis, ReadSitePreference::Auto);
        let keys = analysis
            .crypto_tls
            .key_plan()
            .unwrap_or_else(|error| panic!("{binary}: {error}"));
        let ok = |probe: &Result<EntryProbe, Error>| {
            probe
                .clone()
                .unwrap_or_else(|error| panic!("{binary}: {error}"))
        };
        for (function, probe) in [
            (Function::WriteRecordLocked, plan.write.clone()),
            (Function::Close, ok(&plan.close)),
            (Function::WriteKeyLog, ok(&keys.key_log)),
            (Function::KeysFromMasterSecret, ok(&keys.master_secret)),
        ] {
            check_entry(&binary, &analysis, function, &probe);
            check_offset(&binary, &probe.site, &bytes, &elf);
        }
        let returns = analysis
            .crypto_tls
            .plan(ReadSitePreference::Returns)
            .unwrap_or_else(|error| panic!("{binary}: {error}"))
            .read;
        let read_code = analysis
            .crypto_tls
            .function(Function::Read)
            .unwrap()
            .code
            .as_ref()
            .unwrap();
        let listing = objdump(&binary, &read_code.range);
        let ReadProbe::Returns { sites, .. } = &returns else {
            panic!("{binary}: {returns:?}")
        };
        for site in plan.read.sites().iter().chain(sites) {
            check_site(&binary, site, &listing);
            check_offset(&binary, site, &bytes, &elf);
        }
        // Every return that objdump sees is probed, and no other.
        let rets: Vec<u64> = listing
            .iter()
            .filter(|(_, t)| *t == "ret")
            .map(|(a, _)| *a)
            .collect();
        let ours: Vec<u64> = sites.iter().map(|site| site.vaddr.0).collect();
        assert_eq!(ours, rets, "{binary}");
        if binary.is_optimised() {
            assert_eq!(rets.len(), 7, "{binary}");
        }
        match &plan.read {
            ReadProbe::Copy { source, length, .. } => {
                assert!(
                    binary.is_optimised(),
                    "{binary}: a copy where none was expected"
                );
                let expected = match (binary.abi(), binary.arch()) {
                    (Abi::Register, _) => {
                        (Location::ArgumentRegister(1), Location::ArgumentRegister(2))
                    }
                    (Abi::Stack, Arch::Amd64) => (Location::Stack(8), Location::Stack(16)),
                    (Abi::Stack, Arch::Arm64) => (Location::Stack(16), Location::Stack(24)),
                };
                assert_eq!((*source, *length), expected, "{binary}");
            }
            ReadProbe::Returns { because, .. } => {
                assert!(!binary.is_optimised(), "{binary}: {because}");
            }
        }
    }
}

/// The receiver's slot at the copy is where the code itself loads the receiver from.
#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn the_receiver_is_read_from_the_slot_that_the_plan_names() {
    for binary in binaries("exchange") {
        let analysis = binary.analysis();
        let ReadProbe::Copy {
            receiver: Location::Stack(slot),
            ..
        } = plan(&binary, &analysis, ReadSitePreference::Auto).read
        else {
            continue;
        };
        let code = analysis
            .crypto_tls
            .function(Function::Read)
            .unwrap()
            .code
            .as_ref()
            .unwrap();
        let operand = Location::Stack(slot).assembly(binary.arch());
        let listing = objdump(&binary, &code.range);
        let mentions = |store: bool| {
            listing
                .values()
                .filter(|text| text.contains(&operand))
                .any(|text| match binary.arch() {
                    Arch::Amd64 => text.ends_with(&operand) == store,
                    Arch::Arm64 => text.starts_with("st") == store,
                })
        };
        assert!(mentions(false), "{binary}: nothing reads {operand}");
        assert_eq!(
            mentions(true),
            binary.abi() == Abi::Register,
            "{binary}: {operand}"
        );
    }
}

#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn what_inspect_prints_is_right() {
    for binary in binaries("exchange") {
        let analysis = binary.analysis();
        let variant = binary.variant.as_str();
        assert_eq!(analysis.arch, binary.arch(), "{binary}");
        assert_eq!(analysis.abi, binary.abi(), "{binary}");
        let version: gobin::GoVersion = format!("go{}", binary.version).parse().unwrap();
        let found = analysis.go_version();
        assert_eq!(
            (found.major, found.minor),
            (version.major, version.minor),
            "{binary}"
        );
        let pie = variant.contains("pie");
        let mode = if pie {
            BuildMode::Pie
        } else {
            BuildMode::Executable
        };
        assert_eq!(analysis.build_mode, mode, "{binary}");
        assert_eq!(analysis.stripped, variant.contains("stripped"), "{binary}");
        if variant.starts_with("external") || pie && binary.arch() == Arch::Amd64 {
            assert!(
                matches!(analysis.linkage, Linkage::Dynamic(Some(_))),
                "{binary}"
            );
        }
        assert!(analysis.pclntab.functions > 1000, "{binary}");
        if binary.minor() >= 18 {
            let setting = analysis.build_info.setting("GOARCH");
            assert_eq!(
                setting,
                Some(binary.arch().to_string().as_str()),
                "{binary}"
            );
        }
        assert!(analysis.copies.is_empty(), "{binary}");
        // pclntab and symbol table agree.
        let symbols = symbols(&binary);
        assert_eq!(symbols.is_empty(), analysis.stripped, "{binary}");
        for report in &analysis.crypto_tls.functions {
            let start = report.code.as_ref().unwrap().range.start;
            if let Some(&address) = symbols.get(&report.symbol) {
                assert_eq!(address, start.0, "{binary}: {}", report.symbol);
            } else {
                assert!(analysis.stripped, "{binary}: {}", report.symbol);
            }
        }
    }
}

#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn a_program_without_tls_says_so() {
    for binary in binaries("notls") {
        let analysis = binary.analysis();
        let error = analysis.plans(ReadSitePreference::Auto).unwrap_err();
        assert_eq!(error, Error::NoTls, "{binary}");
    }
}

/// A file without section headers is found through its segments, with the same result.
#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn section_headers_are_not_needed() {
    for binary in binaries("exchange") {
        let mut bytes = binary.read();
        let expected = plan(&binary, &binary.analysis(), ReadSitePreference::Auto);
        // e_shoff, e_shnum, e_shstrndx.
        bytes[0x28..0x30].fill(0);
        bytes[0x3c..0x40].fill(0);
        let analysis = gobin::analyze(&bytes).unwrap_or_else(|error| panic!("{binary}: {error}"));
        assert!(analysis.sectionless && analysis.stripped, "{binary}");
        assert_eq!(analysis.pclntab.located, gobin::Located::Scan, "{binary}");
        let plan = plan(&binary, &analysis, ReadSitePreference::Auto);
        assert_eq!(
            (plan.write, plan.read),
            (expected.write, expected.read),
            "{binary}"
        );
    }
}

#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn cut_anywhere_it_is_refused_or_right() {
    let wanted = ["default", "stripped-pie", "external-pie", "arm64"];
    for binary in binaries("exchange") {
        if !wanted.contains(&binary.variant.as_str()) {
            continue;
        }
        let bytes = binary.read();
        let whole = plan(&binary, &binary.analysis(), ReadSitePreference::Auto);
        for cut in (0..100).map(|part| bytes.len() / 100 * part) {
            match gobin::analyze(&bytes[..cut]) {
                Ok(analysis) => {
                    let plan = plan(&binary, &analysis, ReadSitePreference::Auto);
                    assert_eq!(plan.write, whole.write, "{binary} cut to {cut}");
                    assert_eq!(plan.read, whole.read, "{binary} cut to {cut}");
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.len() < 200 && !text.contains('\n'), "{text}");
                }
            }
        }
    }
}

/// Damage anywhere gives an error or a plan whose sites are at least inside the file.
#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn damaged_binaries_never_panic() {
    for binary in binaries("exchange") {
        if !matches!(binary.variant.as_str(), "default" | "arm64-stripped-pie") {
            continue;
        }
        let original = binary.read();
        let analysis = binary.analysis();
        let mut places: Vec<u64> = (0..512).collect();
        let table = analysis.pclntab.offset.0;
        places.extend((0..96).map(|at| table + at));
        for report in &analysis.crypto_tls.functions {
            let code = report.code.as_ref().unwrap();
            places.extend((0..160).map(|at| code.offset.0 + at * 3));
        }
        let mut bytes = original.clone();
        for (turn, &place) in places.iter().enumerate() {
            let place = usize::try_from(place).unwrap();
            let value = [0xff, 0x00, 0x7f, 0xc3, original[place] ^ 0x10][turn % 5];
            bytes[place] = value;
            if let Ok(plan) =
                gobin::analyze(&bytes).and_then(|a| a.crypto_tls.plan(ReadSitePreference::Auto))
            {
                for site in plan.read.sites().iter().chain([&plan.write.site]) {
                    assert!((site.offset.0 as usize) < bytes.len(), "{binary}");
                }
            }
            bytes[place] = original[place];
        }
    }
}

/// Go 1.12 and older write no build info; the version variable is all there is.
#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn without_build_info_the_version_variable_is_read() {
    for binary in binaries("exchange") {
        let mut bytes = binary.read();
        let expected = binary.analysis();
        let places: Vec<usize> = memchr::memmem::find_iter(&bytes, b"\xff Go buildinf:").collect();
        for place in places {
            bytes[place] = 0;
        }
        let analysis = gobin::analyze(&bytes).unwrap_or_else(|error| panic!("{binary}: {error}"));
        assert_eq!(analysis.go_version(), expected.go_version(), "{binary}");
        assert_eq!(analysis.build_info.settings, [], "{binary}");
        plan(&binary, &analysis, ReadSitePreference::Auto);
    }
}

/// A Go executable as data inside of another one is not taken for it.
#[test]
#[ignore = "needs the test binaries: run `cargo xtask test`"]
fn a_table_that_is_only_data_is_not_used() {
    let all = binaries("exchange");
    let of_arch = |arch| {
        all.iter()
            .filter(move |b| b.arch() == arch && b.is_optimised())
    };
    for arch in [Arch::Amd64, Arch::Arm64] {
        let inner = of_arch(arch).next_back().unwrap();
        let outer = of_arch(arch).next().unwrap();
        // In front of the outer one's own segments as a segment of its own, mapped read-only.
        let bytes = with_segment(&outer.read(), &inner.read());
        let analysis = gobin::analyze(&bytes).unwrap_or_else(|error| panic!("{outer}: {error}"));
        let expected = outer.analysis();
        assert_eq!(analysis.go_version(), expected.go_version());
        assert_eq!(analysis.pclntab.vaddr, expected.pclntab.vaddr);
        let [ours, theirs] =
            [&analysis, &expected].map(|a| plan(outer, a, ReadSitePreference::Auto));
        assert_eq!(ours.write.site.vaddr, theirs.write.site.vaddr);
        assert_eq!(ours.read.sites()[0].vaddr, theirs.read.sites()[0].vaddr);
    }
}

/// Appends `data` to an ELF file, loaded at an unused address, and drops its section headers.
/// The note segment, which nothing here needs, gives its header for it.
fn with_segment(elf: &[u8], data: &[u8]) -> Vec<u8> {
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap());
    let table = usize::try_from(word(0x20)).unwrap();
    let count = usize::from(elf[0x38]);
    let kind = |n: usize| u32::from_le_bytes(elf[table + 56 * n..][..4].try_into().unwrap());
    let note = (0..count).find(|&n| kind(n) == 4).expect("a PT_NOTE");
    let mut bytes = elf.to_vec();
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    let offset = bytes.len() as u64;
    bytes.extend_from_slice(data);
    // PT_LOAD, PF_R, offset, vaddr, paddr, filesz, memsz, align.
    let mut header = [1u32, 4].map(u32::to_le_bytes).concat();
    let size = data.len() as u64;
    header.extend(
        [offset, 0x7000_0000, 0x7000_0000, size, size, 4096]
            .map(u64::to_le_bytes)
            .concat(),
    );
    // First in the table, so that it is scanned first.
    let at = table + 56 * note;
    bytes.copy_within(table..at, table + 56);
    bytes[table..table + 56].copy_from_slice(&header);
    bytes[0x28..0x30].fill(0);
    bytes[0x3c..0x40].fill(0);
    bytes
}
