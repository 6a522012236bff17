//! podman, CRI-O and skopeo: a file of our own in `registries.conf.d`.
//!
//! The mirror stands in the place of the registry (`prefix` and `location`), so there is no other address to fall back to. Of several
//! tables with one prefix the last counts, in the order of the files; a longer prefix counts before a shorter one.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use toml_edit::{DocumentMut, Item, Table};

use super::aim::{Aim, Plan, Wanted};
use super::error::SetupError;
use super::files::Files;

const MAIN: &str = "/etc/containers/registries.conf";
pub const FOLDER: &str = "/etc/containers/registries.conf.d";
const OURS: &str = "/etc/containers/registries.conf.d/roadstead.conf";

pub fn plan(aim: &Aim, files: &Files<'_>) -> Result<Plan, SetupError> {
    let mut plan = Plan::default();
    let mirrored = aim.mirrored(&mut plan.notes)?;
    if let Some(found) = files.read(Path::new(OURS))? {
        let reason = "it was not written by `setup`: rename it, since a file of this name is needed";
        if !found.trim().is_empty() {
            return Err(SetupError::Refused(format!("{OURS}: {reason}")));
        }
    }
    let mut text = String::from("# Written by `roadstead setup podman`; `roadstead setup podman --undo` removes it.\n");
    for (host, mirror) in &mirrored {
        if let Some(around) = bypass_in(files, host, *mirror, true)? {
            if !aim.allow_bypass {
                let cure = "remove that table, or allow it with --allow-bypass";
                return Err(SetupError::Refused(format!(
                    "{around} goes around the mirror, and so around the cap: {cure}"
                )));
            }
            plan.notes.push(format!("{around} goes around the mirror"));
        }
        let (location, insecure) =
            if aim.allow_bypass { (host.clone(), "") } else { (mirror.to_string(), "insecure = true\n") };
        let _ = write!(text, "\n[[registry]]\nprefix = \"{host}\"\nlocation = \"{location}\"\n{insecure}");
        if aim.allow_bypass {
            let _ = write!(text, "\n[[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n");
        }
        plan.notes.push(format!(
            "credentials go by the mirror's address: log in to private projects of {host} with `podman login --tls-verify=false {mirror}`"
        ));
    }
    plan.files.push(Wanted { path: OURS.into(), text });
    plan.notes.push("CRI-O reads the file on `systemctl reload crio`, podman and skopeo each time".to_owned());
    Ok(plan)
}

/// The table of the node's files by which a name of a registry goes around the mirror; `None` if all lead to it, with
/// our own file if it is to be written.
/// Fails when a file cannot be read.
pub fn bypass_in(
    files: &Files<'_>,
    host: &str,
    mirror: SocketAddr,
    with_ours: bool,
) -> Result<Option<String>, SetupError> {
    let mut paths = vec![MAIN.into()];
    paths.extend(files.list(Path::new(FOLDER), ".conf")?);
    paths.retain(|path| !with_ours || *path != Path::new(OURS));
    let mut last = None;
    for path in paths {
        let Some(text) = files.read(&path)? else { continue };
        let refused = |reason: String| SetupError::Refused(format!("{}: {reason}", path.display()));
        let document = text.parse::<DocumentMut>().map_err(|error| refused(error.to_string()))?;
        let tables = document.get("registry").and_then(Item::as_array_of_tables);
        for table in tables.into_iter().flatten() {
            let location = text_of(table, "location");
            let prefix = text_of(table, "prefix").or(location).unwrap_or_default();
            let leads_here = location == Some(mirror.to_string().as_str()) && table.get("mirror").is_none();
            let shown = || format!("[[registry]] {prefix} in {}", path.display());
            let is_below = prefix.strip_prefix(host).is_some_and(|rest| rest.starts_with('/'));
            if is_below && !leads_here {
                return Ok(Some(shown()));
            }
            // A file behind ours counts in its place.
            if prefix == host && (!with_ours || path.as_path() > Path::new(OURS)) {
                last = (!leads_here).then(shown);
            }
        }
    }
    Ok(last)
}

/// Whether a file of the node speaks of this name of a registry.
/// Fails when a file cannot be read.
pub fn names(files: &Files<'_>, host: &str) -> Result<bool, SetupError> {
    let mut paths = vec![MAIN.into()];
    paths.extend(files.list(Path::new(FOLDER), ".conf")?);
    for path in paths {
        let Some(text) = files.read(&path)? else { continue };
        let Ok(document) = text.parse::<DocumentMut>() else { continue };
        let tables = document.get("registry").and_then(Item::as_array_of_tables);
        let is_it = |table: &Table| text_of(table, "prefix").or(text_of(table, "location")) == Some(host);
        if tables.into_iter().flatten().any(is_it) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn text_of<'a>(table: &'a Table, key: &str) -> Option<&'a str> {
    table.get(key).and_then(Item::as_str)
}
