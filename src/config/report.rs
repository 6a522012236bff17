//! The problems found so far while one text is read, and the lines they are on.
//!
//! It turns byte offsets into line numbers, and prevents a second report of one mistake: what a
//! broken line seems to say is no problem of its own. The reader and the syntax check write it.

use std::ops::Range;

use super::problem::{Problem, Problems};

/// The problems of one text, in the making.
pub(super) struct Report {
    /// The byte offset behind each line feed of the text, ascending.
    line_starts: Vec<usize>,
    problems: Vec<Problem>,
    /// Lines that are not TOML, or lost their table: what was recovered from them is a guess.
    broken: Vec<Range<usize>>,
}

impl Report {
    pub(super) fn new(text: &str) -> Self {
        let line_feeds = text.match_indices('\n');
        Self {
            line_starts: line_feeds.map(|(offset, _)| offset + 1).collect(),
            problems: Vec::new(),
            broken: Vec::new(),
        }
    }

    /// The line, counted from 1, that holds the byte at `offset`.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        1 + self.line_starts.partition_point(|start| *start <= offset)
    }

    /// Notes a problem that makes all `lines` unreadable.
    pub(super) fn note_broken(&mut self, problem: Problem, lines: Range<usize>) {
        self.note(problem);
        self.broken.push(lines);
    }

    /// Notes a problem, unless its line is known to be broken.
    pub(super) fn note(&mut self, problem: Problem) {
        if !self.broken.iter().any(|lines| lines.contains(&problem.line)) {
            self.problems.push(problem);
        }
    }

    /// Whether lines were lost. Then settings that seem to be missing may be in them.
    pub(super) fn lost_lines(&self) -> bool {
        !self.broken.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn into_problems(self) -> Problems {
        Problems::new(self.problems)
    }
}
