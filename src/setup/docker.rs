//! docker: a drop-in of its service that names the proxy.
//!
//! docker's own mirrors work for Docker Hub only, so the proxy is the one address for other registries. The daemon has no second one to
//! fall back to, as long as `NO_PROXY` does not match the registry.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde_json::Value;

use super::aim::{Aim, Plan, Wanted};
use super::error::SetupError;
use super::files::Files;
use super::unit::{self, ServiceVariables};
use crate::target::Host;

const SERVICE: &str = "docker.service";
const FOLDER: &str = "/etc/systemd/system/docker.service.d";
const OURS: &str = "/etc/systemd/system/docker.service.d/roadstead.conf";
pub const DAEMON: &str = "/etc/docker/daemon.json";
/// The names and networks that docker reaches directly.
const DIRECT: [&str; 7] =
    ["localhost", "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", ".svc", ".cluster.local"];

pub fn plan(aim: &Aim, files: &Files<'_>) -> Result<Plan, SetupError> {
    let mut plan = Plan::default();
    let hosts: Vec<&Host> =
        aim.registries.iter().flat_map(|led| &led.hosts).filter_map(|pattern| pattern.exact_host()).collect();
    let (left_out, direct): (Vec<&str>, Vec<&str>) =
        DIRECT.into_iter().partition(|entry| hosts.iter().any(|host| matches_no_proxy(entry, host)));
    for entry in left_out {
        plan.notes
            .push(format!("{entry} matches a registry, so NO_PROXY does not list it: add narrower networks by hand"));
    }
    let (proxy, direct) = (aim.proxy, direct.join(","));
    let text = format!(
        "# Written by `roadstead setup docker`; `roadstead setup docker --undo` removes it.\n[Unit]\nWants=roadstead.service\n\
         After=roadstead.socket roadstead.service\n\n[Service]\nEnvironment=HTTP_PROXY=http://docker:x@{proxy}\n\
         Environment=HTTPS_PROXY=http://docker:x@{proxy}\nEnvironment=NO_PROXY={direct}\n"
    );
    let ours = Wanted { path: OURS.into(), text };
    let given = DockerVariables::read(files, Some(&ours))?;
    if let Some(DockerBypass { said, cure }) = given.bypass(aim) {
        return Err(SetupError::Refused(format!("{said}: {cure}")));
    }
    if !given.lead_to(&aim.proxy.to_string()) {
        let why = "a drop-in behind roadstead.conf takes its variables back by an empty Environment= or by UnsetEnvironment=: take it out there";
        return Err(SetupError::Refused(format!("{FOLDER}: {why}")));
    }
    plan.files.push(ours);
    plan.notes.push("docker follows it after `systemctl daemon-reload && systemctl restart docker`".to_owned());
    plan.notes.push(
        "docker waits 15 s for /v2/ and token: give it a class with tunnel_timeout = \"12s\" (users = [\"docker\"])"
            .to_owned(),
    );
    Ok(plan)
}

/// The way by which docker goes around the sidecar, and how to close it.
pub struct DockerBypass {
    pub said: String,
    pub cure: String,
}

/// The variables that docker has by the files of the node, each with the file that gives it. Its own config counts before those of its
/// service.
pub struct DockerVariables(ServiceVariables);

impl DockerVariables {
    /// Reads them, with this drop-in, if it is to be written.
    /// Fails when a file cannot be read.
    pub fn read(files: &Files<'_>, planned: Option<&Wanted>) -> Result<DockerVariables, SetupError> {
        let mut found = unit::environment(files, SERVICE, planned)?;
        if let Some(text) = files.read(Path::new(DAEMON))? {
            let settings: Value =
                serde_json::from_str(&text).map_err(|error| SetupError::Refused(format!("{DAEMON}: {error}")))?;
            let named = settings.get("proxies").and_then(Value::as_object).into_iter().flatten();
            let named = named.filter_map(|(key, value)| Some((key, value.as_str().filter(|value| !value.is_empty())?)));
            let capitals = |key: &str| key.to_ascii_uppercase().replace('-', "_");
            found.extend(named.map(|(key, value)| (capitals(key), (value.to_owned(), DAEMON.into()))));
        }
        Ok(DockerVariables(found))
    }

    fn get(&self, name: &str) -> Option<(&str, &Path)> {
        let (value, path) = variable(&self.0, name, |(value, _)| value)?;
        Some((value, path))
    }

    /// Another proxy, or a registry that `NO_PROXY` leaves out.
    pub fn bypass(&self, aim: &Aim) -> Option<DockerBypass> {
        let proxy = aim.proxy.to_string();
        for name in ["HTTPS_PROXY", "HTTP_PROXY"] {
            if let Some((_, path)) = self.get(name).filter(|(named, _)| !leads_to(named, &proxy)) {
                let said = format!("{} gives docker another {name}, which goes around the sidecar", path.display());
                return Some(DockerBypass {
                    said,
                    cure: format!("take it out there, or let it name http://docker:x@{proxy}"),
                });
            }
        }
        let (direct, path) = self.get("NO_PROXY")?;
        let mut hosts = aim.registries.iter().flat_map(|led| &led.hosts).filter_map(|pattern| pattern.exact_host());
        let (entry, host) = hosts.find_map(|host| Some((entry_of_no_proxy(direct, host)?, host)))?;
        let path = path.display();
        let said = format!("NO_PROXY in {path} has {entry}, which matches {host}: docker goes around the sidecar");
        Some(DockerBypass { said, cure: "take it out there, and list narrower networks and names".to_owned() })
    }

    /// Whether they lead docker to this proxy.
    pub fn lead_to(&self, proxy: &str) -> bool {
        self.get("HTTPS_PROXY").is_some_and(|(named, _)| leads_to(named, proxy))
    }

    /// The variables of its own config, which go before those of its environment.
    pub fn of_its_config(&self) -> impl Iterator<Item = (&String, &String)> {
        let of_config = self.0.iter().filter(|(_, (_, path))| path == Path::new(DAEMON));
        of_config.map(|(name, (value, _))| (name, value))
    }

    /// Whether the environment of its process leads there. Its own config is not in it.
    pub fn lead_by_service(&self, proxy: &str) -> bool {
        self.get("HTTPS_PROXY").is_some_and(|(named, path)| leads_to(named, proxy) && path != Path::new(DAEMON))
    }
}

/// A variable as Go reads it: the name in capitals counts, and only without it the other one.
pub fn variable<'a, T>(
    variables: &'a BTreeMap<String, T>,
    name: &str,
    text: impl Fn(&'a T) -> &'a String,
) -> Option<&'a T> {
    let names = [name.to_owned(), name.to_ascii_lowercase()];
    names.iter().filter_map(|name| variables.get(name)).find(|value| !text(value).is_empty())
}

/// Whether docker has files on this node.
/// Fails when it cannot be seen.
pub fn is_there(files: &Files<'_>) -> Result<bool, SetupError> {
    Ok(files.is_there(Path::new("/etc/docker"))? || files.is_there(Path::new(FOLDER))?)
}

/// Whether a proxy's URL has this host and port.
pub fn leads_to(url: &str, proxy: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/');
    authority.rsplit_once('@').map_or(authority, |(_, host)| host) == proxy
}

/// The entry of a `NO_PROXY` that matches a host.
pub fn entry_of_no_proxy<'a>(direct: &'a str, host: &Host) -> Option<&'a str> {
    let mut entries = direct.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.find(|entry| matches_no_proxy(entry, host))
}

/// Whether Go's reading of an entry of `NO_PROXY` matches a host, at whatever port.
fn matches_no_proxy(whole: &str, host: &Host) -> bool {
    let has_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let entry =
        whole.rsplit_once(':').filter(|(rest, port)| has_port(port) && (!rest.contains(':') || rest.ends_with(']')));
    let entry = entry.map_or(whole, |(rest, _)| rest.trim_matches(['[', ']']));
    match host {
        Host::Ip(ip) => {
            entry == "*"
                || entry.parse::<IpNet>().is_ok_and(|network| network.contains(ip))
                || entry.parse::<IpAddr>() == Ok(*ip)
        }
        Host::Name(name) => {
            let entry = entry.to_ascii_lowercase();
            let entry = entry.strip_prefix('*').unwrap_or(&entry);
            let suffix = entry.strip_prefix('.');
            match suffix {
                None if entry.is_empty() => true,
                None => name == entry || name.strip_suffix(entry).is_some_and(|rest| rest.ends_with('.')),
                Some(suffix) => name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.')),
            }
        }
    }
}
