//! What the admin endpoints show of the config: when it was taken, and what was wrong with one that was not.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::config::changes::Change;

/// The config that holds, and the last one that was refused.
#[derive(Debug)]
pub struct ConfigState {
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    taken: Instant,
    reloads: u64,
    changes: Vec<String>,
    refused: Option<(Instant, String)>,
}

/// In `/status`.
#[derive(Debug, Serialize)]
pub struct ConfigPicture {
    file: String,
    /// Since the config that holds was taken.
    age_seconds: u64,
    /// How often another one was taken since the start.
    reloads: u64,
    /// What the last reload changed.
    changes: Vec<String>,
    /// Why the file as it is now does not hold; absent when it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem_age_seconds: Option<u64>,
}

impl ConfigState {
    /// The config of this file was taken now.
    #[must_use]
    pub fn new(file: &Path) -> ConfigState {
        let state = State { taken: Instant::now(), reloads: 0, changes: Vec::new(), refused: None };
        ConfigState { file: file.to_owned(), state: Mutex::new(state) }
    }

    /// Another one was taken.
    pub fn taken(&self, changes: &[Change]) {
        let mut state = self.lock();
        state.taken = Instant::now();
        state.reloads += 1;
        state.changes = changes.iter().map(ToString::to_string).collect();
        state.refused = None;
    }

    /// Another one was refused.
    pub fn refused(&self, problem: String) {
        self.lock().refused = Some((Instant::now(), problem));
    }

    /// As it is now.
    #[must_use]
    pub fn picture(&self) -> ConfigPicture {
        let state = self.lock();
        ConfigPicture {
            file: self.file.display().to_string(),
            age_seconds: state.taken.elapsed().as_secs(),
            reloads: state.reloads,
            changes: state.changes.clone(),
            problem: state.refused.as_ref().map(|(_, problem)| problem.clone()),
            problem_age_seconds: state.refused.as_ref().map(|(at, _)| at.elapsed().as_secs()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
