//! The Debian package that `packaging/release` makes, installed by dpkg into a folder of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use roadstead_test_support::real::find_program;
use tempfile::TempDir;

use crate::tool::{both, end_of, not_run, repository, run, text_of};

/// The files of the package, without the documentation that Debian asks of every one.
const FILES: [&str; 10] = [
    "/usr/bin/roadstead",
    "/usr/lib/systemd/system/roadstead-mirror.socket",
    "/usr/lib/systemd/system/roadstead.service",
    "/usr/lib/systemd/system/roadstead.socket",
    "/usr/share/doc/roadstead/examples/drop-ins/containerd.conf",
    "/usr/share/doc/roadstead/examples/drop-ins/dfdaemon-2.0.9.conf",
    "/usr/share/doc/roadstead/examples/drop-ins/dfdaemon.conf",
    "/usr/share/doc/roadstead/examples/drop-ins/docker.conf",
    "/usr/share/doc/roadstead/examples/sidecar.toml",
    "/usr/share/man/man1/roadstead.1.gz",
];

/// The package is built with the binary of this build, and installed, upgraded and removed.
#[test]
fn the_package_installs_upgrades_and_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let package = folder.path().join("roadstead.deb");
    build(&package);
    let root = folder.path().join("root");
    for part in ["var/lib/dpkg/info", "var/lib/dpkg/updates"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    run(dpkg(&root).arg("--install").arg(&package));
    let installed = files_of(&root);
    for file in FILES {
        assert!(installed.iter().any(|path| path == file), "{file} is missing: {installed:?}");
    }
    assert!(!root.join("etc/roadstead/sidecar.toml").exists(), "it would start with a registry that nobody has");
    let binary = root.join("usr/bin/roadstead");
    assert_eq!(fs::metadata(&binary).unwrap().permissions().mode() & 0o777, 0o755);
    let said = run(Command::new(&binary).arg("--version"));
    assert!(said.starts_with(concat!("roadstead ", env!("CARGO_PKG_VERSION"))), "{said}");
    let example = root.join("usr/share/doc/roadstead/examples/sidecar.toml");
    run(Command::new(&binary).args(["check", "--config"]).arg(example));
    run(dpkg(&root).arg("--install").arg(&package));
    run(dpkg(&root).args(["--purge", "roadstead"]));
    let left: Vec<String> = files_of(&root).into_iter().filter(|path| !path.starts_with("/var/")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A package that is removed leaves the pullers of the node as they were before `roadstead setup`; while it cannot, it stays.
#[test]
fn a_removed_package_leaves_the_pullers_as_they_were() {
    let folder = TempDir::new().unwrap();
    let package = folder.path().join("roadstead.deb");
    build(&package);
    let root = folder.path().join("root");
    for part in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "etc/containerd", "etc/dragonfly"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let table = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
    fs::write(root.join("etc/containerd/config.toml"), table).unwrap();
    fs::write(root.join("etc/dragonfly/dfdaemon.yaml"), "proxy:\n  server:\n    port: 4001\n").unwrap();
    let untouched = files_of(&root.join("etc"));
    run(dpkg(&root).arg("--install").arg(&package));
    let sidecar = folder.path().join("sidecar.toml");
    let registry = "[registries.harbor]\nhosts = [\"harbor.example.com\"]\ncap = 200\nshare = \"1/20\"\n";
    let mirror = "[registries.harbor.mirror]\nlisten = \"127.0.0.1:4130\"\nupstream = \"https://harbor.example.com\"\n";
    fs::write(&sidecar, format!("{registry}{mirror}")).unwrap();
    for puller in ["containerd", "dfdaemon", "docker", "podman"] {
        let mut setup = Command::new(root.join("usr/bin/roadstead"));
        run(setup.args(["setup", puller, "--write", "--root"]).arg(&root).arg("--config").arg(&sidecar));
    }
    // An upgrade restores nothing.
    let led = files_of(&root.join("etc"));
    run(dpkg(&root).arg("--install").arg(&package));
    assert_eq!(files_of(&root.join("etc")), led);
    let hosts = root.join("etc/containerd/certs.d/harbor.example.com/hosts.toml");
    let written = fs::read_to_string(&hosts).unwrap();
    fs::write(&hosts, "server = \"http://127.0.0.1:9\"\n").unwrap();
    let refused = end_of(dpkg(&root).args(["--remove", "roadstead"]));
    assert!(!refused.status.success() && both(&refused).contains("was changed since"), "{}", both(&refused));
    assert!(both(&refused).contains("docker keeps the proxy until"), "docker was restored: {}", both(&refused));
    assert!(root.join("usr/bin/roadstead").exists());
    fs::write(&hosts, written).unwrap();
    run(dpkg(&root).args(["--remove", "roadstead"]));
    assert_eq!(files_of(&root.join("etc")), untouched);
    assert!(!root.join("usr/bin/roadstead").exists());
}

/// A wrong word in a script of the package shows only when it is installed.
#[test]
fn the_scripts_of_the_package_are_sound() {
    for script in ["postinst", "prerm", "postrm"] {
        let path = repository("packaging/debian").join(script);
        run(Command::new("sh").arg("-n").arg(&path));
        assert!(text_of(&format!("packaging/debian/{script}")).starts_with("#!/bin/sh\n"), "{script}");
    }
    run(Command::new("bash").arg("-n").arg(repository("packaging/release")));
}

/// The package as `packaging/release` builds it, but with this build's binary, which stands where cargo put it.
pub fn build(package: &Path) {
    let staging = repository("target/packages/staging");
    fs::create_dir_all(&staging).unwrap();
    let man = end_of(Command::new(env!("CARGO_BIN_EXE_roadstead")).arg("man"));
    fs::write(staging.join("roadstead.1"), man.stdout).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_roadstead"));
    let folder = binary.parent().unwrap();
    let target = folder.parent().unwrap();
    let profile = folder.file_name().and_then(|name| name.to_str()).unwrap();
    let profile = if profile == "debug" { "dev" } else { profile };
    run(Command::new(find_program("cargo-deb"))
        .args(["--quiet", "--no-build", "--no-strip", "--fast", "--offline", "--profile", profile, "--output"])
        .arg(package)
        .env("CARGO_TARGET_DIR", target)
        .current_dir(repository("")));
}

/// dpkg with a folder of its own as the root of everything. Scripts run, and see that it is not the machine.
fn dpkg(root: &Path) -> Command {
    let mut dpkg = Command::new("dpkg");
    dpkg.arg(format!("--root={}", root.display())).args([
        "--force-script-chrootless",
        "--force-not-root",
        "--log=/dev/null",
    ]);
    dpkg
}

/// All files under a folder, as seen from it.
fn files_of(root: &Path) -> Vec<String> {
    let listed = run(Command::new("find").arg(root).args(["-type", "f", "-printf", "/%P\n"]));
    listed.lines().map(str::to_owned).collect()
}

/// The whole of `packaging/release`, in a clone: package, archive, image and checksums are real. The binary is this build's and the list
/// of crates is empty, since a static binary and the program that lists crates take minutes to build.
#[test]
fn one_command_makes_all_that_is_released() {
    let folder = TempDir::new().unwrap();
    let (clone, programs) = (folder.path().join("clone"), folder.path().join("programs"));
    run(Command::new("git").args(["clone", "--quiet"]).arg(repository("")).arg(&clone));
    fs::create_dir(&programs).unwrap();
    let small = folder.path().join("roadstead");
    run(Command::new("strip").arg("-o").arg(&small).arg(env!("CARGO_BIN_EXE_roadstead")));
    let build = "case $1 in\nbuild) mkdir -p \"$BUILT\" && cp \"$SMALL\" \"$BUILT/roadstead\" ;;\n\
         cyclonedx) echo '{}' >roadstead-$VERSION.cdx.json ;;\n*) exec \"$CARGO\" \"$@\" ;;\nesac";
    for (name, script) in [("cargo", build), ("cargo-cyclonedx", "")] {
        let file = programs.join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut release = Command::new(clone.join("packaging/release"));
    release
        .env("PATH", path)
        .env("CARGO", env!("CARGO"))
        .env("SMALL", &small)
        .env("VERSION", env!("CARGO_PKG_VERSION"));
    release.env("BUILT", format!("target/{}-unknown-linux-musl/release", std::env::consts::ARCH));
    let output = end_of(&mut release);
    let said = both(&output);
    for missing in ["buildah is missing", "no static target"] {
        if said.contains(missing) {
            return not_run("packaging/release", said.trim());
        }
    }
    assert!(output.status.success(), "{said}");
    let packages = clone.join("target/packages");
    let checked = run(Command::new("sha256sum").args(["--check", "SHA256SUMS"]).current_dir(&packages));
    for end in [".deb: OK", ".tar.gz: OK", ".oci.tar: OK", ".cdx.json: OK"] {
        assert_eq!(checked.lines().filter(|line| line.ends_with(end)).count(), 1, "{end}: {checked}");
    }
    assert_eq!(files_of(&packages).len(), 5, "nothing else is left there");
    let listed = run(Command::new("sh").args(["-c", "tar -tzf roadstead-*.tar.gz"]).current_dir(&packages));
    for file in [
        "roadstead",
        "roadstead.1",
        "sidecar.toml",
        "LICENSE",
        "systemd/roadstead-mirror.socket",
        "completions/roadstead.bash",
    ] {
        assert!(listed.lines().any(|line| line.ends_with(&format!("/{file}"))), "{file}: {listed}");
    }
}
