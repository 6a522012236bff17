//! Reading the config again while it runs: whole, or not at all.
//!
//! On SIGHUP, and when the content of the file, or of a TLS file that it names, has changed and stayed so for a moment: a
//! `ConfigMap` is swapped under its name, which a watch on the file would lose, and an editor may be in the middle of
//! writing. A file that is away, or is no text, is a change as well, and reported like any config that is refused. Another thread
//! reads: a mount that hangs would hold all requests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::assembly::{Assembly, claimed_hosts};
use super::error::StartError;
use super::registry_tls::{ReadTls, read_tls};
use super::takeover::reservations::Reservations;
use crate::admin::config_state::ConfigState;
use crate::config::Config;
use crate::config::changes::{Change, between};
use crate::proxy::route::Routes;
use crate::target::{HostPattern, Target};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The looks in a row that must show the same before a change is taken.
const LOOKS: u32 = 2;
/// The same where a file is away: it may be in the middle of a swap.
const LOOKS_WITHOUT: u32 = 5;

/// Called with the new level when the level of the log changes.
pub type SetLevel = Box<dyn Fn(&str) + Send + Sync>;

pub(super) struct Reloader {
    path: PathBuf,
    /// The content of the files when they were last read, accepted or not; `None` if unknown.
    read: Option<FileDigests>,
    /// The TLS files of the config that was read last, taken or not.
    tls_files: Vec<PathBuf>,
    config: Config,
    assembly: Assembly,
    reservations: Arc<Reservations>,
    state: Arc<ConfigState>,
    set_level: SetLevel,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Reloader {
    pub fn new(
        path: &Path,
        config: Config,
        assembly: Assembly,
        reservations: Arc<Reservations>,
        state: Arc<ConfigState>,
        set_level: SetLevel,
    ) -> Reloader {
        let tls_files = tls_files(&config);
        let held = digests(path, &tls_files);
        // It may hold something else already than when this config was read.
        let same = Config::load(path).is_ok_and(|again| again == config);
        let (path, read) = (path.to_owned(), same.then_some(held));
        Reloader { path, read, tls_files, config, assembly, reservations, state, set_level }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Completes when the files have changed since they were read last, and have stayed the same for a moment.
    pub async fn changed(&self) {
        let (mut before, mut looks) = (None, 0);
        loop {
            sleep(LOOK).await;
            let (path, tls_files) = (self.path.clone(), self.tls_files.clone());
            let held = spawn_blocking(move || digests(&path, &tls_files)).await.ok();
            looks = if held == before { looks + 1 } else { 1 };
            let are_all_there = held.iter().flatten().all(Option::is_some);
            let enough = if are_all_there { LOOKS } else { LOOKS_WITHOUT };
            if held != self.read && looks >= enough {
                return;
            }
            before = held;
        }
    }

    /// Reads the config again, and puts it in force if it has no problem. The number of changes, or why it was refused.
    pub async fn reload(&mut self, why: &str) -> Result<usize, String> {
        let (path, tls_files) = (self.path.clone(), self.tls_files.clone());
        let read = spawn_blocking(move || ReadFiles::read(&path, tls_files)).await;
        match read.map_err(|error| error.to_string()).and_then(|read| self.replace(read)) {
            Ok(changes) => {
                // Before the log: a reader of the log finds it done.
                self.state.taken(&changes, &self.config);
                tracing::info!(file = %self.path.display(), why, changes = changes.len(), "the config was read again");
                for change in &changes {
                    tracing::info!(key = change.key, from = change.from, to = change.to, "changed");
                }
                // Last, so that the old level says what has changed.
                if changes.iter().any(|change| change.key == "log.level") {
                    (self.set_level)(self.config.log.level);
                }
                Ok(changes.len())
            }
            Err(refused) => {
                self.state.refused(refused.clone());
                tracing::error!(file = %self.path.display(), why, "the config was refused, the old one stays in force: {refused}");
                Err(refused)
            }
        }
    }

    fn replace(&mut self, read: ReadFiles) -> Result<Vec<Change>, String> {
        (self.read, self.tls_files) = (Some(read.digests), read.tls_files);
        let (tls, config) = read.config?;
        let changes = between(&self.config, &config);
        let restart = changes.iter().filter(|change| change.needs_restart());
        let restart: Vec<String> = restart.map(ToString::to_string).collect();
        if !restart.is_empty() {
            return Err(format!("{}: needs a restart; nothing was changed", restart.join("; ")));
        }
        let moved = moved_hosts(&config, &self.reservations.proxy().settings().routes);
        if !moved.is_empty() {
            return Err(format!("{}; nothing was changed", moved.join("; ")));
        }
        let tls = tls.map_err(|error| error.to_string())?;
        for warning in &config.warnings {
            tracing::warn!(file = %self.path.display(), "{warning}");
        }
        let before = self.reservations.proxy().settings();
        let settings = self.assembly.settings(&config, tls, Some((&self.config, &before)));
        self.reservations.replace(settings);
        self.config = config;
        Ok(changes)
    }
}

/// The config and the files that it names, as they were read.
struct ReadFiles {
    digests: FileDigests,
    /// Those of the config, or of the one before where it has problems.
    tls_files: Vec<PathBuf>,
    config: Result<(Result<ReadTls, StartError>, Config), String>,
}

impl ReadFiles {
    fn read(path: &Path, before: Vec<PathBuf>) -> ReadFiles {
        // Looked at before it is read, so that a change in between is seen by the next look.
        let mut digests = digests(path, &[]);
        let loaded = Config::load(path);
        let tls_files = loaded.as_ref().map_or(before, tls_files);
        digests.extend(tls_files.iter().map(|file| digest_of(file)));
        let config = loaded.map(|config| (read_tls(&config), config)).map_err(|error| error.to_string());
        ReadFiles { digests, tls_files, config }
    }
}

/// The hosts to which connections may stand that count somewhere else: at the registry that has the host until now, or
/// among other hosts. Each with what to do.
fn moved_hosts(config: &Config, routes: &Routes) -> Vec<String> {
    let open = routes.other_hosts().gate.look(|core, _| core.targets());
    let mut moved = Vec::new();
    for registry in &config.registries {
        let had = routes.claim(&registry.name).map_or(&[][..], |claim| &claim.hosts);
        for host in claimed_hosts(registry).iter().filter(|host| !had.contains(host)) {
            let key = format!("registries.{}.hosts: {host}", registry.name);
            let owner = routes.claims().iter().find(|claim| {
                claim.upstream.name != registry.name && claim.hosts.iter().any(|theirs| takes_from(host, theirs))
            });
            if let Some(owner) = owner {
                moved.push(format!("{key} belongs to registry {}: moving it needs a restart", owner.upstream.name));
            } else if let Some(target) = open.keys().find(|target| leads_to(host, target)) {
                moved.push(format!(
                    "{key} meets {target}, to which connections are open among other hosts: \
                     reload when they have ended, or restart"
                ));
            }
        }
    }
    moved
}

/// Whether a target that was reached by `theirs` is reached by `host` now. A wider pattern takes nothing.
fn takes_from(host: &HostPattern, theirs: &HostPattern) -> bool {
    host.meets(theirs) && host.specificity() >= theirs.specificity()
}

fn leads_to(host: &HostPattern, target: &str) -> bool {
    Target::from_connect(target).is_ok_and(|target| host.matches(&target))
}

/// The digest of the config and of each TLS file; `None` for one that cannot be read. The content of keys is not stored.
type FileDigests = Vec<Option<Vec<u8>>>;

fn digests(config: &Path, tls: &[PathBuf]) -> FileDigests {
    std::iter::once(config).chain(tls.iter().map(PathBuf::as_path)).map(digest_of).collect()
}

fn digest_of(file: &Path) -> Option<Vec<u8>> {
    fs::read(file).ok().map(|held| digest(&SHA256, &held).as_ref().to_vec())
}

fn tls_files(config: &Config) -> Vec<PathBuf> {
    let tls = config.registries.iter().map(|registry| &registry.tls);
    let files = tls.flat_map(|tls| [&tls.ca_file, &tls.client_cert_file, &tls.client_key_file]).flatten();
    files.cloned().collect()
}
