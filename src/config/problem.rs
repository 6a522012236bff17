//! The problems of a configuration file, and their text for the operator.
//!
//! Plain values without any TOML in them. The reader makes them; the command line prints them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// One thing in the file that is wrong, or that is allowed but likely not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting with its full path, such as `registries.harbor.queue.depth`; empty when the line belongs to none.
    pub key: String,
    /// The line in the file, counted from 1. For a setting that is missing, the line of the table that should hold it.
    pub line: usize,
    /// The problem and its cure, as a sentence without a capital or a full stop.
    pub reason: String,
}

impl Problem {
    /// With the place before it: `file:line` where there is a file, the form that editors jump to.
    fn shown(&self, file: Option<&Path>) -> String {
        let place =
            file.map_or_else(|| format!("line {}", self.line), |file| format!("{}:{}", file.display(), self.line));
        let key = if self.key.is_empty() { String::new() } else { format!("{}: ", self.key) };
        format!("{place}: {key}{}", self.reason)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown(None))
    }
}

/// Every problem of one file, at least one, in the order of their lines. Displayed one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    pub(super) file: Option<PathBuf>,
    /// The problems, in the order of their lines.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.problems.iter().map(|problem| problem.shown(self.file.as_deref()));
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}

impl std::error::Error for Problems {}

/// Why a configuration file gave no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {}: {cause}", .path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error(transparent)]
    Problems(Problems),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(key: &str, line: usize, reason: &str) -> Problem {
        Problem { key: key.to_owned(), line, reason: reason.to_owned() }
    }

    #[test]
    fn problems_are_shown_one_a_line_in_the_order_of_the_file() {
        let problems = vec![problem("", 2, "unclosed table"), problem("listen.proxy", 7, "is required")];
        let problems = Problems { file: None, problems };
        let shown = problems.to_string();
        assert_eq!(shown, "line 2: unclosed table\nline 7: listen.proxy: is required");
        let shown = Problems { file: Some("etc/sidecar.toml".into()), ..problems }.to_string();
        assert_eq!(shown, "etc/sidecar.toml:2: unclosed table\netc/sidecar.toml:7: listen.proxy: is required");
    }
}
