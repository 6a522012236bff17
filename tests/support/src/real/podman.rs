//! podman with a storage, a policy and a list of registries of its own.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tempfile::TempDir;

use super::program::find_program;

/// A podman that knows one registry, by its mirror. Its storage goes with the value; no container is ever started.
pub struct Podman {
    folder: TempDir,
}

impl Podman {
    /// Sets it up: `mirror` (host and port, plain HTTP) stands in for the registry `host`, and is given `credentials`
    /// (`USER:PASSWORD`); podman hands those for the registry to no mirror.
    ///
    /// # Errors
    /// Why it does not run on this machine: without user namespaces, for instance.
    ///
    /// # Panics
    /// When the program is missing.
    pub fn with_mirror(host: &str, mirror: &str, (name, credentials): (&str, &str)) -> Result<Self, String> {
        let folder = TempDir::new().expect("a temporary folder");
        let settings = folder.path().join(".config/containers");
        fs::create_dir_all(&settings).expect("the folder is ours");
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        fs::write(settings.join("policy.json"), policy).expect("the folder is ours");
        let registries = format!(
            "[[registry]]\nlocation = \"{host}\"\n\n[[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n"
        );
        fs::write(folder.path().join("registries.conf"), registries).expect("the folder is ours");
        let auths = json!({"auths": {name: {"auth": BASE64_STANDARD.encode(credentials)}}});
        fs::write(folder.path().join("auth.json"), auths.to_string()).expect("the folder is ours");
        let podman = Self { folder };
        podman.run(&["info"]).map_err(|complaint| format!("podman does not run: {complaint}"))?;
        Ok(podman)
    }

    /// Pulls an image.
    ///
    /// # Errors
    /// The complaint of podman.
    pub fn pull(&self, image: &str) -> Result<(), String> {
        self.run(&["pull", image])
    }

    /// Pushes an image that was pulled under another name, to a registry that speaks plain HTTP.
    ///
    /// # Errors
    /// The complaint of podman.
    pub fn push(&self, image: &str, to: &str) -> Result<(), String> {
        self.run(&["push", "--tls-verify=false", image, &format!("docker://{to}")])
    }

    /// Writes an image that was pulled into a new folder: layers, uncompressed, and config as files named by the hex of
    /// their digests.
    ///
    /// # Errors
    /// The complaint of podman.
    pub fn save(&self, image: &str, folder: &Path) -> Result<(), String> {
        let folder = folder.display().to_string();
        self.run(&["save", "--format", "docker-dir", "--output", &folder, image])
    }

    fn run(&self, arguments: &[&str]) -> Result<(), String> {
        let home = self.folder.path();
        let mut command = Command::new(find_program("podman"));
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", home)
            .env("TMPDIR", home)
            .env("XDG_RUNTIME_DIR", home)
            .env("CONTAINERS_REGISTRIES_CONF", home.join("registries.conf"))
            .env("REGISTRY_AUTH_FILE", home.join("auth.json"))
            .args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"])
            .arg("--root")
            .arg(home.join("storage"))
            .arg("--runroot")
            .arg(home.join("run"))
            .arg("--tmpdir")
            .arg(home.join("tmp"))
            .args(arguments)
            .stdin(Stdio::null());
        let output = command.output().map_err(|error| error.to_string())?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        output.status.success().then_some(()).ok_or_else(|| format!("podman {arguments:?}: {complaint}"))
    }
}
