//! Sends orders to a running sidecar, as `roadstead pause`, `resume` and `reload` do.

use super::socket::usual_path;
use super::{ask, token};
use crate::config::ListenConfig;

/// An order that was not carried out: whether it was wrong usage, and the reason.
#[derive(Debug)]
pub struct Unsent {
    pub is_usage: bool,
    pub told: String,
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
