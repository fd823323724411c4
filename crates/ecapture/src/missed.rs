//! Programs that began to run before they were attached to, for the summary.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use trace::escape_name;

/// So many different ones are named.
const NAMED_MAX: usize = 20;

/// Why a program was not held when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unheld {
    /// Nothing is, since the beginning of the capture.
    NoGate,
    /// The guard, which held programs, had ended.
    NoGuard,
    /// It is on a filesystem whose programs are not held.
    Filesystem,
    /// It was held, or would have been, but we did not answer in time.
    TimeLimit,
    /// It was held, but not when it loaded a library with Go code.
    Library,
}

impl fmt::Display for Unheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoGate => "programs can't be held here",
            Self::NoGuard => "programs were no longer held",
            Self::Filesystem => "not held on its filesystem",
            Self::TimeLimit => "longer than the time limit",
            Self::Library => "in a library that it loaded",
        })
    }
}

/// What a capture may have missed the first bytes of.
#[derive(Debug, Default)]
pub(crate) struct Missed {
    named: BTreeMap<(String, Unheld), usize>,
    /// Those for which there were too many names.
    others: usize,
}

impl Missed {
    pub(crate) fn count(&mut self, executable: &Path, unheld: Unheld) {
        let name = escape_name(executable.as_os_str().as_encoded_bytes()).into_owned();
        let key = (name, unheld);
        if let Some(count) = self.named.get_mut(&key) {
            *count += 1;
        } else if self.named.len() < NAMED_MAX {
            self.named.insert(key, 1);
        } else {
            self.others += 1;
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.named.values().sum::<usize>() + self.others
    }
}

/// `3 (2 /srv/app: programs can't be held here, 1 /srv/b: …)`
impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.named.iter();
        let mut parts: Vec<_> = named
            .map(|((name, unheld), count)| format!("{count} {name}: {unheld}"))
            .collect();
        if self.others > 0 {
            parts.push(format!("{} others", self.others));
        }
        write!(f, "{} ({})", self.total(), parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named_with_their_number_and_the_reason() {
        let mut missed = Missed::default();
        missed.count(Path::new("/srv/b"), Unheld::TimeLimit);
        missed.count(Path::new("/srv/a"), Unheld::NoGate);
        missed.count(Path::new("/srv/b"), Unheld::TimeLimit);
        assert_eq!(
            missed.to_string(),
            "3 (1 /srv/a: programs can't be held here, 2 /srv/b: longer than the time limit)"
        );
        for number in 0..NAMED_MAX {
            missed.count(Path::new(&format!("/{number}")), Unheld::Filesystem);
        }
        assert_eq!(missed.total(), 3 + NAMED_MAX);
        assert!(missed.to_string().ends_with(", 2 others)"), "{missed}");
    }
}
