//! Visible requests are held while what stands behind a registry's gateway does not answer; see
//! [`gateway`](crate::repair::gateway). Those that are asked again in distress are held until they get one of the few
//! [permits](crate::repair::reasks).
//!
//! A held request waits in the queue of the gate like any other, and is not admitted before it is let go. Once it is
//! admitted it is asked again: what was admitted before the outage was known gives its slot back. Tunnels are not held.

use std::pin::pin;
use std::sync::Arc;

use hyper::StatusCode;
use tokio::time::sleep_until;

use super::attempt::{Attempt, Hold};
use super::http::PooledConnection;
use super::registry::Upstream;
use super::turn::PendingAdmission;
use crate::admission::{Admission, Moment, Refusal, SlotUse};
use crate::distress::Cause;
use crate::repair::gateway::Passage;
use crate::repair::memory::Key;

type Admitted = Result<Admission<PooledConnection>, Refusal>;

impl Upstream {
    /// Lets a held request go once it may, and waits on until it is admitted.
    pub(super) async fn admit_held(&self, attempt: &mut Attempt, asked: &mut PendingAdmission) -> Admitted {
        loop {
            let mut change = pin!(self.repair.gateways.change());
            change.as_mut().enable();
            let Some(due) = self.held_until(attempt) else { break };
            tokio::select! {
                admitted = asked.admitted() => return admitted,
                () = change => {}
                () = sleep_until(self.instant(due)) => {}
            }
        }
        if attempt.needs_permit() {
            tokio::select! {
                admitted = asked.admitted() => return admitted,
                permit = self.repair.reasks.take(attempt.place, self.gate.snapshot().slots / 2) => {
                    attempt.progress.permit = Some(permit);
                }
            }
        }
        self.gate.let_go(&[attempt.place]);
        asked.admitted().await
    }

    /// Until when the request is held, if nothing changes before: `None` where one of the URLs to which it may go answers,
    /// or where it is to find out whether one does.
    pub(super) fn held_until(&self, attempt: &mut Attempt) -> Option<Moment> {
        let gateways = &self.repair.gateways;
        if attempt.kind == SlotUse::Tunnel || attempt.is_probe() || gateways.is_quiet() || !self.may_hold() {
            return None;
        }
        let urls = urls_of(attempt);
        let mut hold = attempt.progress.hold.take().unwrap_or_else(|| {
            let (repair, gate) = (self.repair.clone(), self.gate.clone());
            Box::new(Hold { repair, gate, place: attempt.place, urls, probes: None })
        });
        // One that has found out once does not do so again where it can go elsewhere.
        if attempt.progress.has_probed && hold.urls.iter().any(|url| !gateways.holds(url, attempt.place)) {
            return None;
        }
        let now = self.gate.now();
        let passages: Vec<Passage> = hold.urls.iter().map(|url| gateways.passage(url, attempt.place, now)).collect();
        hold.probes = passages.iter().position(|passage| *passage == Passage::Probe);
        if hold.probes.is_none() && passages.contains(&Passage::Free) {
            return None;
        }
        let is_held = hold.probes.is_none();
        attempt.progress.hold = Some(hold);
        let due = passages.iter().filter_map(|passage| match passage {
            Passage::Held(due) => *due,
            Passage::Free | Passage::Probe => None,
        });
        is_held.then(|| due.min().unwrap_or(attempt.deadline).min(attempt.deadline))
    }

    /// Whether the request may not go to this node now; without nodes, to its target.
    pub(super) fn is_held(&self, attempt: &Attempt, node: Option<usize>) -> bool {
        if attempt.kind == SlotUse::Tunnel || self.repair.gateways.is_quiet() || !self.may_hold() {
            return false;
        }
        let url = url_of(attempt, node);
        match attempt.progress.hold.as_deref() {
            Some(Hold { probes: Some(probed), urls, .. }) => urls[*probed] != url,
            _ => self.repair.gateways.holds(&url, attempt.place),
        }
    }

    /// Notes what came of a request to `path` that was sent to this node: the status of the answer, or that there was none.
    pub fn answered(&self, attempt: &mut Attempt, node: Option<usize>, status: Option<StatusCode>, path: Key) {
        let gateways = &self.repair.gateways;
        let is_probe = attempt.is_probe();
        let is_bad = match status.map(|status| status.as_u16()) {
            Some(502..=504) => true,
            Some(..=499) => false,
            _ if is_probe => true,
            _ => return,
        };
        // Nothing is held where the registry is only observed.
        if !self.repair.enabled || !is_bad && gateways.is_quiet() || !self.may_hold() {
            return;
        }
        let (url, now) = (url_of(attempt, node), self.gate.now());
        if is_bad {
            attempt.progress.has_probed |= is_probe;
            if gateways.answered_badly(&url, attempt.place, path, now) {
                self.note(Cause::Outage, self.repair.key(&[url.as_bytes()]));
                tracing::debug!(registry = self.name, %url, "nothing answers behind the gateway: requests are held");
            }
        } else if let Some(held) = gateways.answered_well(&url) {
            tracing::info!(registry = self.name, %url, "the registry answers again");
            self.gate.let_go(&held);
        }
        attempt.progress.hold = None;
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
