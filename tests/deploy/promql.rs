//! As much of Prometheus' query language as tells which metrics and labels an expression asks for.

use std::iter::Peekable;
use std::str::Chars;

/// Words that are followed by a list of labels.
const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words between two expressions.
const OPERATORS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];

/// The metrics and labels of an expression.
#[derive(Debug, Default, PartialEq)]
pub struct Asked {
    /// Each metric that is named, with its matchers.
    pub selectors: Vec<Selector>,
    /// The labels in `by (...)` and its like.
    pub labels: Vec<String>,
}

/// A metric and what its labels must be.
#[derive(Debug, Default, PartialEq)]
pub struct Selector {
    pub name: String,
    /// Label, operator, value.
    pub matchers: Vec<[String; 3]>,
}

/// Reads an expression.
pub fn asked(expression: &str) -> Asked {
    let mut found = Asked::default();
    let mut rest = expression.chars().peekable();
    while let Some(&next) = rest.peek() {
        match next {
            '[' => until(&mut rest, ']'),
            '"' => drop(quoted(&mut rest)),
            _ if next.is_ascii_digit() => drop(word(&mut rest)),
            _ if is_word(next) => {
                let name = word(&mut rest);
                skip_spaces(&mut rest);
                if GROUPING.contains(&name.as_str()) {
                    found.labels.extend(labels(&mut rest));
                } else if !OPERATORS.contains(&name.as_str()) && rest.peek() != Some(&'(') && !aggregates(&name, &rest)
                {
                    found.selectors.push(Selector { name, matchers: matchers(&mut rest) });
                }
            }
            _ => drop(rest.next()),
        }
    }
    found
}

fn is_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_' || char == ':'
}

/// `sum by (...)`: an aggregation whose labels come before its bracket.
fn aggregates(name: &str, rest: &Peekable<Chars>) -> bool {
    let next: String = rest.clone().take_while(|char| is_word(*char)).collect();
    ["sum", "max", "min", "count", "avg"].contains(&name) && ["by", "without"].contains(&next.as_str())
}

fn word(rest: &mut Peekable<Chars>) -> String {
    let mut word = String::new();
    while let Some(char) = rest.next_if(|char| is_word(*char) || *char == '.') {
        word.push(char);
    }
    word
}

fn skip_spaces(rest: &mut Peekable<Chars>) {
    while rest.next_if(|char| char.is_whitespace()).is_some() {}
}

fn until(rest: &mut Peekable<Chars>, end: char) {
    for char in rest.by_ref() {
        if char == end {
            return;
        }
    }
}

fn quoted(rest: &mut Peekable<Chars>) -> String {
    rest.next();
    let mut text = String::new();
    while let Some(char) = rest.next() {
        match char {
            '"' => break,
            '\\' => text.extend(rest.next()),
            _ => text.push(char),
        }
    }
    text
}

/// The labels in brackets.
fn labels(rest: &mut Peekable<Chars>) -> Vec<String> {
    if rest.next_if_eq(&'(').is_none() {
        return Vec::new();
    }
    let inside: String = rest.by_ref().take_while(|char| *char != ')').collect();
    inside.split(',').map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()).collect()
}

/// The matchers in braces.
fn matchers(rest: &mut Peekable<Chars>) -> Vec<[String; 3]> {
    let mut matchers = Vec::new();
    if rest.next_if_eq(&'{').is_none() {
        return matchers;
    }
    while rest.next_if_eq(&'}').is_none() {
        while rest.next_if(|char| char.is_whitespace() || *char == ',').is_some() {}
        if rest.peek() == Some(&'}') {
            continue;
        }
        let label = word(rest);
        let mut operator = String::new();
        while let Some(char) = rest.next_if(|char| "=!~".contains(*char)) {
            operator.push(char);
        }
        assert!(!label.is_empty() && rest.peek() == Some(&'"'), "not a matcher: {label}{operator}");
        matchers.push([label, operator, quoted(rest)]);
    }
    matchers
}

#[test]
fn metrics_and_labels_are_found_and_nothing_else() {
    let found = asked(
        "histogram_quantile(0.99, sum by (a, le) (rate(x_bucket{b=\"1\", c=~\"y|z\"}[5m]))) / z > 1e3 and on (d) up offset 5m",
    );
    let matcher = |parts: [&str; 3]| parts.map(str::to_owned);
    let selectors = [
        ("x_bucket", vec![matcher(["b", "=", "1"]), matcher(["c", "=~", "y|z"])]),
        ("z", Vec::new()),
        ("up", Vec::new()),
    ]
    .map(|(name, matchers)| Selector { name: name.to_owned(), matchers });
    assert_eq!(found.selectors, selectors);
    assert_eq!(found.labels, ["a", "le", "d"]);
}
