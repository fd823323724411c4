//! The whole analysis of one executable: what `inspect` prints and what a plan is made from.

use crate::buildinfo::{self, BuildInfo};
use crate::connection;
use crate::elf::Elf;
use crate::moduledata::{self, Located, Tables};
use crate::package::{Packages, TlsPackage};
use crate::pclntab::{Generation, UNKNOWN_MAGIC};
use crate::plan::{KeyPlan, Plans, ProbePlan, ReadSitePreference};
use crate::rtype::Types;
use crate::sites;
use crate::unnamed;
use crate::{Abi, Arch, Error, FileOffset, GoVersion, Vaddr};

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
    /// `crypto/tls`, whether it is linked in or not.
    pub crypto_tls: TlsPackage,
    /// Copies of `crypto/tls` under other import paths, at most 16.
    pub copies: Vec<TlsPackage>,
    /// TLS is in there all the same if no function of it was found: see [`Error::NamesNotFound`].
    pub has_unnamed_tls: bool,
    /// The offset of `goid` in `runtime.g`, in bytes, if it is known.
    pub goroutine_id: Option<u32>,
}

/// Analyses an executable.
///
/// # Errors
///
/// Whatever keeps its functions from being looked up. That a function isn't there, or can't be
/// probed, is part of the analysis instead.
pub fn analyze(bytes: &[u8]) -> Result<Analysis, Error> {
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
    let types = moduledata::types(&elf, tables.module, go_version)
        .map(|(start, bytes)| Types::read(start, bytes, go_version));
    let packages = Packages {
        context,
        types: types.as_ref(),
        goroutine_id: types.as_ref().and_then(connection::goroutine_id),
    };
    let (crypto_tls, copies) = (packages.crypto_tls(), packages.copies());
    let is_named = crypto_tls.is_linked_in() || !copies.is_empty();
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
        goroutine_id: packages.goroutine_id,
        crypto_tls,
        copies,
        has_unnamed_tls: !is_named && unnamed::has_tls(&elf),
        build_info,
    })
}

impl Analysis {
    /// Which Go built it.
    pub fn go_version(&self) -> &GoVersion {
        &self.build_info.go_version
    }

    /// `crypto/tls` and its copies, as far as they are linked in.
    pub fn packages(&self) -> impl Iterator<Item = &TlsPackage> {
        let crypto_tls = Some(&self.crypto_tls).filter(|package| package.is_linked_in());
        crypto_tls.into_iter().chain(&self.copies)
    }

    /// Decides which instructions to probe for plaintext, in each package that has any.
    ///
    /// # Errors
    ///
    /// No TLS is linked in, or its plaintext can't be taken safely.
    pub fn plans(&self, preference: ReadSitePreference) -> Result<Plans<ProbePlan>, Error> {
        self.collect(|package| package.plan(preference))
    }

    /// Decides which instructions to probe for keys, in each package that has any.
    ///
    /// # Errors
    ///
    /// No TLS is linked in, or none of the functions with keys can be probed.
    pub fn key_plans(&self) -> Result<Plans<KeyPlan>, Error> {
        self.collect(TlsPackage::key_plan)
    }

    fn collect<P>(
        &self,
        plan: impl Fn(&TlsPackage) -> Result<P, Error>,
    ) -> Result<Plans<P>, Error> {
        let (mut plans, mut refusals) = (Vec::new(), Vec::new());
        for package in self.packages() {
            match plan(package) {
                Ok(plan) => plans.push(plan),
                Err(error) => refusals.push(error),
            }
        }
        if !plans.is_empty() {
            return Ok(Plans { plans, refusals });
        }
        Err(refusals.into_iter().next().unwrap_or({
            if self.has_unnamed_tls {
                Error::NamesNotFound
            } else {
                Error::NoTls
            }
        }))
    }
}

/// Function table and build info, or what the file is instead of a Go program that we can read.
fn go_tables<'data>(elf: &Elf<'data>) -> Result<(Tables<'data>, BuildInfo), Error> {
    let unnamed = |error: Error| {
        if unnamed::is_go_with_tls(elf) {
            Error::NamesNotFound
        } else {
            error
        }
    };
    let build_info = BuildInfo::read(elf).map_err(unnamed)?;
    if build_info.as_ref().is_some_and(buildinfo::is_gccgo) {
        return Err(Error::Gccgo);
    }
    match (moduledata::locate(elf), build_info) {
        (Ok(Some(tables)), Some(info)) => Ok((tables, info)),
        (Ok(Some(tables)), None) => {
            let version = buildinfo::version_variable(elf);
            let version = version.ok_or(Error::NoGoVersion).map_err(unnamed)?;
            Ok((tables, BuildInfo::without_modules(version)))
        }
        (Err(error), info) => Err(match (error, info) {
            (
                error @ Error::Inconsistent {
                    problem: UNKNOWN_MAGIC,
                    ..
                },
                _,
            ) => unnamed(error),
            (error, Some(_)) => error,
            (error, None) => other_toolchain(elf).unwrap_or(error),
        }),
        (Ok(None), Some(info)) => Err(unnamed(Error::NoPclntab {
            go_version: info.go_version,
        })),
        (Ok(None), None) => Err(other_toolchain(elf).unwrap_or_else(|| unnamed(Error::NotGo))),
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
