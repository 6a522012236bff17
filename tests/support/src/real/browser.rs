//! A real Chromium without a window, told what to do over `WebDriver`.

use std::fmt::{self, Debug, Formatter};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::program::{NotUp, Program, find_program, on_free_port, signal_process};

/// The longest that one command may take: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page, without a memory of others; it ends when dropped.
pub struct Browser {
    driver: Program,
    address: SocketAddr,
    session: String,
    _folder: TempDir,
}

impl Debug for Browser {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        out.debug_struct("Browser").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Browser {
    /// Starts it.
    ///
    /// # Panics
    /// When chromium or its driver is missing, or does not start; the message holds the driver's log.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the browser");
        let (driver, port) = on_free_port("chromedriver", || start_driver(folder.path()));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
        let mut browser = Self { driver, address, session: String::new(), _folder: folder };
        let options = json!({
            "binary": find_program("chromium"),
            // Without the sandbox: root, in a container, has none.
            "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run",
                "--no-proxy-server", "--disable-background-networking", "--disable-component-update", "--disable-sync", profile],
        });
        let wanted = json!({"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
        let session = browser.command("POST", "/session", &json!({"capabilities": {"alwaysMatch": wanted}}));
        session["sessionId"].as_str().expect("a session has an id").clone_into(&mut browser.session);
        browser
    }

    /// Opens a URL, and waits until it is loaded.
    pub fn open(&self, url: &str) {
        self.tell("url", &json!({"url": url}));
    }

    /// The result of a function body in the page.
    #[must_use]
    pub fn run(&self, script: &str) -> Value {
        self.tell("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Clicks the element that this CSS selector finds first, as a hand would: it must be there and uncovered.
    ///
    /// # Panics
    /// When there is none.
    pub fn click(&self, selector: &str) {
        let found = self.tell("element", &json!({"using": "css selector", "value": selector}));
        let id = found.as_object().and_then(|found| found.values().next()).and_then(Value::as_str);
        self.tell(&format!("element/{}/click", id.expect("an element has an id")), &json!({}));
    }

    /// Makes the page as large as this, in a light or dark scheme.
    pub fn look(&self, width: u32, height: u32, dark: bool) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.develop("Emulation.setDeviceMetricsOverride", &size);
        self.develop("Emulation.setScrollbarsHidden", &json!({"hidden": true}));
        let scheme = json!({"name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" }});
        self.develop("Emulation.setEmulatedMedia", &json!({"features": [scheme]}));
    }

    /// The visible page, as PNG.
    ///
    /// # Panics
    /// When it is no picture.
    #[must_use]
    pub fn screenshot(&self) -> Vec<u8> {
        let picture = self.command("GET", &self.path("screenshot"), &Value::Null);
        BASE64_STANDARD.decode(picture.as_str().expect("a picture as text")).expect("base64")
    }

    /// The messages of the console since the last time: errors of scripts, and loads that the security policy forbade.
    ///
    /// # Panics
    /// When the driver gives no list.
    #[must_use]
    pub fn console(&self) -> Vec<String> {
        let entries = self.tell("se/log", &json!({"type": "browser"}));
        let entries = entries.as_array().expect("a list of entries").iter();
        entries.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn develop(&self, method: &str, parameters: &Value) {
        self.tell("goog/cdp/execute", &json!({"cmd": method, "params": parameters}));
    }

    fn path(&self, what: &str) -> String {
        format!("/session/{}/{what}", self.session)
    }

    fn tell(&self, what: &str, body: &Value) -> Value {
        self.command("POST", &self.path(what), body)
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.ask(method, path, body);
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.driver.log()));
        let value = answer["value"].clone();
        assert!(value.get("error").is_none(), "{method} {path}: {value:#}");
        value
    }

    /// One request to the driver on a connection of its own.
    fn ask(&self, method: &str, path: &str, body: &Value) -> io::Result<Value> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (host, length) = (self.address, body.len());
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + &body).as_bytes())?;
        let mut answer = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            if answer.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        answer.read_exact(&mut body)?;
        serde_json::from_slice(&body).map_err(io::Error::other)
    }
}

/// The driver, and its port: it takes a free one of IPv6, and ends where somebody else has the same one of IPv4.
fn start_driver(folder: &Path) -> Result<(Program, u16), NotUp> {
    let mut command = Command::new(find_program("chromedriver"));
    // All that it writes goes into its folder.
    command.arg("--port=0").env("HOME", folder).env("TMPDIR", folder);
    let mut driver = Program::start(&mut command, folder.join("log"));
    let port = driver.await_start(|driver| {
        let log = driver.log();
        let (_, rest) = log.split_once("started successfully on port ")?;
        rest.split('.').next()?.trim().parse().ok()
    })?;
    Ok((driver, port))
}

impl Drop for Browser {
    fn drop(&mut self) {
        // In order, which takes its processes along; where that fails, by the ids of those that the driver started.
        let path = format!("/session/{}", self.session);
        if self.session.is_empty() || self.ask("DELETE", &path, &Value::Null).is_err() {
            for child in self.driver.children() {
                signal_process(child, Signal::KILL);
            }
        }
    }
}
