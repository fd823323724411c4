//! Versions of the Go toolchain, as `runtime.buildVersion` and the build info spell them.
//!
//! Source: `src/runtime/extern.go`, `src/cmd/dist/build.go` (`findgoversion`) and
//! `src/go/version` of Go 1.24; vendors append what they like.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// How far a version had come when it was built. In the order of their age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// A development tree on the way to the release.
    Devel,
    /// The n-th beta.
    Beta(u32),
    /// The n-th release candidate.
    Candidate(u32),
    /// The release itself, or a patch release.
    Release,
}

/// A version of Go: compared by its numbers, shown as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GoVersion {
    /// The 1 in `go1.24.3`.
    pub major: u32,
    /// The 24 in `go1.24.3`.
    pub minor: u32,
    /// The 3 in `go1.24.3`; 0 where there is none.
    pub patch: u32,
    /// Release or what comes before it.
    pub stage: Stage,
    /// The whole text, `devel ` prefix and vendor's suffix included; printable ASCII only.
    text: String,
}

/// The text names no version of Go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a version of Go")]
pub struct ParseGoVersionError;

/// Longer texts are no versions.
const MAX_LENGTH: usize = 200;

impl GoVersion {
    /// Whether this is `major.minor` or later; its betas, candidates and development trees count.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }

    /// The version as the file spells it, such as `go1.24.4 (Red Hat 1.24.4-1.el9)`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What follows the numbers and the stage: `-X:boringcrypto`, ` (Red Hat …)`; mostly empty.
    pub fn suffix(&self) -> &str {
        let text = self.text.strip_prefix("devel ").unwrap_or(&self.text);
        split(text).map_or("", |parts| parts.rest)
    }
}

impl FromStr for GoVersion {
    type Err = ParseGoVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.len() > MAX_LENGTH || !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            return Err(ParseGoVersionError);
        }
        let (devel, numbers) = match text.strip_prefix("devel ") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let parts = split(numbers).ok_or(ParseGoVersionError)?;
        // `go1.22-devel_abc` is a development tree, `go1.22.1-devel-cf` is Cloudflare's 1.22.1.
        let devel = devel || (parts.patch.is_none() && parts.rest.starts_with("-devel"));
        Ok(Self {
            major: parts.major,
            minor: parts.minor,
            patch: parts.patch.unwrap_or(0),
            stage: if devel { Stage::Devel } else { parts.stage },
            text: text.to_owned(),
        })
    }
}

struct Parts<'a> {
    major: u32,
    minor: u32,
    patch: Option<u32>,
    stage: Stage,
    rest: &'a str,
}

fn split(text: &str) -> Option<Parts<'_>> {
    let (major, rest) = number(text.strip_prefix("go")?)?;
    let (minor, rest) = number(rest.strip_prefix('.')?)?;
    let (patch, rest) = match rest.strip_prefix('.').and_then(number) {
        Some((patch, rest)) => (Some(patch), rest),
        None => (None, rest),
    };
    let (stage, rest) = if let Some((n, rest)) = rest.strip_prefix("rc").and_then(number) {
        (Stage::Candidate(n), rest)
    } else if let Some((n, rest)) = rest.strip_prefix("beta").and_then(number) {
        (Stage::Beta(n), rest)
    } else {
        (Stage::Release, rest)
    };
    // Whatever a vendor appends is set off by some mark.
    if rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '.') {
        return None;
    }
    Some(Parts {
        major,
        minor,
        patch,
        stage,
        rest,
    })
}

fn number(text: &str) -> Option<(u32, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

impl fmt::Display for GoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Ord for GoVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        let numbers = |v: &Self| (v.major, v.minor, v.patch, v.stage);
        // The text last, so that only equal versions compare as equal.
        numbers(self)
            .cmp(&numbers(other))
            .then_with(|| self.text.cmp(&other.text))
    }
}

impl PartialOrd for GoVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(text: &str) -> GoVersion {
        text.parse().unwrap()
    }

    #[test]
    fn spellings_in_the_wild() {
        for (text, numbers, stage, suffix) in [
            ("go1.24.11", (1, 24, 11), Stage::Release, ""),
            ("go1.8", (1, 8, 0), Stage::Release, ""),
            ("go1.21rc2", (1, 21, 0), Stage::Candidate(2), ""),
            ("go1.18beta1", (1, 18, 0), Stage::Beta(1), ""),
            (
                "go1.27.3-X:boringcrypto",
                (1, 27, 3),
                Stage::Release,
                "-X:boringcrypto",
            ),
            (
                "go1.20.5 X:nocoverageredesign",
                (1, 20, 5),
                Stage::Release,
                " X:nocoverageredesign",
            ),
            ("go1.22.1-devel-cf", (1, 22, 1), Stage::Release, "-devel-cf"),
            (
                "go1.27-devel_0a1b2c Mon Aug 3",
                (1, 27, 0),
                Stage::Devel,
                "-devel_0a1b2c Mon Aug 3",
            ),
            (
                "devel go1.19-2cd4a1e6 Thu Mar 3",
                (1, 19, 0),
                Stage::Devel,
                "-2cd4a1e6 Thu Mar 3",
            ),
            (
                "go1.24.4 (Red Hat 1.24.4-1.el9)",
                (1, 24, 4),
                Stage::Release,
                " (Red Hat 1.24.4-1.el9)",
            ),
        ] {
            let parsed = version(text);
            assert_eq!(
                (parsed.major, parsed.minor, parsed.patch),
                numbers,
                "{text}"
            );
            assert_eq!(parsed.stage, stage, "{text}");
            assert_eq!(parsed.suffix(), suffix, "{text}");
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "go",
            "go1",
            "go1.",
            "1.22",
            "devel +85f829deb8 Fri Feb 2",
            "go1.2x",
            "go1.22\x1b[0m",
            "go99999999999.1",
            "go1.22.",
        ] {
            assert_eq!(
                text.parse::<GoVersion>(),
                Err(ParseGoVersionError),
                "{text:?}"
            );
        }
    }

    #[test]
    fn ordered_by_number() {
        let ascending = [
            "go1.8",
            "go1.9.2",
            "go1.15",
            "devel go1.21-abc",
            "go1.21beta1",
            "go1.21rc2",
            "go1.21",
            "go1.21.9",
            "go1.21.10",
            "go2.0",
        ];
        for pair in ascending.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
        }
        assert!(version("devel go1.17-abc").at_least(1, 17));
        assert!(!version("go1.9.7").at_least(1, 17));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(devel )?(go)?[0-9.]{0,8}(rc|beta|-)?\\PC{0,12}") {
            if let Ok(parsed) = text.parse::<GoVersion>() {
                prop_assert_eq!(parsed.as_str(), text.trim());
                prop_assert_eq!(version(parsed.as_str()), parsed);
            }
        }
    }
}
