//! The configuration: `sidecar.toml` read, checked and frozen into plain values.
//!
//! This module and its parts are the only code that knows TOML. A file is taken whole or not at all: every problem in it is
//! found in one reading and reported with its key, its line and its reason. Nothing here opens a socket, resolves a name or
//! asks for the time. The command line loads it, and hands the parts of [`Config`] to those that need them.

pub mod changes;
mod checks;
mod fraction;
pub(crate) mod model;
mod problem;
mod rate;
pub(crate) mod reader;
pub(crate) mod registry;
pub(crate) mod share;
mod shown;
mod syntax;
pub(crate) mod table;
pub(crate) mod value;
mod warnings;

use std::path::Path;

use toml::de::DeTable;

pub use model::{ClassConfig, Config, ListenConfig, LogConfig, LogFormat, OtherHosts, Service};
pub use problem::{LoadError, Problem, Problems};
pub use rate::ConnectRate;
pub use registry::{
    AdaptConfig, DEFAULT_CLASS, MirrorConfig, Mode, QueueConfig, ReclaimConfig, RegistryConfig, RepairConfig, TlsConfig,
};
pub use share::{BadShare, Share};

use reader::{PREFIX, Report, Section};

impl Config {
    /// Reads a configuration from the text of its file.
    /// Fails with every problem of the text, in the order of its lines.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        Config::parse_with(text, [])
    }

    /// The same, with these variables of an environment: one that begins with `ROADSTEAD__` sets a key in place of the file.
    /// Fails with every problem, in the order of the lines.
    pub fn parse_with(text: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, Problems> {
        match Config::read_text(text, environment) {
            (config, problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(Problems { file: None, problems }),
        }
    }

    /// The addresses that the file at `path` names, or the defaults, whatever else is wrong with the file: a sidecar
    /// that refused it goes on with the one before.
    /// Fails when the file cannot be read.
    pub fn listen_of(path: &Path) -> Result<ListenConfig, LoadError> {
        Ok(Config::read_text(&text_of(path)?, environment()).0.listen)
    }

    /// Reads the configuration file at `path`, and the environment.
    /// Fails when the file cannot be read, or with every problem in it.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let parsed = Config::parse_with(&text_of(path)?, environment());
        parsed.map_err(|problems| LoadError::Problems(Problems { file: Some(path.to_owned()), ..problems }))
    }

    /// The configuration of the text as far as it can be read, and its problems, in the order of its lines.
    fn read_text(text: &str, environment: impl IntoIterator<Item = (String, String)>) -> (Config, Vec<Problem>) {
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut report = Report::new(text);
        for error in &errors {
            syntax::note(error, text, &mut report);
        }
        let named =
            environment.into_iter().filter_map(|(name, text)| Some((name.strip_prefix(PREFIX)?.to_owned(), text)));
        report.overrides = named.map(|(name, text)| (name, (text, None))).collect();
        let mut config = Config::default();
        let mut root = Section::root(root.get_ref(), &mut report);
        root.read_whole(|root| config.read(root));
        checks::check(&config, &mut root);
        config.warnings = warnings::about(&config, |key| root.line_of(key));
        report.note_unused_overrides();
        let set = report.overrides.into_iter().filter_map(|(name, (_, key))| Some((key?, format!("{PREFIX}{name}"))));
        config.from_environment = set.collect();
        config.settings = report.settings;
        config.in_file = report.in_file;
        report.problems.sort_by_key(|problem| problem.line);
        (config, report.problems)
    }
}

/// The variables of this process. In one that is no text, a sign stands for what is none: it is refused, and not overlooked.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, text)| (name.to_string_lossy().into_owned(), text.to_string_lossy().into_owned()))
}

fn text_of(path: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(path).map_err(|cause| LoadError::Unreadable { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests;
