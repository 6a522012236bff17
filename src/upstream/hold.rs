//! Visible requests are held while what stands behind a registry's gateway does not answer; see
//! [`gateway`](crate::repair::gateway).
//!
//! A held request has no place in the queue of the gate and holds nothing. It is asked before each step, and again once it
//! is admitted: what was admitted before the outage was known gives its slot back. Tunnels are not held.

use std::pin::pin;
use std::sync::Arc;

use hyper::StatusCode;
use tokio::time::timeout_at;

use super::attempt::{Attempt, Hold};
use super::failure::Failure;
use super::registry::Upstream;
use crate::admission::SlotUse;
use crate::distress::Cause;
use crate::repair::gateway::Passage;
use crate::repair::memory::Key;

impl Upstream {
    /// Waits until one of the URLs to which the request may go answers, or the request is to find out whether one does.
    pub(super) async fn pass_gateways(&self, attempt: &mut Attempt) -> Result<(), Failure> {
        let gateways = &self.repair.gateways;
        let is_probe = attempt.hold.as_ref().is_some_and(|hold| hold.probes.is_some());
        if attempt.kind == SlotUse::Tunnel || is_probe || gateways.is_quiet() {
            return Ok(());
        }
        let mut hold = Hold {
            repair: self.repair.clone(),
            gate: self.gate.clone(),
            place: attempt.place,
            urls: urls_of(attempt),
            probes: None,
        };
        loop {
            let mut change = pin!(gateways.change());
            change.as_mut().enable();
            let now = self.gate.now();
            // One that has found out once does not do so again where it can go elsewhere.
            if attempt.has_probed && hold.urls.iter().any(|url| !gateways.holds(url, attempt.place)) {
                return Ok(());
            }
            let passages: Vec<Passage> =
                hold.urls.iter().map(|url| gateways.passage(url, attempt.place, now)).collect();
            hold.probes = passages.iter().position(|passage| *passage == Passage::Probe);
            if hold.probes.is_some() {
                attempt.hold = Some(hold);
                return Ok(());
            }
            if passages.contains(&Passage::Free) {
                return Ok(());
            }
            if now >= attempt.deadline {
                return Err(attempt.failed.take().unwrap_or_else(|| Failure::NoAnswerBehind(hold.urls[0].to_string())));
            }
            let due = passages.iter().filter_map(|passage| match passage {
                Passage::Held(due) => *due,
                Passage::Free | Passage::Probe => None,
            });
            let until = self.instant(due.min().unwrap_or(attempt.deadline).min(attempt.deadline));
            let _ = timeout_at(until, change).await;
        }
    }

    /// Whether the request may not go to this node now; without nodes, to its target.
    pub(super) fn is_held(&self, attempt: &Attempt, node: Option<usize>) -> bool {
        if attempt.kind == SlotUse::Tunnel || self.repair.gateways.is_quiet() {
            return false;
        }
        let url = url_of(attempt, node);
        match &attempt.hold {
            Some(Hold { probes: Some(probed), urls, .. }) => urls[*probed] != url,
            _ => self.repair.gateways.holds(&url, attempt.place),
        }
    }

    /// Notes what came of a request to `path` that was sent to this node: the status of the answer, or that there was none.
    pub fn answered(&self, attempt: &mut Attempt, node: Option<usize>, status: Option<StatusCode>, path: Key) {
        let gateways = &self.repair.gateways;
        let is_probe = attempt.hold.is_some();
        let is_bad = match status.map(|status| status.as_u16()) {
            Some(502..=504) => true,
            Some(..=499) => false,
            _ if is_probe => true,
            _ => return,
        };
        if !self.repair.enabled || !is_bad && gateways.is_quiet() {
            return;
        }
        let (url, now) = (url_of(attempt, node), self.gate.now());
        if is_bad {
            attempt.has_probed |= is_probe;
            if gateways.answered_badly(&url, attempt.place, path, now) {
                self.repair.note(Cause::Outage, self.repair.key(&[url.as_bytes()]), now);
                tracing::debug!(registry = self.name, %url, "nothing answers behind the gateway: requests are held");
            }
        } else if gateways.answered_well(&url) {
            tracing::info!(registry = self.name, %url, "the registry answers again");
        }
        attempt.hold = None;
    }
}

/// The URLs to which a request may go.
fn urls_of(attempt: &Attempt) -> Vec<Arc<str>> {
    match (&attempt.destination.cluster, attempt.destination.node) {
        (Some(cluster), None) => (0..cluster.origins().len()).map(|node| url_of(attempt, Some(node))).collect(),
        (_, node) => vec![url_of(attempt, node)],
    }
}

fn url_of(attempt: &Attempt, node: Option<usize>) -> Arc<str> {
    match attempt.destination.cluster.as_ref().zip(node) {
        Some((cluster, node)) => cluster.origins()[node].to_string().into(),
        None => attempt.name.clone(),
    }
}
