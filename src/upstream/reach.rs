//! The way to one registry, step by step: resolve, wait for admission, dial one address.
//!
//! Names are resolved before admission, never on a slot. Each `connect()` has an admission of its own; a dial that failed
//! gives its slot back, and the request waits on in its old place, until its deadline. The caller owns the loop over the
//! steps; there is no other. One that holds much asks first, with [`Upstream::ask`]: where the answer does not come at once, it
//! lets go of what it can, waits with [`Upstream::turn`], and goes on with a step, which takes the answer from there.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::attempt::Attempt;
use super::cluster::NodePermit;
use super::connect::{self, DialError, Established};
use super::endpoints::Round;
use super::failure::Failure;
use super::http::PooledConnection;
use super::registry::Upstream;
use super::turn::PendingAdmission;
use crate::admission::{Admission, AdmissionRequest, Refusal, Slot, SlotEvent, SlotUse};
use crate::backoff::Backoff;
use crate::distress::Cause;
use crate::fleet::lent::Lease;

/// The pauses before a name that could not be resolved is looked up again.
const LOOKUP_PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
/// The pause between two rounds in which a node took the connection and could not prove itself.
const UNTRUSTED_PAUSE: Duration = Duration::from_millis(500);

/// A way to the registry.
#[derive(Debug)]
pub enum Connected {
    /// A new connection, which has carried nothing.
    New(Established),
    /// A connection that was pooled.
    Pooled(PooledConnection),
}

impl Upstream {
    /// Gets a tunnel to the registry. Cancel-safe: a caller whose client has left drops the future.
    /// Fails when its patience ends, or nothing allowed answers.
    pub async fn reach(&self, attempt: &mut Attempt) -> Result<Connected, Failure> {
        loop {
            if let Some(connected) = self.step(attempt).await? {
                return Ok(connected);
            }
        }
    }

    /// One step: one admission, and one dial where it gives a slot. `None`: another step is due. Cancel-safe like
    /// [`Upstream::reach`].
    /// Fails when its patience ends, or nothing allowed answers.
    pub async fn step(&self, attempt: &mut Attempt) -> Result<Option<Connected>, Failure> {
        tokio::select! {
            biased;
            step = self.step_in_time(attempt) => step,
            () = self.ended.cancelled() => Err(Failure::Draining),
        }
    }

    async fn step_in_time(&self, attempt: &mut Attempt) -> Result<Option<Connected>, Failure> {
        let Some(mut round) = self.round(attempt).await? else { return Ok(None) };
        let slot = match self.admit(attempt).await {
            Ok(Admission::New(slot)) => slot,
            Ok(Admission::Kept(pooled)) => {
                let is_held = self.is_held(attempt, pooled.node);
                // A probe of one node of several needs a connection of its own.
                if is_held && attempt.is_probe() {
                    attempt.reuse = None;
                }
                return Ok((!is_held).then_some(Connected::Pooled(pooled)));
            }
            // Its patience ended in the queue, but what kept it from being served is the dials that failed.
            Err(refusal) => {
                let dial = round.failed.map(Failure::from).or(attempt.progress.failed.take().map(|failed| *failed));
                return Err(dial.unwrap_or_else(|| attempt.refused(refusal)));
            }
        };
        // On the heap, for its own time only: with TLS it is larger than everything that a waiting request needs.
        match Box::pin(self.dial(slot, &mut round, attempt)).await {
            Some(connected) => Ok(Some(connected)),
            None if round.any_left() => {
                attempt.progress.round = Some(round);
                Ok(None)
            }
            None => self.round_failed(round, attempt).await,
        }
    }

    /// The addresses that are left to try, resolved if need be; `None` when another step is due.
    async fn round(&self, attempt: &mut Attempt) -> Result<Option<Round>, Failure> {
        let round = match attempt.progress.round.take() {
            Some(round) => round,
            None => match self.endpoints(attempt).await {
                Ok(round) => round,
                Err(failure) => return Box::pin(self.unresolved(failure, attempt)).await.map(|_| None),
            },
        };
        Ok(Some(round).filter(Round::any_left))
    }

    /// Dials the next address. `None` when it does not take the connection, or when its node has no slot of its own left.
    async fn dial(&self, slot: Slot, round: &mut Round, attempt: &mut Attempt) -> Option<Connected> {
        // A node slot that comes back from now on is told to the gate after this, and the request is tried again.
        let is_full = || slot.tell(SlotEvent::NodeFull);
        let Some(endpoint) = round.next(self.slots_of_each.filter(|_| self.may_hold()), is_full, self.gate.now())
        else {
            if let Some((cluster, node)) = attempt.destination.cluster.as_ref().zip(attempt.destination.node) {
                let slots = cluster.slots_of(node);
                self.gate.happen(|core, now| core.reclaim_among(&slots, &attempt.name, now));
            }
            return None;
        };
        let may_stand = || !Lease::is_over(self.lease.as_deref(), &self.gate);
        if !may_stand() || self.is_held(attempt, endpoint.node_permit.as_ref().map(NodePermit::index)) {
            return None;
        }
        let failed = |error: &_, slot: &_, node: Option<&_>| self.dial_failed(error, slot, node, round, attempt);
        let once_connected = attempt.once_connected();
        let tools = (&*self.tls, &self.metrics);
        match connect::dial(slot, endpoint, once_connected, self.terms, tools, may_stand, failed).await {
            Ok(None) => None,
            Ok(Some((established, took))) => {
                attempt.progress.connect = Some(took);
                // Of a tunnel, nothing else shows that the registry is well.
                if attempt.kind == SlotUse::Tunnel {
                    self.adapt.good(None, &self.gate);
                }
                if connect::socket_of(&established).node_permit().is_some_and(NodePermit::dialled) {
                    self.nodes_changed(&attempt.destination);
                }
                Some(Connected::New(established))
            }
            Err(error) => {
                round.note(error);
                None
            }
        }
    }

    /// Every address was tried once. Another round follows where a moment later may be better.
    async fn round_failed(&self, round: Round, attempt: &mut Attempt) -> Result<Option<Connected>, Failure> {
        let Some(error) = round.failed else { return Ok(None) };
        if round.untrusted && !error.is_final() && self.may_hold() {
            // A node took the connection, so the gate knows of no outage.
            self.pause_until(attempt.deadline.min(self.gate.now() + UNTRUSTED_PAUSE)).await?;
        }
        self.try_again_after(error.into(), attempt)
    }

    async fn unresolved(&self, failure: Failure, attempt: &mut Attempt) -> Result<Option<Connected>, Failure> {
        if !matches!(failure, Failure::Unknown(_)) || !self.may_hold() {
            return Err(failure);
        }
        attempt.progress.lookups_failed += 1;
        let due = self.gate.now() + LOOKUP_PAUSES.after(attempt.progress.lookups_failed);
        self.pause_until(due.min(attempt.deadline)).await?;
        self.try_again_after(failure, attempt)
    }

    fn try_again_after(&self, failure: Failure, attempt: &mut Attempt) -> Result<Option<Connected>, Failure> {
        if !self.may_hold() || !failure.may_pass() || self.gate.now() >= attempt.deadline {
            return Err(failure);
        }
        let target = &attempt.destination.target;
        tracing::debug!(registry = self.name, %target, error = %failure, "will try again");
        attempt.progress.failed = Some(Box::new(failure));
        Ok(None)
    }

    /// Tells the node and the gate of a failed dial.
    fn dial_failed(&self, error: &DialError, slot: &Slot, node: Option<&NodePermit>, round: &Round, attempt: &Attempt) {
        let destination = &attempt.destination;
        if error.is_ours() {
            tracing::warn!(registry = self.name, %error, "no descriptor is left for a dial");
            return;
        }
        if node.is_some_and(|node| round.is_spent(node) && node.failed(self.gate.now())) {
            self.nodes_changed(destination);
        }
        // A node without a valid certificate accepts connections all the same.
        if error.is_final() {
            return;
        }
        // Of a registry, the last failure counts; other hosts have nothing in common.
        let nobody_left = match &destination.cluster {
            Some(cluster) if destination.node.is_none() => cluster.living() == 0,
            _ => !round.any_left(),
        };
        let is_out = nobody_left && self.may_hold();
        slot.tell(if is_out { SlotEvent::Unreachable } else { SlotEvent::DialRefused });
        if is_out || nobody_left && self.observed.is_some() {
            self.note(Cause::FailedDial, self.repair.key(&[attempt.name.as_bytes()]));
        }
    }

    async fn admit(&self, attempt: &mut Attempt) -> Result<Admission<PooledConnection>, Refusal> {
        let mut asked = attempt.progress.asked.take().unwrap_or_else(|| Box::new(self.ask_for_admission(attempt)));
        let is_turn = asked.is_turn().await;
        attempt.queued.fetch_or(!is_turn, Ordering::Relaxed);
        let admitted = if asked.is_held && !is_turn {
            Box::pin(self.admit_held(attempt, &mut asked)).await
        } else {
            asked.admitted().await
        };
        attempt.progress.waited += asked.since.elapsed();
        admitted
    }

    fn ask_for_admission(&self, attempt: &mut Attempt) -> PendingAdmission {
        let is_held = self.held_until(attempt).is_some() || attempt.needs_permit();
        let request = AdmissionRequest {
            place: attempt.place,
            deadline: attempt.deadline,
            principal: attempt.principal.clone(),
            lane: attempt.lane,
            target: attempt.name.clone(),
            reuse: attempt.reuse.clone(),
            held: is_held,
            label: attempt.label.clone(),
        };
        if let Some(ticket) = attempt.progress.ticket.take() {
            ticket.spend();
        }
        PendingAdmission::new(self.gate.admit(request), is_held)
    }

    /// Resolves the name and asks for admission, ahead of the first step. Tells whether there is something to do at once; if
    /// not, [`Upstream::turn`] completes when there is. Cancel-safe like [`Upstream::step`].
    /// Fails as that does.
    pub async fn ask(&self, attempt: &mut Attempt) -> Result<bool, Failure> {
        tokio::select! {
            biased;
            asked = self.ask_in_time(attempt) => asked,
            () = self.ended.cancelled() => Err(Failure::Draining),
        }
    }

    async fn ask_in_time(&self, attempt: &mut Attempt) -> Result<bool, Failure> {
        let Some(round) = self.round(attempt).await? else { return Ok(true) };
        attempt.progress.round = Some(round);
        let mut asked = Box::new(self.ask_for_admission(attempt));
        let is_answered = asked.is_held || asked.is_turn().await;
        attempt.progress.asked = Some(asked);
        attempt.queued.fetch_or(!is_answered, Ordering::Relaxed);
        Ok(is_answered)
    }

    /// Waits for the admission that was asked for, or for the end of the process: the next step says which.
    pub async fn turn(&self, attempt: &mut Attempt) {
        let Some(asked) = &mut attempt.progress.asked else { return };
        tokio::select! {
            biased;
            () = asked.turn() => {}
            () = self.ended.cancelled() => {}
        }
    }
}
