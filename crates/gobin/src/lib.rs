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
//! let plan = analysis.plan(gobin::ReadSitePreference::Auto)?;
//! println!("{}: write probe at {}", plan.go_version, plan.write.site.offset);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
