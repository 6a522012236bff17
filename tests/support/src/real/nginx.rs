//! The TLS front of a registry, with the settings of Harbor's own nginx.
//!
//! One process (no master), so that ending it by its id ends all of it, and no user but the one who runs the
//! tests; only a node that is to be stopped in order has a master and a worker. nginx cannot pick a port itself: when
//! the one we found free is taken meanwhile, another is tried.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::certificates::Certificates;
use super::program::{NotUp, Program, find_program, free_address, on_free_port, signal_process, unless_port_is_taken};

/// Takes no body of more than 1 MiB, and no blob of another repository by its name, so that each blob has to be sent.
const TIGHT: &str = "client_max_body_size 1m; if ($arg_mount) { set $args ''; }";

/// The one TLS version that a server speaks. Harbor's own template allows 1.2 only, and what a tunnel looks like
/// from outside differs between the two, so every test names its version.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsVersion {
    /// TLS 1.2, as Harbor ships.
    V1_2,
    /// TLS 1.3, as an ingress in front of Harbor.
    V1_3,
}

impl TlsVersion {
    /// The word for `ssl_protocols`.
    fn directive(self) -> &'static str {
        match self {
            Self::V1_2 => "TLSv1.2",
            Self::V1_3 => "TLSv1.3",
        }
    }
}

/// How an nginx in front of a registry is set up.
#[derive(Clone, Copy, Debug)]
pub struct NginxSettings {
    version: TlsVersion,
    buffering: bool,
    tickets: Option<u8>,
    verifies_clients: bool,
    names_address: bool,
}

impl NginxSettings {
    /// As Harbor sets it up: nothing is buffered, and each read from behind goes out as a record of its own.
    #[must_use]
    pub fn harbor(version: TlsVersion) -> Self {
        Self { version, buffering: false, tickets: None, verifies_clients: false, names_address: true }
    }

    /// As nginx comes: answers and requests are buffered.
    #[must_use]
    pub fn buffering(version: TlsVersion) -> Self {
        Self { buffering: true, ..Self::harbor(version) }
    }

    /// Sends that many session tickets, and resumes no session if it is none. TLS 1.2 knows one at most.
    #[must_use]
    pub fn tickets(self, tickets: u8) -> Self {
        Self { tickets: Some(tickets), ..self }
    }

    /// Takes only clients that show a certificate of the same authority.
    #[must_use]
    pub fn verifying_clients(self) -> Self {
        Self { verifies_clients: true, ..self }
    }

    /// Shows a certificate of its name alone, and not of the address at which it listens.
    #[must_use]
    pub fn of_its_name_alone(self) -> Self {
        Self { names_address: false, ..self }
    }

    /// Its lines in the server's block; `authority` is the file of the authority.
    fn directives(self, authority: &Path) -> String {
        let mut lines = vec![format!("ssl_protocols {};", self.version.directive())];
        match (self.tickets, self.version) {
            (None, _) => {}
            (Some(0), TlsVersion::V1_2) => {
                lines.extend(["ssl_session_tickets off;", "ssl_session_cache off;"].map(str::to_owned));
            }
            (Some(_), TlsVersion::V1_2) => lines.push("ssl_session_tickets on;".to_owned()),
            (Some(tickets), TlsVersion::V1_3) => lines.push(format!("ssl_conf_command NumTickets {tickets};")),
        }
        if self.verifies_clients {
            lines.push(format!("ssl_client_certificate \"{}\";", authority.display()));
            lines.push("ssl_verify_client on;".to_owned());
        }
        if !self.buffering {
            lines.extend(["proxy_buffering off;", "proxy_request_buffering off;"].map(str::to_owned));
        }
        lines.join("\n        ")
    }
}

/// A running nginx that ends TLS in front of one upstream. Dropping it ends the process.
pub struct Nginx {
    address: SocketAddr,
    certificates: Certificates,
    program: Program,
    folder: TempDir,
}

/// The server behind an nginx.
#[derive(Clone, Copy)]
struct Front<'a> {
    /// Where the requests below each path go, by plain HTTP, with further directives.
    routes: &'a [(&'a str, SocketAddr, &'a str)],
    server_name: &'a str,
    settings: NginxSettings,
    /// Whether a master has a worker, as an installed nginx has, or one process does it all.
    has_worker: bool,
}

impl Nginx {
    /// Starts HTTPS for `server_name` on a free port of 127.0.0.1, in front of plain HTTP on `upstream`.
    ///
    /// # Panics
    /// When it does not come up; the message holds its log.
    #[must_use]
    pub fn tls(upstream: SocketAddr, server_name: &str, version: TlsVersion) -> Self {
        Self::with(upstream, server_name, NginxSettings::harbor(version))
    }

    /// The same, set up as told.
    ///
    /// # Panics
    /// When it does not come up; the message holds its log.
    #[must_use]
    pub fn with(upstream: SocketAddr, server_name: &str, settings: NginxSettings) -> Self {
        let routes = [("/", upstream, "")];
        Self::on_free_port(Front { routes: &routes, server_name, settings, has_worker: false })
    }

    /// The same with a master and a worker, which can be stopped in order and started again: one node of a cluster.
    ///
    /// # Panics
    /// As [`Nginx::tls`].
    #[must_use]
    pub fn node(upstream: SocketAddr, server_name: &str, version: TlsVersion) -> Self {
        let routes = [("/", upstream, "")];
        Self::on_free_port(Front {
            routes: &routes,
            server_name,
            settings: NginxSettings::harbor(version),
            has_worker: true,
        })
    }

    /// HTTPS on exactly this address, with Harbor's routes: tokens from one service, all else from the registry. It takes no
    /// body of more than 1 MiB for a repository `tight/...`. `None` when the address is taken.
    ///
    /// # Panics
    /// When it does not come up for another reason; the message holds its log.
    #[must_use]
    pub fn harbor(address: SocketAddr, registry: SocketAddr, tokens: SocketAddr, server_name: &str) -> Option<Self> {
        let routes = [("/service/token", tokens, ""), ("/v2/tight/", registry, TIGHT), ("/", registry, "")];
        Self::at(
            address,
            Front {
                routes: &routes,
                server_name,
                settings: NginxSettings::harbor(TlsVersion::V1_2),
                has_worker: false,
            },
        )
    }

    /// On a port that is free now, again on another when that was taken meanwhile.
    fn on_free_port(front: Front) -> Self {
        on_free_port("nginx", || Self::try_at(free_address(), front))
    }

    fn at(address: SocketAddr, front: Front) -> Option<Self> {
        unless_port_is_taken("nginx", Self::try_at(address, front))
    }

    fn try_at(address: SocketAddr, front: Front) -> Result<Self, NotUp> {
        let folder = TempDir::new().expect("a temporary folder");
        let trusted = folder.path().join("trusted");
        fs::create_dir(&trusted).expect("the folder is ours");
        let certificates = Certificates::make(folder.path(), front.server_name, front.settings.names_address);
        fs::copy(&certificates.authority, trusted.join("ca.crt")).expect("openssl has made it");
        let config = config_text(address, front, &certificates);
        fs::write(folder.path().join("nginx.conf"), config).expect("the folder is ours");
        let program = start(folder.path(), address)?;
        Ok(Self { address, certificates, program, folder })
    }

    /// Asks a node to stop in order (`-s quit`): it listens no more, ends idle connections, and answers what it has
    /// begun.
    pub fn quit(&mut self) {
        self.program.signal(Signal::QUIT);
    }

    /// Kills a node on the spot: master and worker, whatever they are doing.
    pub fn kill(&mut self) {
        let workers = self.program.children();
        self.program.signal(Signal::KILL);
        self.program.await_end();
        for worker in workers {
            signal_process(worker, Signal::KILL);
        }
    }

    /// Waits until a node that was asked to has ended, and starts it again at its address.
    ///
    /// # Panics
    /// When it does not end, or does not come up.
    pub fn restart(&mut self) {
        self.program.await_end();
        self.program =
            start(self.folder.path(), self.address).unwrap_or_else(|reason| panic!("nginx is not up again: {reason}"));
    }

    /// Where it speaks HTTPS.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The file with the authority that signed its certificate (`curl --cacert`).
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.certificates.authority
    }

    /// A certificate for a client and its private key, as one PEM text.
    ///
    /// # Panics
    /// When openssl refuses to make it.
    #[must_use]
    pub fn client_identity(&self) -> Vec<u8> {
        self.certificates.make_client(self.folder.path())
    }

    /// A folder that holds nothing but the authority (`skopeo --dest-cert-dir`).
    #[must_use]
    pub fn trusted_folder(&self) -> PathBuf {
        self.folder.path().join("trusted")
    }

    /// Its log so far: one line `PORT REQUEST STATUS REUSED NAME` for each request: the client's port, `r` where its
    /// connection resumed a TLS session and `.` where not, and the name by which it was asked for in TLS, or `-`.
    #[must_use]
    pub fn log(&self) -> String {
        self.program.log()
    }
}

/// A node's worker would outlive its master.
impl Drop for Nginx {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts the nginx that is set up in this folder.
fn start(folder: &Path, address: SocketAddr) -> Result<Program, NotUp> {
    let mut command = Command::new(find_program("nginx"));
    let mut program =
        Program::start(command.args(["-e", "stderr", "-c", "nginx.conf", "-p"]).arg(folder), folder.join("log"));
    program.await_listening(address)?;
    Ok(program)
}

fn config_text(address: SocketAddr, front: Front, certificates: &Certificates) -> String {
    let Front { routes, server_name, settings, has_worker } = front;
    let directives = settings.directives(&certificates.authority);
    let locations: String = routes.iter().map(|route| location(*route)).collect();
    // A worker started by root would become somebody who may not read our folder.
    let processes = if has_worker { "user root;\nworker_processes 1;" } else { "master_process off;" };
    let certificate = certificates.server.display();
    let key = certificates.server_key.display();
    format!(
        r#"daemon off;
{processes}
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 2048; }}
http {{
    log_format short '$remote_port "$request" $status $ssl_session_reused $ssl_server_name';
    access_log /dev/stdout short;
    client_body_temp_path temp_body;
    proxy_temp_path temp_proxy;
    fastcgi_temp_path temp_fastcgi;
    uwsgi_temp_path temp_uwsgi;
    scgi_temp_path temp_scgi;
    server {{
        listen {address} ssl;
        server_name {server_name};
        ssl_certificate "{certificate}";
        ssl_certificate_key "{key}";
        {directives}
        keepalive_timeout 75s;
        client_max_body_size 0;
        chunked_transfer_encoding on;
{locations}    }}
}}
"#
    )
}

/// One route, with the settings of Harbor's own template.
fn location((path, upstream, directives): (&str, SocketAddr, &str)) -> String {
    format!(
        r"        location {path} {{
            proxy_pass http://{upstream};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_read_timeout 900s;
            proxy_send_timeout 900s;
            {directives}
        }}
"
    )
}
