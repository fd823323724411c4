//! `cargo xtask vm`: the live tests on other kernels, and on the other architecture, in virtual
//! machines that QEMU emulates. Needs neither root nor KVM.
//!
//! A machine gets a Debian kernel (`kernel.rs`), Debian's tools (`userland.rs`) and the tests, linked
//! statically, with the Go programs that they capture from (`payload.rs`): three read-only disks, which
//! its init process lays over each other. What it says on its serial line is judged here
//! (`report.rs`).

mod kernel;
mod machine;
mod payload;
mod report;
mod userland;

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use rustix::fs::{FlockOperation, flock};

use crate::arch::Arch;
use crate::cargo::target_dir;
use crate::run;
use crate::setup::{self, Group, Unavailable};

use kernel::Kernel;
use machine::Machine;
use payload::Payload;
use report::{Report, print_table};

/// Which kernels, and what to run on them
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// The kernel; may be repeated [default: all]
    #[arg(long, value_enum, value_name = "VERSION")]
    pub kernel: Vec<Release>,
    /// The processor architecture [default: this machine's]
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,
    /// How the kernel is set up; may be repeated [default: all]
    #[arg(long, value_enum, value_name = "SETUP")]
    pub condition: Vec<Condition>,
    /// Only a few tests, of what kernels have several kinds of
    #[arg(long, conflicts_with = "filter")]
    pub quick: bool,
    /// All tests, not one or more of each kind; takes hours
    #[arg(long, conflicts_with_all = ["quick", "filter"])]
    pub all: bool,
    /// Keep the disks, and print the command that starts the machine
    #[arg(long)]
    pub keep: bool,
    /// Fetch the newest packages even if the cache has some
    #[arg(long)]
    pub update: bool,
    /// Only tests whose name contains one of these
    pub filter: Vec<String>,
}

/// A kernel release, and the suite of Debian that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Release {
    /// Debian 11 (bullseye)
    #[value(name = "5.10")]
    Linux5_10,
    /// Debian 12 (bookworm)
    #[value(name = "6.1")]
    Linux6_1,
    /// Debian 13's, in Debian 12's backports
    #[value(name = "6.12")]
    Linux6_12,
    /// The newest in Debian unstable
    #[value(name = "sid")]
    Newest,
}

impl Release {
    const fn name(self) -> &'static str {
        match self {
            Self::Linux5_10 => "5.10",
            Self::Linux6_1 => "6.1",
            Self::Linux6_12 => "6.12",
            Self::Newest => "sid",
        }
    }

    const fn suite(self) -> &'static str {
        match self {
            Self::Linux5_10 => "bullseye",
            Self::Linux6_1 => "bookworm",
            Self::Linux6_12 => "bookworm-backports",
            Self::Newest => "sid",
        }
    }

    /// QEMU's processor. QEMU 7.2 emulates cmpxchg16b wrongly, of which Linux 6.12 crashes; the newest
    /// kernels have no storage for sockets on a processor without it (`kmalloc_nolock`, mm/slub.c).
    const fn cpu(self, arch: Arch) -> &'static str {
        match (arch, self) {
            (Arch::Arm64, _) => "neoverse-n1",
            (Arch::Amd64, Self::Newest) => "max,la57=off",
            (Arch::Amd64, _) => "max,cx16=off,la57=off",
        }
    }
}

/// How a kernel is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Condition {
    /// As Debian's kernel comes
    Plain,
    /// Without BTF: `/sys/kernel/btf` is empty
    NoBtf,
    /// With `lockdown=integrity`, as under Secure Boot
    Lockdown,
}

impl Condition {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::NoBtf => "no-btf",
            Self::Lockdown => "lockdown",
        }
    }

    /// What the kernel's command line says of it, for the kernel or our init process.
    const fn command_line(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::NoBtf => "ecapture.hide_btf",
            Self::Lockdown => "lockdown=integrity",
        }
    }

    /// What `ecapture doctor` has to say then.
    const fn expected_fact(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::NoBtf => Some("BTF not there"),
            Self::Lockdown => Some("lockdown integrity"),
        }
    }

    /// Whether it is tested with a kernel without being asked for: once with the oldest kernel and
    /// once with the newest one says it all.
    fn is_usual(self, release: Release) -> bool {
        match self {
            Self::Plain => true,
            Self::NoBtf | Self::Lockdown => {
                matches!(release, Release::Linux5_10 | Release::Newest)
            }
        }
    }
}

/// Boots the machines one after the other and prints a table; an error if a test failed.
pub fn run(options: &Options) -> Result<()> {
    let lock = lock()?;
    let (supplies, missing) = Supplies::fetch(options)?;
    if let Some((_, error)) = missing.into_iter().next() {
        return Err(error);
    }
    let machines = Machines::build(options, supplies, lock)?;
    let reports = machines.boot_all(|case| case.boot());
    machines.judge(&reports)
}

/// A few tests on the oldest kernel and on the newest one. A kernel that can't be had is named and left out.
///
/// # Errors
///
/// [`Unavailable`] if what it takes, or either kernel, can't be had, or that a test failed.
pub fn briefly() -> Result<()> {
    let options = Options {
        kernel: vec![Release::Linux5_10, Release::Newest],
        quick: true,
        ..Options::default()
    };
    let lock = lock()?;
    let (supplies, missing) = Supplies::fetch(&options)?;
    let not_run: Vec<_> = missing
        .iter()
        .map(|(release, error)| format!("NOT RUN: Linux {}: {error:#}", release.name()))
        .collect();
    if supplies.kernels.is_empty() {
        bail!(Unavailable(not_run.join("\n")));
    }
    let machines = Machines::build(&options, supplies, lock)?;
    let reports = machines.boot_all(|case| {
        let report = case.boot();
        if report.passed() {
            return report;
        }
        // Emulated time passes slowly, and the more so the more else is done.
        eprintln!("once more: Linux {}", case.name);
        let again = case.boot();
        if again.passed() {
            eprintln!(
                "UNSTABLE: Linux {} failed at first, and passed then",
                case.name
            );
        }
        again
    });
    let outcome = machines.judge(&reports);
    // Below the table, where it can't be missed.
    for line in not_run {
        println!("\n{line}");
    }
    outcome
}

/// Those of the names of tests which machines run that no test of the calling test binary has: `live` or
/// `packets`.
///
/// # Errors
///
/// That the executable can't list its tests, or that machines run none of it.
pub fn names_of_no_test(binary: &str) -> Result<Vec<&'static str>> {
    let mut names = payload::named_tests(binary);
    ensure!(!names.is_empty(), "machines run no test of {binary}");
    let tests = run::output(Command::new(env::current_exe()?).arg("--list"))?;
    let has = |name: &str| {
        let mut tests = tests.lines().filter_map(|line| line.strip_suffix(": test"));
        tests.any(|test| test.contains(name))
    };
    names.retain(|name| !has(name));
    Ok(names)
}

/// What machines consist of that is not built here.
struct Supplies {
    arch: Arch,
    userland: PathBuf,
    kernels: Vec<(Release, Kernel)>,
}

/// Kernels that can't be had, and why.
type Missing = Vec<(Release, anyhow::Error)>;

impl Supplies {
    /// Fetches what the cache lacks, and installs QEMU if need be.
    fn fetch(options: &Options) -> Result<(Self, Missing)> {
        setup::ensure(Group::Vm)?;
        let arch = options.arch.map_or_else(Arch::host, Ok)?;
        let releases = if options.kernel.is_empty() {
            Release::value_variants()
        } else {
            &options.kernel
        };
        let userland = userland::ensure(arch, options.update)?;
        let (kernels, missing) = available(releases, |release| {
            Kernel::ensure(release, arch, options.update)
        })?;
        let supplies = Self {
            arch,
            userland,
            kernels,
        };
        Ok((supplies, missing))
    }
}

/// The kernels that can be had, and those that can't; any other error is one.
fn available<T>(
    releases: &[Release],
    fetch: impl Fn(Release) -> Result<T>,
) -> Result<(Vec<(Release, T)>, Missing)> {
    let (mut kernels, mut missing) = (Vec::new(), Missing::new());
    for &release in releases {
        match fetch(release) {
            Ok(kernel) => kernels.push((release, kernel)),
            Err(error) if error.is::<Unavailable>() => missing.push((release, error)),
            Err(error) => return Err(error),
        }
    }
    Ok((kernels, missing))
}

/// All machines of a run.
struct Machines<'a> {
    options: &'a Options,
    supplies: Supplies,
    payload: Payload,
    lock: Lock,
}

impl<'a> Machines<'a> {
    fn build(options: &'a Options, supplies: Supplies, lock: Lock) -> Result<Self> {
        let arch = supplies.arch;
        let payload = Payload::build(arch, &lock.dir.join(format!("payload-{arch}.ext4")))?;
        Ok(Self {
            options,
            supplies,
            payload,
            lock,
        })
    }

    /// One after the other.
    fn boot_all(&self, boot: impl Fn(&Case<'_>) -> Report) -> Vec<Report> {
        let mut reports = Vec::new();
        for (release, kernel) in &self.supplies.kernels {
            for condition in conditions(self.options, *release) {
                reports.push(boot(&self.case(*release, kernel, condition)));
            }
        }
        reports
    }

    fn case<'b>(&'b self, release: Release, kernel: &'b Kernel, condition: Condition) -> Case<'b> {
        let arch = self.supplies.arch;
        let (release_name, condition_name) = (release.name(), condition.name());
        let log = format!("{release_name}-{arch}-{condition_name}.log");
        Case {
            name: format!("{} {condition_name}", kernel.version().trim()),
            condition,
            machine: Machine {
                arch,
                kernel,
                cpu: release.cpu(arch),
                disks: [&self.supplies.userland, self.payload.disk()],
                command_line: command_line(self.options, condition),
                log: self.lock.dir.join(log),
            },
            options: self.options,
        }
    }

    /// Prints a table.
    fn judge(self, reports: &[Report]) -> Result<()> {
        if !self.options.keep {
            self.payload.remove();
        }
        print_table(reports);
        if reports.iter().all(Report::passed) {
            Ok(())
        } else {
            bail!(
                "not everything passed; the machines' logs are in {}",
                self.lock.dir.display()
            )
        }
    }
}

/// A machine, and what it is to be like.
struct Case<'a> {
    name: String,
    condition: Condition,
    machine: Machine<'a>,
    options: &'a Options,
}

impl Case<'_> {
    fn boot(&self) -> Report {
        if self.options.keep {
            eprintln!("{}", run::shown(&self.machine.command()));
        }
        eprintln!("== Linux {}", self.name);
        let started = Instant::now();
        let outcome = self.machine.run(limit(self.options));
        let log = fs::read(&self.machine.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let is_filtered = !self.options.filter.is_empty();
        let took = started.elapsed();
        let mut report = Report::new(&self.name, &log, outcome, is_filtered, took);
        if let Some(fact) = self.condition.expected_fact() {
            report.expect(fact);
        }
        report.print_failures(&self.machine.log);
        report
    }
}

/// One run at a time: another one would write to the disks that this one's machines read.
struct Lock {
    dir: PathBuf,
    _file: File,
}

fn lock() -> Result<Lock> {
    let dir = target_dir().join("vm");
    fs::create_dir_all(&dir)?;
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).with_context(|| {
        format!(
            "{}: another `cargo xtask vm` uses the disks beside it; wait until it has ended",
            path.display()
        )
    })?;
    Ok(Lock { dir, _file: file })
}

fn conditions(options: &Options, release: Release) -> Vec<Condition> {
    if !options.condition.is_empty() {
        return options.condition.clone();
    }
    Condition::value_variants()
        .iter()
        .copied()
        .filter(|condition| condition.is_usual(release))
        .filter(|condition| !options.quick || *condition == Condition::Plain)
        .collect()
}

/// What our init process is told: which tests, and how the kernel is to be.
fn command_line(options: &Options, condition: Condition) -> String {
    let filter = options.filter.join(",");
    let tests = match (options.quick, options.all) {
        (true, _) => "quick",
        (_, true) => "all",
        // Of a kernel that is tested as it comes, too.
        _ if filter.is_empty() && condition != Condition::Plain => "quick",
        _ if filter.is_empty() => "usual",
        _ => &filter,
    };
    format!("ecapture.tests={tests} {}", condition.command_line())
}

fn limit(options: &Options) -> Duration {
    Duration::from_secs(match (options.quick, options.all) {
        (true, _) => 15 * 60,
        (_, true) => 6 * 60 * 60,
        _ => 60 * 60,
    })
}

/// Makes a disk image with what `dir` holds; `spare` are bytes for what the file system needs.
fn make_disk(dir: &Path, disk: &Path) -> Result<()> {
    let kib: u64 = run::output(
        Command::new("du")
            .args(["--summarize", "--apparent-size", "-k"])
            .arg(dir),
    )?
    .split_whitespace()
    .next()
    .and_then(|kib| kib.parse().ok())
    .unwrap_or_default();
    // Small files take whole blocks, and there are tables.
    let size = kib * 5 / 4 + 16 * 1024;
    run::output(
        Command::new("mkfs.ext4")
            .args([
                "-q",
                "-F",
                "-O",
                "^has_journal",
                "-m",
                "0",
                "-N",
                "40000",
                "-d",
            ])
            .arg(dir)
            .arg(disk)
            .arg(format!("{size}k")),
    )?;
    Ok(())
}

/// The file of a package, wherever its suite puts it.
fn first_existing(candidates: &[PathBuf]) -> Option<&PathBuf> {
    candidates.iter().find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_kernel_that_can_not_be_had_does_not_keep_others_from_being_tested() {
        let fetch = |release| match release {
            Release::Newest => {
                Err(anyhow!("no network")).with_context(|| Unavailable("mirrors".into()))
            }
            release => Ok(release.suite()),
        };
        let both = [Release::Linux5_10, Release::Newest];
        let (kernels, missing) = available(&both, fetch).unwrap();
        assert_eq!(kernels, [(Release::Linux5_10, "bullseye")]);
        let [(release, error)] = &missing[..] else {
            panic!("{missing:?}");
        };
        assert_eq!(*release, Release::Newest);
        assert_eq!(format!("{error:#}"), "mirrors: no network");
        assert!(available(&both, |_| -> Result<()> { Err(anyhow!("a bug")) }).is_err());
    }
}
