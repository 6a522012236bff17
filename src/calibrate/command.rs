//! The command line of the pressure test: its arguments, the question before it starts, and the pause of a running sidecar.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::pressure::Pressure;
use super::run;
use crate::config::Config;
use crate::control::address::{config_file, listen_of};
use crate::control::ask;
use crate::control::order::{self, Unsent};
use crate::control::socket::usual_path;

/// How long requests under way may take after the sidecar was paused.
const GIVES_UP: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub struct CalibrateArguments {
    /// The registry, as the config names it; it needs a mirror, whose upstream is asked.
    pub registry: String,

    /// A repository that is there, such as library/alpine; its manifest and tokens are asked for, and no blob.
    #[arg(long, value_name = "NAME", value_parser = path_part)]
    repository: String,

    /// Its tag or digest.
    #[arg(long, value_name = "TAG", default_value = "latest", value_parser = path_part)]
    reference: String,

    /// The most connections at once.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    max: u16,

    /// How many seconds each number of connections is tried for.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=60))]
    step: u16,

    /// Start without asking.
    #[arg(long)]
    yes: bool,

    /// A user of the registry; it needs --password-file.
    #[arg(long, value_name = "USER", requires = "password_file")]
    user: Option<String>,

    /// A file with the password of --user alone, or `stdin`.
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,

    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// The sidecar that may run here.
struct LocalSidecar<'a> {
    /// Its `/status`; `None` where none runs. Fails when one runs and does not tell.
    pub status: &'a dyn Fn() -> Result<Option<Value>, String>,
    /// Sends an order about the registry: `pause`, `resume`; tells the sidecar's objection.
    pub order: &'a dyn Fn(&str) -> Result<(), String>,
}

/// The sidecar of this node while it is paused for the test.
struct Paused<'a>(&'a LocalSidecar<'a>);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if let Err(error) = (self.0.order)("resume") {
            let _ = writeln!(io::stderr(), "the sidecar is still paused: {error}");
        }
    }
}

/// Tests a registry of this config. A sidecar that runs here is paused meanwhile.
pub fn on_this_node(asked: &CalibrateArguments, file: Option<&Path>) -> Result<String, Unsent> {
    let usage = |told: String| Unsent { is_usage: true, told };
    let config = Config::load(config_file(file)).map_err(|error| usage(error.to_string()))?;
    let path = |action: &str| format!("/registries/{}/{action}", asked.registry);
    let send = |action: &str| order::send(listen_of(file), None, &path(action)).map(drop).map_err(|unsent| unsent.told);
    let status = || ask::status(&config.listen.control.clone().unwrap_or_else(usual_path), config.listen.admin);
    execute(asked, &config, &LocalSidecar { status: &status, order: &send })
        .map_err(|told| Unsent { is_usage: false, told })
}

/// Runs the test, and tells the text to print.
/// Fails when it may not start, or the registry does not serve what is asked for.
fn execute(asked: &CalibrateArguments, config: &Config, sidecar: &LocalSidecar<'_>) -> Result<String, String> {
    let pressure = asked.pressure()?;
    asked.confirm(&pressure)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| error.to_string())?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        tokio::select! {
            result = paused_run(asked, config, &pressure, sidecar) => result,
            _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
            _ = terminate.recv() => Err("interrupted".to_owned()),
        }
    });
    runtime.shutdown_background();
    result
}

async fn paused_run(
    asked: &CalibrateArguments,
    config: &Config,
    pressure: &Pressure,
    sidecar: &LocalSidecar<'_>,
) -> Result<String, String> {
    let _paused = pause(sidecar, &pressure.registry).await?;
    if !asked.json {
        say("connections  requests/s    p50 ms    p95 ms");
    }
    let told = |step: &super::ladder::Step| {
        if !asked.json {
            say(&step.to_string());
        }
    };
    let found = run(config, pressure, told).await?;
    if asked.json {
        return serde_json::to_string_pretty(&found).map(|text| text + "\n").map_err(|error| error.to_string());
    }
    Ok(format!("\n{found}\n"))
}

/// Pauses the sidecar, unless none runs here or it is paused, and waits until it has no request under way.
/// Fails when it has one for too long, or does not tell.
async fn pause<'a>(sidecar: &'a LocalSidecar<'a>, registry: &str) -> Result<Option<Paused<'a>>, String> {
    let ask =
        || (sidecar.status)().map_err(|error| format!("the sidecar that runs here does not tell its state: {error}"));
    let Some(status) = ask()? else { return Ok(None) };
    if status["registries"][registry].is_null() {
        return Err(format!("the sidecar that runs here has no registry {registry}: reload it first"));
    }
    let was_paused = status["registries"][registry]["paused"] == true;
    if !was_paused {
        (sidecar.order)("pause").map_err(|error| format!("the sidecar that runs here cannot be paused: {error}"))?;
    }
    let paused = (!was_paused).then(|| Paused(sidecar));
    for _ in 0..GIVES_UP.as_millis() / LOOK.as_millis() {
        let status = ask()?.ok_or("the sidecar ended meanwhile: try again")?;
        let busy = |state: &str| status["registries"][registry][state].as_u64().unwrap_or_default();
        if busy("connecting") + busy("active") + busy("reserved") == 0 {
            return Ok(paused);
        }
        tokio::time::sleep(LOOK).await;
    }
    let seconds = GIVES_UP.as_secs();
    Err(format!("the sidecar still has requests under way after {seconds} s: try again when it is quiet"))
}

impl CalibrateArguments {
    fn pressure(&self) -> Result<Pressure, String> {
        let password = self.password_file.as_deref().map(password).transpose()?;
        Ok(Pressure {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            reference: self.reference.clone(),
            credentials: self.user.clone().zip(password),
            max: usize::from(self.max),
            step: Duration::from_secs(u64::from(self.step)),
        })
    }

    fn confirm(&self, pressure: &Pressure) -> Result<(), String> {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err("this puts pressure on the registry: add --yes to start it".to_owned());
        }
        let Pressure { registry, repository, max, .. } = pressure;
        let mut out = io::stderr();
        let asked = write!(
            out,
            "This asks registry {registry} for the manifest of {repository} over up to {max} connections at once, until it \
             shows overload.\nPulls of others may fail in that moment. Start? [y/N] "
        );
        asked.and_then(|()| out.flush()).map_err(|error| error.to_string())?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map_err(|error| error.to_string())?;
        if answer.trim().eq_ignore_ascii_case("y") { Ok(()) } else { Err("not started".to_owned()) }
    }
}

/// A part of a path that is written as it is.
fn path_part(text: &str) -> Result<String, String> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:".contains(&byte);
    let wrong = || format!("{text:?} is no name: those have letters, digits, '.', '_', '-' and '/'");
    if text.is_empty() || !text.bytes().all(is_fine) { Err(wrong()) } else { Ok(text.to_owned()) }
}

fn password(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = if file == Path::new("stdin") {
        io::stdin().lock().read_to_string(&mut text).map(|_| ())
    } else {
        std::fs::read_to_string(file).map(|held| text = held)
    };
    read.map_err(|error| format!("--password-file {}: {error}", file.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        asked: CalibrateArguments,
    }

    #[test]
    fn at_most_64_connections_are_opened_unless_the_operator_says_more() {
        let max = |more: &[&str]| {
            let line = ["calibrate", "harbor", "--repository", "team/app"];
            CommandLine::parse_from(line.iter().chain(more)).asked.pressure().unwrap().max
        };
        assert_eq!([max(&[]), max(&["--max", "100"])], [64, 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sidecar_that_keeps_its_slots_stops_the_test() {
        // Of a process before that still drains.
        let reserved = || Ok(Some(serde_json::json!({"registries": {"h": {"active": 0, "reserved": 1}}})));
        let looks = RefCell::new(0);
        let ends = || {
            *looks.borrow_mut() += 1;
            Ok((*looks.borrow() == 1).then(|| serde_json::json!({"registries": {"h": {"active": 1}}})))
        };
        let state = |active: u32| serde_json::json!({"registries": {"h": {"paused": false, "connecting": 0, "active": active}}});
        let orders = RefCell::new(Vec::new());
        let obeys = |order: &str| {
            orders.borrow_mut().push(order.to_owned());
            Ok(())
        };
        let refuses = |_: &str| Err("403".to_owned());
        let (quiet, busy, silent) =
            (|| Ok(Some(state(0))), || Ok(Some(state(1))), || Err("no answer within 5 s".to_owned()));
        let paused = async |status: &dyn Fn() -> Result<Option<Value>, String>,
                            order: &dyn Fn(&str) -> Result<(), String>| {
            pause(&LocalSidecar { status, order }, "h").await.map(|paused| paused.is_some())
        };
        assert_eq!(paused(&|| Ok(None), &refuses).await, Ok(false), "none runs here");
        assert_eq!(paused(&quiet, &obeys).await, Ok(true));
        assert!(paused(&quiet, &refuses).await.unwrap_err().contains("cannot be paused: 403"));
        assert!(paused(&silent, &obeys).await.unwrap_err().contains("does not tell its state: no answer within 5 s"));
        assert_eq!(*orders.borrow(), ["pause", "resume"]);
        for keeps in [&busy as &dyn Fn() -> Result<Option<Value>, String>, &reserved] {
            assert!(paused(keeps, &obeys).await.unwrap_err().contains("still has requests under way"));
        }
        assert!(paused(&ends, &obeys).await.unwrap_err().contains("ended meanwhile"));
        assert_eq!(*orders.borrow(), ["pause", "resume"].repeat(4));
    }
}
