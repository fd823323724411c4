//! Packages of a Debian suite that is not the machine's own, fetched and not installed.
//!
//! apt gets a private directory for its lists and archives, and a list of sources derived from
//! the machine's own by putting another suite in: the same mirror, keys and proxies, and nothing
//! of the machine's own state is touched.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::arch::Arch;
use crate::setup::Unavailable;
use crate::{cache, run};

/// A Debian mirror to use instead of the machine's own, for machines that aren't Debian's.
const MIRROR_VARIABLE: &str = "ECAPTURE_DEBIAN_MIRROR";

/// Downloads packages into `dir` (created): the `.deb` files.
pub(crate) fn download(
    suite: &str,
    arch: Arch,
    packages: &[impl AsRef<OsStr>],
    dir: &Path,
) -> Result<Vec<PathBuf>> {
    let config = private_apt(suite, arch)?;
    fs::create_dir_all(dir)?;
    run::output(
        apt("apt-get", &config)
            .args(["-qq", "download"])
            .args(packages)
            .current_dir(dir),
    )
    .with_context(|| unavailable(suite, packages))?;
    let debs = debs_in(dir)?;
    if debs.len() != packages.len() {
        bail!(
            "{}: expected {} packages, found {}",
            dir.display(),
            packages.len(),
            debs.len()
        );
    }
    Ok(debs)
}

/// Downloads packages and all that they depend on.
pub(crate) fn download_with_dependencies(
    suite: &str,
    arch: Arch,
    packages: &[&str],
    dir: &Path,
) -> Result<Vec<PathBuf>> {
    let config = private_apt(suite, arch)?;
    fs::create_dir_all(dir.join("partial"))?;
    run::output(
        apt("apt-get", &config)
            .args(["-qq", "--yes", "--download-only", "--no-install-recommends"])
            .args(["-o", "Debug::NoLocking=1", "-o"])
            .arg(format!("Dir::Cache::archives={}/", dir.display()))
            .arg("install")
            .args(packages),
    )
    .with_context(|| unavailable(suite, packages))?;
    debs_in(dir)
}

/// The packages that one depends on, without alternatives and virtual ones.
pub(crate) fn dependencies(suite: &str, arch: Arch, package: &str) -> Result<Vec<String>> {
    let config = private_apt(suite, arch)?;
    let listed = run::output(apt("apt-cache", &config).args(["depends", "--important", package]))
        .with_context(|| unavailable(suite, &[package]))?;
    Ok(listed
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("Depends: "))
        .filter(|name| !name.starts_with('<'))
        .map(str::to_owned)
        .collect())
}

/// Unpacks packages into `dir`, in the layout that Debian has now: `/bin` and `/lib` are links to
/// the directories in `/usr`. Their scripts don't run.
pub(crate) fn unpack(debs: &[PathBuf], dir: &Path) -> Result<()> {
    for name in ["bin", "lib", "lib64", "sbin"] {
        fs::create_dir_all(dir.join("usr").join(name))?;
        let link = dir.join(name);
        if !link.exists() {
            symlink(Path::new("usr").join(name), &link)?;
        }
    }
    for deb in debs {
        const SCRIPT: &str = "dpkg-deb --fsys-tarfile \"$1\" | \
                              tar --extract --keep-directory-symlink --directory \"$2\"";
        run::output(
            Command::new("sh")
                .args(["-c", SCRIPT, "unpack"])
                .arg(deb)
                .arg(dir),
        )?;
    }
    Ok(())
}

fn debs_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut debs = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            debs.push(path);
        }
    }
    debs.sort();
    Ok(debs)
}

fn unavailable(suite: &str, packages: &[impl AsRef<OsStr>]) -> Unavailable {
    let names: Vec<_> = packages
        .iter()
        .map(|name| name.as_ref().to_string_lossy())
        .collect();
    Unavailable(format!(
        "{} of Debian {suite} can't be had from this machine's apt sources; \
         set {MIRROR_VARIABLE} to the URL of a Debian mirror that has {suite}",
        names.join(", ")
    ))
}

fn apt(program: &str, config: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("APT_CONFIG", config);
    command
}

/// An apt configuration for the suite with its lists fetched: the path of its `apt.conf`.
fn private_apt(suite: &str, arch: Arch) -> Result<PathBuf> {
    // The lists are fetched once in the life of this process.
    static UPDATED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

    let name = format!("apt/{suite}-{arch}");
    let apt_dir = cache::dir()?.join(&name);
    let config = apt_dir.join("apt.conf");
    let mut updated = UPDATED.lock().unwrap_or_else(PoisonError::into_inner);
    if updated.contains(&config) {
        return Ok(config);
    }
    let _lock = cache::Lock::take(Path::new(&name))?;
    for dir in ["state/lists/partial", "cache/archives/partial", "parts"] {
        fs::create_dir_all(apt_dir.join(dir))?;
    }
    fs::write(apt_dir.join("parts/suite.sources"), sources(suite)?)?;
    fs::write(apt_dir.join("status"), "")?;
    let root = apt_dir.display();
    fs::write(
        &config,
        format!(
            "APT::Architecture \"{arch}\";\n\
             APT::Architectures {{ \"{arch}\"; }};\n\
             Dir::State \"{root}/state\";\n\
             Dir::State::status \"{root}/status\";\n\
             Dir::Cache \"{root}/cache\";\n\
             Dir::Etc::SourceList \"{root}/none\";\n\
             Dir::Etc::SourceParts \"{root}/parts\";\n\
             APT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
        ),
    )?;
    // One of several sources may lack the suite. What counts is whether the download succeeds,
    // but then this is what tells why it didn't.
    if let Err(error) = run::output(apt("apt-get", &config).args(["-q", "update"])) {
        eprintln!("{error:#}");
    }
    updated.push(config.clone());
    Ok(config)
}

fn sources(suite: &str) -> Result<String> {
    if let Some(mirror) = std::env::var(MIRROR_VARIABLE)
        .ok()
        .filter(|url| !url.is_empty())
    {
        return Ok(format!(
            "Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n"
        ));
    }
    let mut derived = Vec::new();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => derived.extend(text.lines().filter_map(|l| one_line(l, suite))),
            Some("sources") => {
                derived.extend(stanzas(&text).iter().filter_map(|s| deb822(s, suite)));
            }
            _ => {}
        }
    }
    derived.dedup();
    if derived.is_empty() {
        bail!(Unavailable(format!(
            "no Debian mirror found in /etc/apt; set {MIRROR_VARIABLE} to the URL of one \
             that has {suite}"
        )));
    }
    Ok(derived.join("\n"))
}

fn stanzas(text: &str) -> Vec<String> {
    let mut stanzas = vec![String::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match stanzas.last_mut() {
            Some(stanza) if !line.trim().is_empty() => {
                stanza.push_str(line);
                stanza.push('\n');
            }
            _ => stanzas.push(String::new()),
        }
    }
    stanzas
}

/// A stanza in the format of `sources.list(5)`, "deb822-style", with another suite; `None` if it
/// is not of the main archive.
fn deb822(stanza: &str, suite: &str) -> Option<String> {
    let field = |name: &str| {
        stanza.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let words = |name| {
        field(name)
            .unwrap_or_default()
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    if !words("Types").contains(&"deb")
        || !words("Components").contains(&"main")
        || field("Enabled") == Some("no")
        || words("Suites").iter().all(|suite| is_addition(suite))
    {
        return None;
    }
    let mut derived = format!(
        "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n",
        field("URIs")?
    );
    if let Some(key) = field("Signed-By").filter(|key| key.starts_with('/')) {
        derived.push_str(&format!("Signed-By: {key}\n"));
    }
    Some(derived)
}

/// The same from a line `deb [options] uri suite component…`.
fn one_line(line: &str, suite: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix(char::is_whitespace)?.trim();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let words: Vec<_> = rest.split_whitespace().collect();
    let [uri, own_suite, components @ ..] = &words[..] else {
        return None;
    };
    if is_addition(own_suite) || !components.contains(&"main") {
        return None;
    }
    let mut derived = format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n");
    if let Some(key) = options
        .split_whitespace()
        .find_map(|o| o.strip_prefix("signed-by="))
    {
        derived.push_str(&format!("Signed-By: {key}\n"));
    }
    Some(derived)
}

/// Whether a suite only adds to another: `bookworm-updates`, `bookworm/updates`, `x-security`.
fn is_addition(suite: &str) -> bool {
    suite.contains(['-', '/'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stanza_keeps_its_mirror_and_key() {
        let text = "Types: deb\n# a comment\nURIs: http://mirror.test/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main contrib\n\
                    Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
                    Types: deb\nURIs: http://mirror.test/security\nSuites: bookworm-security\n\
                    Components: main\n";
        let derived: Vec<_> = stanzas(text)
            .iter()
            .filter_map(|s| deb822(s, "bullseye"))
            .collect();
        assert_eq!(
            derived,
            [
                "Types: deb\nURIs: http://mirror.test/debian\nSuites: bullseye\n\
              Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
            ]
        );
    }

    #[test]
    fn a_line_keeps_its_mirror_and_key() {
        assert_eq!(
            one_line(
                "deb [arch=amd64 signed-by=/k.gpg] http://m.test/debian stable main",
                "x"
            ),
            Some(
                "Types: deb\nURIs: http://m.test/debian\nSuites: x\nComponents: main\n\
                 Signed-By: /k.gpg\n"
                    .into()
            )
        );
    }

    #[test]
    fn other_sources_are_left_out() {
        for line in [
            "# deb http://m.test/debian bookworm main",
            "deb-src http://m.test/debian bookworm main",
            "deb http://m.test/debian bookworm-security main",
            "deb http://m.test/tool bookworm tool",
            "deb http://m.test/flat ./",
            "",
        ] {
            assert_eq!(one_line(line, "bullseye"), None, "{line}");
        }
    }
}
