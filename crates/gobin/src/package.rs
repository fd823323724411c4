//! The packages of an executable that speak TLS: `crypto/tls`, and copies of it under other import
//! paths (utls, qtls, vendored trees, forks).
//!
//! A copy is found by the ends of its functions' names, and confirmed by the code: the same rules choose
//! its probe sites as those of `crypto/tls`.

use std::ops::Range;

use crate::pclntab::FoundFunction;
use crate::plan::{EntryProbe, Function, KeyPlan, ProbePlan, ReadProbe, ReadSitePreference};
use crate::rtype::Types;
use crate::sites::{self, Chosen, Context};
use crate::{Abi, Arch, ConnectionPlan, Error, FileOffset, GoVersion, Vaddr};

/// The import path of Go's own TLS package.
pub const CRYPTO_TLS: &str = "crypto/tls";

/// What tells a copy. Packages for QUIC may have nothing but the second; in some of them the type is
/// not exported.
const OF_COPIES: [&str; 3] = [
    "(*Conn).writeRecordLocked",
    "(*Config).writeKeyLog",
    UNEXPORTED_CONFIG,
];
const UNEXPORTED_CONFIG: &str = "(*config).writeKeyLog";

/// A package that speaks TLS.
#[derive(Clone, Debug)]
pub struct TlsPackage {
    /// Its import path. From an untrusted file: escape before printing.
    pub import_path: String,
    /// The functions, in the order of [`Function::ALL`].
    pub functions: Vec<FunctionReport>,
    /// Where a connection's addresses and what the handshake agreed on are, or why that isn't known.
    pub connections: Result<ConnectionPlan, Error>,
    arch: Arch,
    abi: Abi,
    go_version: GoVersion,
    goroutine_id: Option<u32>,
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

impl TlsPackage {
    /// Whether it is no part of Go.
    pub fn is_copy(&self) -> bool {
        self.import_path != CRYPTO_TLS
    }

    /// Whether any of its functions is there.
    pub fn is_linked_in(&self) -> bool {
        self.functions.iter().any(|report| report.code.is_ok())
    }

    /// What was found out about this function.
    pub fn function(&self, function: Function) -> Option<&FunctionReport> {
        self.functions
            .iter()
            .find(|report| report.function == function)
    }

    /// Decides which instructions to probe for plaintext.
    ///
    /// # Errors
    ///
    /// The package's connections aren't linked in, or their plaintext can't be taken safely.
    pub fn plan(&self, preference: ReadSitePreference) -> Result<ProbePlan, Error> {
        let missing = |function| self.function(function).is_none_or(|f| f.code.is_err());
        if missing(Function::Read) && missing(Function::WriteRecordLocked) {
            return Err(Error::NoTls);
        }
        Ok(ProbePlan {
            package: self.import_path.clone(),
            arch: self.arch,
            abi: self.abi,
            go_version: self.go_version.clone(),
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
            return Err(if self.is_linked_in() {
                error.clone()
            } else {
                Error::NoTls
            });
        }
        Ok(KeyPlan {
            package: self.import_path.clone(),
            arch: self.arch,
            abi: self.abi,
            key_log,
            master_secret,
        })
    }

    fn not_found(&self, function: Function) -> Error {
        Error::FunctionNotFound {
            symbol: function.symbol(&self.import_path),
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

/// What packages are looked for in.
pub(crate) struct Packages<'a> {
    pub(crate) context: Context<'a>,
    pub(crate) types: Option<&'a Types<'a>>,
    pub(crate) goroutine_id: Option<u32>,
}

impl Packages<'_> {
    pub(crate) fn crypto_tls(&self) -> TlsPackage {
        self.package(CRYPTO_TLS)
    }

    pub(crate) fn copies(&self) -> Vec<TlsPackage> {
        let prefixes = self.context.pclntab.prefixes_of(&OF_COPIES);
        let copies = prefixes.iter().filter(|&prefix| prefix != CRYPTO_TLS);
        copies.map(|prefix| self.package(prefix)).collect()
    }

    /// The package whose functions' names begin with this.
    fn package(&self, prefix: &str) -> TlsPackage {
        let Context { pclntab, elf, .. } = self.context;
        let mut symbols = Function::ALL.map(|function| function.symbol(prefix));
        let mut found = pclntab.find(symbols.each_ref().map(String::as_str));
        for ((function, symbol), found) in
            Function::ALL.into_iter().zip(&mut symbols).zip(&mut found)
        {
            if function == Function::WriteKeyLog && found.is_none() && prefix != CRYPTO_TLS {
                let other = format!("{prefix}.{UNEXPORTED_CONFIG}");
                let [there] = pclntab.find([&other]);
                if there.is_some() {
                    (*symbol, *found) = (other, there);
                }
            }
        }
        let import_path = import_path(prefix);
        let no_types = Error::NoConnections {
            missing: "their table",
        };
        TlsPackage {
            functions: Function::ALL
                .into_iter()
                .zip(symbols)
                .zip(found)
                .map(|((function, symbol), found)| report(self.context, function, symbol, found))
                .collect(),
            connections: self
                .types
                .ok_or(no_types)
                .and_then(|types| ConnectionPlan::read(types, &import_path)),
            import_path,
            arch: elf.arch(),
            abi: self.context.abi,
            go_version: self.context.go_version.clone(),
            goroutine_id: self.goroutine_id,
        }
    }
}

/// The import path of a package whose functions' names begin with this: dots in its last element, and
/// what is not printable, are written as `%2e` (`PathToPrefix` in `src/cmd/internal/objabi/path.go` of Go
/// 1.15 to 1.27).
fn import_path(prefix: &str) -> String {
    let mut parts = prefix.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part
            .get(..2)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match digits {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(&part.as_bytes()[2..]);
            }
            None => {
                bytes.push(b'%');
                bytes.extend(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn report(
    context: Context<'_>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn import_paths_are_unescaped() {
        for (prefix, path) in [
            ("crypto/tls", "crypto/tls"),
            ("github.com/x/tls", "github.com/x/tls"),
            ("gopkg.in/tls%2ev2", "gopkg.in/tls.v2"),
            ("a%c3%bcb", "aüb"),
            ("100%", "100%"),
            ("%zz%2", "%zz%2"),
            ("%ü", "%ü"),
        ] {
            assert_eq!(import_path(prefix), path);
        }
    }
}
