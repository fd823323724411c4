//! The two clocks: records carry CLOCK_MONOTONIC, people want the time of day.

use rustix::time::{ClockId, clock_gettime};

/// The present time of CLOCK_MONOTONIC, in ns: the clock of the records.
pub fn monotonic_ns() -> u64 {
    read(ClockId::Monotonic).try_into().unwrap_or(0)
}

/// What to add to a time of CLOCK_MONOTONIC to get the time since 1970-01-01 UTC, in ns, as the
/// wall clock stands now. It changes when the wall clock is set.
pub fn realtime_offset_ns() -> i64 {
    // The clocks can't be read at one instant. Of three attempts the shortest is the best one.
    (0..3)
        .map(|_| {
            let before = read(ClockId::Monotonic);
            let realtime = read(ClockId::Realtime);
            let after = read(ClockId::Monotonic);
            (after - before, realtime - (before + (after - before) / 2))
        })
        .min()
        .map_or(0, |(_, offset)| offset)
}

fn read(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_plus_offset_is_the_time_of_day() {
        let expected = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_nanos() as i64;
        let found = monotonic_ns() as i64 + realtime_offset_ns();
        assert!(
            (found - expected).abs() < 1_000_000_000,
            "{found} {expected}"
        );
    }
}
