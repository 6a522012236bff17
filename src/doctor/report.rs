//! The steps of `doctor` and how they came out, as text and as JSON.

use std::fmt::{Display, Write};

use serde::Serialize;
use serde_json::json;

/// How a step came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Finding {
    Fine,
    Problem,
    /// It could not be tried, or there is nothing to try.
    Skipped,
}

/// One step.
#[derive(Debug, Serialize)]
pub struct ExaminedStep {
    #[serde(rename = "step")]
    name: &'static str,
    /// The thing that was looked at: a file, a URL, a process.
    subject: String,
    finding: Finding,
    said: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
}

impl ExaminedStep {
    pub fn fine(name: &'static str, subject: impl Display, said: impl Display) -> ExaminedStep {
        ExaminedStep { name, subject: subject.to_string(), finding: Finding::Fine, said: said.to_string(), cure: None }
    }

    pub fn problem(name: &'static str, subject: impl Display, said: impl Display, cure: impl Display) -> ExaminedStep {
        let cure = Some(cure.to_string());
        ExaminedStep { name, subject: subject.to_string(), finding: Finding::Problem, said: said.to_string(), cure }
    }

    pub fn skipped(name: &'static str, subject: impl Display, said: impl Display) -> ExaminedStep {
        ExaminedStep {
            name,
            subject: subject.to_string(),
            finding: Finding::Skipped,
            said: said.to_string(),
            cure: None,
        }
    }
}

/// Whether all of these steps are fine, and there is one.
pub fn are_fine(steps: &[ExaminedStep]) -> bool {
    !steps.is_empty() && steps.iter().all(|step| step.finding == Finding::Fine)
}

/// All steps, in the order in which they were tried.
#[derive(Debug, Default)]
pub struct Findings(Vec<ExaminedStep>);

impl Findings {
    pub fn add(&mut self, step: ExaminedStep) {
        self.0.push(step);
    }

    pub fn add_all(&mut self, steps: Vec<ExaminedStep>) {
        self.0.extend(steps);
    }

    pub fn problems(&self) -> usize {
        self.0.iter().filter(|step| step.finding == Finding::Problem).count()
    }

    pub fn json(&self) -> String {
        format!("{:#}\n", json!({ "problems": self.problems(), "steps": self.0 }))
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for ExaminedStep { name, subject, finding, said, cure } in &self.0 {
            let finding = match finding {
                Finding::Fine => "fine",
                Finding::Problem => "PROBLEM",
                Finding::Skipped => "skipped",
            };
            // Of several lines, the later ones stand below the first.
            let said = said.replace('\n', "\n                       ");
            let _ = writeln!(text, "{finding:<8} {name:<13} {subject}: {said}");
            if let Some(cure) = cure {
                let cure = cure.replace('\n', "\n                       ");
                let _ = writeln!(text, "                       -> {cure}");
            }
        }
        let _ = match self.problems() {
            0 => writeln!(text, "no problem"),
            1 => writeln!(text, "1 problem"),
            more => writeln!(text, "{more} problems"),
        };
        text
    }
}
