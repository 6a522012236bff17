//! `roadstead why`: in words, why an image or a repository is not here yet.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::queue::{by_turn, wants};
use super::wanted::parts;
use super::words::{count, limit, number, plain, slots, span};

/// Waiters that are told one by one.
const MOST: usize = 5;

/// An image as a pod or a command names it.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    host: Option<&'a str>,
    repository: &'a str,
    reference: Option<&'a str>,
}

impl Named<'_> {
    fn of(text: &str) -> Named<'_> {
        let text = text.split_once("://").map_or(text, |(_, rest)| rest);
        // As docker does: the first part is a host if it looks like one.
        let (host, rest) = match text.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
            _ => (None, text),
        };
        let (repository, reference) = parts(rest);
        Named { host, repository: repository.trim_matches('/'), reference }
    }

    /// Whether a waiter wants it. A pull asks for blobs by digest, which belong to any tag; and a project of a proxy cache
    /// stands before the repository's own name.
    fn fits(&self, waiter: &Value) -> bool {
        let Some(repository) = waiter["repository"].as_str() else { return false };
        let fits = repository == self.repository
            || repository.strip_suffix(self.repository).is_some_and(|before| before.ends_with('/'));
        let is_other = |asked: &str, found: &str| !asked.contains(':') && !found.contains(':') && asked != found;
        let other_tag = self.reference.zip(waiter["reference"].as_str()).is_some_and(|(asked, it)| is_other(asked, it));
        fits && !self.repository.is_empty() && !other_tag
    }

    fn leads_to(&self, waiter: &Value) -> bool {
        let target = waiter["target"].as_str().unwrap_or_default();
        let host = |name: &str| name.rsplit_once(':').map_or(name, |(host, _)| host).to_owned();
        waiter["repository"].is_null() && self.host.is_some_and(|asked| asked == target || host(asked) == host(target))
    }
}

/// The answer from `/queue` and `/status`, in sentences.
pub fn render(queue: &Value, status: &Value, image: &str) -> String {
    let named = Named::of(image);
    let shown = plain(image, 60);
    let mut text = String::new();
    let registries = queue["registries"].as_object().cloned().unwrap_or_default();
    for (name, queue) in &registries {
        let (waiters, status) = (by_turn(queue), &status["registries"][name]);
        let (found, hidden): (Vec<&Value>, Vec<&Value>) = (
            waiters.iter().copied().filter(|waiter| named.fits(waiter)).collect(),
            waiters.iter().copied().filter(|waiter| named.leads_to(waiter)).collect(),
        );
        if found.is_empty() && hidden.is_empty() {
            continue;
        }
        let name = plain(name, 30);
        if found.is_empty() {
            let tunnels = if hidden.len() == 1 { "1 tunnel waits" } else { &format!("{} tunnels wait", hidden.len()) };
            let _ = writeln!(text, "{name}: {tunnels} for its host; what they ask for is not visible to roadstead.");
        } else {
            let requests = if found.len() == 1 { "1 request waits" } else { &format!("{} requests wait", found.len()) };
            let _ = writeln!(text, "{name}: {requests} for {shown}.");
        }
        let told = if found.is_empty() { &hidden } else { &found };
        add_waiters(&mut text, told, &waiters, number(&status["waiting"]).max(waiters.len()));
        add_cause(&mut text, &name, queue, status);
    }
    if text.is_empty() { nothing_waits(&shown, &registries, status) } else { text }
}

fn add_waiters(text: &mut String, told: &[&Value], all: &[&Value], waiting: usize) {
    for waiter in told.iter().take(MOST) {
        let seconds = |key: &str| waiter[key].as_f64();
        let turn = match waiter["turn"].as_u64() {
            Some(turn) => format!("turn {turn} of {waiting}"),
            None => "held back until the registry answers again".to_owned(),
        };
        let expected = seconds("expected_wait_seconds")
            .map_or_else(|| "nobody can tell when it starts".to_owned(), |wait| format!("about {} to go", span(wait)));
        let (waited, left) = (seconds("waited_seconds"), seconds("patience_left_seconds"));
        let [waited, left] = [waited, left].map(|seconds| span(seconds.unwrap_or_default()));
        let _ = writeln!(text, "  {}", plain(&wants(waiter), 78));
        let _ = writeln!(text, "    asked by {}", client(waiter));
        let _ = writeln!(text, "    {turn}, waited {waited}, {expected}; it is refused in {left}");
        let before = waiter["turn"].as_u64().map_or(0, |turn| turn - 1);
        let clients =
            clients(all.iter().copied().filter(|other| other["turn"].as_u64().is_some_and(|it| it <= before)));
        if !clients.is_empty() {
            let _ = writeln!(text, "    behind {clients}");
        }
    }
    if told.len() > MOST {
        let _ = writeln!(text, "  and {}", count(told.len() - MOST, "more", "more"));
    }
}

/// `kubelet (uid:0), process containerd, pid 812`.
fn client(waiter: &Value) -> String {
    let text = |value: &Value| plain(value.as_str().unwrap_or("?"), 20);
    let (client, peer, process) = (text(&waiter["client"]), text(&waiter["peer"]), &waiter["process"]);
    let peer = if waiter["peer"].is_null() || peer == client { String::new() } else { format!(" ({peer})") };
    let process = process["pid"].as_u64().map(|pid| format!(", process {}, pid {pid}", text(&process["command"])));
    format!("{client}{peer}{}", process.unwrap_or_default())
}

/// `9 blobs of dfdaemon, 4 small requests of kubelet`, the most first.
fn clients<'a>(waiters: impl Iterator<Item = &'a Value>) -> String {
    const MOST_CLIENTS: usize = 3;
    let mut counts: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for waiter in waiters {
        let kind = match (waiter["kind"].as_str(), waiter["lane"].as_str()) {
            (Some("tunnel"), _) => "tunnel",
            (_, Some("blob")) => "blob",
            _ => "small request",
        };
        *counts.entry((plain(waiter["client"].as_str().unwrap_or("?"), 20), kind)).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
    let told = counts.iter().take(MOST_CLIENTS);
    let told =
        told.map(|((client, kind), number)| format!("{} of {client}", count(*number, kind, &format!("{kind}s"))));
    let rest: usize = counts.iter().skip(MOST_CLIENTS).map(|(_, number)| number).sum();
    told.chain((rest > 0).then(|| count(rest, "other", "others"))).collect::<Vec<_>>().join(", ")
}

fn add_cause(text: &mut String, name: &str, queue: &Value, status: &Value) {
    let shown = ["active", "connecting", "idle", "closing"].into_iter().filter(|state| number(&status[*state]) > 0);
    let shown: Vec<String> = shown.map(|state| format!("{} {state}", number(&status[state]))).collect();
    let shown = if shown.is_empty() { String::new() } else { format!(" ({})", shown.join(", ")) };
    let _ = writeln!(text, "  {}{shown}: {}.", slots(status), limit(queue));
    let help = match queue["limited_by"].as_str() {
        Some("paused") => format!("`roadstead resume {name}` lets them go on."),
        Some("fleet_paused") => format!("`roadstead resume {name} --fleet` lets them go on, on all nodes."),
        Some("unreachable") => {
            "They go on by themselves when it answers. `roadstead doctor` tries the way to it.".to_owned()
        }
        Some("distress") => {
            let lease = &status["lease"];
            let (in_force, all, of) = match number(&lease["pool"]) {
                0 => (&status["slots_in_force"], number(&status["slots"]), ""),
                pool => (&lease["pool_in_force"], pool, " of all nodes"),
            };
            let sign = status["adapt"]["lowered_by"].as_str();
            format!(
                "{} of {all} slots{of} are in force; the last sign was {}. They come back by themselves: docs/cap.md.",
                number(in_force),
                sign.map_or("not seen here".to_owned(), |sign| sign.replace('_', " ")),
            )
        }
        Some("slots") if number(&status["idle"]) > 0 => {
            "Idle connections are reclaimed when they have been quiet for long enough.".to_owned()
        }
        _ => return,
    };
    let _ = writeln!(text, "  {help}");
}

fn nothing_waits(image: &str, registries: &serde_json::Map<String, Value>, status: &Value) -> String {
    let mut text = format!("No request for {image} waits here.\n");
    for name in registries.keys() {
        let registry = &status["registries"][name];
        let waiting = number(&registry["waiting"]);
        let wait = if waiting == 1 { "1 request waits".to_owned() } else { format!("{waiting} requests wait") };
        let _ = writeln!(text, "  {}: {}, {wait}", plain(name, 30), slots(registry));
    }
    text + "It is being served, was not asked for here, or goes around roadstead: the log names what was served,\n\
            and `roadstead doctor` finds a puller that is not led here.\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn waiter(turn: Option<usize>, client: &str, repository: &str, reference: &str) -> Value {
        let lane = if reference.contains(':') { "blob" } else { "small" };
        json!({"turn": turn, "client": client, "kind": "request", "lane": lane, "target": "harbor.example.com:443",
               "repository": repository, "reference": reference,
               "waited_seconds": 3.2, "patience_left_seconds": 21.8, "expected_wait_seconds": 12.0})
    }

    fn busy() -> (Value, Value) {
        let mut waiting: Vec<Value> =
            (1..=9).map(|turn| waiter(Some(turn), "dfdaemon", "library/redis", "sha256:00")).collect();
        waiting.extend((10..=13).map(|turn| waiter(Some(turn), "kubelet", "library/redis", "7")));
        let mut last = waiter(Some(14), "containerd", "library/nginx", "1.25");
        (last["peer"], last["process"]) = (json!("uid:0"), json!({"pid": 812, "command": "ctr"}));
        waiting.push(last);
        let queue = json!({"registries": {"harbor": {"limited_by": "slots", "waiting": waiting}}});
        let status = json!({"registries": {"harbor": {"open": 8, "slots": 8, "active": 6, "idle": 2, "waiting": 80}}});
        (queue, status)
    }

    #[test]
    fn distress_is_named_where_it_is_the_cause() {
        let (mut queue, mut status) = busy();
        queue["registries"]["harbor"]["limited_by"] = json!("distress");
        let harbor = &mut status["registries"]["harbor"];
        (harbor["open"], harbor["slots_in_force"], harbor["adapt"]) =
            (json!(4), json!(4), json!({"lowered_by": "failed_dial"}));
        let told = render(&queue, &status, "nginx");
        let cause = "4 of 8 slots open (6 active, 2 idle): the registry showed signs of overload.\n  \
                     4 of 8 slots are in force; the last sign was failed dial. They come back by themselves";
        assert!(told.contains(cause), "{told}");
        status["registries"]["harbor"]["lease"] = json!({"pool": 60, "pool_in_force": 17});
        let told = render(&queue, &status, "nginx");
        assert!(told.contains("17 of 60 slots of all nodes are in force; the last sign was failed dial."), "{told}");
    }

    #[test]
    fn it_says_in_words_why_an_image_waits() {
        let (queue, status) = busy();
        let expected = "\
harbor: 1 request waits for harbor.example.com/library/nginx:1.25.
  library/nginx:1.25
    asked by containerd (uid:0), process ctr, pid 812
    turn 14 of 80, waited 3.2 s, about 12 s to go; it is refused in 21 s
    behind 9 blobs of dfdaemon, 4 small requests of kubelet
  8 of 8 slots open (6 active, 2 idle): no slot is free.
  Idle connections are reclaimed when they have been quiet for long enough.
";
        assert_eq!(render(&queue, &status, "harbor.example.com/library/nginx:1.25"), expected);
        for image in ["nginx", "library/nginx", "docker://harbor.example.com/library/nginx@sha256:00", "nginx:1.25"] {
            assert!(render(&queue, &status, image).contains("turn 14 of 80"), "{image}");
        }
        for image in ["nginx:1.26", "ginx", "library", "", "nginx/extra", "harbor.example.com"] {
            let told = render(&queue, &status, image);
            assert!(told.starts_with("No request for ") && told.contains("harbor: 8 of 8 slots open, 80"), "{told}");
        }
        let many = render(&queue, &status, "redis");
        assert!(many.contains("13 requests wait") && many.contains("and 8 more"), "{many}");
    }

    #[test]
    fn what_holds_all_is_told_with_its_end() {
        let (mut queue, status) = busy();
        let registry = &mut queue["registries"]["harbor"];
        for waiter in registry["waiting"].as_array_mut().unwrap() {
            (waiter["turn"], waiter["expected_wait_seconds"]) = (Value::Null, Value::Null);
        }
        registry["limited_by"] = json!("unreachable");
        let told = render(&queue, &status, "nginx");
        assert!(told.contains("held back") && told.contains("takes no connections"), "{told}");
        queue["registries"]["harbor"]["limited_by"] = json!("paused");
        assert!(render(&queue, &status, "nginx").contains("`roadstead resume harbor`"));
    }

    #[test]
    fn a_tunnel_shows_its_host_alone() {
        let (mut queue, status) = busy();
        let registry = &mut queue["registries"]["harbor"]["waiting"];
        let mut tunnel = waiter(Some(1), "docker", "", "");
        (tunnel["repository"], tunnel["reference"], tunnel["kind"]) = (Value::Null, Value::Null, json!("tunnel"));
        *registry = json!([tunnel]);
        let told = render(&queue, &status, "harbor.example.com/library/nginx");
        assert!(told.contains("1 tunnel waits for its host") && told.contains("not visible"), "{told}");
        assert!(render(&queue, &status, "other.example.com/library/nginx").starts_with("No request"));
        assert!(render(&queue, &status, "library/nginx").starts_with("No request"));
    }
}
