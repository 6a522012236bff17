//! skopeo with nothing of this machine's settings.

use std::env;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use super::program::find_program;

/// A copy of some MiB takes a second; one that takes longer than this has stalled.
const STALLED: Duration = Duration::from_secs(120);

/// A skopeo with a home of its own, which goes with the value.
pub struct Skopeo {
    home: TempDir,
    proxy: Option<SocketAddr>,
}

impl Skopeo {
    /// One that uses no proxy.
    ///
    /// # Panics
    /// When no temporary folder can be made.
    #[must_use]
    pub fn direct() -> Self {
        Self { home: TempDir::new().expect("a temporary folder"), proxy: None }
    }

    /// One whose proxy is this.
    ///
    /// # Panics
    /// When no temporary folder can be made.
    #[must_use]
    pub fn through(proxy: SocketAddr) -> Self {
        Self { proxy: Some(proxy), ..Self::direct() }
    }

    /// Copies an image, its digests unchanged.
    ///
    /// # Errors
    /// The complaint of skopeo.
    ///
    /// # Panics
    /// When the program is missing, or stalls.
    pub async fn copy(&self, options: &[&str], from: &str, to: &str) -> Result<(), String> {
        let mut command = Command::new(find_program("skopeo"));
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("TMPDIR", self.home.path())
            // As root it would keep notes in /var/lib/containers; as anybody else it keeps them in HOME.
            .env("_CONTAINERS_ROOTLESS_UID", "1000")
            .args(["--insecure-policy", "copy", "--preserve-digests"])
            .args(options)
            .args([from, to])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(proxy) = self.proxy {
            let proxy = format!("http://{proxy}");
            command.env("HTTP_PROXY", &proxy).env("HTTPS_PROXY", &proxy);
        }
        let output = timeout(STALLED, command.output()).await.unwrap_or_else(|_| panic!("skopeo stalled: {from} {to}"));
        let output = output.map_err(|error| error.to_string())?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        output.status.success().then_some(()).ok_or_else(|| format!("skopeo copy {from} {to}: {complaint}"))
    }

    /// How skopeo names the image in an OCI layout folder.
    #[must_use]
    pub fn layout(folder: &Path) -> String {
        format!("oci:{}:latest", folder.display())
    }
}
