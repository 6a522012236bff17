//! The pullers of the node: their files, and the proxies of those that run.

use std::path::Path;

use super::checkup::Checkup;
use super::report::{ExaminedStep, Findings};
use super::services;
use crate::config::Config;
use crate::setup::aim::Aim;
use crate::setup::error::SetupError;
use crate::setup::files::Files;
use crate::setup::{containerd, dfdaemon, docker, podman};

type Steps = Result<Vec<ExaminedStep>, SetupError>;

pub fn examine(config: &Config, files: &Files<'_>, checkup: &Checkup, proc: &Path, report: &mut Findings) {
    let aim = Aim::of(config, false);
    let services = of_services(&aim, proc);
    let found = [
        ("containerd", of_containerd(&aim, files, &checkup.containerd_config)),
        ("dfdaemon", of_dfdaemon(&aim, files, &checkup.dfdaemon_config)),
        ("docker", of_docker(&aim, files)),
        ("podman", of_podman(&aim, files)),
    ];
    for (puller, steps) in found {
        let cure = || format!("then run `roadstead setup {puller} --write`");
        let steps = steps.unwrap_or_else(|error| vec![ExaminedStep::problem("puller", puller, error, cure())]);
        report.add_all(steps);
    }
    report.add_all(services);
}

fn of_containerd(aim: &Aim, files: &Files<'_>, config: &Path) -> Steps {
    if files.read(config)?.is_none() {
        return Ok(vec![ExaminedStep::skipped("puller", "containerd", format!("{} is not there", config.display()))]);
    }
    let cure = "run `roadstead setup containerd --write` (with dfdaemon in front: `setup dfdaemon`)";
    let folders = containerd::folders(files, config)?;
    let mut steps = Vec::new();
    for (host, mirror) in mirrors(aim) {
        let path = containerd::hosts_file(files, &folders, &host);
        let shown = path.display();
        steps.push(match files.read(&path)? {
            None => ExaminedStep::problem(
                "puller",
                "containerd",
                format!("{shown} is not there: {host} is asked directly"),
                cure,
            ),
            Some(text) => match containerd::bypass_in(&text, mirror) {
                Err(error) => {
                    ExaminedStep::problem("puller", "containerd", format!("{shown}: {error}"), "correct the file")
                }
                Ok(Some(around)) => ExaminedStep::problem(
                    "puller",
                    "containerd",
                    format!("{shown}: {around} goes around the mirror"),
                    cure,
                ),
                Ok(None) => ExaminedStep::fine("puller", "containerd", format!("{shown} leads to the mirror alone")),
            },
        });
    }
    Ok(steps)
}

fn of_dfdaemon(aim: &Aim, files: &Files<'_>, config: &Path) -> Steps {
    let path = config.display();
    let Some(text) = files.read(config)? else {
        return Ok(vec![ExaminedStep::skipped("puller", "dfdaemon", format!("{path} is not there"))]);
    };
    let mirrors: Vec<String> = mirrors(aim).into_iter().map(|(_, mirror)| format!("http://{mirror}")).collect();
    let cure = "run `roadstead setup dfdaemon --write`, then restart dfdaemon";
    Ok(vec![match dfdaemon::mirror_of(&text) {
        Err(error) => ExaminedStep::problem("puller", "dfdaemon", format!("{path}: {error}"), "correct the file"),
        Ok(Some(named)) if mirrors.contains(&named) => {
            ExaminedStep::fine("puller", "dfdaemon", format!("{path}: registryMirror is {named}"))
        }
        Ok(Some(_)) => ExaminedStep::problem(
            "puller",
            "dfdaemon",
            format!("{path}: registryMirror is not the mirror: manifests and tokens go around"),
            cure,
        ),
        Ok(None) => ExaminedStep::problem("puller", "dfdaemon", format!("{path} names no registryMirror"), cure),
    }])
}

fn of_docker(aim: &Aim, files: &Files<'_>) -> Steps {
    let proxy = aim.proxy.to_string();
    let cure = "run `roadstead setup docker --write`, then `systemctl daemon-reload && systemctl restart docker`";
    if let Some(other) = docker::other_proxy(files, &proxy)? {
        return Ok(vec![ExaminedStep::problem(
            "puller",
            "docker",
            format!("{other}, which goes around the sidecar"),
            cure,
        )]);
    }
    Ok(vec![if docker::is_led(files, &proxy)? {
        ExaminedStep::fine("puller", "docker", "its service uses the proxy")
    } else if docker::is_there(files) {
        ExaminedStep::problem("puller", "docker", "nothing leads it to the proxy", cure)
    } else {
        ExaminedStep::skipped("puller", "docker", "there is no /etc/docker")
    }])
}

fn of_podman(aim: &Aim, files: &Files<'_>) -> Steps {
    let mut steps = Vec::new();
    for (host, mirror) in mirrors(aim) {
        steps.push(match podman::bypass_in(files, &host, mirror, false)? {
            Some(around) => {
                let said = format!("{around} goes around the mirror");
                ExaminedStep::problem(
                    "puller",
                    "podman",
                    said,
                    "remove that table, or run `roadstead setup podman --write`",
                )
            }
            None if podman::names(files, &host)? => {
                ExaminedStep::fine("puller", "podman", format!("{host} leads to the mirror alone"))
            }
            None => {
                let said = format!(
                    "no file names {host}: if podman, CRI-O or skopeo pull here, run `roadstead setup podman --write`"
                );
                ExaminedStep::skipped("puller", "podman", said)
            }
        });
    }
    Ok(steps)
}

/// The proxies of running pullers: each leads here, and `NO_PROXY` leaves no registry out.
fn of_services(aim: &Aim, proc: &Path) -> Vec<ExaminedStep> {
    let mut steps = Vec::new();
    for service in services::pullers(proc) {
        let subject = format!("{} (pid {})", service.name, service.pid);
        let Some(proxies) = service.proxies else {
            steps.push(ExaminedStep::skipped(
                "service",
                subject,
                "its environment may not be read: run doctor as root",
            ));
            continue;
        };
        let https = proxies.get("HTTPS_PROXY").filter(|proxy| !proxy.is_empty());
        let Some(https) = https else {
            steps.push(ExaminedStep::fine("service", subject, "it has no proxy: its files decide"));
            continue;
        };
        let direct = proxies.get("NO_PROXY").map(String::as_str).unwrap_or_default();
        let entries: Vec<&str> = direct.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
        let hosts = aim.registries.iter().flat_map(|led| &led.hosts).filter_map(|pattern| pattern.exact_host());
        let left_out = hosts.into_iter().find_map(|host| {
            let entry = entries.iter().find(|entry| docker::matches_no_proxy(entry, host))?;
            Some(format!("NO_PROXY has {entry}, which matches {host}: it goes around the sidecar"))
        });
        steps.push(if !docker::leads_to(https, &aim.proxy.to_string()) {
            let cure = format!(
                "let HTTPS_PROXY of its unit be http://{}:x@{}, or lead it to the mirror by its files",
                service.name, aim.proxy
            );
            ExaminedStep::problem(
                "service",
                subject,
                "its HTTPS_PROXY is another proxy, which goes around the sidecar",
                cure,
            )
        } else if let Some(said) = left_out {
            ExaminedStep::problem(
                "service",
                subject,
                said,
                "list narrower networks and names in NO_PROXY of its unit, and restart it",
            )
        } else {
            ExaminedStep::fine("service", subject, "its proxy is the sidecar")
        });
    }
    steps
}

/// Each name of a registry that has a mirror.
fn mirrors(aim: &Aim) -> Vec<(String, std::net::SocketAddr)> {
    let names = |led: &crate::setup::aim::Led| {
        let mirror = led.mirror;
        let hosts = led.hosts.iter().filter(|host| host.exact_host().is_some());
        hosts.filter_map(|host| Some((host.to_string(), mirror?))).collect::<Vec<_>>()
    };
    aim.registries.iter().flat_map(names).collect()
}
