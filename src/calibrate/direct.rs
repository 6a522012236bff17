//! The way to a registry for the pressure test: as its mirror goes, with other bounds.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::app::assembly::Assembly;
use crate::app::{ListenAddresses, read_tls};
use crate::bypass::mark;
use crate::config::{Config, Mode, Service};
use crate::metrics::Metrics;
use crate::proxy::mirror::Mirror;

/// The mirror of this registry with so many slots, without a rate, and without repair or a limit that yields.
/// Fails when the config has no such mirror, or its files of TLS cannot be used.
pub fn mirror(config: &Config, name: &str, slots: usize) -> Result<Arc<Mirror>, String> {
    let mut config = config.clone();
    config.registries.retain(|registry| registry.name == name);
    let registry = config.registries.first_mut().ok_or_else(|| format!("the config has no registry {name}"))?;
    (registry.slots, registry.max_connecting, registry.rate) = (slots, slots, None);
    (registry.repair.enabled, registry.adapt.enabled, registry.mode) = (false, Some(false), Mode::Enforce);
    let no_mirror =
        || format!("registry {name} has no mirror, whose upstream is asked: add [registries.{name}.mirror]");
    let mirror = registry.mirror.as_mut().ok_or_else(no_mirror)?;
    mirror.cap_per_upstream = false;
    let addresses = ListenAddresses(vec![(Service::Mirror(name.to_owned()), mirror.listen)]);
    let tls = read_tls(&config).map_err(|error| error.to_string())?;
    let mut assembly = Assembly::new(Arc::new(Metrics::new()), addresses, CancellationToken::new());
    assembly.send_buffer = Some(mark::SEND_BUFFER);
    assembly.settings(&config, tls, None).mirrors.remove(name).ok_or_else(no_mirror)
}
