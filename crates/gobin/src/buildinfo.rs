//! Build info: the Go version, the main package, and the flags it was built with.
//!
//! Source: `src/debug/buildinfo/buildinfo.go` and `src/runtime/debug/mod.go` of Go 1.24 (strings
//! inline, since Go 1.18), `src/cmd/go/internal/version/exe.go` of Go 1.15 (pointers to strings).
//! Binaries built before Go 1.13 have none; their version is in `runtime.buildVersion`.

use crate::bytes::{u64_at, uvarint};
use crate::elf::Elf;
use crate::{Error, GoVersion, Vaddr};

const MAGIC: &[u8] = b"\xff Go buildinf:";
const ALIGN: u64 = 16;
const POINTER_SIZE: u8 = 8;
const FLAG_BIG_ENDIAN: u8 = 1;
const FLAG_INLINE: u8 = 2;
const HEADER_SIZE: u64 = 32;
/// A module with thousands of dependencies lists them in well under this.
const MAX_STRING: u64 = 4 << 20;
/// How many places with the magic are looked at in a segment.
const MAX_HITS: usize = 16;
/// Go 1.27 writes about twenty.
const MAX_SETTINGS: usize = 256;

/// What the Go toolchain recorded about the build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildInfo {
    /// Which Go built it.
    pub go_version: GoVersion,
    /// Import path of the main package, such as `github.com/caddyserver/caddy/v2/cmd/caddy`. From
    /// an untrusted file, as are the strings below: escape before printing.
    pub path: Option<String>,
    /// Path of the main module.
    pub module: Option<String>,
    /// Version of the main module; `(devel)` for a build from a checkout.
    pub module_version: Option<String>,
    /// The build's settings in their order, such as `-buildmode` and `pie`. Empty before Go 1.18.
    pub settings: Vec<(String, String)>,
}

impl BuildInfo {
    /// The value of a build setting, such as `-buildmode`, `CGO_ENABLED` or `vcs.revision`.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }

    /// Finds and reads the build info; `Ok(None)` if the executable has none.
    ///
    /// # Errors
    ///
    /// There is build info, but its version names no release of Go.
    pub fn read(elf: &Elf<'_>) -> Result<Option<Self>, Error> {
        let Some((version, modinfo)) = find(elf) else {
            return Ok(None);
        };
        let version = String::from_utf8_lossy(version);
        let Ok(go_version) = version.parse::<GoVersion>() else {
            let text = version.chars().take(80).collect();
            return Err(Error::UnknownGoVersion { text });
        };
        let mut info = Self::without_modules(go_version);
        info.read_modinfo(modinfo);
        Ok(Some(info))
    }

    /// Build info of which nothing but the version is known.
    pub(crate) fn without_modules(go_version: GoVersion) -> Self {
        Self {
            go_version,
            path: None,
            module: None,
            module_version: None,
            settings: Vec::new(),
        }
    }

    /// Lines `path⇥…`, `mod⇥path⇥version⇥sum`, `dep⇥…`, `build⇥key=value`, between 16-byte marks.
    fn read_modinfo(&mut self, modinfo: &[u8]) {
        let Some(lines) = modinfo
            .len()
            .checked_sub(16)
            .and_then(|end| modinfo.get(16..end))
        else {
            return;
        };
        for line in String::from_utf8_lossy(lines).lines() {
            let mut fields = line.split('\t');
            match fields.next() {
                Some("path") => self.path = fields.next().map(str::to_owned),
                Some("mod") => {
                    self.module = fields.next().map(str::to_owned);
                    self.module_version = fields.next().map(str::to_owned);
                }
                Some("build") if self.settings.len() < MAX_SETTINGS => {
                    if let Some((key, value)) = fields.next().and_then(|f| f.split_once('=')) {
                        self.settings.push((unquote(key), unquote(value)));
                    }
                }
                _ => {}
            }
        }
    }
}

/// Undoes `strconv.Quote` for what occurs in settings; other texts are left as they are.
fn unquote(text: &str) -> String {
    let inner = text
        .strip_prefix('"')
        .and_then(|t| t.strip_suffix('"'))
        .or_else(|| text.strip_prefix('`').and_then(|t| t.strip_suffix('`')));
    match inner {
        Some(inner) => inner.replace("\\\"", "\"").replace("\\\\", "\\"),
        None => text.to_owned(),
    }
}

/// The version and the module info, from wherever the build info is.
///
/// The section is sure. Without it the first hit in a writable segment counts, nearly as for Go's own
/// `go version`: elsewhere there are false ones, in programs that embed Go executables.
fn find<'data>(elf: &Elf<'data>) -> Option<(&'data [u8], &'data [u8])> {
    if let Some(section) = elf.section(".go.buildinfo")
        && let Some(found) = parse(elf, section.bytes)
    {
        return Some(found);
    }
    // Linkers other than Go's put relocated read-only data into a writable segment of its own, in
    // front: go on with the next one.
    elf.segments()
        .filter(|s| s.writable && !s.executable)
        .find_map(|segment| {
            memchr::memmem::find_iter(segment.bytes, MAGIC)
                .filter(|&at| (segment.vaddr.0.wrapping_add(at as u64)).is_multiple_of(ALIGN))
                .take(MAX_HITS)
                .find_map(|at| parse(elf, segment.bytes.get(at..)?))
        })
}

fn parse<'data>(elf: &Elf<'data>, bytes: &'data [u8]) -> Option<(&'data [u8], &'data [u8])> {
    let header = bytes.strip_prefix(MAGIC)?;
    let (&pointer_size, &flags) = (header.first()?, header.get(1)?);
    if flags & FLAG_INLINE != 0 {
        let (version, rest) = inline_string(bytes.get(HEADER_SIZE as usize..)?)?;
        let modinfo = inline_string(rest).map_or(&[][..], |(modinfo, _)| modinfo);
        return Some((version, modinfo));
    }
    if pointer_size != POINTER_SIZE || flags & FLAG_BIG_ENDIAN != 0 {
        return None;
    }
    // The pointers are relocated in PIEs, but hold their addends in the file.
    let string = |offset| pointed_string(elf, Vaddr(u64_at(bytes, offset)?));
    Some((string(16)?, string(24).unwrap_or_default()))
}

fn inline_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = uvarint(bytes)?;
    (length <= MAX_STRING).then_some(())?;
    rest.split_at_checked(usize::try_from(length).ok()?)
}

/// The Go string whose header (pointer and length) is at this address.
fn pointed_string<'data>(elf: &Elf<'data>, header: Vaddr) -> Option<&'data [u8]> {
    let length = u64_at(elf.bytes_from(header)?, 8)?;
    if length == 0 {
        return Some(&[]);
    }
    (length <= MAX_STRING).then_some(())?;
    elf.bytes_at(elf.pointer_at(header)?, length)
}

/// The value of `runtime.buildVersion`, for binaries older than build info.
///
/// It is a string variable: a pointer into a segment that isn't written, then a small length. The
/// first one that names a version counts.
pub(crate) fn version_variable(elf: &Elf<'_>) -> Option<GoVersion> {
    let data = elf.section(".data");
    let from_section = data.iter().map(|s| s.bytes);
    let from_segments = elf
        .segments()
        .filter(|s| s.writable && data.is_none())
        .map(|s| s.bytes);
    from_section.chain(from_segments).find_map(|bytes| {
        bytes
            .chunks_exact(8)
            .zip(bytes.get(8..)?.chunks_exact(8))
            .find_map(|(pointer, length)| {
                let length = u64_at(length, 0)?;
                (5..=40).contains(&length).then_some(())?;
                let text = elf.bytes_at(Vaddr(u64_at(pointer, 0)?), length)?;
                let text = text
                    .starts_with(b"go1.")
                    .then(|| std::str::from_utf8(text).ok())??;
                text.parse().ok()
            })
    })
}

/// Whether the settings say that gccgo was the compiler.
pub(crate) fn is_gccgo(info: &BuildInfo) -> bool {
    info.setting("-compiler") == Some("gccgo") || info.go_version.as_str().contains("gccgo")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info() -> BuildInfo {
        BuildInfo::without_modules("go1.24.1".parse().unwrap())
    }

    #[test]
    fn modules_and_settings() {
        let mut parsed = info();
        let text = "path\texample.com/x/cmd/y\nmod\texample.com/x\tv1.2.3\th1:sum\ndep\ta\tv1\n\
                    build\t-buildmode=pie\nbuild\t-ldflags=\"-s -w -X \\\"a=b\\\"\"\nbuild\tbroken\n";
        let mark = "0123456789abcdef";
        parsed.read_modinfo(format!("{mark}{text}{mark}").as_bytes());
        assert_eq!(parsed.path.as_deref(), Some("example.com/x/cmd/y"));
        assert_eq!(parsed.module.as_deref(), Some("example.com/x"));
        assert_eq!(parsed.module_version.as_deref(), Some("v1.2.3"));
        assert_eq!(parsed.setting("-buildmode"), Some("pie"));
        assert_eq!(parsed.setting("-ldflags"), Some("-s -w -X \"a=b\""));
        assert_eq!(parsed.settings.len(), 2);
    }

    proptest! {
        #[test]
        fn any_modinfo(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            info().read_modinfo(&bytes);
            let _ = inline_string(&bytes);
        }
    }
}
