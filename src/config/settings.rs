//! The whole file: its tables, and what must hold between them.
//!
//! Each table has a function that reads its keys in the order of the shipped `sidecar.toml`. All reads of a table come
//! before the first `?`, so that each notes its problem.

use std::time::Duration;

use super::classes::classes;
use super::listen::{Listeners, listen};
use super::model::{ClassConfig, Config, LogConfig, LogFormat, OtherHosts, RegistryConfig};
use super::reader::{Read, Section};
use super::registries::registries;
use super::value::{duration, word};
use super::warnings;

pub(super) fn config(root: &mut Section<'_>) -> Read<Config> {
    let mut listeners = Listeners::default();
    let drain_timeout = root.optional("drain_timeout", Duration::from_secs(30), duration);
    let listen = root.table("listen", |section| listen(section, &mut listeners));
    let log = root.table("log", log);
    let registries = root.table("registries", |section| registries(section, &mut listeners));
    let classes = root.table("classes", classes);
    let other_hosts = root.table("other_hosts", other_hosts);
    listeners.check(root, other_hosts);
    if let (Ok(registries), Ok(classes)) = (&registries, &classes) {
        check_classes_of_mirrors(root, registries, classes);
    }
    let mut config = Config {
        drain_timeout: drain_timeout?,
        listen: listen?,
        log: log?,
        registries: registries?,
        classes: classes?,
        other_hosts: other_hosts?,
        warnings: Vec::new(),
    };
    config.warnings = warnings::about(&config, |key| root.line_of(key));
    Ok(config)
}

fn log(section: &mut Section<'_>) -> Read<LogConfig> {
    let formats = word(&[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let levels = ["error", "warn", "info", "debug", "trace"].map(|level| (level, level));
    let format = section.optional("format", LogFormat::Text, formats);
    let level = section.optional("level", "info", word(&levels));
    Ok(LogConfig { format: format?, level: level?.to_owned() })
}

fn other_hosts(section: &mut Section<'_>) -> Read<OtherHosts> {
    let policies = word(&[("direct", OtherHosts::Direct), ("deny", OtherHosts::Deny)]);
    section.optional("policy", OtherHosts::Direct, policies)
}

fn check_classes_of_mirrors(root: &mut Section<'_>, registries: &[RegistryConfig], classes: &[ClassConfig]) {
    for registry in registries {
        let class = registry.mirror.as_ref().map(|mirror| &mirror.class);
        if let Some(class) = class.filter(|name| !classes.iter().any(|class| class.name == **name)) {
            let reason = format!("there is no table [classes.{class}]: add it, or name another class");
            root.problem(&format!("registries.{}.mirror.class", registry.name), reason);
        }
    }
}
