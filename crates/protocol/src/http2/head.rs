//! The fields of a header block: pseudo-header fields and the others (RFC 9113 sections 8.1 to 8.5).

use crate::hpack::Decoder;
use crate::{Field, RequestHead, ResponseHead, Trouble, Version};

/// How much a message's fields may come to, decoded: names, values and 32 bytes for each (as
/// `SETTINGS_MAX_HEADER_LIST_SIZE` counts, RFC 9113 section 6.5.2). Further fields are left out.
pub const MAX_HEADER_LIST: usize = 256 << 10;

/// What a field counts beyond its name and value.
const FIELD_OVERHEAD: usize = 32;

/// A decoded header block.
#[derive(Debug, Default)]
pub(super) struct FieldBlock {
    pub(super) method: Option<Vec<u8>>,
    pub(super) scheme: Option<Vec<u8>>,
    pub(super) authority: Option<Vec<u8>>,
    pub(super) path: Option<Vec<u8>>,
    /// RFC 8441 section 4.
    pub(super) protocol: Option<Vec<u8>>,
    pub(super) status: Option<Vec<u8>>,
    /// All others, if their names are known. One whose value alone is known is left out too: nobody could
    /// tell whether it is a secret.
    pub(super) fields: Vec<Field>,
    /// How many are left out because their names are not known.
    pub(super) unknown: usize,
    /// The first field's name is not known: it may be a pseudo-header field.
    pub(super) unknown_first: bool,
    /// What is wrong with it.
    pub(super) trouble: Option<Trouble>,
    size: usize,
    count: usize,
}

impl FieldBlock {
    /// Decodes a header block. What the decoder can't make sense of is an error; what it can, but what
    /// makes the message malformed, is in [`FieldBlock::trouble`].
    pub(super) fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Self, &'static str> {
        let mut fields = Self::default();
        decoder.decode(block, &mut |name, value| fields.add(name, value))?;
        Ok(fields)
    }

    fn add(&mut self, name: Option<&[u8]>, value: Option<&[u8]>) {
        self.count += 1;
        let (Some(name), Some(value)) = (name, value) else {
            self.unknown += 1;
            self.unknown_first |= self.count == 1;
            return;
        };
        self.size += name.len() + value.len() + FIELD_OVERHEAD;
        if self.size > MAX_HEADER_LIST {
            self.trouble = Some(Trouble::TooMuch("decoded header fields", MAX_HEADER_LIST));
        } else if name.starts_with(b":") {
            self.add_pseudo(name, value);
        } else {
            self.fields.push(Field {
                name: name.to_vec(),
                value: Some(value.to_vec()),
            });
        }
    }

    /// A pseudo-header field: each at most once, none behind the other fields (RFC 9113 section 8.3).
    fn add_pseudo(&mut self, name: &[u8], value: &[u8]) {
        let place = match name {
            b":method" => &mut self.method,
            b":scheme" => &mut self.scheme,
            b":authority" => &mut self.authority,
            b":path" => &mut self.path,
            b":protocol" => &mut self.protocol,
            b":status" => &mut self.status,
            _ => {
                self.malformed("unknown HTTP/2 pseudo-header field");
                return;
            }
        };
        if !self.fields.is_empty() || place.is_some() {
            self.malformed("HTTP/2 pseudo-header field twice or behind others");
        } else {
            *place = Some(value.to_vec());
        }
    }

    fn malformed(&mut self, what: &'static str) {
        self.trouble.get_or_insert(Trouble::Malformed(what));
    }

    /// How many pseudo-header fields of a request are known.
    pub(super) fn request_fields(&self) -> usize {
        [&self.method, &self.scheme, &self.authority, &self.path]
            .iter()
            .filter(|field| field.is_some())
            .count()
    }

    /// Whether there is a pseudo-header field: then it is a head, not trailers.
    pub(super) fn is_head(&self) -> bool {
        self.request_fields() > 0 || self.status.is_some() || self.protocol.is_some()
    }

    /// The status code, if it is known and one.
    pub(super) fn status(&self) -> Option<u16> {
        let digits = self.status.as_deref()?;
        let code = std::str::from_utf8(digits).ok()?.parse().ok()?;
        (digits.len() == 3 && (100..=999).contains(&code)).then_some(code)
    }

    /// The whole as the head of a request.
    pub(super) fn into_request(self, wire_length: u64) -> RequestHead {
        let host = || {
            let host = self.fields.iter().find(|field| field.name == b"host")?;
            host.value.clone()
        };
        RequestHead {
            version: Version::Http2,
            authority: self.authority.clone().or_else(host),
            method: self.method,
            scheme: self.scheme,
            target: self.path,
            fields: self.fields,
            unknown_fields: self.unknown,
            wire_length,
        }
    }

    /// The whole as the head of a response.
    pub(super) fn into_response(self, wire_length: u64) -> ResponseHead {
        ResponseHead {
            version: Version::Http2,
            status: self.status(),
            reason: Vec::new(),
            fields: self.fields,
            unknown_fields: self.unknown,
            wire_length,
        }
    }
}
