//! `roadstead queue`: one line for each request that waits, in the order of their turns, in 80 columns.

use std::fmt::Write;

use serde_json::Value;

use super::WIDTH;
use super::words::{count, limit, number, plain, slots, span};

/// Columns of a line, without the last one.
const NUMBERS: usize = 4;
const CLIENT: usize = 16;
const CLASS: usize = 7;
const TIME: usize = 8;
const WANTED: usize = WIDTH - NUMBERS - CLIENT - CLASS - 3 * TIME - 6;

/// The queue of each registry, or of the one that is named, from `/queue` and `/status`.
/// Fails, with the names that there are, when there is no such registry.
pub fn render(queue: &Value, status: &Value, only: Option<&str>) -> Result<String, String> {
    let registries = queue["registries"].as_object().cloned().unwrap_or_default();
    if let Some(name) = only.filter(|name| !registries.contains_key(*name)) {
        let names: Vec<&str> = registries.keys().map(String::as_str).collect();
        return Err(format!("no such registry: {name}; there is {}", names.join(", ")));
    }
    let mut text = String::new();
    for (name, queue) in registries.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        if !text.is_empty() {
            text.push('\n');
        }
        add_registry(&mut text, name, queue, &status["registries"][name]);
    }
    Ok(text)
}

fn add_registry(text: &mut String, name: &str, queue: &Value, status: &Value) {
    let waiters = by_turn(queue);
    let waiting = number(&status["waiting"]).max(waiters.len());
    let (name, slots) = (plain(name, 30), slots(status));
    if waiters.is_empty() {
        let _ = writeln!(text, "{name}: no request waits, {slots}");
        return;
    }
    let wait = if waiting == 1 { "1 request waits".to_owned() } else { format!("{waiting} requests wait") };
    let _ = writeln!(text, "{name}: {wait}, {slots}: {}", limit(queue));
    let _ = writeln!(
        text,
        "{:>NUMBERS$} {:CLIENT$} {:CLASS$} {:WANTED$} {:>TIME$} {:>TIME$} {:>TIME$}",
        "turn", "client", "class", "wants", "waited", "starts", "leaves"
    );
    for waiter in &waiters {
        let seconds = |key: &str| waiter[key].as_f64().map_or_else(|| "?".to_owned(), span);
        let turn = waiter["turn"].as_u64().map_or_else(|| "held".to_owned(), |turn| turn.to_string());
        let (client, class) = (plain(&client(waiter), CLIENT), plain(waiter["class"].as_str().unwrap_or("?"), CLASS));
        let _ = writeln!(
            text,
            "{turn:>NUMBERS$} {client:CLIENT$} {class:CLASS$} {:WANTED$} {:>TIME$} {:>TIME$} {:>TIME$}",
            shortened(&wants(waiter), WANTED),
            seconds("waited_seconds"),
            seconds("expected_wait_seconds"),
            seconds("patience_left_seconds"),
        );
    }
    if waiting > waiters.len() {
        let _ = writeln!(text, "... and {}", count(waiting - waiters.len(), "more", "more"));
    }
}

/// The waiters of a registry by their turns; those that are held have none, and are last.
pub fn by_turn(queue: &Value) -> Vec<&Value> {
    let mut waiters: Vec<&Value> = queue["waiting"].as_array().into_iter().flatten().collect();
    waiters.sort_by_key(|waiter| waiter["turn"].as_u64().unwrap_or(u64::MAX));
    waiters
}

/// A waiter's client, with the command of its process where that is known and says more.
fn client(waiter: &Value) -> String {
    let client = waiter["client"].as_str().unwrap_or("?");
    match waiter["process"]["command"].as_str() {
        Some(command) if command != client => format!("{client} {command}"),
        _ => client.to_owned(),
    }
}

/// The image that a waiter wants where that is visible, else its host.
pub fn wants(waiter: &Value) -> String {
    let Some(repository) = waiter["repository"].as_str() else {
        return waiter["target"].as_str().unwrap_or("?").to_owned();
    };
    match waiter["reference"].as_str() {
        Some(digest) if digest.contains(':') => format!("{repository}@{digest}"),
        Some(tag) => format!("{repository}:{tag}"),
        None => repository.to_owned(),
    }
}

/// The end of a repository and the beginning of a digest tell most.
fn shortened(wanted: &str, room: usize) -> String {
    const DIGITS: usize = 12;
    let wanted = match wanted.split_once("@sha256:") {
        Some((repository, digest)) => format!("{repository}@{}", digest.chars().take(DIGITS).collect::<String>()),
        None => wanted.to_owned(),
    };
    let chars = wanted.chars().count();
    let tail: String = wanted.chars().skip(chars.saturating_sub(room - 1)).collect();
    plain(&if chars > room { format!("~{tail}") } else { wanted }, room)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn waiter(turn: Option<usize>, client: &str, repository: Option<&str>, reference: Option<&str>) -> Value {
        json!({"position": 1, "turn": turn, "client": client, "class": "default", "kind": "request", "lane": "blob",
               "target": "harbor.example.com:443", "repository": repository, "reference": reference,
               "waited_seconds": 3.25, "patience_left_seconds": 21.7, "expected_wait_seconds": 12.0})
    }

    #[test]
    fn the_queue_is_a_table_by_turns() {
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        let mut held = waiter(None, "uid:0", None, None);
        held["process"] = json!({"pid": 812, "command": "kubelet"});
        let queue = json!({"registries": {
            "harbor": {"limited_by": "slots", "waiting": [
                waiter(Some(2), "dfdaemon", Some("library/nginx"), Some(&digest)),
                held,
                waiter(Some(1), "\u{1b}[2Jlonger-than-room", Some("a/very/long/name/of/a/repository"), Some("1.25")),
            ]},
            "quiet": {"limited_by": null, "waiting": []},
        }});
        let status = json!({"registries": {
            "harbor": {"open": 8, "slots": 8, "waiting": 4}, "quiet": {"open": 0, "slots": 5, "waiting": 0},
        }});
        let expected = "\
harbor: 4 requests wait, 8 of 8 slots open: no slot is free
turn client           class   wants                     waited   starts   leaves
   1 ?[2Jlonger-than~ default ~e/of/a/repository:1.25    3.2 s     12 s     21 s
   2 dfdaemon         default ~ary/nginx@0123456789ab    3.2 s     12 s     21 s
held uid:0 kubelet    default harbor.example.com:443     3.2 s     12 s     21 s
... and 1 more

quiet: no request waits, 0 of 5 slots open
";
        assert_eq!(render(&queue, &status, None).unwrap(), expected);
        let quiet = render(&queue, &status, Some("quiet")).unwrap();
        assert_eq!(quiet, "quiet: no request waits, 0 of 5 slots open\n");
        assert!(render(&queue, &status, Some("other")).unwrap_err().contains("there is harbor, quiet"));
        assert_eq!(render(&json!({}), &json!({}), None).unwrap(), "");
    }

    /// Whatever a sidecar answers, no line is wider than a terminal.
    #[test]
    fn no_line_is_wider_than_80_columns() {
        let long = "x".repeat(200);
        let mut one = waiter(Some(1000), &long, Some(&long), Some(&long));
        one["class"] = json!(long);
        one["process"] = json!({"pid": 1, "command": long});
        for seconds in [0.0, 9.99, 119.0, 7199.0, 172_000.0, 1e7] {
            for key in ["waited_seconds", "patience_left_seconds", "expected_wait_seconds"] {
                one[key] = json!(seconds);
            }
            let queue = json!({"registries": {&long: {"limited_by": "rate_per_second", "waiting": [one.clone()]}}});
            let text = render(&queue, &json!({}), None).unwrap();
            let widest = text.lines().skip(1).map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= WIDTH, "{widest}: {text}");
        }
    }
}
