//! One registry, from its name to the first byte: DNS, address, TCP, TLS, HTTP/2, `/v2/`, the realm of tokens, the clock.
//!
//! A step that fails ends the examination of its URL: those behind it would only repeat it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::exchange::{DoctorAnswer, ask, is_registry, origin_of};
use super::report::{ExaminedStep, Findings};
use crate::bypass::mark::connect;
use crate::config::{Config, RegistryConfig};
use crate::target::{Host, Origin};
use crate::upstream::tls::{Tls, cure, in_words, is_final, server_name};
use crate::upstream::{AddressPolicy, Failure};

const MAX_LOOKUP: Duration = Duration::from_secs(10);
/// A certificate that ends sooner than this is a problem today.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// A clock that differs by more than this makes certificates and tokens invalid before or after their time.
const MAX_CLOCK_ERROR: Duration = Duration::from_secs(60);

pub async fn examine(config: &Config, registry: &RegistryConfig, tls: &Arc<Tls>, report: &mut Findings) {
    for origin in origins_of(registry) {
        let patient = Patient { config, registry, tls, origin: &origin };
        if let Err(step) = patient.examine(report).await {
            report.add(step);
        }
    }
}

/// Where the registry is asked: at the URLs of the mirror, else at its hosts.
fn origins_of(registry: &RegistryConfig) -> Vec<Origin> {
    if let Some(mirror) = &registry.mirror {
        return mirror.upstream.clone();
    }
    let hosts = registry.hosts.iter().filter_map(|pattern| {
        let host = pattern.exact_host()?;
        let host = if host.ip().is_some_and(|ip| ip.is_ipv6()) { format!("[{host}]") } else { host.to_string() };
        let host = host.replace("[[", "[").replace("]]", "]");
        let port = pattern.port().map_or_else(String::new, |port| format!(":{port}"));
        // Port 80 is plain HTTP wherever it is.
        let scheme = if pattern.port() == Some(80) { "http" } else { "https" };
        Origin::parse(&format!("{scheme}://{host}{port}")).ok()
    });
    hosts.collect()
}

/// One URL of a registry.
struct Patient<'a> {
    config: &'a Config,
    registry: &'a RegistryConfig,
    tls: &'a Arc<Tls>,
    origin: &'a Origin,
}

impl Patient<'_> {
    /// Fails with the step that ends it.
    async fn examine(&self, report: &mut Findings) -> Result<(), ExaminedStep> {
        let origin = self.origin;
        let addresses = self.resolve().await?;
        report.add(ExaminedStep::fine(
            "dns",
            origin,
            addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", "),
        ));
        let addresses = self.allowed(addresses)?;
        let stream = self.dial(&addresses).await?;
        report.add(ExaminedStep::fine("tcp", origin, format!("{} accepts connections", addresses[0])));
        let answer = if origin.secure {
            let config = self.tls.config().map_err(|error| self.bad("tls", error, "correct the settings in tls"))?;
            let secure = self.handshake(config.clone(), stream).await.map_err(|error| self.tls_problem(error))?;
            let (said, problem) = expiry(secure.get_ref().1.peer_certificates().unwrap_or_default());
            report.add(match problem {
                None => ExaminedStep::fine("tls", origin, said),
                Some(cure) => self.bad("tls", said, cure),
            });
            let answer = ask(secure, "GET", "/v2/", &origin.authority()).await;
            report.add(self.http2(&config, &addresses).await);
            answer
        } else {
            ask(stream, "GET", "/v2/", &origin.authority()).await
        };
        let answer = answer.map_err(|error| {
            // In TLS 1.3, a certificate that the registry misses is told after the handshake.
            if is_final(&error) {
                return self.tls_problem(error);
            }
            self.bad("v2", error, "is it a registry that speaks HTTP/1.1? Correct the URL or its port")
        })?;
        if !is_registry(&answer) {
            let said = format!("/v2/ is answered with {} {}", answer.status, answer.reason);
            return Err(match answer.status {
                500.. => self.bad("v2", said, "the registry or its gateway is down or overloaded: look at its own log"),
                _ => self.bad("v2", said, "there is no registry at this URL: correct hosts and mirror.upstream"),
            });
        }
        report.add(ExaminedStep::fine("v2", origin, format!("it is a registry: {}", answer.status)));
        report.add(self.realm(&answer));
        report.add(self.clock(&answer));
        Ok(())
    }

    fn bad(&self, step: &'static str, said: impl std::fmt::Display, cure: impl std::fmt::Display) -> ExaminedStep {
        ExaminedStep::problem(step, self.origin, said, cure)
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, ExaminedStep> {
        let (host, port) = (self.origin.target.host(), self.origin.target.port());
        let name = match host {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
            Host::Name(name) => name.as_str(),
        };
        let cure = "correct the name in hosts and mirror.upstream, or this node's resolver (/etc/resolv.conf, dnsPolicy of the pod)";
        match timeout(MAX_LOOKUP, lookup_host((name, port))).await {
            Ok(Ok(found)) => {
                let found: Vec<SocketAddr> = found.collect();
                if found.is_empty() { Err(self.bad("dns", "the name has no address", cure)) } else { Ok(found) }
            }
            Ok(Err(error)) => Err(self.bad("dns", format!("the name does not resolve: {error}"), cure)),
            Err(_) => Err(self.bad("dns", "the name server is silent for 10 s", cure)),
        }
    }

    /// Those addresses that the sidecar would dial.
    fn allowed(&self, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, ExaminedStep> {
        let listed = self.registry.hosts.iter().filter_map(|pattern| pattern.exact_host()?.ip()).collect();
        let own = self.config.listeners().into_iter().map(|(_, address)| address).collect();
        let policy = AddressPolicy { listed, own };
        policy.allowed(addresses.into_iter(), true).map_err(|failure| {
            let cure = match failure {
                Failure::Loop(_) => {
                    "it is a listener of this sidecar: correct hosts and mirror.upstream, or the DNS entry of the name"
                }
                _ => "the name leads to the wrong machine: correct its DNS entry, or list this very address in hosts",
            };
            self.bad("address", failure, cure)
        })
    }

    async fn dial(&self, addresses: &[SocketAddr]) -> Result<TcpStream, ExaminedStep> {
        let mut first = None;
        for address in addresses {
            match timeout(self.registry.connect_timeout, connect(*address)).await {
                Ok(Ok(stream)) => first = first.or(Some(stream)),
                failed => {
                    let reason = failed.map_or("no answer within connect_timeout".to_owned(), |refused| {
                        refused.err().map(|error| error.to_string()).unwrap_or_default()
                    });
                    let cure = "is the registry up? Then a firewall or network policy between this node and it drops the connection";
                    return Err(self.bad("tcp", format!("{address}: {reason}"), cure));
                }
            }
        }
        first.ok_or_else(|| self.bad("tcp", "there is no address", "correct the name"))
    }

    async fn handshake(&self, config: Arc<ClientConfig>, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = server_name(&self.tls.name_of(self.origin.target.host()));
        let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let handshake = TlsConnector::from(config).connect(name, stream);
        timeout(self.registry.connect_timeout, handshake).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// The first sentence says what is wrong, those behind it what to do.
    fn tls_problem(&self, error: io::Error) -> ExaminedStep {
        let error = in_words(error);
        let told = format!("{error}{}", cure(&error));
        let (said, cure) = told.split_once(". ").unwrap_or((&told, ""));
        let cure = match cure {
            "" if said.contains("xpired") => "renew the registry's certificate, and compare this node's clock",
            "" if said.contains("BadSignature") => {
                "tls.ca_file has another certificate of the same authority: add the current one to it"
            }
            "" => "does this port speak TLS? Correct the scheme or the port of the URL, or see registries.NAME.tls",
            cure => cure,
        };
        self.bad("tls", said, cure)
    }

    /// Whether HTTP/2 is offered: one connection then carries a hundred requests, and a count of tunnels bounds nothing.
    async fn http2(&self, config: &ClientConfig, addresses: &[SocketAddr]) -> ExaminedStep {
        let mut config = config.clone();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let Ok(stream) = self.dial(addresses).await else {
            return ExaminedStep::skipped("http2", self.origin, "a second connection was refused");
        };
        match self.handshake(Arc::new(config), stream).await {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                let said = "HTTP/2 is offered: through the proxy, one tunnel carries a hundred requests at once, which defeats the cap";
                self.bad(
                    "http2",
                    said,
                    "turn HTTP/2 off before the registry (docs/pullers/README.md says how), or use the mirror alone",
                )
            }
            Ok(_) => ExaminedStep::fine("http2", self.origin, "HTTP/1.1 alone is offered"),
            Err(error) => ExaminedStep::skipped("http2", self.origin, error),
        }
    }

    /// Where tokens are made: it must count at the same registry, and with a mirror be led back to it.
    fn realm(&self, answer: &DoctorAnswer) -> ExaminedStep {
        let Some(realm) = answer.realm() else {
            return ExaminedStep::fine("realm", self.origin, "it asks for no token");
        };
        let Some(leads_to) = origin_of(realm) else {
            return self.bad(
                "realm",
                format!("tokens are made at {realm}, which is no URL"),
                "correct external_url in harbor.yml",
            );
        };
        let name = &self.registry.name;
        let public = self.registry.public_targets();
        let is_known = match &self.registry.mirror {
            Some(_) => public.contains(&leads_to.target),
            None => self.registry.hosts.iter().any(|pattern| pattern.matches(&leads_to.target)),
        };
        if is_known {
            return ExaminedStep::fine("realm", self.origin, format!("tokens are made at {leads_to}"));
        }
        let key = if self.registry.mirror.is_some() { "mirror.public_urls" } else { "hosts" };
        let cure = format!("add {leads_to} to registries.{name}.{key}, or correct external_url in harbor.yml");
        self.bad("realm", format!("tokens are made at {leads_to}, which leads around the sidecar"), cure)
    }

    fn clock(&self, answer: &DoctorAnswer) -> ExaminedStep {
        let there = answer.header("date").and_then(|date| httpdate::parse_http_date(date).ok());
        let Some(there) = there else { return ExaminedStep::skipped("clock", self.origin, "its answer has no date") };
        let here = SystemTime::now();
        let (difference, word) = match here.duration_since(there) {
            Ok(ahead) => (ahead, "ahead of"),
            Err(behind) => (behind.duration(), "behind"),
        };
        if difference <= MAX_CLOCK_ERROR {
            return ExaminedStep::fine("clock", self.origin, "this node and the registry agree");
        }
        let said = format!("this node's clock is {} s {word} the registry's", difference.as_secs());
        self.bad(
            "clock",
            said,
            "synchronise both (chronyd, systemd-timesyncd): tokens and certificates are valid for a time only",
        )
    }
}

/// How long the certificate is valid, and the cure if that is not long.
fn expiry(chain: &[CertificateDer<'_>]) -> (String, Option<&'static str>) {
    let parsed = chain.first().and_then(|certificate| Some(X509Certificate::from_der(certificate).ok()?.1));
    let Some(until) = parsed.and_then(|certificate| u64::try_from(certificate.validity().not_after.timestamp()).ok())
    else {
        return ("the chain is accepted".to_owned(), None);
    };
    let left =
        (SystemTime::UNIX_EPOCH + Duration::from_secs(until)).duration_since(SystemTime::now()).unwrap_or_default();
    let days = left.as_secs() / (24 * 3600);
    let said = format!("the certificate is accepted, and expires in {days} days");
    (said, (left < EXPIRES_SOON).then_some("renew the registry's certificate before then"))
}
