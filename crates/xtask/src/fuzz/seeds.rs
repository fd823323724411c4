//! What corpora begin with: parts of real executables, real records, real traffic.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Puts the seeds of a target into its corpus. A target without seeds begins with nothing.
pub(super) fn plant(target: &str, corpus: &Path, executable: &Path) -> Result<()> {
    let seeds = match target {
        "executable" => executables(executable)?,
        _ => Vec::new(),
    };
    for (name, bytes) in seeds {
        let path = corpus.join(name);
        if !path.exists() {
            fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// The beginnings of a Go executable and of another one.
fn executables(go: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut seeds = Vec::new();
    for (name, path) in [("go", go), ("other", Path::new("/bin/true"))] {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        for length in [64, 4096, 65536] {
            let head = &bytes[..bytes.len().min(length)];
            seeds.push((format!("{name}-{length}"), head.to_vec()));
        }
    }
    Ok(seeds)
}
