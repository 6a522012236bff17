//! The report as text: a table and two plots in 80 columns, without colours.

use std::fmt::Write;

use super::report::{ClassReport, PlanReport, RunReport};
use super::timeline::{Levels, real};
use super::units::{bytes, span};
use crate::admission::SlotUse;

/// Rows of a plot.
const ROWS: usize = 6;
/// Columns that a line may take.
const WIDTH: usize = 80;
/// Columns of the name of a class.
const COLUMN: usize = 18;
/// Columns before a plot.
const MARGIN: usize = 9;

pub fn render(report: &PlanReport) -> String {
    let fleet = &report.fleet;
    let mut text = String::new();
    let slots = match fleet.slots_per_node {
        None => format!("{} slots, lent by demand", fleet.cap),
        Some(1) => format!("1 slot each, {} in all", fleet.slots()),
        Some(slots) => format!("{slots} slots each, {} in all", fleet.slots()),
    };
    let _ = writeln!(text, "{} nodes, cap {}, share {}: {slots}", fleet.nodes, fleet.cap, fleet.share);
    if let Some(run) = &report.run {
        text += &figures(report, run);
        text += &table(&run.classes);
        let column = |value: fn(&Levels<f64>) -> f64| run.timeline.iter().map(value).collect::<Vec<_>>();
        let lasted = run.makespan.map_or_else(|| "the end".to_owned(), span);
        text += &plot("connections", &column(|levels| levels.open), &lasted);
        text += &plot("requests that wait", &column(|levels| levels.waiting), &lasted);
    }
    let verdict = if report.feasible { "Feasible: every request is served in time." } else { "NOT FEASIBLE" };
    let _ = writeln!(text, "\n{verdict}");
    for line in report.problems.iter().chain(&report.advice) {
        text += &bullet(line);
    }
    text
}

fn figures(report: &PlanReport, run: &RunReport) -> String {
    let mut text = format!("{} pulls, {} requests, {}", run.pulls, run.requests, bytes(run.bytes));
    if let Some(bandwidth) = report.fleet.bandwidth_bytes_per_second {
        let _ = write!(text, " at {}/s", bytes(bandwidth));
    }
    let makespan = run.makespan.map_or_else(|| "not finished".to_owned(), span);
    let pull = run.pull;
    let _ = writeln!(text, "\n\nmakespan     {makespan}");
    let _ = writeln!(text, "one pull     p50 {}, p99 {}, max {}", span(pull.p50), span(pull.p99), span(pull.max));
    let _ = writeln!(
        text,
        "connections  {} at most; {:.0} % of the cap used",
        run.most_connections,
        run.connections_used * 100.0
    );
    if let Some(used) = run.bandwidth_used {
        let _ = writeln!(text, "bandwidth    {:.0} % used", used * 100.0);
    }
    text
}

fn table(classes: &[ClassReport]) -> String {
    let mut text = format!(
        "\n{:<COLUMN$}{:>8}{:>10}{:>10}{:>10}{:>8}{:>8}{:>8}\n",
        "class", "served", "wait p50", "wait p99", "wait max", "limit", "refused", "left"
    );
    for class in classes {
        let wait = class.wait;
        let _ = writeln!(
            text,
            "{:<COLUMN$}{:>8}{:>10}{:>10}{:>10}{:>8}{:>8}{:>8}",
            name(class),
            class.served,
            span(wait.p50),
            span(wait.p99),
            span(wait.max),
            span(class.limit()),
            class.refused,
            class.left,
        );
    }
    text
}

fn name(class: &ClassReport) -> String {
    let kind = if class.kind == SlotUse::Tunnel { " (tunnel)" } else { "" };
    class.class.chars().take(COLUMN - 1 - kind.len()).collect::<String>() + kind
}

/// The values over the time, from left to right.
fn plot(title: &str, values: &[f64], lasted: &str) -> String {
    let top = values.iter().copied().fold(0.0, f64::max);
    if top <= 0.0 {
        return String::new();
    }
    let mut text = format!("\n{title}\n");
    for row in (0..ROWS).rev() {
        let label = if row + 1 == ROWS { format!("{top:.0}") } else { String::new() };
        let floor = top * (real(row as u128) + 0.5) / real(ROWS as u128);
        let bar: String = values.iter().map(|value| if *value >= floor { '#' } else { ' ' }).collect();
        let _ = writeln!(text, "{}", format!("{label:>7} |{bar}").trim_end());
    }
    let width = values.len();
    let _ = writeln!(text, "{:>7} +{}", 0, "-".repeat(width));
    let _ = writeln!(text, "{:MARGIN$}0 s{lasted:>right$}", "", right = width.saturating_sub(3));
    text
}

/// A sentence as an item of a list, wrapped.
fn bullet(sentence: &str) -> String {
    let mut text = String::new();
    let mut line = "*".to_owned();
    for word in sentence.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{line}");
            " ".clone_into(&mut line);
        }
        line.push(' ');
        line += word;
    }
    text + &line + "\n"
}
