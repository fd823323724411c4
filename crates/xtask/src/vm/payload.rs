//! What is tested, on a disk: `ecapture` and its tests, statically linked, and the Go programs.
//!
//! The tests find everything where they would on the machine that built them, so the disk has the
//! same paths.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::make_disk;
use crate::arch::Arch;
use crate::cache;
use crate::matrix::{self, Binary, Program, Variant};
use crate::standalone;
use crate::static_build::StaticBuild;

const INIT: &str = include_str!("payload/init.sh");

/// The disk.
#[derive(Debug)]
pub(super) struct Payload {
    disk: PathBuf,
}

impl Payload {
    /// Builds what goes onto the disk, and the disk.
    pub(super) fn build(arch: Arch, disk: &Path) -> Result<Self> {
        let build = StaticBuild::new(arch)?;
        let tests = build.tests(&["ecapture", "capture"], &["live", "packets"])?;
        let ecapture = build.directory().join("ecapture");
        let root = disk.with_extension("root");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        let vm = root.join("vm");
        for test in &tests {
            let name = test.file_stem().unwrap_or_default().to_string_lossy();
            // cargo appends a hash
            let name = name.rsplit_once('-').map_or(&*name, |(name, _)| name);
            install(test, &vm.join(name))?;
        }
        install(&ecapture, &at(&root, &ecapture))?;
        fs::create_dir_all(at(&root, &build.scratch()))?;
        let init = vm.join("init");
        fs::write(&init, INIT)?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        fs::write(vm.join("environment"), environment(&ecapture)?)?;
        add_go_programs(arch, &root)?;
        make_disk(&root, disk)?;
        fs::remove_dir_all(&root)?;
        Ok(Self {
            disk: disk.to_owned(),
        })
    }

    pub(super) fn disk(&self) -> &Path {
        &self.disk
    }

    pub(super) fn remove(self) {
        // It is only in the way.
        let _ = fs::remove_file(self.disk);
    }
}

/// Shell commands that set the variables of the tests and of our init process.
fn environment(ecapture: &Path) -> Result<String> {
    Ok(format!(
        "ECAPTURE='{}'\nexport ECAPTURE_CACHE_DIR='{}'\nexport ECAPTURE_TEST_BINARIES='{}'\n",
        ecapture.display(),
        cache::dir()?.display(),
        matrix::dir()?.display()
    ))
}

/// Where an absolute path lies below `root`.
fn at(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn install(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    // A link is enough: the disk's maker copies the content.
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(|| from.display().to_string())?;
    }
    Ok(())
}

/// The Go programs that the tests run, and their sources, by which the tests name the directories of
/// the binaries.
fn add_go_programs(arch: Arch, root: &Path) -> Result<()> {
    for (binary, variant) in binaries(arch) {
        let path = binary.path()?;
        let place = Binary { variant, ..binary };
        install(&path, &at(root, &matrix::dir()?.join(place.to_string())))?;
    }
    for (program, release, variant) in standalone::all() {
        let build = match arch {
            Arch::Amd64 => variant,
            Arch::Arm64 => for_arm64(variant)
                .with_context(|| format!("{}: {variant} for arm64", program.name()))?,
        };
        let path = program.binary(release, build)?;
        let place = cache::dir()?.join(program.entry(release, variant)?);
        install(&path, &at(root, &place))?;
    }
    let sources = Program::ALL.map(Program::source);
    let standalone = standalone::Program::ALL.map(standalone::Program::source);
    for source in sources.iter().chain(&standalone) {
        for file in fs::read_dir(source)? {
            let file = file?.path();
            install(&file, &at(root, &file))?;
        }
    }
    Ok(())
}

/// The binaries for `arch`, and the variant as which the tests know them: they ask for the ordinary
/// ones wherever they run.
fn binaries(arch: Arch) -> Vec<(Binary, Variant)> {
    let mut binaries = Vec::new();
    for binary in matrix::all() {
        match arch {
            Arch::Amd64 if !binary.variant.is_arm64() => {
                binaries.push((binary, binary.variant));
            }
            Arch::Arm64 => {
                if let Some(counterpart) = for_arm64(binary.variant) {
                    binaries.push((
                        Binary {
                            variant: counterpart,
                            ..binary
                        },
                        binary.variant,
                    ));
                }
            }
            Arch::Amd64 => {}
        }
    }
    binaries
}

/// The same way of building for arm64.
fn for_arm64(variant: Variant) -> Option<Variant> {
    Some(match variant {
        Variant::Default => Variant::Arm64,
        Variant::Stripped => Variant::Arm64Stripped,
        Variant::Pie => Variant::Arm64Pie,
        Variant::StrippedPie => Variant::Arm64StrippedPie,
        _ => return None,
    })
}

/// The names, or parts of names, of tests of `live` or of `packets` that the init process runs unless it is
/// told otherwise.
pub(super) fn named_tests(binary: &str) -> Vec<&'static str> {
    let suffix = match binary {
        "live" => String::new(),
        other => format!("_{other}"),
    };
    let lists = ["quick", "usual"].map(|list| format!("\n{list}{suffix}=\""));
    lists
        .iter()
        .filter_map(|begin| Some(INIT.split_once(begin)?.1.split_once('"')?.0))
        .flat_map(str::split_whitespace)
        // One list includes the other.
        .filter(|name| !name.starts_with('$'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::GoRelease;

    #[test]
    fn names_of_tests_are_found_in_the_init_process() {
        let live = named_tests("live");
        assert!(
            live.contains(&"doctor::") && live.contains(&"exec_gate::"),
            "{live:?}"
        );
        let packets = named_tests("packets");
        let both = [
            "client_is_told_apart_by_clsact_filters_too",
            "filter_and_snaplen_hold",
        ];
        assert!(
            both.iter()
                .all(|name| packets.iter().any(|p| p.starts_with(name))),
            "{packets:?}"
        );
    }

    #[test]
    fn both_architectures_have_every_release_and_program() {
        for arch in Arch::ALL {
            let binaries = binaries(arch);
            for release in GoRelease::ALL {
                assert!(
                    binaries.iter().any(|(b, _)| b.release == release),
                    "{release}"
                );
            }
            for program in Program::ALL {
                assert!(
                    binaries.iter().any(|(b, _)| b.program == program),
                    "{program}"
                );
            }
            for (binary, _) in binaries {
                assert_eq!(binary.variant.is_arm64(), arch == Arch::Arm64, "{binary}");
            }
        }
        for (program, release, variant) in standalone::all() {
            let counterpart = for_arm64(variant);
            assert!(counterpart.is_some(), "{program:?} {release} {variant}");
        }
    }
}
