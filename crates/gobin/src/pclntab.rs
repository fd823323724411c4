//! The function table, pclntab: names and addresses of all functions, stripped or not.
//!
//! Source: `src/debug/gosym/pclntab.go` of Go 1.24 and `src/runtime/symtab.go` of Go 1.8 to 1.27.
//! Four generations of its header are in use. Nothing is copied and no index is built: a lookup
//! finds the name's offset first, then the one function that has it.

use std::ops::Range;

use crate::bytes::{c_string_at, slice_at, u32_at, u64_at};
use crate::{Arch, Vaddr};

/// Names of functions are at most this long for us; generics make the longest, of a few kB.
const MAX_NAME: usize = 64 << 10;
/// How often a name is looked at as the tail of others before it is given up.
const MAX_NAME_OFFSETS: usize = 16;
/// What is wrong with tables of other generations, and with those whose magic number was changed.
pub(crate) const UNKNOWN_MAGIC: &str = "its magic number is unknown";
/// Longer import paths are not looked for.
const MAX_PREFIX: usize = 1024;
/// The largest Go programs known have under a million functions.
const MAX_FUNCTIONS: u64 = 16 << 20;

/// The header's generations, by the Go version that brought them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Generation {
    /// Magic `fffffffb`: Go 1.2 to 1.15.
    Go12,
    /// Magic `fffffffa`: Go 1.16 and 1.17.
    Go116,
    /// Magic `fffffff0`: Go 1.18 and 1.19.
    Go118,
    /// Magic `fffffff1`: Go 1.20 and later.
    Go120,
}

impl Generation {
    fn from_magic(magic: u32) -> Option<Self> {
        match magic {
            0xffff_fffb => Some(Self::Go12),
            0xffff_fffa => Some(Self::Go116),
            0xffff_fff0 => Some(Self::Go118),
            0xffff_fff1 => Some(Self::Go120),
            _ => None,
        }
    }

    /// Whether functions are listed as 32-bit offsets from the text's start, not as addresses.
    fn has_offsets(self) -> bool {
        self >= Self::Go118
    }
}

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Go12 => "Go 1.2",
            Self::Go116 => "Go 1.16",
            Self::Go118 => "Go 1.18",
            Self::Go120 => "Go 1.20",
        })
    }
}

/// A table whose header and function list are sound in themselves. Which text it speaks of is the
/// module data's to say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header<'data> {
    pub(crate) vaddr: Vaddr,
    pub(crate) generation: Generation,
    pub(crate) functions: u64,
    /// Offset of the name table from the header; 0 for Go 1.2, where names lie anywhere.
    pub(crate) names_offset: u64,
    /// Offset of the function list from the header.
    pub(crate) functab_offset: u64,
    bytes: &'data [u8],
    /// All names are in here, at their offsets.
    names: &'data [u8],
    /// The list of functions, each an entry and the offset of its record.
    functab: &'data [u8],
    /// What the records' offsets count from.
    records: &'data [u8],
}

impl<'data> Header<'data> {
    /// Reads a header at the start of `bytes`, which may extend beyond the table.
    pub(crate) fn parse(
        vaddr: Vaddr,
        bytes: &'data [u8],
        arch: Arch,
    ) -> Result<Self, &'static str> {
        const CUT: &str = "its header is cut off";
        let generation =
            Generation::from_magic(u32_at(bytes, 0).ok_or(CUT)?).ok_or(UNKNOWN_MAGIC)?;
        let quantum = match arch {
            Arch::Amd64 => 1,
            Arch::Arm64 => 4,
        };
        if slice_at(bytes, 4, 4) != Some(&[0, 0, quantum, 8]) {
            return Err("its header is for another machine");
        }
        let word = |index: u64| u64_at(bytes, 8 + 8 * index).ok_or(CUT);
        let functions = word(0)?;
        if functions == 0 || functions > MAX_FUNCTIONS {
            return Err("its number of functions is implausible");
        }
        let (names_offset, names_end, functab_offset) = match generation {
            Generation::Go12 => (0, bytes.len() as u64, 16),
            Generation::Go116 => (word(2)?, word(3)?, word(6)?),
            Generation::Go118 | Generation::Go120 => (word(3)?, word(4)?, word(7)?),
        };
        let entry_size = if generation.has_offsets() { 8 } else { 16 };
        // The list ends with the last function's end, without a record.
        let functab_size = functions * entry_size + entry_size / 2;
        let names_size = names_end
            .checked_sub(names_offset)
            .ok_or("its name table ends before it starts")?;
        let names =
            slice_at(bytes, names_offset, names_size).ok_or("its name table lies outside of it")?;
        let functab = slice_at(bytes, functab_offset, functab_size)
            .ok_or("its function list lies outside of it")?;
        let records = match generation {
            Generation::Go12 => bytes,
            _ => bytes.get(functab_offset as usize..).ok_or(CUT)?,
        };
        let header = Self {
            vaddr,
            generation,
            functions,
            names_offset,
            functab_offset,
            bytes,
            names,
            functab,
            records,
        };
        if !header.is_ascending() {
            return Err("its function list is not in ascending order");
        }
        Ok(header)
    }

    fn is_ascending(&self) -> bool {
        let mut last = None;
        (0..=self.functions).all(|index| {
            let entry = self.raw_entry(index);
            let ascends = entry.is_some() && last <= entry;
            last = entry;
            ascends
        })
    }

    /// The n-th function's entry as it is stored; the end of the last one's for n = `functions`.
    pub(crate) fn raw_entry(&self, index: u64) -> Option<u64> {
        if self.generation.has_offsets() {
            u32_at(self.functab, index.checked_mul(8)?).map(u64::from)
        } else {
            u64_at(self.functab, index.checked_mul(16)?)
        }
    }

    /// The offset of the n-th function's name in the name table.
    fn name_offset(&self, index: u64) -> Option<u32> {
        if self.generation.has_offsets() {
            let record = u32_at(self.functab, index.checked_mul(8)? + 4)?;
            u32_at(self.records, u64::from(record) + 4)
        } else {
            let record = u64_at(self.functab, index.checked_mul(16)? + 8)?;
            u32_at(self.records, record.checked_add(8)?)
        }
    }

    /// Where the header keeps the text's start, for the generations that do; zero since Go 1.26.
    pub(crate) fn stored_text_start(&self) -> Option<u64> {
        self.generation
            .has_offsets()
            .then(|| u64_at(self.bytes, 24))?
    }
}

/// The function table together with the text that it speaks of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pclntab<'data> {
    header: Header<'data>,
    text: Vaddr,
}

/// A function and its code's range; padding behind the code counts as part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundFunction {
    /// First byte to one past the last.
    pub(crate) range: Range<Vaddr>,
}

impl<'data> Pclntab<'data> {
    pub(crate) fn new(header: Header<'data>, text: Vaddr) -> Self {
        Self { header, text }
    }

    /// Where the table starts.
    pub(crate) fn vaddr(&self) -> Vaddr {
        self.header.vaddr
    }

    /// Its header's generation.
    pub(crate) fn generation(&self) -> Generation {
        self.header.generation
    }

    /// Where Go's text starts (`runtime.text`): not necessarily where the section `.text` does.
    pub(crate) fn text_start(&self) -> Vaddr {
        self.text
    }

    /// The text's start as the header has it.
    pub(crate) fn header_text_start(&self) -> Option<Vaddr> {
        self.header.stored_text_start().map(Vaddr)
    }

    /// How many functions it lists.
    pub(crate) fn functions(&self) -> u64 {
        self.header.functions
    }

    /// The n-th function's entry; the last one's end for n = the number of functions.
    fn entry(&self, index: u64) -> Option<Vaddr> {
        let raw = self.header.raw_entry(index)?;
        if self.header.generation.has_offsets() {
            self.text.checked_add(raw)
        } else {
            Some(Vaddr(raw))
        }
    }

    fn function(&self, index: u64) -> Option<FoundFunction> {
        let range = self.entry(index)?..self.entry(index.checked_add(1)?)?;
        Some(FoundFunction { range })
    }

    fn name(&self, index: u64) -> Option<&'data [u8]> {
        c_string_at(
            self.header.names,
            u64::from(self.header.name_offset(index)?),
            MAX_NAME,
        )
    }

    /// The name of the function that starts at exactly this address.
    pub(crate) fn name_of_function_at(&self, entry: Vaddr) -> Option<&'data [u8]> {
        let (mut low, mut high) = (0, self.header.functions);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entry(middle)?.cmp(&entry) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => {
                    low = middle;
                    break;
                }
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        (low < self.header.functions && self.entry(low)? == entry).then(|| self.name(low))?
    }

    /// Finds functions by their full names, each at the same position in the answer.
    ///
    /// One search of the name table per name, then at most one pass over the function list, which
    /// ends as soon as every name that exists has been found.
    pub(crate) fn find<const N: usize>(&self, names: [&str; N]) -> [Option<FoundFunction>; N] {
        let mut wanted: Vec<(u32, usize)> = Vec::new();
        for (position, name) in names.iter().enumerate() {
            // A name is also found as the tail of others'. No function refers to those offsets.
            let mut needle = name.as_bytes().to_vec();
            needle.push(0);
            wanted.extend(
                memchr::memmem::find_iter(self.header.names, &needle)
                    .take(MAX_NAME_OFFSETS)
                    .filter_map(|offset| Some((u32::try_from(offset).ok()?, position))),
            );
        }
        let mut found = [const { None }; N];
        let (Some(&least), Some(&most)) = (
            wanted.iter().map(|(offset, _)| offset).min(),
            wanted.iter().map(|(offset, _)| offset).max(),
        ) else {
            return found;
        };
        let mut missing = (0..N)
            .filter(|position| wanted.iter().any(|(_, p)| p == position))
            .count();
        for index in 0..self.header.functions {
            let Some(offset) = self.header.name_offset(index) else {
                continue;
            };
            if !(least..=most).contains(&offset) {
                continue;
            }
            for &(_, position) in wanted.iter().filter(|&&(wanted, _)| wanted == offset) {
                if let Some(slot @ None) = found.get_mut(position) {
                    *slot = self.function(index);
                    missing -= 1;
                }
            }
            if missing == 0 {
                break;
            }
        }
        found
    }

    /// What the names of functions begin with that end in a dot and one of these: import paths, in the
    /// form that names have, of packages with such functions. Each once, at most 16.
    pub(crate) fn prefixes_of(&self, ends: &[&str]) -> Vec<String> {
        let mut prefixes = Vec::new();
        for end in ends {
            let needle = [b".", end.as_bytes(), b"\0"].concat();
            let hits = memchr::memmem::find_iter(self.header.names, &needle);
            for prefix in hits.take(MAX_NAME_OFFSETS).filter_map(|at| self.prefix(at)) {
                if !prefixes.contains(&prefix) && prefixes.len() < MAX_NAME_OFFSETS {
                    prefixes.push(prefix);
                }
            }
        }
        prefixes
    }

    /// What stands in the names up to `end`, in the name that goes on there.
    fn prefix(&self, end: usize) -> Option<String> {
        let nearest = end.saturating_sub(MAX_PREFIX);
        let before = self.header.names.get(nearest..end)?;
        let start = match self.header.generation {
            // Names lie between other data, which need not end with a zero: see which one is meant.
            Generation::Go12 => {
                let offsets = (0..self.header.functions).filter_map(|n| self.header.name_offset(n));
                let mut offsets = offsets.map(|offset| offset as usize);
                let mut starts = offsets
                    .by_ref()
                    .filter(|offset| (nearest..end).contains(offset));
                starts.find(|&start| {
                    let name = self.header.names.get(start..end);
                    name.is_some_and(|name| memchr::memchr(0, name).is_none())
                })?
            }
            _ => nearest + memchr::memrchr(0, before).map_or(0, |nul| nul + 1),
        };
        let prefix = self.header.names.get(start..end)?;
        Some(String::from_utf8_lossy(prefix).into_owned())
    }
}

/// Offsets in `bytes` where a header could start: its first eight bytes are right.
pub(crate) fn candidates(bytes: &[u8], arch: Arch) -> impl Iterator<Item = usize> {
    let rest: &[u8] = match arch {
        Arch::Amd64 => &[0xff, 0xff, 0xff, 0, 0, 1, 8],
        Arch::Arm64 => &[0xff, 0xff, 0xff, 0, 0, 4, 8],
    };
    memchr::memmem::find_iter(bytes, rest).filter_map(|at| {
        let start = at.checked_sub(1)?;
        Generation::from_magic(u32_at(bytes, start as u64)?).map(|_| start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A table of the given generation with functions of 16 bytes from 0x1000 on.
    fn table(generation: Generation, names: &[&str]) -> Vec<u8> {
        let count = names.len();
        let offsets = generation.has_offsets();
        let magic: u32 = match generation {
            Generation::Go12 => 0xffff_fffb,
            Generation::Go116 => 0xffff_fffa,
            Generation::Go118 => 0xffff_fff0,
            Generation::Go120 => 0xffff_fff1,
        };
        let header_words = match generation {
            Generation::Go12 => 1,
            Generation::Go116 => 7,
            _ => 8,
        };
        let mut strings = Vec::new();
        let mut name_offsets = Vec::new();
        for name in names {
            name_offsets.push(strings.len() as u64);
            strings.extend(name.as_bytes());
            strings.push(0);
        }
        let functab_at = if generation == Generation::Go12 {
            16
        } else {
            8 + 8 * header_words + strings.len() as u64
        };
        let entry_size = if offsets { 8 } else { 16 };
        let functab_size = count as u64 * entry_size + entry_size / 2;
        let records_base = if generation == Generation::Go12 {
            0
        } else {
            functab_at
        };
        let records_at = functab_at + functab_size - records_base;
        let strings_at = if generation == Generation::Go12 {
            records_at + 16 * count as u64
        } else {
            0
        };
        let mut out = magic.to_le_bytes().to_vec();
        out.extend([0, 0, 1, 8]);
        let names_at = 8 + 8 * header_words;
        let end = names_at + strings.len() as u64;
        let words: &[u64] = match generation {
            Generation::Go12 => &[count as u64],
            Generation::Go116 => &[count as u64, 1, names_at, end, end, end, functab_at],
            _ => &[count as u64, 1, 0, names_at, end, end, end, functab_at],
        };
        out.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        if generation != Generation::Go12 {
            out.extend(&strings);
        }
        for index in 0..=count as u64 {
            let (pc, record) = (0x10 * index, records_at + 16 * index);
            if offsets {
                out.extend((pc as u32).to_le_bytes());
                out.extend((record as u32).to_le_bytes());
            } else {
                out.extend((pc + 0x1000).to_le_bytes());
                out.extend(record.to_le_bytes());
            }
        }
        out.truncate((functab_at + functab_size) as usize);
        for offset in name_offsets {
            let name = ((offset + strings_at) as u32).to_le_bytes();
            let mut record = [0u8; 16];
            record[if offsets { 4..8 } else { 8..12 }].copy_from_slice(&name);
            out.extend(record);
        }
        if generation == Generation::Go12 {
            out.extend(&strings);
        }
        out
    }

    const GENERATIONS: [Generation; 4] = [
        Generation::Go12,
        Generation::Go116,
        Generation::Go118,
        Generation::Go120,
    ];

    #[test]
    fn every_generation_is_looked_up() {
        for generation in GENERATIONS {
            let bytes = table(
                generation,
                &["a.first", "vendor/crypto/tls.x", "crypto/tls.x", "b.last"],
            );
            let header = Header::parse(Vaddr(0x9000), &bytes, Arch::Amd64).unwrap();
            let pclntab = Pclntab::new(header, Vaddr(0x1000));
            let [x, missing, last] = pclntab.find(["crypto/tls.x", "no.such", "b.last"]);
            assert_eq!(
                x.unwrap().range,
                Vaddr(0x1020)..Vaddr(0x1030),
                "{generation}"
            );
            assert_eq!(missing, None);
            assert_eq!(
                last.unwrap().range,
                Vaddr(0x1030)..Vaddr(0x1040),
                "{generation}"
            );
            assert_eq!(
                pclntab.name_of_function_at(Vaddr(0x1010)),
                Some(&b"vendor/crypto/tls.x"[..])
            );
            assert_eq!(pclntab.name_of_function_at(Vaddr(0x1011)), None);
            assert_eq!(pclntab.name_of_function_at(Vaddr(0x1040)), None);
            assert_eq!(
                pclntab.prefixes_of(&["x"]),
                ["vendor/crypto/tls", "crypto/tls"],
                "{generation}"
            );
        }
    }

    #[test]
    fn a_list_out_of_order_is_refused() {
        let mut bytes = table(Generation::Go120, &["a.a", "b.b"]);
        let at = bytes.len() - 2 * 16 - 4 - 16;
        bytes[at] = 0xff;
        assert!(Header::parse(Vaddr(0), &bytes, Arch::Amd64).is_err());
    }

    proptest! {
        #[test]
        fn damaged_tables_never_panic(
            generation in prop::sample::select(&GENERATIONS[..]),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = table(generation, &["a.first", "crypto/tls.x", "b.last"]);
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Ok(header) = Header::parse(Vaddr(u64::MAX - 8), &bytes, Arch::Amd64) {
                let pclntab = Pclntab::new(header, Vaddr(u64::MAX - 0x1000));
                let _ = pclntab.find(["crypto/tls.x", "b.last"]);
                let _ = pclntab.name_of_function_at(Vaddr(0x1010));
                let _ = pclntab.prefixes_of(&["x"]);
            }
        }
    }
}
