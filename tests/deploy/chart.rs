//! `charts/roadstead`, rendered by helm for each of its values files.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use roadstead::config::Config;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::manifests::{KUBERNETES, check_pod, config_text, find, named, validate};
use crate::tool::{both, documents, end_of, pinned, repository, run, text_of};

const CHART: &str = "charts/roadstead";
/// Of the Prometheus operator, and so not in the schemas of Kubernetes.
const OPERATORS_KINDS: [&str; 2] = ["PodMonitor", "PrometheusRule"];

fn helm() -> Command {
    Command::new(pinned("helm"))
}

/// The values files of the chart, with their names.
fn values_files() -> Vec<(String, PathBuf)> {
    let mut files: Vec<(String, PathBuf)> = fs::read_dir(repository(CHART).join("ci"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().replace("-values.yaml", ""), path))
        .collect();
    files.sort();
    assert_eq!(files.len(), 11);
    files
}

fn values(name: &str) -> PathBuf {
    repository(CHART).join(format!("ci/{name}-values.yaml"))
}

fn template(chart: &str, arguments: &[&str]) -> Output {
    end_of(helm().args(["template", "roadstead", "--namespace", "roadstead", chart]).args(arguments))
}

/// The output of helm for a values file, as text.
fn rendered(chart: &str, values: &std::path::Path, more: &[&str]) -> String {
    let output = template(chart, &[&["--values", values.to_str().unwrap()], more].concat());
    assert!(output.status.success(), "{}: {}", values.display(), both(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn render(name: &str) -> Vec<Value> {
    documents(&rendered(repository(CHART).to_str().unwrap(), &values(name), &[]))
}

fn pod_of<'a>(documents: &'a [Value], name: &str) -> &'a Value {
    &find(documents, "DaemonSet", name)["spec"]["template"]
}

/// helm's own judgement, the schemas of three versions of Kubernetes, and the sidecar's judgement of its config.
#[test]
fn eleven_values_files_render_what_kubernetes_and_the_sidecar_take() {
    let folder = TempDir::new().unwrap();
    let mut all = Vec::new();
    for (name, file) in values_files() {
        let chart = repository(CHART);
        run(helm().args(["lint", "--strict", "--values"]).arg(&file).arg(&chart));
        let text = rendered(chart.to_str().unwrap(), &file, &[]);
        let documents = documents(&text);
        let template = pod_of(&documents, "roadstead");
        let pod = &template["spec"];
        let sidecar = named(&pod["containers"], "roadstead");
        let config = Config::parse(config_text(&documents, pod, sidecar)).unwrap_or_else(|it| panic!("{name}: {it}"));
        assert_eq!(config.warnings.len(), 0, "{name}: {:?}", config.warnings);
        check_pod(&documents, template, sidecar);
        assert_eq!(pod["hostNetwork"], true, "{name}: containerd runs on the node");
        for document in text.split("\n---\n") {
            if OPERATORS_KINDS.iter().all(|kind| !document.contains(&format!("kind: {kind}\n"))) {
                all.push(document.trim_start_matches("---\n").to_owned());
            }
        }
    }
    let file = folder.path().join("all.yaml");
    fs::write(&file, all.join("\n---\n")).unwrap();
    for version in KUBERNETES {
        let output = validate(&file, version);
        let said = both(&output);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.matches(" passed for resource ").count(), all.len(), "{version}: {said}");
        assert!(!said.contains("WARN"), "{said}");
    }
}

/// The config keeps its types: integers are no fractions, names with dots are quoted.
#[test]
fn the_values_become_the_config_as_they_are() {
    let documents = render("cluster");
    let pod = &pod_of(&documents, "roadstead")["spec"];
    let text = config_text(&documents, pod, named(&pod["containers"], "roadstead"));
    let config: toml::Table = text.parse().unwrap();
    let values: Value =
        crate::tool::documents(&fs::read_to_string(values("cluster")).unwrap()).remove(0)["config"].clone();
    for (registry, keys) in values["registries"].as_object().unwrap() {
        let rendered = serde_json::to_value(&config["registries"][registry]).unwrap();
        assert_eq!(&rendered, keys, "{registry}");
    }
    let other = TempDir::new().unwrap();
    let file = other.path().join("values.yaml");
    let with_a_dot = fs::read_to_string(self::values("smallest")).unwrap().replace("    harbor:", "    \"har.bor\":");
    fs::write(&file, with_a_dot).unwrap();
    let text = rendered(repository(CHART).to_str().unwrap(), &file, &[]);
    assert!(text.contains("[registries.\"har.bor\".mirror]"), "{text}");
}

/// Each value that would leave a node without images, or the chart without a registry, is refused with its name.
#[test]
fn wrong_values_are_refused_by_name() {
    let smallest = values("smallest");
    for (set, expected) in [
        ("image.repository=", "/image/repository"),
        ("image.repository=harbor.example.com/tools/roadstead", "behind the sidecar"),
        ("image.repository=harbor.example.com:443/tools/roadstead", "behind the sidecar"),
        ("config.registries.harbor.hosts={*.example.com}", "behind the sidecar"),
        ("config.registries.harbor.mirror=null", "/config/registries/harbor/mirror"),
        ("config.registries.harbor=null", "/config/registries"),
        ("config.registries.harbor.cap=none", "/config/registries/harbor/cap"),
        ("config.registries.harbor.share=half", "/config/registries/harbor/share"),
        ("config.registries.harbor.mirror.upstream=harbor.example.com", "/config/registries/harbor/mirror/upstream"),
        ("config.listen.admin=0.0.0.0:4129", "/config/listen/admin"),
        ("containerd.alowBypass=true", "alowBypass"),
        ("hostNetwork=false", "hostNetwork"),
    ] {
        let output =
            template(repository(CHART).to_str().unwrap(), &["--values", smallest.to_str().unwrap(), "--set", set]);
        assert!(!output.status.success(), "{set} is taken");
        let said = both(&output);
        assert!(said.contains(expected), "{set}: {said}");
    }
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("values.yaml");
    let text = fs::read_to_string(smallest).unwrap();
    let without = text.lines().filter(|line| !line.contains("mirror:")).collect::<Vec<_>>().join("\n");
    assert_ne!(text, without);
    fs::write(&file, without).unwrap();
    let output = template(repository(CHART).to_str().unwrap(), &["--values", file.to_str().unwrap()]);
    assert!(both(&output).contains("no registry has a mirror"), "{}", both(&output));
}

/// Root only in the step that writes root's files, no capability anywhere, no token of the API in a pod that stays.
#[test]
fn no_pod_has_more_privilege_than_it_needs() {
    for (name, _) in values_files() {
        let documents = render(&name);
        let mut containers = 0;
        for workload in documents.iter().filter(|it| it["spec"]["template"].is_object()) {
            let pod = &workload["spec"]["template"]["spec"];
            if workload["kind"] == "DaemonSet" {
                assert_eq!(pod["automountServiceAccountToken"], false);
            }
            for list in ["initContainers", "containers"] {
                for container in pod[list].as_array().into_iter().flatten() {
                    let context = &container["securityContext"];
                    assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{container}");
                    assert_eq!(context["allowPrivilegeEscalation"], false);
                    assert_eq!(context["readOnlyRootFilesystem"], true);
                    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
                    let is_setup = container["args"][0] == "setup";
                    assert_eq!(context["runAsUser"] == 0, is_setup, "{container}");
                    assert_eq!(context["runAsNonRoot"] == true, !is_setup, "{container}");
                    containers += 1;
                }
            }
            let paths =
                pod["volumes"].as_array().into_iter().flatten().filter_map(|it| it["hostPath"]["path"].as_str());
            for path in paths {
                assert!(path == "/var/lib/roadstead" || path.ends_with("/containerd"), "{path}");
            }
        }
        assert!(containers >= 1, "{name}");
    }
}

/// The node's files are written before the sidecar starts, and restored before it is uninstalled.
#[test]
fn installing_writes_the_files_of_containerd_and_uninstalling_restores_them() {
    let documents = render("k3s");
    let folder = "/var/lib/rancher/k3s/agent/etc/containerd";
    for (name, step, action) in [("roadstead", "setup-containerd", "--write"), ("roadstead-undo", "undo", "--undo")] {
        let pod = &pod_of(&documents, name)["spec"];
        let setup = named(&pod["initContainers"], step);
        let arguments = [
            "setup",
            "containerd",
            action,
            "--config=/etc/roadstead/sidecar.toml",
            "--root=/host",
            &format!("--containerd-config={folder}/config.toml"),
        ];
        assert_eq!(setup["args"], json!(arguments));
        assert_eq!(named(&setup["volumeMounts"], "containerd")["mountPath"], format!("/host{folder}"));
        assert_eq!(named(&setup["volumeMounts"], "state")["mountPath"], "/host/var/lib/roadstead");
        assert_eq!(named(&pod["volumes"], "containerd")["hostPath"]["path"], folder);
    }
    let order = |kind: &str| {
        let annotations = &find(&documents, kind, "roadstead-undo")["metadata"]["annotations"];
        assert_eq!(annotations["helm.sh/hook"], "pre-delete", "{kind}");
        annotations["helm.sh/hook-weight"].as_str().unwrap().parse::<i32>().unwrap()
    };
    let access = ["ServiceAccount", "Role", "RoleBinding"].map(order);
    assert!(access.iter().all(|it| *it < order("DaemonSet")) && order("DaemonSet") < order("Job"));
    let wait = &find(&documents, "Job", "roadstead-undo")["spec"]["template"]["spec"];
    assert!(wait["containers"][0]["command"].as_array().unwrap().contains(&json!("daemonset/roadstead-undo")));
    // The pods of one are not the pods of the other.
    let selector = &find(&documents, "DaemonSet", "roadstead")["spec"]["selector"]["matchLabels"];
    assert_ne!(selector["roadstead"], pod_of(&documents, "roadstead-undo")["metadata"]["labels"]["roadstead"]);

    let arguments = |name: &str| {
        let documents = render(name);
        named(&pod_of(&documents, "roadstead")["spec"]["initContainers"], "setup-containerd")["args"].clone()
    };
    assert!(arguments("with-bypass").as_array().unwrap().contains(&json!("--allow-bypass")));
    assert!(!arguments("smallest").as_array().unwrap().contains(&json!("--allow-bypass")));
    let untouched = render("without-setup");
    assert!(pod_of(&untouched, "roadstead")["spec"].get("initContainers").is_none());
    assert!(untouched.iter().all(|it| it["metadata"]["name"] != "roadstead-undo"));
}

/// The very arguments of the steps, on a folder that stands for a node: twice the same, no way around the cap unless it was
/// asked for, and nothing left behind.
#[test]
fn the_steps_lead_containerd_to_the_mirror_and_back() {
    for (name, server) in [
        ("smallest", "http://127.0.0.1:4130"),
        ("k3s", "http://127.0.0.1:4130"),
        ("cluster", "http://127.0.0.1:4130"),
        ("with-bypass", "https://harbor.example.com"),
    ] {
        let documents = render(name);
        let pod = &pod_of(&documents, "roadstead")["spec"];
        let node = TempDir::new().unwrap();
        let root = node.path().join("host");
        let sidecar = node.path().join("sidecar.toml");
        fs::write(&sidecar, config_text(&documents, pod, named(&pod["containers"], "roadstead"))).unwrap();
        let folder = named(&pod["volumes"], "containerd")["hostPath"]["path"].as_str().unwrap();
        let folder = root.join(folder.trim_start_matches('/'));
        fs::create_dir_all(&folder).unwrap();
        let certs = folder.join("certs.d").display().to_string().replace(root.to_str().unwrap(), "");
        let text =
            format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{certs}\"\n");
        fs::write(folder.join("config.toml"), &text).unwrap();
        let files = || run(Command::new("find").arg(&folder).args(["-type", "f", "-printf", "%P\n"]));
        let step = |step: &Value| {
            let arguments = step["args"].as_array().unwrap().iter().map(|argument| {
                let argument = argument.as_str().unwrap();
                argument
                    .replace("--root=/host", &format!("--root={}", root.display()))
                    .replace("/etc/roadstead/sidecar.toml", sidecar.to_str().unwrap())
            });
            run(Command::new(env!("CARGO_BIN_EXE_roadstead")).args(arguments))
        };
        let write = named(&pod["initContainers"], "setup-containerd");
        step(write);
        let hosts: toml::Table =
            fs::read_to_string(folder.join("certs.d/harbor.example.com/hosts.toml")).unwrap().parse().unwrap();
        assert_eq!(hosts["server"].as_str(), Some(server), "{name}");
        assert!(hosts["host"].as_table().unwrap().contains_key("http://127.0.0.1:4130"), "{name}: {hosts}");
        let again = step(write);
        assert!(again.starts_with("nothing to change\n"), "{name}: {again}");
        // Its values switch the hook off.
        if name == "with-bypass" {
            continue;
        }
        step(named(&pod_of(&documents, "roadstead-undo")["spec"]["initContainers"], "undo"));
        assert_eq!(files(), "config.toml\n", "{name}");
        assert_eq!(fs::read_to_string(folder.join("config.toml")).unwrap(), text, "{name}");
    }
}

/// A change that the running sidecar takes over replaces no pod; a change of what `setup` writes does.
#[test]
fn only_a_change_for_containerd_replaces_the_pods() {
    let chart = repository(CHART);
    let pods = |set: &str| {
        let text = rendered(chart.to_str().unwrap(), &values("smallest"), &["--set", set]);
        pod_of(&documents(&text), "roadstead").clone()
    };
    let before = pods("config.registries.harbor.cap=200");
    assert_eq!(pods("config.registries.harbor.cap=300"), before);
    assert_eq!(pods("config.log.level=debug"), before);
    assert_ne!(pods("config.registries.harbor.hosts={other.example.com}"), before);
    assert_ne!(pods("config.registries.harbor.mirror.listen=127.0.0.1:4140"), before);
}

/// The package holds what the links of the folder lead to, and renders the same.
#[test]
fn the_package_renders_as_the_folder_does() {
    let folder = TempDir::new().unwrap();
    run(helm().arg("package").arg(repository(CHART)).arg("--destination").arg(folder.path()));
    let package = folder.path().join(format!("roadstead-{}.tgz", env!("CARGO_PKG_VERSION")));
    let values = values("monitoring");
    let packed = rendered(package.to_str().unwrap(), &values, &[]);
    assert_eq!(packed, rendered(repository(CHART).to_str().unwrap(), &values, &[]));
    let all = documents(&packed);
    let rules = &find(&all, "PrometheusRule", "roadstead");
    assert_eq!(rules["metadata"]["labels"]["release"], "prometheus");
    assert_eq!(rules["spec"], documents(&text_of("k8s/monitoring/rules.yaml"))[0]["spec"]);
    let dashboard = find(&all, "ConfigMap", "roadstead-dashboard")["data"]["roadstead.json"].as_str().unwrap();
    assert_eq!(dashboard, text_of("k8s/monitoring/dashboard.json"));
    let monitor = &find(&all, "PodMonitor", "roadstead")["spec"];
    let endpoints = &documents(&text_of("k8s/monitoring/podmonitor.yaml"))[0]["spec"]["podMetricsEndpoints"];
    assert_eq!(&monitor["podMetricsEndpoints"], endpoints);
    let labels = &pod_of(&all, "roadstead")["metadata"]["labels"];
    for (label, value) in monitor["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&labels[label], value);
    }
    let quiet = render("without-metrics");
    assert!(quiet.iter().all(|it| it["kind"] != "PodMonitor"), "nothing to scrape");
    assert!(named(&pod_of(&quiet, "roadstead")["spec"]["containers"], "roadstead").get("ports").is_none());
}

/// Chart and program have one version.
#[test]
fn the_chart_has_the_version_of_the_program() {
    let chart = &documents(&text_of("charts/roadstead/Chart.yaml"))[0];
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(env!("CARGO_PKG_VERSION")), &chart["version"]));
}
