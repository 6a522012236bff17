//! The walk over the tables of the file: hands each setting to the function that reads it, and
//! notes everything that is wrong on the way.
//!
//! It knows paths, lines and keys, and nothing of what the settings mean. A read that fails notes
//! its problem and goes on, so that one reading finds all of them. `settings` calls it.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;
use super::report::Report;

/// Stands for a value that could not be read: the problem is in the report, and no caller needs to say
/// more about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noted;

/// A value, unless its problem has been noted.
pub(super) type Read<T> = Result<T, Noted>;

/// One table of the file (or the place for one), while it is read.
pub(super) struct Section<'a> {
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
        Section {
            whole: !report.lost_lines(),
            report,
            table: Some(table),
            path: String::new(),
            line: 1,
            known: Vec::new(),
        }
    }

    /// Reads a setting that has a default.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Read<T> {
        match self.find(key) {
            None => Ok(default),
            Some(value) => read(value).map_err(|reason| self.problem(key, reason)),
        }
    }

    /// Reads a setting that may be absent.
    pub(super) fn maybe<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Read<Option<T>> {
        self.optional(key, None, |value| read(value).map(Some))
    }

    /// Reads a setting that must be there; `example` shows how to write it.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Read<T> {
        match self.find(key) {
            None => Err(self.required_but_absent(key, example)),
            Some(value) => read(value).map_err(|reason| self.problem(key, reason)),
        }
    }

    /// Reads a list that may be absent, but not empty: what nothing in it would mean is better
    /// said by leaving it out. Each bad element is noted on its own line.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        example: &str,
        mut read: impl FnMut(&DeValue<'_>) -> Result<T, String>,
    ) -> Read<Option<Vec<T>>> {
        let elements = match self.find(key) {
            None => return Ok(None),
            Some(DeValue::Array(elements)) if elements.is_empty() => {
                return Err(self.problem(key, format!("is empty: write {key} = {example}")));
            }
            Some(DeValue::Array(elements)) => elements,
            Some(other) => {
                let found = other.type_str();
                let reason = format!("expected a list, found {found}: write {key} = {example}");
                return Err(self.problem(key, reason));
            }
        };
        all(elements.iter().map(|element| {
            let line = self.report.line_at(element.span().start);
            read(element.get_ref()).map_err(|reason| self.problem_at(line, key, reason))
        }))
        .map(Some)
    }

    /// Reads the table under `key`. When the file does not have it, all its settings are absent.
    pub(super) fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_>) -> Read<T>) -> Read<T> {
        let found = self.find(key);
        self.descend(key, found, read)
    }

    /// Reads the table under `key`, if the file has it.
    pub(super) fn optional_table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_>) -> Read<T>,
    ) -> Read<Option<T>> {
        match self.find(key) {
            None => Ok(None),
            found => self.descend(key, found, read).map(Some),
        }
    }

    /// Reads every table in this one, in the order of the file, with the name of each.
    pub(super) fn each_table<T>(&mut self, mut read: impl FnMut(&str, &mut Section<'_>) -> Read<T>) -> Read<Vec<T>> {
        let mut entries: Vec<_> = self.table.into_iter().flatten().collect();
        // The map is ordered by name.
        entries.sort_by_key(|(key, _)| key.span().start);
        all(entries.into_iter().map(|(key, value)| {
            let name: &str = key.get_ref();
            self.known.push(name);
            self.descend(name, Some(value.get_ref()), |section| read(name, section))
        }))
    }

    /// Reads this section, then notes the keys in it that nobody asked for.
    pub(super) fn read_whole<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        let result = read(self);
        let unknown = self.unknown_keys();
        for key in &unknown {
            self.problem(key, unknown_key(key, &self.known));
        }
        if unknown.is_empty() { result } else { Err(Noted) }
    }

    /// Notes a problem with a setting of this section, or with the section itself for an empty key.
    pub(super) fn problem(&mut self, key: &str, reason: String) -> Noted {
        self.problem_at(self.line_of(key), key, reason)
    }

    /// Notes that something should be there and is not.
    pub(super) fn missing(&mut self, key: &str, reason: String) -> Noted {
        if self.whole { self.problem(key, reason) } else { Noted }
    }

    /// Notes that a setting must be there and is not; `example` shows how to write it.
    pub(super) fn required_but_absent(&mut self, key: &str, example: &str) -> Noted {
        self.missing(key, format!("is required, for instance {key} = {example}"))
    }

    /// The line of a setting, also of one in a table below (`queue.depth`). When it is absent, the
    /// line of the table that should hold it.
    pub(super) fn line_of(&self, key: &str) -> usize {
        let mut line = self.line;
        let mut table = self.table;
        for part in key.split('.') {
            let Some((key, value)) = table.and_then(|table| table.get_key_value(part)) else {
                break;
            };
            line = self.report.line_at(key.span().start);
            table = value.get_ref().as_table();
        }
        line
    }

    /// The full path of a key of this section; of the section itself for an empty key.
    pub(super) fn path_of(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    fn problem_at(&mut self, line: usize, key: &str, reason: String) -> Noted {
        let key = self.path_of(key);
        self.report.note(Problem { key, line, reason });
        Noted
    }

    fn find(&mut self, key: &'static str) -> Option<&'a DeValue<'a>> {
        self.known.push(key);
        self.table?.get(key).map(Spanned::get_ref)
    }

    fn descend<T>(
        &mut self,
        key: &str,
        found: Option<&DeValue<'_>>,
        read: impl FnOnce(&mut Section<'_>) -> Read<T>,
    ) -> Read<T> {
        let misplaced = found.filter(|value| !value.is_table());
        if let Some(value) = misplaced {
            let path = self.path_of(key);
            let found = value.type_str();
            self.problem(key, format!("expected a table [{path}], found {found}"));
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

    fn unknown_keys(&self) -> Vec<&'a str> {
        let keys = self.table.into_iter().flat_map(|table| table.keys());
        let keys = keys.map(|key| -> &str { key.get_ref() });
        keys.filter(|key| !self.known.contains(key)).collect()
    }
}

/// All values, if there is none without. Collecting into a `Result` at once would stop at the first
/// problem, and the others would not be noted.
fn all<T>(reads: impl Iterator<Item = Read<T>>) -> Read<Vec<T>> {
    let reads: Vec<_> = reads.collect();
    reads.into_iter().collect()
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

/// How many letters must be added, dropped or changed to get from one word to the other
/// (Levenshtein).
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
