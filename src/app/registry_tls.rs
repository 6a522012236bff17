//! TLS with registries, from the files that the config names. They are read once, at the start and with each reload.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::StartError;
use crate::config::{self, Config};
use crate::upstream::tls::{Tls, TlsTerms};

/// TLS with registries, by their names, made of the files as they were read.
pub type ReadTls = BTreeMap<String, Arc<Tls>>;

/// Reads the TLS files of the config. A broken file is better reported now than at the first pull.
pub fn read_tls(config: &Config) -> Result<ReadTls, StartError> {
    let mut read = ReadTls::new();
    for registry in &config.registries {
        let origins = registry.mirror.iter().flat_map(|mirror| &mirror.upstream);
        if origins.into_iter().any(|origin| origin.secure) || registry.tls != config::TlsConfig::default() {
            let tls = Tls::new(tls_terms(&registry.tls));
            tls.check().map_err(|error| StartError::Tls { registry: registry.name.clone(), error })?;
            read.insert(registry.name.clone(), Arc::new(tls));
        }
    }
    Ok(read)
}

pub(super) fn tls_terms(tls: &config::TlsConfig) -> TlsTerms {
    let config::TlsConfig { ca_file, client_cert_file, client_key_file, server_name, insecure_skip_verify } =
        tls.clone();
    TlsTerms { ca_file, client: client_cert_file.zip(client_key_file), server_name, insecure_skip_verify }
}
