//! containerd without Kubernetes: a daemon with everything in a temporary folder, asked by `ctr`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::program::{Program, find_program};

/// How long `ctr` may take, in seconds: it has been seen to wait for ever.
const LONGEST: &str = "60";

/// A running containerd. Dropping it ends the daemon; no container is ever started.
pub struct Containerd {
    socket: PathBuf,
    _program: Program,
    _folder: TempDir,
}

impl Containerd {
    /// Starts the daemon.
    ///
    /// # Errors
    /// Why it does not run on this machine: without root, for instance.
    ///
    /// # Panics
    /// When the program is missing.
    pub fn start() -> Result<Self, String> {
        let folder = TempDir::new().expect("a temporary folder");
        let socket = folder.path().join("containerd.sock");
        let config = folder.path().join("config.toml");
        fs::write(&config, config_text(folder.path(), &socket)).expect("the folder is ours");
        let mut program = Program::start(
            Command::new(find_program("containerd")).arg("--config").arg(&config),
            folder.path().join("log"),
        );
        program
            .await_start(|_| ctr(&socket, &["version"]).ok())
            .map_err(|reason| format!("containerd does not start: {reason}"))?;
        Ok(Self { socket, _program: program, _folder: folder })
    }

    /// Pulls `reference` with these options, unpacked as far as a container would need it.
    ///
    /// # Errors
    /// The complaint of `ctr`.
    pub fn pull(&self, options: &[&str], reference: &str) -> Result<(), String> {
        let pull = ["images", "pull", "--snapshotter", "native"];
        ctr(&self.socket, &[&pull, options, &[reference]].concat()).map(drop)
    }

    /// Pushes what was pulled as `local`, under another name. Without `--http-dump`, by which it reads a blob before it sends it,
    /// version 1.6 waits for ever where the registry answers before it has the whole blob, with or without a mirror between.
    ///
    /// # Errors
    /// The complaint of `ctr`.
    pub fn push(&self, options: &[&str], reference: &str, local: &str) -> Result<(), String> {
        ctr(&self.socket, &[&["images", "push"], options, &[reference, local]].concat()).map(drop)
    }

    /// The bytes of a blob that was pulled.
    ///
    /// # Errors
    /// The complaint of `ctr`.
    pub fn blob(&self, digest: &str) -> Result<Vec<u8>, String> {
        ctr(&self.socket, &["content", "get", digest])
    }
}

fn ctr(socket: &Path, arguments: &[&str]) -> Result<Vec<u8>, String> {
    let mut command = Command::new(find_program("timeout"));
    let command =
        command.arg(LONGEST).arg(find_program("ctr")).arg("--address").arg(socket).args(arguments).stdin(Stdio::null());
    let output = command.output().map_err(|error| error.to_string())?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(output.stdout).ok_or_else(|| format!("ctr {arguments:?}: {complaint}"))
}

/// Only what a pull needs: no Kubernetes, no containers.
fn config_text(folder: &Path, socket: &Path) -> String {
    let folder = folder.display();
    let socket = socket.display();
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.restart", "io.containerd.internal.v1.opt"]

[grpc]
address = "{socket}"
"#
    )
}
