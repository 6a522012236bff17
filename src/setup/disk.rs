//! The disk: files read below a root, and files replaced whole: written beside their place, synced, and renamed into it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::SetupError;

/// One file of several that change together.
pub struct Replacement {
    pub path: PathBuf,
    pub before: Option<String>,
    /// `None`: it is removed.
    pub after: Option<String>,
}

/// Replaces all of these files, or leaves all as they were.
/// Fails when one cannot be written.
pub fn write_all(replacements: &[Replacement]) -> Result<(), SetupError> {
    let mut staged = Vec::new();
    for replacement in replacements {
        match stage(replacement) {
            Ok(file) => staged.push(file),
            Err(error) => {
                staged.into_iter().flatten().for_each(|file| drop(fs::remove_file(file)));
                return Err(error);
            }
        }
    }
    for (at, (replacement, file)) in replacements.iter().zip(&staged).enumerate() {
        if let Err(error) = put(file.as_deref(), &replacement.path) {
            staged[at..].iter().flatten().for_each(|file| drop(fs::remove_file(file)));
            for done in &replacements[..at] {
                restore(done);
            }
            return Err(SetupError::io(&replacement.path)(error));
        }
    }
    Ok(())
}

/// Writes the file beside its place; nothing for one that is removed.
fn stage(replacement: &Replacement) -> Result<Option<PathBuf>, SetupError> {
    let path = &replacement.path;
    let found = fs::symlink_metadata(path).ok();
    if found.as_ref().is_some_and(fs::Metadata::is_symlink) {
        let cure = "make it a file, or change what it leads to by hand";
        return Err(SetupError::Refused(format!(
            "{} is a link, and a rename would replace it: {cure}",
            path.display()
        )));
    }
    let Some(text) = &replacement.after else { return Ok(None) };
    let mode = found.as_ref().map_or(0o644, |found| found.permissions().mode() & 0o7777);
    let owner = found.map(|found| (found.uid(), found.gid()));
    write_beside(path, text, mode, owner).map(Some).map_err(SetupError::io(path))
}

fn write_beside(path: &Path, text: &str, mode: u32, owner: Option<(u32, u32)>) -> io::Result<PathBuf> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    fs::create_dir_all(folder)?;
    let beside = folder.join(format!(".{}.roadstead", name.to_string_lossy()));
    // One that a crash left.
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| {
        // In a container without CAP_CHOWN only another owner's file cannot be kept as it is.
        let fresh = file.metadata()?;
        if let Some((uid, gid)) = owner.filter(|owner| *owner != (fresh.uid(), fresh.gid())) {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    });
    if let Err(error) = written {
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    Ok(beside)
}

/// Puts the staged file in its place, or removes what is there.
fn put(staged: Option<&Path>, path: &Path) -> io::Result<()> {
    match staged {
        Some(staged) => fs::rename(staged, path)?,
        None => fs::remove_file(path)?,
    }
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Takes one replacement back, as far as it goes: the disk has just failed.
fn restore(done: &Replacement) {
    let back = Replacement { path: done.path.clone(), before: None, after: done.before.clone() };
    if let Ok(staged) = stage(&back) {
        let _ = put(staged.as_deref(), &back.path);
    }
}

/// Replaces one file, with this mode.
/// Fails when it cannot be written.
pub fn replace(path: &Path, text: &str, mode: u32) -> Result<(), SetupError> {
    let staged = write_beside(path, text, mode, None).map_err(SetupError::io(path))?;
    put(Some(&staged), path).map_err(SetupError::io(path))
}

/// The text of a file; `None` if it is not there.
pub fn read(path: &Path) -> Result<Option<String>, SetupError> {
    match std::fs::read_to_string(path) {
        Err(error) if is_absent(&error) => Ok(None),
        text => text.map(Some).map_err(SetupError::io(path)),
    }
}

pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A path of the node below the root.
pub fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
