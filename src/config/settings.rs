//! Every setting there is: its key, its default, its range, and what must hold between settings.
//!
//! One function for each table of the file, with its keys in the order of the shipped
//! `sidecar.toml`. All reads of a table come before the first `?`, so that each notes its problem.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use super::reader::{Noted, Read, Section};
use super::value::{address, count, decimal, duration, flag, host, network, share, text, whole, word};
use super::{Class, Config, Listen, Log, LogFormat, OtherHosts, Queue, Rate, Reclaim, Registry, Share, http, warnings};
use crate::target::{HostPattern, Origin};

/// The most of anything that is counted. More is a slip of the pen, and would not fit a machine.
const MOST: u32 = 1_000_000;

/// The label of targets without a registry in metrics, so no registry may be called that.
const RESERVED_NAME: &str = "other_hosts";

/// The class of every client that no other class lists.
pub(super) const DEFAULT_CLASS: &str = "default";

/// Longest name of a registry or a class, in bytes.
const LONGEST_NAME: usize = 63;

/// The whole file.
pub(super) fn config(root: &mut Section<'_>) -> Read<Config> {
    let drain_timeout = root.optional("drain_timeout", seconds(30), duration);
    // The policy first: the check of the listen addresses speaks of it.
    let other_hosts = root.table("other_hosts", other_hosts);
    let listen = root.table("listen", |section| listen(section, other_hosts));
    let log = root.table("log", log);
    let registries = root.table("registries", registries);
    let classes = root.table("classes", classes);
    if let (Ok(listen), Ok(registries)) = (&listen, &registries) {
        check_mirrors(root, listen, registries, classes.as_deref().ok());
    }
    let mut config = Config {
        drain_timeout: drain_timeout?,
        listen: listen?,
        log: log?,
        registries: registries?,
        classes: classes?,
        other_hosts: other_hosts?,
        warnings: Vec::new(),
    };
    config.warnings = warnings::about(&config, |key| root.line_of(key));
    Ok(config)
}

fn listen(section: &mut Section<'_>, policy: Read<OtherHosts>) -> Read<Listen> {
    let proxy = section.optional("proxy", loopback(4128), address);
    let admin = section.optional("admin", loopback(4129), address);
    let metrics = section.optional("metrics", None, |value| address(value).map(Some));
    let allow_clients = section.list("allow_clients", "[\"10.0.0.0/8\"]", network);
    let max_clients = section.optional("max_clients", 20_000, count(1..=MOST));
    let head_timeout = section.optional("head_timeout", seconds(10), duration);

    let listeners = [("proxy", proxy.ok()), ("admin", admin.ok()), ("metrics", metrics.ok().flatten())];
    refuse_shared_addresses(section, &listeners);
    if matches!(allow_clients, Ok(None)) {
        refuse_open_door(section, proxy, policy);
    }
    Ok(Listen {
        proxy: proxy?,
        admin: admin?,
        metrics: metrics?,
        allow_clients: allow_clients?.unwrap_or_default(),
        max_clients: max_clients?,
        head_timeout: head_timeout?,
    })
}

fn log(section: &mut Section<'_>) -> Read<Log> {
    let formats = word(&[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let levels = ["error", "warn", "info", "debug", "trace"].map(|level| (level, level));
    let format = section.optional("format", LogFormat::Text, formats);
    let level = section.optional("level", "info", word(&levels));
    Ok(Log { format: format?, level: level?.to_owned() })
}

fn registries(section: &mut Section<'_>) -> Read<Vec<Registry>> {
    let mut claims = Claims::default();
    let registries = section.each_table(|name, section| registry(name, section, &mut claims))?;
    if registries.is_empty() {
        let reason = "at least one registry is required: add a table such as [registries.harbor]";
        return Err(section.missing("", reason.to_owned()));
    }
    Ok(registries)
}

fn registry(name: &str, section: &mut Section<'_>, claims: &mut Claims) -> Read<Registry> {
    if name == RESERVED_NAME {
        let reason = format!("the name {name} is taken: it stands for hosts that no registry lists");
        section.problem("", reason);
    }
    check_name(section, "registry", name);
    let hosts = hosts(section, |pattern| claims.claim(name, pattern));
    let cap = section.required("cap", "200", whole(1..=MOST));
    let share = section.required("share", "\"1/20\"", share);
    let slots = slots(section, cap, share);
    let rate = rate(section);
    let connect_timeout = section.optional("connect_timeout", seconds(5), duration);
    let linger = section.optional("linger", seconds(1), duration);
    let max_lifetime = section.optional("max_lifetime", seconds(30 * 60), duration);
    let idle_timeout = section.optional("idle_timeout", seconds(60), duration);
    let max_connecting = section.optional("max_connecting", None, |value| count(1..=MOST)(value).map(Some));
    let queue = section.table("queue", queue);
    let reclaim = section.table("reclaim", reclaim);
    let tls = section.table("tls", http::tls);
    let mirror = section.optional_table("mirror", |section| {
        http::mirror(section, |origin: &Origin| claims.claim(name, &origin.pattern()))
    });
    let repair = section.table("repair", http::repair);
    let mirror = mirror?;
    if let (Ok(hosts), Some(mirror)) = (&hosts, &mirror)
        && mirror.upstream.len() > 1
        && hosts.iter().all(|host| host.exact_host().is_none())
    {
        let reason = "mirror.upstream has several URLs, so the name that they share is needed, for the Host header: add it, \
                      such as \"harbor.example.com\"";
        section.problem("hosts", reason.to_owned());
    }
    let slots = slots.map(|slots| match &mirror {
        Some(mirror) if mirror.cap_per_upstream => slots * mirror.upstream.len(),
        _ => slots,
    });
    Ok(Registry {
        name: name.to_owned(),
        hosts: hosts?,
        cap: cap?,
        share: share?,
        slots: slots?,
        rate: rate?,
        connect_timeout: connect_timeout?,
        linger: linger?,
        idle_timeout: idle_timeout?,
        max_lifetime: max_lifetime?,
        max_connecting: max_connecting?.unwrap_or(slots?),
        queue: queue?,
        reclaim: reclaim?,
        tls: tls?,
        mirror,
        repair: repair?,
    })
}

/// What a mirror must agree on with the rest of the file.
fn check_mirrors(root: &mut Section<'_>, listen: &Listen, registries: &[Registry], classes: Option<&[Class]>) {
    let mut taken: Vec<(String, SocketAddr)> =
        vec![("listen.proxy".to_owned(), listen.proxy), ("listen.admin".to_owned(), listen.admin)];
    taken.extend(listen.metrics.map(|address| ("listen.metrics".to_owned(), address)));
    for registry in registries {
        let Some(mirror) = &registry.mirror else { continue };
        let key = |key: &str| format!("registries.{}.mirror.{key}", registry.name);
        let address = mirror.listen;
        if let Some((other_key, other)) = taken.iter().find(|(_, other)| collide(address, *other)) {
            root.problem(
                &key("listen"),
                format!("{address} cannot be bound beside {other_key} = {other}: choose another port"),
            );
        }
        taken.push((key("listen"), address));
        if !address.ip().to_canonical().is_loopback() && listen.allow_clients.is_empty() {
            let reason = format!(
                "{address} is not a loopback address, so listen.allow_clients is required: write \
                 allow_clients = [\"10.0.0.0/8\"] with the addresses of your clients"
            );
            root.problem(&key("listen"), reason);
        }
        if let Some(classes) = classes
            && !classes.iter().any(|class| class.name == mirror.class)
        {
            root.problem(&key("class"), format!("there is no [classes.{}]", mirror.class));
        }
    }
}

fn queue(section: &mut Section<'_>) -> Read<Queue> {
    let depth = section.optional("depth", 10_000, count(0..=MOST));
    let tunnel_timeout = section.optional("tunnel_timeout", seconds(50), duration);
    let request_timeout = section.optional("request_timeout", seconds(25), duration);
    let keep_place = section.optional("keep_place", seconds(30), duration);
    Ok(Queue {
        depth: depth?,
        tunnel_timeout: tunnel_timeout?,
        request_timeout: request_timeout?,
        keep_place: keep_place?,
    })
}

fn reclaim(section: &mut Section<'_>) -> Read<Reclaim> {
    let default = Reclaim::default();
    let idle_after = section.optional("idle_after", default.idle_after, duration);
    let unused_after = section.optional("unused_after", default.unused_after, duration);
    let unsure_after = section.optional("unsure_after", default.unsure_after, duration);
    let stall_timeout = section.optional("stall_timeout", default.stall_timeout, duration);
    let learn = section.optional("learn", default.learn, flag);
    Ok(Reclaim {
        idle_after: idle_after?,
        unused_after: unused_after?,
        unsure_after: unsure_after?,
        stall_timeout: stall_timeout?,
        learn: learn?,
    })
}

/// The classes, `default` first, whether the file names it or not. A user belongs to one class.
fn classes(section: &mut Section<'_>) -> Read<Vec<Class>> {
    let mut taken: Vec<(String, String)> = Vec::new();
    let mut classes = section.each_table(|name, section| class(name, section, &mut taken))?;
    match classes.iter().position(|class| class.name == DEFAULT_CLASS) {
        Some(index) => classes[..=index].rotate_right(1),
        None => classes.insert(0, Class::default()),
    }
    Ok(classes)
}

fn class(name: &str, section: &mut Section<'_>, taken: &mut Vec<(String, String)>) -> Read<Class> {
    check_name(section, "class", name);
    let users = section.list("users", "[\"kubelet\"]", |value| {
        let user = text(value)?.to_owned();
        if let Some((_, owner)) = taken.iter().find(|(other, owner)| *other == user && owner != name) {
            return Err(format!("{user} is claimed by classes.{owner} and by classes.{name}: a user has one class"));
        }
        taken.push((user.clone(), name.to_owned()));
        Ok(user)
    });
    let weight = section.optional("weight", 1, whole(1..=1000));
    let tunnel_timeout = section.optional("tunnel_timeout", None, |value| duration(value).map(Some));
    let request_timeout = section.optional("request_timeout", None, |value| duration(value).map(Some));
    Ok(Class {
        name: name.to_owned(),
        users: users?.unwrap_or_default(),
        weight: weight?,
        tunnel_timeout: tunnel_timeout?,
        request_timeout: request_timeout?,
    })
}

impl Default for Class {
    fn default() -> Class {
        let name = DEFAULT_CLASS.to_owned();
        Class { name, users: Vec::new(), weight: 1, tunnel_timeout: None, request_timeout: None }
    }
}

fn other_hosts(section: &mut Section<'_>) -> Read<OtherHosts> {
    let policies = word(&[("direct", OtherHosts::Direct), ("deny", OtherHosts::Deny)]);
    section.optional("policy", OtherHosts::Direct, policies)
}

fn check_name(section: &mut Section<'_>, what: &str, name: &str) {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(allowed) {
        let reason = format!(
            "the name of a {what} has 1 to {LONGEST_NAME} characters, each a small letter, a \
             digit, '_' or '-'"
        );
        section.problem("", reason);
    }
}

/// Reads the hosts of a registry; `claim` refuses those that another registry has.
fn hosts(
    section: &mut Section<'_>,
    mut claim: impl FnMut(&HostPattern) -> Result<(), String>,
) -> Read<Vec<HostPattern>> {
    let example = "[\"harbor.example.com\"]";
    let hosts = section.list("hosts", example, |value| {
        let pattern = host(value)?;
        claim(&pattern)?;
        Ok(pattern)
    })?;
    hosts.ok_or_else(|| section.required_but_absent("hosts", example))
}

/// The hosts that the registries read so far have claimed, each with the name of its registry.
#[derive(Default)]
struct Claims(Vec<(HostPattern, String)>);

impl Claims {
    fn claim(&mut self, registry: &str, pattern: &HostPattern) -> Result<(), String> {
        let clash = |(claimed, owner): &&(HostPattern, String)| owner != registry && claimed.overlaps(pattern);
        if let Some((_, owner)) = self.0.iter().find(clash) {
            return Err(format!(
                "{pattern} is claimed by registries.{owner} and by registries.{registry}: a host \
                 belongs to one registry"
            ));
        }
        self.0.push((pattern.clone(), registry.to_owned()));
        Ok(())
    }
}

fn slots(section: &mut Section<'_>, cap: Read<u32>, share: Read<Share>) -> Read<usize> {
    let (cap, share) = (cap?, share?);
    let slots = share.slots(cap);
    if slots == 0 {
        let reason = format!(
            "cap {cap} x share {share} = {}, which is less than one slot: raise {}, or the share \
             to at least 1/{cap}",
            share.of(cap),
            section.path_of("cap"),
        );
        return Err(section.problem("share", reason));
    }
    Ok(slots)
}

fn rate(section: &mut Section<'_>) -> Read<Option<Rate>> {
    let per_second = section.optional("rate_per_second", None, |value| decimal(value).map(Some));
    let burst = section.optional("burst", None, |value| whole(1..=MOST)(value).map(NonZeroU32::new));
    let (per_second, burst) = (per_second?, burst?);
    match (per_second, burst) {
        (Some(per_second), burst) => Rate::new(per_second, burst).map(Some).ok_or_else(|| {
            let reason = "must be from 0.001 to 1000000; leave it out for no limit";
            section.problem("rate_per_second", reason.to_owned())
        }),
        (None, Some(_)) => {
            let reason = "has no meaning without rate_per_second: set that too, or leave both out";
            Err(section.missing("burst", reason.to_owned()))
        }
        (None, None) => Ok(None),
    }
}

/// Notes each listener that cannot be bound beside one before it.
fn refuse_shared_addresses(section: &mut Section<'_>, listeners: &[(&str, Option<SocketAddr>)]) {
    for (index, (key, address)) in listeners.iter().enumerate() {
        let Some(address) = address else { continue };
        let taken = listeners[..index].iter().find_map(|(key, other)| {
            let other = (*other)?;
            collide(*address, other).then_some((key, other))
        });
        if let Some((other_key, other)) = taken {
            let other_key = section.path_of(other_key);
            let reason = format!("{address} cannot be bound beside {other_key} = {other}: choose another port");
            section.problem(key, reason);
        }
    }
}

/// Can only one of two addresses be bound? Port 0 takes whatever is free, so it meets no other.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && (any || one.ip() == other.ip())
}

/// Notes a proxy that every machine could use.
fn refuse_open_door(section: &mut Section<'_>, proxy: Read<SocketAddr>, policy: Read<OtherHosts>) {
    let Ok(proxy) = proxy else { return };
    if proxy.ip().to_canonical().is_loopback() {
        return;
    }
    let consequence = match policy {
        Ok(OtherHosts::Direct) => ", and with other_hosts.policy = \"direct\" it would be an open door",
        Ok(OtherHosts::Deny) | Err(Noted) => "",
    };
    let reason = format!(
        "{proxy} is not a loopback address, so listen.allow_clients is required{consequence}: \
         write allow_clients = [\"10.0.0.0/8\"] with the addresses of your clients"
    );
    section.missing("proxy", reason);
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
