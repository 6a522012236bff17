//! The configuration: `sidecar.toml` read, checked and frozen into plain values.
//!
//! This module and its parts are the only code that knows TOML. A file is taken whole or not at
//! all: every problem in it is found in one reading and reported with its key, its line and its
//! reason. Nothing here opens a socket, resolves a name or asks for the time. The command line
//! loads it, and hands the parts of [`Config`] to those that need them.

pub mod changes;
mod claims;
mod classes;
mod fraction;
mod http;
mod listen;
mod model;
mod problem;
mod rate;
mod reader;
mod registries;
mod report;
mod settings;
mod share;
mod syntax;
mod value;
mod warnings;

use std::net::SocketAddr;
use std::path::Path;

use toml::de::DeTable;

pub use model::{
    ClassConfig, Config, DEFAULT_CLASS, ListenConfig, LogConfig, LogFormat, MirrorConfig, OtherHosts, QueueConfig,
    ReclaimConfig, RegistryConfig, RepairConfig, TlsConfig,
};
pub use problem::{LoadError, Problem, Problems};
pub use rate::ConnectRate;
pub use share::{BadShare, Share};

use reader::Section;
use report::Report;

impl Config {
    /// Reads a configuration from the text of its file.
    /// Fails with every problem of the text, in the order of its lines.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut report = Report::new(text);
        for error in &errors {
            syntax::note(error, text, &mut report);
        }
        let mut root = Section::root(root.get_ref(), &mut report);
        let config = root.read_whole(settings::config);
        match config {
            Ok(config) if report.is_empty() => Ok(config),
            _ => Err(report.into_problems()),
        }
    }

    /// The admin address that the file at `path` names, or the default, whatever else is wrong with the file: a sidecar
    /// that refused it goes on with the one before.
    /// Fails when the file cannot be read.
    pub fn admin_address(path: &Path) -> Result<SocketAddr, LoadError> {
        let text =
            std::fs::read_to_string(path).map_err(|cause| LoadError::Unreadable { path: path.to_owned(), cause })?;
        let (root, _) = DeTable::parse_recoverable(&text);
        let admin = root.get_ref().get("listen").and_then(|listen| listen.get_ref().get("admin"));
        let named = admin.and_then(|admin| value::address(admin.get_ref()).ok());
        Ok(named.unwrap_or(listen::DEFAULT_ADMIN))
    }

    /// Reads the configuration file at `path`.
    /// Fails when the file cannot be read, or with every problem in it.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text =
            std::fs::read_to_string(path).map_err(|cause| LoadError::Unreadable { path: path.to_owned(), cause })?;
        Self::parse(&text).map_err(|problems| LoadError::Problems(problems.in_file(path)))
    }
}

#[cfg(test)]
mod tests;
