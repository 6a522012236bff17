//! Lines that are not TOML at all, as problems like any other.
//!
//! The parser gives the place of an error; the key is read off the text, since the operator looks for a key.

use super::problem::Problem;
use super::reader::Report;

/// Notes an error of the TOML parser.
pub(super) fn note(error: &toml::de::Error, text: &str, report: &mut Report) {
    let offset = error.span().map_or(0, |span| span.start);
    let line = report.line_at(offset);
    let problem = Problem { key: key_near(text, line), line, reason: error.message().to_owned() };
    report.note_broken(problem, line..line + lines_lost(text, line));
}

/// How many lines an error on `line` makes unreadable: the line itself, and behind a broken header
/// every setting that lost its table with it.
fn lines_lost(text: &str, line: usize) -> usize {
    let is_header = |line: &str| line.trim_start().starts_with('[');
    let mut lines = text.lines().skip(line - 1);
    match lines.next() {
        Some(first) if is_header(first) => 1 + lines.take_while(|line| !is_header(line)).count(),
        _ => 1,
    }
}

/// The key that a line belongs to, as far as the text alone shows: the table whose header is
/// above, and the setting that begins last.
fn key_near(text: &str, line: usize) -> String {
    let (mut table, mut key) = ("", "");
    for line in text.lines().take(line).map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_start_matches('[');
            table = header.split([']', '#']).next().unwrap_or(header).trim();
            key = "";
        } else if let Some((left, _)) = line.split_once('=')
            && !line.starts_with('#')
        {
            key = left.trim();
        } else if line.starts_with(|c: char| c.is_ascii_alphabetic()) && !line.contains(',') {
            // A setting whose `=` is missing; with a comma, an element of a list without quotes.
            key = line.split_whitespace().next().unwrap_or(line);
        }
    }
    let parts = [table, key].into_iter().filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_read_off_the_text() {
        let text = "\
drain_timeout = 30s
[registries.harbor] # ours
cap = 200
hosts = [
  harbor,
# a = comment
]
share 1
[[odd
";
        for (line, expected) in [
            (1, "drain_timeout"),
            (2, "registries.harbor"),
            (3, "registries.harbor.cap"),
            (5, "registries.harbor.hosts"),
            (6, "registries.harbor.hosts"),
            (8, "registries.harbor.share"),
            (9, "odd"),
        ] {
            assert_eq!(key_near(text, line), expected, "line {line}");
        }
        assert_eq!(key_near("=", 1), "");
    }

    #[test]
    fn a_broken_header_takes_its_settings_with_it() {
        let text = "a = 1\n[broken\nb = 2\nc = 3\n[whole]\nd = 4";
        for (line, expected) in [(1, 1), (2, 3), (3, 1), (5, 2), (7, 1)] {
            assert_eq!(lines_lost(text, line), expected, "line {line}");
        }
    }
}
