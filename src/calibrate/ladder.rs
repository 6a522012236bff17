//! The number of connections to try next, and the cap that all come to: without a clock, and without a registry.

use std::time::Duration;

use serde::Serialize;

/// The part of what the registry can serve that is recommended: others use it, too.
const MARGIN: f64 = 0.9;
/// More connections are worth it while they bring this much more work.
const WORTH: f64 = 1.1;
/// And no use where answers take this much longer for less than that.
const SLOWER: f64 = 1.5;

/// The result of one number of connections.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub connections: usize,
    /// Requests that were served, each second.
    pub per_second: f64,
    pub p50_ms: f64,
    pub p95_ms: f64,
    /// Connections that saw a sign of overload; the step ended with the first.
    pub signs: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign: Option<&'static str>,
}

/// Why there was no higher step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitFound {
    /// More connections brought signs of overload.
    Distress,
    /// More connections brought slower answers and no more work.
    Knee,
    /// There was no sign up to `--max`.
    Max,
}

#[derive(Debug)]
pub struct Ladder {
    max: usize,
    pub steps: Vec<Step>,
    /// The highest number that was served well, and how often.
    good: Option<(usize, u32)>,
    /// The lowest that was not.
    bad: Option<usize>,
    knee: Option<usize>,
}

impl Ladder {
    pub fn new(max: usize) -> Ladder {
        Ladder { max, steps: Vec::new(), good: None, bad: None, knee: None }
    }

    /// The next number of connections; `None` when enough is known.
    pub fn next(&self) -> Option<usize> {
        if self.knee.is_some() {
            return None;
        }
        match (self.good, self.bad) {
            (None, None) => Some(1),
            (None, Some(_)) => None,
            (Some((good, _)), None) => (good < self.max).then(|| (good * 2).min(self.max)),
            // The same once more where it lies just below: one step may be luck.
            (Some((good, times)), Some(bad)) => match bad - good {
                apart if apart > (good / 8).max(1) => Some(good + apart / 2),
                _ => (times < 2).then_some(good),
            },
        }
    }

    pub fn took(&mut self, step: Step) {
        let connections = step.connections;
        if step.signs > 0 {
            self.bad = Some(self.bad.map_or(connections, |bad| bad.min(connections)));
            if self.good.is_some_and(|(good, _)| good >= connections) {
                let lower = self.steps.iter().filter(|step| step.signs == 0 && step.connections < connections);
                self.good = lower.map(|step| step.connections).max().map(|good| (good, 1));
            }
        } else {
            let before = self.steps.iter().rfind(|before| before.signs == 0 && before.connections < connections);
            let is_no_use = before.is_some_and(|before| {
                step.per_second < before.per_second * WORTH && step.p50_ms > before.p50_ms * SLOWER
            });
            self.knee = before.filter(|_| is_no_use).map(|before| before.connections);
            self.good = match self.good {
                Some((good, times)) if good == connections => Some((good, times + 1)),
                Some((good, times)) if good > connections => Some((good, times)),
                _ => Some((connections, 1)),
            };
        }
        self.steps.push(step);
    }

    /// The cap to set, and what ended the search; `None` where not even one connection was served.
    pub fn recommended(&self) -> Option<(usize, LimitFound)> {
        let (good, _) = self.good?;
        Some(match (self.knee, self.bad) {
            (Some(knee), _) => (with_margin(knee), LimitFound::Knee),
            (None, Some(_)) => (with_margin(good), LimitFound::Distress),
            (None, None) => (good, LimitFound::Max),
        })
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "below --max")]
fn with_margin(connections: usize) -> usize {
    ((connections as f64 * MARGIN) as usize).max(1)
}

impl Step {
    pub fn new(connections: usize, mut times: Vec<Duration>, length: Duration, signs: &[&'static str]) -> Step {
        times.sort_unstable();
        let at = |percent: usize| {
            let time = times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
            rounded(time.copied().unwrap_or_default().as_secs_f64() * 1000.0)
        };
        let served = u32::try_from(times.len()).unwrap_or(u32::MAX);
        Step {
            connections,
            per_second: rounded(f64::from(served) / length.as_secs_f64().max(0.001)),
            p50_ms: at(50),
            p95_ms: at(95),
            signs: signs.len(),
            sign: signs.first().copied(),
        }
    }
}

fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A registry, by the number of connections: answers a second, their time, and whether it shows distress.
    type Registry = dyn Fn(usize) -> (f64, f64, bool);

    fn climb(max: usize, registry: &Registry) -> (Vec<usize>, Option<(usize, LimitFound)>) {
        let mut ladder = Ladder::new(max);
        while let Some(connections) = ladder.next() {
            let (per_second, p50_ms, is_bad) = registry(connections);
            let (signs, sign) = (usize::from(is_bad), is_bad.then_some("database_error"));
            ladder.took(Step { connections, per_second, p50_ms, p95_ms: p50_ms, signs, sign });
            assert!(ladder.steps.len() < 20, "{:?}", ladder.steps);
        }
        let tried = ladder.steps.iter().map(|step| step.connections).collect();
        (tried, ladder.recommended())
    }

    fn database(limit: usize) -> impl Fn(usize) -> (f64, f64, bool) {
        move |connections| (30.0 * f64::from(u32::try_from(connections).unwrap()), 30.0, connections > limit)
    }

    #[test]
    fn the_number_just_below_distress_is_found_and_tried_twice() {
        let (tried, found) = climb(64, &database(18));
        assert_eq!(tried, [1, 2, 4, 8, 16, 32, 24, 20, 18, 18]);
        assert_eq!(found, Some((16, LimitFound::Distress)));
        for limit in 1..60 {
            let (tried, found) = climb(64, &database(limit));
            let (cap, _) = found.unwrap();
            assert!(cap <= limit && cap * 4 + 4 >= limit * 3, "{limit}: {cap}");
            assert!(tried.iter().all(|tried| *tried <= 64));
        }
    }

    #[test]
    fn more_than_max_is_never_tried() {
        assert_eq!(climb(5, &database(18)), (vec![1, 2, 4, 5], Some((5, LimitFound::Max))));
        assert_eq!(climb(64, &database(0)), (vec![1], None));
    }

    #[test]
    fn slower_answers_without_more_work_are_the_knee() {
        let pool = |connections: usize| {
            let connections = f64::from(u32::try_from(connections).unwrap());
            (connections.min(10.0) * 30.0, 30.0 * (connections / 10.0).max(1.0), false)
        };
        assert_eq!(climb(64, &pool), (vec![1, 2, 4, 8, 16, 32], Some((14, LimitFound::Knee))));
    }

    /// It was served once, and not the second time.
    #[test]
    fn luck_is_not_recommended() {
        let mut ladder = Ladder::new(64);
        let step = |connections, signs| Step {
            connections,
            per_second: 30.0 * f64::from(u32::try_from(connections).unwrap()),
            p50_ms: 30.0,
            p95_ms: 30.0,
            signs,
            sign: None,
        };
        for (connections, signs) in [(1, 0), (2, 0), (4, 0), (8, 1), (6, 0), (7, 0), (7, 1), (6, 0)] {
            assert_eq!(ladder.next(), Some(connections));
            ladder.took(step(connections, signs));
        }
        assert_eq!((ladder.next(), ladder.recommended()), (None, Some((5, LimitFound::Distress))));
    }
}
