//! The disk: files read below a root, and files replaced whole: written beside their place, synced, and renamed into it.
//!
//! A link below a root leads where it leads on the node. The kernel would follow an absolute one out of the root, into the files of
//! the container.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use super::error::SetupError;

/// As many links on one way as the kernel follows.
const MAX_LINKS: u32 = 40;
const NOTHING: &str = "/dev/null";

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
                drop_staged(&staged);
                return Err(error);
            }
        }
    }
    for (at, (replacement, file)) in replacements.iter().zip(&staged).enumerate() {
        if let Err(error) = put_unless_changed(replacement, file) {
            drop_staged(&staged[at..]);
            for (done, was) in replacements[..at].iter().zip(&staged) {
                restore(done, was);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// A file that waits beside its place, and how the one in the place is kept.
struct Staged {
    /// `None`: the one in the place is removed.
    beside: Option<PathBuf>,
    mode: u32,
    owner: Option<(u32, u32)>,
}

fn drop_staged(staged: &[Staged]) {
    staged.iter().filter_map(|file| file.beside.as_ref()).for_each(|file| drop(fs::remove_file(file)));
}

/// Fails where somebody else has written the file since it was read.
fn put_unless_changed(replacement: &Replacement, file: &Staged) -> Result<(), SetupError> {
    let path = &replacement.path;
    if read(path)? != replacement.before {
        return Err(SetupError::Refused(format!("{} is being changed by others: run setup again", path.display())));
    }
    put(file.beside.as_deref(), path).map_err(SetupError::io(path))
}

/// Writes the file beside its place; nothing for one that is removed.
fn stage(replacement: &Replacement) -> Result<Staged, SetupError> {
    let path = &replacement.path;
    let found = fs::symlink_metadata(path).ok();
    if found.as_ref().is_some_and(fs::Metadata::is_symlink) {
        let cure = "make it a file, or change what it leads to by hand";
        return Err(SetupError::Refused(format!(
            "{} is a link, and a rename would replace it: {cure}",
            path.display()
        )));
    }
    let mode = found.as_ref().map_or(0o644, |found| found.permissions().mode() & 0o7777);
    let owner = found.map(|found| (found.uid(), found.gid()));
    let beside = replacement.after.as_ref().map(|text| write_beside(path, text, mode, owner));
    Ok(Staged { beside: beside.transpose().map_err(SetupError::io(path))?, mode, owner })
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
fn restore(Replacement { path, before, .. }: &Replacement, was: &Staged) {
    let beside = before.as_ref().map(|text| write_beside(path, text, was.mode, was.owner));
    if let Ok(beside) = beside.transpose() {
        let _ = put(beside.as_deref(), path);
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

/// A path of the node below the root, with all links followed as on the node: an absolute one begins at the root.
/// Fails when there are too many links, or one leads to what is not there below the root, such as a folder that is not mounted.
pub fn below(root: &Path, path: &Path) -> Result<PathBuf, SetupError> {
    resolve(root, path, true)
}

/// The same for a file that is replaced: the last name is not followed.
pub fn place_below(root: &Path, path: &Path) -> Result<PathBuf, SetupError> {
    resolve(root, path, false)
}

fn resolve(root: &Path, path: &Path, follows_last: bool) -> Result<PathBuf, SetupError> {
    if root == Path::new("/") {
        return Ok(path.to_owned());
    }
    let at = follow(root, PathBuf::new(), path, follows_last, &mut 0)?;
    Ok(if at == Path::new(NOTHING) { at } else { root.join(at) })
}

/// The way from a folder below the root along a path, without a link in it.
fn follow(
    root: &Path,
    mut at: PathBuf,
    path: &Path,
    follows_last: bool,
    links: &mut u32,
) -> Result<PathBuf, SetupError> {
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        match name {
            Component::Normal(name) => at.push(name),
            Component::ParentDir => drop(at.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
        let is_followed = follows_last || names.peek().is_some();
        let Some(target) = fs::read_link(root.join(&at)).ok().filter(|_| is_followed) else { continue };
        *links += 1;
        if *links > MAX_LINKS {
            return Err(SetupError::io(path)(rustix::io::Errno::LOOP.into()));
        }
        // Of systemd's files, those that lead there are to count as empty.
        if target == Path::new(NOTHING) {
            return Ok(target);
        }
        let link = at.clone();
        at.pop();
        let from = if target.is_absolute() { PathBuf::new() } else { at };
        at = follow(root, from, &target, true, links)?;
        if !root.join(&at).exists() {
            let (link, target, root) = (link.display(), target.display(), root.display());
            return Err(SetupError::Refused(format!(
                "/{link} is a link to {target}, which is not there below {root}: mount it there as well, or run this command on the node itself"
            )));
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Each link leads where it leads on the node, and never out of the root.
    #[test]
    fn links_below_a_root_are_followed_below_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("data/certs.d")).unwrap();
        fs::create_dir_all(root.join("etc/containerd")).unwrap();
        for (link, target) in [
            ("absolute", "/data/certs.d"),
            ("relative", "../../data/certs.d"),
            ("climbing", "../../../../../../data/certs.d"),
            ("twice", "/etc/containerd/absolute"),
            ("masked", "/dev/null"),
            ("dangling", "/nowhere/certs.d"),
            ("round", "/etc/containerd/round"),
        ] {
            symlink(target, root.join("etc/containerd").join(link)).unwrap();
        }
        let resolved = |name: &str| below(root, &Path::new("/etc/containerd").join(name));
        for link in ["absolute", "relative", "climbing", "twice"] {
            let file = resolved(&format!("{link}/h/hosts.toml")).unwrap();
            assert_eq!(file, root.join("data/certs.d/h/hosts.toml"), "{link}");
            assert_eq!(resolved(link).unwrap(), root.join("data/certs.d"), "{link}");
            let place = place_below(root, &Path::new("/etc/containerd").join(link)).unwrap();
            assert_eq!(place, root.join("etc/containerd").join(link));
        }
        assert_eq!(resolved("masked").unwrap(), Path::new("/dev/null"));
        let refused = |name: &str| resolved(name).unwrap_err().to_string();
        assert!(refused("dangling/h").contains("/etc/containerd/dangling is a link to /nowhere/certs.d"));
        assert!(refused("round").contains("symbolic links"), "{}", refused("round"));
        assert_eq!(below(Path::new("/"), Path::new("/etc/x")).unwrap(), Path::new("/etc/x"));
    }

    /// The second file cannot take its place: the first is as it was before, whether it was there or not, and nothing lies beside.
    #[test]
    fn files_are_put_back_when_a_later_one_cannot_be_written() {
        for before in [Some("old"), None] {
            let folder = tempfile::tempdir().unwrap();
            let (first, second) = (folder.path().join("first"), folder.path().join("second"));
            if let Some(text) = before {
                fs::write(&first, text).unwrap();
            }
            // A rename cannot replace a folder by a file.
            fs::create_dir(&second).unwrap();
            let new = |path: &Path, before: Option<&str>| Replacement {
                path: path.to_owned(),
                before: before.map(str::to_owned),
                after: Some("new".to_owned()),
            };
            assert!(write_all(&[new(&first, before), new(&second, None)]).is_err());
            assert_eq!(read(&first).unwrap().as_deref(), before);
            let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
            let mut left: Vec<_> = left.collect();
            left.sort();
            assert_eq!(left, before.map_or(vec!["second"], |_| vec!["first", "second"]));
        }
    }

    /// Others write the second file in the same moment: theirs stays, and the first comes back as it was, with its mode.
    #[test]
    fn a_file_that_others_are_writing_is_left_to_them() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        fs::write(&first, "old").unwrap();
        fs::set_permissions(&first, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&second, "theirs").unwrap();
        let change = |path: &Path, after: Option<&str>| Replacement {
            path: path.to_owned(),
            before: Some("old".to_owned()),
            after: after.map(str::to_owned),
        };
        let refused = write_all(&[change(&first, None), change(&second, Some("ours"))]).unwrap_err();
        assert!(refused.to_string().contains("second is being changed by others"), "{refused}");
        assert_eq!(read(&first).unwrap().as_deref(), Some("old"));
        assert_eq!(fs::metadata(&first).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&second).unwrap().as_deref(), Some("theirs"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
