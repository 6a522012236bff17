//! The text that Prometheus reads, as numbers that a test can ask for by name and labels.
//!
//! It knows as much of the format as an exporter writes: comments, labels with escapes, values, no exemplars.

use std::collections::BTreeMap;

/// One reading of `/metrics`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads the text format.
    ///
    /// # Panics
    /// When a line is neither empty, nor a comment, nor a sample.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line:?}")));
        Self { samples: samples.collect() }
    }

    /// The value of the one sample that carries all of `labels`; 0 where there is none, as for a counter that has not
    /// moved yet. A histogram is asked for by `..._count`, `..._sum` or `..._bucket`.
    ///
    /// # Panics
    /// When several samples carry these labels: then the question is one for [`Metrics::sum`].
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found: Vec<f64> = self.matching(name, labels).collect();
        assert!(found.len() < 2, "{} samples of {name} carry {labels:?}", found.len());
        found.first().copied().unwrap_or(0.0)
    }

    /// The sum of all samples that carry all of `labels`.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        // An empty sum of floats is -0, which reads badly in a failed test.
        self.matching(name, labels).fold(0.0, |sum, value| sum + value)
    }

    /// The same as a whole number, for counters and for gauges of things.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let sum = self.sum(name, labels);
        sum.to_string().parse().unwrap_or_else(|_| panic!("{name} {labels:?}: {sum} is no whole number"))
    }

    /// Whether there is any sample of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.matching(name, &[]).next().is_some()
    }

    fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = f64> {
        let carries = move |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|found| found == value))
        };
        self.samples.iter().filter(carries).map(|sample| sample.value)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let name_ends = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_ends);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(name.to_owned(), value);
        rest = after;
    }
}

/// A value up to its closing quote, without its escapes, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP roadstead_outcomes_total How requests ended.
# TYPE roadstead_outcomes_total counter
roadstead_outcomes_total{registry="stub",outcome="served"} 12
roadstead_outcomes_total{registry="stub",outcome="refused"} 3 1700000000000
roadstead_outcomes_total{registry="a \"b\", {c}\\",outcome="served"} 1
roadstead_wait_seconds_bucket{registry="stub",le="+Inf"} 15
process_open_fds 9.5
"#;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let metrics = Metrics::parse(TEXT);
        let outcomes = |labels: &[(&str, &str)]| metrics.count("roadstead_outcomes_total", labels);
        assert_eq!(outcomes(&[("outcome", "served"), ("registry", "stub")]), 12);
        assert_eq!(outcomes(&[("outcome", "refused")]), 3);
        assert_eq!(outcomes(&[("registry", r#"a "b", {c}\"#)]), 1);
        assert_eq!(outcomes(&[("outcome", "client_left")]), 0);
        assert_eq!(outcomes(&[("registry", "stub")]), 15);
        assert!((metrics.value("process_open_fds", &[]) - 9.5).abs() < 1e-9);
        assert!(metrics.has("roadstead_wait_seconds_bucket") && !metrics.has("roadstead_wait_seconds"));
    }

    #[test]
    #[should_panic(expected = "2 samples")]
    fn an_ambiguous_question_is_a_mistake_of_the_test() {
        let _ = Metrics::parse(TEXT).value("roadstead_outcomes_total", &[("outcome", "served")]);
    }
}
