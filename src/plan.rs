//! `roadstead plan`: what would happen if so many nodes pulled so much at once.
//!
//! Each node has a real [`Core`](crate::admission::core::Core), as the sidecar has; the registry and the pullers are models,
//! and time is virtual. Nothing here opens a socket or reads a clock: the same question has the same answer, to the byte.

pub mod arguments;
mod command;
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

/// Answers the question, without a text if it was interrupted.
/// Fails for a question that means nothing.
pub fn answer(arguments: &PlanArguments, config: Option<&Config>) -> Result<Planned, String> {
    let report = match command::question(arguments, config)? {
        Question::NoSlot(fleet, amount) => PlanReport::without_slots(fleet, &amount),
        Question::Run(fleet, scenario) => match progress::watched(&scenario) {
            Some(tally) => PlanReport::new(fleet, &scenario, &tally),
            None => return Ok(Planned { text: String::new(), status: INTERRUPTED }),
        },
    };
    let text = if arguments.json {
        serde_json::to_string_pretty(&report).map_err(|error| error.to_string())? + "\n"
    } else {
        text::render(&report)
    };
    Ok(Planned { text, status: if report.feasible { 0 } else { DOES_NOT_HOLD } })
}
