//! The matrix of Go test binaries: releases × variants × programs, built when first asked for.
//!
//! They lie in `binaries-HASH/RELEASE/VARIANT/PROGRAM` below the [cache], where the hash covers
//! whatever the binaries are made from: changed sources or flags give a new directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use std::{env, fmt};

use anyhow::{Context, Result, bail};

use crate::toolchain::{Source, Toolchain};
use crate::{cache, run};

/// A minor release of Go; the matrix has one patch release of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum GoRelease {
    Go1_15,
    Go1_19,
    Go1_21,
    Go1_22,
    Go1_23,
    Go1_24,
    Go1_25,
    Go1_26,
    Go1_27,
}

impl GoRelease {
    /// Every release of the matrix, oldest first.
    pub const ALL: [Self; 9] = [
        Self::Go1_15,
        Self::Go1_19,
        Self::Go1_21,
        Self::Go1_22,
        Self::Go1_23,
        Self::Go1_24,
        Self::Go1_25,
        Self::Go1_26,
        Self::Go1_27,
    ];
    /// A release of each generation of crypto/tls and of the code that the compiler makes.
    pub const GENERATIONS: [Self; 5] = [
        Self::Go1_15,
        Self::Go1_19,
        Self::Go1_21,
        Self::Go1_24,
        Self::Go1_27,
    ];
    /// The oldest release.
    pub const OLDEST: Self = Self::Go1_15;
    /// The newest release.
    pub const NEWEST: Self = Self::Go1_27;

    /// The number behind `go1.`.
    #[must_use]
    pub const fn minor(self) -> u32 {
        match self {
            Self::Go1_15 => 15,
            Self::Go1_19 => 19,
            Self::Go1_21 => 21,
            Self::Go1_22 => 22,
            Self::Go1_23 => 23,
            Self::Go1_24 => 24,
            Self::Go1_25 => 25,
            Self::Go1_26 => 26,
            Self::Go1_27 => 27,
        }
    }

    pub(crate) const fn source(self) -> Source {
        match self {
            Self::Go1_15 => Source::Debian { suite: "bullseye" },
            Self::Go1_19 => Source::Debian { suite: "bookworm" },
            Self::Go1_21 => Source::Wheel("1.21.13"),
            Self::Go1_22 => Source::Wheel("1.22.10"),
            Self::Go1_23 => Source::Wheel("1.23.9"),
            Self::Go1_24 => Source::Wheel("1.24.11"),
            Self::Go1_25 => Source::Wheel("1.25.5"),
            Self::Go1_26 => Source::Wheel("1.26.6"),
            Self::Go1_27 => Source::Wheel("1.27.3"),
        }
    }
}

/// As in the matrix's directories: `1.24`.
impl fmt::Display for GoRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}", self.minor())
    }
}

/// A way of building a program. All but the `Arm64` ones are for amd64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    /// `go build`: statically linked, with symbols and DWARF.
    Default,
    /// `-ldflags="-s -w" -trimpath`: no symbols, no DWARF, no paths.
    Stripped,
    /// `-buildmode=pie`.
    Pie,
    /// `-ldflags="-s -w" -buildmode=pie`. Without `-trimpath`, which changes no instruction but has
    /// the whole standard library compiled once more: it is the matrix's cost.
    StrippedPie,
    /// cgo, linked by gcc.
    External,
    /// cgo, linked by gcc, `-buildmode=pie`.
    ExternalPie,
    /// `-gcflags="all=-N -l"`: neither optimised nor inlined.
    NoOpt,
    /// `-race`.
    Race,
    /// [`Variant::Default`] for arm64.
    Arm64,
    /// [`Variant::Stripped`] for arm64.
    Arm64Stripped,
    /// [`Variant::Pie`] for arm64.
    Arm64Pie,
    /// [`Variant::StrippedPie`] for arm64.
    Arm64StrippedPie,
}

impl Variant {
    /// Every variant.
    pub const ALL: [Self; 12] = [
        Self::Default,
        Self::Stripped,
        Self::Pie,
        Self::StrippedPie,
        Self::External,
        Self::ExternalPie,
        Self::NoOpt,
        Self::Race,
        Self::Arm64,
        Self::Arm64Stripped,
        Self::Arm64Pie,
        Self::Arm64StrippedPie,
    ];

    /// The name of the variant's directory: `stripped-pie`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Stripped => "stripped",
            Self::Pie => "pie",
            Self::StrippedPie => "stripped-pie",
            Self::External => "external",
            Self::ExternalPie => "external-pie",
            Self::NoOpt => "noopt",
            Self::Race => "race",
            Self::Arm64 => "arm64",
            Self::Arm64Stripped => "arm64-stripped",
            Self::Arm64Pie => "arm64-pie",
            Self::Arm64StrippedPie => "arm64-stripped-pie",
        }
    }

    /// Whether the binary is for arm64: it can be analysed here, not run.
    #[must_use]
    pub const fn is_arm64(self) -> bool {
        matches!(
            self,
            Self::Arm64 | Self::Arm64Stripped | Self::Arm64Pie | Self::Arm64StrippedPie
        )
    }

    /// Whether ELF symbols and DWARF are left out.
    #[must_use]
    pub const fn is_stripped(self) -> bool {
        matches!(
            self,
            Self::Stripped | Self::StrippedPie | Self::Arm64Stripped | Self::Arm64StrippedPie
        )
    }

    /// Whether the binary is position-independent.
    #[must_use]
    pub const fn is_pie(self) -> bool {
        matches!(
            self,
            Self::Pie
                | Self::StrippedPie
                | Self::ExternalPie
                | Self::Arm64Pie
                | Self::Arm64StrippedPie
        )
    }

    /// Whether the matrix has this variant of a release.
    #[must_use]
    pub fn exists_for(self, release: GoRelease) -> bool {
        match self {
            Self::External | Self::ExternalPie => {
                [GoRelease::OLDEST, GoRelease::NEWEST].contains(&release)
            }
            Self::NoOpt => matches!(
                release,
                GoRelease::Go1_15 | GoRelease::Go1_21 | GoRelease::Go1_24 | GoRelease::Go1_27
            ),
            // Debian's packages of Go come without the race detector's runtime.
            Self::Race => {
                matches!(
                    release,
                    GoRelease::Go1_21 | GoRelease::Go1_24 | GoRelease::Go1_27
                )
            }
            _ => true,
        }
    }

    pub(crate) const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Default | Self::Arm64 => &[],
            Self::Stripped => &["-ldflags=-s -w", "-trimpath"],
            Self::Arm64Stripped => &["-ldflags=-s -w"],
            Self::Pie | Self::Arm64Pie => &["-buildmode=pie"],
            Self::StrippedPie | Self::Arm64StrippedPie => &["-ldflags=-s -w", "-buildmode=pie"],
            Self::External => &["-ldflags=-linkmode=external"],
            Self::ExternalPie => &["-ldflags=-linkmode=external", "-buildmode=pie"],
            Self::NoOpt => &["-gcflags=all=-N -l"],
            Self::Race => &["-race"],
        }
    }

    const fn needs_cgo(self) -> bool {
        matches!(self, Self::External | Self::ExternalPie | Self::Race)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Go test program; its source is the directory of this name in `programs/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// Sends known bytes over TLS and logs what it handed to crypto/tls and got back.
    Exchange,
    /// An HTTPS server and client with readable traffic.
    Https,
    /// TLS handshakes through crypto/tls's interface for QUIC, in memory.
    Quic,
    /// A network program without crypto/tls.
    Notls,
}

impl Program {
    /// Every program.
    pub const ALL: [Self; 4] = [Self::Exchange, Self::Https, Self::Quic, Self::Notls];

    /// The program's file name: `exchange`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exchange => "exchange",
            Self::Https => "https",
            Self::Quic => "quic",
            Self::Notls => "notls",
        }
    }

    /// The directory of its source.
    #[must_use]
    pub fn source(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("programs")
            .join(self.name())
    }

    /// Whether the program compiles with a release: crypto/tls has been for QUIC since Go 1.21.
    fn exists_for(self, release: GoRelease) -> bool {
        self != Self::Quic || release >= GoRelease::Go1_21
    }

    /// Whether [`ensure_all`] builds this program: `Exchange` everywhere, the others where tests
    /// want them.
    fn is_wanted(self, release: GoRelease, variant: Variant) -> bool {
        let corner = [GoRelease::OLDEST, GoRelease::NEWEST].contains(&release);
        match self {
            Self::Exchange => true,
            Self::Https => variant == Variant::Default && GoRelease::GENERATIONS.contains(&release),
            Self::Quic => {
                variant == Variant::Default
                    && GoRelease::GENERATIONS.contains(&release)
                    && self.exists_for(release)
            }
            Self::Notls => corner && matches!(variant, Variant::Default | Variant::Stripped),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One cell of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Binary {
    /// The Go release that builds it.
    pub release: GoRelease,
    /// How.
    pub variant: Variant,
    /// What.
    pub program: Program,
}

impl Binary {
    /// The path of the binary; built if it isn't there yet, which takes up to a minute.
    pub fn path(self) -> Result<PathBuf> {
        let Self {
            release,
            variant,
            program,
        } = self;
        let name = format!("{}/{release}/{variant}/{program}", directory_name()?);
        cache::entry(name, |output| self.build(output))
            .with_context(|| format!("{program}: Go {release}, {variant}: no test binary"))
    }

    fn build(self, output: &Path) -> Result<()> {
        let Self {
            release,
            variant,
            program,
        } = self;
        if !variant.exists_for(release) {
            bail!("the matrix has no such variant of this release");
        }
        if !program.exists_for(release) {
            bail!("the program needs a newer release");
        }
        let mut go = Toolchain::ensure(release)?.go();
        go.arg("build").args(variant.flags());
        if release.minor() >= 18 {
            // Nothing of the checkout's state belongs into test binaries.
            go.arg("-buildvcs=false");
        }
        if variant.needs_cgo() {
            go.env("CGO_ENABLED", "1");
        }
        if variant.is_arm64() {
            go.env("GOARCH", "arm64");
        }
        go.arg("-o")
            .arg(output)
            .arg(".")
            .current_dir(program.source());
        run::output(&mut go)?;
        Ok(())
    }
}

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.release, self.variant, self.program)
    }
}

/// The path of a test binary; built if it isn't there yet, which takes up to a minute.
pub fn binary(release: GoRelease, variant: Variant, program: Program) -> Result<PathBuf> {
    Binary {
        release,
        variant,
        program,
    }
    .path()
}

/// The directory that holds the matrix of this checkout's programs.
pub fn dir() -> Result<PathBuf> {
    Ok(cache::dir()?.join(directory_name()?))
}

/// Every binary of the matrix: what [`ensure_all`] builds.
#[must_use]
pub fn all() -> Vec<Binary> {
    let mut all = Vec::new();
    for release in GoRelease::ALL {
        for variant in Variant::ALL {
            for program in Program::ALL {
                if variant.exists_for(release) && program.is_wanted(release, variant) {
                    all.push(Binary {
                        release,
                        variant,
                        program,
                    });
                }
            }
        }
    }
    all
}

/// Builds what the cache lacks of the matrix, with a line on standard error for each binary: the
/// matrix's directory.
pub fn ensure_all() -> Result<PathBuf> {
    let dir = dir()?;
    let missing: Vec<_> = all()
        .into_iter()
        .filter(|binary| !dir.join(binary.to_string()).exists())
        .collect();
    let total = missing.len();
    let done = AtomicUsize::new(0);

    // The programs of one variant share most packages: one after the other they are compiled once.
    let groups = missing
        .chunk_by(|a, b| (a.release, a.variant) == (b.release, b.variant))
        .map(<[Binary]>::to_vec)
        .collect();
    run::in_parallel(groups, |group: Vec<Binary>| {
        for binary in group {
            let start = Instant::now();
            binary.path()?;
            let number = done.fetch_add(1, Ordering::Relaxed) + 1;
            let seconds = start.elapsed().as_secs_f64();
            eprintln!("test binaries: {number}/{total} {binary} ({seconds:.1} s)");
        }
        Ok(())
    })?;
    Ok(dir)
}

/// `binaries-` and a hash of all sources, versions and flags.
fn directory_name() -> Result<String> {
    let mut hash = Fnv::default();
    for release in GoRelease::ALL {
        hash.update(format!("{:?}", release.source()).as_bytes());
    }
    for variant in Variant::ALL {
        hash.update(format!("{variant}{:?}", variant.flags()).as_bytes());
    }
    for program in Program::ALL {
        hash.update_with_files(&program.source())?;
    }
    Ok(format!("binaries-{hash}"))
}

/// FNV-1a, 64 bits: the same in every build, unlike the standard library's hash.
pub(crate) struct Fnv(pub(crate) u64);

impl fmt::Display for Fnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Adds a part and its length, so that parts don't run together.
    pub(crate) fn update(&mut self, part: &[u8]) {
        for byte in part
            .iter()
            .copied()
            .chain((part.len() as u64).to_le_bytes())
        {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// Adds the names and contents of a program's source files.
    pub(crate) fn update_with_files(&mut self, dir: &Path) -> Result<()> {
        let mut files = fs::read_dir(dir)
            .and_then(|entries| {
                entries
                    .map(|e| Ok(e?.path()))
                    .collect::<Result<Vec<_>, _>>()
            })
            .with_context(|| format!("{}: no source of a test program", dir.display()))?;
        files.sort();
        for file in files {
            self.update(file.file_name().unwrap_or_default().as_encoded_bytes());
            self.update(&fs::read(&file).with_context(|| file.display().to_string())?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_in_order() {
        assert!(GoRelease::ALL.is_sorted_by_key(|release| release.minor()));
        assert_eq!(GoRelease::ALL.first(), Some(&GoRelease::OLDEST));
        assert_eq!(GoRelease::ALL.last(), Some(&GoRelease::NEWEST));
    }

    #[test]
    fn every_release_has_the_exchange_in_the_eight_common_variants() {
        for release in GoRelease::ALL {
            let variants = all()
                .iter()
                .filter(|b| b.release == release && b.program == Program::Exchange)
                .count();
            assert!(variants >= 8, "Go {release}: {variants}");
        }
    }

    #[test]
    fn a_cell_that_the_matrix_lacks_is_refused() {
        let error = binary(GoRelease::Go1_15, Variant::Race, Program::Notls).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "notls: Go 1.15, race: no test binary: the matrix has no such variant of this release"
        );
        let error = binary(GoRelease::Go1_19, Variant::Default, Program::Quic).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "quic: Go 1.19, default: no test binary: the program needs a newer release"
        );
    }

    #[test]
    fn the_directory_name_depends_on_sources_only() {
        assert_eq!(directory_name().unwrap(), directory_name().unwrap());
    }
}
