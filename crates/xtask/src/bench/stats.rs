//! Many measurements as one figure.

use anyhow::{Context, Result};

/// The middle of some measurements, and their extremes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    pub(super) fn of(samples: impl IntoIterator<Item = f64>) -> Result<Self> {
        let mut samples: Vec<_> = samples.into_iter().collect();
        samples.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (samples.first(), samples.last()) else {
            return Err(anyhow::anyhow!("no measurements"));
        };
        let middle = samples.len() / 2;
        let median = match samples.len() % 2 {
            0 => (samples[middle - 1] + samples[middle]) / 2.0,
            _ => samples[middle],
        };
        Ok(Self { median, min, max })
    }

    /// All three divided by a number.
    pub(super) fn over(self, divisor: f64) -> Self {
        Self {
            median: self.median / divisor,
            min: self.min / divisor,
            max: self.max / divisor,
        }
    }
}

/// Measurements of several kinds, which took turns.
pub(super) struct Rounds<K, S>(Vec<(K, Vec<S>)>);

impl<K: Copy + PartialEq, S> Rounds<K, S> {
    /// Measures each kind once a round: whatever else the machine does hits all of them.
    pub(super) fn measure(
        kinds: &[K],
        runs: u32,
        what: &str,
        mut measure: impl FnMut(K) -> Result<S>,
    ) -> Result<Self> {
        let mut rounds = Self(kinds.iter().map(|&kind| (kind, Vec::new())).collect());
        for run in 1..=runs {
            eprintln!("{what}: {run}/{runs}");
            for (kind, samples) in &mut rounds.0 {
                samples.push(measure(*kind)?);
            }
        }
        Ok(rounds)
    }

    pub(super) fn kinds(&self) -> impl Iterator<Item = K> + '_ {
        self.0.iter().map(|&(kind, _)| kind)
    }

    pub(super) fn of(&self, kind: K) -> &[S] {
        let found = self.0.iter().find(|(other, _)| *other == kind);
        found.map_or(&[], |(_, samples)| samples)
    }

    pub(super) fn spread(&self, kind: K, figure: impl Fn(&S) -> f64) -> Result<Spread> {
        Spread::of(self.of(kind).iter().map(figure)).context("a mode was not measured")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_middle_and_both_ends() {
        let spread = |samples: &[f64]| {
            let spread = Spread::of(samples.iter().copied()).unwrap();
            (spread.min, spread.median, spread.max)
        };
        assert_eq!(spread(&[9.0, 1.0, 5.0]), (1.0, 5.0, 9.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 8.0]), (1.0, 3.0, 8.0));
        assert!(Spread::of([]).is_err());
    }

    #[test]
    fn kinds_take_turns() {
        let mut order = Vec::new();
        let rounds = Rounds::measure(&['a', 'b'], 2, "letters", |kind| {
            order.push(kind);
            Ok(order.len() as f64)
        })
        .unwrap();
        assert_eq!(order, ['a', 'b', 'a', 'b']);
        assert_eq!(rounds.of('b'), [2.0, 4.0]);
        assert_eq!(rounds.spread('a', |&n| n).unwrap().median, 2.0);
    }
}
