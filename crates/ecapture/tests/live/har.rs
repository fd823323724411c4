//! HAR files of real conversations, held against the schema of HAR 1.2.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The file's contents; an error if they violate the schema.
pub(crate) fn valid(file: &Path) -> Result<Value> {
    let schema = include_str!("../../../trace/tests/har-1.2.schema.json");
    let validator = jsonschema::validator_for(&serde_json::from_str(schema)?)?;
    let text = fs::read_to_string(file)?;
    let har: Value = serde_json::from_str(&text).context(text)?;
    let errors: Vec<_> = validator
        .iter_errors(&har)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    ensure!(errors.is_empty(), "{}: {errors:#?}", file.display());
    Ok(har)
}
