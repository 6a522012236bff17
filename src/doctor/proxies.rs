//! The proxies of running pullers: none leaves a way around the sidecar.

use std::net::SocketAddr;

use super::report::ExaminedStep;
use super::services::RunningPuller;
use crate::setup::aim::Aim;
use crate::setup::docker::{self, DockerVariables};
use crate::target::Host;

/// Pullers that are not written in Go: they use a proxy for loopback, too.
const NO_GO: [&str; 2] = ["dfdaemon", "nydusd"];

/// `led` are the pullers whose files lead to the mirror.
pub fn examine(
    aim: &Aim,
    led: &[&str],
    of_docker: Option<&DockerVariables>,
    services: &[RunningPuller],
) -> Vec<ExaminedStep> {
    let of_service = |service: &RunningPuller| {
        let subject = service.shown();
        let found = of_service(aim, led, of_docker, service);
        match found {
            Proxied::Well(said) => ExaminedStep::fine("service", subject, said),
            Proxied::Badly { said, cure } => ExaminedStep::problem("service", subject, said, cure),
            Proxied::Unknown => {
                ExaminedStep::skipped("service", subject, "its environment may not be read: run doctor as root")
            }
        }
    };
    services.iter().map(of_service).collect()
}

/// Where the proxies of a service lead.
enum Proxied {
    Well(&'static str),
    Badly { said: String, cure: String },
    Unknown,
}

fn of_service(aim: &Aim, led: &[&str], of_docker: Option<&DockerVariables>, service: &RunningPuller) -> Proxied {
    let Some(mut proxies) = service.proxies.clone() else { return Proxied::Unknown };
    let is_docker = service.name == "dockerd" && service.is_of_node;
    if let Some(files) = of_docker.filter(|_| is_docker) {
        proxies.extend(files.of_its_config().map(|(name, value)| (name.clone(), value.clone())));
    }
    let value = |name: &str| docker::variable(&proxies, name, |value| value).map(String::as_str);
    let (https, direct) = (value("HTTPS_PROXY"), value("NO_PROXY").unwrap_or_default());
    let ours = aim.proxy.to_string();
    let is_ours = https.is_some_and(|https| docker::leads_to(https, &ours));
    let is_led_by_service = || of_docker.is_some_and(|files| files.lead_by_service(&ours));
    if is_docker && !is_ours && is_led_by_service() {
        return Proxied::Badly {
            said: "its files lead to the sidecar, but it runs without that HTTPS_PROXY: it was not restarted since"
                .to_owned(),
            cure: "run `systemctl daemon-reload && systemctl restart docker`".to_owned(),
        };
    }
    let files = if service.name == "crio" { "podman" } else { &service.name };
    if led.contains(&files) && service.is_of_node && aim.registries.iter().all(|led| led.mirror.is_some()) {
        let is_reached = |mirror: &SocketAddr| {
            let is_exempt = mirror.ip().is_loopback() && !NO_GO.contains(&service.name.as_str());
            is_exempt || docker::entry_of_no_proxy(direct, &Host::Ip(mirror.ip())).is_some()
        };
        let mut mirrors = aim.registries.iter().filter_map(|led| led.mirror);
        // The mirror speaks HTTP without TLS.
        return match mirrors.find(|mirror| !is_reached(mirror)).filter(|_| value("HTTP_PROXY").is_some()) {
            Some(mirror) => Proxied::Badly {
                said: format!("its HTTP_PROXY stands between it and the mirror {mirror}"),
                cure: format!("list {} in NO_PROXY of its unit, and restart it", mirror.ip()),
            },
            None if https.is_none() => Proxied::Well("it has no proxy: its files decide"),
            None => Proxied::Well("its proxy is for other registries: its files lead to the mirror"),
        };
    }
    if https.is_none() {
        return Proxied::Well("it has no proxy: its files decide");
    }
    let mut hosts = aim.registries.iter().flat_map(|led| &led.hosts).filter_map(|pattern| pattern.exact_host());
    let left_out = hosts.find_map(|host| Some((docker::entry_of_no_proxy(direct, host)?, host)));
    match left_out {
        _ if !is_ours => Proxied::Badly {
            said: "its HTTPS_PROXY is another proxy, which goes around the sidecar".to_owned(),
            cure: format!(
                "let HTTPS_PROXY of its unit be http://{}:x@{ours}, or lead it to the mirror by its files",
                service.name
            ),
        },
        Some((entry, host)) => Proxied::Badly {
            said: format!("NO_PROXY has {entry}, which matches {host}: it goes around the sidecar"),
            cure: "list narrower networks and names in NO_PROXY of its unit, and restart it".to_owned(),
        },
        None => Proxied::Well("its proxy is the sidecar"),
    }
}
