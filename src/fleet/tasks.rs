//! One task for each leased registry: events go to the machine, and its words to the store and to the gate.

use std::future::Future;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{PushInfo, PushKind};
use tokio::sync::{Notify, mpsc};

use super::claim::{NodeLock, sockets_closed};
use super::lent::{Lease, LeasedGate, SlotPool, boot_time};
use super::store::{Store, StoreAddress, StoreError, StoreMessage, message};
use crate::admission::Gate;
use crate::config::{Config, Share};
use crate::lease::message::{LeaseAnswer, Process};
use crate::lease::node::Borrower;
use crate::lease::settings::LeaseConfig;

/// The longest sleep: the time of timers stops while the machine is suspended, that of leases does not.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// This process among all that lend from one store; nothing where it leases nothing.
#[derive(Debug)]
pub struct Participant(Option<(StoreAddress, Process)>);

impl Participant {
    /// Fails when a file of `[lease]` cannot be read, or the process before this one shares another way.
    pub fn new(config: &Config) -> Result<Participant, String> {
        if let Ok(before) = std::env::var(SHARES) {
            same_shares(config, &before)?;
        }
        let at = config.lease.as_ref().map(|lease| Ok((StoreAddress::new(lease)?, this_process(lease))));
        at.transpose().map(Participant).map_err(|error: StoreError| error.to_string())
    }

    /// Once there is no other process of this node, what was lent to those before is taken over, and a twin is looked for. The lock
    /// of the node lies beside the control socket. `is_alone` completes when a process that hands over has ended.
    pub async fn claim(self, control: Option<PathBuf>, leases: Vec<Arc<Lease>>, is_alone: impl Future<Output = ()>) {
        let Some((_, process)) = self.0.filter(|_| !leases.is_empty()) else { return };
        let lock = control.map(|control| NodeLock::beside(&control, &process.instance));
        is_alone.await;
        let Some(lock) = lock else {
            for lease in &leases {
                lease.is_alone();
            }
            return;
        };
        let held = match lock.get().await {
            Ok(held) => held,
            Err(error) => {
                tracing::warn!(%error, "no lock of this node: after a kill -9 its slots are idle until its lease ends");
                return;
            }
        };
        for lease in &leases {
            lease.is_alone();
        }
        let earlier = held.earlier.clone();
        let taking_over = async {
            if !earlier.is_empty() {
                sockets_closed().await;
                for lease in &leases {
                    lease.take_over(earlier.clone());
                }
            }
        };
        // As long as the process lives.
        tokio::join!(held.keep(), taking_over);
    }

    /// Starts the task of this lease, if there is one, and tells the gate of it. The level of distress is for the eyes of operators.
    pub fn take_part<P: Send + 'static>(
        &self,
        lease: &Option<Arc<Lease>>,
        gate: &Gate<P>,
        changes: &Arc<Notify>,
        distress: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        if let Some(((address, process), lease)) = self.0.clone().zip(lease.clone()) {
            gate.happen(|core, _| core.lend(lease.clone()));
            let pool = LeasedGate { gate: gate.clone(), distress: Box::new(distress) };
            let task = run(lease, Arc::new(pool), address, process, changes.clone());
            tokio::spawn(watched(task, || {
                // The log is written by another thread.
                std::thread::sleep(Duration::from_millis(100));
                std::process::abort()
            }));
        }
    }
}

/// Without its task nothing is cut when a lease is over. A process that is started anew counts what the kernel still has of this one.
async fn watched(task: impl Future<Output = ()> + Send + 'static, on_panic: impl FnOnce()) {
    if let Err(error) = tokio::spawn(task).await
        && error.is_panic()
    {
        tracing::error!(%error, "the task of a lease has failed: the process ends, so that no connection outlives its lease");
        on_panic();
    }
}

/// How the process that starts this one to take over shares each registry. It has no say in any other start.
pub const SHARES: &str = "ROADSTEAD_SHARES_BEFORE";

/// The value of [`SHARES`]: `harbor=lease,other=fixed`.
pub fn leased_registries<'a>(registries: impl Iterator<Item = (&'a str, bool)>) -> String {
    let all = registries.map(|(name, is_leased)| format!("{name}={}", if is_leased { "lease" } else { "fixed" }));
    all.collect::<Vec<_>>().join(",")
}

/// Two processes that share a registry in two ways would each use a part of its own: the old one holds what the store does not know.
fn same_shares(config: &Config, before: &str) -> Result<(), String> {
    for registry in &config.registries {
        let is_leased = registry.share == Share::LEASED;
        let other = leased_registries(std::iter::once((&*registry.name, !is_leased)));
        if before.split(',').any(|before| before == other) {
            let (now, then) = if is_leased { ("a leased", "a fixed") } else { ("a fixed", "a leased") };
            return Err(format!(
                "registries.{}.share: this is {now} share, and the running process has {then} one, so their sum could exceed the \
                 cap: end the old process before a new one starts",
                registry.name
            ));
        }
    }
    Ok(())
}

/// Its node by name, and a number that no other process has.
fn this_process(lease: &LeaseConfig) -> Process {
    use std::hash::{BuildHasher, RandomState};
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let number = || RandomState::new().hash_one((std::process::id(), boot_time()));
    let (one, other) = (number(), number());
    Process { node: lease.node_id.clone().unwrap_or_else(host), instance: format!("{one:016x}{other:016x}") }
}

type Answered = Result<Option<LeaseAnswer>, StoreError>;
type Asking = Pin<Box<dyn Future<Output = (Store, Answered)> + Send>>;

/// Speaks for this node at the store until that knows that the process holds nothing any more. `changes` is notified of whatever
/// happens at the gate, and at the end.
async fn run(
    lease: Arc<Lease>,
    pool: Arc<dyn SlotPool>,
    address: StoreAddress,
    process: Process,
    changes: Arc<Notify>,
) {
    let (store, heard) = Store::new(address, &lease.registry);
    let mut log = LeaseLog::new(&lease, &process);
    let mut borrower = Borrower::new(process, lease.terms());
    let mut events = Events { heard, asking: None, asked: Instant::now() };
    let mut idle = Some(store);
    while !borrower.has_left() {
        let mut happened = pin!(changes.notified());
        happened.as_mut().enable();
        let now = boot_time();
        settle(&mut borrower, &*pool, &lease, now);
        if let Some(mut store) = idle.take() {
            if let Some(mut request) = borrower.request(now) {
                // A promise holds before it is said.
                lease.hold(&borrower, now);
                (events.asked, request.evidence) = (Instant::now(), borrower.on_leases(lease.tally.take(pool.now())));
                let report = pool.report(request.order, borrower.is_draining());
                events.asking = Some(Box::pin(async move {
                    let answered = store.ask(&request, &report).await;
                    (store, answered)
                }));
            } else {
                idle = Some(store);
            }
        }
        let sleep = borrower.wake_at(now).saturating_sub(now).min(LONGEST_SLEEP);
        tokio::select! {
            () = happened => {}
            () = lease.told.notified() => {}
            () = tokio::time::sleep(sleep) => {}
            event = events.next() => match event {
                StoreEvent::Answered(done) => {
                    let (store, answered) = *done;
                    match &answered {
                        Ok(Some(answer)) => borrower.answer(answer, boot_time()),
                        Ok(None) => borrower.is_forgotten(boot_time()),
                        Err(_) => borrower.failed(boot_time()),
                    }
                    log.answered(&answered, events.asked.elapsed(), borrower.has_twin(boot_time()));
                    idle = Some(store);
                }
                StoreEvent::Pushed(info) => match message(&lease.registry, &info) {
                    Some(StoreMessage::Lease(push)) => borrower.push(&push),
                    Some(StoreMessage::Order(order)) => borrower.obey(order),
                    // Messages may have been lost with the connection.
                    None if info.kind == PushKind::Disconnection => borrower.ask(boot_time()),
                    None => {}
                },
            },
        }
    }
    settle(&mut borrower, &*pool, &lease, boot_time());
    changes.notify_waiters();
}

/// Orders and the use of the slots go to the machine, and what it says holds at the gate.
fn settle(borrower: &mut Borrower, pool: &dyn SlotPool, lease: &Lease, now: Duration) {
    let orders = lease.take_orders();
    let terms = lease.terms();
    let floor = terms.floor;
    borrower.change(terms);
    if orders.drain {
        borrower.drain(now);
    }
    if orders.end {
        borrower.end(now);
    }
    if orders.is_alone {
        borrower.is_alone();
    }
    if !orders.gone.is_empty() {
        borrower.others_are_gone(orders.gone);
    }
    borrower.uses(pool.usage(floor));
    let (gate_time, lowered) = (pool.now(), borrower.pool_lowered(now));
    let lowered = lowered.map(|at| gate_time.saturating_sub(now.saturating_sub(at)));
    lease.tally.hear(borrower.force(), lowered, gate_time);
    borrower.sees(lease.tally.signs());
    let surplus = borrower.surplus(now);
    if surplus > 0 {
        pool.cut(surplus);
    }
    // A lease that is given back shrinks with its use, and holds before that is said.
    while lease.hold(borrower, now) {
        pool.lending_changed();
        borrower.uses(pool.usage(floor));
    }
}

/// An event that comes from the store.
struct Events {
    heard: mpsc::UnboundedReceiver<PushInfo>,
    asking: Option<Asking>,
    asked: Instant,
}

enum StoreEvent {
    Answered(Box<(Store, Answered)>),
    Pushed(PushInfo),
}

impl Events {
    /// Cancel-safe: a request goes on being asked.
    async fn next(&mut self) -> StoreEvent {
        let Events { heard, asking, .. } = self;
        let answer = async {
            match asking {
                Some(asking) => asking.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            (store, answered) = answer => {
                self.asking = None;
                StoreEvent::Answered(Box::new((store, answered)))
            }
            Some(info) = heard.recv() => StoreEvent::Pushed(info),
        }
    }
}

/// Tells the operator when the store begins or ends to answer, and to learn.
struct LeaseLog {
    lease: Arc<Lease>,
    node: String,
    was_answered: Option<bool>,
    was_learning: bool,
    had_twin: bool,
}

impl LeaseLog {
    fn new(lease: &Arc<Lease>, process: &Process) -> LeaseLog {
        let (lease, node) = (lease.clone(), process.node.clone());
        LeaseLog { lease, node, was_answered: None, was_learning: false, had_twin: false }
    }

    fn twin(&mut self, has_twin: bool) {
        if has_twin && !self.had_twin {
            tracing::warn!(
                registry = self.lease.registry,
                node = self.node,
                "another process renews its lease by the name of this node: a second sidecar with the same lease.node_id, or an old one \
                 that still drains"
            );
        }
        self.had_twin = has_twin;
    }

    fn answered(&mut self, answered: &Answered, latency: Duration, has_twin: bool) {
        self.twin(has_twin);
        let registry = &self.lease.registry;
        self.lease.answered(latency, answered.as_ref().err().map(ToString::to_string));
        let is_answered = answered.is_ok();
        if self.was_answered.replace(is_answered) != Some(is_answered) {
            match answered {
                Ok(_) => tracing::info!(registry, "the lease store answers"),
                Err(error) => {
                    tracing::warn!(registry, %error, "the lease store does not answer: work goes on inside what is held");
                }
            }
        }
        let is_learning = matches!(answered, Ok(Some(answer)) if answer.learning > 0);
        if is_learning && !self.was_learning {
            tracing::warn!(
                registry,
                "the lease store is new, or was restarted: nothing new is lent until older leases have ended"
            );
        }
        self.was_learning = is_learning;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_of_a_lease_that_panics_ends_the_process() {
        for panics in [false, true] {
            let mut has_ended = false;
            watched(async move { assert!(!panics, "on purpose") }, || has_ended = true).await;
            assert_eq!(has_ended, panics);
        }
    }
}
