//! The project's chores as a library: Go toolchains, the matrix of Go test binaries, and child
//! processes that tests drive. The binary `cargo xtask` is a thin command line over it, and the
//! test suites of the other crates use it to get at test binaries:
//!
//! ```no_run
//! use xtask::matrix::{self, GoRelease, Program, Variant};
//! let path = matrix::binary(GoRelease::Go1_24, Variant::StrippedPie, Program::Exchange)?;
//! # anyhow::Ok(())
//! ```
//!
//! Everything downloaded or built lives in a [cache] outside the checkout, and whoever comes
//! second waits for the first instead of doing the work again.

#![forbid(unsafe_code)]

pub mod arch;
pub mod bench;
pub mod big;
pub mod cache;
pub mod cargo;
mod clock_steps;
mod debian;
pub mod demo;
mod dependencies;
pub mod dist;
pub mod fuzz;
pub mod matrix;
pub mod process;
pub mod run;
pub mod setup;
pub mod soak;
pub mod standalone;
pub mod static_build;
pub mod test;
pub mod toolchain;
pub mod tools;
pub mod vm;
