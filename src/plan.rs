//! `roadstead plan`: what would happen if so many nodes pulled so much at once.
//!
//! Each node has a real [`Core`](crate::admission::core::Core), as the sidecar has; the registry and the pullers are models,
//! and time is virtual. Leased slots come from the real machine of each node and a model of the store. Nothing here opens a socket or reads a clock: the same question has the same answer, to the byte.

pub mod arguments;
mod command;
mod lending;
mod load;
mod node;
mod progress;
mod puller;
mod registry;
mod report;
mod scenario;
mod simulation;
mod tally;
#[cfg(test)]
mod tests;
mod text;
mod timeline;
mod trace;
mod units;

use arguments::PlanArguments;
use command::Question;
use report::PlanReport;
use scenario::Scenario;
use tally::Tally;

use crate::config::Config;

/// The exit status of a plan that does not hold.
const DOES_NOT_HOLD: u8 = 1;
/// The exit status after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// The report, as it was asked for.
#[derive(Debug)]
pub struct Planned {
    pub text: String,
    /// The exit status of the process.
    pub status: u8,
}

/// The report, by runs of scenarios; `None` if one was interrupted.
fn report_of(question: Question, run: &mut dyn FnMut(&Scenario) -> Option<Tally>) -> Option<PlanReport> {
    let (fleet, scenario) = match question {
        Question::Impossible(report) => return Some(*report),
        Question::Run(fleet, scenario) => (fleet, scenario),
    };
    let mut report = PlanReport::new(fleet, &scenario, &run(&scenario)?);
    if let Some(fixed) = scenario.with_fixed_shares() {
        report.compare(&fixed, &run(&fixed)?);
    }
    Some(report)
}

/// Answers the question, without a text if it was interrupted.
/// Fails for a question that means nothing.
pub fn answer(arguments: &PlanArguments, config: Option<&Config>) -> Result<Planned, String> {
    let Some(report) = report_of(command::question(arguments, config)?, &mut progress::watched) else {
        return Ok(Planned { text: String::new(), status: INTERRUPTED });
    };
    let text = if arguments.json {
        serde_json::to_string_pretty(&report).map_err(|error| error.to_string())? + "\n"
    } else {
        text::render(&report)
    };
    Ok(Planned { text, status: if report.feasible { 0 } else { DOES_NOT_HOLD } })
}
