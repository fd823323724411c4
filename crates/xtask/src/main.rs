//! `cargo xtask`: the project's own chores.

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::matrix;

/// The project's chores
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build the Go test binaries that the cache lacks and print their directory
    Matrix,
}

fn main() -> Result<()> {
    match Args::parse().chore {
        Chore::Matrix => println!("{}", matrix::ensure_all()?.display()),
    }
    Ok(())
}
