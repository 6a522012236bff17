//! Why `setup` changed nothing, in words for the operator.

use std::path::{Path, PathBuf};

use crate::config::LoadError;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: std::io::Error },
    /// A sentence that says what is wrong, and what to do.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Config(#[from] LoadError),
}

impl SetupError {
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> SetupError + '_ {
        move |cause| SetupError::Io { path: path.to_owned(), cause }
    }
}
