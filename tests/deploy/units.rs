//! `systemd/`, judged by systemd itself.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use roadstead::config::Config;
use roadstead_test_support::real::find_program;
use tempfile::TempDir;

use crate::tool::{both, end_of, run, text_of};

/// The drop-ins, and the units that they are for.
const DROP_INS: [(&str, &str); 4] =
    [("containerd", "containerd"), ("docker", "docker"), ("dfdaemon", "dfdaemon"), ("dfdaemon-2.0.9", "dfdaemon")];
const SOCKETS: [&str; 2] = ["roadstead.socket", "roadstead-mirror.socket"];
/// The worst exposure that `systemd-analyze security` may find, of 10.
const EXPOSURE: f64 = 2.0;

/// The value of a setting that stands once in a unit.
fn setting<'a>(unit: &'a str, key: &str) -> &'a str {
    let found: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect();
    assert_eq!(found.len(), 1, "{key}: {found:?}");
    found[0]
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs(text.parse().expect("seconds"))
}

/// The units as they would be installed, with this build as the binary.
fn install(folder: &Path) {
    let service = text_of("systemd/roadstead.service");
    let installed = service.replace("ExecStart=roadstead", concat!("ExecStart=", env!("CARGO_BIN_EXE_roadstead")));
    assert_ne!(service, installed);
    fs::write(folder.join("roadstead.service"), installed).unwrap();
    for socket in SOCKETS {
        fs::write(folder.join(socket), text_of(&format!("systemd/{socket}"))).unwrap();
    }
}

fn analyze(folder: &Path) -> Command {
    let mut command = Command::new(find_program("systemd-analyze"));
    // The colon at the end: and where the system's own units are.
    command.env("SYSTEMD_UNIT_PATH", format!("{}:", folder.display())).env("SYSTEMD_PAGER", "");
    command
}

/// Nothing unknown, nothing missing.
#[test]
fn systemd_has_nothing_to_say_about_the_units() {
    let folder = TempDir::new().unwrap();
    install(folder.path());
    let service = folder.path().join("roadstead.service");
    let sockets = SOCKETS.map(|socket| folder.path().join(socket));
    assert_eq!(run(analyze(folder.path()).arg("verify").args(&sockets).arg(&service)), "");
    // It bites.
    let broken = text_of("systemd/roadstead-mirror.socket").replace("Service=", "Servic=");
    fs::write(&sockets[1], broken).unwrap();
    assert!(both(&end_of(analyze(folder.path()).arg("verify").arg(&sockets[1]))).contains("Servic"));
    let broken = text_of("systemd/roadstead.service").replace("Type=notify", "Typ=notify");
    fs::write(&service, broken).unwrap();
    assert!(both(&end_of(analyze(folder.path()).arg("verify").arg(&service))).contains("Typ"));
}

#[test]
fn systemd_has_nothing_to_say_about_the_drop_ins() {
    for (drop_in, unit) in DROP_INS {
        let folder = TempDir::new().unwrap();
        install(folder.path());
        let file = folder.path().join(format!("{unit}.service"));
        fs::write(&file, "[Unit]\nDescription=A puller\n[Service]\nExecStart=/bin/true\n").unwrap();
        let drop_ins = folder.path().join(format!("{unit}.service.d"));
        fs::create_dir(&drop_ins).unwrap();
        let text = text_of(&format!("systemd/drop-ins/{drop_in}.conf"));
        assert!(text.starts_with(&format!("# /etc/systemd/system/{unit}.service.d/roadstead.conf")), "{drop_in}");
        fs::write(drop_ins.join("roadstead.conf"), &text).unwrap();
        assert_eq!(run(analyze(folder.path()).arg("verify").arg(&file)), "", "{drop_in}");
        // It was read at all.
        fs::write(drop_ins.join("roadstead.conf"), text.replace("Environment=", "Enviroment=")).unwrap();
        assert!(run(analyze(folder.path()).arg("verify").arg(&file)).contains("Enviroment"), "{drop_in}");
    }
}

/// Hardened, by systemd's own measure.
#[test]
fn the_service_is_exposed_to_little() {
    let folder = TempDir::new().unwrap();
    install(folder.path());
    let threshold = format!("--threshold={}", EXPOSURE * 10.0);
    let mut security = analyze(folder.path());
    let said =
        run(security.args(["security", "--offline=true", &threshold]).arg(folder.path().join("roadstead.service")));
    let line = said.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("{said}"));
    let level: f64 = line.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().expect("a number");
    assert!(level <= EXPOSURE, "{line}");
}

/// The units agree with the config that the sidecar starts with.
#[test]
fn the_units_agree_with_the_shipped_config() {
    let config = Config::parse(&text_of("sidecar.toml")).unwrap_or_else(|problems| panic!("{problems}"));
    let (socket, service) = (text_of("systemd/roadstead.socket"), text_of("systemd/roadstead.service"));
    assert_eq!(setting(&socket, "ListenStream"), config.listen.proxy.to_string());
    assert_eq!(setting(&socket, "FileDescriptorName"), "proxy");
    // The shipped file has the mirror in comments.
    let mirror = text_of("systemd/roadstead-mirror.socket");
    let listen = format!("listen = \"{}\"", setting(&mirror, "ListenStream"));
    assert!(text_of("sidecar.toml").lines().any(|line| line.contains(&listen)), "{listen}");
    let name = setting(&mirror, "FileDescriptorName").strip_prefix("mirror-").expect("mirror-NAME");
    assert!(config.registries.iter().any(|registry| registry.name == name), "{name}");
    assert_eq!(setting(&mirror, "Service"), "roadstead.service");
    assert!(seconds(setting(&service, "TimeoutStopSec")) >= config.drain_timeout + Duration::from_secs(10));
    let file = setting(&service, "ConditionPathExists");
    assert_eq!(setting(&service, "ExecStart"), format!("roadstead --config {file}"));
    assert_eq!(setting(&service, "ExecReload"), "/bin/kill -HUP $MAINPID");
    assert_eq!((setting(&service, "Type"), setting(&service, "WatchdogSec")), ("notify", "30"));
    assert_eq!(setting(&service, "RestrictAddressFamilies"), "AF_INET AF_INET6 AF_UNIX AF_NETLINK");
    let files: usize = setting(&service, "LimitNOFILE").parse().unwrap();
    assert!(files > 4 * config.listen.max_clients, "{files}");
    for (drop_in, _) in DROP_INS {
        let text = text_of(&format!("systemd/drop-ins/{drop_in}.conf"));
        let variables: Vec<(&str, &str)> =
            text.lines().filter_map(|line| line.strip_prefix("Environment=")?.split_once('=')).collect();
        let (direct, proxies): (Vec<_>, Vec<_>) = variables.iter().partition(|(name, _)| *name == "NO_PROXY");
        let names: Vec<&str> = proxies.iter().map(|(name, _)| *name).collect();
        // The Go daemon follows HTTP_PROXY for its peers, and only the other for the registry.
        if drop_in == "dfdaemon-2.0.9" {
            assert_eq!((names.as_slice(), direct.len()), (["D7Y_SOURCE_PROXY"].as_slice(), 0));
            assert_eq!(setting(&text, "UnsetEnvironment"), "HTTP_PROXY HTTPS_PROXY http_proxy https_proxy");
        } else {
            assert_eq!((names.as_slice(), direct.len()), (["HTTP_PROXY", "HTTPS_PROXY"].as_slice(), 1), "{drop_in}");
        }
        for (name, value) in proxies {
            assert!(
                value.starts_with("http://") && value.ends_with(&format!(":x@{}", config.listen.proxy)),
                "{name}={value}"
            );
        }
    }
}
