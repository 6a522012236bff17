//! docker: a drop-in of its service that names the proxy.
//!
//! docker's own mirrors work for Docker Hub only, so the proxy is the one address for other registries. The daemon has no second one to
//! fall back to, as long as `NO_PROXY` does not match the registry.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::Value;

use super::aim::{Aim, Plan, Wanted};
use super::error::SetupError;
use super::files::Files;
use crate::target::Host;

const FOLDER: &str = "/etc/systemd/system/docker.service.d";
const OURS: &str = "/etc/systemd/system/docker.service.d/roadstead.conf";
const DAEMON: &str = "/etc/docker/daemon.json";
/// The names and networks that docker reaches directly.
const DIRECT: [&str; 7] =
    ["localhost", "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", ".svc", ".cluster.local"];

pub fn plan(aim: &Aim, files: &Files<'_>) -> Result<Plan, SetupError> {
    let mut plan = Plan::default();
    if let Some(around) = other_proxy(files, &aim.proxy.to_string())? {
        let cure = format!("take it out there, or let it name http://docker:x@{}", aim.proxy);
        return Err(SetupError::Refused(format!("{around}, which docker prefers to the drop-in: {cure}")));
    }
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
    plan.files.push(Wanted { path: OURS.into(), text });
    plan.notes.push("docker follows it after `systemctl daemon-reload && systemctl restart docker`".to_owned());
    plan.notes.push(
        "docker waits 15 s for /v2/ and token: give it a class with tunnel_timeout = \"12s\" (users = [\"docker\"])"
            .to_owned(),
    );
    Ok(plan)
}

/// A file of the node that leads docker to another proxy than this one, and counts before the drop-in.
/// Fails when a file cannot be read.
pub fn other_proxy(files: &Files<'_>, proxy: &str) -> Result<Option<String>, SetupError> {
    if let Some(text) = files.read(Path::new(DAEMON))? {
        let settings: Value =
            serde_json::from_str(&text).map_err(|error| SetupError::Refused(format!("{DAEMON}: {error}")))?;
        for key in ["https-proxy", "http-proxy"] {
            let named = settings.pointer(&format!("/proxies/{key}")).and_then(Value::as_str);
            if named.is_some_and(|named| !leads_to(named, proxy)) {
                return Ok(Some(format!("{DAEMON} has another {key}")));
            }
        }
    }
    let behind = |path: &PathBuf| **path > *Path::new(OURS);
    for path in files.list(Path::new(FOLDER), ".conf")?.into_iter().filter(behind) {
        let text = files.read(&path)?.unwrap_or_default();
        let other = variables(&text).any(|(name, value)| is_proxy(name) && !leads_to(value, proxy));
        if other {
            return Ok(Some(format!("{} has another proxy", path.display())));
        }
    }
    Ok(None)
}

/// Whether the files of the node lead docker to this proxy.
/// Fails when a file cannot be read.
pub fn is_led(files: &Files<'_>, proxy: &str) -> Result<bool, SetupError> {
    let daemon = files.read(Path::new(DAEMON))?.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let named = daemon.as_ref().and_then(|settings| settings.pointer("/proxies/https-proxy")?.as_str());
    if named.is_some_and(|named| leads_to(named, proxy)) {
        return Ok(true);
    }
    for path in files.list(Path::new(FOLDER), ".conf")? {
        let text = files.read(&path)?.unwrap_or_default();
        let leads =
            variables(&text).any(|(name, value)| name.eq_ignore_ascii_case("HTTPS_PROXY") && leads_to(value, proxy));
        if leads {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether docker has files on this node.
pub fn is_there(files: &Files<'_>) -> bool {
    files.is_folder(Path::new("/etc/docker")) || files.is_folder(Path::new(FOLDER))
}

fn is_proxy(name: &str) -> bool {
    name.eq_ignore_ascii_case("HTTPS_PROXY") || name.eq_ignore_ascii_case("HTTP_PROXY")
}

/// Whether a proxy's URL has this host and port.
pub fn leads_to(url: &str, proxy: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/');
    authority.rsplit_once('@').map_or(authority, |(_, host)| host) == proxy
}

/// The variables that a unit sets.
pub fn variables(unit: &str) -> impl Iterator<Item = (&str, &str)> {
    let set = unit.lines().filter_map(|line| line.trim().strip_prefix("Environment="));
    let words = set.flat_map(str::split_ascii_whitespace).map(|word| word.trim_matches(['"', '\'']));
    words.filter_map(|word| word.split_once('='))
}

/// Whether Go's reading of an entry of `NO_PROXY` matches a host.
pub fn matches_no_proxy(entry: &str, host: &Host) -> bool {
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
