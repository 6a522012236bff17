//! containerd: a `hosts.toml` for each name of a registry, in the folder that `config_path` names.
//!
//! containerd tries the hosts of the file in their order, and then `server`. So `server` is the mirror as well: otherwise
//! containerd goes around the cap whenever the mirror refuses. dfdaemon asks the registry that the header
//! `X-Dragonfly-Registry` names; in its presence the mirror stands there.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, Item, TableLike, value};

use super::aim::{Aim, Plan, Wanted};
use super::error::SetupError;
use super::files::Files;

pub const CONFIG: &str = "/etc/containerd/config.toml";
/// The folder that containerd's own documents name.
const USUAL_FOLDER: &str = "/etc/containerd/certs.d";
/// The tables of containerd 1.x and 2.x that have `config_path`.
const TABLES: [&str; 2] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];
/// Settings of the second table with which containerd 2.x pulls as 1.x does.
const PULLS_AS_BEFORE: [&str; 2] = ["use_local_image_pull", "discard_unpacked_layers"];
/// The folder for the names that have none of their own.
const OTHERS: &str = "_default";
const REGISTRY_OF_DFDAEMON: &str = "X-Dragonfly-Registry";
/// The port at which dfdaemon's proxy listens unless its config says otherwise.
pub const DFDAEMON_PORT: u16 = 4001;

pub fn plan(aim: &Aim, files: &Files<'_>, config: &Path) -> Result<Plan, SetupError> {
    plan_for(aim, files, config, None)
}

/// The same with dfdaemon, at this port, between containerd and the mirror.
pub(super) fn plan_for(aim: &Aim, files: &Files<'_>, config: &Path, dfdaemon: Option<u16>) -> Result<Plan, SetupError> {
    let mut plan = Plan::default();
    let mirrored = aim.mirrored(&mut plan.notes)?;
    let folders = folders(files, config)?;
    for (host, mirror) in mirrored {
        let path = file_to_write(files, &folders, &host)?;
        let found = files.read(&path)?;
        let led = Hosts { host: &host, mirror, dfdaemon, allow_bypass: aim.allow_bypass };
        let text = led
            .write(found.as_deref().unwrap_or_default())
            .map_err(|reason| SetupError::Refused(format!("{}: {reason}", path.display())))?;
        plan.files.push(Wanted { path, text });
    }
    plan.notes.push("containerd reads hosts.toml for each pull: it needs no restart".to_owned());
    if folders.len() > 1 {
        plan.notes.push(format!(
            "config_path in {} names several folders: name one before an upgrade to containerd 2.1, which takes them for the name of one",
            config.display()
        ));
    }
    Ok(plan)
}

/// The `hosts.toml` that containerd reads for a name of a registry; `None` if no folder speaks of it.
/// Fails when a folder cannot be seen.
pub fn hosts_file(files: &Files<'_>, folders: &[PathBuf], host: &str) -> Result<Option<PathBuf>, SetupError> {
    Ok(folder_of(files, folders, host)?.map(|folder| folder.join("hosts.toml")))
}

/// The first folder that speaks of this name decides, even if it has no file: containerd looks for `HOST_PORT_`, `HOST:PORT` and
/// `_default` in one folder before it goes to the next.
fn folder_of(files: &Files<'_>, folders: &[PathBuf], host: &str) -> Result<Option<PathBuf>, SetupError> {
    let port = host.rfind(':').filter(|colon| *colon > 0);
    let with_port = port.map(|colon| format!("{}_{}_", &host[..colon], &host[colon + 1..]));
    for folder in folders {
        for name in with_port.as_deref().into_iter().chain([host, OTHERS]) {
            let found = folder.join(name);
            if files.is_there(&found)? {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// The `hosts.toml` by which this name alone is led: it counts before `_default` beside it.
fn file_to_write(files: &Files<'_>, folders: &[PathBuf], host: &str) -> Result<PathBuf, SetupError> {
    let first = || folders.first().map_or_else(|| PathBuf::from(USUAL_FOLDER), PathBuf::clone).join(host);
    let mut folder = folder_of(files, folders, host)?.unwrap_or_else(first);
    if folder.ends_with(OTHERS) {
        folder.set_file_name(host);
    }
    Ok(folder.join("hosts.toml"))
}

/// The folders of `hosts.toml`, as `config_path` of containerd's config names them.
/// Fails when it names none, or several that containerd takes for one: then containerd reads no such file.
pub fn folders(files: &Files<'_>, config: &Path) -> Result<Vec<PathBuf>, SetupError> {
    let Some(text) = files.read(config)? else {
        return Err(no_folder(config, "is not there", ""));
    };
    let imported = imports(files, config, &text)?;
    let mut named = None;
    let mut pulls_as_before = false;
    let mut version = String::new();
    for text in std::iter::once(&text).chain(&imported) {
        let root = parse(text).map_err(|reason| SetupError::Refused(format!("{}: {reason}", config.display())))?;
        version = root.get("version").map(|version| version.to_string().trim().to_owned()).unwrap_or(version);
        let of = |table: &str| root.get("plugins").and_then(|plugins| plugins.get(table));
        for table in TABLES {
            let path = of(table).and_then(|table| table.get("registry")?.get("config_path")?.as_str());
            if let Some(path) = path.filter(|path| !path.is_empty()) {
                named = Some((table, path.to_owned()));
            }
        }
        let is_set = |key: &&str| of(TABLES[1]).and_then(|table| table.get(key)?.as_bool()) == Some(true);
        pulls_as_before |= PULLS_AS_BEFORE.iter().any(is_set);
    }
    let (table, named) = named.ok_or_else(|| no_folder(config, "does not set config_path", &version))?;
    if table == TABLES[1] && named.contains(':') && !pulls_as_before {
        return Err(several_folders(config, &named));
    }
    Ok(named.split(':').map(PathBuf::from).collect())
}

/// From containerd 2.1 on, the CRI pulls by the transfer service, which takes `config_path` for the name of one folder.
fn several_folders(config: &Path, named: &str) -> SetupError {
    let folder = named.split(':').find(|folder| !folder.is_empty()).unwrap_or(USUAL_FOLDER);
    SetupError::Refused(format!(
        "{}: config_path = \"{named}\" names several folders, which containerd from 2.1 on takes for the name of one: it reads no \
         hosts.toml, and says nothing. Name one folder:\n\n[plugins.\"{}\".registry]\n  config_path = \"{folder}\"\n\nThen restart it \
         (`systemctl restart containerd`; containers go on) and run this command again",
        config.display(),
        TABLES[1]
    ))
}

fn no_folder(config: &Path, what: &str, version: &str) -> SetupError {
    let table = if version == "3" { TABLES[1] } else { TABLES[0] };
    let config = config.display();
    SetupError::Refused(format!(
        "{config} {what}, so containerd reads no hosts.toml. Add these lines to it, and remove [plugins.\"{table}\".registry.mirrors] if it is \
         there:\n\n[plugins.\"{table}\".registry]\n  config_path = \"{USUAL_FOLDER}\"\n\nThen restart it (`systemctl restart containerd`; \
         containers go on) and run this command again. --containerd-config names another file"
    ))
}

/// The texts of the files that containerd's config imports.
fn imports(files: &Files<'_>, config: &Path, text: &str) -> Result<Vec<String>, SetupError> {
    let Ok(root) = parse(text) else { return Ok(Vec::new()) };
    let patterns =
        root.get("imports").and_then(Item::as_array).into_iter().flatten().filter_map(|entry| entry.as_str());
    let mut texts = Vec::new();
    for pattern in patterns {
        let pattern = config.parent().unwrap_or(Path::new("/")).join(pattern);
        let name = pattern.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let found = match name.strip_prefix('*') {
            Some(ending) => files.list(pattern.parent().unwrap_or(Path::new("/")), ending)?,
            None => vec![pattern],
        };
        for file in found {
            texts.extend(files.read(&file)?);
        }
    }
    Ok(texts)
}

fn parse(text: &str) -> Result<DocumentMut, String> {
    text.parse::<DocumentMut>().map_err(|error| error.to_string())
}

/// The content of the `hosts.toml` of one name.
struct Hosts<'a> {
    host: &'a str,
    mirror: SocketAddr,
    dfdaemon: Option<u16>,
    allow_bypass: bool,
}

impl Hosts<'_> {
    fn write(&self, found: &str) -> Result<String, String> {
        let mirror = format!("http://{}", self.mirror);
        let mut document = parse(found)?;
        let hosts = hosts_of(&document);
        let daemons: Vec<&String> = hosts.iter().filter(|host| host.is_dfdaemon()).map(|host| &host.url).collect();
        // Without a server, containerd falls back to the registry itself.
        let origin = || format!("https://{}", self.host);
        let server = document.get("server").and_then(Item::as_str).map_or_else(origin, str::to_owned);
        let server = if self.allow_bypass { server } else { mirror.clone() };
        document["server"] = value_like(document.get("server"), &server);
        for url in &daemons {
            name_registry(&mut document, url, &mirror)?;
        }
        let (url, header) = match self.dfdaemon {
            Some(port) => (format!("http://127.0.0.1:{port}"), true),
            None => (mirror.clone(), false),
        };
        let mut text = document.to_string();
        // Behind dfdaemon the mirror is its registry, and the server.
        let is_there = hosts.iter().any(|host| host.url == url) || !header && !daemons.is_empty();
        if !is_there {
            text = with_host(&text, &url, header.then_some(mirror.as_str()), hosts.is_empty());
        }
        match goes_around(&parse(&text)?, self.mirror) {
            Some(around) if !self.allow_bypass => Err(format!(
                "{around} goes around the mirror, and so around the cap: remove it, or allow it with --allow-bypass"
            )),
            _ if text.is_empty() => Err("cannot be edited".to_owned()),
            _ => Ok(text),
        }
    }
}

/// A new value with the comments around the old one.
fn value_like(old: Option<&Item>, text: &str) -> Item {
    let mut new = value(text);
    if let (Some(old), Some(new)) = (old.and_then(Item::as_value), new.as_value_mut()) {
        if old.as_str() == Some(text) {
            return Item::Value(old.clone());
        }
        *new.decor_mut() = old.decor().clone();
    }
    new
}

/// Lets a dfdaemon ask the mirror.
fn name_registry(document: &mut DocumentMut, url: &str, mirror: &str) -> Result<(), String> {
    let entry = document.get_mut("host").and_then(|hosts| hosts.get_mut(url)).and_then(Item::as_table_like_mut);
    let entry = entry.ok_or_else(|| format!("host {url} is no table"))?;
    let header = entry.entry("header").or_insert_with(toml_edit::table);
    let header = header.as_table_like_mut().ok_or_else(|| format!("header of {url} is no table"))?;
    let is_it = |key: &str| key.eq_ignore_ascii_case(REGISTRY_OF_DFDAEMON);
    let key =
        header.iter().map(|(key, _)| key.to_owned()).find(|key| is_it(key)).unwrap_or(REGISTRY_OF_DFDAEMON.to_owned());
    if header.get(&key).and_then(first_text).as_deref() != Some(mirror) {
        *header.entry(&key).or_insert(Item::None) = value(Array::from_iter([mirror]));
    }
    Ok(())
}

/// The text with a further host before all others.
fn with_host(text: &str, url: &str, registry: Option<&str>, is_first: bool) -> String {
    let mut block = format!("[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n");
    if let Some(registry) = registry {
        let _ = write!(block, "\n[host.\"{url}\".header]\n{REGISTRY_OF_DFDAEMON} = [\"{registry}\"]\n");
    }
    if is_first {
        let gap = if text.is_empty() || text.ends_with('\n') { "\n" } else { "\n\n" };
        return format!("{text}{gap}{block}");
    }
    let is_host = |line: &str| line.trim_start().starts_with("[host.") || line.trim_start().starts_with("[host]");
    let at = text.split_inclusive('\n').take_while(|line| !is_host(line)).map(str::len).sum();
    let (before, after) = text.split_at(at);
    format!("{before}{block}\n{after}")
}

/// A host of the file, in the order in which containerd tries them.
#[derive(Debug, PartialEq, Eq)]
struct HostEntry {
    url: String,
    /// The registry that a dfdaemon there is told to ask.
    registry: Option<String>,
}

impl HostEntry {
    fn is_dfdaemon(&self) -> bool {
        self.registry.is_some() || self.url == format!("http://127.0.0.1:{DFDAEMON_PORT}")
    }
}

fn hosts_of(document: &DocumentMut) -> Vec<HostEntry> {
    let hosts = document.get("host").and_then(Item::as_table_like);
    let entries = hosts.into_iter().flat_map(TableLike::iter);
    let mut entries: Vec<(Option<isize>, HostEntry)> = entries
        .map(|(url, entry)| {
            let headers = entry.get("header").and_then(Item::as_table_like);
            let mut headers = headers.into_iter().flat_map(TableLike::iter);
            let registry = headers.find(|(name, _)| name.eq_ignore_ascii_case(REGISTRY_OF_DFDAEMON));
            let registry = registry.and_then(|(_, value)| first_text(value));
            let position = entry.as_table().and_then(toml_edit::Table::position);
            (position, HostEntry { url: url.trim_end_matches('/').to_owned(), registry })
        })
        .collect();
    entries.sort_by_key(|(position, _)| *position);
    entries.into_iter().map(|(_, entry)| entry).collect()
}

/// The text of a header, which is one or a list.
fn first_text(item: &Item) -> Option<String> {
    let first = item.as_array().and_then(|list| list.get(0)?.as_str());
    first.or(item.as_str()).map(|text| text.trim_end_matches('/').to_owned())
}

/// The first address in the file by which containerd goes around the mirror; `None` if all lead to it.
fn goes_around(document: &DocumentMut, mirror: SocketAddr) -> Option<String> {
    let mirror = format!("http://{mirror}");
    let around = |host: &HostEntry| match &host.registry {
        Some(registry) => *registry != mirror,
        None => host.url != mirror,
    };
    if let Some(host) = hosts_of(document).into_iter().find(around) {
        return Some(match host.registry {
            Some(registry) => format!("{REGISTRY_OF_DFDAEMON} = {registry} of host {}", host.url),
            None => format!("host {}", host.url),
        });
    }
    match document.get("server").and_then(Item::as_str) {
        Some(server) if server.trim_end_matches('/') == mirror => None,
        Some(server) => Some(format!("server = {server}")),
        None => Some("the registry itself, since there is no server line,".to_owned()),
    }
}

/// The first address in this `hosts.toml` by which containerd goes around the mirror; `None` if all lead to it.
/// Fails when it is no TOML.
pub fn bypass_in(text: &str, mirror: SocketAddr) -> Result<Option<String>, String> {
    Ok(goes_around(&parse(text)?, mirror))
}
