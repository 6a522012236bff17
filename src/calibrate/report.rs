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
    /// The cap to set; `None` where not even one connection was served.
    recommended_cap: Option<usize>,
    limited_by: Option<LimitFound>,
}

impl Calibration {
    pub(super) fn of(registry: &str, ladder: &Ladder) -> Calibration {
        let (recommended_cap, limited_by) = ladder.recommended().unzip();
        Calibration { registry: registry.to_owned(), steps: ladder.steps.clone(), recommended_cap, limited_by }
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
        let cap = self.recommended_cap.unwrap_or_default();
        let registry = &self.registry;
        match self.limited_by {
            Some(LimitFound::Distress) => {
                write!(
                    text,
                    "recommended: cap = {cap} for registry {registry}, 10 % below the most that it served without a sign of overload"
                )?;
            }
            Some(LimitFound::Knee) => {
                write!(
                    text,
                    "recommended: cap = {cap} for registry {registry}, 10 % below the number from which more connections got slower answers and no more work done"
                )?;
            }
            Some(LimitFound::Max) => {
                write!(
                    text,
                    "registry {registry} served {cap} connections without a sign of overload, and more were not tried: cap = {cap} is safe; raise --max to find the limit"
                )?;
            }
            None => write!(
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
