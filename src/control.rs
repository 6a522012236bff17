//! Guarded control: orders that change a running sidecar, and who may give them.
//!
//! An order is a POST: on the control socket from root or the user of this process, or on the admin listener with the token of
//! `listen.control_token_file`. Neither a page in a browser nor another pod on the node has one of these. `admin` serves both
//! and asks here; `app` opens the socket and carries out reloads.
//!
//! | promise | test |
//! |---|---|
//! | another user of the node cannot pause | `control::only_root_and_the_own_user_may_order_on_the_socket` |
//! | on TCP nothing changes without the token | `control::on_tcp_only_the_token_orders` |

pub mod address;
pub mod ask;
pub mod config_facts;
pub mod order;
pub mod signals;
pub mod socket;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{AUTHORIZATION, HeaderMap};
use hyper::{Method, Request, StatusCode};
use ring::digest::{SHA256, digest};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::admission::core::Core;
use crate::lease::borrowed::Lent;
use crate::proxy::Proxy;
use crate::upstream::Upstream;

/// How long a reload may take to be answered. A process that is about to end does not read its config any more.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(4);
/// Shorter tokens can be tried out.
const MIN_TOKEN: usize = 16;

const NEED: &str = "orders come on the control socket (listen.control), as `roadstead pause` sends them, or with the header \
                    Authorization: Bearer and the token of listen.control_token_file\n";

/// The sender of a request to the admin pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A connection to the admin listener.
    Tcp,
    /// A user who may order, on the control socket.
    Permitted(u32),
    /// Any other user on the control socket.
    Stranger(u32),
}

/// An order that was carried out.
#[derive(Debug)]
pub enum Done {
    /// This registry was paused or resumed.
    Registry(Arc<Upstream>),
    /// The config was read again, with so many changes.
    Reloaded(usize),
}

/// An order that was not carried out: the status of the answer, and the reason.
#[derive(Debug, PartialEq, Eq)]
pub struct Denied(pub StatusCode, pub String);

/// The answer to an order to reload is awaited: the number of changes, or why the config was refused.
pub type ReloadAsked = oneshot::Sender<Result<usize, String>>;

/// Judges and carries out orders.
#[derive(Debug)]
pub struct Control {
    token_file: Option<PathBuf>,
    reloads: mpsc::Sender<ReloadAsked>,
}

impl Control {
    pub fn new(token_file: Option<PathBuf>) -> (Control, mpsc::Receiver<ReloadAsked>) {
        let (reloads, asked) = mpsc::channel(1);
        (Control { token_file, reloads }, asked)
    }

    /// Carries out the order of this request.
    /// Fails with the answer to give when it is none, or its sender may not give it.
    pub async fn obey<B>(&self, request: &Request<B>, proxy: &Proxy, sender: Sender) -> Result<Done, Denied> {
        if request.method() != Method::POST {
            return denied(StatusCode::METHOD_NOT_ALLOWED, "POST only\n");
        }
        let by = self.judge(request.headers(), sender)?;
        let path = request.uri().path();
        if path == RELOAD {
            return self.reload(&by).await;
        }
        let Some((name, action)) = path.strip_prefix(REGISTRIES).and_then(|rest| rest.split_once('/')) else {
            return denied(StatusCode::NOT_FOUND, "the orders are /reload, /registries/NAME/pause and /resume\n");
        };
        let settings = proxy.settings();
        let Some(upstream) = settings.routes.registries().find(|upstream| upstream.name == name).cloned() else {
            let mut names: Vec<&str> = settings.routes.registries().map(|upstream| upstream.name.as_str()).collect();
            names.sort_unstable();
            return denied(StatusCode::NOT_FOUND, &format!("no such registry; there is {}\n", names.join(", ")));
        };
        match action {
            "pause" => upstream.gate.happen(Core::pause),
            "resume" => upstream.gate.happen(Core::resume),
            _ => return denied(StatusCode::NOT_FOUND, "a registry can pause and resume\n"),
        }
        tracing::info!(registry = name, action, by, "paused or resumed by the operator");
        if action == "resume" && upstream.lease.as_ref().is_some_and(|lease| lease.is_paused()) {
            let cure = format!("`roadstead resume {name} --fleet` lets them go on");
            return denied(
                StatusCode::CONFLICT,
                &format!("this node is not paused any more, but all nodes are: {cure}\n"),
            );
        }
        Ok(Done::Registry(upstream))
    }

    /// The sender's name for the log, or why this sender may not.
    fn judge(&self, headers: &HeaderMap, sender: Sender) -> Result<String, Denied> {
        match sender {
            Sender::Permitted(uid) => return Ok(format!("uid {uid}")),
            Sender::Stranger(uid) => return Err(stranger(uid)),
            Sender::Tcp => {}
        }
        let Some(file) = &self.token_file else { return denied(StatusCode::FORBIDDEN, NEED) };
        // Read each time: a secret is exchanged under its name.
        let token = token(file).map_err(|problem| {
            tracing::error!("an order was refused: {problem}");
            Denied(StatusCode::FORBIDDEN, "the token cannot be read here; the log says why\n".to_owned())
        })?;
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '));
        match given {
            // Digests take the same time to compare, wherever the tokens differ.
            Some((scheme, given)) if scheme.eq_ignore_ascii_case("bearer") && same(given.trim(), &token) => {
                Ok("token".to_owned())
            }
            _ => denied(StatusCode::FORBIDDEN, NEED),
        }
    }

    async fn reload(&self, by: &str) -> Result<Done, Denied> {
        tracing::info!(by, "a reload was ordered");
        let (asked, answer) = oneshot::channel();
        let answered = async {
            self.reloads.send(asked).await.ok()?;
            answer.await.ok()
        };
        match timeout(RELOAD_TIMEOUT, answered).await.ok().flatten() {
            Some(Ok(changes)) => Ok(Done::Reloaded(changes)),
            Some(Err(refused)) => denied(StatusCode::CONFLICT, &format!("the config was refused: {refused}\n")),
            None => {
                denied(StatusCode::SERVICE_UNAVAILABLE, "this process reads no config now: it ends, or hands over\n")
            }
        }
    }
}

const RELOAD: &str = "/reload";
const REGISTRIES: &str = "/registries/";

/// Whether this path is one of orders.
pub fn is_order(path: &str) -> bool {
    path == RELOAD || path.starts_with(REGISTRIES)
}

/// The answer to a user who may neither order nor read on the socket.
pub fn stranger(uid: u32) -> Denied {
    Denied(StatusCode::FORBIDDEN, format!("uid {uid} may not use this socket: root and the user of this process may\n"))
}

/// The token that this file holds.
/// Fails, in words, when it cannot be read, or could be tried out.
pub fn token(file: &Path) -> Result<String, String> {
    let name = file.display();
    let held = std::fs::read_to_string(file).map_err(|error| format!("listen.control_token_file: {name}: {error}"))?;
    let token = held.trim();
    if token.len() < MIN_TOKEN {
        return Err(format!("listen.control_token_file: {name} has to hold a token of {MIN_TOKEN} bytes or more"));
    }
    Ok(token.to_owned())
}

fn same(one: &str, other: &str) -> bool {
    digest(&SHA256, one.as_bytes()).as_ref() == digest(&SHA256, other.as_bytes()).as_ref()
}

fn denied<T>(status: StatusCode, told: &str) -> Result<T, Denied> {
    Err(Denied(status, told.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_judged_by_its_user_or_by_the_token() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "0123456789abcdef\n").unwrap();
        let judge = |file: Option<&Path>, given: Option<&str>, sender| {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                headers.insert(AUTHORIZATION, given.parse().unwrap());
            }
            let (control, _) = Control::new(file.map(Path::to_owned));
            control.judge(&headers, sender).map_err(|Denied(status, _)| status.as_u16())
        };
        assert_eq!(judge(None, None, Sender::Permitted(0)), Ok("uid 0".to_owned()));
        assert_eq!(judge(Some(&file), Some("Bearer 0123456789abcdef"), Sender::Stranger(7)), Err(403));
        for given in ["Bearer 0123456789abcdef", "bearer  0123456789abcdef "] {
            assert_eq!(judge(Some(&file), Some(given), Sender::Tcp), Ok("token".to_owned()), "{given}");
            assert_eq!(judge(None, Some(given), Sender::Tcp), Err(403), "no file: {given}");
        }
        for given in
            ["Bearer", "Bearer ", "Bearer 0123456789abcdeg", "Bearer 0123456789abcdef0", "Basic 0123456789abcdef"]
        {
            assert_eq!(judge(Some(&file), Some(given), Sender::Tcp), Err(403), "{given}");
        }
        assert_eq!(judge(Some(&file), None, Sender::Tcp), Err(403));
        // A file that lost its content opens nothing.
        for held in ["", "\n", "0123456789abcde"] {
            std::fs::write(&file, held).unwrap();
            for given in ["Bearer ", "Bearer 0123456789abcde"] {
                assert_eq!(judge(Some(&file), Some(given), Sender::Tcp), Err(403), "{held:?}");
            }
        }
    }
}
