//! The real binary as a child process, with the ports it chose, its logs, its status and its metrics.
//!
//! The ports are read from the log lines `listening`, so every test can say port 0. A thread of its own collects the
//! logs, so that a full pipe never holds the child up. The child dies with its `Sidecar`, and nobody else does.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::load::rss_kib;
use crate::{Metrics, Response, Wire, eventually};

pub use rustix::process::Signal;

/// A start that takes longer has failed, on the slowest machine too.
const START: Duration = Duration::from_secs(20);
/// An end that takes longer has failed; longer than the longest `drain_timeout` of a test.
const END: Duration = Duration::from_secs(60);
/// Log lines that a failed test shows.
const LAST: usize = 30;

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    child: Child,
    pid: u32,
    logs: Logs,
    reader: Option<JoinHandle<()>>,
    proxy: SocketAddr,
    admin: SocketAddr,
    folder: TempDir,
}

/// The lines of standard error so far.
#[derive(Clone, Debug, Default)]
struct Logs {
    lines: Arc<Mutex<Vec<String>>>,
}

/// A table for `[registries.stub]` that leaves quiet tunnels alone, for tests in which a tunnel is to hold its slot.
pub const KEEP_TUNNELS: &str =
    "[registries.stub.reclaim]\nidle_after = \"1h\"\nunused_after = \"1h\"\nunsure_after = \"1h\"\n";

/// A whole config: free loopback ports and JSON logs before `rest`, which goes on with tables:
/// `[registries.stub]` and so on. Keys of the top level (`drain_timeout`) go before the result.
#[must_use]
pub fn config(rest: &str) -> String {
    format!("[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\n[log]\nformat = \"json\"\n\n{rest}\n")
}

impl Sidecar {
    /// Starts `binary` (`env!("CARGO_BIN_EXE_roadstead")`, which only the tests know) with this config, and waits until
    /// it listens.
    ///
    /// # Panics
    /// When it ends, or does not listen within 20 s; the message holds its logs.
    pub async fn start(binary: &str, config: &str) -> Self {
        Self::start_with(binary, config, &[]).await
    }

    /// The same with these variables in its environment.
    ///
    /// # Panics
    /// As [`Sidecar::start`].
    pub async fn start_with(binary: &str, config: &str, environment: &[(&str, &str)]) -> Self {
        Self::launch(binary, config, environment, None).await
    }

    /// The same as this user, who has no group; only root can do that.
    ///
    /// # Panics
    /// As [`Sidecar::start`].
    pub async fn start_as(binary: &str, config: &str, uid: u32) -> Self {
        Self::launch(binary, config, &[], Some(uid)).await
    }

    async fn launch(binary: &str, config: &str, environment: &[(&str, &str)], user: Option<u32>) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the config");
        let path = folder.path().join("sidecar.toml");
        std::fs::write(&path, config).expect("writing the config");
        let mut command = Command::new(binary);
        if let Some(uid) = user {
            for owned in [folder.path(), &path] {
                std::os::unix::fs::chown(owned, Some(uid), Some(uid)).expect("only root can start it as another user");
            }
            command.uid(uid).gid(uid);
        }
        let mut child = command
            .arg("--config")
            .arg(&path)
            // Exports of the tester's shell must not change the result.
            .env_remove("RUST_LOG")
            // As a service manager does, for the control socket.
            .env("RUNTIME_DIRECTORY", folder.path())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("starting {binary}: {error}"));
        let pid = child.id().expect("a child that was not waited for has an id");
        let stderr = child.stderr.take().expect("standard error is piped");
        let logs = Logs::default();
        let reader = logs.collect(stderr.into_owned_fd().expect("the pipe of standard error"));
        let bound = match until_listening(&mut child, &logs).await {
            Ok(bound) => bound,
            Err(ended) => {
                whole(reader);
                panic!("the sidecar ended at its start: {ended:?}\n{}", logs.text());
            }
        };
        let (proxy, admin) = (bound["proxy"], bound["admin"]);
        Self { child, pid, logs, reader: Some(reader), proxy, admin, folder }
    }

    /// Where clients connect to.
    #[must_use]
    pub fn proxy(&self) -> SocketAddr {
        self.proxy
    }

    /// Where health, status and metrics are.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Where the listener of this name in the log is: `metrics`, for instance.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<SocketAddr> {
        self.logs.listening().remove(name)
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The config file it was started with, for tests that change it.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("sidecar.toml")
    }

    /// Where its control socket lies.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    /// Gives an order, `/registries/stub/pause` for instance, on the control socket.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn order(&self, path: &str) -> Response {
        order(&self.control(), path).await.unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.logs.text()))
    }

    /// One request to the admin listener.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn ask_admin(&self, method: &str, path: &str) -> Response {
        let asked = async { Wire::open(self.admin).await?.ask(method, path, &["Connection: close"]).await };
        asked.await.unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.logs.text()))
    }

    /// `GET /status`.
    ///
    /// # Panics
    /// When it does not answer with JSON.
    pub async fn status(&self) -> Value {
        self.ask_admin("GET", "/status").await.json()
    }

    /// `GET /metrics`.
    ///
    /// # Panics
    /// When it does not answer with metrics.
    pub async fn metrics(&self) -> Metrics {
        let answer = self.ask_admin("GET", "/metrics").await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        Metrics::parse(&answer.text())
    }

    /// All log lines so far; what is no JSON is left out (see [`Sidecar::log_text`]).
    #[must_use]
    pub fn logs(&self) -> Vec<Value> {
        self.logs.json()
    }

    /// The `fields` of the lines about finished requests so far.
    #[must_use]
    pub fn finished(&self) -> Vec<Value> {
        let fields = self.logs().into_iter().map(|mut line| line["fields"].take());
        fields.filter(|fields| fields["message"] == "finished").collect()
    }

    /// Everything on standard error so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        self.logs.text()
    }

    /// Resident memory in KiB.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn rss_kib(&self) -> u64 {
        rss_kib(self.pid).expect("the process lives")
    }

    /// Sends a signal to this process.
    ///
    /// # Panics
    /// When it has been waited for: its id may be somebody else's by now.
    pub fn signal(&self, signal: Signal) {
        assert!(self.child.id().is_some(), "the sidecar has ended");
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("a child can be signalled");
    }

    /// Asks it to drain and end (SIGTERM).
    ///
    /// # Panics
    /// As [`Sidecar::signal`].
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for its end; afterwards the logs are whole.
    ///
    /// # Panics
    /// When it lives for another 60 s.
    pub async fn wait(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(END, self.child.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("the sidecar does not end\n{}", self.logs.text()));
        if let Some(reader) = self.reader.take() {
            whole(reader);
        }
        ended.expect("a child can be waited for")
    }
}

/// Gives an order on the control socket of a sidecar.
///
/// # Errors
/// Those of the connection.
pub async fn order(control: &Path, path: &str) -> io::Result<Response> {
    Wire::new(UnixStream::connect(control).await?).ask("POST", path, &["Connection: close"]).await
}

/// A test that failed shows what the sidecar said last. In any other one the sidecar's own audit must not have found more sockets
/// than slots: it is the second judge of every test that lasts for two seconds.
impl Drop for Sidecar {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the sidecar's last lines:\n{}", self.logs.last(LAST));
        } else {
            let text = self.logs.text();
            assert!(!text.contains("sockets are open beyond the slots"), "the audit of the sidecar: {text}");
        }
    }
}

/// Waits until proxy and admin are bound; the error is the end of the child.
async fn until_listening(child: &mut Child, logs: &Logs) -> Result<HashMap<String, SocketAddr>, ExitStatus> {
    eventually("the sidecar to listen", START, async || {
        let bound = logs.listening();
        if bound.contains_key("proxy") && bound.contains_key("admin") {
            return Ok(Ok(bound));
        }
        match child.try_wait().expect("a child can be waited for") {
            None => Err(logs.text()),
            Some(ended) => Ok(Err(ended)),
        }
    })
    .await
}

/// Reads on to the end of the logs. The pipe ends with the process, so this is short.
fn whole(reader: JoinHandle<()>) {
    reader.join().expect("the reader of the logs");
}

impl Logs {
    fn collect(&self, pipe: OwnedFd) -> JoinHandle<()> {
        let lines = self.lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(File::from(pipe)).lines() {
                let Ok(line) = line else { return };
                lines.lock().unwrap().push(line);
            }
        })
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    fn last(&self, count: usize) -> String {
        let lines = self.lines.lock().unwrap();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    fn json(&self) -> Vec<Value> {
        self.lines.lock().unwrap().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The bound listeners by name.
    fn listening(&self) -> HashMap<String, SocketAddr> {
        let lines = self.json();
        let fields = lines.iter().map(|line| &line["fields"]).filter(|fields| fields["message"] == "listening");
        let bound = |fields: &Value| {
            let address = fields["address"].as_str()?.parse().ok()?;
            Some((fields["listener"].as_str()?.to_owned(), address))
        };
        fields.filter_map(bound).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A script that logs as the sidecar does, and then obeys SIGTERM.
    const LIKE_A_SIDECAR: &str = r#"#!/bin/sh
trap 'echo "{\"fields\":{\"message\":\"finished\",\"outcome\":\"served\"}}" >&2; exit 0' TERM
echo 'no JSON' >&2
for name in proxy admin; do
    echo "{\"fields\":{\"message\":\"listening\",\"listener\":\"$name\",\"address\":\"127.0.0.1:1\"}}" >&2
done
while :; do sleep 0.02; done
"#;

    fn script(folder: &TempDir, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.path().join("script");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn ports_and_logs_are_read_and_the_end_is_awaited() {
        let folder = tempfile::tempdir().unwrap();
        let mut sidecar = Sidecar::start(&script(&folder, LIKE_A_SIDECAR), &config("")).await;
        assert_eq!(sidecar.proxy().port(), 1);
        assert_eq!(sidecar.listener("metrics"), None);
        assert!(sidecar.rss_kib() > 0);
        sidecar.terminate();
        assert!(sidecar.wait().await.success());
        assert_eq!(sidecar.finished().len(), 1);
        assert!(sidecar.log_text().starts_with("no JSON"));
    }

    #[tokio::test]
    #[should_panic(expected = "no such key: depht")]
    async fn a_failed_start_shows_the_logs() {
        let folder = tempfile::tempdir().unwrap();
        let complains = script(&folder, "#!/bin/sh\necho 'no such key: depht' >&2; exit 2\n");
        Sidecar::start(&complains, "").await;
    }
}
