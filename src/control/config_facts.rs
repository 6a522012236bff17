//! The config that holds, as the metrics tell it.

use ring::digest::{SHA256, digest};

use crate::config::Config;

/// The config that holds, as the metrics tell it.
#[derive(Clone, Debug)]
pub struct ConfigFacts {
    /// The same on each node with the same settings, whatever the file looks like.
    pub hash: f64,
    /// The cap of each registry.
    pub caps: Vec<(String, u32)>,
}

impl From<&Config> for ConfigFacts {
    fn from(config: &Config) -> ConfigFacts {
        let settings: String = config.settings.iter().flat_map(|(key, value)| [key, "=", value, "\n"]).collect();
        // As many bytes as a float holds exactly.
        let digest = digest(&SHA256, settings.as_bytes());
        let hash = digest.as_ref().iter().take(6).fold(0.0, |hash, byte| hash * 256.0 + f64::from(*byte));
        let caps = config.registries.iter().map(|registry| (registry.name.clone(), registry.cap));
        ConfigFacts { hash, caps: caps.collect() }
    }
}
