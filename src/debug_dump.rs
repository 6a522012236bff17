//! `roadstead debug dump`: what a bug report needs, in one tar, without secrets.
//!
//! It holds what the admin pages say, the settings in force by the file and the environment, and the limits of this machine.
//! No page of roadstead has a password, a token or a query. The file of the config is not in it, only its settings; a user in a
//! URL is taken out everywhere, also where a future page would show one.

pub mod command;

use std::io::{self, Write};
use std::path::Path;

use crate::config::Config;

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
        Ok(config) => {
            let lines = config.settings.iter().map(|(key, value)| (key, value, origin(&config, key)));
            lines.flat_map(|(key, value, origin)| [key, " = ", value, ", ", &origin, "\n"].map(str::to_owned)).collect()
        }
        Err(error) => format!("{error}\n"),
    };
    files.push(("settings.txt".to_owned(), settings));
    for path in OF_KERNEL {
        let name = path.trim_start_matches('/').replace('/', "_");
        files.push((format!("{name}.txt"), std::fs::read_to_string(path).unwrap_or_else(|error| format!("{error}\n"))));
    }
    files.into_iter().map(|(name, text)| (name, without_users(&text))).collect()
}

/// Where the value of this key came from, in words, but for the name of the file.
pub fn origin(config: &Config, key: &str) -> String {
    match (config.from_environment.get(key), config.in_file.0.get(key)) {
        (Some(variable), _) => format!("from the environment: {variable}"),
        (None, Some(line)) => format!("from line {line}"),
        (None, None) => "by default".to_owned(),
    }
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

/// The text without the user and password of any URL in it.
fn without_users(text: &str) -> String {
    let mut parts = text.split("://");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|char: char| char.is_whitespace() || "/?#\"'<>,;)".contains(char)).unwrap_or(part.len());
        let (authority, rest) = part.split_at(end);
        let host = authority.rsplit_once('@').map_or(authority.to_owned(), |(_, host)| format!("***@{host}"));
        kept.extend(["://", &host, rest]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_a_url_is_taken_out() {
        for (text, expected) in [
            ("redis://:pass@redis:6379/0", "redis://***@redis:6379/0"),
            ("a=redis://u:p@h, b=https://harbor.example.com/x@y", "a=redis://***@h, b=https://harbor.example.com/x@y"),
            ("\"http://u:p@w@h\"\nhttp://h", "\"http://***@h\"\nhttp://h"),
            ("nothing :// here", "nothing :// here"),
            ("", ""),
        ] {
            assert_eq!(without_users(text), expected);
        }
    }

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
