//! Loading and attaching the eBPF programs.

use anyhow::{Context, Result};
use gobin::FileOffset;
use libbpf_rs::{
    Link, MapCore, Object, ObjectBuilder, ProgramAttachType, UprobeMultiOpts, UprobeOpts,
};

use crate::Target;

/// The compiled `reference.bpf.c`.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/reference.bpf.o"));

/// How probes are attached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// All in one link, as ecapture does where the kernel can (Linux 6.10).
    Multi,
    /// One perf event for each.
    Perf,
}

/// Loaded programs, and their probes as long as this lives.
pub(crate) struct Programs {
    // Detached before the programs are unloaded.
    links: Vec<Link>,
    object: Object,
    attachment: Attachment,
}

/// Where a return of `(*Conn).Read` has its arguments, in bytes above the stack pointer.
#[derive(Clone, Copy)]
pub(crate) struct ReadArguments {
    pub(crate) buffer: u32,
    pub(crate) capacity: u32,
}

impl Programs {
    /// Loads the programs of these names.
    pub(crate) fn load(
        names: &[&str],
        arguments: Option<ReadArguments>,
        attachment: Attachment,
    ) -> Result<Self> {
        let aligned = OBJECT.to_vec(); // libelf reads words where they lie.
        let mut open = ObjectBuilder::default().open_memory(&aligned)?;
        for mut program in open.progs_mut() {
            let wanted = names.iter().any(|&name| program.name() == name);
            program.set_autoload(wanted);
            if attachment == Attachment::Multi {
                program.set_attach_type(ProgramAttachType::TraceUprobeMulti);
            }
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
            attachment,
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
        if self.attachment == Attachment::Multi {
            let options = UprobeMultiOpts {
                offsets: offsets.iter().map(|offset| offset.0 as usize).collect(),
                ..UprobeMultiOpts::default()
            };
            let link = program
                .attach_uprobe_multi_with_opts(target.pid, &target.elfpath, "", options)
                .with_context(|| format!("{name} at {} instructions", offsets.len()))?;
            self.links.push(link);
            return Ok(());
        }
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
