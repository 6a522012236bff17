//! The result for people, as a table with a plot, and for programs, as JSON.

use std::fmt::{self, Display, Write};

use serde::Serialize;

use super::ladder::{Ladder, LimitFound, Step};

/// The widest bar of the plot.
const WIDEST: f64 = 30.0;

#[derive(Debug, Serialize)]
pub struct Calibration {
    registry: String,
    steps: Vec<Step>,
    /// More connections than these are of no use; `None` where more were not tried, or not even one was served.
    knee: Option<usize>,
    /// The cap to set; `None` where not even one connection was served.
    recommended_cap: Option<usize>,
    limited_by: Option<LimitFound>,
}

impl Calibration {
    pub(super) fn of(registry: &str, ladder: &Ladder) -> Calibration {
        let found = ladder.recommended();
        Calibration {
            registry: registry.to_owned(),
            steps: ladder.steps.clone(),
            knee: found.and_then(|found| found.knee),
            recommended_cap: found.map(|found| found.cap),
            limited_by: found.map(|found| found.limited_by),
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step { connections, per_second, p50_ms, p95_ms, .. } = self;
        write!(f, "{connections:>11}  {per_second:>10.1}  {p50_ms:>8.1}  {p95_ms:>8.1}")?;
        self.sign.map_or(Ok(()), |sign| write!(f, "  {} x {sign}: stopped", self.signs))
    }
}

impl Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self.steps.iter().map(|step| step.per_second).fold(1.0, f64::max);
        let mut steps: Vec<&Step> = self.steps.iter().collect();
        steps.sort_by_key(|step| step.connections);
        let mut text = String::from("connections  requests/s\n");
        for step in steps {
            let bar = "#".repeat(width(step.per_second / most * WIDEST));
            let sign = step.sign.map_or("", |_| " overload");
            writeln!(text, "{:>11}  {bar}{sign}", step.connections)?;
        }
        let registry = &self.registry;
        match (self.knee, self.recommended_cap) {
            (Some(knee), Some(cap)) => {
                let (margin, more) = (knee - cap, self.limited_by == Some(LimitFound::Distress));
                let more =
                    if more { "the registry shows overload" } else { "answers get slower and no more work is done" };
                write!(
                    text,
                    "knee: {knee}; over more connections, {more}\n\
                     recommended: cap = {cap} for registry {registry}, {margin} below the knee, as others use it, too"
                )?;
            }
            (None, Some(cap)) => write!(
                text,
                "registry {registry} served {cap} connections without a sign of overload, and more were not tried: cap = {cap} is safe; raise --max to find the limit"
            )?,
            (_, None) => write!(
                text,
                "registry {registry} shows overload with a single connection: look at it before anything else"
            )?,
        }
        f.write_str(&text)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to the widest bar")]
fn width(cells: f64) -> usize {
    cells.round() as usize
}
