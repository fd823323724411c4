//! What is in a Go executable: ELF segments, build info, the function table (pclntab), the ABI, and
//! which instructions of `crypto/tls` can be probed.
//!
//! Pure functions over the file's bytes: no I/O, no `unsafe`, no root; executables of either
//! architecture are analysed on any machine. The bytes are untrusted: every malformed one is an
//! [`Error`], never a panic, an endless loop or an allocation whose size the file dictates.
//!
//! ```no_run
//! let bytes = std::fs::read("/usr/bin/caddy")?;
//! let analysis = gobin::analyze(&bytes)?;
//! for plan in analysis.plans(gobin::ReadSitePreference::Auto)?.plans {
//!     println!("{}: write probe at {}", plan.package, plan.write.site.offset);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod abi;
mod address;
mod amd64;
mod analysis;
mod arm64;
mod buildinfo;
mod bytes;
mod code;
mod connection;
pub mod elf;
mod error;
mod moduledata;
mod package;
mod pclntab;
mod plan;
mod rtype;
mod sites;
mod unnamed;
mod version;

pub use abi::{Abi, Arch};
pub use address::{FileOffset, Vaddr};
pub use analysis::{Analysis, BuildMode, Linkage, PclntabSummary, analyze};
pub use buildinfo::BuildInfo;
pub use connection::{
    ConnectionPlan, DynamicType, SocketLayout, TcpAddrLayout, TlsConnLayout, TypeRole,
};
pub use error::{Error, Table};
pub use moduledata::Located;
pub use package::{CRYPTO_TLS, FunctionCode, FunctionReport, Probes, TlsPackage};
pub use pclntab::Generation;
pub use plan::{
    Argument, EntryProbe, Function, KeyPlan, Location, Plans, ProbePlan, ReadProbe,
    ReadSitePreference, Site, SiteKind,
};
pub use unnamed::has_go_sections;
pub use version::{GoVersion, ParseGoVersionError, Stage};
