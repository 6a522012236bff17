//! TLS to a registry, on top of the socket that holds the slot.
//!
//! The settings are read once, when they are first needed; a registry that has a mirror or TLS settings of its own reads
//! them at the start, so that a wrong file is told at once. Sessions are resumed, HTTP/1.1 is all that is offered.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use self::verify::Verifier;
use super::socket::Socket;
use crate::target::Host;

mod verify;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsTerms {
    /// Authorities that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate chain and the key that are shown of ourselves.
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name that the nodes of a mirror must prove, whatever their URLs say.
    pub server_name: Option<Host>,
    /// Whether the other side's certificate is looked at, at all.
    pub insecure_skip_verify: bool,
}

pub struct Tls {
    terms: TlsTerms,
    built: OnceLock<Result<Arc<ClientConfig>, TlsError>>,
}

/// Why the settings do not make a TLS client: the setting, and what is wrong. It never shows what stands in a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl TlsError {
    fn unusable(error: impl fmt::Display) -> TlsError {
        TlsError(format!("TLS: {error}"))
    }

    fn unreadable(key: &'static str, path: &Path, reason: impl fmt::Display) -> TlsError {
        TlsError(format!("{key}: {}: {reason}", path.display()))
    }
}

impl Tls {
    pub fn new(terms: TlsTerms) -> Tls {
        Tls { terms, built: OnceLock::new() }
    }

    /// The name that a node of the mirror at this host must prove.
    pub fn name_of(&self, host: &Host) -> Host {
        self.terms.server_name.as_ref().unwrap_or(host).clone()
    }

    /// Reads the files, if that was not done yet.
    /// Fails when a file does not hold what it should.
    pub fn check(&self) -> Result<(), TlsError> {
        self.config().map(|_| ())
    }

    /// Makes the connection on this socket a secure one, to the host of this name.
    /// Fails when the files are not usable, the other side is not who it should be, the connection ends, or `deadline` comes.
    /// The socket is given back.
    pub async fn handshake(
        &self,
        host: &Host,
        socket: Socket,
        deadline: Instant,
    ) -> Result<TlsStream<Socket>, (io::Error, Socket)> {
        let (config, name) = match self.config().and_then(|config| Ok((config, server_name(host)?))) {
            Ok(ready) => ready,
            Err(error) => return Err((io::Error::new(io::ErrorKind::InvalidInput, error), socket)),
        };
        let shears = socket.shears();
        let mut handshake = TlsConnector::from(config).connect(name, socket).into_fallible();
        if let Ok(done) = timeout_at(deadline, &mut handshake).await {
            return done.map_err(|(error, socket)| (in_words(error), socket));
        }
        // Only the handshake can give the socket back, and it does when the connection ends.
        shears.apply().await;
        match handshake.await {
            // It came to its end with bytes that were there already, but the connection is broken off.
            Ok(stream) => Err((io::ErrorKind::TimedOut.into(), stream.into_inner().0)),
            Err((_, socket)) => Err((io::ErrorKind::TimedOut.into(), socket)),
        }
    }

    pub fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        self.built.get_or_init(|| build(&self.terms).map(Arc::new)).clone()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("terms", &self.terms).finish_non_exhaustive()
    }
}

pub fn server_name(host: &Host) -> Result<ServerName<'static>, TlsError> {
    match host {
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(TlsError::unusable),
        Host::Ip(ip) => Ok(ServerName::from(*ip)),
    }
}

/// The same error, as the verifier put it.
pub fn in_words(error: io::Error) -> io::Error {
    match library_error(&error).and_then(verify::rejected) {
        Some(rejected) => io::Error::new(io::ErrorKind::InvalidData, rejected.clone()),
        None => error,
    }
}

/// Whether a handshake failed for good: the same would come of another one.
pub fn is_final(error: &io::Error) -> bool {
    let is_rejected = error.get_ref().and_then(|cause| cause.downcast_ref::<verify::Rejected>()).is_some();
    error.kind() == io::ErrorKind::InvalidInput
        || is_rejected
        || match library_error(error) {
            Some(rustls::Error::AlertReceived(alert)) => cure_of(*alert).is_some(),
            Some(cause) => matches!(
                cause,
                rustls::Error::InvalidCertificate(_)
                    | rustls::Error::NoCertificatesPresented
                    | rustls::Error::UnsupportedNameType
            ),
            None => false,
        }
}

/// The cure where the registry ends TLS for good, as the end of a sentence about it.
pub fn cure(error: &io::Error) -> &'static str {
    match library_error(error) {
        Some(rustls::Error::AlertReceived(alert)) => cure_of(*alert).unwrap_or_default(),
        _ => "",
    }
}

fn library_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|cause| cause.downcast_ref())
}

/// The alerts by which a registry refuses us for good, each with its cure.
fn cure_of(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        // The second is of TLS 1.2, where it may also say that nothing is in common.
        AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure => {
            ". If it demands a certificate of this node, set tls.client_cert_file and tls.client_key_file"
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        // An authority of the same name with another key signed it.
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => {
            ". It does not accept the certificate in tls.client_cert_file: show one that it knows the authority of"
        }
        AlertDescription::UnrecognisedName => ". Set tls.server_name to a name that it has",
        AlertDescription::ProtocolVersion => ". It must speak TLS 1.2 or 1.3",
        _ => return None,
    })
}

/// The TLS alert with which the peer refused us for good: in TLS 1.3, the handshake is over for us before the peer has seen
/// our certificate, or that there is none.
pub fn last_word(error: &(dyn Error + 'static)) -> Option<String> {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    let cause = causes.find_map(|error| error.downcast_ref::<io::Error>().filter(|error| is_final(error)));
    cause.map(|cause| format!("{cause}{}", cure(cause)))
}

fn build(terms: &TlsTerms) -> Result<ClientConfig, TlsError> {
    // Named, because another crate's choice of features must not decide it.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::unusable)?;
    let mut listed = match &terms.ca_file {
        Some(path) => certificates("tls.ca_file", path)?,
        None => Vec::new(),
    };
    let rules = if terms.insecure_skip_verify { None } else { Some(rules(terms, &mut listed, provider.clone())?) };
    let verifier = Verifier { rules, listed, algorithms: provider.signature_verification_algorithms };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &terms.client {
        Some((certificate, key)) => {
            let chain = certificates("tls.client_cert_file", certificate)?;
            let key = private_key("tls.client_key_file", key)?;
            let unfit = |error| TlsError(format!("tls.client_cert_file and tls.client_key_file: {error}"));
            builder.with_client_auth_cert(chain, key).map_err(unfit)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The rules by which a certificate is accepted: it comes from the system's roots, or from one that is listed. The roots are
/// listed with it: a registry's own certificate may stand among them.
fn rules(
    terms: &TlsTerms,
    listed: &mut Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a root certificate of the system cannot be read");
    }
    roots.add_parsable_certificates(system.certs.iter().cloned());
    for (path, certificate) in terms.ca_file.iter().flat_map(|path| listed.iter().map(move |one| (path, one))) {
        roots.add(certificate.clone()).map_err(|error| TlsError::unreadable("tls.ca_file", path, error))?;
    }
    if roots.is_empty() {
        let cure = "this system has no root certificates, and no file lists any, so no registry can prove itself";
        return Err(TlsError(format!("tls.ca_file: {cure}: set tls.ca_file")));
    }
    listed.extend(system.certs);
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(TlsError::unusable)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(TlsError::unreadable(key, path, "there is no certificate in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(TlsError::unreadable(key, path, in_our_words(&error))),
    }
}

fn private_key(key: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| TlsError::unreadable(key, path, in_our_words(&error)))
}

/// The library's own words may quote the file, and with it the key.
fn in_our_words(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "there is nothing of the kind in it".to_owned(),
        _ => "it is not in PEM: BEGIN and END lines of their own, and base64 between them".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(terms: TlsTerms) -> String {
        Tls::new(terms).check().unwrap_err().to_string()
    }

    #[test]
    fn without_files_the_systems_roots_are_enough() {
        assert_eq!(Tls::new(TlsTerms::default()).check(), Ok(()));
    }

    #[test]
    fn a_wrong_file_is_named_with_its_setting() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.pem");
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "secret words\n").unwrap();
        let shown = error(TlsTerms { ca_file: Some(missing.clone()), ..TlsTerms::default() });
        assert!(shown.starts_with(&format!("tls.ca_file: {}: ", missing.display())), "{shown}");
        let shown = error(TlsTerms { ca_file: Some(empty.clone()), ..TlsTerms::default() });
        assert!(shown.ends_with("there is no certificate in it"), "{shown}");
        let certified = rcgen::generate_simple_self_signed(["sidecar".to_owned()]).unwrap();
        let certificate = folder.path().join("client.pem");
        std::fs::write(&certificate, certified.cert.pem()).unwrap();
        let shown = error(TlsTerms { client: Some((certificate, empty)), ..TlsTerms::default() });
        assert!(shown.starts_with("tls.client_key_file: ") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn no_byte_of_a_key_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let one = rcgen::generate_simple_self_signed(["one".to_owned()]).unwrap();
        let certificate = folder.path().join("one.pem");
        std::fs::write(&certificate, one.cert.pem()).unwrap();
        let pem = one.signing_key.serialize_pem();
        for broken in [pem.replace('\n', " "), pem.replace("-----END", "-----ENT"), pem[..90].to_owned()] {
            let key = folder.path().join("one.key");
            std::fs::write(&key, &broken).unwrap();
            let shown = error(TlsTerms { client: Some((certificate.clone(), key)), ..TlsTerms::default() });
            let secret = &pem.lines().nth(1).unwrap()[..12];
            assert!(!shown.contains(secret) && !shown.contains("80, 82"), "{shown}");
        }
    }

    #[test]
    fn a_certificate_and_the_key_of_another_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let one = rcgen::generate_simple_self_signed(["one".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
        let certificate = write("one.pem", one.cert.pem());
        let fitting = write("one.key", one.signing_key.serialize_pem());
        let foreign = write("other.key", other.signing_key.serialize_pem());
        let terms = |key| TlsTerms { client: Some((certificate.clone(), key)), ..TlsTerms::default() };
        assert_eq!(Tls::new(terms(fitting)).check(), Ok(()));
        assert!(error(terms(foreign)).starts_with("tls.client_cert_file and tls.client_key_file: "));
    }
}
