//! `docs/configuration.md` against the shipped `sidecar.toml` and against what the code makes of it.

use std::collections::BTreeMap;
use std::fmt::Write;

use roadstead::config::{Config, Problems};

use crate::page::{Page, quoted, text_of};

/// The row of one key on the page.
#[derive(Debug)]
struct Entry {
    kind: String,
    default: String,
    range: String,
    live: String,
}

/// Keys that mean something only together.
const PAIRS: [(&str, &str); 3] = [
    ("registries.NAME.rate_per_second", "registries.NAME.burst"),
    ("registries.NAME.tls.client_cert_file", "registries.NAME.tls.client_key_file"),
    ("registries.NAME.tls.client_key_file", "registries.NAME.tls.client_cert_file"),
];

/// Keys that are bound once.
const BOUND_ONCE: [&str; 19] = [
    "threads",
    "listen.proxy",
    "listen.admin",
    "listen.metrics",
    "listen.control",
    "listen.control_token_file",
    "log.format",
    "registries.NAME.mirror.listen",
    "lease.redis",
    "lease.user",
    "lease.password_file",
    "lease.ca_file",
    "lease.node_id",
    "lease.nodes",
    "lease.floor",
    "lease.renew_every",
    "lease.admit_for",
    "lease.close_after",
    "lease.registry_gives_up",
];

/// The page: each key with what is said of it.
fn documented() -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    for table in Page::read("docs/configuration.md").tables_of("key") {
        assert_eq!(table.columns, ["key", "type", "default", "range", "live", "meaning"]);
        let path = quoted(&table.heading).first().map_or("", |path| path.trim_matches(['[', ']'])).to_owned();
        for row in table.rows {
            let key = quoted(&row[0])[0];
            let key = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            assert!(row[5].len() > 10, "{key} means nothing");
            let [kind, default, range, live] = [1, 2, 3, 4].map(|column| row[column].clone());
            let doubled = entries.insert(key.clone(), Entry { kind, default, range, live });
            assert!(doubled.is_none(), "{key} is there twice");
        }
    }
    assert!(entries.len() > 40, "{}", entries.len());
    entries
}

/// A config with lines that can be taken away: every key of `sidecar.toml`, with its value there.
#[derive(Clone, Debug)]
struct Shipped {
    /// Tables, in their order, each with its keys.
    tables: Vec<(String, Vec<(String, String)>)>,
}

impl Shipped {
    /// The shipped file, with all that is commented out put in. Its cap is made larger, so that an example is not by
    /// chance what the default would be, and its share whole, so that the smallest cap holds.
    fn read() -> Shipped {
        let mut tables = vec![(String::new(), Vec::new())];
        for line in text_of("sidecar.toml").lines() {
            let line = line.trim_start_matches("# ").split('#').next().unwrap().trim();
            if let Some(table) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                tables.push((table.to_owned(), Vec::new()));
            } else if let Some((key, value)) = line.split_once(" = ").filter(|(key, _)| is_key(key)) {
                tables.last_mut().unwrap().1.push((key.to_owned(), value.to_owned()));
            }
        }
        Shipped { tables }.with("registries.NAME.cap", Some("400")).with("registries.NAME.share", Some("1"))
    }

    fn keys(&self) -> Vec<String> {
        let keys = self.tables.iter().flat_map(|(table, keys)| keys.iter().map(move |(key, _)| path(table, key)));
        keys.collect()
    }

    /// The same with another value for this key, or without it.
    fn with(&self, changed: &str, value: Option<&str>) -> Shipped {
        let mut copy = self.clone();
        let mut found = false;
        for (table, keys) in &mut copy.tables {
            let is = |key: &str| path(table, key) == changed;
            found |= keys.iter().any(|(key, _)| is(key));
            match value {
                Some(value) => keys.iter_mut().filter(|(key, _)| is(key)).for_each(|(_, old)| value.clone_into(old)),
                None => keys.retain(|(key, _)| !is(key)),
            }
        }
        assert!(found, "sidecar.toml has no {changed}");
        copy
    }

    fn parse(&self) -> Result<Config, Problems> {
        let mut text = String::new();
        for (table, keys) in &self.tables {
            if !table.is_empty() {
                writeln!(text, "[{table}]").unwrap();
            }
            for (key, value) in keys {
                writeln!(text, "{key} = {value}").unwrap();
            }
        }
        // Warnings name lines, which move.
        Config::parse(&text).map(|config| Config { warnings: Vec::new(), ..config })
    }
}

fn is_key(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_')
}

/// The name of a key on the page: registries and classes have no name there.
fn path(table: &str, key: &str) -> String {
    let table = table.replace("registries.harbor", "registries.NAME").replace("classes.interactive", "classes.NAME");
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

#[test]
fn the_page_has_the_keys_of_the_shipped_file_and_no_others() {
    let documented: Vec<String> = documented().into_keys().collect();
    let mut shipped = Shipped::read().keys();
    shipped.sort();
    assert_eq!(documented, shipped);
    Shipped::read().parse().expect("all that is commented out holds together");
}

/// A value is what the code takes when the key is left out; words stand for something else than the example; what is
/// required is missed.
#[test]
fn every_default_is_the_codes() {
    let whole = Shipped::read();
    let (mut values, mut words, mut required) = (0, 0, 0);
    for (key, entry) in documented() {
        let without = whole.with(&key, None);
        match (quoted(&entry.default).as_slice(), entry.default.as_str()) {
            ([value], _) => {
                let (written, left_out) = (whole.with(&key, Some(value)).parse(), without.parse());
                assert_eq!(written.expect(&key), left_out.expect(&key), "{key} = {value} is not the default");
                values += 1;
            }
            (_, "required") => {
                let problems = without.parse().expect_err(&key).to_string();
                let shipped = key.replace("NAME", "harbor");
                assert!(problems.contains(&format!("{shipped}: is required")), "{key}: {problems}");
                required += 1;
            }
            (_, default) => {
                assert!(!default.is_empty(), "{key} has no default");
                let partner = PAIRS.iter().find(|(one, _)| *one == key);
                let without = partner.map_or(without.clone(), |(_, other)| without.with(other, None));
                assert_ne!(without.parse().expect(&key), whole.parse().unwrap(), "{key}: the example is the default");
                words += 1;
            }
        }
    }
    assert!(values >= 25 && words >= 10 && required == 7, "{values} {words} {required}");
}

/// The shipped file shows the same default, where it shows one.
#[test]
fn the_shipped_file_shows_the_same_defaults() {
    let documented = documented();
    let mut table = String::new();
    let mut seen = 0;
    for line in text_of("sidecar.toml").lines() {
        let bare = line.trim_start_matches("# ");
        if bare.starts_with('[') {
            table = bare.split(']').next().unwrap().trim_start_matches('[').to_owned();
        }
        let Some((key, rest)) = bare.split_once(" = ").filter(|(key, _)| is_key(key)) else { continue };
        let (value, note) = rest.split_once('#').unwrap_or((rest, ""));
        let is_example = !line.starts_with('#') || note.trim().starts_with("example");
        if is_example && !note.contains("this is the default") {
            continue;
        }
        let key = path(&table, key);
        assert_eq!(quoted(&documented[&key].default), [value.trim()], "{key}");
        seen += 1;
    }
    assert!(seen >= 25, "{seen}");
}

/// The ends of a range are taken, and what lies beyond them is not; a word is one of those that are listed.
#[test]
fn every_range_is_the_codes() {
    let whole = Shipped::read();
    let (mut ranges, mut lists, mut durations) = (0, 0, 0);
    for (key, entry) in documented() {
        let takes = |value: &str| whole.with(&key, Some(value)).parse().is_ok();
        match (entry.kind.as_str(), entry.range.split_once(" to ")) {
            ("whole number" | "number", Some((least, most))) => {
                assert!(takes(least) && takes(most), "{key}: {}", entry.range);
                let beyond = [beyond(least, -1.0), beyond(most, 1.0)];
                assert!(beyond.iter().all(|value| !takes(value)), "{key} takes more than {}", entry.range);
                ranges += 1;
            }
            ("word", None) => {
                let problems = whole.with(&key, Some("\"nothing\"")).parse().expect_err(&key).to_string();
                assert!(
                    problems.ends_with(&format!("is not one of {}", quoted(&entry.range).join(", "))),
                    "{problems}"
                );
                lists += 1;
            }
            ("duration", None) => {
                assert!(takes("\"7days\"") && takes("\"1ms\""), "{key}");
                assert!(!takes("\"0s\"") && !takes("\"8days\"") && !takes("5"), "{key}");
                durations += 1;
            }
            ("flag", None) => assert!(takes("true") && takes("false") && !takes("1"), "{key}"),
            ("whole number" | "number" | "word", _) => panic!("{key} has no range"),
            _ => assert_eq!(entry.range, "", "{key}"),
        }
    }
    assert!(ranges == 11 && lists == 4 && durations >= 15, "{ranges} {lists} {durations}");
}

/// A little less or more than the end of a range.
fn beyond(end: &str, step: f64) -> String {
    let number: f64 = end.parse().unwrap();
    if end.contains('.') { (number * (1.0 + step / 2.0)).to_string() } else { (number + step).to_string() }
}

#[test]
fn what_needs_a_restart_is_what_is_bound_once() {
    let documented = documented();
    let restart: Vec<&str> =
        documented.iter().filter(|(_, entry)| entry.live == "restart").map(|(key, _)| key.as_str()).collect();
    let mut bound = BOUND_ONCE.to_vec();
    bound.sort_unstable();
    assert_eq!(restart, bound);
    assert!(documented.values().all(|entry| ["yes", "restart"].contains(&entry.live.as_str())));
}
