//! The tables `[registries.NAME]`, but for those about HTTP that the sidecar sees.

use std::num::NonZeroU32;
use std::time::Duration;

use super::claims::{Claims, MAX_COUNT, check_name};
use super::http;
use super::listen::Listeners;
use super::model::{QueueConfig, ReclaimConfig, RegistryConfig};
use super::rate::ConnectRate;
use super::reader::{Read, Section};
use super::share::Share;
use super::value::{bytes_per_second, count, decimal, duration, flag, host, share, whole};
use crate::target::HostPattern;

/// The label of targets without a registry in metrics, so no registry may be called that.
const RESERVED_NAME: &str = "other_hosts";

pub(super) fn registries(section: &mut Section<'_>, listeners: &mut Listeners) -> Read<Vec<RegistryConfig>> {
    let mut claims = Claims::default();
    let registries = section.each_table(|name, section| registry(name, section, &mut claims, listeners))?;
    if registries.is_empty() {
        let reason = "at least one registry is required: add a table such as [registries.harbor]";
        return Err(section.missing("", reason.to_owned()));
    }
    Ok(registries)
}

fn registry(
    name: &str,
    section: &mut Section<'_>,
    claims: &mut Claims<HostPattern>,
    listeners: &mut Listeners,
) -> Read<RegistryConfig> {
    if name == RESERVED_NAME {
        let reason = format!("{name} stands for hosts that no registry lists: choose another name");
        section.problem("", reason);
    }
    check_name(section, "registry", name);
    let mut claim = |pattern| claims.claim(&format!("registries.{name}"), pattern);
    let hosts = hosts(section, &mut claim);
    let cap = section.required("cap", "200", whole(1..=MAX_COUNT));
    let share = section.required("share", "\"1/20\"", share);
    let slots = slots(section, cap, share);
    let rate = rate(section);
    let connect_timeout = section.optional("connect_timeout", seconds(5), duration);
    let linger = section.optional("linger", seconds(1), duration);
    let max_lifetime = section.optional("max_lifetime", seconds(30 * 60), duration);
    let idle_timeout = section.optional("idle_timeout", seconds(60), duration);
    let max_connecting = section.maybe("max_connecting", count(1..=MAX_COUNT));
    let queue = section.table("queue", queue);
    let reclaim = section.table("reclaim", reclaim);
    let tls = section.table("tls", http::tls);
    let mirror = section.optional_table("mirror", |section| http::mirror(section, &mut claim, listeners))?;
    let repair = section.table("repair", http::repair);
    if let (Ok(hosts), Some(mirror)) = (&hosts, &mirror)
        && mirror.upstream.len() > 1
        && hosts.iter().all(|host| host.exact_host().is_none())
    {
        let reason = "mirror.upstream has several URLs, and all of them are asked under one name, in the Host header: \
                      add that name, such as \"harbor.example.com\"";
        section.problem("hosts", reason.to_owned());
    }
    let slots = slots.map(|slots| match &mirror {
        Some(mirror) if mirror.cap_per_upstream => slots * mirror.upstream.len(),
        _ => slots,
    });
    Ok(RegistryConfig {
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

fn queue(section: &mut Section<'_>) -> Read<QueueConfig> {
    let depth = section.optional("depth", 10_000, count(0..=MAX_COUNT));
    let tunnel_timeout = section.optional("tunnel_timeout", seconds(50), duration);
    let request_timeout = section.optional("request_timeout", seconds(25), duration);
    let keep_place = section.optional("keep_place", seconds(30), duration);
    let least_rate = section.maybe("least_rate", bytes_per_second);
    Ok(QueueConfig {
        depth: depth?,
        tunnel_timeout: tunnel_timeout?,
        request_timeout: request_timeout?,
        keep_place: keep_place?,
        least_rate: least_rate?,
    })
}

fn reclaim(section: &mut Section<'_>) -> Read<ReclaimConfig> {
    let default = ReclaimConfig::default();
    let idle_after = section.optional("idle_after", default.idle_after, duration);
    let unused_after = section.optional("unused_after", default.unused_after, duration);
    let unsure_after = section.optional("unsure_after", default.unsure_after, duration);
    let stall_timeout = section.optional("stall_timeout", default.stall_timeout, duration);
    let learn = section.optional("learn", default.learn, flag);
    Ok(ReclaimConfig {
        idle_after: idle_after?,
        unused_after: unused_after?,
        unsure_after: unsure_after?,
        stall_timeout: stall_timeout?,
        learn: learn?,
    })
}

fn hosts(
    section: &mut Section<'_>,
    claim: &mut impl FnMut(HostPattern) -> Result<(), String>,
) -> Read<Vec<HostPattern>> {
    let example = "[\"harbor.example.com\"]";
    let hosts = section.list("hosts", example, |value| {
        let pattern = host(value)?;
        claim(pattern.clone()).map(|()| pattern)
    })?;
    hosts.ok_or_else(|| section.required_but_absent("hosts", example))
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

fn rate(section: &mut Section<'_>) -> Read<Option<ConnectRate>> {
    let per_second = section.maybe("rate_per_second", decimal);
    let burst = section.maybe("burst", whole(1..=MAX_COUNT));
    let (per_second, burst) = (per_second?, burst?.and_then(NonZeroU32::new));
    match (per_second, burst) {
        (Some(per_second), burst) => ConnectRate::new(per_second, burst).map(Some).ok_or_else(|| {
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

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
