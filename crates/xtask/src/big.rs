//! Big Go executables: what a service with many dependencies looks like, for measuring how long its
//! analysis takes. Generated, as nothing of that size should be downloaded.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::matrix::GoRelease;
use crate::toolchain::Toolchain;
use crate::{cache, run};

/// How big.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// About 25 MB.
    Mb25,
    /// About 70 MB.
    Mb70,
    /// About 200 MB.
    Mb200,
}

impl Size {
    /// Every size, the smallest first.
    pub const ALL: [Self; 3] = [Self::Mb25, Self::Mb70, Self::Mb200];

    /// A package makes 1.2 MB, with symbols and DWARF.
    const fn packages(self) -> usize {
        match self {
            Self::Mb25 => 12,
            Self::Mb70 => 48,
            Self::Mb200 => 156,
        }
    }
}

const FUNCTIONS_PER_PACKAGE: usize = 1800;
/// Changes when what is generated changes.
const GENERATION: u32 = 2;

/// The path of the executable, built by the given release; the biggest takes some minutes once.
pub fn binary(release: GoRelease, size: Size) -> Result<PathBuf> {
    let packages = size.packages();
    cache::entry(format!("big/{GENERATION}/{release}/{packages}"), |output| {
        eprintln!(
            "building a Go executable with {} functions",
            packages * FUNCTIONS_PER_PACKAGE
        );
        let source = output.with_extension("source");
        generate(&source, packages)?;
        let mut go = Toolchain::ensure(release)?.go();
        // Without the directory's name in them, the packages of one size serve for the next.
        go.args(["build", "-trimpath"]);
        if release.minor() >= 18 {
            go.arg("-buildvcs=false");
        }
        go.arg("-o").arg(output).arg(".").current_dir(&source);
        let built = run::output(&mut go);
        fs::remove_dir_all(&source)?;
        built.map(drop)
    })
}

fn generate(dir: &Path, packages: usize) -> Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("go.mod"), "module big\n\ngo 1.15\n")?;
    let mut main = String::from("package main\n\nimport (\n\t\"net/http\"\n\t\"os\"\n\n");
    for package in 0..packages {
        writeln!(main, "\t\"big/p{package}\"")?;
    }
    // An HTTPS client, so that crypto/tls is in it; what it does is not looked at.
    main.push_str(")\n\nfunc main() {\n\tn := len(os.Args)\n");
    for package in 0..packages {
        writeln!(main, "\tn += p{package}.Call(n)")?;
        let package_dir = dir.join(format!("p{package}"));
        fs::create_dir_all(&package_dir)?;
        fs::write(package_dir.join("functions.go"), functions(package)?)?;
    }
    main.push_str("\tif n == 0 {\n\t\thttp.Get(\"https://127.0.0.1:1/\")\n\t}\n}\n");
    fs::write(dir.join("main.go"), main)?;
    Ok(())
}

/// Functions that the linker must keep, as a table holds them.
fn functions(package: usize) -> Result<String> {
    let mut source = format!("package p{package}\n\nimport \"strconv\"\n\n");
    for n in 0..FUNCTIONS_PER_PACKAGE {
        write!(
            source,
            "func handleRequestNumber{n}(count int, parts ...string) (total int, name string) {{\n\
             \tfor i, part := range parts {{\n\
             \t\tif value, err := strconv.Atoi(part); err == nil && value > {n} {{\n\
             \t\t\ttotal += value * i\n\
             \t\t}} else {{\n\
             \t\t\tname += part + strconv.Itoa(count+{n})\n\
             \t\t}}\n\
             \t}}\n\
             \treturn total + count, name\n\
             }}\n\n"
        )?;
    }
    source.push_str("var table = [...]func(int, ...string) (int, string){\n");
    for n in 0..FUNCTIONS_PER_PACKAGE {
        writeln!(source, "\thandleRequestNumber{n},")?;
    }
    source.push_str(
        "}\n\n// Call calls one of them.\nfunc Call(n int) int {\n\
         \ttotal, _ := table[n%len(table)](n)\n\treturn total\n}\n",
    );
    Ok(source)
}
