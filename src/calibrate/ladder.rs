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
    /// A number that brought no more work once: it is tried again, as one step may be bad luck.
    doubtful: Option<usize>,
    knee: Option<usize>,
}

/// The result of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recommendation {
    /// So many connections are of use, and more are not; `None` where more were not tried.
    pub knee: Option<usize>,
    /// The cap to set: less than the knee, since others use the registry, too.
    pub cap: usize,
    pub limited_by: LimitFound,
}

impl Ladder {
    pub fn new(max: usize) -> Ladder {
        Ladder { max, steps: Vec::new(), good: None, bad: None, doubtful: None, knee: None }
    }

    /// The next number of connections; `None` when enough is known.
    pub fn next(&self) -> Option<usize> {
        if self.knee.is_some() || self.doubtful.is_some() {
            return self.doubtful;
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
            self.doubtful = None;
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
            let is_doubtful = is_no_use && self.doubtful.is_none();
            self.knee = (is_no_use && !is_doubtful).then(|| self.at_work(before, &step));
            self.doubtful = is_doubtful.then_some(connections);
            self.good = match self.good {
                Some((good, times)) if good == connections => Some((good, times + 1)),
                Some((good, times)) if good > connections => Some((good, times)),
                _ => Some((connections, 1)),
            };
        }
        self.steps.push(step);
    }

    /// The connections that are at work where more bring no more: each does as much as the only one of the first step, and the
    /// others wait. The first step may have been a bad one: those of `before` brought more work than fewer.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number")]
    fn at_work(&self, before: Option<&Step>, step: &Step) -> usize {
        let most = before.map_or(0.0, |before| before.per_second).max(step.per_second);
        let alone = self.steps.iter().find(|step| step.connections == 1).map_or(most, |one| one.per_second);
        let before = before.map_or(step.connections, |before| before.connections);
        let fewer = self.steps.iter().filter(|step| step.signs == 0 && step.connections < before);
        let least = fewer.map(|step| step.connections + 1).max().unwrap_or(1);
        ((most / alone.max(0.1)).round() as usize).clamp(least, before * 11 / 10)
    }

    /// `None` where not even one connection was served.
    pub fn recommended(&self) -> Option<Recommendation> {
        let (good, _) = self.good?;
        Some(match (self.knee, self.bad) {
            (None, None) => Recommendation { knee: None, cap: good, limited_by: LimitFound::Max },
            (None, Some(_)) => {
                Recommendation { knee: Some(good), cap: with_margin(good), limited_by: LimitFound::Distress }
            }
            (Some(knee), _) => {
                Recommendation { knee: Some(knee), cap: with_margin(knee), limited_by: LimitFound::Knee }
            }
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

    /// The numbers that were tried, and the result.
    fn climb(max: usize, registry: &Registry) -> (Vec<usize>, Option<Recommendation>) {
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

    #[expect(clippy::unnecessary_wraps, reason = "as it is compared")]
    fn found_of(knee: Option<usize>, cap: usize, limited_by: LimitFound) -> Option<Recommendation> {
        Some(Recommendation { knee, cap, limited_by })
    }

    fn database(limit: usize) -> impl Fn(usize) -> (f64, f64, bool) {
        move |connections| (30.0 * f64::from(u32::try_from(connections).unwrap()), 30.0, connections > limit)
    }

    #[test]
    fn the_number_just_below_distress_is_found_and_tried_twice() {
        let (tried, found) = climb(64, &database(18));
        assert_eq!(tried, [1, 2, 4, 8, 16, 32, 24, 20, 18, 18]);
        assert_eq!(found, found_of(Some(18), 16, LimitFound::Distress));
        for limit in 1..60 {
            let (tried, found) = climb(64, &database(limit));
            let cap = found.unwrap().cap;
            assert!(cap <= limit && cap * 4 + 4 >= limit * 3, "{limit}: {cap}");
            assert!(tried.iter().all(|tried| *tried <= 64));
        }
    }

    #[test]
    fn more_than_max_is_never_tried() {
        assert_eq!(climb(5, &database(18)), (vec![1, 2, 4, 5], found_of(None, 5, LimitFound::Max)));
        assert_eq!(climb(64, &database(0)), (vec![1], None));
    }

    /// A registry with so many workers, and a queue before them.
    fn queue(workers: usize) -> impl Fn(usize) -> (f64, f64, bool) {
        let number = |count: usize| f64::from(u32::try_from(count).unwrap());
        move |connections| {
            (30.0 * number(connections.min(workers)), 30.0 * (number(connections) / number(workers)).max(1.0), false)
        }
    }

    #[test]
    fn slower_answers_without_more_work_are_the_knee() {
        assert_eq!(climb(64, &queue(10)), (vec![1, 2, 4, 8, 16, 32, 32], found_of(Some(10), 9, LimitFound::Knee)));
        for workers in 1..30 {
            let (_, found) = climb(64, &queue(workers));
            let Recommendation { knee, cap, limited_by } = found.unwrap();
            assert_eq!((knee, limited_by), (Some(workers), LimitFound::Knee));
            assert!(cap <= workers && cap * 4 + 4 >= workers * 3, "{workers}: {cap}");
        }
    }

    /// Where the first step was slow or quick, the knee lies between the two numbers that it was found with.
    #[test]
    fn a_first_step_that_is_unlike_the_others_misleads_nobody() {
        for (alone, knee) in [(15.0, 17), (90.0, 9)] {
            let registry = move |connections| {
                let (per_second, p50_ms, is_bad) = queue(10)(connections);
                (if connections == 1 { alone } else { per_second }, p50_ms, is_bad)
            };
            assert_eq!(climb(64, &registry).1.unwrap().knee, Some(knee));
        }
    }

    /// The machine was busy elsewhere for one step.
    #[test]
    fn one_slow_step_is_no_knee() {
        let mut is_disturbed = true;
        let mut ladder = Ladder::new(64);
        let mut tried = Vec::new();
        while let Some(connections) = ladder.next() {
            let (mut per_second, mut p50_ms, is_bad) = database(18)(connections);
            if connections == 4 && std::mem::take(&mut is_disturbed) {
                (per_second, p50_ms) = (per_second / 2.0, p50_ms * 2.0);
            }
            tried.push(connections);
            let signs = usize::from(is_bad);
            ladder.took(Step { connections, per_second, p50_ms, p95_ms: p50_ms, signs, sign: None });
        }
        assert_eq!(tried, [1, 2, 4, 4, 8, 16, 32, 24, 20, 18, 18]);
        assert_eq!(ladder.recommended().map(|found| found.cap), Some(16));
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
        assert_eq!((ladder.next(), ladder.recommended()), (None, found_of(Some(6), 5, LimitFound::Distress)));
    }

    #[test]
    fn a_step_tells_its_throughput_and_the_times_of_its_answers() {
        let times = (1..=100).rev().map(Duration::from_millis).collect();
        let Step { per_second, p50_ms, p95_ms, signs, sign, .. } =
            Step::new(2, times, Duration::from_secs(2), &["broken"]);
        assert_eq!([per_second, p50_ms, p95_ms].map(|number| number.to_string()), ["50", "51", "96"]);
        assert_eq!((signs, sign), (1, Some("broken")));
    }
}
