//! The result of a storm: how many pulls were served, how many failed and why, and how long it took.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How one pull ended.
#[derive(Debug)]
pub(super) struct End {
    /// Or the reason of its failure.
    pub(super) result: Result<(), String>,
    /// A failure after this one was wanted.
    pub(super) cut_on_purpose: bool,
    /// The number that the proxy must have counted as finished by now.
    pub(super) completed: usize,
    /// From the start of the storm.
    pub(super) time: Duration,
}

/// The sum of a storm.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Pulls that got every byte. Clients that cut are never among them.
    pub ok: usize,
    /// Clients that cut their connection, as they were told to.
    pub cut: usize,
    /// Why the others failed, one entry each.
    pub failed: Vec<String>,
    /// How long each pull of `ok` took, shortest first.
    pub times: Vec<Duration>,
    /// From the first start to the last end.
    pub total: Duration,
    /// Requests that clients saw through to their end, those of cutting clients included, counted as a proxy
    /// counts them: exchanges in absolute-form, tunnels with CONNECT.
    pub completed: usize,
}

impl Tally {
    pub(super) fn of(ends: Vec<End>, total: Duration) -> Self {
        let mut tally = Self { total, ..Self::default() };
        for end in ends {
            tally.completed += end.completed;
            match end.result {
                _ if end.cut_on_purpose => tally.cut += 1,
                Ok(()) => {
                    tally.ok += 1;
                    tally.times.push(end.time);
                }
                Err(reason) => tally.failed.push(reason),
            }
        }
        tally.times.sort_unstable();
        tally
    }

    /// The time within which half of the good pulls were done.
    #[must_use]
    pub fn p50(&self) -> Option<Duration> {
        self.percentile(50)
    }

    /// The time within which 99 of 100 good pulls were done.
    #[must_use]
    pub fn p99(&self) -> Option<Duration> {
        self.percentile(99)
    }

    /// By nearest rank; `None` when no pull was good.
    fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.times.len() * percent).div_ceil(100).max(1);
        self.times.get(rank - 1).copied()
    }

    /// The reasons of the failures with their numbers, most frequent first.
    #[must_use]
    pub fn reasons(&self) -> Vec<(String, usize)> {
        let mut counts = BTreeMap::new();
        for reason in &self.failed {
            *counts.entry(reason.clone()).or_insert(0) += 1;
        }
        let mut reasons: Vec<_> = counts.into_iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        reasons
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ok, cut, failed, total, .. } = self;
        write!(formatter, "{ok} ok, {} failed, {cut} cut in {total:.1?}", failed.len())?;
        self.reasons().iter().try_for_each(|(reason, count)| write!(formatter, "\n{count:6} x {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let times = |n| (1..=n).map(Duration::from_millis).collect();
        let tally = Tally { times: times(200), ..Tally::default() };
        assert_eq!(tally.p50(), Some(Duration::from_millis(100)));
        assert_eq!(tally.p99(), Some(Duration::from_millis(198)));
        let single = Tally { times: times(1), ..Tally::default() };
        assert_eq!(single.p99(), Some(Duration::from_millis(1)));
        assert_eq!(Tally::default().p50(), None);
    }
}
