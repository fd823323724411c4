//! The ELF file: segments, sections where there are any, and the one conversion from addresses to
//! file offsets.
//!
//! Source: the System V gABI, chapters 4 and 5; structures from the crate `object`. A Go executable
//! works without section headers, so nothing here needs them.

use object::LittleEndian as LE;
use object::elf::{self, Dyn64, FileHeader64, ProgramHeader64, Rela64, SectionHeader64};
use object::pod::{Pod, from_bytes, slice_from_all_bytes};

use crate::bytes::{c_string_at, slice_at, u64_at};
use crate::error::Table;
use crate::{Arch, Error, FileOffset, Vaddr};

/// Linux refuses to run executables whose program headers exceed a page; sections are not its
/// business, but no linker makes more than a few dozen.
const MAX_SECTIONS: u64 = 4096;

/// A 64-bit little-endian ELF executable for amd64 or arm64, over its file's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Elf<'data> {
    bytes: &'data [u8],
    header: &'data FileHeader64<LE>,
    segments: &'data [ProgramHeader64<LE>],
    sections: &'data [SectionHeader64<LE>],
    section_names: &'data [u8],
    arch: Arch,
}

/// A section with contents in the file.
#[derive(Clone, Copy, Debug)]
pub struct Section<'data> {
    /// Where it is loaded.
    pub vaddr: Vaddr,
    /// Its contents.
    pub bytes: &'data [u8],
}

/// What is loaded from the file in one piece.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'data> {
    /// Where it is loaded.
    pub vaddr: Vaddr,
    /// Its contents as in the file; zero-initialised memory behind them is left out.
    pub bytes: &'data [u8],
    /// Whether it is mapped executable.
    pub executable: bool,
    /// Whether it is mapped writable.
    pub writable: bool,
}

impl<'data> Elf<'data> {
    /// Reads the headers, and checks that every loaded byte is in the file.
    ///
    /// # Errors
    ///
    /// No ELF file, no supported machine, no executable, or truncated.
    pub fn parse(bytes: &'data [u8]) -> Result<Self, Error> {
        if !bytes.starts_with(&elf::ELFMAG) {
            return Err(Error::NotElf {
                looks_like: looks_like(bytes),
            });
        }
        let header: &FileHeader64<LE> = from_prefix(bytes)
            .ok_or_else(|| truncated(size_of::<FileHeader64<LE>>() as u64, bytes))?;
        let arch = machine(header)?;
        match header.e_type.get(LE) {
            elf::ET_EXEC | elf::ET_DYN => {}
            elf::ET_REL => {
                return Err(Error::NotExecutable {
                    kind: "an object file (.o)",
                });
            }
            elf::ET_CORE => {
                return Err(Error::NotExecutable {
                    kind: "a core dump",
                });
            }
            _ => {
                return Err(Error::NotExecutable {
                    kind: "an ELF file of unknown type",
                });
            }
        }
        let segments = segments(bytes, header)?;
        let (sections, section_names) = sections(bytes, header).unwrap_or_default();
        Ok(Self {
            bytes,
            header,
            segments,
            sections,
            section_names,
            arch,
        })
    }

    /// The machine that it is for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Whether it is loaded wherever the kernel likes (`ET_DYN`): a PIE or a shared library.
    pub fn is_position_independent(&self) -> bool {
        self.header.e_type.get(LE) == elf::ET_DYN
    }

    /// Where execution starts.
    pub fn entry(&self) -> Vaddr {
        Vaddr(self.header.e_entry.get(LE))
    }

    /// The dynamic linker that it asks for; `None` for static executables and libraries.
    pub fn interpreter(&self) -> Option<&'data [u8]> {
        let header = self
            .segments
            .iter()
            .find(|s| s.p_type.get(LE) == elf::PT_INTERP)?;
        let path = slice_at(self.bytes, header.p_offset.get(LE), header.p_filesz.get(LE))?;
        c_string_at(path, 0, 4096)
    }

    /// Whether it has a symbol table for debuggers and people; `strip` and `-ldflags=-s` remove it.
    pub fn has_symbols(&self) -> bool {
        self.sections
            .iter()
            .any(|s| s.sh_type.get(LE) == elf::SHT_SYMTAB)
    }

    /// Whether there are section headers.
    pub fn has_sections(&self) -> bool {
        !self.sections.is_empty()
    }

    /// The section with this name, if it has contents in the file.
    pub fn section(&self, name: &str) -> Option<Section<'data>> {
        let header = self
            .sections
            .iter()
            .find(|s| self.section_name(s) == Some(name.as_bytes()))?;
        if header.sh_type.get(LE) == elf::SHT_NOBITS {
            return None;
        }
        Some(Section {
            vaddr: Vaddr(header.sh_addr.get(LE)),
            bytes: slice_at(self.bytes, header.sh_offset.get(LE), header.sh_size.get(LE))?,
        })
    }

    fn section_name(&self, header: &SectionHeader64<LE>) -> Option<&'data [u8]> {
        c_string_at(self.section_names, u64::from(header.sh_name.get(LE)), 256)
    }

    /// The symbol table's strings, as they are; empty without one.
    pub(crate) fn symbol_strings(&self) -> &'data [u8] {
        let strings = |kind| {
            let table = self.sections.iter().find(|s| s.sh_type.get(LE) == kind)?;
            let strings = self
                .sections
                .get(usize::try_from(table.sh_link.get(LE)).ok()?)?;
            slice_at(
                self.bytes,
                strings.sh_offset.get(LE),
                strings.sh_size.get(LE),
            )
        };
        strings(elf::SHT_SYMTAB)
            .or_else(|| strings(elf::SHT_DYNSYM))
            .unwrap_or_default()
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &'data [u8] {
        self.bytes
    }

    /// What is loaded (`PT_LOAD`), in the file's order.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'data>> + use<'data> {
        let bytes = self.bytes;
        loads(self.segments).filter_map(move |s| {
            let flags = s.p_flags.get(LE);
            Some(Segment {
                vaddr: Vaddr(s.p_vaddr.get(LE)),
                bytes: slice_at(bytes, s.p_offset.get(LE), s.p_filesz.get(LE))?,
                executable: flags.contains(elf::PF_X),
                writable: flags.contains(elf::PF_W),
            })
        })
    }

    /// The segment whose contents in the file include this address.
    fn segment_at(&self, vaddr: Vaddr) -> Option<(&'data ProgramHeader64<LE>, u64)> {
        loads(self.segments).find_map(|s| {
            let distance = vaddr.0.checked_sub(s.p_vaddr.get(LE))?;
            (distance < s.p_filesz.get(LE)).then_some((s, distance))
        })
    }

    /// Where in the file the byte at this address comes from; `None` where nothing is loaded from
    /// the file.
    pub fn file_offset(&self, vaddr: Vaddr) -> Option<FileOffset> {
        let (segment, distance) = self.segment_at(vaddr)?;
        segment
            .p_offset
            .get(LE)
            .checked_add(distance)
            .map(FileOffset)
    }

    /// Whether the address lies in a segment that is mapped executable.
    pub fn is_executable(&self, vaddr: Vaddr) -> bool {
        self.segment_at(vaddr)
            .is_some_and(|(s, _)| s.p_flags.get(LE).contains(elf::PF_X))
    }

    /// Everything from this address to the end of what its segment has in the file.
    pub fn bytes_from(&self, vaddr: Vaddr) -> Option<&'data [u8]> {
        let (segment, distance) = self.segment_at(vaddr)?;
        let offset = segment.p_offset.get(LE).checked_add(distance)?;
        slice_at(
            self.bytes,
            offset,
            segment.p_filesz.get(LE).checked_sub(distance)?,
        )
    }

    /// `len` bytes at this address.
    pub fn bytes_at(&self, vaddr: Vaddr, len: u64) -> Option<&'data [u8]> {
        slice_at(self.bytes_from(vaddr)?, 0, len)
    }

    /// The pointer at this address as it will be after relocation with a load bias of zero.
    ///
    /// Go's linker, bfd, gold and every RELR relocation store the addend in place; others (lld) leave
    /// zero there, so a zero is looked up among the RELA relocations.
    pub fn pointer_at(&self, vaddr: Vaddr) -> Option<Vaddr> {
        let in_place = u64_at(self.bytes_from(vaddr)?, 0)?;
        if in_place != 0 {
            return Some(Vaddr(in_place));
        }
        let addend = self
            .relative_relocations()
            .find(|&(place, _)| place == vaddr)
            .map(|(_, addend)| addend);
        Some(addend.unwrap_or(Vaddr(0)))
    }

    /// Places and addends of all `R_*_RELATIVE` relocations of the RELA form.
    pub(crate) fn relative_relocations(&self) -> impl Iterator<Item = (Vaddr, Vaddr)> + use<'data> {
        let kind = match self.arch {
            Arch::Amd64 => u64::from(elf::R_X86_64_RELATIVE.0),
            Arch::Arm64 => u64::from(elf::R_AARCH64_RELATIVE.0),
        };
        let table = self.rela_table().unwrap_or_default().iter();
        table
            .filter(move |r| r.r_info.get(LE) & 0xffff_ffff == kind)
            .map(|r| {
                (
                    Vaddr(r.r_offset.get(LE)),
                    Vaddr(r.r_addend.get(LE).cast_unsigned()),
                )
            })
    }

    fn rela_table(&self) -> Option<&'data [Rela64<LE>]> {
        let (mut address, mut size) = (None, None);
        for entry in self.dynamic()? {
            match entry.d_tag.get(LE) {
                elf::DT_RELA => address = Some(Vaddr(entry.d_val.get(LE))),
                elf::DT_RELASZ => size = Some(entry.d_val.get(LE)),
                elf::DT_NULL => break,
                _ => {}
            }
        }
        slice_of(self.bytes_at(address?, size?)?)
    }

    fn dynamic(&self) -> Option<&'data [Dyn64<LE>]> {
        let header = self
            .segments
            .iter()
            .find(|s| s.p_type.get(LE) == elf::PT_DYNAMIC)?;
        slice_of(slice_at(
            self.bytes,
            header.p_offset.get(LE),
            header.p_filesz.get(LE),
        )?)
    }

    /// Whether it has a dynamic section.
    pub fn is_dynamic(&self) -> bool {
        self.dynamic().is_some()
    }

    /// The names of the shared libraries that it needs.
    pub(crate) fn needed(&self) -> impl Iterator<Item = &'data [u8]> + use<'data> {
        let entries = self.dynamic().unwrap_or_default();
        let strings = entries
            .iter()
            .find(|e| e.d_tag.get(LE) == elf::DT_STRTAB)
            .and_then(|e| self.bytes_from(Vaddr(e.d_val.get(LE))))
            .unwrap_or_default();
        entries
            .iter()
            .filter(|e| e.d_tag.get(LE) == elf::DT_NEEDED)
            .filter_map(move |e| c_string_at(strings, e.d_val.get(LE), 4096))
    }
}

fn loads(segments: &[ProgramHeader64<LE>]) -> impl Iterator<Item = &ProgramHeader64<LE>> {
    segments.iter().filter(|s| s.p_type.get(LE) == elf::PT_LOAD)
}

fn machine(header: &FileHeader64<LE>) -> Result<Arch, Error> {
    let unsupported = |found: String| Err(Error::UnsupportedMachine { found });
    if header.e_ident.class != elf::ELFCLASS64 {
        return unsupported("a 32-bit machine".into());
    }
    if header.e_ident.data != elf::ELFDATA2LSB {
        return unsupported("a big-endian machine".into());
    }
    match header.e_machine.get(LE) {
        elf::EM_X86_64 => Ok(Arch::Amd64),
        elf::EM_AARCH64 => Ok(Arch::Arm64),
        elf::EM_RISCV => unsupported("RISC-V".into()),
        elf::EM_PPC64 => unsupported("ppc64le".into()),
        elf::EM_LOONGARCH => unsupported("LoongArch".into()),
        elf::EM_MIPS => unsupported("MIPS".into()),
        other => unsupported(format!("machine number {}", other.0)),
    }
}

fn segments<'data>(
    bytes: &'data [u8],
    header: &FileHeader64<LE>,
) -> Result<&'data [ProgramHeader64<LE>], Error> {
    let size = size_of::<ProgramHeader64<LE>>() as u64;
    let inconsistent = |problem| {
        Err(Error::Inconsistent {
            table: Table::Elf,
            at: Vaddr(header.e_entry.get(LE)),
            problem,
        })
    };
    let count = u64::from(header.e_phnum.get(LE));
    if count == 0 {
        return Err(Error::NotExecutable {
            kind: "an ELF file without program headers",
        });
    }
    if u64::from(header.e_phentsize.get(LE)) != size {
        return inconsistent("program headers have an unknown size");
    }
    let start = header.e_phoff.get(LE);
    let table = slice_at(bytes, start, count * size)
        .ok_or_else(|| truncated(start.saturating_add(count * size), bytes))?;
    let segments: &[ProgramHeader64<LE>] = slice_of(table).unwrap_or_default();
    for segment in loads(segments) {
        let (offset, length) = (segment.p_offset.get(LE), segment.p_filesz.get(LE));
        let Some(end) = offset.checked_add(length) else {
            return inconsistent("a segment reaches beyond any file");
        };
        if end > bytes.len() as u64 {
            return Err(truncated(end, bytes));
        }
        if segment.p_vaddr.get(LE).checked_add(length).is_none() {
            return inconsistent("a segment reaches beyond the address space");
        }
    }
    Ok(segments)
}

type Sections<'data> = (&'data [SectionHeader64<LE>], &'data [u8]);

/// Sections are a convenience: where they are missing or cut off, there are none.
fn sections<'data>(bytes: &'data [u8], header: &FileHeader64<LE>) -> Option<Sections<'data>> {
    let size = size_of::<SectionHeader64<LE>>() as u64;
    let count = u64::from(header.e_shnum.get(LE));
    if u64::from(header.e_shentsize.get(LE)) != size || count > MAX_SECTIONS {
        return None;
    }
    let table = slice_at(bytes, header.e_shoff.get(LE), count * size)?;
    let sections: &[SectionHeader64<LE>] = slice_of(table)?;
    let names = sections.get(usize::from(header.e_shstrndx.get(LE).0))?;
    Some((
        sections,
        slice_at(bytes, names.sh_offset.get(LE), names.sh_size.get(LE))?,
    ))
}

fn truncated(needs: u64, bytes: &[u8]) -> Error {
    Error::Truncated {
        table: Table::Elf,
        needs,
        has: bytes.len() as u64,
    }
}

fn from_prefix<T: Pod>(bytes: &[u8]) -> Option<&T> {
    from_bytes(bytes).ok().map(|(value, _)| value)
}

fn slice_of<T: Pod>(bytes: &[u8]) -> Option<&[T]> {
    let whole = bytes.len() - bytes.len() % size_of::<T>();
    slice_from_all_bytes(bytes.get(..whole)?).ok()
}

/// What people give to a tool that wants an executable.
fn looks_like(bytes: &[u8]) -> &'static str {
    let head = bytes.get(..512).unwrap_or(bytes);
    match head {
        [] => "an empty file",
        [b'#', b'!', ..] => "a script",
        [0x1f, 0x8b, ..] => "a gzip archive",
        [b'P', b'K', 3, 4, ..] => "a zip archive",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "an xz archive",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd archive",
        [b'M', b'Z', ..] => "a Windows program",
        [0xcf, 0xfa, 0xed, 0xfe, ..] | [0xca, 0xfe, 0xba, 0xbe, ..] => "a macOS or Java program",
        [0, b'a', b's', b'm', ..] => "a WebAssembly module",
        _ if head.starts_with(b"!<arch>\n") => "a static library (.a)",
        _ if elf::ELFMAG.starts_with(head) => "a file of less than 4 bytes",
        _ if std::str::from_utf8(head.get(..head.len().min(64)).unwrap_or(head))
            .map_or_else(|e| e.valid_up_to() > 32, |_| true)
            && !head
                .iter()
                .any(|&b| b < 0x20 && !b.is_ascii_whitespace() && b != 0x1b) =>
        {
            "a text file"
        }
        _ => "data of another kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_files_are_named() {
        for (bytes, expected) in [
            (&b""[..], "an empty file"),
            (b"\x7fEL", "a file of less than 4 bytes"),
            (b"#!/bin/sh\necho", "a script"),
            (b"hello world\n", "a text file"),
            ("grüß Gott\n".as_bytes(), "a text file"),
            (b"!<arch>\nfoo", "a static library (.a)"),
            (&[0, 1, 2, 3, 0xff, 0xfe], "data of another kind"),
        ] {
            let error = Elf::parse(bytes).unwrap_err();
            assert_eq!(
                error,
                Error::NotElf {
                    looks_like: expected
                },
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn a_lone_header_is_truncated() {
        let error = Elf::parse(b"\x7fELF\x02\x01\x01").unwrap_err();
        assert!(
            matches!(
                error,
                Error::Truncated {
                    needs: 64,
                    has: 7,
                    ..
                }
            ),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_behind_the_magic(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
            bytes.extend(tail);
            if let Ok(elf) = Elf::parse(&bytes) {
                let _ = elf.pointer_at(elf.entry());
                let _ = elf.section(".text");
                prop_assert!(elf.segments().count() < 65536);
            }
        }
    }
}
