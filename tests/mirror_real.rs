//! Real pullers at the mirror of a registry as Harbor is one: TLS by nginx, HTTP/1.1, tokens from a service that fails.
//!
//! skopeo, podman and containerd speak plain HTTP to the mirror, and know nothing of TLS: what they get must be what the
//! registry holds, byte for byte.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use roadstead_test_support::real::{Containerd, GuardedRegistry, OciImage, Podman, Skopeo, not_run};
use roadstead_test_support::{Illness, PASSWORD, Sidecar, SocketWatch, USER, config, eventually, eventually_is};
use serde_json::Value;
use tempfile::TempDir;

const SLOTS: usize = 2;
const LAYERS: u64 = 4;
const LAYER_BYTES: usize = 2 << 20;
/// Layers, config and manifest.
const BLOBS: usize = 6;
/// The name that the registry's certificate has, and that nobody can resolve.
const NAME: &str = "registry.test";
const TEAM: &str = "team/image:latest";
/// nginx refuses a layer here, by its length.
const TIGHT: &str = "tight/image:latest";

/// An image goes to the registry and comes back through the mirror. Every request passes it, those for tokens and those
/// to the address of an upload too, on no more than two connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_pushes_and_pulls_with_tokens_through_the_mirror() {
    let stage = Stage::set().await;
    let watch = SocketWatch::start(stage.registry.address());
    stage.push().await;
    let pulled = stage.folder.path().join("pulled");
    let back = ["--src-tls-verify=false"];
    stage.pull_from(&stage.mirrored(TEAM), &back, &pulled).await.unwrap();
    let peak = watch.stop();

    stage.assert_same(&OciImage::blobs_in(&pulled));
    assert!((1..=SLOTS).contains(&peak.most), "{peak:?}");
    let finished = stage.sidecar.finished();
    let through = |what: &str| finished.iter().filter(|line| text(line, "target").contains(what)).count();
    // One to push and one to pull, at least; each blob but the manifest is started, filled and ended.
    assert!(through("/service/token") >= 2, "{finished:#?}");
    assert!(through("/blobs/uploads/") >= 3 * (BLOBS - 1), "{finished:#?}");
    stage.all_passed_the_mirror().await;
}

/// skopeo sends a layer that nginx refuses by its length, longer than what the kernel takes of it, and says what nginx said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_says_why_a_push_is_refused() {
    let stage = Stage::set().await;
    let large = OciImage::make(&stage.folder.path().join("large"), 1, 32 << 20);
    stage.assert_refused(stage.push_to(large.folder(), TIGHT).await);
}

/// Each failure of a token service, as Harbor's fails: a pull without the mirror fails by it, and a pull through the
/// mirror does not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_service_that_fails_is_not_noticed_at_the_mirror() {
    let stage = Stage::set().await;
    stage.push().await;
    let direct = format!("docker://{}/team/image:latest", stage.registry.address());
    let trusted = stage.registry.trusted_folder().display().to_string();
    let tokens = &stage.registry.tokens;
    let illnesses =
        [Illness::PoisonedToken, Illness::InternalError, Illness::BadGateway, Illness::DatabaseError, Illness::Reset];
    for illness in illnesses {
        let pulled = stage.folder.path().join(format!("{illness:?}"));
        let before = tokens.struck();
        tokens.fall_ill(illness);
        let without = stage.pull_from(&direct, &["--src-cert-dir", &trusted], &pulled.join("direct")).await;
        assert!(without.is_err(), "{illness:?}: a pull without the mirror did not fail");
        assert!(tokens.struck() > before, "{illness:?} did not strike");

        let before = tokens.struck();
        tokens.fall_ill(illness);
        let with = stage.pull_from(&stage.mirrored(TEAM), &["--src-tls-verify=false"], &pulled.join("mirrored")).await;
        assert_eq!(with, Ok(()), "{illness:?}\n{}", stage.sidecar.log_text());
        assert!(tokens.struck() > before, "{illness:?} did not strike");
        stage.assert_same(&OciImage::blobs_in(&pulled.join("mirrored")));
    }
    let metrics = stage.sidecar.metrics().await;
    let repaired = metrics.count("roadstead_repaired_total", &[("registry", "stub")]);
    assert_eq!(repaired, illnesses.len() as u64, "one token of each pull was repaired");
}

/// podman keeps the credentials of a registry from its mirror: a private project cannot be pulled so, as the page for podman says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_keeps_a_registrys_credentials_from_its_mirror() {
    let stage = Stage::set().await;
    stage.push().await;
    let podman = match Podman::with_mirror(NAME, &stage.mirror.to_string(), (NAME, &credentials())) {
        Ok(podman) => podman,
        Err(cause) => return not_run(&cause),
    };
    // The log comes some milliseconds late.
    let soon = Duration::from_secs(5);
    let is_pushed =
        async || stage.sidecar.finished().iter().any(|line| text(line, "target").ends_with("/manifests/latest"));
    eventually_is("the last line of the push", soon, true, is_pushed).await;
    let before = stage.sidecar.finished().len();
    let pulled = tokio::task::block_in_place(|| podman.pull(&format!("{NAME}/team/image:latest")));
    assert!(pulled.is_err(), "it was pulled without a word of who pulls");
    eventually_is("it asked the mirror", soon, true, async || stage.sidecar.finished().len() > before).await;
    let asked = stage.sidecar.finished().split_off(before);
    assert!(asked.iter().all(|line| !text(line, "target").contains("/blobs/")), "{asked:#?}");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pullers/podman.md")).unwrap();
    assert!(page.contains("**Private projects do not work through a configured mirror.**"));
}

/// podman takes the mirror from registries.conf. The registry's own name leads nowhere, so it was the mirror or nothing. It
/// pushes to no mirror but one that is named, under another name and back to the same registry. A push that nginx refuses
/// is told in nginx's words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_pulls_by_registries_conf_and_pushes() {
    let stage = Stage::set().await;
    stage.push().await;
    let mirror = stage.mirror.to_string();
    let podman = match Podman::with_mirror(NAME, &mirror, (&mirror, &credentials())) {
        Ok(podman) => podman,
        Err(cause) => return not_run(&cause),
    };
    let image = format!("{NAME}/team/image:latest");
    let saved = stage.folder.path().join("saved");
    let pushed = format!("{}/team/pushed:latest", stage.mirror);
    tokio::task::block_in_place(|| {
        podman.pull(&image).unwrap();
        podman.save(&image, &saved).unwrap();
        podman.push(&image, &pushed).unwrap();
    });
    stage.all_passed_the_mirror().await;
    tokio::task::block_in_place(|| {
        stage.assert_refused(podman.push(&image, &format!("{}/{TIGHT}", stage.mirror)));
    });
    let log = stage.registry.log();
    assert!(log.lines().any(|line| line.contains("\"PUT /v2/team/pushed/manifests/latest")), "{log}");
    // podman writes a manifest of its own; layers and config are the image.
    let sent = OciImage::blobs_in(stage.image.folder());
    let (_manifest, image) = stage.image.digests().split_last().unwrap();
    assert_eq!(image.len(), BLOBS - 1);
    for digest in image {
        let received = std::fs::read(saved.join(digest.trim_start_matches("sha256:"))).unwrap();
        assert!(received == sent[digest], "{digest} is not what was pushed");
    }
}

/// containerd takes the mirror from the hosts.toml that `roadstead setup` writes, to pull and to push. A push that nginx
/// refuses fails, and each refusal comes to the client. `ctr` mostly repeats it; its words depend on whether it was still reading the
/// layer, and what it logs meanwhile may be lost when it exits. `--undo` leaves nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_pulls_and_pushes_by_hosts_toml() {
    let stage = Stage::set().await;
    stage.push().await;
    let containerd = match tokio::task::block_in_place(Containerd::start) {
        Ok(containerd) => containerd,
        Err(cause) => return not_run(&cause),
    };
    let hosts = stage.folder.path().join("etc/containerd/certs.d").display().to_string();
    stage.set_up_containerd("--write");
    let credentials = credentials();
    let (options, local) = (["--hosts-dir", &hosts, "--user", &credentials], format!("{NAME}/{TEAM}"));
    tokio::task::block_in_place(|| {
        containerd.pull(&options, &local).unwrap();
        containerd.push(&options, &format!("{NAME}/team/pushed:latest"), &local).unwrap();
    });
    stage.all_passed_the_mirror().await;
    let before = stage.sidecar.finished().len();
    let blobs = tokio::task::block_in_place(|| {
        let told = [&options[..], &["--http-dump"]].concat();
        containerd.push(&told, &format!("{NAME}/{TIGHT}"), &local).expect_err("nginx takes no such layer");
        let blob = |digest: &String| (digest.clone(), containerd.blob(digest).unwrap());
        stage.image.digests().iter().map(blob).collect()
    });
    stage.assert_same(&blobs);
    let is_refusal = |line: &Value| line["status"] == 413 && text(line, "outcome") == "served";
    eventually("a refusal", Duration::from_secs(10), async || {
        let relayed = stage.sidecar.finished().split_off(before);
        if relayed.iter().any(is_refusal) { Ok(()) } else { Err(relayed) }
    })
    .await;
    let served = stage.registry.log().lines().filter(|line| line.contains("?ns=registry.test")).count();
    assert!(served >= BLOBS, "{}", stage.registry.log());
    stage.set_up_containerd("--undo");
    assert!(!Path::new(&hosts).exists());
}

fn credentials() -> String {
    format!("{USER}:{PASSWORD}")
}

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line[key].as_str().unwrap_or_default()
}

/// A guarded registry, a mirror of it, and an image.
struct Stage {
    registry: GuardedRegistry,
    sidecar: Sidecar,
    mirror: SocketAddr,
    skopeo: Skopeo,
    image: OciImage,
    folder: TempDir,
}

impl Stage {
    /// Runs `roadstead setup containerd` on a node whose root is our folder.
    fn set_up_containerd(&self, option: &str) {
        let root = self.folder.path();
        let file = |name: &str, text: String| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let table = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
        file("etc/containerd/config.toml", table.to_owned());
        let registry = format!("[registries.stub]\nhosts = [\"{NAME}\"]\ncap = {SLOTS}\nshare = 1\n");
        let mirror = format!("mirror.listen = \"{}\"\nmirror.upstream = \"https://{NAME}\"\n", self.mirror);
        let config = file("setup.toml", registry + &mirror);
        let mut setup = std::process::Command::new(env!("CARGO_BIN_EXE_roadstead"));
        setup.args(["setup", "containerd", option, "--root"]).arg(root).arg("--config").arg(config);
        assert!(setup.status().unwrap().success());
    }

    async fn set() -> Stage {
        let registry = GuardedRegistry::start(NAME).await;
        let table = format!(
            "[registries.stub]\nhosts = [\"{NAME}\"]\ncap = {SLOTS}\nshare = 1\n\
             [registries.stub.tls]\nca_file = \"{}\"\n\
             [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"https://{}\"\n",
            registry.authority().display(),
            registry.address(),
        );
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&table)).await;
        let mirror = sidecar.listener("mirror").expect("a line for the mirror's listener");
        let folder = TempDir::new().expect("a temporary folder");
        let image = OciImage::make(&folder.path().join("image"), LAYERS, LAYER_BYTES);
        Stage { registry, sidecar, mirror, skopeo: Skopeo::direct(), image, folder }
    }

    /// An image's name at the mirror.
    fn mirrored(&self, image: &str) -> String {
        format!("docker://{}/{image}", self.mirror)
    }

    async fn push(&self) {
        self.push_to(self.image.folder(), TEAM).await.unwrap();
    }

    async fn push_to(&self, folder: &Path, image: &str) -> Result<(), String> {
        let options = ["--dest-tls-verify=false", "--dest-creds", &credentials()];
        self.skopeo.copy(&options, &Skopeo::layout(folder), &self.mirrored(image)).await
    }

    /// nginx refused the push, and the puller says so.
    fn assert_refused(&self, pushed: Result<(), String>) {
        let complaint = pushed.expect_err("nginx takes no such layer");
        assert!(complaint.contains("413 Request Entity Too Large"), "{complaint}\n{}", self.registry.log());
    }

    async fn pull_from(&self, image: &str, options: &[&str], to: &Path) -> Result<(), String> {
        std::fs::create_dir_all(to).expect("the folder is ours");
        let credentials = credentials();
        let options = [options, &["--src-creds", &credentials]].concat();
        self.skopeo.copy(&options, image, &Skopeo::layout(to)).await
    }

    /// Nobody went around the mirror: the registry has answered as many requests as the mirror has relayed, and those for
    /// tokens are among them. Not after a push that was refused: its client leaves requests that the registry still answers.
    async fn all_passed_the_mirror(&self) {
        let answered = || self.registry.log().lines().filter(|line| line.contains(" HTTP/1.1\" ")).count();
        let relayed = || {
            let finished = self.sidecar.finished();
            finished.iter().filter(|line| text(line, "registry") == "stub" && text(line, "outcome") == "served").count()
        };
        // Either log may be a moment late.
        eventually("as many relayed as answered", Duration::from_secs(10), async || match (relayed(), answered()) {
            (relayed, answered) if relayed == answered && relayed > BLOBS => Ok(()),
            counts => Err(counts),
        })
        .await;
    }

    /// Every blob of the image is among these, to the last byte.
    fn assert_same(&self, received: &BTreeMap<String, Vec<u8>>) {
        let sent = OciImage::blobs_in(self.image.folder());
        assert_eq!(sent.len(), BLOBS);
        // Not assert_eq: nobody wants to read 8 MiB.
        assert!(sent == *received, "sent {:?}, received {:?}", sent.keys(), received.keys());
    }
}
