//! Sizes and durations for people.

use std::fmt;

/// A number of bytes: `1 byte`, `999 bytes`, `1.2 kB`, `5.0 MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 byte"),
            bytes @ 0..1_000 => write!(f, "{bytes} bytes"),
            bytes => scaled(f, bytes, &["kB", "MB", "GB", "TB", "PB", "EB"]),
        }
    }
}

/// A time span, in ns: `850 ns`, `133.0 µs`, `3.4 ms`, `12.0 s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ns @ 0..1_000 => write!(f, "{ns} ns"),
            ns @ 1_000..1_000_000_000 => scaled(f, ns, &["µs", "ms", "s"]),
            ns => write!(f, "{}.{} s", ns / 1_000_000_000, ns / 100_000_000 % 10),
        }
    }
}

/// A number of at least 1000 with one digit behind the point, cut, and its unit.
fn scaled(f: &mut fmt::Formatter<'_>, mut value: u64, units: &[&str]) -> fmt::Result {
    let mut units = units.iter().peekable();
    while let Some(unit) = units.next() {
        if value < 1_000_000 || units.peek().is_none() {
            return write!(f, "{}.{} {unit}", value / 1000, value / 100 % 10);
        }
        value /= 1000;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (bytes, expected) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (999, "999 bytes"),
            (1_234, "1.2 kB"),
            (999_999, "999.9 kB"),
            (5_000_000, "5.0 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(Size(bytes).to_string(), expected);
        }
        for (ns, expected) in [
            (850, "850 ns"),
            (133_000, "133.0 µs"),
            (3_400_000, "3.4 ms"),
            (999_999_999, "999.9 ms"),
            (12_000_000_000, "12.0 s"),
        ] {
            assert_eq!(Span(ns).to_string(), expected);
        }
    }
}
