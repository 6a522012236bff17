//! The shape of the sources: no circle between files, one place for each type name, bounded sizes, the field's words.
//!
//! `layering.rs` checks the arrows between rooms; this file checks what holds for every file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use roadstead_test_support::rust_files;

/// A file is shorter than this, before its inline tests.
const MAX_FILE_LINES: usize = 500;
/// A function is no longer than this.
const MAX_FUNCTION_LINES: usize = 60;
/// All files of `src` together, before their inline tests, are no longer than this. The goal is 17,000: lower it with the total.
const MAX_LINES: usize = 22_674;
/// Rooms that were added after this bound was set, and are not counted in it. Each is a feature of its own that the others do not need.
const LATER_ROOMS: &[&str] = &[
    "lease",
    "fleet",
    "doctor",
    "setup",
    "bypass",
    "explain",
    "control",
    "plan",
    "calibrate",
    "debug_dump",
    "adapt",
    "observe",
    "splice",
];

/// Private words that the terms of the field replaced. No type, field, function or file has one in its name.
const OLD_WORDS: &[&str] = &[
    "see_off",
    "farewell",
    "elsewhere",
    "sets_aside",
    "set_aside",
    "peeked",
    "doors",
    "succession",
    "handing",
    "heir",
    "heirs",
    "census",
    "pace",
    "party",
    "tenant",
    "turns",
    "insist",
    "berth",
    "recall",
    "recalled",
    "take_back",
    "give_way",
    "gives_way",
    "make_way",
    "makes_way",
    "give_up",
    "gives_up",
    "sick",
    "mending",
    "lull",
    "peek",
    "standing",
    "last_of_request",
    "way",
];
/// Whole names of types that say nothing about what the type is.
const OLD_TYPES: &[&str] =
    &["Ask", "Asked", "Bound", "Way", "Trip", "Reached", "Turn", "Seen", "Held", "Word", "Meaning"];

#[test]
fn no_file_uses_a_file_that_uses_it() {
    let sources = Sources::read();
    let arrows = sources.arrows();
    assert!(arrows.values().map(BTreeSet::len).sum::<usize>() > 300, "too few arrows: are the right files read?");
    judge("files in circles", &circles(&arrows));
}

#[test]
fn a_type_name_that_more_than_its_own_file_sees_stands_once() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (module, code) in &Sources::read().code {
        for line in code.lines().filter(|line| line.trim_start().starts_with("pub")) {
            if let Some(name) = defined(line, &["struct", "enum", "trait", "type"]) {
                places.entry(name).or_default().push(module.clone());
            }
        }
    }
    assert!(places.len() > 100, "only {} types: are the right files read?", places.len());
    places.retain(|_, modules| modules.len() > 1);
    let twice = places.into_iter().map(|(name, modules)| format!("{name}: {}", modules.join(", ")));
    judge("type names that stand more than once", &twice.collect::<Vec<_>>());
}

#[test]
fn files_and_functions_are_short_and_the_whole_is_bounded() {
    let sources = Sources::read();
    let mut total = 0;
    let mut long = Vec::new();
    for (module, text) in &sources.text {
        let lines = text.lines().count();
        let room = module.split("::").next().unwrap_or(module);
        if !LATER_ROOMS.contains(&room) {
            total += lines;
        }
        if lines >= MAX_FILE_LINES {
            long.push(format!("{module}.rs: {lines} lines"));
        }
        long.extend(long_functions(text).into_iter().map(|function| format!("{module}::{function}")));
    }
    assert!(total > 5000, "only {total} lines: are the right files read?");
    judge("files and functions that are too long", &long);
    assert!(total <= MAX_LINES, "{total} lines before tests, more than {MAX_LINES}");
}

#[test]
fn no_name_holds_a_private_word() {
    let mut names = 0;
    let mut found = BTreeSet::new();
    for (module, code) in &Sources::read().code {
        let file = module.rsplit("::").next().unwrap_or(module).to_owned();
        let defined = code.lines().filter_map(name_in).chain([file]);
        for name in defined {
            names += 1;
            let words = format!("_{}_", snake(&name));
            let has_old_word = OLD_WORDS.iter().any(|word| words.contains(&format!("_{word}_")));
            if has_old_word || OLD_TYPES.contains(&name.as_str()) {
                found.insert(format!("{module}::{name}"));
            }
        }
    }
    assert!(names > 1000, "only {names} names: are the right files read?");
    judge("names with a private word", &found.into_iter().collect::<Vec<_>>());
}

/// The tables in `tests/README.md` say which test shows each fault that was seen, and which fail when the code is broken; each is there.
#[test]
fn every_test_in_the_tables_of_faults_exists() {
    let files = [rust_files(Path::new("src")), rust_files(Path::new("tests"))].concat();
    let mut tests = BTreeSet::new();
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let names = text.lines().filter_map(|line| defined(line, &["fn"]));
        tests.extend(names.map(|name| format!("{stem}::{name}")));
        tests.insert(format!("{stem}::*"));
    }
    tests.extend(fs::read_dir("tests").unwrap().map(|entry| format!("{}::*", entry.unwrap().file_name().display())));
    let page = fs::read_to_string("tests/README.md").unwrap();
    let (_, table) = page.split_once("## Faults of the queue").expect("the tables of faults");
    let named = table.split('`').skip(1).step_by(2).filter(|name| name.contains("::"));
    let named: BTreeSet<String> = named.map(str::to_owned).collect();
    assert!(named.len() > 100, "only {} tests: is the right table read?", named.len());
    // `room::tests::name` stands in `room/tests.rs`, or in the module at the end of `room.rs`.
    let places = |name: &str| match name.split_once("::tests::") {
        Some((room, test)) => [format!("{room}::{test}"), format!("tests::{test}")],
        None => [name.to_owned(), name.to_owned()],
    };
    let exists = |name: &String| places(name).iter().any(|place| tests.contains(place));
    judge("tests of faults that do not exist", &named.into_iter().filter(|name| !exists(name)).collect::<Vec<_>>());
}

/// Comments are plain sentences: subject first.
#[test]
fn no_comment_opens_with_a_pronoun_as_a_noun() {
    let (mut sentences, mut found) = (0, Vec::new());
    for file in [rust_files(Path::new("src")), rust_files(Path::new("tests"))].concat() {
        for block in comments(&fs::read_to_string(&file).unwrap()) {
            for sentence in block.split_inclusive(['.', '?', '!']).map(str::trim) {
                sentences += 1;
                let is_noun = ["Who ", "Whoever ", "What ", "Which "].iter().any(|word| sentence.starts_with(word));
                if is_noun && !sentence.ends_with('?') {
                    found.push(format!("{}: {sentence}", file.display()));
                }
            }
        }
    }
    assert!(sentences > 3000, "only {sentences} sentences: are the right files read?");
    judge("comments that open with Who, Whoever, What or Which", &found);
}

/// The checks above rest on how paths are read.
#[test]
fn paths_are_resolved_from_the_root_of_the_crate() {
    let cases = [
        ("use crate::a::b;", "a::b"),
        ("use super::c;", "room::c"),
        ("use super::super::d;", "d"),
        ("use self::e::f;", "room::file::e::f"),
        ("use crate::{g, h::{self, i as j}};", "g h h::i"),
        ("let x = crate::k::l(super::m::N);", "k::l room::m::N"),
    ];
    for (code, expected) in cases {
        let found: Vec<String> = paths(code, "room::file").iter().map(|path| path.join("::")).collect();
        let expected: BTreeSet<&str> = expected.split(' ').collect();
        assert_eq!(found.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected, "{code}");
    }
}

/// Fails with all that was found.
fn judge(what: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{what}: {}\n{}", findings.len(), findings.join("\n"));
}

/// The sources without their tests, by module path.
struct Sources {
    text: BTreeMap<String, String>,
    /// The same without comments and string literals.
    code: BTreeMap<String, String>,
}

impl Sources {
    fn read() -> Sources {
        let mut text = BTreeMap::new();
        for file in rust_files(Path::new("src")) {
            let path = file.strip_prefix("src").unwrap().with_extension("");
            let module: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
            let is_test = module.iter().any(|part| part.ends_with("tests"));
            if !is_test && module != ["main"] {
                text.insert(module.join("::"), before_tests(&fs::read_to_string(&file).unwrap()));
            }
        }
        let code = text.iter().map(|(module, text)| (module.clone(), without_comments(text))).collect();
        Sources { text, code }
    }

    /// The modules that each module names. A parent that re-exports a child uses it.
    fn arrows(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (module, code) in &self.code {
            let used = arrows.entry(module.clone()).or_default();
            for path in paths(code, module).into_iter().chain(self.children_named(code, module)) {
                let longest = (1..=path.len()).rev().map(|length| path[..length].join("::"));
                let target = longest.into_iter().find(|path| self.code.contains_key(path));
                used.extend(target.filter(|target| target != module));
            }
        }
        arrows
    }

    /// Children that a module names by a path relative to itself: `child::item`, in a `use` or in an expression.
    fn children_named(&self, code: &str, module: &str) -> Vec<Vec<String>> {
        let here: Vec<String> = module.split("::").map(str::to_owned).collect();
        let mut found = Vec::new();
        for (index, _) in code.match_indices("::") {
            let before = &code[..index];
            let name = before.rsplit(|char: char| !char.is_alphanumeric() && char != '_').next().unwrap_or_default();
            let is_relative = !before[..before.len() - name.len()].ends_with("::");
            if is_relative && self.code.contains_key(&format!("{module}::{name}")) {
                found.push([here.clone(), vec![name.to_owned()]].concat());
            }
        }
        found
    }
}

/// The comments of a file: adjacent lines make one comment, up to an empty one.
fn comments(text: &str) -> Vec<String> {
    let mut comments = vec![String::new()];
    for line in text.lines().map(str::trim_start) {
        let words = line.strip_prefix("//").map_or("", |rest| rest.trim_start_matches(['/', '!'])).trim();
        match (words, comments.last_mut()) {
            ("", _) => comments.push(String::new()),
            (words, Some(comment)) => {
                comment.push_str(words);
                comment.push(' ');
            }
            (_, None) => {}
        }
    }
    comments
}

/// Up to an inline test module.
fn before_tests(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let begins = |index: &usize| {
        let next = lines.get(index + 1).map_or("", |line| line.trim_start());
        lines[*index].trim() == "#[cfg(test)]" && next.contains("mod ") && next.ends_with('{')
    };
    let end = (0..lines.len()).find(begins).unwrap_or(lines.len());
    lines[..end].join("\n")
}

fn without_comments(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        let mut in_string = false;
        let mut chars = line.chars().peekable();
        while let Some(char) = chars.next() {
            match char {
                '\\' if in_string => drop(chars.next()),
                '"' => in_string = !in_string,
                '/' if !in_string && chars.peek() == Some(&'/') => break,
                _ if in_string => {}
                _ => code.push(char),
            }
        }
        code.push('\n');
    }
    code
}

/// The paths that begin with `crate`, `self` or `super`, from the root of the crate; the trees of `use` are unfolded.
fn paths(code: &str, module: &str) -> Vec<Vec<String>> {
    let here: Vec<String> = module.split("::").map(str::to_owned).collect();
    let mut found = Vec::new();
    for start in ["crate::", "self::", "super::"] {
        for (index, _) in code.match_indices(start) {
            let before = code[..index].chars().next_back();
            if before.is_some_and(|char| char.is_alphanumeric() || char == '_' || char == ':') {
                continue;
            }
            let base = match start {
                "crate::" => Vec::new(),
                "self::" => here.clone(),
                _ => here[..here.len() - 1].to_vec(),
            };
            unfold(&code[index + start.len()..], base, &mut found);
        }
    }
    found
}

/// Reads one path, or a tree of them in braces, and tells how many bytes it took.
fn unfold(code: &str, mut path: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let mut at = 0;
    loop {
        let rest = &code[at..];
        let blank = rest.len() - rest.trim_start().len();
        if rest.trim_start().starts_with('{') {
            at += blank + 1;
            while !code[at..].trim_start().starts_with('}') && !code[at..].trim().is_empty() {
                at += unfold(&code[at..], path.clone(), found);
                let rest = &code[at..];
                // Whatever follows the path, `as Name` for instance, up to the next one.
                at += rest.find([',', '}']).unwrap_or(rest.len());
                if code[at..].starts_with(',') {
                    at += 1;
                }
            }
            return code.len().min(at + code[at..].find('}').map_or(0, |end| end + 1));
        }
        let word: String =
            rest.trim_start().chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
        match word.as_str() {
            "super" => drop(path.pop()),
            "self" | "" => {}
            _ => path.push(word.clone()),
        }
        at += blank + word.len();
        if !code[at..].starts_with("::") || word.is_empty() {
            found.push(path);
            return at;
        }
        at += 2;
    }
}

/// The modules that stand in a circle, each with those that it shares circles with.
fn circles(arrows: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let reach = |from: &String| {
        let mut seen = BTreeSet::new();
        let mut open = vec![from];
        while let Some(module) = open.pop() {
            open.extend(arrows.get(module).into_iter().flatten().filter(|next| seen.insert((*next).clone())));
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = arrows.keys().map(|module| (module, reach(module))).collect();
    let in_circles = reached.iter().filter(|(module, seen)| seen.contains(**module));
    in_circles
        .map(|(module, seen)| {
            let both_ways = |other: &&String| reached.get(other).is_some_and(|back| back.contains(*module));
            let others: Vec<&str> = seen.iter().filter(both_ways).map(String::as_str).collect();
            format!("{module} in a circle: {}", others.join(", "))
        })
        .collect()
}

/// The name that a line defines by one of these keywords.
fn defined(line: &str, keywords: &[&str]) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let index = words.iter().position(|word| keywords.contains(word))?;
    let before = &words[..index];
    let is_definition = before
        .iter()
        .all(|word| word.starts_with("pub") || ["async", "const", "unsafe", "in", "super)"].contains(word));
    let name: String =
        words.get(index + 1)?.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
    (is_definition && !name.is_empty()).then_some(name)
}

/// The type, function, constant or field that a line defines.
fn name_in(line: &str) -> Option<String> {
    let keywords = ["struct", "enum", "trait", "type", "fn", "const", "static", "mod"];
    defined(line, &keywords).or_else(|| {
        let line = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(super) ");
        let name: String = line.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
        let is_field = line[name.len()..].starts_with(": ") && line.ends_with(',');
        (is_field && !name.is_empty()).then_some(name)
    })
}

/// `CamelCase` as `snake_case`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for char in name.chars() {
        if char.is_uppercase() && snake.ends_with(|before: char| before.is_lowercase()) {
            snake.push('_');
        }
        snake.extend(char.to_lowercase());
    }
    snake
}

/// Functions that are too long, with their lengths.
fn long_functions(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut long = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = defined(line, &["fn"]) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let closing = format!("{indent}}}");
        let body = lines[start..].iter().position(|line| *line == closing).map_or(0, |end| end + 1);
        if body > MAX_FUNCTION_LINES {
            long.push(format!("{name}: {body} lines"));
        }
    }
    long
}
