//! The running sidecar: a real request through its mirror and its proxy, and what its radar sees.

use std::net::SocketAddr;

use serde_json::Value;

use super::exchange::{DoctorAnswer, ask_at, is_registry, origin_of};
use super::report::{ExaminedStep, Findings};
use crate::bypass::words::going_around;
use crate::config::{Config, RegistryConfig};
use crate::setup::aim::from_this_node;
use crate::target::Origin;

pub async fn examine(config: &Config, report: &mut Findings) {
    let admin = from_this_node(config.listen.admin);
    let status = ask_at(admin, "GET", "/status", &admin.to_string()).await;
    let status = status.ok().and_then(|answer| serde_json::from_str::<Value>(&answer.body).ok());
    let Some(status) = status else {
        let reason =
            format!("no sidecar answers at {admin}: start it (`systemctl start roadstead`), then run doctor again");
        for step in ["mirror", "proxy", "bypass"] {
            report.add(ExaminedStep::skipped(step, "the sidecar", &reason));
        }
        return;
    };
    for registry in &config.registries {
        report.add(mirror(registry).await);
        report.add(proxy(config, registry).await);
        report.add(bypass(registry, &status));
    }
}

/// `/v2/` through the mirror: it answers as the registry does, and its tokens are made through the mirror, too.
async fn mirror(registry: &RegistryConfig) -> ExaminedStep {
    let name = &registry.name;
    let Some(mirror) = &registry.mirror else {
        return ExaminedStep::skipped(
            "mirror",
            name,
            "it has none: without [registries.NAME.mirror] tokens and manifests of dfdaemon go around",
        );
    };
    let address = from_this_node(mirror.listen);
    let subject = format!("http://{address}/v2/");
    let answer = match ask_at(address, "GET", "/v2/", &address.to_string()).await {
        Ok(answer) => answer,
        Err(error) => {
            let cure = format!(
                "the sidecar runs with another config: reload it (SIGHUP), or correct registries.{name}.mirror.listen"
            );
            return ExaminedStep::problem("mirror", subject, error, cure);
        }
    };
    if !is_registry(&answer) {
        return ExaminedStep::problem(
            "mirror",
            subject,
            told(&answer),
            "the steps above say what is wrong with the registry; /status shows the queue",
        );
    }
    let leads_here = |realm: &str| origin_of(realm).is_some_and(|origin| is_at(&origin, address));
    match answer.realm().filter(|realm| mirror.rewrite && !leads_here(realm)) {
        Some(realm) => {
            let cure = format!("add that URL's origin to registries.{name}.mirror.public_urls");
            ExaminedStep::problem("mirror", subject, format!("tokens are made at {realm}, around the mirror"), cure)
        }
        None => ExaminedStep::fine("mirror", subject, format!("it answers {}", answer.status)),
    }
}

/// A tunnel through the proxy to the registry.
async fn proxy(config: &Config, registry: &RegistryConfig) -> ExaminedStep {
    let address = from_this_node(config.listen.proxy);
    let subject = format!("http://{address}");
    let host = registry.hosts.iter().find_map(|pattern| Some((pattern.exact_host()?, pattern.port().unwrap_or(443))));
    let Some((host, port)) = host else {
        return ExaminedStep::skipped("proxy", subject, format!("registries.{} lists patterns only", registry.name));
    };
    let target = format!("{host}:{port}");
    match ask_at(address, "CONNECT", &target, &target).await {
        Ok(answer) if answer.status == 200 => {
            ExaminedStep::fine("proxy", subject, format!("a tunnel to {target} stands"))
        }
        Ok(answer) => ExaminedStep::problem(
            "proxy",
            subject,
            told(&answer),
            "the steps above say what is wrong with the registry, or allow_clients with this client",
        ),
        Err(error) => ExaminedStep::problem(
            "proxy",
            subject,
            error,
            "the sidecar runs with another config: reload it (SIGHUP), or correct listen.proxy",
        ),
    }
}

fn bypass(registry: &RegistryConfig, status: &Value) -> ExaminedStep {
    let name = &registry.name;
    let seen = &status["registries"][name]["bypass"];
    let Some(connections) = seen["connections"].as_u64() else {
        let why = status["bypass_radar"].as_str().unwrap_or("this sidecar has no radar");
        return ExaminedStep::skipped("bypass", name, why);
    };
    if connections == 0 {
        return ExaminedStep::fine("bypass", name, "no connection goes around the sidecar");
    }
    let owners =
        seen["owners"].as_array().into_iter().flatten().map(|owner| {
            format!("{} (uid {})", owner["command"].as_str().unwrap_or("an unknown command"), owner["uid"])
        });
    let said = format!("{} the sidecar: {}", going_around(connections), owners.collect::<Vec<_>>().join(", "));
    ExaminedStep::problem(
        "bypass",
        name,
        said,
        "lead that program here: `roadstead setup containerd|docker|podman|dfdaemon --write`",
    )
}

/// A refusal in its own words.
fn told(answer: &DoctorAnswer) -> String {
    let message = serde_json::from_str::<Value>(&answer.body).ok();
    let message = message.as_ref().and_then(|body| body.pointer("/errors/0/message")?.as_str());
    format!("it answers {} {}", answer.status, message.unwrap_or(&answer.reason))
}

fn is_at(origin: &Origin, address: SocketAddr) -> bool {
    origin.target.host().ip() == Some(address.ip()) && origin.target.port() == address.port()
}
