//! Whether the certificate of the other side is accepted, and what is said when it is not.
//!
//! A certificate that stands in `ca_file` or among the system's roots byte for byte is trusted for the names and the time
//! in it, also where it calls itself an authority, as `openssl req -x509` makes it. Any other must be signed by one of
//! these. With `insecure_skip_verify` all are accepted. The signature of the handshake is checked in
//! any case. `tls` makes a verifier for each registry.

use std::fmt::Write;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};

#[derive(Debug)]
pub(super) struct Verifier {
    /// The rules of the web's certificates; `None` to accept all.
    pub(super) rules: Option<Arc<WebPkiServerVerifier>>,
    pub(super) listed: Vec<CertificateDer<'static>>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// A rejected certificate, with the reason and the cure.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Rejected(String);

impl Rejected {
    fn new(certificate: &CertificateDer<'_>, name: &ServerName<'_>, error: &CertificateError) -> Rejected {
        let (fingerprint, name, reason) = (fingerprint(certificate), name.to_str(), reason(error));
        Rejected(format!("the certificate with the SHA-256 fingerprint {fingerprint} is rejected for {name}: {reason}"))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(rules) = &self.rules else { return Ok(ServerCertVerified::assertion()) };
        let verified = match rules.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            // Its time was checked before that; its name was not.
            Err(Error::InvalidCertificate(error)) if lacks_issuer_only(&error) && self.listed.contains(end_entity) => {
                ParsedCertificate::try_from(end_entity)
                    .and_then(|certificate| verify_server_name(&certificate, name))
                    .map(|()| ServerCertVerified::assertion())
            }
            other => other,
        };
        verified.map_err(|error| match error {
            Error::InvalidCertificate(error) => {
                let rejected = Rejected::new(end_entity, name, &error);
                Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(rejected))))
            }
            other => other,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Why the certificate was rejected, if that is what this error says.
pub(super) fn rejected(error: &Error) -> Option<&Rejected> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

/// Whether nothing is wrong with a certificate but that no authority vouches for it.
fn lacks_issuer_only(error: &CertificateError) -> bool {
    *error == CertificateError::UnknownIssuer || calls_itself_authority(error)
}

/// The library has this case among its own errors only.
fn calls_itself_authority(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity")
}

fn reason(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "no authority that is trusted here signed it. Add the authority's certificate, \
                                            or this one, to tls.ca_file"
                .to_owned()
        }
        error if calls_itself_authority(error) => "it is the certificate of an authority. If the registry's own \
                                                   certificate is self-signed, add it to tls.ca_file"
            .to_owned(),
        CertificateError::NotValidForNameContext { .. } => {
            format!("{error}. Set tls.server_name to a name in it, or correct mirror.upstream")
        }
        CertificateError::ExpiredContext { .. } => format!("{error}. Renew it at the registry"),
        CertificateError::NotValidYetContext { .. } => format!("{error}. Set the clock of this node"),
        CertificateError::Other(other) => other.to_string(),
        other => other.to_string(),
    }
}

/// As `openssl x509 -fingerprint -sha256` shows it.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let mut shown = String::new();
    for byte in digest(&SHA256, certificate).as_ref() {
        let colon = if shown.is_empty() { "" } else { ":" };
        let _ = write!(shown, "{colon}{byte:02X}");
    }
    shown
}
