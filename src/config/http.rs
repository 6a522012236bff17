//! The settings of a registry that concern HTTP which the sidecar sees: `tls`, `mirror` and `repair`.

use toml::de::DeValue;

use super::listen::Listeners;
use super::model::{DEFAULT_CLASS, MirrorConfig, RepairConfig, TlsConfig};
use super::reader::{Noted, Read, Section};
use super::value::{address, flag, name, origins, path, text, whole};
use crate::target::HostPattern;

pub(super) fn tls(section: &mut Section<'_>) -> Read<TlsConfig> {
    let ca_file = section.maybe("ca_file", path);
    let client_cert_file = section.maybe("client_cert_file", path);
    let client_key_file = section.maybe("client_key_file", path);
    let server_name = section.maybe("server_name", name);
    let insecure_skip_verify = section.optional("insecure_skip_verify", false, flag);
    let (client_cert_file, client_key_file) = (client_cert_file?, client_key_file?);
    let client = match (client_cert_file, client_key_file) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err(half_of_a_pair(section, "client_cert_file", "client_key_file")),
        (None, Some(_)) => return Err(half_of_a_pair(section, "client_key_file", "client_cert_file")),
    };
    Ok(TlsConfig { ca_file: ca_file?, client, server_name: server_name?, insecure_skip_verify: insecure_skip_verify? })
}

fn half_of_a_pair(section: &mut Section<'_>, given: &'static str, other: &str) -> Noted {
    section.missing(given, format!("has no meaning without {other}: set that too, or leave both out"))
}

/// The mirror; `claim` refuses URLs that another registry has.
pub(super) fn mirror(
    section: &mut Section<'_>,
    claim: &mut impl FnMut(HostPattern) -> Result<(), String>,
    listeners: &mut Listeners,
) -> Read<MirrorConfig> {
    let listen = section.required("listen", "\"127.0.0.1:4130\"", address);
    listeners.add(section.path_of("listen"), listen);
    let mut claimed = |value: &DeValue<'_>| {
        let origins = origins(value)?;
        if let Some(twice) = origins.iter().enumerate().find(|(index, origin)| origins[..*index].contains(origin)) {
            return Err(format!("{} is listed twice: remove one", twice.1));
        }
        origins.iter().try_for_each(|origin| claim(origin.pattern())).map(|()| origins)
    };
    let upstream = section.required("upstream", "\"https://harbor.example.com\"", &mut claimed);
    let public_urls = section.maybe("public_urls", &mut claimed);
    let rewrite = section.optional("rewrite", true, flag);
    let class = section.optional("class", DEFAULT_CLASS.to_owned(), |value| text(value).map(str::to_owned));
    let cap_per_upstream = section.optional("cap_per_upstream", false, flag);
    Ok(MirrorConfig {
        listen: listen?,
        upstream: upstream?,
        public_urls: public_urls?,
        rewrite: rewrite?,
        class: class?,
        cap_per_upstream: cap_per_upstream?,
    })
}

pub(super) fn repair(section: &mut Section<'_>) -> Read<RepairConfig> {
    let enabled = section.optional("enabled", true, flag);
    // Accepted for one more release, with a warning, so that an upgrade starts.
    let ambiguous_401 = section.maybe("ambiguous_401", whole(0..=10));
    Ok(RepairConfig { enabled: enabled?, ambiguous_401: ambiguous_401? })
}
