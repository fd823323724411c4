//! HPACK's static and dynamic table (RFC 7541 sections 2.3 and 4, appendix A).

use std::collections::VecDeque;
use std::sync::Arc;

/// How many bytes of entries (RFC 7541 section 4.1) are held at most for one direction of a connection.
/// What a peer's larger table holds beyond counts as unknown.
pub const MAX_TABLE: usize = 64 << 10;

/// Size of the dynamic table before the encoder says otherwise (RFC 9113 section 6.5.2).
pub(crate) const DEFAULT_TABLE: usize = 4096;

/// What an entry counts beyond its name and value (RFC 7541 section 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// The name of a field as far as it is known. Shared, because many entries can be made of one name.
pub(super) type Name = Option<Arc<[u8]>>;

/// An entry of the dynamic table.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// `None`: it was taken from an entry that is not known.
    pub(super) name: Name,
    pub(super) value: Arc<[u8]>,
}

impl Entry {
    /// Its size; a lower bound if its name is not known.
    fn size(&self) -> usize {
        self.name.as_ref().map_or(0, |name| name.len()) + self.value.len() + ENTRY_OVERHEAD
    }
}

/// What an index stands for.
#[derive(Debug)]
pub(super) enum Found<'t> {
    Static(&'static str, &'static str),
    Dynamic(&'t Entry),
    /// An entry from before we looked.
    Unknown,
}

/// The dynamic table as an observer knows it.
///
/// `entries` are those inserted since the observer reads every header block, newest first. The encoder's
/// table is always a beginning of this list, then perhaps entries from before: an insertion puts the same
/// entry in front of both, and whatever removes entries (an insertion, an entry too large for the table,
/// a size update) removes them at the end. So a valid index that is within `entries` means the entry at
/// this place, whatever the size of the encoder's table is, and a valid index beyond means an entry that
/// is not known. Holding entries too long does no harm, and dropping them too early only makes them
/// unknown; so neither an unknown size of the table nor unknown sizes of entries can make a field wrong.
#[derive(Debug)]
pub(super) struct Table {
    entries: VecDeque<Entry>,
    /// Sum of the entries' sizes; a lower bound if names are missing.
    size: usize,
    /// The encoder's maximum size; `None` if it is not known.
    max: Option<usize>,
    /// The encoder may have entries older than these.
    older: bool,
}

impl Table {
    /// The table of a connection's beginning.
    pub(super) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            max: Some(DEFAULT_TABLE),
            older: false,
        }
    }

    /// A table of which nothing is known.
    pub(super) fn unknown() -> Self {
        Self {
            max: None,
            older: true,
            ..Self::new()
        }
    }

    /// What `index` stands for (RFC 7541 section 2.3.3); `None` if it can't stand for anything.
    pub(super) fn get(&self, index: usize) -> Option<Found<'_>> {
        let index = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC_TABLE.get(index) {
            return Some(Found::Static(name, value));
        }
        match self.entries.get(index - STATIC_TABLE.len()) {
            Some(entry) => Some(Found::Dynamic(entry)),
            None => self.older.then_some(Found::Unknown),
        }
    }

    /// The encoder inserts an entry.
    pub(super) fn insert(&mut self, entry: Entry) {
        self.size += entry.size();
        self.entries.push_front(entry);
        self.evict();
    }

    /// The encoder changes the size of its table (RFC 7541 section 6.3).
    pub(super) fn resize(&mut self, max: usize) {
        self.max = Some(max);
        self.evict();
    }

    /// Removes what the encoder has removed, and what is too much for us.
    fn evict(&mut self) {
        let max = self.max.unwrap_or(usize::MAX);
        while self.size > max.min(MAX_TABLE) {
            self.older = self.size <= max;
            let Some(entry) = self.entries.pop_back() else {
                break;
            };
            self.size -= entry.size();
        }
        if max - self.size < ENTRY_OVERHEAD {
            self.older = false;
        }
    }

    /// Size of what is held, in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Number of entries held.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// RFC 7541 appendix A; the first one has index 1.
#[rustfmt::skip]
const STATIC_TABLE: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
