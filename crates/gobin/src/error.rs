//! Why an executable, or one of its functions, can't be probed.
//!
//! Messages say what was found and what to do. They name no file: whoever opened it puts its path
//! in front.

use crate::{Arch, GoVersion, Vaddr};

/// The tables of a Go executable that the analysis reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// ELF header, program headers or what they point at.
    Elf,
    /// `.go.buildinfo`.
    BuildInfo,
    /// The function table, `runtime.pclntab`.
    Pclntab,
    /// `runtime.firstmoduledata`.
    Moduledata,
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Elf => "ELF headers",
            Self::BuildInfo => "build info",
            Self::Pclntab => "function table (pclntab)",
            Self::Moduledata => "module data",
        })
    }
}

/// Why an executable, or one of its functions, can't be probed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is no ELF file.
    #[error("not an ELF file but {looks_like}; give the path of a Linux executable built by Go")]
    NotElf {
        /// What the first bytes look like, with its article.
        looks_like: &'static str,
    },

    /// 32-bit, big-endian, or a machine other than amd64 and arm64.
    #[error("an ELF file for {found}; only amd64 (x86-64) and arm64 (aarch64) are supported")]
    UnsupportedMachine {
        /// Class, byte order or machine that was found.
        found: String,
    },

    /// An ELF file that can't be run: an object file or a core dump.
    #[error("{kind}, not an executable; give the path of the linked program")]
    NotExecutable {
        /// What it is, with its article.
        kind: &'static str,
    },

    /// The file ends before what its headers say it contains.
    #[error(
        "the file is truncated: by its {table} it has {needs} bytes or more, but there are {has}; copy or build it again"
    )]
    Truncated {
        /// Which table says so.
        table: Table,
        /// The size in bytes that it would need.
        needs: u64,
        /// The size in bytes that it has.
        has: u64,
    },

    /// A table contradicts itself or another one.
    #[error("the {table} at {at} can't be trusted: {problem}; the file is damaged or was altered")]
    Inconsistent {
        /// Which table.
        table: Table,
        /// Where it is.
        at: Vaddr,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// An executable in which nothing of Go was found.
    #[error(
        "not a Go program: it has neither Go build info nor a Go function table (pclntab); \
         other languages' TLS libraries are not supported"
    )]
    NotGo,

    /// Compressed by a packer such as UPX.
    #[error("packed by {packer}, so that its code is not in the file; unpack it first (upx -d)")]
    Packed {
        /// The packer's name.
        packer: &'static str,
    },

    /// Built by gccgo.
    #[error(
        "built by gccgo, which writes no pclntab; only the gc toolchain (`go build`) is supported"
    )]
    Gccgo,

    /// Built by TinyGo.
    #[error(
        "built by TinyGo, which has no crypto/tls of its own; only the gc toolchain (`go build`) is supported"
    )]
    TinyGo,

    /// Go build info, but no function table that the runtime would use.
    #[error(
        "built by {go_version}, but no valid function table (pclntab) was found; \
         the file is damaged, packed or obfuscated, or this Go version is newer than this program"
    )]
    NoPclntab {
        /// The version in the build info.
        go_version: GoVersion,
    },

    /// A Go program that doesn't say which Go built it.
    #[error(
        "a Go program that does not say which version of Go built it (no build info, no runtime.buildVersion); it was altered after the build"
    )]
    NoGoVersion,

    /// A Go program whose version names no release.
    #[error("built by Go version {text:?}, which names no release; its layouts are unknown")]
    UnknownGoVersion {
        /// The version as the file has it.
        text: String,
    },

    /// Older than the oldest supported Go.
    #[error("built by {go_version}; Go 1.8 is the oldest version supported")]
    GoTooOld {
        /// The version.
        go_version: GoVersion,
    },

    /// A Go program into which TLS was not linked.
    #[error(
        "a Go program without crypto/tls: neither (*Conn).Read nor (*Conn).writeRecordLocked of it \
         or of a copy of it is linked in, so there is no TLS to capture"
    )]
    NoTls,

    /// A Go program that has TLS, but not the names of its functions.
    #[error(
        "Go, names not found: by its messages, crypto/tls or a copy is in there, but functions were \
         renamed (as garble does) or their table is gone; capture a build without that"
    )]
    NamesNotFound,

    /// The function is not in the function table.
    #[error("no function {symbol} in the function table: not linked in, or inlined everywhere")]
    FunctionNotFound {
        /// Its full name.
        symbol: String,
    },

    /// The function's code does not have the shape that a safe probe needs.
    #[error("no safe probe site in {symbol} at {at}: {problem}")]
    NoUsableSite {
        /// The function's full name.
        symbol: String,
        /// Its entry, or the instruction in question.
        at: Vaddr,
        /// What is missing or unexpected.
        problem: String,
    },

    /// Nothing can be said about a connection but what it carries.
    #[error(
        "what describes connections in memory was not found in the executable's type descriptors: \
         {missing} is missing"
    )]
    NoConnections {
        /// What was looked for last.
        missing: &'static str,
    },

    /// The code passes arguments in another way than this version of Go does.
    #[error(
        "built by {go_version} for {arch}, but the code of {symbol} follows another calling \
         convention than that version's; the version was altered or is a fork's"
    )]
    AbiMismatch {
        /// The function's full name.
        symbol: String,
        /// The version in the build info.
        go_version: GoVersion,
        /// The machine.
        arch: Arch,
    },
}
