//! The results as a Markdown table and as a plot.

use std::fmt::Write as _;

/// One way, and the medians of what was measured; or the cause why nothing was.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    pub medians: Result<Vec<f64>, String>,
}

/// One kind of work.
#[derive(Clone, Debug)]
pub struct Section {
    pub title: String,
    /// What is measured, with its unit. The plot shows the first one. Of all of them less is better, but for those that say so.
    pub units: &'static [&'static str],
    pub lines: Vec<Line>,
}

impl Section {
    /// The first of roadstead's own, with which the others are compared.
    fn own(&self) -> Option<&Vec<f64>> {
        let mut own = self.lines.iter().filter(|line| line.name.starts_with("roadstead"));
        own.find_map(|line| line.medians.as_ref().ok())
    }
}

pub fn markdown(sections: &[Section]) -> String {
    let mut text = String::new();
    for section in sections {
        let _ = write!(text, "### {}\n\n| | {} |\n|---|", section.title, section.units.join(" | "));
        text.push_str(&"---|".repeat(section.units.len()));
        text.push('\n');
        for line in &section.lines {
            let cells = match &line.medians {
                Err(cause) => {
                    let cause = cause
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .split('<')
                        .next()
                        .unwrap_or_default()
                        .replace('|', "/");
                    cause.trim_end().to_owned() + &" |".repeat(section.units.len() - 1)
                }
                Ok(medians) => {
                    let cells = medians.iter().enumerate().map(|(index, median)| cell(*median, index, section));
                    cells.collect::<Vec<_>>().join(" | ")
                }
            };
            let _ = writeln!(text, "| {} | {cells} |", line.name);
        }
        text.push('\n');
    }
    text
}

/// A figure, and how many times roadstead's it is.
fn cell(median: f64, index: usize, section: &Section) -> String {
    let own = section.own().map_or(0.0, |own| own[index]);
    if own > 0.0 && median > 0.0 { format!("{} ({:.2})", shown(median), median / own) } else { shown(median) }
}

fn shown(figure: f64) -> String {
    match figure {
        0.0 => "-".to_owned(),
        figure if figure >= 100.0 => format!("{figure:.0}"),
        figure if figure >= 10.0 => format!("{figure:.1}"),
        figure => format!("{figure:.2}"),
    }
}

const WIDTH: f64 = 760.0;
const NAMES: f64 = 210.0;
const BARS: f64 = 440.0;
const ROW: f64 = 22.0;
const GAP: f64 = 46.0;

/// Bars of the first figure of each section.
pub fn plot(sections: &[Section]) -> String {
    let (mut body, mut y) = (String::new(), 14.0);
    for section in sections {
        let lines = section.lines.iter().filter_map(|line| Some((&line.name, *line.medians.as_ref().ok()?.first()?)));
        let lines: Vec<_> = lines.filter(|(_, figure)| *figure > 0.0).collect();
        let most = lines.iter().map(|(_, figure)| *figure).fold(f64::MIN_POSITIVE, f64::max);
        let title = escaped(&format!("{}: {}", section.title, section.units[0]));
        let _ = writeln!(body, "<text x=\"12\" y=\"{:.0}\" class=\"title\">{title}</text>", y + 14.0);
        y += 24.0;
        for (name, figure) in lines {
            let (class, length) = (if name.starts_with("roadstead") { "own" } else { "peer" }, figure / most * BARS);
            let _ = writeln!(
                body,
                "<text x=\"{:.0}\" y=\"{:.0}\" class=\"name\">{}</text><rect x=\"{NAMES}\" y=\"{:.0}\" width=\"{length:.1}\" \
                 height=\"15\" class=\"{class}\"/><text x=\"{:.0}\" y=\"{:.0}\">{}</text>",
                NAMES - 10.0,
                y + 13.0,
                escaped(name),
                y + 1.0,
                NAMES + length + 7.0,
                y + 13.0,
                shown(figure)
            );
            y += ROW;
        }
        y += GAP - 24.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y:.0}\" viewBox=\"0 0 {WIDTH} {y:.0}\">\n<style>\
         text{{font:13px system-ui,sans-serif;fill:#1f2933}}.title{{font-weight:600}}.name{{text-anchor:end}}.own{{fill:#0b7285}}\
         .peer{{fill:#adb5bd}}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
