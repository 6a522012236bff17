//! `ARCHITECTURE.md` against the sources.

use std::collections::BTreeSet;
use std::fs;

use roadstead_test_support::rust_files;

use crate::page::{Page, quoted, repository};

const PAGE: &str = "ARCHITECTURE.md";

/// Every test that the page names is there.
#[test]
fn every_test_on_the_page_exists() {
    let mut tests = BTreeSet::new();
    for file in [rust_files(&repository("src")), rust_files(&repository("tests"))].concat() {
        let text = fs::read_to_string(&file).unwrap();
        let file = file.file_stem().unwrap().to_str().unwrap();
        let functions =
            text.lines().filter_map(|line| line.trim_start().trim_start_matches("async ").strip_prefix("fn "));
        tests.extend(functions.filter_map(|rest| rest.split('(').next()).map(|name| format!("{file}::{name}")));
    }
    let [changes] = &Page::read(PAGE).tables_of("change")[..] else { panic!("one table of changes") };
    let named: Vec<&str> = changes.rows.iter().flat_map(|row| quoted(&row[2])).collect();
    assert!(changes.rows.len() >= 10 && named.len() >= 10, "{named:?}");
    for name in named {
        assert!(tests.contains(name), "{name} is not there");
    }
}

/// The levels on the page are those that `tests/layering.rs` checks.
#[test]
fn the_levels_are_those_that_are_checked() {
    let checked = fs::read_to_string(repository("tests/layering.rs")).unwrap();
    let list = checked.split_once("const LAYERS").and_then(|(_, rest)| rest.split_once("\n];")).expect("the levels").0;
    let names = |text: &str, quote| text.split(quote).skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    let checked: Vec<BTreeSet<String>> = list.lines().skip(1).map(|line| names(line, '"')).collect();
    let [levels] = &Page::read(PAGE).tables_of("level")[..] else { panic!("one table of levels") };
    let mut shown: Vec<BTreeSet<String>> = levels.rows.iter().map(|row| names(&row[1], '`')).collect();
    shown.reverse();
    assert_eq!(shown, checked.into_iter().filter(|level| !level.is_empty()).collect::<Vec<_>>());
}

/// Every source file that the page names is there, and every module of the crate is named.
#[test]
fn every_module_is_on_the_page_and_every_file_on_it_exists() {
    let page = Page::read(PAGE);
    let prose: String = page.text.split("```").step_by(2).collect();
    let words: BTreeSet<&str> = quoted(&prose).into_iter().collect();
    for word in words.iter().filter(|word| word.starts_with("src/") || word.starts_with("tests/")) {
        assert!(repository(word).exists(), "{word} is not there");
    }
    let root = fs::read_to_string(repository("src/lib.rs")).unwrap();
    let declared = root.lines().map(|line| line.trim_start_matches("pub "));
    let modules = declared.filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')).collect::<Vec<_>>();
    assert!(modules.len() > 15, "{modules:?}");
    for module in modules {
        assert!(words.contains(module), "the page does not name the module {module}");
    }
}
