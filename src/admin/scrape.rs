//! The gauges of `/metrics`, from the same pictures as `/status`. A gauge is declared where its value is set.

use std::time::{SystemTime, UNIX_EPOCH};

use super::picture::RegistryPicture;
use crate::admission::Counts;
use crate::control::config_facts::ConfigFacts;
use crate::metrics::{Families, number};

pub(super) struct ProcessPicture {
    pub started: SystemTime,
    pub clients: usize,
    pub config_taken: SystemTime,
    pub config_holds: bool,
    pub config: ConfigFacts,
}

pub(super) fn scrape<'a>(
    process: &ProcessPicture,
    registries: impl Iterator<Item = (&'a str, RegistryPicture)>,
) -> Families {
    let scrape = Families::default();
    add_process(&scrape, process);
    for (name, picture) in registries {
        add_registry(&scrape, name, &picture);
        for node in &picture.upstreams {
            let labels = [("registry", name), ("upstream", node.url.as_str())];
            let open = "Sockets that are dialled or open, by URL of mirror.upstream.";
            scrape.gauge(("roadstead_upstream_open_connections", open), &labels, number(node.open));
            let up = "Whether the URL of mirror.upstream takes connections: 0 while it is left out.";
            scrape.gauge(("roadstead_upstream_up", up), &labels, number(usize::from(node.up)));
        }
    }
    scrape
}

fn add_process(scrape: &Families, process: &ProcessPicture) {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    scrape.gauge(("roadstead_build_info", "Always 1; the version is in the label."), &version, 1.0);
    let started = "Start of the process, in seconds since the epoch.";
    scrape.gauge(("process_start_time_seconds", started), &[], since_epoch(process.started));
    scrape.gauge(("roadstead_client_connections", "Connections of clients."), &[], number(process.clients));
    let holds = "Whether the config was taken when it was read last: 0 after a reload that failed.";
    scrape.gauge(("roadstead_config_last_reload_successful", holds), &[], number(usize::from(process.config_holds)));
    let hash = "A number made of all settings in force: the same on nodes with the same settings.";
    scrape.gauge(("roadstead_config_hash", hash), &[], process.config.hash);
    for (name, cap) in &process.config.caps {
        let metric = ("roadstead_cap", "Connections that the registry can serve, all nodes together.");
        scrape.gauge(metric, &[("registry", name)], f64::from(*cap));
    }
    let taken = "When the config in force was taken, in seconds since the epoch.";
    let metric = ("roadstead_config_last_reload_success_timestamp_seconds", taken);
    scrape.gauge(metric, &[], since_epoch(process.config_taken));
}

fn add_registry(scrape: &Families, name: &str, picture: &RegistryPicture) {
    let registry = ("registry", name);
    picture.slots.iter().for_each(|slots| slots.scrape(scrape, name));
    let Counts { connecting, active, idle, closing } = picture.states;
    let states = [("connecting", connecting), ("active", active), ("idle", idle), ("closing", closing)];
    for (state, sockets) in states {
        let open = "Open sockets, by what they do: connecting, active, idle, closing.";
        scrape.gauge(("roadstead_open_connections", open), &[registry, ("state", state)], number(sockets));
    }
    let parked = "Tunnels that gave their slots up before their first byte; they hold no slot.";
    scrape.gauge(("roadstead_parked_tunnels", parked), &[registry], number(picture.parked));
    for (class, counts) in &picture.classes {
        let labels = [registry, ("class", class.as_str())];
        scrape.gauge(("roadstead_waiting", "Requests in the queue."), &labels, number(counts.waiting));
    }
    let oldest = "Time since the arrival of the request that waits longest.";
    scrape.gauge(("roadstead_oldest_wait_seconds", oldest), &[registry], picture.oldest_wait_seconds);
    picture.distress.iter().for_each(|distress| distress.scrape(scrape, name));
    picture.bypass.iter().for_each(|bypass| bypass.scrape(scrape, name));
    picture.lease.iter().for_each(|lease| lease.scrape(scrape, name));
    let busy = "Time in which slots were dialling or carried bytes or a request, all slots together.";
    let metric = ("roadstead_slot_busy_seconds_total", busy);
    scrape.count(metric, &[registry], picture.used.busy.as_secs_f64());
    let metric = ("roadstead_slot_held_seconds_total", "Time for which slots were held, all slots together.");
    scrape.count(metric, &[registry], picture.used.held.as_secs_f64());
}

fn since_epoch(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
