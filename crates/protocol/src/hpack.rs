//! HPACK, header compression for HTTP/2 (RFC 7541), for an observer who may have come late.
//!
//! A peer's decoder has seen every header block; we may have joined in the middle of a connection, or
//! lost some bytes. So this decoder knows what it does not know: names and values in the part of the
//! dynamic table that was sent before come out as `None`, never as something else (see `Table`).
//!
//! The observer needs no agreement on `SETTINGS_HEADER_TABLE_SIZE`: the encoder's own size updates tell
//! all (RFC 7541 section 4.2). The agreed limit only serves to notice what no peer would accept.

mod huffman;
mod table;

use std::sync::Arc;

pub(crate) use table::DEFAULT_TABLE;
pub use table::MAX_TABLE;
use table::{Entry, Found, Name, Table};

/// Why a header block could not be decoded (RFC 7541 sections 2.3.3, 4.2, 5 and 6).
pub(crate) type Malformed = &'static str;

/// Takes the name and value of each field of a header block; `None` is what is not known.
pub(crate) type FieldSink<'s> = dyn FnMut(Option<&[u8]>, Option<&[u8]>) + 's;

/// Decoder of the header blocks that one side of a connection sends.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: Table,
    /// The largest table that the other side ever allowed; `None` if we don't know.
    allowed: Option<usize>,
}

impl Decoder {
    /// For a connection that is seen from its beginning.
    pub(crate) fn new() -> Self {
        Self {
            table: Table::new(),
            allowed: Some(DEFAULT_TABLE),
        }
    }

    /// For a connection whose earlier header blocks are not known.
    pub(crate) fn joined() -> Self {
        Self {
            table: Table::unknown(),
            allowed: None,
        }
    }

    /// Bytes of memory.
    pub(crate) fn held(&self) -> usize {
        self.table.size()
    }

    /// Header blocks may have been missed: nothing of the table is known any more.
    pub(crate) fn forget(&mut self) {
        self.table = Table::unknown();
    }

    /// The largest table that the other side ever allowed by `SETTINGS_HEADER_TABLE_SIZE` (RFC 9113
    /// section 6.5.2), or `None` if we don't know. The largest one counts, because both directions'
    /// bytes may reach us in another order than the peers.
    pub(crate) fn allow(&mut self, size: Option<u32>) {
        self.allowed = size.map(|size| size as usize);
    }

    /// Decodes a whole header block. After an error nothing is known of the table, because the rest of
    /// the block is not.
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        sink: &mut FieldSink<'_>,
    ) -> Result<(), Malformed> {
        let result = self.representations(block, sink);
        if result.is_err() {
            self.forget();
        }
        result
    }

    fn representations(&mut self, block: &[u8], sink: &mut FieldSink<'_>) -> Result<(), Malformed> {
        let mut input = Input(block);
        let mut fields = 0usize;
        while let Some(&first) = input.0.first() {
            match first {
                0x80.. => self.indexed(&mut input, sink)?,
                0x40.. => {
                    let entry = self.literal(&mut input, 6)?;
                    sink(entry.name.as_deref(), Some(&entry.value));
                    self.table.insert(entry);
                }
                0x20.. if fields > 0 => return Err("HPACK table size update behind a field"),
                0x20.. => {
                    self.resize(&mut input)?;
                    continue;
                }
                _ => {
                    let entry = self.literal(&mut input, 4)?;
                    sink(entry.name.as_deref(), Some(&entry.value));
                }
            }
            fields += 1;
        }
        Ok(())
    }

    /// RFC 7541 section 6.1.
    fn indexed(&self, input: &mut Input<'_>, sink: &mut FieldSink<'_>) -> Result<(), Malformed> {
        match self.find(input.integer(7)?)? {
            Found::Static(name, value) => sink(Some(name.as_bytes()), Some(value.as_bytes())),
            Found::Dynamic(entry) => sink(entry.name.as_deref(), Some(&entry.value)),
            Found::Unknown => sink(None, None),
        }
        Ok(())
    }

    /// RFC 7541 section 6.2: a literal field whose index has a prefix of `prefix` bits.
    fn literal(&self, input: &mut Input<'_>, prefix: u32) -> Result<Entry, Malformed> {
        let name: Name = match input.integer(prefix)? {
            0 => Some(input.string()?),
            index => match self.find(index)? {
                Found::Static(name, _) => Some(name.as_bytes().into()),
                Found::Dynamic(entry) => entry.name.clone(),
                Found::Unknown => None,
            },
        };
        Ok(Entry {
            name,
            value: input.string()?,
        })
    }

    /// RFC 7541 section 6.3.
    fn resize(&mut self, input: &mut Input<'_>) -> Result<(), Malformed> {
        let size = input.integer(5)?;
        if self.allowed.is_some_and(|allowed| size > allowed) {
            return Err("HPACK table larger than the other side allowed");
        }
        self.table.resize(size);
        Ok(())
    }

    fn find(&self, index: usize) -> Result<Found<'_>, Malformed> {
        self.table.get(index).ok_or("HPACK index without an entry")
    }
}

/// What is left of a header block.
struct Input<'b>(&'b [u8]);

impl<'b> Input<'b> {
    fn byte(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.0.split_first().ok_or("HPACK block ends too early")?;
        self.0 = rest;
        Ok(byte)
    }

    /// An integer whose first byte has `prefix` bits of it (RFC 7541 section 5.1), up to 2^32.
    fn integer(&mut self, prefix: u32) -> Result<usize, Malformed> {
        let full = (1u64 << prefix) - 1;
        let mut value = u64::from(self.byte()?) & full;
        if value < full {
            return Ok(value as usize);
        }
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            value += u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value)
                    .map(|value| value as usize)
                    .map_err(|_| "HPACK integer too large");
            }
        }
        Err("HPACK integer too large")
    }

    /// A string (RFC 7541 section 5.2).
    fn string(&mut self) -> Result<Arc<[u8]>, Malformed> {
        let huffman = self.0.first().is_some_and(|first| first & 0x80 != 0);
        let length = self.integer(7)?;
        let (bytes, rest): (&'b [u8], _) = self
            .0
            .split_at_checked(length)
            .ok_or("HPACK string longer than its block")?;
        self.0 = rest;
        if huffman {
            let text = huffman::decode(bytes).ok_or("HPACK string with a wrong Huffman code")?;
            Ok(text.into())
        } else {
            Ok(bytes.into())
        }
    }
}

#[cfg(test)]
mod tests;
