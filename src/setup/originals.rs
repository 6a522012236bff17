//! The files as they were before `setup` wrote them: one file of state for each puller, and the way back.
//!
//! The original of a file is the file as it is now without what `setup` wrote. Where others changed it since, their lines stay: the
//! change from what was written to the original is merged into the file. The state is written before the files and
//! names both versions, so a crash in between loses neither.
//!
//! Two pullers may have written one file: `setup dfdaemon` writes containerd's. The one that wrote last is taken back first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::aim::Plan;
use super::disk::{Replacement, below, place_below, read, replace, write_all};
use super::error::SetupError;

/// The pullers for which something may be kept.
const PULLERS: [&str; 4] = ["containerd", "docker", "podman", "dfdaemon"];

/// One file that changes.
#[derive(Debug, PartialEq, Eq)]
pub struct FileChange {
    /// The path on the node, without the root.
    pub path: PathBuf,
    pub before: Option<String>,
    /// `None`: it is removed.
    pub after: Option<String>,
    /// How it was without `setup`.
    pub(super) original: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Kept {
    files: BTreeMap<PathBuf, Entry>,
    /// Folders that were not there, the innermost last.
    folders: BTreeSet<PathBuf>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    original: Option<String>,
    /// The text that `setup` wrote; two texts if it ended in the middle.
    written: Vec<String>,
}

impl Entry {
    /// The text without what was written into it.
    /// Fails where others changed the same lines.
    fn taken_out_of(&self, text: &str) -> Result<Option<String>, SameLines> {
        if self.written.iter().any(|written| written == text) {
            return Ok(self.original.clone());
        }
        let (Some(original), Some(written)) = (&self.original, self.written.last()) else { return Err(SameLines) };
        if text == original {
            Ok(Some(text.to_owned()))
        } else {
            diffy::merge(written, text, original).map(Some).map_err(|_| SameLines)
        }
    }
}

/// Others changed the lines that `setup` wrote.
struct SameLines;

pub struct Originals {
    file: PathBuf,
    kept: Kept,
    /// The files that are kept for the other pullers.
    others: Vec<(&'static str, Kept)>,
}

impl Originals {
    /// Reads what is kept for a puller.
    /// Fails when it cannot be read.
    pub fn open(folder: &Path, puller: &str) -> Result<Originals, SetupError> {
        let file = file_of(folder, puller);
        let kept = kept_in(&file)?;
        let others = PULLERS.into_iter().filter(|other| *other != puller);
        let others = others.map(|other| Ok((other, kept_in(&file_of(folder, other))?)));
        Ok(Originals { others: others.collect::<Result<_, SetupError>>()?, file, kept })
    }

    /// Whether nothing is kept for it.
    pub fn is_empty(&self) -> bool {
        self.kept.files.is_empty()
    }

    /// A file without what `setup` wrote into it. A text that lies below another puller's stays.
    /// Fails when others changed the same lines since.
    pub fn without_ours(&self, path: &Path, current: Option<String>) -> Result<Option<String>, SetupError> {
        let (Some(entry), Some(text)) = (self.kept.files.get(path), &current) else { return Ok(current) };
        if self.covered_by(path, text).is_some() {
            return Ok(current);
        }
        let cure = if entry.original.is_some() { "put the lines of its original back" } else { "remove the file" };
        entry.taken_out_of(text).map_err(|SameLines| self.changed_since(path, cure))
    }

    /// The puller whose `setup` wrote this file after ours.
    fn covered_by(&self, path: &Path, text: &str) -> Option<&'static str> {
        let ours = self.kept.files.get(path)?;
        if ours.written.iter().chain(&ours.original).any(|known| known == text) {
            return None;
        }
        let covers = |entry: &Entry| {
            let took_ours = entry.original.as_ref().is_some_and(|original| ours.written.contains(original));
            let is_last = entry.written.iter().any(|written| written == text);
            is_last || took_ours || ours.taken_out_of(text).is_err() && entry.taken_out_of(text).is_ok()
        };
        self.others.iter().find_map(|(puller, kept)| covers(kept.files.get(path)?).then_some(*puller))
    }

    fn changed_since(&self, path: &Path, cure: &str) -> SetupError {
        let (path, state) = (path.display(), self.file.display());
        SetupError::Refused(format!(
            "{path} was changed since `setup` wrote it, in the same lines: {cure} by hand, then remove {path} from {state}, \
             which holds the original"
        ))
    }

    /// The changes after which the files are as planned, and all others that `setup` once wrote as they were.
    /// Fails when a file cannot be read, or was changed by others in the same lines.
    pub fn changes(&self, root: &Path, plan: &Plan) -> Result<Vec<FileChange>, SetupError> {
        let planned: BTreeMap<&Path, &str> =
            plan.files.iter().map(|wanted| (wanted.path.as_path(), wanted.text.as_str())).collect();
        let paths: BTreeSet<&Path> =
            planned.keys().copied().chain(self.kept.files.keys().map(PathBuf::as_path)).collect();
        let mut changes = Vec::new();
        for path in paths {
            let before = read(&below(root, path)?)?;
            let original = self.without_ours(path, before.clone())?;
            let after = planned.get(path).map_or_else(|| original.clone(), |text| Some((*text).to_owned()));
            let covering = before.as_deref().and_then(|text| self.covered_by(path, text));
            if let Some(puller) = covering.filter(|_| after != before || !planned.contains_key(path)) {
                return Err(written_after(path, puller));
            }
            if after != before {
                changes.push(FileChange { path: path.to_owned(), before, after, original });
            }
        }
        Ok(changes)
    }

    /// Fails when another puller's `setup` wrote one of our files after us.
    pub fn lie_open(&self, root: &Path) -> Result<(), SetupError> {
        for path in self.kept.files.keys() {
            let text = read(&below(root, path)?)?;
            if let Some(puller) = text.and_then(|text| self.covered_by(path, &text)) {
                return Err(written_after(path, puller));
            }
        }
        Ok(())
    }

    /// Changes these files, all of them or none, and forgets the files that the plan leaves alone.
    /// Fails when one of them, or the state, cannot be written.
    pub fn apply(&mut self, root: &Path, changes: &[FileChange], plan: &Plan) -> Result<(), SetupError> {
        for change in changes {
            let entry = Entry { original: change.original.clone(), written: Vec::new() };
            let entry = self.kept.files.entry(change.path.clone()).or_insert(entry);
            entry.original.clone_from(&change.original);
            entry.written.extend(change.after.clone());
            for folder in change.path.ancestors().skip(1) {
                if !below(root, folder)?.exists() {
                    self.kept.folders.insert(folder.to_owned());
                }
            }
        }
        self.keep()?;
        let replacement = |change: &FileChange| {
            let path = place_below(root, &change.path)?;
            Ok(Replacement { path, before: change.before.clone(), after: change.after.clone() })
        };
        write_all(&changes.iter().map(replacement).collect::<Result<Vec<_>, SetupError>>()?)?;
        self.kept.files.retain(|path, _| plan.files.iter().any(|wanted| wanted.path == *path));
        for change in changes {
            if let (Some(entry), Some(after)) = (self.kept.files.get_mut(&change.path), &change.after) {
                entry.written = vec![after.clone()];
            }
        }
        if self.kept.files.is_empty() {
            for folder in std::mem::take(&mut self.kept.folders).iter().rev() {
                // One that others use by now stays.
                let _ = std::fs::remove_dir(below(root, folder)?);
            }
        }
        self.keep()
    }

    fn keep(&self) -> Result<(), SetupError> {
        if self.kept.files.is_empty() {
            return match std::fs::remove_file(&self.file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(SetupError::io(&self.file)(error)),
                _ => Ok(()),
            };
        }
        let text = serde_json::to_string_pretty(&self.kept).map_err(|error| SetupError::Refused(error.to_string()))?;
        // Originals may hold passwords.
        replace(&self.file, &text, 0o600)
    }
}

fn written_after(path: &Path, puller: &str) -> SetupError {
    SetupError::Refused(format!(
        "{} was written by `setup {puller}` after it: run `roadstead setup {puller} --undo` first, then this again",
        path.display()
    ))
}

fn file_of(folder: &Path, puller: &str) -> PathBuf {
    folder.join(format!("{puller}.json"))
}

fn kept_in(file: &Path) -> Result<Kept, SetupError> {
    let Some(text) = read(file)? else { return Ok(Kept::default()) };
    serde_json::from_str(&text).map_err(|error| {
        let cure = "it holds the original files: mend it, or remove it to take the files as they are for originals";
        SetupError::Refused(format!("{}: {error}; {cure}", file.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::aim::Wanted;
    use super::*;

    /// The state names the originals before the first file is written. So a process that ends in between leaves the way back.
    #[test]
    fn the_originals_are_kept_before_the_first_file_is_written() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| PathBuf::from("/etc").join(name);
        // The second file cannot be written: there is a folder.
        std::fs::create_dir_all(root.path().join("etc/second")).unwrap();
        std::fs::write(root.path().join("etc/first"), "old\n").unwrap();
        let wanted = |name: &str| Wanted { path: path(name), text: "new\n".to_owned() };
        let plan = Plan { files: vec![wanted("first"), wanted("second")], ..Plan::default() };
        let change = |name: &str, before: Option<&str>| FileChange {
            path: path(name),
            before: before.map(str::to_owned),
            after: Some("new\n".to_owned()),
            original: before.map(str::to_owned),
        };
        let state = root.path().join("state");
        let mut originals = Originals::open(&state, "containerd").unwrap();
        originals.apply(root.path(), &[change("first", Some("old\n")), change("second", None)], &plan).unwrap_err();
        let after = Originals::open(&state, "containerd").unwrap();
        for current in ["new\n", "old\n"] {
            let original = after.without_ours(&path("first"), Some(current.to_owned())).unwrap();
            assert_eq!(original.as_deref(), Some("old\n"), "the file stood at {current:?}");
        }
    }
}
