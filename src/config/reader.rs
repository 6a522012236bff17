//! The walk over the tables of the file: it hands each setting to the function that reads it, and notes every problem.
//!
//! It knows paths, lines and keys, and nothing of what the settings mean. A setting with a problem keeps its default, so
//! one reading finds all problems. The tables of `model` call it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::problem::Problem;
use super::shown::{KeyLines, Shown, ShownSettings};
use super::value::Parsed;

/// The names of settings in the environment begin with this.
pub(super) const PREFIX: &str = "ROADSTEAD__";
/// Longest name of a table, in bytes.
const MAX_NAME: usize = 63;

/// The problems and the settings of one text, while it is read.
pub(super) struct Report {
    /// The byte offset behind each line feed of the text, ascending.
    line_starts: Vec<usize>,
    pub(super) problems: Vec<Problem>,
    pub(super) settings: ShownSettings,
    /// The lines of the keys that the file has.
    pub(super) in_file: KeyLines,
    /// The keys that have a problem, or may be in lost lines.
    unsound: BTreeSet<String>,
    /// Settings of the environment by the rest of their names; each with its text, and the key that it set.
    pub(super) overrides: BTreeMap<String, (String, Option<String>)>,
    /// Lines that are not TOML, or lost their table: what was recovered from them is a guess.
    broken: Vec<Range<usize>>,
}

impl Report {
    pub(super) fn new(text: &str) -> Report {
        Report {
            line_starts: text.match_indices('\n').map(|(offset, _)| offset + 1).collect(),
            problems: Vec::new(),
            settings: ShownSettings::new(),
            in_file: KeyLines::default(),
            unsound: BTreeSet::new(),
            overrides: BTreeMap::new(),
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

    /// Notes each setting of the environment that no key took.
    pub(super) fn note_unused_overrides(&mut self) {
        let unused = self.overrides.iter().filter(|(_, (_, key))| key.is_none());
        for key in unused.map(|(name, _)| format!("{PREFIX}{name}")).collect::<Vec<_>>() {
            let reason = "sets no key: the name is that of a key that is not a list, in a table of the file, with two \
                          underscores for each dot";
            self.note(Problem { key, line: 1, reason: reason.to_owned() });
        }
    }

    /// Notes a problem, unless its line is known to be broken.
    fn note(&mut self, problem: Problem) {
        self.unsound.insert(problem.key.clone());
        if !self.broken.iter().any(|lines| lines.contains(&problem.line)) {
            self.problems.push(problem);
        }
    }
}

/// One table of the file (or the place for one), while it is read.
pub(crate) struct Section<'a> {
    report: &'a mut Report,
    /// `None` for a table that the file does not have: all its settings are absent.
    table: Option<&'a DeTable<'a>>,
    /// The keys that lead here, joined by dots; empty for the root.
    path: String,
    /// Where the table begins, or the one around it.
    line: usize,
    /// The keys that were asked for. All others are unknown.
    known: Vec<&'a str>,
    /// Whether an absent setting is reported as missing. It is not where something else is in its place.
    whole: bool,
}

impl<'a> Section<'a> {
    pub(super) fn root(table: &'a DeTable<'a>, report: &'a mut Report) -> Self {
        let whole = report.broken.is_empty();
        Section { whole, report, table: Some(table), path: String::new(), line: 1, known: Vec::new() }
    }

    /// Reads a setting that has a default.
    pub(crate) fn value<T: Shown>(
        &mut self,
        key: &'static str,
        field: &mut T,
        read: impl FnOnce(&DeValue<'_>) -> Parsed<T>,
    ) {
        let found = self.find(key);
        let read = match self.overridden(key) {
            Some((name, text)) => {
                let value =
                    DeValue::parse(&text).map_or_else(|_| DeValue::String((&*text).into()), Spanned::into_inner);
                Some(read(&value).map_err(|reason| format!("{reason} (set by {PREFIX}{name})")))
            }
            None => found.map(read),
        };
        match read {
            Some(Ok(value)) => *field = value,
            Some(Err(reason)) => self.problem(key, reason),
            None => {}
        }
        self.record(key, field);
    }

    /// Reads a list that may be absent, but not empty: an empty list could be read as "none" or as "any". Each bad
    /// element is noted on its own line.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        field: &mut Vec<T>,
        example: &str,
        read: impl Fn(&DeValue<'_>) -> Parsed<T>,
    ) where
        Vec<T>: Shown,
    {
        match self.find(key) {
            None => {}
            Some(DeValue::Array(elements)) if elements.is_empty() => {
                self.problem(key, format!("is empty: write {key} = {example}"));
            }
            Some(DeValue::Array(elements)) => {
                for (index, element) in elements.iter().enumerate() {
                    match read(element.get_ref()) {
                        Ok(element) => field.push(element),
                        Err(reason) => self.problem_in(key, index, reason),
                    }
                }
            }
            Some(other) => {
                let found = other.type_str();
                self.problem(key, format!("expected a list, found {found}: write {key} = {example}"));
            }
        }
        self.record(key, field);
    }

    /// Reads the table under `key`. When the file does not have it, all its settings are absent.
    pub(super) fn table<T>(&mut self, key: &'static str, field: &mut T, read: impl FnOnce(&mut T, &mut Section<'_>)) {
        let found = self.find(key);
        self.descend(key, found, |section| read(field, section));
    }

    /// Reads the table under `key`, if the file has it.
    pub(super) fn optional_table<T: Default>(
        &mut self,
        key: &'static str,
        field: &mut Option<T>,
        read: impl FnOnce(&mut T, &mut Section<'_>),
    ) {
        if let found @ Some(_) = self.find(key) {
            self.descend(key, found, |section| read(field.insert(T::default()), section));
        }
    }

    /// Reads every table in this one, in the order of the file, with the name of each.
    pub(super) fn each_table<T>(&mut self, mut read: impl FnMut(&str, &mut Section<'_>) -> T) -> Vec<T> {
        let mut entries: Vec<_> = self.table.into_iter().flatten().collect();
        // The map is ordered by name.
        entries.sort_by_key(|(key, _)| key.span().start);
        let each = entries.into_iter().map(|(key, value)| {
            let name: &str = key.get_ref();
            self.known.push(name);
            self.descend(name, Some(value.get_ref()), |section| read(name, section))
        });
        each.collect()
    }

    /// Reads this section, then notes its unknown keys.
    pub(super) fn read_whole<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let result = read(self);
        let keys = self.table.into_iter().flat_map(|table| table.keys()).map(|key| -> &str { key.get_ref() });
        for key in keys.filter(|key| !self.known.contains(key)).collect::<Vec<_>>() {
            self.problem(key, unknown_key(key, &self.known));
        }
        result
    }

    /// Notes a problem with a setting of this section, or with the section itself for an empty key.
    pub(crate) fn problem(&mut self, key: &str, reason: String) {
        self.report.note(Problem { key: self.path_of(key), line: self.line_of(key), reason });
    }

    /// Notes a problem with an element of a list, or with the value in its place.
    pub(super) fn problem_in(&mut self, key: &str, index: usize, reason: String) {
        let element = self.find_below(key).and_then(|(_, value)| value.get_ref().as_array()?.get(index));
        let line = element.map_or_else(|| self.line_of(key), |element| self.report.line_at(element.span().start));
        self.report.note(Problem { key: self.path_of(key), line, reason });
    }

    /// Notes that something should be there and is not.
    pub(super) fn missing(&mut self, key: &str, reason: String) {
        if self.whole {
            self.problem(key, reason);
        } else {
            self.report.unsound.insert(self.path_of(key));
        }
    }

    /// Whether no problem with this setting is known.
    pub(crate) fn is_sound(&self, key: &str) -> bool {
        !self.report.unsound.contains(&self.path_of(key))
    }

    /// Notes the name of this table if metrics and messages could not carry it.
    pub(super) fn check_name(&mut self, what: &str, name: &str) {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) || name.contains("__") {
            let reason = format!(
                "the name of a {what} has 1 to {MAX_NAME} characters, each a lower-case letter, a digit, '_' or '-', and \
                 no two '_' in a row"
            );
            self.problem("", reason);
        }
    }

    /// Records the value that a setting has.
    pub(super) fn record(&mut self, key: &str, value: &impl Shown) {
        self.report.settings.extend(value.shown().map(|shown| (self.path_of(key), shown)));
        if self.find_below(key).is_some() {
            self.report.in_file.0.insert(self.path_of(key), self.line_of(key));
        }
    }

    /// The line of a setting, also of one in a table below (`queue.depth`). When it is absent, the line of the table that
    /// should hold it.
    pub(super) fn line_of(&self, key: &str) -> usize {
        let found = self.find_below(key).map(|(key, _)| self.report.line_at(key.span().start));
        let table = || key.rsplit_once('.').map_or(self.line, |(table, _)| self.line_of(table));
        found.unwrap_or_else(table)
    }

    /// The full path of a key of this section; of the section itself for an empty key.
    pub(super) fn path_of(&self, key: &str) -> String {
        [self.path.as_str(), key].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
    }

    /// The rest of the name and the text of the setting of the environment that sets this key.
    fn overridden(&mut self, key: &str) -> Option<(String, String)> {
        let path = self.path_of(key);
        let name = environment_name(&path);
        let (text, set) = self.report.overrides.get_mut(&name)?;
        let text = text.clone();
        if let Some(other) = set.replace(path).filter(|other| *other != self.path_of(key)) {
            self.problem(key, format!("{PREFIX}{name} stands for this key and for {other}: rename one of the tables"));
        }
        Some((name, text))
    }

    /// Notes a setting that is required and absent.
    pub(crate) fn demand(&mut self, key: &str, example: &str) {
        let is_overridden = self.report.overrides.contains_key(&environment_name(&self.path_of(key)));
        if self.find_below(key).is_none() && !is_overridden {
            self.missing(key, format!("is required, for instance {key} = {example}"));
        }
    }

    fn find(&mut self, key: &'static str) -> Option<&'a DeValue<'a>> {
        self.known.push(key);
        self.table?.get(key).map(Spanned::get_ref)
    }

    /// A setting of this section, or of a table below.
    fn find_below(&self, key: &str) -> Option<(&'a Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>)> {
        let (tables, key) = key.rsplit_once('.').map_or((None, key), |(tables, key)| (Some(tables), key));
        let mut parts = tables.into_iter().flat_map(|tables| tables.split('.'));
        let table = parts.try_fold(self.table?, |table, part| table.get(part)?.get_ref().as_table())?;
        table.get_key_value(key)
    }

    fn descend<T>(&mut self, key: &str, found: Option<&DeValue<'_>>, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let misplaced = found.filter(|value| !value.is_table());
        if let Some(value) = misplaced {
            let reason = format!("expected a table [{}], found {}", self.path_of(key), value.type_str());
            self.problem(key, reason);
        }
        let mut section = Section {
            table: found.and_then(DeValue::as_table),
            path: self.path_of(key),
            line: self.line_of(key),
            known: Vec::new(),
            whole: self.whole && misplaced.is_none(),
            report: &mut *self.report,
        };
        section.read_whole(read)
    }
}

/// The rest of the name in the environment of the key with this path.
fn environment_name(path: &str) -> String {
    path.replace('.', "__").replace('-', "_")
}

/// Says that a key is unknown, and which one may have been meant.
fn unknown_key(key: &str, known: &[&str]) -> String {
    // A third of the letters may be wrong; with more, a guess confuses more than it helps.
    let tolerance = key.chars().count().div_ceil(3);
    let distances = known.iter().map(|known| (distance(key, known), known));
    match distances.min() {
        Some((distance, near)) if distance <= tolerance => {
            format!("unknown key, did you mean `{near}`?")
        }
        _ => "unknown key".to_owned(),
    }
}

/// How many letters must be added, dropped or changed to get from one word to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in to.chars().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.chars().count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_letters() {
        for (from, to, expected) in [
            ("", "", 0),
            ("proxy", "proxy", 0),
            ("proxi", "proxy", 1),
            ("prox", "proxy", 1),
            ("", "proxy", 5),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(from, to), expected, "{from} {to}");
            assert_eq!(distance(to, from), expected, "{to} {from}");
        }
    }

    #[test]
    fn only_a_near_key_is_suggested() {
        let known = ["proxy", "admin", "max_clients"];
        for (key, expected) in [
            ("proxi", "unknown key, did you mean `proxy`?"),
            ("max_client", "unknown key, did you mean `max_clients`?"),
            ("maxclients", "unknown key, did you mean `max_clients`?"),
            ("tls", "unknown key"),
            ("x", "unknown key"),
        ] {
            assert_eq!(unknown_key(key, &known), expected);
        }
        assert_eq!(unknown_key("proxy", &[]), "unknown key");
    }
}
