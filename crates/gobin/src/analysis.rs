//! The whole analysis of one executable: what `inspect` prints and what a plan is made from.

use std::ops::Range;

use crate::buildinfo::{self, BuildInfo};
use crate::connection;
use crate::elf::Elf;
use crate::moduledata::{self, Located, Tables};
use crate::pclntab::{FoundFunction, Generation};
use crate::plan::{EntryProbe, Function, KeyPlan, ProbePlan, ReadProbe, ReadSitePreference};
use crate::rtype::Types;
use crate::sites::{self, Chosen};
use crate::{Abi, Arch, ConnectionPlan, Error, FileOffset, GoVersion, Vaddr};

/// The import path of Go's own TLS package.
pub const CRYPTO_TLS: &str = "crypto/tls";

/// What kind of file the build made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BuildMode {
    /// An executable that is loaded at the addresses it was linked for.
    Executable,
    /// A position-independent executable.
    Pie,
    /// A shared library for C programs, or a Go plugin.
    SharedLibrary,
}

impl std::fmt::Display for BuildMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Executable => "exe",
            Self::Pie => "pie",
            Self::SharedLibrary => "shared library",
        })
    }
}

/// Whether a dynamic linker is involved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// Everything is in the file.
    Static,
    /// Shared libraries are loaded by this dynamic linker; `None` for a library, which has none.
    Dynamic(Option<String>),
}

/// The function table in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PclntabSummary {
    /// Where it is loaded.
    pub vaddr: Vaddr,
    /// Where it is in the file.
    pub offset: FileOffset,
    /// Its header's generation.
    pub generation: Generation,
    /// How it was found.
    pub located: Located,
    /// Where Go's text starts, as the module data says.
    pub text_start: Vaddr,
    /// The text's start as the table's header says; zero since Go 1.26, `None` before Go 1.18.
    pub header_text_start: Option<Vaddr>,
    /// How many functions it lists.
    pub functions: u64,
}

/// What was found out about one function.
#[derive(Clone, Debug)]
pub struct FunctionReport {
    /// Which one.
    pub function: Function,
    /// Its full name.
    pub symbol: String,
    /// Its code, or why it wasn't found.
    pub code: Result<FunctionCode, Error>,
    /// Where it can be probed, or why it can't.
    pub probes: Probes,
}

/// A function's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionCode {
    /// First byte to one past the last, padding included.
    pub range: Range<Vaddr>,
    /// Where the first byte is in the file.
    pub offset: FileOffset,
}

/// The ways to probe one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probes {
    /// Behind the stack check.
    Entry(Result<EntryProbe, Error>),
    /// `Read` has two ways.
    Read {
        /// At the call that copies the plaintext.
        copy: Result<ReadProbe, Error>,
        /// At the returns.
        returns: Result<ReadProbe, Error>,
    },
}

/// What is in a Go executable.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// The machine it is for.
    pub arch: Arch,
    /// How its Go functions pass arguments.
    pub abi: Abi,
    /// Go version, main package and module, build settings.
    pub build_info: BuildInfo,
    /// What kind of file it is.
    pub build_mode: BuildMode,
    /// Whether it has no symbol table (`-ldflags=-s`, `strip`).
    pub stripped: bool,
    /// Whether it has no section headers, as after `sstrip`.
    pub sectionless: bool,
    /// Static or dynamic.
    pub linkage: Linkage,
    /// Its entry point.
    pub entry: Vaddr,
    /// Where that is in the file, if it is in an executable segment; a library has none.
    pub entry_offset: Option<FileOffset>,
    /// The function table.
    pub pclntab: PclntabSummary,
    /// The import path of the TLS package that was looked for.
    pub package: String,
    /// The import paths of other packages that have `(*Conn).writeRecordLocked`: copies of
    /// `crypto/tls`, each of which can be given to [`analyze_package`]. At most 16. Go 1.15 and
    /// older mix names with other data, so that a path may begin with stray bytes there.
    pub other_packages: Vec<String>,
    /// The functions, in the order of [`Function::ALL`].
    pub functions: Vec<FunctionReport>,
    /// Where a connection's addresses and what the handshake agreed on are, or why that isn't known.
    pub connections: Result<ConnectionPlan, Error>,
    /// The offset of `goid` in `runtime.g`, in bytes, if it is known.
    pub goroutine_id: Option<u32>,
}

/// Analyses an executable that uses `crypto/tls`.
///
/// # Errors
///
/// Whatever keeps its functions from being looked up. That a function isn't there, or can't be
/// probed, is part of the analysis instead.
pub fn analyze(bytes: &[u8]) -> Result<Analysis, Error> {
    analyze_package(bytes, CRYPTO_TLS)
}

/// As [`analyze`], for a copy of `crypto/tls` with another import path, such as
/// `github.com/refraction-networking/utls`.
///
/// # Errors
///
/// As [`analyze`].
pub fn analyze_package(bytes: &[u8], package: &str) -> Result<Analysis, Error> {
    let elf = Elf::parse(bytes)?;
    let (tables, build_info) = go_tables(&elf)?;
    let (pclntab, located) = (tables.pclntab, tables.located);
    let go_version = &build_info.go_version;
    if !go_version.at_least(1, 8) {
        return Err(Error::GoTooOld {
            go_version: go_version.clone(),
        });
    }
    let abi = Abi::of(go_version, elf.arch());
    let context = sites::Context {
        elf: &elf,
        pclntab: &pclntab,
        go_version,
        abi,
    };
    let symbols = Function::ALL.map(|function| function.symbol(package));
    let found = pclntab.find(symbols.each_ref().map(String::as_str));
    let functions = Function::ALL
        .into_iter()
        .zip(symbols)
        .zip(found)
        .map(|((function, symbol), found)| report(context, function, symbol, found))
        .collect();
    let types = moduledata::types(&elf, tables.module, go_version)
        .map(|(start, bytes)| Types::read(start, bytes, go_version));
    let no_types = Error::NoConnections {
        missing: "their table",
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Analysis {
        arch: elf.arch(),
        abi,
        build_mode: build_mode(&elf, &build_info),
        stripped: !elf.has_symbols(),
        sectionless: !elf.has_sections(),
        linkage: match (elf.interpreter(), elf.is_dynamic()) {
            (Some(interpreter), _) => Linkage::Dynamic(Some(text(interpreter))),
            (None, true) if elf.needed().next().is_some() => Linkage::Dynamic(None),
            _ => Linkage::Static,
        },
        entry: elf.entry(),
        entry_offset: elf
            .is_executable(elf.entry())
            .then(|| elf.file_offset(elf.entry()))
            .flatten(),
        pclntab: PclntabSummary {
            vaddr: pclntab.vaddr(),
            offset: elf.file_offset(pclntab.vaddr()).unwrap_or(FileOffset(0)),
            generation: pclntab.generation(),
            located,
            text_start: pclntab.text_start(),
            header_text_start: pclntab.header_text_start(),
            functions: pclntab.functions(),
        },
        package: package.to_owned(),
        other_packages: pclntab
            .packages_with("(*Conn).writeRecordLocked")
            .into_iter()
            .filter(|other| other != package)
            .collect(),
        functions,
        connections: types
            .as_ref()
            .ok_or(no_types)
            .and_then(|types| ConnectionPlan::read(types, package)),
        goroutine_id: types.as_ref().and_then(connection::goroutine_id),
        build_info,
    })
}

impl Analysis {
    /// Which Go built it.
    pub fn go_version(&self) -> &GoVersion {
        &self.build_info.go_version
    }

    /// What was found out about this function.
    pub fn function(&self, function: Function) -> Option<&FunctionReport> {
        self.functions
            .iter()
            .find(|report| report.function == function)
    }

    /// Decides which instructions to probe.
    ///
    /// # Errors
    ///
    /// The package isn't linked in, or its plaintext can't be taken safely.
    pub fn plan(&self, preference: ReadSitePreference) -> Result<ProbePlan, Error> {
        let missing = |function| self.function(function).is_none_or(|f| f.code.is_err());
        if missing(Function::Read) && missing(Function::WriteRecordLocked) {
            return Err(self.no_tls());
        }
        Ok(ProbePlan {
            arch: self.arch,
            abi: self.abi,
            go_version: self.go_version().clone(),
            write: self.entry_probe(Function::WriteRecordLocked)?,
            read: self.read_probe(preference)?,
            close: self.entry_probe(Function::Close),
            connections: self.connections.clone(),
            goroutine_id: self.goroutine_id,
        })
    }

    /// Decides which instructions to probe for keys.
    ///
    /// # Errors
    ///
    /// The package isn't linked in, or neither of the two functions can be probed.
    pub fn key_plan(&self) -> Result<KeyPlan, Error> {
        let key_log = self.entry_probe(Function::WriteKeyLog);
        let master_secret = self.entry_probe(Function::KeysFromMasterSecret);
        if let (Err(error), Err(_)) = (&key_log, &master_secret) {
            let found = |f| self.function(f).is_some_and(|report| report.code.is_ok());
            return Err(if Function::ALL.into_iter().any(found) {
                error.clone()
            } else {
                self.no_tls()
            });
        }
        Ok(KeyPlan {
            arch: self.arch,
            abi: self.abi,
            key_log,
            master_secret,
        })
    }

    fn no_tls(&self) -> Error {
        Error::NoTls {
            package: self.package.clone(),
            copies: self.other_packages.clone(),
        }
    }

    fn not_found(&self, function: Function) -> Error {
        Error::FunctionNotFound {
            symbol: function.symbol(&self.package),
        }
    }

    fn entry_probe(&self, function: Function) -> Result<EntryProbe, Error> {
        match self.function(function).map(|report| &report.probes) {
            Some(Probes::Entry(probe)) => probe.clone(),
            _ => Err(self.not_found(function)),
        }
    }

    fn read_probe(&self, preference: ReadSitePreference) -> Result<ReadProbe, Error> {
        let Some(Probes::Read { copy, returns }) = self.function(Function::Read).map(|r| &r.probes)
        else {
            return Err(self.not_found(Function::Read));
        };
        match (preference, copy, returns) {
            (ReadSitePreference::Copy, copy, _) => copy.clone(),
            (ReadSitePreference::Auto, Ok(copy), _) => Ok(copy.clone()),
            (
                ReadSitePreference::Returns,
                Ok(_),
                Ok(ReadProbe::Returns {
                    sites,
                    receiver,
                    buffer,
                    capacity,
                    count,
                    ..
                }),
            ) => Ok(ReadProbe::Returns {
                sites: sites.clone(),
                receiver: *receiver,
                buffer: *buffer,
                capacity: *capacity,
                count: *count,
                because: "the returns were asked for".into(),
            }),
            (_, _, returns) => returns.clone(),
        }
    }
}

/// Function table and build info, or what the file is instead of a Go program that we can read.
fn go_tables<'data>(elf: &Elf<'data>) -> Result<(Tables<'data>, BuildInfo), Error> {
    let build_info = BuildInfo::read(elf)?;
    if build_info.as_ref().is_some_and(buildinfo::is_gccgo) {
        return Err(Error::Gccgo);
    }
    match (moduledata::locate(elf), build_info) {
        (Ok(Some(tables)), Some(info)) => Ok((tables, info)),
        (Ok(Some(tables)), None) => {
            let version = buildinfo::version_variable(elf).ok_or(Error::NoGoVersion)?;
            Ok((tables, BuildInfo::without_modules(version)))
        }
        (Err(error), Some(_)) => Err(error),
        (Err(error), None) => Err(other_toolchain(elf).unwrap_or(error)),
        (Ok(None), Some(info)) => Err(Error::NoPclntab {
            go_version: info.go_version,
        }),
        (Ok(None), None) => Err(other_toolchain(elf).unwrap_or(Error::NotGo)),
    }
}

/// Signs of other Go toolchains and of packers, looked for only where nothing of Go was found.
fn other_toolchain(elf: &Elf<'_>) -> Option<Error> {
    let contains =
        |bytes: &[u8], text: &str| memchr::memmem::find(bytes, text.as_bytes()).is_some();
    if elf
        .bytes()
        .get(..4096)
        .is_some_and(|head| contains(head, "UPX!"))
    {
        return Some(Error::Packed { packer: "UPX" });
    }
    let symbols = elf.symbol_strings();
    if elf.needed().any(|name| name.starts_with(b"libgo.so"))
        || elf.section(".go_export").is_some()
        || contains(symbols, "__go_init_main")
        || contains(symbols, "__go_register_gc_roots")
    {
        return Some(Error::Gccgo);
    }
    // In symbol names, not anywhere in the file: other programs have reasons to mention TinyGo, we too.
    let is_tinygo = contains(symbols, "\0tinygo_");
    is_tinygo.then_some(Error::TinyGo)
}

fn build_mode(elf: &Elf<'_>, info: &BuildInfo) -> BuildMode {
    match info.setting("-buildmode") {
        _ if !elf.is_position_independent() => BuildMode::Executable,
        Some("pie" | "exe") => BuildMode::Pie,
        Some("c-shared" | "plugin" | "shared") => BuildMode::SharedLibrary,
        _ if elf.interpreter().is_some() || elf.needed().next().is_none() => BuildMode::Pie,
        _ => BuildMode::SharedLibrary,
    }
}

fn report(
    context: sites::Context<'_>,
    function: Function,
    symbol: String,
    found: Option<FoundFunction>,
) -> FunctionReport {
    let not_found = || Error::FunctionNotFound {
        symbol: symbol.clone(),
    };
    let both = |error: Error| match function {
        Function::Read => Probes::Read {
            copy: Err(error.clone()),
            returns: Err(error),
        },
        _ => Probes::Entry(Err(error)),
    };
    let Some(found) = found else {
        let (code, probes) = (Err(not_found()), both(not_found()));
        return FunctionReport {
            function,
            symbol,
            code,
            probes,
        };
    };
    let code = context
        .elf
        .file_offset(found.range.start)
        .map(|offset| FunctionCode {
            range: found.range.clone(),
            offset,
        })
        .ok_or_else(|| Error::NoUsableSite {
            symbol: symbol.clone(),
            at: found.range.start,
            problem: "it lies outside of what is loaded from the file".into(),
        });
    let probes = match sites::choose(context, function, &symbol, &found) {
        Chosen::Entry(probe) => Probes::Entry(probe),
        Chosen::Read { copy, returns } => Probes::Read { copy, returns },
    };
    FunctionReport {
        function,
        symbol,
        code,
        probes,
    }
}
