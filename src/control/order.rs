//! Sends orders to a running sidecar, as `roadstead pause`, `resume` and `reload` do.

use std::path::Path;

use serde_json::Value;

use super::address::{config_file, listen_of};
use super::socket::usual_path;
use super::{ask, token};
use crate::config::ListenConfig;
use crate::fleet::command::{self as fleet, FleetProblem};

#[derive(Debug, clap::Args)]
pub struct RegistryOrder {
    /// The registry, as the config names it.
    registry: String,

    /// On all nodes, through the store of leases: needs share = "lease".
    #[arg(long, conflicts_with = "admin")]
    fleet: bool,

    #[command(flatten)]
    to: OrderTarget,
}

#[derive(Debug, clap::Args)]
pub struct OrderTarget {
    /// Send the order to this admin listener, http://HOST:PORT, with the token of the config [default: to the
    /// control socket, listen.control or /run/roadstead/control.sock; where there is none, to listen.admin with the token].
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
}

/// An order that was not carried out: whether it was wrong usage, and the reason.
#[derive(Debug)]
pub struct Unsent {
    pub is_usage: bool,
    pub told: String,
}

impl From<FleetProblem> for Unsent {
    fn from(problem: FleetProblem) -> Unsent {
        Unsent { is_usage: matches!(problem, FleetProblem::Usage(_)), told: problem.to_string() }
    }
}

impl RegistryOrder {
    /// Pauses or resumes; the line that tells so.
    pub fn give(&self, action: &str, file: Option<&Path>) -> Result<String, Unsent> {
        let registry = &self.registry;
        // Nothing else is a registry's name, and not every other text would be one path.
        if registry.is_empty() || !registry.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
        {
            let told = format!("{registry:?} is no registry's name: those have a-z, 0-9, _ and - only");
            return Err(Unsent { is_usage: true, told });
        }
        if self.fleet {
            return Ok(fleet::order(config_file(file), registry, action)?);
        }
        self.to.send(&format!("/registries/{registry}/{action}"), file)?;
        Ok(format!("registry {registry}: {action}d\n"))
    }
}

impl OrderTarget {
    /// Lets the config be read again; the line that tells so.
    pub fn reload(&self, file: Option<&Path>) -> Result<String, Unsent> {
        let answer = self.send("/reload", file)?;
        let answer: Value =
            serde_json::from_str(&answer).map_err(|error| Unsent { is_usage: false, told: error.to_string() })?;
        let changes = &answer["changes"];
        let noun = if *changes == 1 { "change" } else { "changes" };
        Ok(format!("the config was read again: {changes} {noun}\n"))
    }

    fn send(&self, path: &str, file: Option<&Path>) -> Result<String, Unsent> {
        send(listen_of(file), self.admin.as_deref(), path)
    }
}

/// Sends an order on the control socket; or with the token, to the listener that is named, or where there is no socket.
/// Returns the answer.
/// Fails when nobody takes it.
pub fn send(listen: Result<ListenConfig, String>, admin: Option<&str>, path: &str) -> Result<String, Unsent> {
    let [usage, failed] = [true, false].map(|is_usage| move |told| Unsent { is_usage, told });
    let with_token = |admin: &str, listen: &ListenConfig| {
        let token = listen.control_token_file.as_deref().map(token).transpose()?;
        ask::post(admin, path, token.as_deref())
    };
    let (place, (status, body)) = if let Some(url) = admin {
        let admin = ask::authority(url).map_err(usage)?;
        (admin.to_owned(), with_token(admin, &listen.unwrap_or_default()).map_err(failed)?)
    } else {
        let listen = listen.map_err(usage)?;
        let (socket, admin) = (listen.control.clone().unwrap_or_else(usual_path), listen.admin.to_string());
        match ask::on(&socket, "POST", path) {
            Err(_) if listen.control_token_file.is_some() => {
                (admin.clone(), with_token(&admin, &listen).map_err(failed)?)
            }
            answer => (socket.display().to_string(), answer.map_err(failed)?),
        }
    };
    if status == 200 { Ok(body) } else { Err(failed(format!("{place} answered {status}: {}", body.trim()))) }
}
