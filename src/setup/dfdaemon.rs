//! dfdaemon: its `registryMirror`, and containerd in front of it.
//!
//! For a request of containerd, dfdaemon asks the registry in the header `X-Dragonfly-Registry`, then the one in `?ns=`, and only then its
//! `registryMirror`. So both are set. The file is edited by lines, which keeps comments, and read again by a parser: exactly the one
//! value may differ.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::aim::{Aim, Plan, Wanted};
use super::containerd;
use super::error::SetupError;
use super::files::Files;

pub const CONFIG: &str = "/etc/dragonfly/dfdaemon.yaml";

pub fn plan(aim: &Aim, files: &Files<'_>, config: &Path, of_containerd: &Path) -> Result<Plan, SetupError> {
    let refused = |reason: &str| SetupError::Refused(format!("{}: {reason}", config.display()));
    let mut notes = Vec::new();
    let mirrored = aim.mirrored(&mut notes)?;
    let mirror = mirrored[0].1;
    let text = files.read(config)?;
    let text = text.ok_or_else(|| refused("it is not there: --dfdaemon-config names the file that dfdaemon reads"))?;
    let before = parse(&text).map_err(|error| refused(&error))?;
    // The Go daemon calls it so.
    let key = if before.pointer("/proxy/registryMirror/url").is_some() { "url" } else { "addr" };
    let url = format!("http://{mirror}");
    let edited = with_mirror(&text, &before, key, &url).ok_or_else(|| {
        refused(&format!(
            "its form cannot be edited by lines: set it by hand\n\nproxy:\n  registryMirror:\n    {key}: {url}\n"
        ))
    })?;
    if mirrored.iter().any(|(_, other)| *other != mirror) {
        notes.push(format!("dfdaemon has one registryMirror: {url}; requests for the others need containerd in front"));
    }
    let port = before.pointer("/proxy/server/port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    let mut plan = Plan { files: vec![Wanted { path: config.to_owned(), text: edited }], notes };
    if files.read(of_containerd)?.is_some() {
        let port = port.unwrap_or(containerd::DFDAEMON_PORT);
        let in_front = containerd::plan_for(aim, files, of_containerd, Some(port))?;
        plan.files.extend(in_front.files);
        plan.notes.extend(in_front.notes.into_iter().filter(|note| !plan.notes.contains(note)).collect::<Vec<_>>());
    } else {
        let missing = of_containerd.display();
        plan.notes.push(format!("{missing} is not there: a client of dfdaemon must send X-Dragonfly-Registry: {url}"));
    }
    plan.notes.push("dfdaemon follows it after `systemctl restart dfdaemon`".to_owned());
    plan.notes
        .push("dfinit writes hosts.toml anew when it starts: set its serverAddr to the mirror as well".to_owned());
    Ok(plan)
}

fn parse(text: &str) -> Result<Value, String> {
    let value: Value = serde_norway::from_str(text).map_err(|error| error.to_string())?;
    Ok(if value.is_null() { Value::Object(Map::new()) } else { value })
}

/// The registry that dfdaemon asks by its config.
/// Fails when it is no YAML.
pub fn mirror_of(text: &str) -> Result<Option<String>, String> {
    let value = parse(text)?;
    let named = ["addr", "url"].iter().find_map(|key| value.pointer(&format!("/proxy/registryMirror/{key}")));
    Ok(named.and_then(Value::as_str).map(|url| url.trim_end_matches('/').to_owned()))
}

/// The text with this mirror; `None` if its form does not allow it.
fn with_mirror(text: &str, before: &Value, key: &str, url: &str) -> Option<String> {
    let mut wanted = before.clone();
    let mut place = &mut wanted;
    for name in ["proxy", "registryMirror"] {
        let table = place.as_object_mut()?;
        let inner = table.entry(name).or_insert(Value::Null);
        if inner.is_null() {
            *inner = Value::Object(Map::new());
        }
        place = inner;
    }
    place.as_object_mut()?.insert(key.to_owned(), json!(url));
    if wanted == *before {
        return Some(text.to_owned());
    }
    let edited = edit(text, &["proxy", "registryMirror"], key, url);
    (parse(&edited).ok()? == wanted).then_some(edited)
}

/// Sets one value of a block by its lines, and adds the blocks around it that are not there.
fn edit(text: &str, blocks: &[&str], key: &str, url: &str) -> String {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    if let Some(last) = lines.last_mut().filter(|last| !last.ends_with('\n')) {
        last.push('\n');
    }
    // The block in which the next name is looked for, and the indent of its lines.
    let (mut from, mut to, mut indent) = (0, lines.len(), 0);
    for (depth, name) in blocks.iter().enumerate() {
        let Some(at) = (from..to).find(|at| is_key(&lines[*at], indent, name)) else {
            let mut added = String::new();
            for (deeper, name) in blocks[depth..].iter().enumerate() {
                let _ = writeln!(added, "{}{name}:", " ".repeat(indent + 2 * deeper));
            }
            let _ = writeln!(added, "{}{key}: {url}", " ".repeat(indent + 2 * (blocks.len() - depth)));
            lines.insert(to, added);
            return lines.concat();
        };
        let is_inside = |line: &String| is_blank(line) || indent_of(line) > indent;
        from = at + 1;
        to = (from..to).find(|at| !is_inside(&lines[*at])).unwrap_or(to);
        // Blank lines and comments at the end belong to what follows.
        while to > from && is_blank(&lines[to - 1]) {
            to -= 1;
        }
        indent = (from..to).find(|at| !is_blank(&lines[*at])).map_or(indent + 2, |at| indent_of(&lines[at]));
    }
    let Some(at) = (from..to).find(|at| is_key(&lines[*at], indent, key)) else {
        lines.insert(from, format!("{}{key}: {url}\n", " ".repeat(indent)));
        return lines.concat();
    };
    let comment =
        lines[at].split_once(" #").map(|(_, comment)| format!(" #{}", comment.trim_end())).unwrap_or_default();
    lines[at] = format!("{}{key}: {url}{comment}\n", " ".repeat(indent));
    lines.concat()
}

fn is_blank(line: &str) -> bool {
    line.trim().is_empty() || line.trim_start().starts_with('#')
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn is_key(line: &str, indent: usize, name: &str) -> bool {
    let rest = line.trim_start_matches(' ').strip_prefix(name);
    indent_of(line) == indent && rest.is_some_and(|rest| rest.starts_with(':'))
}
