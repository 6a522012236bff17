//! Dragonfly's chart with `k8s/overlays`: by helm 4 with the post-renderer, and as Argo CD builds it. A stand-in for dfdaemon
//! reads the files that come out and sends its requests where the real one would.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use roadstead_test_support::{Sidecar, StubRegistry, Wire};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::manifests::{config, config_text, find, named};
use crate::tool::{copy_folder, documents, pinned, repository, run, text_of};

const HARBOR: &str = "harbor.example.com";

/// A folder with `k8s/`, and a chart that renders as Dragonfly's 1.7.4 does: its files of dfdaemon and dfinit are values.
pub struct Stage(TempDir);

impl Stage {
    pub fn new() -> Stage {
        let stage = Stage(TempDir::new().unwrap());
        copy_folder(&repository("k8s"), &stage.path("k8s"));
        let chart = stage.path("chart");
        fs::create_dir_all(chart.join("templates")).unwrap();
        fs::write(chart.join("Chart.yaml"), "{apiVersion: v2, name: dragonfly, version: 1.7.4}").unwrap();
        let mut rendered = documents(&text_of("tests/deploy/dragonfly.yaml"));
        let mut values = json!({});
        for (name, file, place) in [
            ("dragonfly-client", "dfdaemon.yaml", "/client/config"),
            ("dragonfly-dfinit", "dfinit.yaml", "/client/dfinit/config"),
            ("dragonfly-seed-client", "dfdaemon.yaml", "/seedClient/config"),
        ] {
            let data = rendered
                .iter_mut()
                .find(|it| it["kind"] == "ConfigMap" && it["metadata"]["name"] == name)
                .map(|it| &mut it["data"][file])
                .unwrap();
            let mut value = &mut values;
            for part in place.split('/').skip(1) {
                value = &mut value[part];
            }
            *value = documents(data.as_str().unwrap()).remove(0);
            *data = json!(format!("@{}@", place.replace('/', ".")));
        }
        // The chart's own list: no Harbor in it.
        values["client"]["dfinit"]["config"]["containerRuntime"]["containerd"]["registries"] = json!([]);
        fs::write(chart.join("values.yaml"), values.to_string()).unwrap();
        let text: Vec<String> = rendered.iter().map(Value::to_string).collect();
        let text = text.join("\n---\n").replace("\"@", "{{ .Values").replace("@\"", " | toYaml | toJson }}");
        fs::write(chart.join("templates/all.yaml"), text).unwrap();
        stage
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(pinned(program));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = [pinned("helm").parent().unwrap().to_owned()].into_iter().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders).unwrap());
        for folder in ["HELM_DATA_HOME", "HELM_CONFIG_HOME", "HELM_CACHE_HOME"] {
            command.env(folder, self.path(folder));
        }
        command
    }

    /// As docs/install.md says it, but for the place of the chart.
    fn helm(&self, values: &Path) -> Vec<Value> {
        if !self.path("HELM_DATA_HOME").exists() {
            run(self.command("helm").args(["plugin", "install"]).arg(self.path("k8s/overlays/dragonfly")));
        }
        let mut helm = self.command("helm");
        helm.args(["template", "dragonfly"]).arg(self.path("chart")).args([
            "--namespace",
            "dragonfly-system",
            "--values",
        ]);
        documents(&run(helm.arg(values).args(["--post-renderer", "roadstead-sidecar"])))
    }

    fn helm_with_our_values(&self) -> Vec<Value> {
        self.helm(&self.path("k8s/overlays/dragonfly/values.yaml"))
    }

    fn argo_cd(&self) -> Vec<Value> {
        let overlay = self.path("k8s/overlays/argocd");
        copy_folder(&self.path("chart"), &overlay.join("charts/dragonfly"));
        let file = overlay.join("kustomization.yaml");
        let text = fs::read_to_string(&file).unwrap();
        // The one thing that needs the network.
        let local: Vec<&str> = text.lines().filter(|line| !line.starts_with("    repo: https://")).collect();
        assert_eq!(local.len() + 1, text.lines().count());
        fs::write(&file, local.join("\n")).unwrap();
        documents(&run(self.command("kubectl").args(["kustomize", "--enable-helm"]).arg(overlay)))
    }
}

/// One request for Harbor, before it has an address.
struct Wanted {
    method: &'static str,
    path: &'static str,
    /// Whether it asks what a tag means, which a host in hosts.toml serves only with the capability `resolve`.
    resolves: bool,
}

/// The requests of containerd for one image.
const PULL: [Wanted; 5] = [
    Wanted { method: "HEAD", path: "/v2/library/app/manifests/v1", resolves: true },
    Wanted {
        method: "GET",
        path: "/service/token?service=harbor-registry&scope=repository:library/app:pull",
        resolves: true,
    },
    Wanted { method: "GET", path: "/v2/library/app/manifests/sha256:1", resolves: false },
    Wanted { method: "GET", path: "/v2/library/app/blobs/sha256:2", resolves: false },
    Wanted { method: "GET", path: "/v2/library/app/blobs/sha256:3", resolves: false },
];

/// containerd with the files of dfinit, and the dfdaemon behind it: the address of the registry is the header
/// `X-Dragonfly-Registry`, else (since client 1.3.5) containerd's `ns`, else `registryMirror.addr`.
struct Dfdaemon {
    /// Harbor's part of hosts.toml; none, where nobody wrote it, and requests come without containerd.
    hosts: Option<Value>,
    registry_mirror: String,
    knows_ns: bool,
}

impl Dfdaemon {
    fn of(documents: &[Value], name: &str, has_containerd: bool) -> Dfdaemon {
        let file = |name: &str, file: &str| {
            self::documents(find(documents, "ConfigMap", name)["data"][file].as_str().unwrap()).remove(0)
        };
        let dfinit = file("dragonfly-dfinit", "dfinit.yaml");
        let registries = dfinit["containerRuntime"]["containerd"]["registries"].as_array().unwrap().clone();
        let config = file(name, "dfdaemon.yaml");
        Dfdaemon {
            hosts: registries.into_iter().find(|it| has_containerd && it["hostNamespace"] == HARBOR),
            registry_mirror: config["proxy"]["registryMirror"]["addr"].as_str().unwrap().to_owned(),
            knows_ns: true,
        }
    }

    /// The base URL of the server that is asked.
    fn registry_of(&self, wanted: &Wanted) -> String {
        if let Some(hosts) = &self.hosts {
            let can = |what: &str| hosts["capabilities"].as_array().unwrap().contains(&json!(what));
            // dfinit writes serverAddr as `server`, where containerd goes itself, and as the header.
            if !can("pull") || (wanted.resolves && !can("resolve")) || hosts["serverAddr"].is_string() {
                return hosts["serverAddr"].as_str().unwrap().to_owned();
            }
            if self.knows_ns {
                return format!("https://{HARBOR}");
            }
        }
        self.registry_mirror.clone()
    }
}

/// Harbor behind a sidecar, and Harbor as it is reached around it.
struct Network {
    mirror_url: String,
    mirror: SocketAddr,
    _sidecar: Sidecar,
    harbor: StubRegistry,
    around: StubRegistry,
}

impl Network {
    /// The sidecar with the config that its pod mounts, on ports of this test.
    async fn of(documents: &[Value], kind: &str, name: &str) -> Network {
        let pod = &find(documents, kind, name)["spec"]["template"]["spec"];
        let text = config_text(documents, pod, named(&pod["initContainers"], "roadstead"));
        let listen = config(text).registries[0].mirror.as_ref().expect("a mirror").listen;
        let (harbor, around) = (StubRegistry::builder().start().await, StubRegistry::builder().start().await);
        let mut ours = text.replace("0.0.0.0:4131", "127.0.0.1:0");
        for port in ["4128", "4129", &listen.port().to_string()] {
            ours = ours.replace(&format!("127.0.0.1:{port}"), "127.0.0.1:0");
        }
        let ours = ours.replace(&format!("\"https://{HARBOR}\""), &format!("\"http://{}\"", harbor.address()));
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &ours).await;
        let mirror = sidecar.listener("mirror").expect("a mirror");
        Network { mirror_url: format!("http://{listen}"), mirror, _sidecar: sidecar, harbor, around }
    }

    /// Pulls an image; how many requests Harbor got through the sidecar, and how many around it.
    async fn pull(&self, dfdaemon: &Dfdaemon) -> (usize, usize) {
        let before = (self.harbor.requests(), self.around.requests());
        for wanted in &PULL {
            let is_mirror = dfdaemon.registry_of(wanted).trim_end_matches('/') == self.mirror_url;
            let address = if is_mirror { self.mirror } else { self.around.address() };
            let target = format!("{}{}ns={HARBOR}", wanted.path, if wanted.path.contains('?') { '&' } else { '?' });
            Wire::open(address).await.unwrap().ask(wanted.method, &target, &["Host: registry"]).await.unwrap();
        }
        (self.harbor.requests() - before.0, self.around.requests() - before.1)
    }
}

/// Clients and seeds, current and old: everything comes to the mirror. Without the header a current client goes around it,
/// which shows that the judge sees it.
#[tokio::test]
async fn every_request_of_dfdaemon_comes_to_the_mirror() {
    let stage = Stage::new();
    let rendered = stage.helm_with_our_values();
    let mut urls = Vec::new();
    for (kind, name, has_containerd) in
        [("DaemonSet", "dragonfly-client", true), ("StatefulSet", "dragonfly-seed-client", false)]
    {
        let network = Network::of(&rendered, kind, name).await;
        let mut dfdaemon = Dfdaemon::of(&rendered, name, has_containerd);
        assert_eq!(dfdaemon.hosts.is_some(), has_containerd);
        for knows_ns in [true, false] {
            dfdaemon.knows_ns = knows_ns;
            assert_eq!(network.pull(&dfdaemon).await, (PULL.len(), 0), "{name}, ns {knows_ns}");
        }
        urls.push(network.mirror_url.clone());
        if !has_containerd {
            continue;
        }
        // registryMirror alone: containerd's `ns` goes before it.
        let hosts = dfdaemon.hosts.as_mut().unwrap();
        hosts.as_object_mut().unwrap().remove("serverAddr");
        dfdaemon.knows_ns = true;
        assert_eq!(network.pull(&dfdaemon).await, (0, PULL.len()));
        dfdaemon.knows_ns = false;
        assert_eq!(network.pull(&dfdaemon).await, (PULL.len(), 0), "an old client");
    }
    assert_eq!(urls[0], urls[1], "one address everywhere, so that a task is the same for all");
    // The chart without our values knows nothing of the mirror.
    let plain = stage.path("plain.yaml");
    fs::write(&plain, "{}").unwrap();
    let rendered = stage.helm(&plain);
    let network = Network::of(&rendered, "DaemonSet", "dragonfly-client").await;
    assert_eq!(network.pull(&Dfdaemon::of(&rendered, "dragonfly-client", true)).await, (0, PULL.len()));
}

/// The time that the chart gives a piece, of clients and of seeds, is what the pages say.
#[test]
fn the_chart_gives_a_piece_the_time_that_the_pages_say() {
    let rendered = documents(&text_of("tests/deploy/dragonfly.yaml"));
    let time_of = |name: &str| {
        let text = find(&rendered, "ConfigMap", name)["data"]["dfdaemon.yaml"].as_str().unwrap().to_owned();
        text.lines()
            .find_map(|line| line.trim().strip_prefix("pieceTimeout: ")?.strip_suffix('s').map(str::to_owned))
            .unwrap()
    };
    let (client, seed) = (time_of("dragonfly-client"), time_of("dragonfly-seed-client"));
    for (page, said) in [
        ("docs/pullers/dfdaemon.md", format!("{client} s for clients, **{seed} s for seed clients**")),
        ("k8s/README.md", format!("{client} s in clients and **{seed} s in seed clients**")),
    ] {
        assert!(text_of(page).contains(&said), "{page} does not say {said:?}");
    }
}

/// helm 4 with the post-renderer and Argo CD give the same objects.
#[test]
fn helm_and_argo_cd_render_the_same() {
    let stage = Stage::new();
    let (helm, argo_cd) = (stage.helm_with_our_values(), stage.argo_cd());
    assert!(helm.len() > 15, "{}", helm.len());
    assert_eq!(helm.len(), argo_cd.len());
    for document in &helm {
        let (kind, name) = (document["kind"].as_str().unwrap(), document["metadata"]["name"].as_str().unwrap());
        assert_eq!(document, find(&argo_cd, kind, name), "{kind} {name}");
    }
    let application = &documents(&text_of("k8s/overlays/argocd/application.yaml"))[0];
    assert!(repository(application["spec"]["source"]["path"].as_str().unwrap()).join("kustomization.yaml").exists());
}
