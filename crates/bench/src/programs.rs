//! Loading and attaching the eBPF programs.

use anyhow::{Context, Result};
use gobin::FileOffset;
use libbpf_rs::{Link, MapCore, Object, ObjectBuilder, UprobeOpts};

use crate::Target;

/// The compiled `reference.bpf.c`.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/reference.bpf.o"));

/// Loaded programs, and their probes as long as this lives.
pub(crate) struct Programs {
    // Detached before the programs are unloaded.
    links: Vec<Link>,
    object: Object,
}

/// Where a return of `(*Conn).Read` has its arguments, in bytes above the stack pointer.
#[derive(Clone, Copy)]
pub(crate) struct ReadArguments {
    pub(crate) buffer: u32,
    pub(crate) capacity: u32,
}

impl Programs {
    /// Loads the programs of these names.
    pub(crate) fn load(names: &[&str], arguments: Option<ReadArguments>) -> Result<Self> {
        let aligned = OBJECT.to_vec(); // libelf reads words where they lie.
        let mut open = ObjectBuilder::default().open_memory(&aligned)?;
        for mut program in open.progs_mut() {
            let wanted = names.iter().any(|&name| program.name() == name);
            program.set_autoload(wanted);
        }
        if let Some(ReadArguments { buffer, capacity }) = arguments {
            let mut constants = open
                .maps_mut()
                .find(|map| map.name().to_string_lossy().ends_with(".rodata"))
                .context("the programs have no .rodata")?;
            let bytes = constants
                .initial_value_mut()
                .and_then(|bytes| bytes.first_chunk_mut::<8>())
                .context(".rodata is too small")?;
            bytes[..4].copy_from_slice(&buffer.to_ne_bytes());
            bytes[4..].copy_from_slice(&capacity.to_ne_bytes());
        }
        Ok(Self {
            links: Vec::new(),
            object: open.load()?,
        })
    }

    /// Attaches one program at each of these places in the target.
    pub(crate) fn attach(
        &mut self,
        name: &str,
        target: &Target,
        offsets: &[FileOffset],
    ) -> Result<()> {
        let program = self
            .object
            .progs_mut()
            .find(|program| program.name() == name)
            .with_context(|| format!("the object has no program {name}"))?;
        for offset in offsets {
            let link = program
                .attach_uprobe_with_opts(
                    target.pid,
                    &target.elfpath,
                    offset.0 as usize,
                    UprobeOpts::default(),
                )
                .with_context(|| format!("{name} at file offset {offset}"))?;
            self.links.push(link);
        }
        Ok(())
    }

    /// The object's map of this name.
    pub(crate) fn map(&self, name: &str) -> Result<libbpf_rs::Map<'_>> {
        self.object
            .maps()
            .find(|map| map.name() == name)
            .with_context(|| format!("the object has no map {name}"))
    }
}
