//! `k8s/`, rendered by kustomize: Dragonfly's chart with the sidecar, and the sidecar alone on every node.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use roadstead::config::Config;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::tool::{both, copy_folder, documents, end_of, feed, pinned, repository, run, text_of};

/// Oldest, middle and newest Kubernetes that the manifests are checked against. Native sidecars are on from 1.29.
pub const KUBERNETES: [&str; 3] = ["1.29", "1.33", "1.37"];
/// Time that a pod needs beside `drain_timeout` until it is gone.
const MARGIN: Duration = Duration::from_secs(10);

/// The chart's own init containers in the pods of its clients.
const INIT_OF_CLIENTS: [&str; 3] = ["wait-for-scheduler", "dfinit", "restart-container-runtime"];

/// The output of kustomize for what Dragonfly's chart renders, called as helm 3 would call it.
fn render_dragonfly(chart: &str) -> Output {
    let folder = TempDir::new().unwrap();
    copy_folder(&repository("k8s"), &folder.path().join("k8s"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [pinned("kubectl").parent().unwrap().to_owned()].into_iter().chain(std::env::split_paths(&path));
    let mut post_render = Command::new(folder.path().join("k8s/overlays/dragonfly/post-render"));
    feed(post_render.env("PATH", std::env::join_paths(folders).unwrap()), chart)
}

fn dragonfly() -> String {
    let output = render_dragonfly(&text_of("tests/deploy/dragonfly.yaml"));
    assert!(output.status.success(), "{}", both(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn kustomize(path: &str) -> String {
    run(Command::new(pinned("kubectl")).arg("kustomize").arg(repository(path)))
}

/// The one document of this kind and name.
pub fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found: Vec<&Value> =
        documents.iter().filter(|it| it["kind"] == kind && it["metadata"]["name"] == name).collect();
    assert_eq!(found.len(), 1, "{kind} {name}");
    found[0]
}

/// The one element of a list with this name.
pub fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let found: Vec<&Value> = list.as_array().expect("a list").iter().filter(|it| it["name"] == name).collect();
    assert_eq!(found.len(), 1, "{name} in {list}");
    found[0]
}

/// The text of the sidecar's config, as a pod mounts it.
pub fn config_text<'a>(documents: &'a [Value], pod: &Value, sidecar: &Value) -> &'a str {
    let mount = named(&sidecar["volumeMounts"], "roadstead");
    assert_eq!((&mount["mountPath"], &mount["readOnly"]), (&json!("/etc/roadstead"), &json!(true)));
    assert!(mount.get("subPath").is_none(), "a mounted file would never change: {mount}");
    assert_eq!(sidecar["args"], json!(["--config", "/etc/roadstead/sidecar.toml"]));
    let name = named(&pod["volumes"], "roadstead")["configMap"]["name"].as_str().expect("a ConfigMap");
    find(documents, "ConfigMap", name)["data"]["sidecar.toml"].as_str().expect("a sidecar.toml")
}

pub fn config(text: &str) -> Config {
    Config::parse(text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Everything that must be so of a pod with a sidecar, wherever it runs.
pub fn check_pod(documents: &[Value], template: &Value, sidecar: &Value) {
    let pod = &template["spec"];
    let config = config(config_text(documents, pod, sidecar));
    assert_eq!(template["metadata"]["labels"]["roadstead"], "sidecar");
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().expect("a grace period"));
    assert!(grace >= config.drain_timeout + MARGIN, "{grace:?}");

    let ports = config.listen.metrics.map(|metrics| {
        assert!(metrics.ip().is_unspecified(), "{metrics}: the pod's address is not known before");
        json!([{"name": "roadstead", "containerPort": metrics.port(), "protocol": "TCP"}])
    });
    assert_eq!(sidecar["ports"], json!(ports));
    // With the node's network the kubelet probes loopback; without it, loopback would be the node's, not the pod's.
    let place = if pod["hostNetwork"] == true {
        // Without this policy, such a pod cannot resolve the names of services: a Harbor inside the cluster has such a name.
        // `Default` is the node's resolver, by choice.
        assert!(pod["dnsPolicy"] == "ClusterFirstWithHostNet" || pod["dnsPolicy"] == "Default", "{}", pod["dnsPolicy"]);
        json!({"host": "127.0.0.1", "port": config.listen.admin.port()})
    } else {
        json!({"port": "roadstead"})
    };
    for (probe, path) in [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
        let mut expected = place.clone();
        expected["path"] = json!(path);
        assert_eq!(sidecar[probe]["httpGet"], expected, "{probe}");
    }
    let mirrors = config.registries.iter().filter_map(|registry| Some(registry.mirror.as_ref()?.listen));
    for address in [config.listen.proxy, config.listen.admin].into_iter().chain(mirrors) {
        assert!(address.ip().is_loopback(), "{address}");
    }

    let context = json!({
        "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    assert_eq!(sidecar["securityContext"], context);
    for (part, quantity) in [("requests", "cpu"), ("requests", "memory"), ("limits", "memory")] {
        assert!(sidecar["resources"][part][quantity].is_string(), "no {part}.{quantity}");
    }
    let image = sidecar["image"].as_str().unwrap();
    let is_pinned = image.contains("/roadstead@sha256:");
    assert!(is_pinned || image.ends_with(concat!("/roadstead:", env!("CARGO_PKG_VERSION"))), "{image}");
}

fn mirror(config: &Config) -> std::net::SocketAddr {
    config.registries[0].mirror.as_ref().expect("a mirror").listen
}

/// The sidecar of a pod of Dragonfly's, and the chart's own container whose traffic it is to carry.
fn check_dragonflys_pod(documents: &[Value], template: &Value, own: &str, init: &[&str]) {
    let pod = &template["spec"];
    let names: Vec<&Value> =
        pod["initContainers"].as_array().unwrap().iter().map(|container| &container["name"]).collect();
    assert_eq!(names, [&["roadstead"], init].concat(), "the sidecar is there before the others start");
    let sidecar = named(&pod["initContainers"], "roadstead");
    assert_eq!(sidecar["restartPolicy"], "Always", "a native sidecar");
    check_pod(documents, template, sidecar);

    let config = config(config_text(documents, pod, sidecar));
    let env = &named(&pod["containers"], own)["env"];
    for name in ["HTTP_PROXY", "HTTPS_PROXY"] {
        assert_eq!(named(env, name)["value"], format!("http://{}", config.listen.proxy), "{name}");
    }
    let direct = named(env, "NO_PROXY")["value"].as_str().unwrap();
    let direct: BTreeSet<&str> = direct.split(',').collect();
    for place in ["localhost", "127.0.0.0/8", "10.0.0.0/8", ".svc", ".cluster.local"] {
        assert!(direct.contains(place), "no {place} in NO_PROXY");
    }
}

/// The client on every node and the seed clients both get the sidecar, and keep what is theirs.
#[test]
fn the_sidecar_goes_into_both_kinds_of_dragonflys_pods() {
    let rendered = documents(&dragonfly());
    let client = find(&rendered, "DaemonSet", "dragonfly-client");
    check_dragonflys_pod(&rendered, &client["spec"]["template"], "client", &INIT_OF_CLIENTS);
    let seed = find(&rendered, "StatefulSet", "dragonfly-seed-client");
    check_dragonflys_pod(&rendered, &seed["spec"]["template"], "seed-client", &["wait-for-manager"]);

    let chart = documents(&text_of("tests/deploy/dragonfly.yaml"));
    for (kind, name, own) in
        [("DaemonSet", "dragonfly-client", "client"), ("StatefulSet", "dragonfly-seed-client", "seed-client")]
    {
        let (before, after) = (&find(&chart, kind, name)["spec"], &find(&rendered, kind, name)["spec"]);
        for part in ["selector", "replicas", "serviceName", "volumeClaimTemplates"] {
            assert_eq!(before[part], after[part], "{name}: {part}");
        }
        let (before, after) = (&before["template"]["spec"], &after["template"]["spec"]);
        assert_eq!(after["initContainers"].as_array().unwrap()[1..], before["initContainers"].as_array().unwrap()[..]);
        let (before, after) = (named(&before["containers"], own), named(&after["containers"], own));
        for part in ["image", "args", "ports", "volumeMounts"] {
            assert_eq!(before[part], after[part], "{name}: {part}");
        }
        let kept = before["env"].as_array().into_iter().flatten();
        for variable in kept {
            assert!(after["env"].as_array().unwrap().contains(variable), "{name}: {variable}");
        }
    }
    assert_eq!(find(&rendered, "Service", "dragonfly-manager"), find(&chart, "Service", "dragonfly-manager"));
}

/// A patch that finds nothing to patch would leave the cap to luck.
#[test]
fn a_chart_under_another_name_is_refused_aloud() {
    let chart = text_of("tests/deploy/dragonfly.yaml");
    for (name, other) in [
        ("dragonfly-client", "df-client"),
        ("dragonfly-seed-client", "df-seed-client"),
        ("dragonfly-system", "elsewhere"),
    ] {
        let output = render_dragonfly(&chart.replace(name, other));
        assert!(!output.status.success(), "{name}: {}", both(&output));
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(complaint.contains("dragonfly-client") || complaint.contains("dragonfly-seed-client"), "{complaint}");
    }
}

/// The node's own daemons, and the `hosts.toml` that leads containerd to it.
#[test]
fn every_node_gets_a_sidecar_beside_containerd() {
    let rendered = documents(&kustomize("k8s/overlays/node"));
    let daemons = find(&rendered, "DaemonSet", "roadstead");
    let template = &daemons["spec"]["template"];
    let pod = &template["spec"];
    let sidecar = named(&pod["containers"], "roadstead");
    check_pod(&rendered, template, sidecar);
    assert_eq!(pod["hostNetwork"], true, "containerd runs on the node");
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(daemons["spec"]["selector"]["matchLabels"]["app"], template["metadata"]["labels"]["app"]);
    let namespace = find(&rendered, "Namespace", "roadstead");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
    assert_eq!(daemons["metadata"]["namespace"], "roadstead");

    let config = config(config_text(&rendered, pod, sidecar));
    let hosts: toml::Table = text_of("k8s/overlays/node/hosts.toml").parse().unwrap();
    let mirrors: Vec<&String> = hosts["host"].as_table().unwrap().keys().collect();
    let expected = format!("http://{}", mirror(&config));
    assert_eq!(mirrors, [&expected]);
    assert_eq!(hosts["server"].as_str(), Some(expected.as_str()), "containerd has no way around the cap");
}

/// Kubernetes itself, by its schemas, finds nothing unknown and nothing missing.
#[test]
fn the_manifests_fit_the_schemas_of_kubernetes() {
    let folder = TempDir::new().unwrap();
    for (name, yaml) in [("dragonfly", dragonfly()), ("node", kustomize("k8s/overlays/node"))] {
        let count = documents(&yaml).len();
        assert!(count >= 3, "{name}: {count} documents");
        let file = folder.path().join(name);
        fs::write(&file, &yaml).unwrap();
        for version in KUBERNETES {
            let said = validate(&file, version);
            assert!(said.status.success(), "{name}: {}", both(&said));
            let said = both(&said);
            assert_eq!(said.matches(" passed for resource ").count(), count, "{name} {version}: {said}");
            assert!(!said.contains("WARN"), "{said}");
        }
        // The validator bites.
        fs::write(&file, yaml.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem")).unwrap();
        assert!(!validate(&file, KUBERNETES[0]).status.success(), "{name}");
    }
}

pub fn validate(file: &std::path::Path, version: &str) -> Output {
    end_of(Command::new(pinned("kubernetes-validate")).args(["--strict", "-k", version]).arg(file))
}

/// `roadstead check` takes the configs of nodes and seeds without a word of warning, and what the comments promise about
/// the sum of the shares is so.
#[test]
fn the_configs_hold_and_their_shares_fit_into_the_cap() {
    let rendered = documents(&dragonfly());
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("sidecar.toml");
    let mut slots = Vec::new();
    let (mut terms, mut rest) = (Vec::new(), Vec::new());
    for (kind, name) in [("DaemonSet", "dragonfly-client"), ("StatefulSet", "dragonfly-seed-client")] {
        let pod = &find(&rendered, kind, name)["spec"]["template"]["spec"];
        let text = config_text(&rendered, pod, named(&pod["initContainers"], "roadstead"));
        fs::write(&file, text).unwrap();
        let said = run(Command::new(env!("CARGO_BIN_EXE_roadstead")).args(["check", "--config"]).arg(&file));
        let config = config(text);
        let registry = &config.registries[0];
        assert!(said.starts_with(&format!("registry harbor: {} slots (cap 200 x share", registry.slots)), "{said}");
        assert_eq!(config.warnings.len(), 0, "{said}");
        slots.push(registry.slots as u64);
        let mut table: toml::Table = text.parse().unwrap();
        let share = table["registries"]["harbor"].as_table_mut().unwrap().remove("share").unwrap();
        terms.push((sum_in_the_comment(text), share.as_str().unwrap().to_owned()));
        rest.push(table);
    }
    assert_eq!(rest[0], rest[1], "but for the share, nodes and seeds have one config");
    let (nodes, seeds) = (terms[0].0[0].clone(), terms[0].0[1].clone());
    assert_eq!(terms[0].0, terms[1].0, "both files state the same sum");
    assert_eq!((&nodes.1, &seeds.1), (&terms[0].1, &terms[1].1), "the shares of the sum are those of the files");
    let replicas = &find(&rendered, "StatefulSet", "dragonfly-seed-client")["spec"]["replicas"];
    assert_eq!(replicas, &json!(seeds.0));
    let part = |(count, share): &(u64, String)| {
        let (over, under) = share.split_once('/').expect("a fraction");
        (count * over.parse::<u64>().unwrap(), under.parse::<u64>().unwrap())
    };
    let ((a, b), (c, d)) = (part(&nodes), part(&seeds));
    assert!(a * d + c * b <= b * d, "{a}/{b} + {c}/{d} is more than 1");
    let all = nodes.0 * slots[0] + seeds.0 * slots[1];
    assert!(all <= 200, "{all} connections");
    assert!(text_of("k8s/base/sidecar.toml").contains(&format!("= {all} connections at most")), "{all} connections");
}

/// `20 nodes x 1/25 + 3 seeds x 1/15` as counts and shares.
fn sum_in_the_comment(text: &str) -> Vec<(u64, String)> {
    let line = text.lines().find(|line| line.contains(" nodes x ")).expect("the sum of the shares, in a comment");
    let terms = line.trim_start_matches('#').split('=').next().unwrap().split('+');
    let term = |term: &str| {
        let words: Vec<&str> = term.split_whitespace().collect();
        let [count, _, "x", share] = words[..] else { panic!("not a term: {term:?}") };
        (count.parse().expect("a count"), share.to_owned())
    };
    terms.map(term).collect()
}

/// Metrics of the seeds are for the namespace of Prometheus alone, Dragonfly's own ports for everybody. Pods with the
/// node's network are not meant: no policy holds for them.
#[test]
fn the_network_policy_covers_the_seeds_and_leaves_dragonflys_ports_open() {
    let rendered = documents(&dragonfly());
    let policy = &find(&rendered, "NetworkPolicy", "roadstead-seed-client")["spec"];
    let selects = |template: &Value| {
        let labels = template["metadata"]["labels"].as_object().unwrap();
        policy["podSelector"]["matchLabels"]
            .as_object()
            .unwrap()
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    };
    let seed = &find(&rendered, "StatefulSet", "dragonfly-seed-client")["spec"]["template"];
    let client = &find(&rendered, "DaemonSet", "dragonfly-client")["spec"]["template"];
    assert_eq!((selects(seed), selects(client)), (true, false));
    assert_eq!(client["spec"]["hostNetwork"], true);
    let rules = policy["ingress"].as_array().unwrap();
    let lets_in = |port: u64| {
        let holds = |rule: &&Value| {
            rule["ports"].as_array().unwrap().iter().any(|range| {
                let first = range["port"].as_u64().unwrap();
                range["protocol"] == "TCP" && (first..=range["endPort"].as_u64().unwrap_or(first)).contains(&port)
            })
        };
        rules.iter().filter(holds).map(|rule| rule["from"].clone()).collect::<Vec<_>>()
    };
    let monitoring = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]);
    assert_eq!(lets_in(4131), [monitoring]);
    for container in seed["spec"]["containers"].as_array().unwrap() {
        for port in container["ports"].as_array().unwrap() {
            assert_eq!(lets_in(port["containerPort"].as_u64().unwrap()), [Value::Null], "{port}");
        }
    }
    for inside in [4128, 4129, 4130] {
        assert_eq!(lets_in(inside), [] as [Value; 0]);
    }
    assert_eq!(policy["policyTypes"], json!(["Ingress"]), "what goes out is not its matter");
}

/// Prometheus finds every sidecar, by label and by the port's name.
#[test]
fn the_pod_monitor_selects_every_sidecar() {
    let monitoring = documents(&kustomize("k8s/monitoring"));
    let monitor = &find(&monitoring, "PodMonitor", "roadstead")["spec"];
    assert_eq!(monitor["namespaceSelector"], json!({"any": true}));
    let endpoints = monitor["podMetricsEndpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), 1);
    assert_eq!((&endpoints[0]["port"], &endpoints[0]["path"]), (&json!("roadstead"), &json!("/metrics")));
    let job = json!({"targetLabel": "job", "replacement": "roadstead"});
    assert!(endpoints[0]["relabelings"].as_array().unwrap().contains(&job), "an alert goes by job=\"roadstead\"");
    let rendered = [documents(&dragonfly()), documents(&kustomize("k8s/overlays/node"))].concat();
    let mut sidecars = 0;
    let has_sidecar = |it: &&Value| {
        let pod = &it["spec"]["template"]["spec"];
        let containers = ["initContainers", "containers"].map(|list| pod[list].as_array().into_iter().flatten());
        containers.into_iter().flatten().any(|container| container["name"] == "roadstead")
    };
    for workload in rendered.iter().filter(has_sidecar) {
        for (label, value) in monitor["selector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(&workload["spec"]["template"]["metadata"]["labels"][label], value);
        }
        sidecars += 1;
    }
    assert_eq!(sidecars, 3);
}

/// Every request of dfdaemon goes to the mirror: by `registryMirror`, and where containerd is in front by the header that
/// dfinit writes, since dfdaemon prefers containerd's `?ns=` to `registryMirror`.
#[test]
fn the_charts_values_lead_to_the_mirror() {
    let values = &documents(&text_of("k8s/overlays/dragonfly/values.yaml"))[0];
    for (part, file) in
        [("client", "k8s/base/sidecar.toml"), ("seedClient", "k8s/components/dragonfly-sidecar/seed.toml")]
    {
        let config = config(&text_of(file));
        let expected = format!("http://{}", mirror(&config));
        assert_eq!(values[part]["config"]["proxy"]["registryMirror"]["addr"], expected, "{part}");
        if part == "client" {
            let dfinit = &values[part]["dfinit"];
            assert_eq!(dfinit["enable"], true);
            let registry = &dfinit["config"]["containerRuntime"]["containerd"]["registries"][0];
            assert_eq!(registry["serverAddr"], expected);
            let upstream = config.registries[0].mirror.as_ref().expect("a mirror").upstream[0].to_string();
            assert_eq!(format!("https://{}", registry["hostNamespace"].as_str().unwrap()), upstream);
        }
    }
}

/// The Prometheus of kube-prometheus-stack ignores monitors and rules without the label of its release.
#[test]
fn prometheus_of_the_common_chart_takes_the_monitor_and_the_rules() {
    let monitoring = documents(&kustomize("k8s/monitoring"));
    for kind in ["PodMonitor", "PrometheusRule"] {
        let metadata = &find(&monitoring, kind, "roadstead")["metadata"];
        assert_eq!(metadata["labels"]["release"], "kube-prometheus-stack", "{kind}");
        assert_eq!(metadata["namespace"], "monitoring", "{kind}");
    }
    let monitor = &find(&monitoring, "PodMonitor", "roadstead")["spec"];
    assert_eq!(monitor["selector"]["matchLabels"], json!({"roadstead": "sidecar"}), "pods do not have that label");
}
