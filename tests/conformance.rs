//! The cases of the OCI distribution specification that matter to pullers and pushers, asked of a registry directly and
//! through a mirror of it: the answers must be the same in status, headers and body.
//!
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>. Each way has a fresh registry of its own,
//! so that the same requests meet the same history.

#[path = "conformance/rows.rs"]
mod rows;

use std::fmt::Write;
use std::net::SocketAddr;

use bytes::Bytes;
use roadstead_test_support::http::{Framing, request};
use roadstead_test_support::real::{DockerRegistry, Nginx, TlsVersion, TokenService};
use roadstead_test_support::{Response, Sidecar, Wire, config, digest_of};
use serde_json::json;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const REPOSITORY: &str = "/v2/team/image";
/// Headers that tell of one hop or one moment. nginx writes a name of its own into Server.
const NOT_COMPARED: [&str; 4] = ["date", "via", "connection", "server"];

/// Without TLS in between, and with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_answers_as_its_registry_does() {
    let direct = DockerRegistry::start();
    let expected = answers(direct.address()).await;

    let plain = DockerRegistry::start();
    let (_sidecar, mirror) = mirror_of(&format!("http://{}", plain.address()), "").await;
    assert_same(&expected, &answers(mirror).await);

    let behind = DockerRegistry::start();
    let front = Nginx::tls(behind.address(), "registry.test", TlsVersion::V1_2);
    let tls = format!("[registries.stub.tls]\nca_file = \"{}\"", front.authority().display());
    let (_sidecar, mirror) = mirror_of(&format!("https://{}", front.address()), &tls).await;
    assert_same(&expected, &answers(mirror).await);
}

/// Without a token the registry challenges, and so does the mirror: the realm of this one is elsewhere, and stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_challenges_as_its_registry_does() {
    let tokens = TokenService::start().await;
    let start = || DockerRegistry::start_guarded("https://tokens.test/service/token", tokens.certificate());
    let direct = start();
    let expected = challenges(direct.address()).await;
    let behind = start();
    let (_sidecar, mirror) = mirror_of(&format!("http://{}", behind.address()), "").await;
    let answers = challenges(mirror).await;
    assert_eq!(expected, answers);
    let challenge =
        r#"www-authenticate: Bearer realm="https://tokens.test/service/token",service="harbor-registry",scope="#;
    assert!(answers.iter().skip(1).all(|(_, answer)| answer.contains(challenge)), "{answers:#?}");
}

/// The answers without a token, and with an invalid one.
async fn challenges(address: SocketAddr) -> Vec<(String, String)> {
    let mut client = Client::new(address).await;
    let manifest = format!("{REPOSITORY}/manifests/v1");
    client.ask("no token: version", 401, "GET", "/v2/", &[]).await;
    client.ask("no token: manifest", 401, "GET", &manifest, &[]).await;
    client.ask("no token: HEAD", 401, "HEAD", &manifest, &[]).await;
    client.ask("no token: blob", 401, "GET", &format!("{REPOSITORY}/blobs/{}", digest_of(LAYER)), &[]).await;
    // Not a push: the registry names its two actions now in one order and now in the other.
    client.ask("no token: DELETE", 401, "DELETE", &manifest, &[]).await;
    client.ask("bad token", 401, "GET", &manifest, &["Authorization: Bearer e30.e30.e30"]).await;
    client.seen
}

async fn mirror_of(upstream: &str, more: &str) -> (Sidecar, SocketAddr) {
    let table = format!(
        "[registries.stub]\nhosts = [\"registry.test\"]\ncap = 2\nshare = 1\n\
         [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"{upstream}\"\n{more}\n"
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&table)).await;
    let mirror = sidecar.listener("mirror").expect("a line for the mirror's listener");
    (sidecar, mirror)
}

fn assert_same(expected: &[(String, String)], answers: &[(String, String)]) {
    assert!(expected.len() > 40, "{} answers", expected.len());
    for ((case, expected), (same_case, answer)) in expected.iter().zip(answers) {
        assert_eq!(case, same_case);
        assert!(expected == answer, "{case}\n--- directly:\n{expected}\n--- through the mirror:\n{answer}");
    }
    assert_eq!(expected.len(), answers.len());
}

/// Goes through all cases at this address, and tells what came.
async fn answers(address: SocketAddr) -> Vec<(String, String)> {
    let mut client = Client::new(address).await;
    client.push().await;
    client.pull().await;
    client.discover().await;
    client.delete().await;
    client.seen
}

/// One who asks, and notes each answer.
struct Client {
    wire: Wire,
    /// The address that it asks, and that the URLs of its answers must name.
    own: String,
    /// The name of each case and what was answered.
    seen: Vec<(String, String)>,
}

impl Client {
    async fn new(address: SocketAddr) -> Client {
        Client { wire: Wire::open(address).await.unwrap(), own: address.to_string(), seen: Vec::new() }
    }

    async fn ask(&mut self, case: &str, status: u16, method: &str, target: &str, headers: &[&str]) -> Response {
        self.send(case, status, method, target, headers, None).await
    }

    /// A request with a body, if there is one; its answer must have this status.
    async fn send(
        &mut self,
        case: &str,
        status: u16,
        method: &str,
        target: &str,
        headers: &[&str],
        body: Option<&[u8]>,
    ) -> Response {
        let length = body.map(|body| format!("Content-Length: {}", body.len()));
        let host = format!("Host: {}", self.own);
        let headers: Vec<&str> = headers.iter().copied().chain(length.as_deref()).chain([host.as_str()]).collect();
        let text = request(method, target, &headers);
        self.wire.send(&[text.as_bytes(), body.unwrap_or_default()].concat()).await.unwrap();
        let head = self.wire.read_answer().await.unwrap();
        let body = if let Ok(body) = self.wire.body(Framing::of_answer(&head, method)).collect().await {
            body
        } else {
            // The registry's 416 announces the length of the whole blob, and ends early: so must the mirror's.
            self.wire = Wire::open(self.own.parse().unwrap()).await.unwrap();
            Bytes::from_static(b"(cut short)")
        };
        let answer = Response { head, body };
        assert_eq!(answer.status(), status, "{case}: {}\n{}", answer.head.raw(), answer.text());
        self.note(case, &answer);
        answer
    }

    fn note(&mut self, case: &str, answer: &Response) {
        let mut headers: Vec<(String, String)> = answer
            .head
            .headers()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .filter(|(name, _)| !NOT_COMPARED.contains(&name.as_str()))
            .map(|(name, value)| {
                let value = self.without_chance(&name, &value);
                (name, value)
            })
            .collect();
        headers.sort();
        let mut text = format!("{} {}\n", answer.status(), answer.reason());
        for (name, value) in headers {
            writeln!(text, "{name}: {value}").unwrap();
        }
        text.push_str(&answer.text());
        self.seen.push((case.to_owned(), text));
    }

    /// Ids and states of uploads are drawn by lot, and the address is each way's own.
    fn without_chance(&self, name: &str, value: &str) -> String {
        if name == "docker-upload-uuid" {
            assert_eq!(value.len(), 36, "{value} is no id");
            return "ID".to_owned();
        }
        let Some(path) = value.strip_prefix(&format!("http://{}", self.own)) else {
            assert!(name != "location" || !value.contains("://"), "{name}: {value} leads elsewhere");
            return value.to_owned();
        };
        let Some((before, rest)) = path.split_once("/blobs/uploads/") else { return path.to_owned() };
        let (id, state) = rest.split_once("?_state=").expect("an upload has an id and a state");
        assert!(id.len() == 36 && state.len() > 36, "{value}");
        format!("{before}/blobs/uploads/ID?_state=STATE")
    }

    /// The path and query at which an upload goes on.
    fn upload(&self, answer: &Response, query: &str) -> String {
        let location = answer.header("Location").expect("an upload has a Location");
        let path = location.strip_prefix(&format!("http://{}", self.own)).expect("it leads back here");
        if query.is_empty() { path.to_owned() } else { format!("{path}&{query}") }
    }

    async fn start_upload(&mut self, case: &str) -> Response {
        self.send(case, 202, "POST", &format!("{REPOSITORY}/blobs/uploads/"), &[], Some(b"")).await
    }

    async fn push(&mut self) {
        self.ask("version", 200, "GET", "/v2/", &[]).await;
        // Monolithic: POST, then PUT with all of it.
        let begun = self.start_upload("monolithic: POST").await;
        let put = self.upload(&begun, &format!("digest={}", digest_of(LAYER)));
        let octets = "Content-Type: application/octet-stream";
        self.send("monolithic: PUT", 201, "PUT", &put, &[octets], Some(LAYER)).await;
        let begun = self.start_upload("wrong digest: POST").await;
        let put = self.upload(&begun, &format!("digest={}", digest_of(b"something else")));
        self.send("wrong digest: PUT", 400, "PUT", &put, &[octets], Some(LAYER)).await;
        // At once, which a registry may take for the start of an upload.
        let at_once = format!("{REPOSITORY}/blobs/uploads/?digest={}", digest_of(CONFIG));
        self.send("single POST", 202, "POST", &at_once, &[octets], Some(CONFIG)).await;
        let begun = self.start_upload("config: POST").await;
        let put = self.upload(&begun, &format!("digest={}", digest_of(CONFIG)));
        self.send("config: PUT", 201, "PUT", &put, &[octets], Some(CONFIG)).await;
        self.push_in_chunks().await;
        let mount = format!("/v2/team/other/blobs/uploads/?mount={}&from=team/image", digest_of(LAYER));
        self.send("mount", 201, "POST", &mount, &[], Some(b"")).await;
        let absent = format!("/v2/team/other/blobs/uploads/?mount={}&from=team/image", digest_of(b"absent"));
        self.send("mount of what is not there", 202, "POST", &absent, &[], Some(b"")).await;
        let begun = self.start_upload("cancelled: POST").await;
        let cancelled = self.upload(&begun, "");
        self.ask("cancelled: DELETE", 204, "DELETE", &cancelled, &[]).await;
        self.ask("cancelled: GET", 404, "GET", &cancelled, &[]).await;
        self.push_manifests().await;
    }

    async fn push_in_chunks(&mut self) {
        let begun = self.start_upload("chunks: POST").await;
        let (first, second) = CHUNKED.split_at(CHUNKED.len() / 2);
        let range = |from: usize, chunk: &[u8]| format!("Content-Range: {from}-{}", from + chunk.len() - 1);
        let path = self.upload(&begun, "");
        let answer = self.send("chunks: first", 202, "PATCH", &path, &[&range(0, first)], Some(first)).await;
        assert_eq!(answer.header("Range"), Some(format!("0-{}", first.len() - 1).as_str()));
        let path = self.upload(&answer, "");
        let so_far = self.ask("chunks: how far", 204, "GET", &path, &[]).await;
        let path = self.upload(&so_far, "");
        let answer =
            self.send("chunks: second", 202, "PATCH", &path, &[&range(first.len(), second)], Some(second)).await;
        let put = self.upload(&answer, &format!("digest={}", digest_of(CHUNKED)));
        self.send("chunks: PUT", 201, "PUT", &put, &[], Some(b"")).await;
        // 416 by the specification. The registry of Debian 12 (2.8) does not look at Content-Range, and so it is here.
        let begun = self.start_upload("out of order: POST").await;
        let path = self.upload(&begun, "");
        self.send("out of order: PATCH", 202, "PATCH", &path, &[&range(first.len(), second)], Some(second)).await;
    }

    async fn push_manifests(&mut self) {
        let content = format!("Content-Type: {MANIFEST_TYPE}");
        let tag = |tag: &str| format!("{REPOSITORY}/manifests/{tag}");
        let manifest = manifest(digest_of(LAYER));
        for name in ["v1", "v2", "v3", "v4"] {
            self.send(&format!("manifest: PUT {name}"), 201, "PUT", &tag(name), &[&content], Some(&manifest)).await;
        }
        let by_digest = tag(&digest_of(&manifest));
        self.send("manifest: PUT by digest", 201, "PUT", &by_digest, &[&content], Some(&manifest)).await;
        let unknown = self::manifest(digest_of(b"absent"));
        self.send("manifest: PUT without its blob", 400, "PUT", &tag("bad"), &[&content], Some(&unknown)).await;
        self.send("manifest: PUT of nonsense", 400, "PUT", &tag("bad"), &[&content], Some(b"nonsense")).await;
    }

    async fn pull(&mut self) {
        let accept = format!("Accept: {MANIFEST_TYPE}");
        let by_tag = format!("{REPOSITORY}/manifests/v1");
        let pulled = self.ask("manifest by tag", 200, "GET", &by_tag, &[&accept]).await;
        assert_eq!(pulled.body, manifest(digest_of(LAYER)));
        let etag = format!("If-None-Match: {}", pulled.header("Etag").expect("a manifest has an ETag"));
        self.ask("manifest: unchanged", 304, "GET", &by_tag, &[&accept, &etag]).await;
        let by_digest = format!("{REPOSITORY}/manifests/{}", digest_of(&manifest(digest_of(LAYER))));
        for (case, method, path) in [
            ("manifest by digest", "GET", by_digest.as_str()),
            ("manifest: HEAD by tag", "HEAD", &by_tag),
            ("manifest: HEAD by digest", "HEAD", &by_digest),
        ] {
            self.ask(case, 200, method, path, &[&accept]).await;
        }
        let blob = format!("{REPOSITORY}/blobs/{}", digest_of(LAYER));
        self.ask("blob", 200, "GET", &blob, &[]).await;
        self.ask("blob: HEAD", 200, "HEAD", &blob, &[]).await;
        for (range, status) in [("0-0", 206), ("5-9", 206), ("7-", 206), ("-3", 206), ("999999-", 416)] {
            let header = format!("Range: bytes={range}");
            self.ask(&format!("blob: bytes {range}"), status, "GET", &blob, &[&header]).await;
        }
        let chunked = format!("{REPOSITORY}/blobs/{}", digest_of(CHUNKED));
        assert_eq!(self.ask("blob pushed in chunks", 200, "GET", &chunked, &[]).await.body, CHUNKED);
        let mounted = format!("/v2/team/other/blobs/{}", digest_of(LAYER));
        assert_eq!(self.ask("blob mounted", 200, "GET", &mounted, &[]).await.body, LAYER);
        for (case, path) in [
            ("no such tag", format!("{REPOSITORY}/manifests/none")),
            ("no such manifest", format!("{REPOSITORY}/manifests/{}", digest_of(b"absent"))),
            ("no such blob", format!("{REPOSITORY}/blobs/{}", digest_of(b"absent"))),
            ("no such repository", "/v2/team/none/manifests/v1".to_owned()),
            ("no such path", "/v2/team/image/nothing".to_owned()),
        ] {
            self.ask(case, 404, "GET", &path, &[]).await;
            self.ask(&format!("{case}: HEAD"), 404, "HEAD", &path, &[]).await;
        }
        self.ask("no digest", 400, "GET", &format!("{REPOSITORY}/blobs/sha256:short"), &[]).await;
        self.ask("no such method", 405, "POST", &by_tag, &["Content-Length: 0"]).await;
    }

    async fn discover(&mut self) {
        let tags = format!("{REPOSITORY}/tags/list");
        self.ask("tags", 200, "GET", &tags, &[]).await;
        self.ask("tags: none", 404, "GET", "/v2/team/none/tags/list", &[]).await;
        for query in ["n=2", "n=2&last=v1", "n=9&last=v2", "n=0", "n=two"] {
            let case = format!("tags?{query}");
            let answer = self.get(&format!("{tags}?{query}")).await;
            self.note(&case, &answer);
        }
        self.ask("catalog: first", 200, "GET", "/v2/_catalog?n=1", &[]).await;
        self.ask("catalog: next", 200, "GET", "/v2/_catalog?n=1&last=team/image", &[]).await;
    }

    async fn get(&mut self, path: &str) -> Response {
        let host = format!("Host: {}", self.own);
        self.wire.get(path, &[&host]).await.unwrap()
    }

    async fn delete(&mut self) {
        let manifest = format!("{REPOSITORY}/manifests/{}", digest_of(&manifest(digest_of(LAYER))));
        self.ask("manifest: DELETE", 202, "DELETE", &manifest, &[]).await;
        self.ask("manifest: DELETE again", 404, "DELETE", &manifest, &[]).await;
        self.ask("manifest: deleted", 404, "GET", &manifest, &[]).await;
        let blob = format!("{REPOSITORY}/blobs/{}", digest_of(LAYER));
        self.ask("blob: DELETE", 202, "DELETE", &blob, &[]).await;
        self.ask("blob: DELETE again", 404, "DELETE", &blob, &[]).await;
        self.ask("blob: deleted", 404, "HEAD", &blob, &[]).await;
    }
}

const CONFIG: &[u8] = b"{\"architecture\":\"amd64\",\"os\":\"linux\"}";
const LAYER: &[u8] = b"a layer is only bytes to a registry";
const CHUNKED: &[u8] = b"these bytes arrive in two chunks, one after the other";

fn manifest(layer: String) -> Bytes {
    let described = |kind: &str, digest: String, size: usize| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": described("config.v1+json", digest_of(CONFIG), CONFIG.len()),
        "layers": [described("layer.v1.tar", layer, LAYER.len())],
    });
    Bytes::from(manifest.to_string())
}
