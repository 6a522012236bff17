//! `roadstead debug dump`: what a bug report needs, in one tar, without secrets.
//!
//! It holds what the admin pages say, the settings in force by the file and the environment, and the limits of this machine.
//! No page of roadstead has a password, a token or a query. The file of the config is not in it, only its settings; a user in a
//! URL is taken out everywhere, also where a future page would show one.

pub mod command;

use std::io::{self, Write};
use std::path::Path;

use crate::config::Config;
use crate::setup::diff::without_users;

/// The admin pages that are asked for, each with the name of its file.
const PAGES: [(&str, &str); 4] =
    [("/status", "status.json"), ("/queue", "queue.json"), ("/history", "history.json"), ("/metrics", "metrics.txt")];
/// Files of the kernel about this machine, and about this process' limits.
const OF_KERNEL: [&str; 6] = [
    "/proc/version",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/self/limits",
    "/proc/net/sockstat",
    "/proc/sys/net/ipv4/ip_local_port_range",
];

const ABOUT: &str = "\
A report of roadstead for a bug report. It has no passwords, tokens or query strings. It does have names of hosts,
repositories, clients and users: look through it before you publish it. The log is not in it: add the lines around the
event, from `journalctl -u roadstead` or `kubectl logs`.
";

/// The files of a report, each with its name and text. `page` asks a running sidecar; what it does not answer is told in
/// the place of the page.
pub fn files(version: &str, config: &Path, page: impl Fn(&str) -> Result<String, String>) -> Vec<(String, String)> {
    let mut files =
        vec![("README.txt".to_owned(), ABOUT.to_owned()), ("version.txt".to_owned(), format!("{version}\n"))];
    for (path, name) in PAGES {
        let told = page(path).unwrap_or_else(|problem| format!("{problem}\n"));
        files.push((name.to_owned(), told));
    }
    let settings = match Config::load(config) {
        Ok(config) => settings(&config, "line ", true),
        Err(error) => format!("{error}\n"),
    };
    files.push(("settings.txt".to_owned(), settings));
    for path in OF_KERNEL {
        let name = path.trim_start_matches('/').replace('/', "_");
        files.push((format!("{name}.txt"), std::fs::read_to_string(path).unwrap_or_else(|error| format!("{error}\n"))));
    }
    files.into_iter().map(|(name, text)| (name, without_users(&text))).collect()
}

/// The settings in force, a line each with where the value came from: `place` stands before the line of the file. Those that are set
/// nowhere are left out unless they are wanted.
pub fn settings(config: &Config, place: &str, with_defaults: bool) -> String {
    let origin = |key: &str| {
        let variable = config.from_environment.get(key).map(|variable| format!("from the environment: {variable}"));
        let in_file = || Some(format!("from {place}{}", config.in_file.0.get(key)?));
        variable.or_else(in_file).or_else(|| with_defaults.then(|| "by default".to_owned()))
    };
    let lines = config.settings.iter().filter_map(|(key, value)| Some(format!("{key} = {value}, {}\n", origin(key)?)));
    lines.map(|line| without_users(&line)).collect()
}

/// Writes the files as a tar, in one folder.
pub fn write(files: &[(String, String)], at: u64, to: impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(to);
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(at);
        tar.append_data(&mut header, format!("roadstead-debug/{name}"), text.as_bytes())?;
    }
    tar.into_inner()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_that_is_away_is_told_in_the_report() {
        let files = files("1", Path::new("/absent.toml"), |path| Err(format!("127.0.0.1:1: refused {path}")));
        let text = |name: &str| files.iter().find(|(of, _)| of == name).map(|(_, text)| text.as_str()).unwrap();
        assert_eq!(text("status.json"), "127.0.0.1:1: refused /status\n");
        assert!(text("settings.txt").contains("/absent.toml"));
        let mut tar = Vec::new();
        write(&files, 0, &mut tar).unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        assert_eq!(archive.entries().unwrap().count(), files.len());
    }
}
