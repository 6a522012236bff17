//! The files of the node, read below a root, as they are without what `setup` wrote into them earlier.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::disk::{below, is_absent, read};
use super::error::SetupError;
use super::originals::Originals;

/// Read access to the node's files.
#[derive(Clone, Copy)]
pub struct Files<'a> {
    root: &'a Path,
    originals: Option<&'a Originals>,
}

impl<'a> Files<'a> {
    pub(super) fn new(root: &'a Path, originals: &'a Originals) -> Self {
        Files { root, originals: Some(originals) }
    }

    /// The files as they are.
    pub fn as_they_are(root: &'a Path) -> Self {
        Files { root, originals: None }
    }

    /// The text of a file; `None` if it is not there.
    /// Fails when it cannot be read, or is not text.
    pub fn read(&self, path: &Path) -> Result<Option<String>, SetupError> {
        let current = read(&below(self.root, path)?)?;
        match self.originals {
            Some(originals) => originals.without_ours(path, current),
            None => Ok(current),
        }
    }

    /// Fails when a link on the way leads to what is not there below the root.
    pub fn is_there(&self, path: &Path) -> Result<bool, SetupError> {
        Ok(below(self.root, path)?.exists())
    }

    /// When a file last changed; `None` if it is not there.
    pub fn changed(&self, path: &Path) -> Option<SystemTime> {
        std::fs::metadata(below(self.root, path).ok()?).ok()?.modified().ok()
    }

    /// The files of a folder that end so, in the order of their names; none if it is not there.
    /// Fails when it cannot be read.
    pub fn list(&self, folder: &Path, ending: &str) -> Result<Vec<PathBuf>, SetupError> {
        let at = below(self.root, folder)?;
        let entries = match std::fs::read_dir(&at) {
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            entries => entries.map_err(SetupError::io(&at))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(SetupError::io(&at))?.file_name();
            if name.to_str().is_some_and(|name| name.ends_with(ending)) {
                found.push(folder.join(name));
            }
        }
        found.sort();
        Ok(found)
    }
}
