//! Points in time and how they are written.

use std::fmt::Write as _;

use jiff::tz::TimeZone;

/// A point in time: ns since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// From a record's clock, and what separates it from the wall clock (both in ns).
    pub fn from_monotonic(monotonic_ns: u64, realtime_offset_ns: i64) -> Self {
        let monotonic = i64::try_from(monotonic_ns).unwrap_or(i64::MAX);
        Self(monotonic.saturating_add(realtime_offset_ns))
    }

    fn split(self) -> (i64, u32) {
        let nanoseconds = self.0.rem_euclid(1_000_000_000);
        // Less than 10^9, so it fits.
        (self.0.div_euclid(1_000_000_000), nanoseconds as u32)
    }
}

/// A point in time by itself, as RFC 3339 in UTC: ns since 1970-01-01 UTC.
pub(crate) fn rfc3339(ns: i64) -> String {
    let (second, nanoseconds) = Timestamp(ns).split();
    let timestamp = jiff::Timestamp::from_second(second).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!(
        "{}.{nanoseconds:09}Z",
        timestamp.strftime("%Y-%m-%dT%H:%M:%S")
    )
}

/// Writes timestamps. Events come in bursts, so what is above the second is computed once a second.
#[derive(Debug)]
pub(crate) struct TimeFormat {
    zone: TimeZone,
    pattern: &'static str,
    second: Option<i64>,
    written: String,
}

impl TimeFormat {
    /// RFC 3339 in UTC.
    pub(crate) fn rfc3339() -> Self {
        Self::new(TimeZone::UTC, "%Y-%m-%dT%H:%M:%S")
    }

    /// The time of day in a time zone.
    pub(crate) fn time_of_day(zone: TimeZone) -> Self {
        Self::new(zone, "%H:%M:%S")
    }

    fn new(zone: TimeZone, pattern: &'static str) -> Self {
        Self {
            zone,
            pattern,
            second: None,
            written: String::new(),
        }
    }

    /// Everything down to the second, and the nanoseconds above it.
    pub(crate) fn second(&mut self, time: Timestamp) -> (&str, u32) {
        let (second, nanoseconds) = time.split();
        if self.second != Some(second) {
            self.second = Some(second);
            self.written.clear();
            let zoned = jiff::Timestamp::from_second(second)
                .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
                .to_zoned(self.zone.clone());
            // Writing to a string does not fail, and the pattern holds nothing that could.
            let _ = write!(self.written, "{}", zoned.strftime(self.pattern));
        }
        (&self.written, nanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_timestamp_is_written_as_itself() {
        let mut format = TimeFormat::rfc3339();
        for (ns, second, fraction) in [
            (
                1_795_379_103_123_456_789,
                "2026-11-22T20:25:03",
                123_456_789,
            ),
            (1_795_379_104_000_000_001, "2026-11-22T20:25:04", 1),
            (-1, "1969-12-31T23:59:59", 999_999_999),
        ] {
            assert_eq!(format.second(Timestamp(ns)), (second, fraction));
        }
    }

    #[test]
    fn absurd_times_do_not_panic() {
        for ns in [i64::MIN, i64::MAX] {
            TimeFormat::rfc3339().second(Timestamp(ns));
            Timestamp::from_monotonic(u64::MAX, ns);
        }
    }
}
