//! Programs with a copy of crypto/tls under another import path: the toolchain's own, under a name as forks
//! have it.
//!
//! A package that imports `internal` ones has to lie below the directory that they are in, and go looks
//! where symbolic links lead. So the copy is a link to GOROOT's `crypto/tls`, in a module, or in a
//! directory `vendor` of a program that is built without modules, as up to Go 1.15 or so. What GOROOT
//! itself has vendored comes as modules too.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Recipe;
use crate::matrix::{self, GoRelease, Variant};
use crate::run;
use crate::toolchain::Toolchain;

/// Where the copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a module of its own.
    Module,
    /// In a directory `vendor`, without modules: up to Go 1.19, later releases don't take the link.
    Vendor,
}

impl Place {
    /// The copy's import path, as the executable has it.
    #[must_use]
    pub const fn import_path(self) -> &'static str {
        match self {
            Self::Module => COPY,
            Self::Vendor => "example.com/program/vendor/github.com/forked/tls",
        }
    }
}

const COPY: &str = "github.com/forked/tls";

/// The program `exchange`, which uses the copy instead of crypto/tls.
pub fn exchange(release: GoRelease, variant: Variant, place: Place) -> Result<PathBuf> {
    let source = matrix::Program::Exchange.source();
    build("exchange", &source, release, variant, place)
}

/// The program `copies`, which uses both.
pub fn both(release: GoRelease, variant: Variant) -> Result<PathBuf> {
    build("copies", &source(), release, variant, Place::Module)
}

/// The directory of the source of `copies`.
pub(crate) fn source() -> PathBuf {
    super::programs().join("copies")
}

fn build(
    program: &str,
    source: &Path,
    release: GoRelease,
    variant: Variant,
    place: Place,
) -> Result<PathBuf> {
    let recipe = Recipe {
        name: format!("copied-{program}-{place:?}"),
        sources: &[source, Path::new(file!())],
        release,
        variant,
    };
    recipe.make(|output| {
        let work = output.with_extension("work");
        let toolchain = Toolchain::ensure(release)?;
        let source_root = fs::canonicalize(toolchain.goroot().join("src"))?;
        let mut go = toolchain.go();
        let directory = match place {
            Place::Module => arrange_modules(&work, &source_root, release)?,
            Place::Vendor => {
                ensure!(release <= GoRelease::Go1_19, "Go {release} can't");
                go.env("GO111MODULE", "off").env("GOFLAGS", "");
                go.env("GOPATH", &work);
                arrange_vendor(&work, &source_root)?
            }
        };
        copy_source(source, &directory, program == "exchange")?;
        super::arguments(&mut go, release, variant);
        go.arg("-o").arg(output).arg(".").current_dir(&directory);
        run::output(&mut go)?;
        Ok(fs::remove_dir_all(work)?)
    })
}

/// Three kinds of modules: the program's, the copy's, and those that the copy needs. Returns the
/// program's directory.
fn arrange_modules(work: &Path, source_root: &Path, release: GoRelease) -> Result<PathBuf> {
    let module = |directory: &Path, path: &str| -> Result<File> {
        fs::create_dir_all(directory)?;
        let mut file = File::create(directory.join("go.mod"))?;
        writeln!(file, "module {path}\n\ngo {release}")?;
        Ok(file)
    };
    let program = work.join("program");
    let mut requirements = module(&program, "example.com/program")?;
    let mut require = |path: &str, directory: &str| {
        writeln!(requirements, "require {path} v0.0.0")?;
        writeln!(requirements, "replace {path} => ../{directory}")
    };
    let fork = work.join("fork");
    module(&fork, "github.com/forked")?;
    symlink(source_root.join("crypto/tls"), fork.join("tls"))?;
    require("github.com/forked", "fork")?;
    for vendored in vendored(source_root)? {
        let name = vendored.file_name().unwrap_or_default().to_string_lossy();
        let directory = work.join(&*name);
        copy_tree(&vendored, &directory)?;
        module(&directory, &format!("golang.org/x/{name}"))?;
        require(&format!("golang.org/x/{name}"), &name)?;
    }
    Ok(program)
}

/// A GOPATH with one program. Returns its directory.
fn arrange_vendor(work: &Path, source_root: &Path) -> Result<PathBuf> {
    let program = work.join("src/example.com/program");
    let fork = program.join("vendor/github.com/forked");
    fs::create_dir_all(&fork)?;
    symlink(source_root.join("crypto/tls"), fork.join("tls"))?;
    let golang = work.join("src/golang.org/x");
    fs::create_dir_all(&golang)?;
    for vendored in vendored(source_root)? {
        symlink(
            &vendored,
            golang.join(vendored.file_name().unwrap_or_default()),
        )?;
    }
    Ok(program)
}

/// The modules of golang.org/x that GOROOT has a part of.
fn vendored(source_root: &Path) -> Result<Vec<PathBuf>> {
    let directory = source_root.join("vendor/golang.org/x");
    let entries = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_tree(&path, &target)?;
        } else {
            fs::write(&target, fs::read(&path)?)?;
        }
    }
    Ok(())
}

/// Copies a program's Go files, with the copy's import path instead of crypto/tls if asked for.
fn copy_source(from: &Path, to: &Path, replace: bool) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "go") {
            let mut text = fs::read_to_string(&path)?;
            if replace {
                text = text.replace("\"crypto/tls\"", &format!("\"{COPY}\""));
            }
            fs::write(to.join(path.file_name().unwrap_or_default()), text)?;
        }
    }
    Ok(())
}
