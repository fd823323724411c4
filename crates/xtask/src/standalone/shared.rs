//! The program `exchange` as a shared library and as a plugin, and programs that load it: two of C, one of
//! Go.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::Recipe;
use crate::matrix::{self, GoRelease, Variant};
use crate::run;
use crate::toolchain::Toolchain;

/// How `exchange` is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loading {
    /// `-buildmode=c-shared`, by dlopen(3) in a C program.
    Dlopen,
    /// `-buildmode=c-shared`, linked with a C program.
    Linked,
    /// `-buildmode=plugin`, by a Go program.
    Plugin,
}

impl Loading {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Dlopen, Self::Linked, Self::Plugin];
}

/// The library's file name, beside the program in its directory.
pub const LIBRARY: &str = "libexchange.so";
/// The program's file name.
pub const HOST: &str = "exchange";

/// The directory of a build of the library and the program that loads it.
pub fn build(release: GoRelease, loading: Loading) -> Result<PathBuf> {
    let (exchange, sources) = (matrix::Program::Exchange.source(), source());
    let export = match loading {
        Loading::Dlopen | Loading::Linked => sources.join("library"),
        Loading::Plugin => sources.join("plugin"),
    };
    let recipe = Recipe {
        name: format!("shared-{loading:?}"),
        sources: &[
            &exchange,
            &export,
            &sources,
            &sources.join("host"),
            Path::new(file!()),
        ],
        release,
        variant: Variant::Default,
    };
    recipe.make(|output| {
        fs::create_dir_all(output)?;
        let work = output.join("work");
        fs::create_dir_all(&work)?;
        for directory in [&exchange, &export] {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                fs::write(
                    work.join(path.file_name().unwrap_or_default()),
                    fs::read(&path)?,
                )?;
            }
        }
        let library = output.join(LIBRARY);
        let mode = match loading {
            Loading::Dlopen | Loading::Linked => "-buildmode=c-shared",
            Loading::Plugin => "-buildmode=plugin",
        };
        go_build(release, mode, &work, &library)?;
        let host = output.join(HOST);
        let mut cc = Command::new("cc");
        cc.arg("-o").arg(&host);
        match loading {
            Loading::Dlopen => {
                run::output(cc.arg(sources.join("dlopen.c")).arg("-ldl"))?;
            }
            Loading::Linked => {
                cc.arg(sources.join("linked.c")).arg("-L").arg(output);
                run::output(cc.args(["-lexchange", "-Wl,-rpath,$ORIGIN"]))?;
            }
            Loading::Plugin => {
                let source = work.join("host");
                fs::create_dir_all(&source)?;
                fs::write(source.join("go.mod"), "module host\n\ngo 1.15\n")?;
                let main = fs::read(sources.join("host/main.go"))?;
                fs::write(source.join("main.go"), main)?;
                go_build(release, "-buildmode=exe", &source, &host)?;
            }
        }
        Ok(fs::remove_dir_all(work)?)
    })
}

/// The directory with the sources that make a library of `exchange`, and of programs that load it.
pub(crate) fn source() -> PathBuf {
    super::programs().join("shared")
}

fn go_build(release: GoRelease, mode: &str, directory: &Path, output: &Path) -> Result<()> {
    let mut go = Toolchain::ensure(release)?.go();
    super::arguments(&mut go, release, Variant::Default);
    go.env("CGO_ENABLED", "1").arg(mode);
    run::output(go.arg("-o").arg(output).arg(".").current_dir(directory)).map(drop)
}
