//! Reading the config again while it runs: whole, or not at all.
//!
//! On SIGHUP, and when the content of the file has changed and stayed so for a moment: a `ConfigMap` is swapped under its
//! name, which a watch on the file would lose, and an editor may be in the middle of writing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

use super::assembly::Assembly;
use super::elsewhere::Elsewhere;
use super::read_tls;
use crate::admin::config_state::ConfigState;
use crate::config::changes::{Change, between};
use crate::config::{Config, LoadError};
use crate::metrics::Metrics;
use crate::target::Origin;

/// How often the file is looked at. A change is taken when two looks in a row show the same.
const LOOK: Duration = Duration::from_secs(1);

/// What is done when the level of the log changes; told the new one.
pub type SetLevel = Box<dyn Fn(&str) + Send + Sync>;

/// Reads the config again.
pub(super) struct Reloader {
    path: PathBuf,
    /// What the file held when it was read last, taken or not.
    text: String,
    config: Config,
    assembly: Assembly,
    elsewhere: Arc<Elsewhere>,
    metrics: Arc<Metrics>,
    state: Arc<ConfigState>,
    set_level: SetLevel,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Why a config was not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{0}")]
    Tls(#[from] super::StartError),
    #[error("{}: takes a restart; nothing was changed", join(.0))]
    NeedsRestart(Vec<Change>),
}

fn join(changes: &[Change]) -> String {
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Reloader {
    pub fn new(
        path: &Path,
        config: Config,
        assembly: Assembly,
        elsewhere: Arc<Elsewhere>,
        metrics: Arc<Metrics>,
        state: Arc<ConfigState>,
        set_level: SetLevel,
    ) -> Reloader {
        // It may hold something else already than when this config was read.
        let text = fs::read_to_string(path).ok();
        let text = text.filter(|text| Config::parse(text).as_ref() == Ok(&config)).unwrap_or_default();
        Reloader { path: path.to_owned(), text, config, assembly, elsewhere, metrics, state, set_level }
    }

    /// The config that holds.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Completes when the file holds something else than what was read last, and has for a moment. One that cannot be
    /// read holds nothing new: it may be in the middle of a swap.
    pub async fn changed(&self) {
        let mut before = None;
        loop {
            sleep(LOOK).await;
            let Ok(text) = fs::read_to_string(&self.path) else { continue };
            if text != self.text && before.as_ref() == Some(&text) {
                return;
            }
            before = Some(text);
        }
    }

    /// Reads the config again, and lets it hold if it is whole.
    pub fn reload(&mut self, why: &str) {
        if let Ok(text) = fs::read_to_string(&self.path) {
            self.text = text;
        }
        match self.try_reload() {
            Ok(changes) => {
                tracing::info!(file = %self.path.display(), why, changes = changes.len(), "the config was read again");
                for change in &changes {
                    tracing::info!(key = change.key, from = change.from, to = change.to, "changed");
                }
                self.metrics.reloaded(true, SystemTime::now());
                self.state.taken(&changes);
                // Last, so that the old level says what has changed.
                if changes.iter().any(|change| change.key == "log.level") {
                    (self.set_level)(&self.config.log.level);
                }
            }
            Err(refused) => {
                tracing::error!(file = %self.path.display(), why, "the config was not taken, the old one holds: {refused}");
                self.metrics.reloaded(false, SystemTime::now());
                self.state.refused(refused.to_string());
            }
        }
    }

    fn try_reload(&mut self) -> Result<Vec<Change>, Refused> {
        let config = Config::load(&self.path)?;
        let changes = between(&self.config, &config);
        let restart: Vec<Change> = changes.iter().filter(|change| change.needs_restart()).cloned().collect();
        if !restart.is_empty() {
            return Err(Refused::NeedsRestart(restart));
        }
        let tls = read_tls(&config)?;
        for warning in &config.warnings {
            tracing::warn!(file = %self.path.display(), "{warning}");
        }
        let before = self.elsewhere.proxy().settings();
        let settings = self.assembly.settings(&config, tls, Some((&self.config, &before)));
        self.elsewhere.replace(settings);
        for upstream in before.routes.registries() {
            if !config.registries.iter().any(|registry| registry.name == upstream.name) {
                self.metrics.forget(&upstream.name, &upstream.classes);
            }
        }
        for (name, mirror) in &before.mirrors {
            let nodes = self.elsewhere.proxy().settings().mirrors.get(name).map(|mirror| mirror.cluster().clone());
            let is_gone = |origin: &&Origin| !nodes.as_ref().is_some_and(|nodes| nodes.origins().contains(origin));
            let gone = mirror.cluster().origins().iter().filter(is_gone);
            gone.for_each(|origin| self.metrics.forget_member(name, &origin.to_string()));
        }
        self.config = config;
        Ok(changes)
    }
}
