//! Families of metrics, each registered under its name when it is first asked for. A metric is declared once: where its
//! handle or its value is made.

use std::any::Any;
use std::collections::HashMap;
use std::marker::PhantomData;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    CounterVec, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, Result,
};

use super::labels::Label;

/// A name and the one sentence that explains it.
pub type Declaration = (&'static str, &'static str);

/// The value of a gauge that counts things.
#[expect(clippy::cast_precision_loss, reason = "gauges are floats; counts stay far below 2^52")]
pub fn number(things: usize) -> f64 {
    things as f64
}

/// The families of one set of metrics: the counters of the process, or the values of one moment for one answer of `/metrics`.
#[derive(Debug, Default)]
pub struct Families {
    registry: Registry,
    known: Mutex<HashMap<&'static str, Box<dyn Any + Send>>>,
}

impl Families {
    /// All families that have series.
    pub(super) fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    pub fn gauge(&self, (name, help): Declaration, labels: &[(&str, &str)], value: f64) {
        let (names, values): (Vec<&str>, Vec<&str>) = labels.iter().copied().unzip();
        let family = self.family(name, || GaugeVec::new(Opts::new(name, help), &names));
        family.with_label_values(&values).set(value);
    }

    /// Adds a counter that another part counts.
    pub fn count(&self, (name, help): Declaration, labels: &[(&str, &str)], value: f64) {
        let (names, values): (Vec<&str>, Vec<&str>) = labels.iter().copied().unzip();
        let family = self.family(name, || CounterVec::new(Opts::new(name, help), &names));
        family.with_label_values(&values).inc_by(value);
    }

    pub(super) fn counter(&self, (name, help): Declaration, labels: &[(&str, &str)]) -> IntCounter {
        let (names, values): (Vec<&str>, Vec<&str>) = labels.iter().copied().unzip();
        self.family(name, || IntCounterVec::new(Opts::new(name, help), &names)).with_label_values(&values)
    }

    pub(super) fn histogram(&self, (name, help): Declaration, buckets: &[f64], labels: &[(&str, &str)]) -> Histogram {
        let (names, values): (Vec<&str>, Vec<&str>) = labels.iter().copied().unzip();
        let options = || HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.family(name, || HistogramVec::new(options(), &names)).with_label_values(&values)
    }

    /// The family of this name, made and registered if it is new.
    fn family<F: Collector + Clone + Send + 'static>(&self, name: &'static str, make: impl FnOnce() -> Result<F>) -> F {
        let mut known = self.known.lock();
        let family = known.entry(name).or_insert_with(|| {
            let family = make().expect("names and labels are valid");
            self.registry.register(Box::new(family.clone())).expect("each name is registered once");
            Box::new(family)
        });
        family.downcast_ref::<F>().expect("a name stands for one kind of metric").clone()
    }
}

/// A counter for each value of a label.
#[derive(Debug)]
pub(super) struct Counters<L>(Vec<IntCounter>, PhantomData<L>);

impl<L: Label> Counters<L> {
    pub(super) fn new(families: &Families, declaration: Declaration, registry: &str, label: &str) -> Counters<L> {
        let of = |word: &&str| families.counter(declaration, &[("registry", registry), (label, word)]);
        Counters(L::WORDS.iter().map(of).collect(), PhantomData)
    }

    pub(super) fn at(&self, value: L) -> &IntCounter {
        &self.0[value.index()]
    }

    pub(super) fn sum(&self) -> u64 {
        self.0.iter().map(IntCounter::get).sum()
    }
}
