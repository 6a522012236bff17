//! The state of the config for the admin endpoints: when it was taken, and the problem of a refused one.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;

use crate::config::Config;
use crate::config::changes::Change;
use crate::control::config_facts::ConfigFacts;

/// The config that holds, and the last one that was refused.
#[derive(Debug)]
pub struct ConfigState {
    file: PathBuf,
    state: Mutex<Readings>,
}

#[derive(Debug)]
struct Readings {
    taken: SystemTime,
    reloads: u64,
    changes: Vec<String>,
    refused: Option<(SystemTime, String)>,
    facts: ConfigFacts,
}

#[derive(Debug, Serialize)]
pub struct ConfigPicture {
    file: String,
    /// Since the config that holds was taken.
    age_seconds: u64,
    /// How often another one was taken since the start.
    reloads: u64,
    /// The changes of the last reload.
    changes: Vec<String>,
    /// The problem of the current file; absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem_age_seconds: Option<u64>,
}

impl ConfigState {
    pub fn new(file: &Path, config: &Config) -> ConfigState {
        let state =
            Readings { taken: SystemTime::now(), reloads: 0, changes: Vec::new(), refused: None, facts: config.into() };
        ConfigState { file: file.to_owned(), state: Mutex::new(state) }
    }

    pub fn taken(&self, changes: &[Change], config: &Config) {
        let mut state = self.state.lock();
        state.facts = config.into();
        state.taken = SystemTime::now();
        state.reloads += 1;
        state.changes = changes.iter().map(ToString::to_string).collect();
        state.refused = None;
    }

    pub fn refused(&self, problem: String) {
        self.state.lock().refused = Some((SystemTime::now(), problem));
    }

    pub fn taken_at(&self) -> SystemTime {
        self.state.lock().taken
    }

    pub fn facts(&self) -> ConfigFacts {
        self.state.lock().facts.clone()
    }

    /// Whether the file as it was read last is the config that holds.
    pub fn holds(&self) -> bool {
        self.state.lock().refused.is_none()
    }

    pub fn picture(&self) -> ConfigPicture {
        let state = self.state.lock();
        ConfigPicture {
            file: self.file.display().to_string(),
            age_seconds: age(state.taken),
            reloads: state.reloads,
            changes: state.changes.clone(),
            problem: state.refused.as_ref().map(|(_, problem)| problem.clone()),
            problem_age_seconds: state.refused.as_ref().map(|(at, _)| age(*at)),
        }
    }
}

fn age(since: SystemTime) -> u64 {
    since.elapsed().unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_config_leaves_the_time_of_the_one_that_holds() {
        let config = Config::default();
        let state = ConfigState::new(Path::new("sidecar.toml"), &config);
        let taken = state.taken_at();
        assert!(state.holds());
        state.refused("listen.proxy: is required".to_owned());
        assert_eq!((state.holds(), state.taken_at()), (false, taken));
        state.taken(&[], &config);
        assert!(state.holds() && state.taken_at() >= taken);
    }
}
