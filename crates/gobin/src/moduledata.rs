//! The module data, `runtime.firstmoduledata`: what the runtime itself takes as the truth.
//!
//! Source: `type moduledata` in `src/runtime/symtab.go` of Go 1.8 to 1.27. It points at the function
//! table, which proves that table to be the one in use (a program can embed whole Go executables,
//! tables included), and says where the text starts.

use crate::bytes::u64_at;
use crate::elf::Elf;
use crate::error::Table;
use crate::pclntab::{Generation, Header, Pclntab, candidates};
use crate::{Error, GoVersion, Vaddr};

/// How the function table was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Located {
    /// By the name of its section.
    Section(&'static str),
    /// By a scan for its magic number.
    Scan,
}

impl std::fmt::Display for Located {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Section(name) => write!(f, "section {name}"),
            Self::Scan => f.write_str("scan for its magic number, confirmed by the module data"),
        }
    }
}

/// Internal PIEs up to Go 1.25 have the second. External ones have no section of their own.
const TABLE_SECTIONS: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];
/// Since Go 1.26, and before.
const MODULE_SECTIONS: [&str; 2] = [".go.module", ".noptrdata"];
/// Headers that are looked at before a scan gives up, and sound ones among them. Real programs have
/// one per embedded executable; hostile ones must not make this last.
const MAX_CANDIDATES: usize = 256;
const MAX_HEADERS: usize = 32;
/// Pointers to one table that are looked at. Real programs have one or two.
const MAX_POINTERS: usize = 64;

/// The tables that the runtime uses.
#[derive(Debug)]
pub(crate) struct Tables<'data> {
    /// The function table.
    pub(crate) pclntab: Pclntab<'data>,
    /// How it was found.
    pub(crate) located: Located,
    /// Where the module data is that points at it.
    pub(crate) module: Vaddr,
}

/// Finds the function table that the runtime uses; `Ok(None)` if there is no trace of one.
pub(crate) fn locate<'data>(elf: &Elf<'data>) -> Result<Option<Tables<'data>>, Error> {
    let mut problem = None;
    for name in TABLE_SECTIONS {
        let Some(section) = elf.section(name) else {
            continue;
        };
        match confirm(elf, section.vaddr, section.bytes, Located::Section(name)) {
            Ok(tables) => return Ok(Some(tables)),
            Err(error) => problem = Some(error),
        }
    }
    // Where there are sections, the table of an external PIE is in this one: look there first.
    let sections = elf
        .section(".data.rel.ro")
        .into_iter()
        .map(|s| (s.vaddr, s.bytes));
    let segments = elf.segments().map(|s| (s.vaddr, s.bytes));
    let hits = sections.chain(segments).flat_map(|(start, bytes)| {
        candidates(bytes, elf.arch()).filter_map(move |at| {
            let vaddr = start.checked_add(at as u64)?;
            vaddr
                .0
                .is_multiple_of(8)
                .then_some((vaddr, bytes.get(at..)?))
        })
    });
    let mut headers = 0;
    for (vaddr, bytes) in hits.take(MAX_CANDIDATES) {
        match confirm(elf, vaddr, bytes, Located::Scan) {
            Ok(tables) => return Ok(Some(tables)),
            Err(
                error @ Error::Inconsistent {
                    table: Table::Moduledata,
                    ..
                },
            ) => {
                problem.get_or_insert(error);
                headers += 1;
                if headers == MAX_HEADERS {
                    break;
                }
            }
            Err(_) => {}
        }
    }
    problem.map_or(Ok(None), Err)
}

/// Reads the table at this address and the module data that points at it.
fn confirm<'data>(
    elf: &Elf<'data>,
    vaddr: Vaddr,
    bytes: &'data [u8],
    located: Located,
) -> Result<Tables<'data>, Error> {
    let header =
        Header::parse(vaddr, bytes, elf.arch()).map_err(|problem| Error::Inconsistent {
            table: Table::Pclntab,
            at: vaddr,
            problem,
        })?;
    let (module, text) = module_and_text(elf, &header).ok_or(Error::Inconsistent {
        table: Table::Moduledata,
        at: vaddr,
        problem: "no module data points at this function table",
    })?;
    Ok(Tables {
        pclntab: Pclntab::new(header, text),
        located,
        module,
    })
}

/// The address of the module data whose first word points at this table, and the text's start in it.
fn module_and_text(elf: &Elf<'_>, header: &Header<'_>) -> Option<(Vaddr, Vaddr)> {
    let sections = MODULE_SECTIONS.iter().filter_map(|name| elf.section(name));
    let segments = elf.segments().filter(|s| s.writable);
    let regions = sections
        .map(|s| (s.vaddr, s.bytes))
        .chain(segments.map(|s| (s.vaddr, s.bytes)));
    let pointer = header.vaddr.0.to_le_bytes();
    let finder = memchr::memmem::Finder::new(&pointer);
    regions
        .flat_map(|(start, bytes)| {
            finder
                .find_iter(bytes)
                .filter_map(move |at| start.checked_add(at as u64))
        })
        .filter(|at| at.0.is_multiple_of(8))
        .take(MAX_POINTERS)
        .find_map(|at| Some((at, validated_text(elf, header, at)?)))
        .or_else(|| {
            // Linkers that don't store addends in place (lld).
            elf.relative_relocations()
                .filter(|&(_, addend)| addend == header.vaddr)
                .take(MAX_POINTERS)
                .find_map(|(at, _)| Some((at, validated_text(elf, header, at)?)))
        })
}

/// The text's start, if what lies at `at` is the module data of this table.
fn validated_text(elf: &Elf<'_>, header: &Header<'_>, at: Vaddr) -> Option<Vaddr> {
    let number = |offset: u64| u64_at(elf.bytes_from(at.checked_add(offset)?)?, 0);
    let pointer = |offset: u64| elf.pointer_at(at.checked_add(offset)?);
    // Offsets of ftab and of minpc, maxpc, text, etext.
    let (ftab, pcs) = match header.generation {
        Generation::Go12 => (24, 80),
        _ => (128, 160),
    };
    if pointer(ftab)? != header.vaddr.checked_add(header.functab_offset)?
        || number(ftab + 8)? != header.functions + 1
    {
        return None;
    }
    if header.generation != Generation::Go12
        && pointer(8)? != header.vaddr.checked_add(header.names_offset)?
    {
        return None;
    }
    let [min_pc, max_pc, text, end_text] = [
        pointer(pcs)?,
        pointer(pcs + 8)?,
        pointer(pcs + 16)?,
        pointer(pcs + 24)?,
    ];
    let ordered = text <= min_pc && min_pc < max_pc && max_pc <= end_text;
    let first = header.raw_entry(0)?;
    let starts_there = match header.generation {
        Generation::Go12 | Generation::Go116 => Vaddr(first) == min_pc,
        Generation::Go118 | Generation::Go120 => text.checked_add(first)? == min_pc,
    };
    (ordered && starts_there && elf.is_executable(min_pc)).then_some(text)
}

/// Where the type descriptors are (`types` to `etypes`), and their bytes.
pub(crate) fn types<'data>(
    elf: &Elf<'data>,
    module: Vaddr,
    go_version: &GoVersion,
) -> Option<(Vaddr, &'data [u8])> {
    let (start, end) = match go_version {
        v if v.at_least(1, 27) => (296, 312), // typedesclen is in between
        v if v.at_least(1, 20) => (296, 304),
        v if v.at_least(1, 16) => (280, 288),
        _ => (200, 208),
    };
    let start = elf.pointer_at(module.checked_add(start)?)?;
    let end = elf.pointer_at(module.checked_add(end)?)?;
    let length = end.0.checked_sub(start.0).filter(|&length| length > 0)?;
    Some((start, elf.bytes_at(start, length)?))
}
