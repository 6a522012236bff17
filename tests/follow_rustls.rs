//! The record follower against rustls, in memory: its clients are those of dfdaemon.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use roadstead::tunnel::follow::{Doing, Follower, Side};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

fn identity() -> Identity {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    Identity { certificate: made.cert.der().clone(), key }
}

struct Case {
    version: &'static SupportedProtocolVersion,
    tickets: usize,
    client_certificate: Option<bool>,
    early_data: bool,
    alpn: Option<&'static str>,
}

fn configs(case: &Case) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let (server, client) = (identity(), identity());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(server.certificate.clone()).unwrap();
    let mut client_roots = RootCertStore::empty();
    client_roots.add(client.certificate.clone()).unwrap();
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[case.version]).unwrap();
    let builder = match case.client_certificate {
        None => builder.with_no_client_auth(),
        Some(_) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(client_roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .unwrap(),
        ),
    };
    let mut server_config = builder.with_single_cert(vec![server.certificate], server.key).unwrap();
    server_config.send_tls13_tickets = case.tickets;
    server_config.ticketer = rustls::crypto::ring::Ticketer::new().unwrap();
    if case.early_data {
        server_config.ticketer = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[case.version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()))
            .ticketer;
        server_config.max_early_data_size = 4096;
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[case.version])
        .unwrap()
        .with_root_certificates(roots);
    let mut client_config = if case.client_certificate == Some(true) {
        builder.with_client_auth_cert(vec![client.certificate], client.key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    client_config.enable_early_data = case.early_data;
    if let Some(name) = case.alpn {
        client_config.alpn_protocols = vec![name.as_bytes().to_vec()];
        server_config.alpn_protocols.clone_from(&client_config.alpn_protocols);
    }
    (Arc::new(client_config), Arc::new(server_config))
}

struct Tunnel {
    client: ClientConnection,
    server: ServerConnection,
    follower: Follower,
    told: String,
}

impl Tunnel {
    fn new((client, server): &(Arc<ClientConfig>, Arc<ServerConfig>)) -> Tunnel {
        let name = ServerName::try_from("localhost").unwrap();
        Tunnel {
            client: ClientConnection::new(client.clone(), name).unwrap(),
            server: ServerConnection::new(server.clone()).unwrap(),
            follower: Follower::new(Duration::ZERO, false),
            told: String::new(),
        }
    }

    fn tell(&mut self, side: char, mut bytes: &[u8]) {
        while let [kind, _, _, high, low, ..] = bytes {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let _ = write!(self.told, "{side}{kind}/{length} ");
            bytes = &bytes[5 + length..];
        }
        let _ = write!(self.told, "[{:?}] ", self.follower.doing());
    }

    /// Carries what the client has to say; true if anything.
    fn up(&mut self) -> bool {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        self.follower.sent(Side::Client, &bytes, Duration::ZERO);
        self.tell('C', &bytes);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            self.server.read_tls(&mut rest).unwrap();
            self.server.process_new_packets().unwrap();
            if let Some(mut early) = self.server.early_data() {
                let mut sink = Vec::new();
                let _ = early.read_to_end(&mut sink);
            }
            let _ = self.server.reader().read(&mut vec![0; 60_000]);
        }
        !bytes.is_empty()
    }

    fn down(&mut self) -> bool {
        let mut bytes = Vec::new();
        while self.server.wants_write() {
            self.server.write_tls(&mut bytes).unwrap();
        }
        self.follower.sent(Side::Server, &bytes, Duration::ZERO);
        self.tell('S', &bytes);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            self.client.read_tls(&mut rest).unwrap();
            self.client.process_new_packets().unwrap();
            let _ = self.client.reader().read(&mut vec![0; 60_000]);
        }
        !bytes.is_empty()
    }

    fn settle(&mut self) {
        while self.up() | self.down() {}
    }

    fn expect(&self, what: &str, doing: Doing) {
        assert_eq!(self.follower.doing(), doing, "{what}: {}", self.told);
    }

    fn ask(&mut self, length: usize) {
        self.client.writer().write_all(&vec![b'x'; length]).unwrap();
        self.up();
        self.expect("a request", Doing::InFlight);
    }

    fn answer(&mut self, length: usize) {
        self.server.writer().write_all(&vec![b'x'; length]).unwrap();
        self.down();
    }

    fn talk(&mut self) {
        for (request, answer) in [(200, 400), (200, 400), (36, 500), (52, 40_000)] {
            self.ask(request);
            self.answer(answer);
            self.expect("an answer", Doing::Idle);
        }
    }
}

#[test]
fn every_handshake_ends_unused_and_every_answer_idle() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for client_certificate in [None, Some(false), Some(true)] {
            for tickets in [0, 1, 2, 4] {
                let case = Case { version, tickets, client_certificate, early_data: false, alpn: None };
                let configs = configs(&case);
                for resumed in [false, true] {
                    let name = format!("{version:?} tickets {tickets} cert {client_certificate:?} resumed {resumed}");
                    let mut tunnel = Tunnel::new(&configs);
                    tunnel.settle();
                    let coalesced =
                        version.version == rustls::ProtocolVersion::TLSv1_3 && client_certificate == Some(true);
                    let alone = coalesced && tickets == 0;
                    tunnel.expect(&name, if alone { Doing::Unsure } else { Doing::Unused });
                    if tickets == 0 && version.version == rustls::ProtocolVersion::TLSv1_3 {
                        tunnel.ask(200);
                        tunnel.answer(700);
                        tunnel.expect("presumed ticket", Doing::InFlight);
                        tunnel.answer(500);
                    }
                    tunnel.talk();
                    tunnel.client.send_close_notify();
                    tunnel.up();
                    tunnel.expect("goodbye", Doing::Closing);
                    println!("{name} ({:?}): {}", tunnel.client.handshake_kind(), tunnel.told);
                }
            }
        }
    }
}

#[test]
fn a_request_before_the_tickets_is_not_answered_by_them() {
    for tickets in [1, 2, 4] {
        let case = Case {
            version: &rustls::version::TLS13,
            tickets,
            client_certificate: None,
            early_data: false,
            alpn: Some("http/1.1"),
        };
        let mut tunnel = Tunnel::new(&configs(&case));
        tunnel.up();
        tunnel.down();
        tunnel.client.writer().write_all(&[b'x'; 300]).unwrap();
        tunnel.up();
        tunnel.expect("finished and request in one", Doing::InFlight);
        tunnel.down();
        tunnel.expect("tickets", Doing::InFlight);
        tunnel.answer(600);
        tunnel.expect("answer", Doing::Idle);
        println!("{}", tunnel.told);
    }
}

#[test]
fn early_data() {
    let case =
        Case { version: &rustls::version::TLS13, tickets: 2, client_certificate: None, early_data: true, alpn: None };
    let configs = configs(&case);
    let mut tunnel = Tunnel::new(&configs);
    tunnel.settle();
    tunnel.talk();
    let mut tunnel = Tunnel::new(&configs);
    tunnel.client.early_data().expect("a ticket").write_all(&[b'x'; 300]).unwrap();
    tunnel.settle();
    tunnel.expect("early request", Doing::InFlight);
    println!("{:?} {}", tunnel.client.is_early_data_accepted(), tunnel.told);
    tunnel.answer(600);
    tunnel.expect("answer", Doing::Idle);
    tunnel.talk();
}
