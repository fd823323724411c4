//! Programs whose functions have lost their names, or have others: what garble and similar obfuscators
//! make, and whoever edits a function table.
//!
//! Nobody can say where their TLS is, but that it is there: `crypto/tls` leaves its messages.

use crate::elf::Elf;

/// Messages of `crypto/tls`, of Go 1.15 to 1.27 at least, that no other package has: of clients and
/// servers, and of any connection.
const MESSAGES: [&[u8]; 2] = [
    b"tls: failed to write to key log: ",
    b"oversized record received with length %d",
];

/// Sections that Go's linker makes.
const GO_SECTIONS: [&str; 5] = [
    ".gopclntab",
    ".go.buildinfo",
    ".note.go.buildid",
    ".data.rel.ro.gopclntab",
    ".go.module",
];

/// Whether there is code of `crypto/tls`, or of a copy of it, by its messages.
pub(crate) fn has_tls(elf: &Elf<'_>) -> bool {
    let section = elf.section(".rodata").map(|section| section.bytes);
    let segments = elf
        .segments()
        .filter(|segment| !segment.writable && section.is_none())
        .map(|segment| segment.bytes);
    section.into_iter().chain(segments).any(|bytes| {
        MESSAGES
            .iter()
            .any(|message| memchr::memmem::find(bytes, message).is_some())
    })
}

/// The same of a file that may not be Go's.
pub(crate) fn is_go_with_tls(elf: &Elf<'_>) -> bool {
    has_go_sections(elf) && has_tls(elf)
}

/// Whether the file has sections that only Go's linker makes: nearly every file with Go code, unless its
/// section headers were removed. It costs next to nothing, for files of which few are Go's.
pub fn has_go_sections(elf: &Elf<'_>) -> bool {
    GO_SECTIONS.iter().any(|name| elf.section(name).is_some())
}
