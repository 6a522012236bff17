//! The settings of a registry that concern HTTP which the sidecar sees: `tls`, `mirror` and `repair`.

use super::reader::{Read, Section};
use super::settings::DEFAULT_CLASS;
use super::value::{address, flag, name, origins, path, text, whole};
use super::{Mirror, Repair, Tls};
use crate::target::Origin;

pub(super) fn tls(section: &mut Section<'_>) -> Read<Tls> {
    let ca_file = section.optional("ca_file", None, |value| path(value).map(Some));
    let client_cert_file = section.optional("client_cert_file", None, |value| path(value).map(Some));
    let client_key_file = section.optional("client_key_file", None, |value| path(value).map(Some));
    let server_name = section.optional("server_name", None, |value| name(value).map(Some));
    let insecure_skip_verify = section.optional("insecure_skip_verify", false, flag);
    let (client_cert_file, client_key_file) = (client_cert_file?, client_key_file?);
    let client = match (client_cert_file, client_key_file) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err(half_of_a_pair(section, "client_cert_file", "client_key_file")),
        (None, Some(_)) => return Err(half_of_a_pair(section, "client_key_file", "client_cert_file")),
    };
    Ok(Tls { ca_file: ca_file?, client, server_name: server_name?, insecure_skip_verify: insecure_skip_verify? })
}

fn half_of_a_pair(section: &mut Section<'_>, given: &'static str, other: &str) -> super::reader::Noted {
    section.missing(given, format!("has no meaning without {other}: set that too, or leave both out"))
}

/// The mirror; `claim` refuses URLs that another registry has.
pub(super) fn mirror(section: &mut Section<'_>, mut claim: impl FnMut(&Origin) -> Result<(), String>) -> Read<Mirror> {
    let listen = section.required("listen", "\"127.0.0.1:4130\"", address);
    let mut claimed = |origin: Origin| claim(&origin).map(|()| origin);
    let upstream = section.required("upstream", "\"https://harbor.example.com\"", |value| {
        let origins = origins(value)?;
        if let Some(twice) = origins.iter().enumerate().find(|(index, origin)| origins[..*index].contains(origin)) {
            return Err(format!("{} is there twice", twice.1));
        }
        origins.into_iter().map(&mut claimed).collect::<Result<Vec<_>, _>>()
    });
    let rewrite = section.optional("rewrite", true, flag);
    let class = section.optional("class", DEFAULT_CLASS.to_owned(), |value| text(value).map(str::to_owned));
    let cap_per_upstream = section.optional("cap_per_upstream", false, flag);
    Ok(Mirror {
        listen: listen?,
        upstream: upstream?,
        rewrite: rewrite?,
        class: class?,
        cap_per_upstream: cap_per_upstream?,
    })
}

pub(super) fn repair(section: &mut Section<'_>) -> Read<Repair> {
    let enabled = section.optional("enabled", true, flag);
    let ambiguous_401 = section.optional("ambiguous_401", 0, whole(0..=10));
    Ok(Repair { enabled: enabled?, ambiguous_401: ambiguous_401? })
}
