//! The files as they were before `setup` wrote them: one file of state for each puller, and the way back.
//!
//! The original of a file is the file as it is now without what `setup` wrote. Where others changed it since, their lines stay: the
//! change from what was written to the original is merged into the file. The state is written before the files and
//! names both versions, so a crash in between loses neither.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::aim::Plan;
use super::disk::{Replacement, below, read, replace, write_all};
use super::error::SetupError;

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

pub struct Originals {
    file: PathBuf,
    kept: Kept,
}

impl Originals {
    /// Reads what is kept for a puller.
    /// Fails when it cannot be read.
    pub fn open(folder: &Path, puller: &str) -> Result<Originals, SetupError> {
        let file = folder.join(format!("{puller}.json"));
        let kept = match read(&file)? {
            None => Kept::default(),
            Some(text) => serde_json::from_str(&text).map_err(|error| {
                let cure =
                    "it holds the original files: mend it, or remove it to take the files as they are for originals";
                SetupError::Refused(format!("{}: {error}; {cure}", file.display()))
            })?,
        };
        Ok(Originals { file, kept })
    }

    /// A file without what `setup` wrote into it.
    /// Fails when others changed the same lines since.
    pub fn without_ours(&self, path: &Path, current: Option<String>) -> Result<Option<String>, SetupError> {
        let (Some(entry), Some(text)) = (self.kept.files.get(path), &current) else { return Ok(current) };
        if entry.written.contains(text) {
            return Ok(entry.original.clone());
        }
        let (Some(original), Some(written)) = (&entry.original, entry.written.last()) else {
            return Err(self.changed_since(path, "remove the file"));
        };
        if text == original {
            return Ok(current);
        }
        let merged = diffy::merge(written, text, original);
        merged.map(Some).map_err(|_| self.changed_since(path, "put the lines of its original back"))
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
            let before = read(&below(root, path))?;
            let original = self.without_ours(path, before.clone())?;
            let after = planned.get(path).map_or_else(|| original.clone(), |text| Some((*text).to_owned()));
            if after != before {
                changes.push(FileChange { path: path.to_owned(), before, after, original });
            }
        }
        Ok(changes)
    }

    /// Changes these files, all of them or none, and forgets the files that the plan leaves alone.
    /// Fails when one of them, or the state, cannot be written.
    pub fn apply(&mut self, root: &Path, changes: &[FileChange], plan: &Plan) -> Result<(), SetupError> {
        for change in changes {
            let entry = Entry { original: change.original.clone(), written: Vec::new() };
            let entry = self.kept.files.entry(change.path.clone()).or_insert(entry);
            entry.original.clone_from(&change.original);
            entry.written.extend(change.after.clone());
            let missing = change.path.ancestors().skip(1).filter(|folder| !below(root, folder).exists());
            self.kept.folders.extend(missing.map(Path::to_owned));
        }
        self.keep()?;
        let replacement = |change: &FileChange| Replacement {
            path: below(root, &change.path),
            before: change.before.clone(),
            after: change.after.clone(),
        };
        write_all(&changes.iter().map(replacement).collect::<Vec<_>>())?;
        self.kept.files.retain(|path, _| plan.files.iter().any(|wanted| wanted.path == *path));
        for change in changes {
            if let (Some(entry), Some(after)) = (self.kept.files.get_mut(&change.path), &change.after) {
                entry.written = vec![after.clone()];
            }
        }
        if self.kept.files.is_empty() {
            for folder in std::mem::take(&mut self.kept.folders).iter().rev() {
                // One that others use by now stays.
                let _ = std::fs::remove_dir(below(root, folder));
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
