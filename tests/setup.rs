//! `roadstead setup`: what it writes, what it keeps, what it refuses, and that `--undo` leaves nothing of it.
//!
//! Each node is a folder. The pull through written files is in `mirror_real.rs`, with a real containerd.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

const CONFIG: &str = r#"
[listen]
proxy = "0.0.0.0:4128"
allow_clients = ["127.0.0.0/8"]

[registries.harbor]
hosts = ["harbor.example.com", "harbor.example.com:8443", "*.example.net"]
cap = 200
share = "1/20"

[registries.harbor.mirror]
listen = "0.0.0.0:4130"
upstream = "https://harbor.example.com"
"#;

const CONTAINERD: (&str, &str) = (
    "etc/containerd/config.toml",
    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n",
);
const HOSTS: &str = "etc/containerd/certs.d/harbor.example.com/hosts.toml";
const HOSTS_8443: &str = "etc/containerd/certs.d/harbor.example.com:8443/hosts.toml";
const DFDAEMON: &str = "etc/dragonfly/dfdaemon.yaml";
const DROP_IN: &str = "etc/systemd/system/docker.service.d/roadstead.conf";
const REGISTRIES: &str = "etc/containers/registries.conf.d/roadstead.conf";

/// A file by its path below the root, and its text.
type Named = (&'static str, &'static str);

/// A node with these files, and the config of its sidecar.
struct Node(TempDir);

impl Node {
    fn with(files: &[(&str, &str)]) -> Node {
        let node = Node(TempDir::new().unwrap());
        for (path, text) in [&[("sidecar.toml", CONFIG)], files].concat() {
            node.put(path, text);
        }
        node
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.0.path().join(path)).unwrap_or_default()
    }

    /// Runs the command; its output, and whether it succeeded.
    fn setup(&self, arguments: &str) -> (bool, String) {
        let run = Command::new(env!("CARGO_BIN_EXE_roadstead"))
            .args(["setup", "--config", "sidecar.toml", "--root", "."])
            .args(arguments.split(' '))
            .current_dir(self.0.path())
            .output()
            .unwrap();
        (run.status.success(), String::from_utf8([run.stdout, run.stderr].concat()).unwrap())
    }

    fn done(&self, arguments: &str) -> String {
        let (is_done, said) = self.setup(arguments);
        assert!(is_done, "{arguments}: {said}");
        said
    }

    fn refused(&self, arguments: &str) -> String {
        let before = self.tree();
        let (is_done, said) = self.setup(arguments);
        assert!(!is_done, "{arguments}: {said}");
        assert_eq!(self.tree(), before, "a refusal changes nothing");
        said
    }

    /// Every file and folder, with its mode and bytes.
    fn tree(&self) -> BTreeMap<String, (u32, Vec<u8>)> {
        fn walk(folder: &Path, tree: &mut BTreeMap<String, (u32, Vec<u8>)>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let found = fs::symlink_metadata(&path).unwrap();
                let (mode, is_folder) = (found.permissions().mode(), found.is_dir());
                let target = fs::read_link(&path).map(|target| target.into_os_string().into_encoded_bytes());
                let bytes = if is_folder { Vec::new() } else { target.unwrap_or_else(|_| fs::read(&path).unwrap()) };
                // The folder of the state stays.
                if path.ends_with("var") {
                    continue;
                }
                tree.insert(path.display().to_string(), (mode, bytes));
                if is_folder {
                    walk(&path, tree);
                }
            }
        }
        let mut tree = BTreeMap::new();
        walk(self.0.path(), &mut tree);
        tree
    }
}

/// Each puller on a node where others wrote before: shown, written, written again, undone.
#[test]
fn what_is_written_once_is_undone_byte_for_byte() {
    let daemon = "# ours\nverbose: true\nproxy:\n  server:\n    port: 4101 # not 4001\n  registryMirror:\n    # the registry\n    addr: https://index.docker.io # for all\n\nstorage:\n  dir: /x";
    let hosts = "# by the platform team\nserver = \"https://harbor.example.com\" # origin\n\n# dragonfly\n[host.\"http://127.0.0.1:4101\"]\n  capabilities = [\"pull\"]\n  [host.\"http://127.0.0.1:4101\".header]\n    x-dragonfly-registry = \"https://harbor.example.com\"\n    Authorization = [\"Basic c2VjcmV0\"]\n";
    let cases: [(&str, Vec<Named>, Vec<Named>); 6] = [
        (
            "containerd",
            vec![CONTAINERD],
            vec![
                (
                    HOSTS,
                    "server = \"http://127.0.0.1:4130\"\n\n[host.\"http://127.0.0.1:4130\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n",
                ),
                (
                    HOSTS_8443,
                    "server = \"http://127.0.0.1:4130\"\n\n[host.\"http://127.0.0.1:4130\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n",
                ),
            ],
        ),
        (
            "containerd",
            vec![CONTAINERD, (HOSTS, hosts)],
            vec![(
                HOSTS,
                "# by the platform team\nserver = \"http://127.0.0.1:4130\" # origin\n\n# dragonfly\n[host.\"http://127.0.0.1:4101\"]\n  capabilities = [\"pull\"]\n  [host.\"http://127.0.0.1:4101\".header]\n    x-dragonfly-registry = [\"http://127.0.0.1:4130\"]\n    Authorization = [\"Basic c2VjcmV0\"]\n",
            )],
        ),
        (
            "dfdaemon",
            vec![CONTAINERD, (DFDAEMON, daemon)],
            vec![
                (
                    DFDAEMON,
                    "# ours\nverbose: true\nproxy:\n  server:\n    port: 4101 # not 4001\n  registryMirror:\n    # the registry\n    addr: http://127.0.0.1:4130 # for all\n\nstorage:\n  dir: /x\n",
                ),
                (
                    HOSTS,
                    "server = \"http://127.0.0.1:4130\"\n\n[host.\"http://127.0.0.1:4101\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n\n[host.\"http://127.0.0.1:4101\".header]\nX-Dragonfly-Registry = [\"http://127.0.0.1:4130\"]\n",
                ),
            ],
        ),
        (
            "dfdaemon",
            vec![(DFDAEMON, "proxy:\n  server:\n    port: 4001\n# end\n")],
            vec![(
                DFDAEMON,
                "proxy:\n  server:\n    port: 4001\n  registryMirror:\n    addr: http://127.0.0.1:4130\n# end\n",
            )],
        ),
        ("docker", vec![], vec![(DROP_IN, "")]),
        (
            "podman",
            vec![("etc/containers/registries.conf", "unqualified-search-registries = [\"docker.io\"]\n")],
            vec![(REGISTRIES, "")],
        ),
    ];
    for (puller, before, written) in cases {
        let node = Node::with(&before);
        for (path, _) in &before {
            fs::set_permissions(node.0.path().join(path), fs::Permissions::from_mode(0o640)).unwrap();
        }
        let untouched = node.tree();
        let shown = node.done(puller);
        assert_eq!(node.tree(), untouched, "{puller}: showing writes nothing");
        assert!(shown.contains("+++ ") && shown.contains("--write") && !shown.contains("c2VjcmV0"), "{shown}");
        let write = format!("{puller} --write");
        let said = node.done(&write);
        for (path, text) in &written {
            assert!(said.contains(&format!("+++ /{path}")), "{said}");
            if text.is_empty() {
                assert!(!node.text(path).is_empty());
            } else {
                assert_eq!(node.text(path), *text, "{puller}: {path}");
            }
        }
        let once = node.tree();
        assert!(node.done(&write).starts_with("nothing to change\n"), "{puller}");
        assert_eq!(node.tree(), once, "{puller}: run twice, it changes nothing");
        node.done(&format!("{puller} --undo"));
        assert_eq!(node.tree(), untouched, "{puller}: --undo restores");
        assert_eq!(node.done(&format!("{puller} --undo")), "nothing to restore\n");
    }
}

/// Changes of others after `setup` stay, at the next `--write` and at `--undo`; what touches the same lines is refused.
#[test]
fn changes_of_others_after_it_are_kept() {
    let before = "# first\nserver = \"https://harbor.example.com\"\n\n[host.\"http://127.0.0.1:4001\"]\n  [host.\"http://127.0.0.1:4001\".header]\n    X-Dragonfly-Registry = [\"https://harbor.example.com\"]\n# a\n# b\n# c\n";
    let node = Node::with(&[CONTAINERD, (HOSTS, before)]);
    node.done("containerd --write");
    let theirs = format!("{}# last\n", node.text(HOSTS));
    node.put(HOSTS, &theirs);
    assert!(node.done("containerd --write").starts_with("nothing to change\n"));
    // Another mirror address, and theirs still there.
    node.put("sidecar.toml", &CONFIG.replace("4130", "4230"));
    node.done("containerd --write");
    assert_eq!(node.text(HOSTS), theirs.replace("4130", "4230"));
    node.done("containerd --undo");
    assert_eq!(node.text(HOSTS), format!("{before}# last\n"));

    node.done("containerd --write");
    node.put(HOSTS, &node.text(HOSTS).replace("server = \"http://127.0.0.1:4230\"", "server = \"http://127.0.0.1:9\""));
    let refused = node.refused("containerd --undo");
    assert!(refused.contains("hosts.toml was changed since") && refused.contains("by hand"), "{refused}");
}

/// A name that the config drops is restored; a file that others removed is not written again by `--undo`.
#[test]
fn names_that_are_dropped_are_restored() {
    let node = Node::with(&[CONTAINERD, (HOSTS_8443, "# theirs\n")]);
    node.done("containerd --write");
    assert_ne!(node.text(HOSTS_8443), "# theirs\n");
    node.put("sidecar.toml", &CONFIG.replace("\"harbor.example.com:8443\", ", ""));
    node.done("containerd --write");
    assert_eq!(node.text(HOSTS_8443), "# theirs\n");
    fs::remove_file(node.0.path().join(HOSTS)).unwrap();
    assert_eq!(node.done("containerd --undo"), "nothing to restore\n");
    assert!(!node.0.path().join(HOSTS).exists());
}

/// Nothing may lead around the cap unless it is allowed; each refusal names the file and what to do.
#[test]
fn a_way_around_the_cap_is_refused_and_allowed_by_name() {
    let foreign = "[host.\"https://cache.example.com\"]\ncapabilities = [\"pull\"]\n";
    let below = "[[registry]]\nprefix = \"harbor.example.com/team\"\nlocation = \"other.example.com/team\"\n";
    let later = "[[registry]]\nlocation = \"harbor.example.com\"\n";
    let later_proxy = "[Service]\nEnvironment=\"HTTPS_PROXY=http://10.0.0.9:3128\"\n";
    let proxies = "{\"proxies\": {\"https-proxy\": \"http://me:hunter2@10.0.0.9:3128\"}}";
    for (puller, path, text, words) in [
        ("containerd", HOSTS, foreign, "host https://cache.example.com goes around the mirror"),
        (
            "podman",
            "etc/containers/registries.conf",
            below,
            "harbor.example.com/team in /etc/containers/registries.conf",
        ),
        ("podman", "etc/containers/registries.conf.d/zz.conf", later, "zz.conf goes around the mirror"),
    ] {
        let node = Node::with(&[CONTAINERD, (path, text)]);
        let refused = node.refused(&format!("{puller} --write"));
        assert!(refused.contains(words) && refused.contains("--allow-bypass"), "{refused}");
        node.done(&format!("{puller} --write --allow-bypass"));
    }
    let drop_in = "etc/systemd/system/docker.service.d/zz.conf";
    for (path, text) in [
        ("etc/docker/daemon.json", proxies),
        (drop_in, later_proxy),
        ("etc/docker/daemon.json", "{\"proxies\": {\"no-proxy\": \"10.0.0.0/8, .example.com\"}}"),
        (drop_in, "[Service]\nEnvironment=\"NO_PROXY=localhost, harbor.example.com:443\"\n"),
        (drop_in, "[Service]\nEnvironment = NO_PROXY=localhost \\\n  HTTPS_PROXY=http://10.0.0.9:3128\n"),
        ("run/systemd/system/docker.service.d/zz.conf", later_proxy),
        ("usr/lib/systemd/system/docker.service.d/zz.conf", later_proxy),
        ("etc/systemd/system/service.d/zz.conf", later_proxy),
        ("etc/default/docker", "HTTPS_PROXY=\"http://10.0.0.9:3128\"\n"),
    ] {
        // It names the file before ours, and is read after all Environment=.
        let early =
            ("etc/systemd/system/docker.service.d/aa.conf", "[Service]\nEnvironmentFile=-/etc/default/docker\n");
        let node = Node::with(&[(path, text), early]);
        let refused = node.refused("docker --write");
        assert!(refused.contains(path) && refused.contains("take it out"), "{refused}");
        assert!(!refused.contains("hunter2"), "{refused}");
    }
    for text in ["[Service]\nEnvironment=\n", "[Service]\nUnsetEnvironment=HTTPS_PROXY\n"] {
        let refused = Node::with(&[(drop_in, text)]).refused("docker --write");
        assert!(refused.contains("takes its variables back"), "{refused}");
    }
    // Go reads the names in capitals first, and systemd the section of services alone.
    for text in [
        "[Service]\nEnvironment=https_proxy=http://10.0.0.9:3128 no_proxy=*\n",
        "[Unit]\nEnvironment=HTTPS_PROXY=http://10.0.0.9:3128\n",
        "[Service]\n#Environment=HTTPS_PROXY=http://10.0.0.9:3128\n",
    ] {
        Node::with(&[(drop_in, text)]).done("docker --write");
    }
    // The drop-in comes after this one, and counts.
    let before = "etc/systemd/system/docker.service.d/http-proxy.conf";
    let other = "[Service]\nEnvironment=HTTP_PROXY=http://10.0.0.9:3128 HTTPS_PROXY=x NO_PROXY=*\n";
    Node::with(&[(before, other)]).done("docker --write");
    let node = Node::with(&[CONTAINERD, (HOSTS, foreign)]);
    node.done("containerd --write --allow-bypass");
    let text = node.text(HOSTS);
    assert!(text.starts_with("server = \"https://harbor.example.com\"\n"), "{text}");
    let place = |url: &str| text.find(url).unwrap();
    assert!(place("[host.\"http://127.0.0.1:4130\"]") < place("[host.\"https://cache.example.com\"]"), "{text}");
}

/// containerd looks for `HOST_PORT_`, `HOST:PORT` and `_default` in one folder before it goes to the next: the file that is written is
/// the one that it reads.
#[test]
fn of_several_places_the_one_that_containerd_reads_is_written() {
    let two = CONTAINERD.1.replace("certs.d", "a:/etc/containerd/b");
    let other = "server = \"https://harbor.example.com:8443\"\n";
    for (found, written) in [
        (vec!["a/harbor.example.com_8443_"], "a/harbor.example.com_8443_"),
        (vec!["a/harbor.example.com_8443_", "a/harbor.example.com:8443"], "a/harbor.example.com_8443_"),
        (vec!["b/harbor.example.com_8443_"], "b/harbor.example.com_8443_"),
        (vec!["b/harbor.example.com"], "b/harbor.example.com"),
        (vec!["a/_default", "b/harbor.example.com"], "a/harbor.example.com"),
        (vec!["b/_default"], "b/harbor.example.com:8443"),
        (vec![], "a/harbor.example.com:8443"),
    ] {
        let node = Node::with(&[(CONTAINERD.0, &two)]);
        for folder in &found {
            node.put(&format!("etc/containerd/{folder}/hosts.toml"), other);
        }
        let untouched = node.tree();
        node.done("containerd --write");
        let tree = node.tree();
        let led = tree.iter().filter(|(_, (_, text))| text.starts_with(b"server = \"http://127.0.0.1:4130\""));
        let led: Vec<&String> = led.map(|(path, _)| path).collect();
        let is_written = led.iter().any(|path| path.ends_with(&format!("etc/containerd/{written}/hosts.toml")));
        assert!(is_written && led.len() == 2, "{found:?}: {led:?}");
        assert!(node.done("containerd --write").starts_with("nothing to change\n"));
        node.done("containerd --undo");
        assert_eq!(node.tree(), untouched, "{found:?}");
    }
}

/// From containerd 2.1 on, a list in `config_path` is the name of one folder, unless its config says that it pulls as 1.x does.
#[test]
fn a_list_of_folders_is_refused_where_containerd_takes_it_for_one() {
    let new = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n";
    let table = "[plugins.'io.containerd.cri.v1.images']\n";
    for (setting, is_read) in [
        ("", false),
        ("use_local_image_pull = false\n", false),
        ("use_local_image_pull = true\n", true),
        ("discard_unpacked_layers = true\n", true),
    ] {
        let node = Node::with(&[(CONTAINERD.0, &format!("{new}{table}{setting}"))]);
        if is_read {
            assert!(node.done("containerd --write").contains("before an upgrade"), "{setting}");
            continue;
        }
        let refused = node.refused("containerd --write");
        for word in [
            "certs.d:/etc/docker/certs.d",
            "  config_path = \"/etc/containerd/certs.d\"\n",
            "systemctl restart containerd",
        ] {
            assert!(refused.contains(word), "no {word}: {refused}");
        }
    }
    for list in [":/etc/a", "/etc/a:"] {
        let config = new.replace("/etc/containerd/certs.d:/etc/docker/certs.d", list);
        assert!(Node::with(&[(CONTAINERD.0, &config)]).refused("containerd").contains("\"/etc/a\""));
    }
    let old = CONTAINERD.1.replace("certs.d", "certs.d:/etc/docker/certs.d");
    Node::with(&[(CONTAINERD.0, &old)]).done("containerd --write");
}

/// A missing setting or file of the node is named, with the cure.
#[test]
fn what_is_missing_is_named_with_its_cure() {
    let two = "version = 3\nimports = [\"conf.d/*.toml\"]\n";
    let table = "[plugins.\"io.containerd.cri.v1.images\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n";
    for (config, lines) in [("version = 2\n", "io.containerd.grpc.v1.cri"), (two, "io.containerd.cri.v1.images")] {
        let node = Node::with(&[(CONTAINERD.0, config)]);
        let refused = node.refused("containerd --write");
        for word in ["/etc/containerd/config.toml does not set config_path", lines, "systemctl restart containerd"] {
            assert!(refused.contains(word), "no {word}: {refused}");
        }
    }
    let node = Node::with(&[(CONTAINERD.0, two), ("etc/containerd/conf.d/r.toml", table)]);
    node.done("containerd --write");
    assert!(Node::with(&[]).refused("containerd --write").contains("/etc/containerd/config.toml is not there"));
    assert!(Node::with(&[]).refused("dfdaemon --write").contains("/etc/dragonfly/dfdaemon.yaml: it is not there"));
    let flow = Node::with(&[(DFDAEMON, "proxy: {registryMirror: {addr: x}}\n")]);
    assert!(flow.refused("dfdaemon --write").contains("registryMirror:\n    addr: http://127.0.0.1:4130"));
    let bare = Node::with(&[CONTAINERD]);
    bare.put("sidecar.toml", CONFIG.split("[registries.harbor.mirror]").next().unwrap());
    assert!(bare.refused("containerd").contains("registries.NAME.mirror"));
    let linked = Node::with(&[CONTAINERD, ("target", "# x\n")]);
    fs::create_dir_all(linked.0.path().join(HOSTS).parent().unwrap()).unwrap();
    symlink("/target", linked.0.path().join(HOSTS)).unwrap();
    assert!(linked.refused("containerd --write").contains("is a link"));
}

/// All files or none: the second one cannot be written, so the first one is as it was.
#[test]
fn all_files_are_written_or_none() {
    let node = Node::with(&[CONTAINERD, (HOSTS, "# theirs\n"), ("target", "")]);
    // A link in the place of the second file.
    fs::create_dir_all(node.0.path().join(HOSTS_8443).parent().unwrap()).unwrap();
    symlink("/target", node.0.path().join(HOSTS_8443)).unwrap();
    assert!(node.setup("containerd --write").1.contains("a rename would replace it"));
    assert_eq!(node.text(HOSTS), "# theirs\n");
    fs::remove_file(node.0.path().join(HOSTS_8443)).unwrap();
    node.done("containerd --write");
    node.done("containerd --undo");
    assert_eq!(node.text(HOSTS), "# theirs\n");
}

/// A folder of the node may be a link to another of its folders: what is written and read lies below the root, never in the files of the
/// container.
#[test]
fn a_link_to_a_folder_of_the_node_leads_below_the_root() {
    let outside = TempDir::new().unwrap();
    // The same path exists inside and outside of the root.
    let inside = outside.path().display().to_string();
    let node = Node::with(&[CONTAINERD, (&format!("{}/x/hosts.toml", &inside[1..]), "# theirs\n")]);
    symlink(outside.path(), node.0.path().join("etc/containerd/certs.d")).unwrap();
    let untouched = node.tree();
    let said = node.done("containerd --write");
    assert!(said.contains("2 files written"), "{said}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "nothing lies out of the root");
    let written = format!("{}/harbor.example.com/hosts.toml", &inside[1..]);
    assert!(node.text(&written).starts_with("server = \"http://127.0.0.1:4130\"\n"));
    assert!(node.done("containerd --write").starts_with("nothing to change\n"));
    node.done("containerd --undo");
    assert_eq!(node.tree(), untouched);

    let unmounted = Node::with(&[CONTAINERD]);
    symlink("/data/certs.d", unmounted.0.path().join("etc/containerd/certs.d")).unwrap();
    let refused = unmounted.refused("containerd --write");
    assert!(
        refused.contains("/etc/containerd/certs.d is a link to /data/certs.d") && refused.contains("mount it"),
        "{refused}"
    );
}

/// `setup dfdaemon` writes containerd's file, too: the one that wrote last is taken back first, and then each byte is as it was.
#[test]
fn of_two_pullers_the_last_is_taken_back_first() {
    let daemon = (DFDAEMON, "proxy:\n  server:\n    port: 4001\n");
    let theirs = (HOSTS, "# by the platform team\nserver = \"https://harbor.example.com\"\n");
    for found in [vec![CONTAINERD, daemon], vec![CONTAINERD, daemon, theirs]] {
        let node = Node::with(&found);
        let untouched = node.tree();
        node.done("containerd --write");
        let first = node.tree();
        node.done("dfdaemon --write");
        let both = node.tree();
        assert_ne!(first, both);
        // As the init step of a pod that starts again.
        assert!(node.done("containerd --write").starts_with("nothing to change\n"));
        let moved = CONFIG.replace("4130", "4230");
        for (order, config) in [("containerd --undo", CONFIG), ("containerd --write", moved.as_str())] {
            node.put("sidecar.toml", config);
            let refused = node.refused(order);
            assert!(refused.contains("run `roadstead setup dfdaemon --undo` first"), "{order}: {refused}");
            assert!(!refused.contains("by hand"), "{refused}");
        }
        node.put("sidecar.toml", CONFIG);
        // Also when others wrote into the file since.
        node.put(HOSTS, &format!("{}# last\n", node.text(HOSTS)));
        assert!(node.refused("containerd --undo").contains("run `roadstead setup dfdaemon --undo` first"));
        node.put(HOSTS, node.text(HOSTS).strip_suffix("# last\n").unwrap());
        node.done("dfdaemon --undo");
        assert_eq!(node.tree(), first);
        node.done("containerd --undo");
        assert_eq!(node.tree(), untouched);

        // The other order, and all at once.
        node.done("dfdaemon --write");
        node.put("sidecar.toml", &moved);
        node.done("containerd --write");
        node.put("sidecar.toml", CONFIG);
        let refused = node.refused("dfdaemon --undo");
        assert!(refused.contains("run `roadstead setup containerd --undo` first"), "{refused}");
        node.done("docker --write");
        let said = node.done("--undo");
        assert_eq!(node.tree(), untouched, "{said}");
        assert!(said.contains("docker keeps the proxy until `systemctl daemon-reload"), "{said}");
        assert_eq!(node.done("--undo"), "nothing to restore\n");
        node.done("containerd --write");
        node.done("dfdaemon --write");
        node.done("--undo");
        assert_eq!(node.tree(), untouched);
    }
    assert!(Node::with(&[]).refused("--write").contains("PULLER"));
}
