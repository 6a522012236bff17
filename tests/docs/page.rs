//! A page of Markdown: its tables, its fenced blocks, its words in backticks, its links.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// One page.
#[derive(Debug)]
pub struct Page {
    pub path: PathBuf,
    pub text: String,
}

/// One table, under the heading that stands before it.
#[derive(Debug)]
pub struct Table {
    pub heading: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// One fenced block.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// The words behind the fence: `sh test`.
    pub kind: String,
    pub line: usize,
    pub text: String,
}

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The text of a file in the repository.
pub fn text_of(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All pages that this test answers for.
pub fn pages() -> Vec<Page> {
    let mut paths =
        ["ARCHITECTURE.md", "README.md", "systemd/README.md", "k8s/README.md", "charts/roadstead/README.md"]
            .map(repository)
            .to_vec();
    for folder in ["docs", "docs/pullers"] {
        let entries = fs::read_dir(repository(folder)).unwrap().map(|entry| entry.unwrap().path());
        paths.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    assert!(paths.len() >= 14, "{paths:?}");
    paths.into_iter().map(|path| Page { text: fs::read_to_string(&path).unwrap(), path }).collect()
}

impl Page {
    pub fn read(path: &str) -> Page {
        Page { path: repository(path), text: text_of(path) }
    }

    pub fn tables(&self) -> Vec<Table> {
        let (mut tables, mut heading): (Vec<Table>, _) = (Vec::new(), String::new());
        let mut inside = false;
        for line in self.text.lines() {
            if let Some(title) = line.strip_prefix("## ") {
                title.clone_into(&mut heading);
            }
            if !line.starts_with('|') {
                inside = false;
                continue;
            }
            let cells = cells(line);
            match tables.last_mut().filter(|_| inside) {
                None => tables.push(Table { heading: heading.clone(), columns: cells, rows: Vec::new() }),
                Some(_) if line.starts_with("|--") => {}
                Some(table) => {
                    assert_eq!(cells.len(), table.columns.len(), "{}: {line}", self.path.display());
                    table.rows.push(cells);
                }
            }
            inside = true;
        }
        tables
    }

    /// The tables with this first column.
    pub fn tables_of(&self, column: &str) -> Vec<Table> {
        self.tables().into_iter().filter(|table| table.columns[0] == column).collect()
    }

    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        for (line, text) in (1..).zip(self.text.lines()) {
            match (text.trim_start().strip_prefix("```"), open.take()) {
                (Some(_), Some(block)) => blocks.push(block),
                (Some(kind), None) => open = Some(Block { kind: kind.to_owned(), line, text: String::new() }),
                (None, Some(mut block)) => {
                    block.text += text;
                    block.text += "\n";
                    open = Some(block);
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block has no end", self.path.display());
        blocks
    }

    pub fn place(&self, block: &Block) -> String {
        format!("{}:{}", self.path.display(), block.line)
    }

    /// The targets of links that lead to files.
    pub fn links(&self) -> Vec<String> {
        let targets = self.text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
    }
}

/// The cells of a row.
fn cells(line: &str) -> Vec<String> {
    let line = line.trim();
    let inner = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')).unwrap_or_else(|| panic!("{line}"));
    inner.split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// The words in backticks.
pub fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// All words in backticks of the first column of these tables.
pub fn first_words(tables: &[Table]) -> BTreeSet<String> {
    tables.iter().flat_map(|table| &table.rows).flat_map(|row| quoted(&row[0])).map(str::to_owned).collect()
}

/// Every link to a file leads to one.
#[test]
fn every_link_leads_somewhere() {
    let mut links = 0;
    for page in pages() {
        for link in page.links() {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { page.path.clone() } else { page.path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} is not there", page.path.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let titles = text.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
                let found = titles.into_iter().any(|title| anchor_of(title) == anchor);
                assert!(found, "{}: {link}: no such heading", page.path.display());
            }
            links += 1;
        }
    }
    assert!(links >= 20, "found only {links}");
}

/// The anchor of a heading, as hosting sites make it.
fn anchor_of(title: &str) -> String {
    let kept = title.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}
