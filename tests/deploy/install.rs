//! `docs/install.md`: its commands, run as they stand there, from nothing. A folder stands for the machine, `systemctl`, `podman` and
//! `kubectl` only judge or note what they are told, and helm renders in place of installing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::dragonfly::Stage;
use crate::manifests::{find, named};
use crate::tool::{both, copy_folder, documents, end_of, pinned, repository, run, text_of};

const PAGE: &str = "docs/install.md";
const HOSTS: &str = "etc/containerd/certs.d/harbor.example.com/hosts.toml";
const CONTAINERD: &str =
    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n";

/// The first block of this language after a heading.
fn block(heading: &str, language: &str) -> String {
    let page = text_of(PAGE);
    let section = page.split_once(&format!("{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}")).1;
    let block = section.split_once(&format!("```{language}\n")).unwrap().1;
    block.split_once("```").unwrap().0.to_owned()
}

/// A machine, and a working folder beside it.
struct Machine(TempDir);

impl Machine {
    fn new() -> Machine {
        let machine = Machine(TempDir::new().unwrap());
        for folder in
            ["etc/containerd", "etc/systemd/system", "usr/local/bin", "var/lib/dpkg/info", "var/lib/dpkg/updates"]
        {
            fs::create_dir_all(machine.root().join(folder)).unwrap();
        }
        fs::create_dir_all(machine.path("work")).unwrap();
        fs::write(machine.root().join("var/lib/dpkg/status"), "").unwrap();
        fs::write(machine.root().join("etc/containerd/config.toml"), CONTAINERD).unwrap();
        fs::write(machine.path("work/sidecar.toml"), block("# Installing", "toml test")).unwrap();
        machine.program(
            "systemctl",
            r#"for unit; do
    case $unit in
    *.service | *.socket) [ -e "$ROOT/etc/systemd/system/$unit" ] || [ -e "$ROOT/usr/lib/systemd/system/$unit" ] ;;
    esac || { echo "no unit $unit"; exit 1; }
done"#,
        );
        machine.program("kubectl", "case $1 in kustomize) exec \"$KUBECTL\" \"$@\" ;; esac");
        machine.program(
            "dpkg",
            "exec /usr/bin/dpkg --root=\"$ROOT\" --force-script-chrootless --force-not-root --log=/dev/null \"$@\"",
        );
        machine.program(
            "helm",
            r#"case $1 in
upgrade) shift 2; args=$(printf '%s\n' "$@" | sed "s#^dragonfly/dragonfly\$#$CHART#"); IFS='
'; exec "$HELM" template $args >"$RENDERED" ;;
repo) ;;
*) exec "$HELM" "$@" ;;
esac"#,
        );
        machine.program(
            "podman",
            r#"echo "podman $*" >>"$NOTES"; case $1 in load) echo "Loaded image: localhost/roadstead:0.1.0" ;; esac"#,
        );
        // A node knows by itself where its config is, and where its root is.
        machine.program(
            "roadstead",
            r#"for program in "$ROOT/usr/local/bin/roadstead" "$ROOT/usr/bin/roadstead"; do [ -x "$program" ] && break; done
case $1 in setup) set -- "$@" --root "$ROOT" ;; esac
exec "$program" --config "$ROOT/etc/roadstead/sidecar.toml" "$@""#,
        );
        machine
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path)
    }

    fn root(&self) -> std::path::PathBuf {
        self.path("root")
    }

    fn program(&self, name: &str, script: &str) {
        let file = self.path("programs").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs the commands of a section in the working folder.
    fn follow(&self, heading: &str, chart: &Path) {
        let commands = block(heading, "sh");
        assert!(commands.lines().count() < 10, "{heading}: {commands}");
        let root = self.root();
        let commands = commands
            .replace(" /etc/", &format!(" {}/etc/", root.display()))
            .replace(" /usr/", &format!(" {}/usr/", root.display()));
        let path = format!("{}:{}", self.path("programs").display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &commands]).current_dir(self.path("work")).env("PATH", path);
        shell
            .env("ROOT", root)
            .env("CHART", chart)
            .env("RENDERED", self.path("rendered"))
            .env("NOTES", self.path("notes"));
        shell.env("HELM", pinned("helm")).env("KUBECTL", pinned("kubectl"));
        for folder in ["HELM_DATA_HOME", "HELM_CONFIG_HOME", "HELM_CACHE_HOME"] {
            shell.env(folder, self.path(folder));
        }
        let output = end_of(&mut shell);
        assert!(output.status.success(), "{heading}: {}", both(&output));
    }

    /// containerd has no other address than the mirror, and `setup --undo` leaves what was there before.
    fn leads_containerd_here_and_back(&self) {
        let hosts: toml::Table = fs::read_to_string(self.root().join(HOSTS)).unwrap().parse().unwrap();
        assert_eq!(hosts["server"].as_str(), Some("http://127.0.0.1:4130"));
        let program = self.path("programs/roadstead");
        run(Command::new(program).args(["setup", "containerd", "--undo"]).env("ROOT", self.root()));
        assert!(!self.root().join(HOSTS).exists());
        assert_eq!(fs::read_to_string(self.root().join("etc/containerd/config.toml")).unwrap(), CONTAINERD);
    }
}

#[test]
fn the_package_installs_as_the_page_says() {
    let machine = Machine::new();
    crate::package::build(&machine.path("work/roadstead_0.1.0_amd64.deb"));
    machine.follow("## 1. Debian or Ubuntu", Path::new(""));
    machine.leads_containerd_here_and_back();
}

#[test]
fn the_archive_installs_as_the_page_says() {
    let machine = Machine::new();
    let folder = machine.path("roadstead-0.1.0-x86_64");
    copy_folder(&repository("systemd"), &folder.join("systemd"));
    fs::copy(env!("CARGO_BIN_EXE_roadstead"), folder.join("roadstead")).unwrap();
    run(Command::new("tar")
        .args(["-czf", "work/roadstead-0.1.0-x86_64.tar.gz", "roadstead-0.1.0-x86_64"])
        .current_dir(machine.0.path()));
    machine.follow("## 2. Another Linux with systemd", Path::new(""));
    machine.leads_containerd_here_and_back();
}

#[test]
fn the_chart_installs_as_the_page_says() {
    let machine = Machine::new();
    copy_folder(&repository("charts"), &machine.path("work/charts"));
    machine.follow("## 3. Kubernetes, with Helm", Path::new(""));
    let rendered = documents(&fs::read_to_string(machine.path("rendered")).unwrap());
    let config = find(&rendered, "ConfigMap", "roadstead")["data"]["sidecar.toml"].as_str().unwrap();
    let config: toml::Table = config.parse().unwrap();
    let expected: toml::Table = block("# Installing", "toml test").parse().unwrap();
    assert_eq!(config["registries"], expected["registries"], "the page says the same twice");
    find(&rendered, "DaemonSet", "roadstead");
}

#[test]
fn dragonfly_installs_as_the_page_says() {
    let machine = Machine::new();
    copy_folder(&repository("k8s"), &machine.path("work/k8s"));
    let stage = Stage::new();
    machine.follow("## 4. Kubernetes, with Dragonfly", &stage.path("chart"));
    let rendered = documents(&fs::read_to_string(machine.path("rendered")).unwrap());
    for (kind, name) in [("DaemonSet", "dragonfly-client"), ("StatefulSet", "dragonfly-seed-client")] {
        let pod = &find(&rendered, kind, name)["spec"]["template"]["spec"];
        assert_eq!(named(&pod["initContainers"], "roadstead")["restartPolicy"], json!("Always"));
    }
}

/// The image itself, with these arguments, is tried in `image.rs` and `chart.rs`.
#[test]
fn the_container_starts_as_the_page_says() {
    let machine = Machine::new();
    fs::write(machine.path("work/roadstead-0.1.0-x86_64.oci.tar"), "").unwrap();
    machine.follow("## 5. A container", Path::new(""));
    assert!(machine.root().join("etc/roadstead/sidecar.toml").exists());
    let notes = fs::read_to_string(machine.path("notes")).unwrap();
    assert!(notes.contains("run --detach --name roadstead --network host"), "{notes}");
    assert!(notes.contains("localhost/roadstead:0.1.0 setup containerd --write --root /host"), "{notes}");
}
