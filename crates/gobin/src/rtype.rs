//! Type descriptors: what a Go executable says at run time about its own types.
//!
//! They are there in every executable, stripped or not, because `reflect`, type assertions and the
//! garbage collector need them: the fields of structs with their names, types and offsets, and the
//! methods of named types. Source: `src/runtime/type.go` and `src/reflect/type.go` of Go 1.8 to 1.20,
//! `src/internal/abi/type.go` of Go 1.21 to 1.27.

use std::collections::HashMap;

use crate::bytes::{slice_at, u32_at, u64_at, uvarint};
use crate::{GoVersion, Vaddr};

/// `abi.Type`, as far as it is used.
const TFLAG: u64 = 20;
const KIND: u64 = 23;
const STR: u64 = 40;
/// What follows an `abi.Type`: the element of a pointer, slice, array or channel; the element of a
/// map comes behind its key.
const ELEM: u64 = 48;
const MAP_ELEM: u64 = 56;
/// The fields of a struct, or the methods of an interface: a slice behind the package path.
const MEMBERS: u64 = 56;
/// What follows a pointer's and a struct's or an interface's descriptor: an `abi.UncommonType`.
const POINTER_END: u64 = 56;
const STRUCT_END: u64 = 80;

const TFLAG_UNCOMMON: u8 = 1;
const TFLAG_EXTRA_STAR: u8 = 2;

const KIND_MASK: u8 = 0x1f;
const FIELD_SIZE: u64 = 24;
const INTERFACE_METHOD_SIZE: u64 = 8;
const METHOD_SIZE: u64 = 16;
/// No type that a person wrote has more.
const MAX_MEMBERS: u64 = 4096;
const MAX_NAME: u64 = 4096;

/// `abi.Kind`, as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Array,
    Chan,
    Interface,
    Map,
    Pointer,
    Slice,
    Struct,
    Other,
}

/// A field of a struct.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'data> {
    pub(crate) name: &'data [u8],
    pub(crate) of_type: Vaddr,
    /// In bytes from the start of the struct.
    pub(crate) offset: u64,
}

/// The type descriptors of an executable.
#[derive(Debug)]
pub(crate) struct Types<'data> {
    start: Vaddr,
    bytes: &'data [u8],
    /// Lengths of names are varints (Go 1.17 and newer), not two bytes, big-endian.
    varint_names: bool,
    /// A field's offset is shifted by one bit, which says whether the field is embedded (Go 1.9 to
    /// 1.18).
    shifted_offsets: bool,
    /// All structs that have fields, and all pointers by what they point at.
    structs: Vec<Vaddr>,
    pointers: HashMap<Vaddr, Vec<Vaddr>>,
}

impl<'data> Types<'data> {
    /// Finds the descriptors in the bytes that the module data names. They have no directory of named
    /// types, so whatever can be read as one is taken for one: false ones do no harm, since their
    /// addresses are no type's.
    pub(crate) fn read(start: Vaddr, bytes: &'data [u8], go_version: &GoVersion) -> Self {
        let mut types = Self {
            start,
            bytes,
            varint_names: go_version.at_least(1, 17),
            shifted_offsets: go_version.at_least(1, 9) && !go_version.at_least(1, 19),
            structs: Vec::new(),
            pointers: HashMap::new(),
        };
        for offset in (0..bytes.len() as u64).step_by(8) {
            let Some(at) = start.checked_add(offset) else {
                break;
            };
            match types.kind(at) {
                Kind::Pointer if u64_at(bytes, offset) == Some(8) => {
                    if let Some(element) = types.pointer(at, ELEM) {
                        types.pointers.entry(element).or_default().push(at);
                    }
                }
                Kind::Struct if types.members(at, FIELD_SIZE).is_some_and(|(_, n)| n > 0) => {
                    types.structs.push(at);
                }
                _ => {}
            }
        }
        types
    }

    /// All structs that have fields.
    pub(crate) fn structs(&self) -> impl Iterator<Item = Vaddr> + '_ {
        self.structs.iter().copied()
    }

    /// All pointers to this type.
    pub(crate) fn pointers_to(&self, element: Vaddr) -> &[Vaddr] {
        self.pointers.get(&element).map_or(&[], Vec::as_slice)
    }

    /// The struct with this name in the package with this import path; `None` also if there are
    /// several.
    pub(crate) fn find_struct(&self, package: &str, name: &str) -> Option<Vaddr> {
        let mut found = self.structs().filter(|&at| self.is(at, package, name));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// Whether this is the type with this name of the package with this import path.
    pub(crate) fn is(&self, at: Vaddr, package: &str, name: &str) -> bool {
        // The package's name, which stands in front, need not be the path's last element.
        let own_name = self.name(at).and_then(|n| n.rsplit(|&b| b == b'.').next());
        own_name == Some(name.as_bytes()) && self.package(at) == Some(package.as_bytes())
    }

    /// What kind of type this is; `Other` if it is none.
    pub(crate) fn kind(&self, at: Vaddr) -> Kind {
        let kind = self.offset(at).and_then(|offset| self.byte(offset + KIND));
        match kind.map(|kind| kind & KIND_MASK) {
            Some(17) => Kind::Array,
            Some(18) => Kind::Chan,
            Some(20) => Kind::Interface,
            Some(21) => Kind::Map,
            Some(22) => Kind::Pointer,
            Some(23) => Kind::Slice,
            Some(25) => Kind::Struct,
            _ => Kind::Other,
        }
    }

    /// The type's name, as in `*net.TCPConn`: with the last element of the package's import path.
    pub(crate) fn name(&self, at: Vaddr) -> Option<&'data [u8]> {
        let offset = self.offset(at)?;
        let name = self.name_at(u32_at(self.bytes, offset.checked_add(STR)?)?.into())?;
        let has_star = self.byte(offset + TFLAG)? & TFLAG_EXTRA_STAR != 0;
        if has_star { name.get(1..) } else { Some(name) }
    }

    /// The import path of the package that a struct or an interface, a named one, is declared in.
    pub(crate) fn package(&self, at: Vaddr) -> Option<&'data [u8]> {
        let uncommon = self.uncommon(at)?;
        self.name_at(u32_at(self.bytes, uncommon)?.into())
    }

    /// What a pointer points at, or what a slice, an array, a channel or a map holds.
    pub(crate) fn element(&self, at: Vaddr) -> Option<Vaddr> {
        match self.kind(at) {
            Kind::Pointer | Kind::Slice | Kind::Array | Kind::Chan => self.pointer(at, ELEM),
            Kind::Map => self.pointer(at, MAP_ELEM),
            _ => None,
        }
    }

    /// The fields of a struct; none of anything else.
    pub(crate) fn fields(&self, at: Vaddr) -> impl Iterator<Item = Field<'data>> + '_ {
        let (first, count) = match self.kind(at) {
            Kind::Struct => self.members(at, FIELD_SIZE).unwrap_or_default(),
            _ => (0, 0),
        };
        (0..count).map_while(move |index| {
            let field = first + index * FIELD_SIZE;
            let name = self.offset(Vaddr(u64_at(self.bytes, field)?))?;
            let offset = u64_at(self.bytes, field + 16)?;
            Some(Field {
                name: self.name_at(name)?,
                of_type: Vaddr(u64_at(self.bytes, field + 8)?),
                offset: offset >> u32::from(self.shifted_offsets),
            })
        })
    }

    /// The field with this name of a struct.
    pub(crate) fn field(&self, at: Vaddr, name: &str) -> Option<Field<'data>> {
        self.fields(at).find(|field| field.name == name.as_bytes())
    }

    /// Whether values of this type have all these methods. Of a named type that is no interface, only
    /// a pointer to it is asked in general, because it has the methods of both.
    pub(crate) fn has_methods(&self, at: Vaddr, wanted: &[&str]) -> bool {
        let names: Vec<_> = match self.kind(at) {
            Kind::Interface => self.interface_methods(at).collect(),
            _ => self.methods(at).collect(),
        };
        wanted.iter().all(|name| names.contains(&name.as_bytes()))
    }

    fn interface_methods(&self, at: Vaddr) -> impl Iterator<Item = &'data [u8]> + '_ {
        let (first, count) = self.members(at, INTERFACE_METHOD_SIZE).unwrap_or_default();
        self.names(first, count, INTERFACE_METHOD_SIZE)
    }

    fn methods(&self, at: Vaddr) -> impl Iterator<Item = &'data [u8]> + '_ {
        let table = || {
            let uncommon = self.uncommon(at)?;
            let count = u32_at(self.bytes, uncommon + 4)? & 0xffff;
            let first = uncommon.checked_add(u32_at(self.bytes, uncommon + 8)?.into())?;
            Some((first, u64::from(count)))
        };
        let (first, count) = table().unwrap_or_default();
        self.names(first, count.min(MAX_MEMBERS), METHOD_SIZE)
    }

    /// The names that entries of this size begin with.
    fn names(&self, first: u64, count: u64, size: u64) -> impl Iterator<Item = &'data [u8]> + '_ {
        (0..count).map_while(move |index| {
            let name = u32_at(self.bytes, first.checked_add(index * size)?)?;
            self.name_at(name.into())
        })
    }

    /// Offset and number of a struct's fields or an interface's methods.
    fn members(&self, at: Vaddr, size: u64) -> Option<(u64, u64)> {
        let slice = self.offset(at)?.checked_add(MEMBERS)?;
        let count = u64_at(self.bytes, slice + 8)?;
        if count > MAX_MEMBERS || u64_at(self.bytes, slice + 16)? != count {
            return None;
        }
        if count == 0 {
            return Some((0, 0));
        }
        let first = self.offset(Vaddr(u64_at(self.bytes, slice)?))?;
        slice_at(self.bytes, first, count * size)?;
        Some((first, count))
    }

    fn uncommon(&self, at: Vaddr) -> Option<u64> {
        let offset = self.offset(at)?;
        if self.byte(offset + TFLAG)? & TFLAG_UNCOMMON == 0 {
            return None;
        }
        match self.kind(at) {
            Kind::Pointer => offset.checked_add(POINTER_END),
            Kind::Struct | Kind::Interface => offset.checked_add(STRUCT_END),
            _ => None,
        }
    }

    /// A flag byte, the length, and the bytes of a name.
    fn name_at(&self, offset: u64) -> Option<&'data [u8]> {
        let rest = self
            .bytes
            .get(usize::try_from(offset).ok()?.checked_add(1)?..)?;
        let (length, rest) = if self.varint_names {
            uvarint(rest)?
        } else {
            let (length, rest) = rest.split_first_chunk()?;
            (u16::from_be_bytes(*length).into(), rest)
        };
        (length <= MAX_NAME).then_some(())?;
        slice_at(rest, 0, length)
    }

    /// The pointer to another descriptor that this one has at `offset`. Go's linker, bfd and gold
    /// leave in place what relocations add; where others don't, nothing is found.
    fn pointer(&self, at: Vaddr, offset: u64) -> Option<Vaddr> {
        let target = Vaddr(u64_at(self.bytes, self.offset(at)?.checked_add(offset)?)?);
        self.offset(target).map(|_| target)
    }

    fn byte(&self, offset: u64) -> Option<u8> {
        self.bytes.get(usize::try_from(offset).ok()?).copied()
    }

    /// Where an address is in `bytes`.
    fn offset(&self, at: Vaddr) -> Option<u64> {
        let offset = at.0.checked_sub(self.start.0)?;
        (offset < self.bytes.len() as u64).then_some(offset)
    }
}
