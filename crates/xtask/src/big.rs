//! A Go executable of more than 60 MB: what a service with many dependencies looks like, for
//! measuring how long its analysis takes. Generated, as nothing of that size should be downloaded.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::matrix::GoRelease;
use crate::toolchain::Toolchain;
use crate::{cache, run};

/// What the executable has to reach, in bytes.
pub const SIZE: u64 = 60_000_000;

/// Enough of them to reach [`SIZE`] with symbols and DWARF.
const PACKAGES: usize = 48;
const FUNCTIONS_PER_PACKAGE: usize = 1800;
/// Changes when what is generated changes.
const GENERATION: u32 = 1;

/// The path of the executable, built by the given release; takes a minute or two once.
pub fn binary(release: GoRelease) -> Result<PathBuf> {
    cache::entry(format!("big/{GENERATION}/{release}/big"), |output| {
        eprintln!(
            "building a Go executable with {} functions",
            PACKAGES * FUNCTIONS_PER_PACKAGE
        );
        let source = output.with_extension("source");
        generate(&source)?;
        let mut go = Toolchain::ensure(release)?.go();
        go.arg("build");
        if release.minor() >= 18 {
            go.arg("-buildvcs=false");
        }
        go.arg("-o").arg(output).arg(".").current_dir(&source);
        let built = run::output(&mut go);
        fs::remove_dir_all(&source)?;
        built?;
        let size = fs::metadata(output)?.len();
        if size < SIZE {
            bail!("the generated executable has only {size} bytes, {SIZE} are wanted");
        }
        Ok(())
    })
}

fn generate(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("go.mod"), "module big\n\ngo 1.15\n")?;
    let mut main = String::from("package main\n\nimport (\n\t\"net/http\"\n\t\"os\"\n\n");
    for package in 0..PACKAGES {
        writeln!(main, "\t\"big/p{package}\"")?;
    }
    // An HTTPS client, so that crypto/tls is in it; what it does is not looked at.
    main.push_str(")\n\nfunc main() {\n\tn := len(os.Args)\n");
    for package in 0..PACKAGES {
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
