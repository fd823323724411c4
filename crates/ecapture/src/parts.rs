//! What of a program is captured: TLS packages of its executable, and of shared libraries that it has
//! mapped.

use capture::{Executable, Library, Part, Process, Wanted};
use gobin::{Analysis, Error, KeyPlan, Plans, ProbePlan, ReadSitePreference};
use trace::escape_name;

use crate::failure::Failure;

/// A file with Go code.
#[derive(Debug)]
pub(crate) struct GoFile {
    pub(crate) executable: Executable,
    pub(crate) analysis: Analysis,
}

impl GoFile {
    /// Analyses a library; `None` if there is no Go code in it that speaks TLS.
    pub(crate) fn of_library(library: &Library) -> Option<Self> {
        let executable = library.open_file().ok()?;
        let analysis = analyze_library(&executable).ok()??.ok()?;
        let has_tls = analysis.packages().next().is_some();
        has_tls.then_some(Self {
            executable,
            analysis,
        })
    }

    /// `/srv/server (go1.24.11, amd64, register ABI)`, with the packages if these are not just crypto/tls.
    pub(crate) fn describe(&self, packages: &[&str]) -> String {
        let name = escape_name(self.executable.name().as_os_str().as_encoded_bytes());
        let analysis = &self.analysis;
        let (version, arch, abi) = (analysis.go_version(), analysis.arch, analysis.abi);
        let packages = match packages {
            [gobin::CRYPTO_TLS] => String::new(),
            packages => format!("; {}", escape_name(packages.join(", ").as_bytes())),
        };
        format!("{name} ({version}, {arch}, {abi} ABI{packages})")
    }
}

/// What is in a library; `None` if it is not Go's.
pub(crate) fn analyze_library(
    library: &Executable,
) -> Result<Option<Result<Analysis, Error>>, capture::Error> {
    library.read(|bytes| {
        let elf = gobin::elf::Elf::parse(bytes).ok()?;
        gobin::has_go_sections(&elf).then(|| gobin::analyze(bytes))
    })
}

/// The files with Go code of a program: its executable, unless that has none, and libraries that its
/// process has mapped by now.
pub(crate) fn go_files(
    executable: Executable,
    process: Option<&Process>,
) -> Result<Vec<GoFile>, Failure> {
    let analysis = executable.read(gobin::analyze)?;
    let libraries = process.map_or_else(Vec::new, |process| Library::of(process.pid()));
    // The file that was asked for may be one of them, and nothing is to be captured twice.
    let (identity, changed_ns) = (executable.identity(), executable.changed_ns());
    let others = libraries.iter().filter(|library| {
        (library.identity.inode, library.changed_ns) != (identity.inode, changed_ns)
    });
    let mut files: Vec<_> = others.filter_map(GoFile::of_library).collect();
    match analysis {
        Ok(analysis) if files.is_empty() || analysis.packages().next().is_some() => {
            files.insert(
                0,
                GoFile {
                    executable,
                    analysis,
                },
            );
        }
        Err(error) if files.is_empty() => {
            return Err(Failure::executable(executable.name(), error));
        }
        _ => {}
    }
    Ok(files)
}

/// Plans for a file's packages.
#[derive(Debug)]
pub(crate) enum FilePlans {
    Plaintext(Vec<ProbePlan>),
    Keys(Vec<KeyPlan>),
}

impl FilePlans {
    /// For plaintext, and why packages are left out.
    pub(crate) fn plaintext(
        analysis: &Analysis,
        preference: ReadSitePreference,
    ) -> Result<(Self, Vec<Error>), Error> {
        let Plans { plans, refusals } = analysis.plans(preference)?;
        Ok((Self::Plaintext(plans), refusals))
    }

    /// For keys, likewise.
    pub(crate) fn keys(analysis: &Analysis) -> Result<(Self, Vec<Error>), Error> {
        let Plans { plans, refusals } = analysis.key_plans()?;
        Ok((Self::Keys(plans), refusals))
    }

    /// What to attach.
    pub(crate) fn wanted(&self) -> Vec<Wanted<'_>> {
        match self {
            Self::Plaintext(plans) => plans.iter().map(Wanted::Plaintext).collect(),
            Self::Keys(plans) => plans.iter().map(Wanted::Keys).collect(),
        }
    }

    /// The same, of this file.
    pub(crate) fn parts<'a>(&'a self, file: &'a Executable) -> Vec<Part<'a>> {
        let part = |wanted| Part { file, wanted };
        self.wanted().into_iter().map(part).collect()
    }

    /// The import paths.
    pub(crate) fn packages(&self) -> Vec<&str> {
        match self {
            Self::Plaintext(plans) => plans.iter().map(|plan| &*plan.package).collect(),
            Self::Keys(plans) => plans.iter().map(|plan| &*plan.package).collect(),
        }
    }
}
