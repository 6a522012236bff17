//! `Dockerfile`: the static binary, and the image that buildah makes of it.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::tool::{both, end_of, not_run, repository, run};

/// The most that the image may hold: 10.5 MB with certificates, and room for a little more.
const LIMIT: u64 = 11 * 1024 * 1024;
/// The certificates of the public authorities, where Debian has them.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Nobody in particular.
const USER: &str = "65532:65532";

/// Small enough, and right in the image: nothing but binary and certificates, for a user that is nobody.
#[test]
fn the_image_is_small_and_holds_only_what_runs() {
    let target = format!("{ARCH}-unknown-linux-musl");
    if !has_target(&target) {
        not_run("the static binary and the image", &format!("Rust's target {target} is not installed"));
        return within_the_limit(&release_build(None));
    }
    let binary = release_build(Some(&target));
    within_the_limit(&binary);
    let folder = TempDir::new().unwrap();
    let Some(buildah) = Buildah::find(folder.path()) else { return };
    let context = context(folder.path(), &binary);
    let arguments =
        ["build", "--isolation", "chroot", "--build-arg", "BINARY=prebuilt", "--tag", "localhost/roadstead"];
    run(buildah.command().args(arguments).arg(context));
    let format = "{{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.WorkingDir}}";
    let said = run(buildah.command().args(["inspect", "--type", "image", "--format", format, "localhost/roadstead"]));
    assert_eq!(said.trim(), format!("{USER} [/roadstead] /etc/roadstead"));
    let root = buildah.mount("localhost/roadstead");
    let mut files = Vec::new();
    list(&root, &root, &mut files);
    files.sort();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [CERTIFICATES, "/roadstead"]);
    let size: u64 = files.iter().map(|(_, size)| size).sum();
    assert!(size < LIMIT, "{size} bytes");
    // With nothing around it, as the user of the image, it starts.
    let said =
        run(Command::new("chroot").arg(format!("--userspec={USER}")).arg(&root).args(["/roadstead", "--version"]));
    assert!(said.starts_with(concat!("roadstead ", env!("CARGO_PKG_VERSION"))), "{said}");
}

fn within_the_limit(binary: &Path) {
    let size = fs::metadata(binary).unwrap().len();
    assert!(size < LIMIT, "{}: {size} bytes", binary.display());
}

/// Whether Rust can build for this target.
fn has_target(target: &str) -> bool {
    let libraries = end_of(Command::new("rustc").args(["--print", "target-libdir", "--target", target]));
    Path::new(String::from_utf8_lossy(&libraries.stdout).trim()).is_dir()
}

/// The binary as it is released, for a target or for this machine.
fn release_build(target: Option<&str>) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--release", "--locked", "--bin", "roadstead", "--target-dir"]).arg(folder);
    build.current_dir(repository(""));
    // Cargo's variables for this test would make crates build again.
    let is_of_this_test =
        |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "OUT_DIR";
    for (name, _) in std::env::vars().filter(|(name, _)| is_of_this_test(name)) {
        build.env_remove(name);
    }
    if let Some(target) = target {
        // As packaging/release has it.
        build.args(["--target", target]).env(format!("CC_{}", target.replace('-', "_")), "cc");
    }
    run(&mut build);
    target.map_or(folder.to_owned(), |target| folder.join(target)).join("release/roadstead")
}

/// A build context that holds what the Dockerfile takes as prebuilt.
fn context(folder: &Path, binary: &Path) -> PathBuf {
    let context = folder.join("context");
    let image = context.join("target/image");
    fs::create_dir_all(&image).unwrap();
    for file in ["Dockerfile", ".dockerignore"] {
        fs::copy(repository(file), context.join(file)).unwrap();
    }
    fs::copy(binary, image.join("roadstead")).unwrap();
    fs::copy(CERTIFICATES, image.join("ca-certificates.crt")).unwrap();
    context
}

/// The files under a folder, with their sizes.
fn list(root: &Path, folder: &Path, files: &mut Vec<(String, u64)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap();
            files.push((format!("/{}", name.display()), fs::metadata(&path).unwrap().len()));
        }
    }
}

/// buildah with a store of its own.
struct Buildah {
    store: PathBuf,
}

impl Buildah {
    /// None, and it is said, where this machine cannot build and mount an image.
    fn find(folder: &Path) -> Option<Buildah> {
        let buildah = Buildah { store: folder.join("store") };
        let probe = folder.join("probe");
        fs::create_dir(&probe).unwrap();
        fs::write(probe.join("Dockerfile"), "FROM scratch\nCOPY Dockerfile /Dockerfile\n").unwrap();
        let started = buildah.command().arg("--version").output();
        if let Err(error) = started {
            not_run("the image", &format!("buildah cannot be started: {error}"));
            return None;
        }
        let built =
            end_of(buildah.command().args(["build", "--isolation", "chroot", "--tag", "localhost/probe"]).arg(probe));
        let from = end_of(buildah.command().args(["from", "--name", "probe", "localhost/probe"]));
        let mounted = end_of(buildah.command().args(["mount", "probe"]));
        let Some(failed) = [built, from, mounted].into_iter().find(|output| !output.status.success()) else {
            return Some(buildah);
        };
        not_run("the image", both(&failed).trim());
        None
    }

    fn command(&self) -> Command {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.store.join("root")).arg("--runroot").arg(self.store.join("run"));
        command.args(["--storage-driver", "vfs"]);
        command
    }

    /// Where the files of an image can be seen.
    fn mount(&self, image: &str) -> PathBuf {
        run(self.command().args(["from", "--name", "mounted", image]));
        PathBuf::from(run(self.command().args(["mount", "mounted"])).trim())
    }
}
