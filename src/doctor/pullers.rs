//! The pullers of the node: their files.

use std::path::Path;
use std::time::Duration;

use super::checkup::Checkup;
use super::proxies;
use super::report::{ExaminedStep, Findings, are_fine};
use super::services::{self, RunningPuller};
use crate::config::Config;
use crate::setup::aim::Aim;
use crate::setup::docker::{DockerBypass, DockerVariables};
use crate::setup::error::SetupError;
use crate::setup::files::Files;
use crate::setup::{containerd, dfdaemon, docker, podman};

type Steps = Result<Vec<ExaminedStep>, SetupError>;

pub fn examine(config: &Config, files: &Files<'_>, checkup: &Checkup, proc: &Path, report: &mut Findings) {
    let aim = Aim::of(config, false);
    let found = [
        ("containerd", of_containerd(&aim, files, &checkup.containerd_config)),
        ("dfdaemon", of_dfdaemon(&aim, files, &checkup.dfdaemon_config)),
        ("docker", of_docker(&aim, files)),
        ("podman", of_podman(&aim, files)),
    ];
    let mut led = Vec::new();
    for (puller, steps) in found {
        let cure = || format!("then run `roadstead setup {puller} --write`");
        let steps = steps.unwrap_or_else(|error| vec![ExaminedStep::problem("puller", puller, error, cure())]);
        if are_fine(&steps) {
            led.push(puller);
        }
        report.add_all(steps);
    }
    // Files that cannot be read are a problem above.
    let of_docker = DockerVariables::read(files, None).ok();
    let services = services::pullers(proc);
    report.add_all(proxies::examine(&aim, &led, of_docker.as_ref(), &services));
    report.add_all(services.iter().filter_map(|service| changed_since(files, checkup, service)).collect());
}

fn of_containerd(aim: &Aim, files: &Files<'_>, config: &Path) -> Steps {
    if files.read(config)?.is_none() {
        return Ok(vec![ExaminedStep::skipped("puller", "containerd", format!("{} is not there", config.display()))]);
    }
    let cure = "run `roadstead setup containerd --write` (with dfdaemon in front: `setup dfdaemon`)";
    let folders = containerd::folders(files, config)?;
    let problem = |said: String, cure: &str| ExaminedStep::problem("puller", "containerd", said, cure);
    let mut steps = Vec::new();
    for (host, mirror) in mirrors(aim) {
        let Some(path) = containerd::hosts_file(files, &folders, &host)? else {
            let folder = folders.first().map_or_else(String::new, |folder| folder.display().to_string());
            steps.push(problem(format!("{folder} has no folder for {host}: it is asked directly"), cure));
            continue;
        };
        let shown = path.display();
        steps.push(match files.read(&path)? {
            None => problem(format!("{shown} is not there: {host} is asked directly"), cure),
            Some(text) => match containerd::bypass_in(&text, mirror) {
                Err(error) => problem(format!("{shown}: {error}"), "correct the file"),
                Ok(Some(around)) => problem(format!("{shown}: {around} goes around the mirror"), cure),
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
    let given = DockerVariables::read(files, None)?;
    if let Some(DockerBypass { said, cure }) = given.bypass(aim) {
        let cure = format!("{cure}; then `systemctl daemon-reload && systemctl restart docker`");
        return Ok(vec![ExaminedStep::problem("puller", "docker", said, cure)]);
    }
    Ok(vec![if given.lead_to(&proxy) {
        ExaminedStep::fine("puller", "docker", "its service uses the proxy")
    } else if docker::is_there(files)? {
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

/// A config that a service has read before it changed. It may have changed elsewhere, so this is no problem by itself.
fn changed_since(files: &Files<'_>, checkup: &Checkup, service: &RunningPuller) -> Option<ExaminedStep> {
    let (config, unit) = match service.name.as_str() {
        "containerd" => (checkup.containerd_config.as_path(), "containerd"),
        "dfdaemon" => (checkup.dfdaemon_config.as_path(), "dfdaemon"),
        "dockerd" => (Path::new(docker::DAEMON), "docker"),
        _ => return None,
    };
    let later = files.changed(config)?.duration_since(service.started?).ok()?;
    let said = format!(
        "{} was changed after it started: if it is this that leads it here, run `systemctl restart {unit}`",
        config.display()
    );
    (service.is_of_node && later > Duration::from_secs(1))
        .then(|| ExaminedStep::skipped("service", service.shown(), said))
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
