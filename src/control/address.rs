//! Where the sidecar of this node is, by its config: for commands that ask it.

use std::path::Path;

use super::ask;
use crate::config::{Config, ListenConfig, LoadError};

/// Where the config is looked for, in this order, when no argument names it.
const KNOWN_FILES: [&str; 2] = ["sidecar.toml", "/etc/roadstead/sidecar.toml"];

/// The config file that was named, or the first that is there.
pub fn config_file(named: Option<&Path>) -> &Path {
    named.or_else(|| readable(&KNOWN_FILES)).unwrap_or(Path::new(KNOWN_FILES[0]))
}

/// Where the sidecar's admin listener is, as `host:port`: as it was named, or as a config says. It needs nothing but that
/// address of the config, so that it works while a reload is refused.
pub fn admin_of(named: Option<&str>, file: Option<&Path>) -> Result<String, String> {
    admin_among(named, file, &KNOWN_FILES)
}

fn admin_among(named: Option<&str>, file: Option<&Path>, known: &[&str]) -> Result<String, String> {
    if let Some(url) = named {
        return ask::authority(url).map(str::to_owned);
    }
    listen_among(file, known).map(|listen| listen.admin.to_string())
}

/// The addresses of a sidecar by its config, or those of one without.
pub fn listen_of(file: Option<&Path>) -> Result<ListenConfig, String> {
    listen_among(file, &KNOWN_FILES)
}

fn listen_among(file: Option<&Path>, known: &[&str]) -> Result<ListenConfig, String> {
    let hint = |error: LoadError| format!("{error}\nname the sidecar with --admin URL");
    file.or_else(|| readable(known))
        .map_or_else(|| Ok(ListenConfig::default()), |file| Config::listen_of(file).map_err(hint))
}

/// The first of these files that is there.
fn readable<'a>(files: &[&'a str]) -> Option<&'a Path> {
    files.iter().copied().map(Path::new).find(|file| file.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_nothing_asks_the_first_sidecar_that_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let with = |port: u16| {
            format!(
                "[listen]\nadmin = '127.0.0.1:{port}'\n[registries.a]\nhosts = ['a.example.com']\ncap = 1\nshare = 1\n"
            )
        };
        let (here, installed, broken) = (
            file("here", &with(1)),
            file("installed", &with(2)),
            file("broken", &format!("{}cap = 0\n[x]\n", with(3))),
        );
        let absent = folder.path().join("absent").to_str().unwrap().to_owned();
        let admin = |known: &[&String]| {
            let known: Vec<&str> = known.iter().map(|file| file.as_str()).collect();
            admin_among(None, None, &known)
        };
        assert_eq!(admin(&[&here, &installed]).unwrap(), "127.0.0.1:1");
        assert_eq!(admin(&[&absent, &installed]).unwrap(), "127.0.0.1:2");
        assert_eq!(admin(&[&absent, &absent]).unwrap(), "127.0.0.1:4129");
        // A sidecar that refused this file goes on with the one before.
        assert_eq!(admin(&[&broken, &installed]).unwrap(), "127.0.0.1:3");
        // A given file counts alone.
        assert!(admin_among(None, Some(Path::new(&absent)), &[&here]).unwrap_err().contains(&absent));
        assert_eq!(admin_among(Some("http://[::1]:7/"), Some(Path::new(&absent)), &[&here]).unwrap(), "[::1]:7");
    }
}
