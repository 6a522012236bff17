//! The problems of a configuration file, and their text for the operator.
//!
//! Plain values without any TOML in them. The reader makes them; the command line prints them.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// One thing in the file that is wrong, or that is allowed but likely not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting with its full path, such as `registries.harbor.queue.depth`; empty when the
    /// line belongs to none.
    pub key: String,
    /// The line in the file, counted from 1. For a setting that is missing, the line of the table
    /// that should hold it.
    pub line: usize,
    /// The problem and its cure, as a sentence without a capital or a full stop.
    pub reason: String,
}

impl Problem {
    /// Writes the text behind the place: the key, if there is one, and the reason.
    fn write_subject(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.reason)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        self.write_subject(f)
    }
}

/// Every problem of one file, at least one, in the order of their lines.
///
/// Displayed one a line: as `sidecar.toml:12: registries.harbor.share: ...`, the form that editors
/// jump to, or as `line 12: ...` for a text without a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    pub(super) file: Option<PathBuf>,
    /// The problems, in the order of their lines.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match &self.file {
                Some(file) => {
                    write!(f, "{}:{}: ", file.display(), problem.line)?;
                    problem.write_subject(f)?;
                }
                None => problem.fmt(f)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Why a configuration file gave no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {}: {cause}", .path.display())]
    Unreadable {
        path: PathBuf,
        /// The error of the operating system; part of the message, so not repeated as its source.
        cause: io::Error,
    },
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
