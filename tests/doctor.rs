//! `roadstead doctor`: it finds each planted fault, and only that one, and names the cure; a healthy node has no problem.
//!
//! A node is a folder, with files of pullers and a /proc of its own. The registry is a server in this process that behaves
//! as told.

use std::fs;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use roadstead_test_support::{Sidecar, config, eventually_is};
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;

const SEEN_WITHIN: Duration = Duration::from_secs(7);
const CHALLENGE: &str = "HTTP/1.1 401 Unauthorized\r\nWww-Authenticate: Bearer realm=\"https://REALM/service/token\",service=\"x\"\r\n\
                         Content-Length: 0\r\n\r\n";

/// How a registry behaves.
#[derive(Clone, Copy)]
struct Manner {
    name: &'static str,
    /// How long its certificate is valid from now.
    days: i64,
    http2: bool,
    /// Whether it demands a certificate of its client.
    demands: bool,
    answer: &'static str,
}

const WELL: Manner = Manner { name: "127.0.0.1", days: 90, http2: false, demands: false, answer: CHALLENGE };

/// A registry behind TLS, and the file with its certificate.
async fn registry(manner: Manner, folder: &Path) -> SocketAddr {
    let mut parameters = rcgen::CertificateParams::new([manner.name.to_owned()]).unwrap();
    let now = std::time::SystemTime::now();
    let day = Duration::from_secs(24 * 3600);
    parameters.not_before = (now - 400 * day).into();
    let days = u32::try_from(manner.days.unsigned_abs()).unwrap();
    parameters.not_after = if manner.days < 0 { now - days * day } else { now + days * day }.into();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    fs::write(folder.join("ca.pem"), certificate.pem()).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = if manner.demands {
        let mut known = rustls::RootCertStore::empty();
        known.add(certificate.der().clone()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(known), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let mut tls = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let protocols: &[&[u8]] = if manner.http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = manner.answer.replace("REALM", &address.to_string());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(1..) = stream.read_buf(&mut head).await else { return };
                }
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    address
}

/// A node with a well registry, led to the mirror by containerd's files.
struct Node {
    folder: TempDir,
    config: String,
    host: String,
}

impl Node {
    async fn with(manner: Manner) -> Node {
        let folder = TempDir::new().unwrap();
        let host = registry(manner, folder.path()).await.to_string();
        let [proxy, admin, mirror] = free_ports();
        let ca = folder.path().join("ca.pem");
        let config = format!(
            "[listen]\nproxy = \"127.0.0.1:{proxy}\"\nadmin = \"127.0.0.1:{admin}\"\n[registries.harbor]\nhosts = [\"{host}\"]\n\
             cap = 10\nshare = 1\n[registries.harbor.tls]\nca_file = \"{}\"\n[registries.harbor.mirror]\n\
             listen = \"127.0.0.1:{mirror}\"\nupstream = \"https://{host}\"\n",
            ca.display()
        );
        let node = Node { folder, config, host };
        let table = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
        node.put("etc/containerd/config.toml", table);
        let hosts = format!("server = \"http://127.0.0.1:{mirror}\"\n[host.\"http://127.0.0.1:{mirror}\"]\n");
        node.put(&node.hosts_file(), &hosts);
        node.process(7, "init", "init", "");
        node
    }

    fn proxy(&self) -> String {
        self.config.split("proxy = \"").nth(1).unwrap().split('"').next().unwrap().to_owned()
    }

    fn mirror(&self) -> String {
        self.config.split("listen = \"").nth(1).unwrap().split('"').next().unwrap().to_owned()
    }

    fn hosts_file(&self) -> String {
        format!("etc/containerd/certs.d/{}/hosts.toml", self.host)
    }

    /// Lets the registry be at another place, for config and containerd alike.
    fn moves_to(&mut self, scheme: &str, host: &str) {
        let led = fs::read_to_string(self.folder.path().join(self.hosts_file())).unwrap();
        let before = std::mem::replace(&mut self.host, host.to_owned());
        self.config =
            self.config.replace(&format!("https://{before}"), &format!("{scheme}://{host}")).replace(&before, host);
        self.put(&self.hosts_file(), &led);
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn process(&self, pid: u32, name: &str, command: &str, environment: &str) {
        self.put(&format!("proc/{pid}/comm"), &format!("{name}\n"));
        self.put(&format!("proc/{pid}/cmdline"), &command.replace(' ', "\0"));
        self.put(&format!("proc/{pid}/environ"), &environment.replace(' ', "\0"));
    }

    /// The exit status and the report; run by a shell with this before it.
    async fn examine(&self, before: &str) -> (i32, Value) {
        self.put("sidecar.toml", &self.config);
        let binary = env!("CARGO_BIN_EXE_roadstead");
        let script = format!("{before} exec {binary} doctor --json --root . --config sidecar.toml");
        let run = Command::new("sh").args(["-c", &script]).current_dir(self.folder.path()).output().await.unwrap();
        let report = serde_json::from_slice(&run.stdout);
        let report = report.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&run.stderr)));
        (run.status.code().unwrap(), report)
    }
}

fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| StdListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn problems(report: &Value) -> Vec<&Value> {
    report["steps"].as_array().unwrap().iter().filter(|step| step["finding"] == "problem").collect()
}

/// A node without a fault has no problem, with a step for each thing that was tried.
#[tokio::test]
async fn a_healthy_node_has_no_problem() {
    let node = Node::with(WELL).await;
    let (status, report) = node.examine("").await;
    assert_eq!((status, &report["problems"]), (0, &Value::from(0)), "{report:#}");
    let of =
        |step: &str| report["steps"].as_array().unwrap().iter().find(|found| found["step"] == step).unwrap().clone();
    for step in ["config", "nofile", "sidecars", "dns", "tcp", "tls", "http2", "v2", "realm", "puller"] {
        assert_eq!(of(step)["finding"], "fine", "{step}: {report:#}");
    }
    // A file for all names leads this one, too.
    let folder = node.folder.path().join("etc/containerd/certs.d");
    fs::rename(folder.join(&node.host), folder.join("_default")).unwrap();
    let (status, led) = node.examine("").await;
    assert_eq!(status, 0, "{led:#}");
    // There is no sidecar, no date, no store.
    for step in ["mirror", "proxy", "bypass", "clock", "lease"] {
        assert_eq!(of(step)["finding"], "skipped", "{step}: {report:#}");
        assert!(!of(step)["said"].as_str().unwrap().is_empty());
    }
}

/// A proxy of a service that does not stand between it and the sidecar is no problem.
#[tokio::test]
async fn a_proxy_for_other_registries_is_no_problem() {
    let node = Node::with(WELL).await;
    let corporate = "HTTP_PROXY=http://10.0.0.9:3128 HTTPS_PROXY=http://10.0.0.9:3128";
    // Go uses no proxy for loopback; others need an entry.
    node.process(200, "containerd", "containerd", corporate);
    node.put(
        "etc/dragonfly/dfdaemon.yaml",
        &format!("proxy:\n  registryMirror:\n    addr: http://{}\n", node.mirror()),
    );
    node.process(201, "dfdaemon", "dfdaemon", &format!("{corporate} NO_PROXY=localhost,127.0.0.0/8"));
    // The name in capitals counts.
    let ours = format!("HTTPS_PROXY=http://docker:x@{}", node.proxy());
    node.process(202, "dockerd", "dockerd", &format!("{ours} https_proxy=http://10.0.0.9:3128"));
    // docker's own config is not in its environment.
    let proxies = format!("{{\"proxies\": {{\"https-proxy\": \"http://{}\"}}}}", node.proxy());
    node.put("etc/docker/daemon.json", &proxies);
    node.process(203, "dockerd", "dockerd", "PATH=/bin");
    node.process(204, "dockerd", "dockerd", corporate);
    let (status, report) = node.examine("").await;
    assert_eq!(status, 0, "{report:#}");
    let said = |pid: u32| {
        let steps = report["steps"].as_array().unwrap();
        let is_it = |step: &&Value| step["subject"].as_str().unwrap().ends_with(&format!("(pid {pid})"));
        steps.iter().find(is_it).unwrap()["said"].as_str().unwrap().to_owned()
    };
    assert!(said(200).contains("other registries") && said(201).contains("other registries"), "{report:#}");
    assert!((202..=204).all(|pid| said(pid).contains("is the sidecar")), "{report:#}");
}

/// A config that changed after the start of its service is told: whether it was read cannot be seen.
#[tokio::test]
async fn a_config_that_changed_after_the_start_is_told() {
    let node = Node::with(WELL).await;
    node.process(200, "containerd", "containerd", "");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    node.put("proc/stat", &format!("cpu 1 2 3\nbtime {}\n", now - 1000));
    for (seconds, is_told) in [(900, true), (1010, false)] {
        let fields = ["0"; 18].join(" ");
        node.put("proc/200/stat", &format!("200 (a) b) S {fields} {} 0 0\n", seconds * 100));
        let (status, report) = node.examine("").await;
        assert_eq!(status, 0, "{report:#}");
        assert_eq!(report.to_string().contains("was changed after it started"), is_told, "{seconds}: {report:#}");
    }
}

/// A fault, the manner of the registry, how it is planted, the step that finds it, and words of its cure.
type Fault = (&'static str, Manner, fn(&mut Node), &'static str, &'static str);

const LONG_AGO: &str = "HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\nDate: Wed, 01 Jan 2020 00:00:00 GMT\r\n\
                        Content-Length: 0\r\n\r\n";
const AROUND: &str = "HTTP/1.1 401 Unauthorized\r\nWww-Authenticate: Bearer realm=\"https://sso.example.com/token\"\r\n\
                      Content-Length: 0\r\n\r\n";

/// Each fault alone is the one problem of the report, under its step, with its cure.
async fn finds_each(faults: &[Fault]) {
    for (fault, manner, plant, step, cure) in faults {
        let mut node = Node::with(*manner).await;
        plant(&mut node);
        let (status, report) = node.examine("").await;
        let found = problems(&report);
        assert_eq!((status, found.len()), (1, 1), "{fault}: {report:#}");
        assert_eq!(found[0]["step"], *step, "{fault}: {report:#}");
        assert!(found[0]["cure"].as_str().unwrap().contains(cure), "{fault}: {report:#}");
        assert!(!report.to_string().contains("hunter2"), "{report:#}");
        assert_eq!(
            fault.contains("mounted"),
            found[0]["said"].as_str().unwrap().contains("mount it there"),
            "{report:#}"
        );
    }
}

#[tokio::test]
async fn each_fault_of_config_and_registry_is_found_with_its_cure() {
    let faults: &[Fault] = &[
        ("a wrong key", WELL, |node| node.config = node.config.replace("cap =", "caps ="), "config", "roadstead check"),
        ("no file", WELL, |node| node.config = node.config.replace("ca.pem", "no.pem"), "tls_files", "PEM"),
        ("no name", WELL, |node| node.moves_to("https", "harbor.invalid"), "dns", "resolv.conf"),
        (
            "itself",
            WELL,
            |node| {
                let mirror = node.mirror();
                node.moves_to("http", &mirror);
            },
            "address",
            "listener of this sidecar",
        ),
        ("closed", WELL, |node| node.moves_to("https", "127.0.0.1:1"), "tcp", "firewall"),
        (
            "no store of leases",
            WELL,
            |node| {
                node.config = node.config.replace("share = 1\n", "share = \"lease\"\n")
                    + "[lease]\nredis = \"redis://127.0.0.1:1/0\"\nnodes = 2\n";
            },
            "lease",
            "Redis runs",
        ),
        (
            "wrong CA",
            WELL,
            |node| {
                let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
                node.put("ca.pem", &other.cert.pem());
            },
            "tls",
            "tls.ca_file",
        ),
        ("expired", Manner { days: -1, ..WELL }, |_| {}, "tls", "Renew it"),
        ("ends soon", Manner { days: 3, ..WELL }, |_| {}, "tls", "renew"),
        ("wrong name", Manner { name: "other.example.com", ..WELL }, |_| {}, "tls", "tls.server_name"),
        ("no certificate of ours", Manner { demands: true, ..WELL }, |_| {}, "tls", "tls.client_cert_file"),
        ("HTTP/2", Manner { http2: true, ..WELL }, |_| {}, "http2", "turn HTTP/2 off"),
        (
            "no registry",
            Manner { answer: "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", ..WELL },
            |_| {},
            "v2",
            "mirror.upstream",
        ),
        (
            "overloaded",
            Manner { answer: "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", ..WELL },
            |_| {},
            "v2",
            "overloaded",
        ),
        ("realm", Manner { answer: AROUND, ..WELL }, |_| {}, "realm", "public_urls"),
        ("clock", Manner { answer: LONG_AGO, ..WELL }, |_| {}, "clock", "synchronise"),
    ];
    finds_each(faults).await;
}

#[tokio::test]
async fn each_fault_of_containerds_files_is_found_with_its_cure() {
    let faults: &[Fault] = &[
        (
            "no config_path",
            WELL,
            |node| node.put("etc/containerd/config.toml", "version = 2\n"),
            "puller",
            "setup containerd --write",
        ),
        (
            "not led",
            WELL,
            |node| fs::remove_file(node.folder.path().join(node.hosts_file())).unwrap(),
            "puller",
            "setup containerd --write",
        ),
        (
            "a link that is not mounted",
            WELL,
            |node| {
                let folder = node.folder.path().join("etc/containerd/certs.d");
                fs::remove_dir_all(&folder).unwrap();
                std::os::unix::fs::symlink("/data/certs.d", folder).unwrap();
            },
            "puller",
            "setup containerd --write",
        ),
        (
            "a fall-back",
            WELL,
            |node| {
                let text = fs::read_to_string(node.folder.path().join(node.hosts_file())).unwrap();
                node.put(&node.hosts_file(), &text.replacen("http://127", "https://127", 1));
            },
            "puller",
            "setup containerd --write",
        ),
        (
            "several folders",
            WELL,
            |node| {
                let table = "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n";
                node.put("etc/containerd/config.toml", table);
            },
            "puller",
            "setup containerd --write",
        ),
        (
            "another name of the folder",
            WELL,
            |node| {
                let name = node.host.replace(':', "_");
                node.put(&format!("etc/containerd/certs.d/{name}_/hosts.toml"), "server = \"https://other\"\n");
            },
            "puller",
            "setup containerd --write",
        ),
        (
            "an empty folder before it",
            WELL,
            |node| {
                let two = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/a:/etc/containerd/certs.d\"\n";
                node.put("etc/containerd/config.toml", two);
                node.put("etc/a/_default/ca.crt", "");
            },
            "puller",
            "setup containerd --write",
        ),
    ];
    finds_each(faults).await;
}

#[tokio::test]
async fn each_fault_of_the_node_is_found_with_its_cure() {
    let faults: &[Fault] = &[
        (
            "two sidecars",
            WELL,
            |node| {
                node.process(100, "roadstead", "roadstead --config /a", "");
                node.process(101, "roadstead", "roadstead --config /b run", "");
                node.process(102, "roadstead", "roadstead status", "");
            },
            "sidecars",
            "share",
        ),
        (
            "dfdaemon",
            WELL,
            |node| {
                node.put(
                    "etc/dragonfly/dfdaemon.yaml",
                    "proxy:\n  registryMirror:\n    addr: https://index.docker.io\n",
                );
            },
            "puller",
            "setup dfdaemon --write",
        ),
        ("docker", WELL, |node| node.put("etc/docker/daemon.json", "{}"), "puller", "setup docker --write"),
        (
            "no-proxy of docker",
            WELL,
            |node| {
                let proxies =
                    format!("{{\"https-proxy\": \"http://{}\", \"no-proxy\": \"127.0.0.0/8\"}}", node.proxy());
                node.put("etc/docker/daemon.json", &format!("{{\"proxies\": {proxies}}}"));
            },
            "puller",
            "narrower networks",
        ),
        (
            "podman",
            WELL,
            |node| node.put("etc/containers/registries.conf", &format!("[[registry]]\nlocation = \"{}\"\n", node.host)),
            "puller",
            "setup podman --write",
        ),
        (
            "NO_PROXY",
            WELL,
            |node| {
                let proxy = node.proxy();
                node.process(
                    200,
                    "dockerd",
                    "dockerd",
                    &format!("HTTPS_PROXY=http://docker:x@{proxy} NO_PROXY=localhost,127.0.0.0/8"),
                );
            },
            "service",
            "narrower networks",
        ),
        (
            "another proxy",
            WELL,
            |node| node.process(200, "crio", "crio", "https_proxy=http://me:hunter2@10.0.0.9:3128"),
            "service",
            "HTTPS_PROXY",
        ),
        (
            "another proxy before a mirror",
            WELL,
            |node| {
                let mirror = node.mirror();
                let yaml = format!("proxy:\n  registryMirror:\n    addr: http://{mirror}\n");
                node.put("etc/dragonfly/dfdaemon.yaml", &yaml);
                // It is not written in Go.
                node.process(200, "dfdaemon", "dfdaemon", "HTTP_PROXY=http://me:hunter2@10.0.0.9:3128");
            },
            "service",
            "127.0.0.1 in NO_PROXY",
        ),
        (
            "docker was not restarted",
            WELL,
            |node| {
                let proxy = node.proxy();
                let drop_in = format!("[Service]\nEnvironment=HTTPS_PROXY=http://docker:x@{proxy}\n");
                node.put("etc/systemd/system/docker.service.d/roadstead.conf", &drop_in);
                node.process(200, "dockerd", "dockerd", "PATH=/bin");
            },
            "service",
            "systemctl daemon-reload && systemctl restart docker",
        ),
    ];
    finds_each(faults).await;
    // A warning of `check`, which depends on the limit of the shell.
    let node = Node::with(WELL).await;
    let (status, report) = node.examine("ulimit -n 64;").await;
    let found = problems(&report);
    assert_eq!((status, found.len(), &found[0]["step"]), (1, 1, &Value::from("nofile")), "{report:#}");
    assert!(found[0]["cure"].as_str().unwrap().contains("LimitNOFILE"));
}

/// Beside a running sidecar it sends a request of its own through mirror and proxy, and tells what the radar sees.
#[tokio::test]
async fn beside_a_sidecar_mirror_proxy_and_bypass_are_tried() {
    let mut node = Node::with(WELL).await;
    let ports = node.config.split("[registries").next().unwrap().to_owned();
    let mirror = node.mirror();
    let tables = node.config.replace(&ports, "").replace(&mirror, "127.0.0.1:0");
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&tables)).await;
    let led = sidecar.listener("mirror").unwrap().to_string();
    let listen = format!("[listen]\nproxy = \"{}\"\nadmin = \"{}\"\n", sidecar.proxy(), sidecar.admin());
    node.config = node.config.replace(&ports, &listen).replace(&mirror, &led);
    let hosts = fs::read_to_string(node.folder.path().join(node.hosts_file())).unwrap();
    node.put(&node.hosts_file(), &hosts.replace(&mirror, &led));
    let find = |report: &Value, step: &str| {
        let steps = report["steps"].as_array().unwrap();
        steps.iter().find(|found| found["step"] == step).unwrap_or_else(|| panic!("no {step}: {report:#}")).clone()
    };
    let radar = async || sidecar.status().await["registries"]["harbor"]["bypass"]["connections"].as_u64();
    eventually_is("the radar has looked", SEEN_WITHIN, Some(0), radar).await;
    let (status, report) = node.examine("").await;
    for step in ["mirror", "proxy", "bypass"] {
        assert_eq!(find(&report, step)["finding"], "fine", "{report:#}");
    }
    assert_eq!(status, 0, "{report:#}");

    let around = TcpStream::connect(node.host.parse::<SocketAddr>().unwrap()).await.unwrap();
    eventually_is("the bypass is seen", SEEN_WITHIN, Some(1), radar).await;
    // The sidecar runs with another config than the one that is examined.
    node.config = node.config.replace(&led, "127.0.0.1:1");
    node.put(&node.hosts_file(), &hosts.replace(&mirror, "127.0.0.1:1"));
    let (status, report) = node.examine("").await;
    assert_eq!((status, problems(&report).len()), (1, 2), "{report:#}");
    assert!(find(&report, "bypass")["cure"].as_str().unwrap().contains("roadstead setup"));
    assert!(find(&report, "mirror")["cure"].as_str().unwrap().contains("reload"));
    drop(around);
}
