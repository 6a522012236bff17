//! Watches one tunnel: follows its records, tells the gate when it lies quiet, and answers when it is asked to close.
//!
//! The gate is told only of silences that have lasted a little, so that a tunnel that moves costs it nothing. A reclaim is
//! answered after a last look: at the client's socket, at the registry's, and at what the client has not
//! acknowledged. A client that takes nothing for as long as a request may stall keeps its tunnel no longer.
//!
//! While client and registry shake hands, the slot counts as connecting: handshakes are what burdens a server most.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use super::follow::{Doing, Follower};
use crate::admission::{Evidence, Moment, Quiet, SlotEvent, SlotState};
use crate::kernel;
use crate::reclaim::Pauses;
use crate::tcp;
use crate::upstream::socket::Socket;

/// Silences that are shorter are not worth a word.
const WORTH_TELLING: Duration = Duration::from_millis(50);
/// And of a handshake: pullers give it no longer.
const LONGEST_HANDSHAKE: Duration = Duration::from_secs(10);
/// The longest pause before a tunnel that could not go is looked at again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is known of one tunnel.
pub struct Watch<'a> {
    registry: &'a Socket,
    client: &'a TcpStream,
    pauses: Pauses,
    /// What the gate's time counts from.
    epoch: Instant,
    follower: Mutex<Follower>,
    /// Whether the gate believes that it lies quiet, as it does of a tunnel that has just been opened.
    told: AtomicBool,
    /// Whether client and registry shake hands.
    handshaking: AtomicBool,
    /// Whether bytes for the client are on their way to the kernel.
    handing: AtomicBool,
    moved: Notify,
}

/// Bytes that a client does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Jam {
    bytes: u32,
    /// When the last byte had moved: what moves after it is another jam.
    behind: Duration,
    since: Instant,
}

impl<'a> Watch<'a> {
    /// Watches a tunnel that stands now.
    pub fn new(client: &'a TcpStream, registry: &'a Socket, pauses: Pauses, epoch: Instant) -> Watch<'a> {
        Watch {
            registry,
            client,
            pauses,
            epoch,
            follower: Mutex::new(Follower::new(epoch.elapsed())),
            told: AtomicBool::new(true),
            handshaking: AtomicBool::new(false),
            handing: AtomicBool::new(false),
            moved: Notify::new(),
        }
    }

    /// The client sent this; to be told before it is passed on.
    pub fn client_sent(&self, bytes: &[u8]) {
        self.follow(|follower, now| follower.client_sent(bytes, now));
    }

    /// The registry sent this; to be told before it is passed on.
    pub fn server_sent(&self, bytes: &[u8]) {
        self.handing.store(true, Ordering::Release);
        self.follow(|follower, now| follower.server_sent(bytes, now));
    }

    /// All that the registry sent so far is the kernel's.
    pub fn client_was_handed_all(&self) {
        self.handing.store(false, Ordering::Release);
    }

    fn follow(&self, feed: impl FnOnce(&mut Follower, Duration)) {
        let handshaking = {
            let mut follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
            feed(&mut follower, self.epoch.elapsed());
            follower.is_handshaking()
        };
        let was_told = self.told.load(Ordering::Acquire);
        if self.handshaking.swap(handshaking, Ordering::AcqRel) != handshaking && !was_told {
            self.registry.tell(SlotEvent::Entered(self.state()));
        }
        if was_told {
            self.go_on();
            // Nobody waits for it but in the same task, and a permit kept for later would be taken for a movement.
            self.moved.notify_waiters();
        }
    }

    /// What the socket is doing while the tunnel does not lie quiet.
    fn state(&self) -> SlotState {
        if self.handshaking.load(Ordering::Acquire) { SlotState::Connecting } else { SlotState::Active }
    }

    /// Completes when the tunnel is to be taken back: it was asked for, and nothing speaks against it. The client has
    /// been sent our FIN by then; not if it is to be cut, which is [`Evidence::Stalled`].
    pub async fn reclaimed(&self) -> Evidence {
        let mut jam: Option<Jam> = None;
        let mut pause = WORTH_TELLING;
        loop {
            let (doing, since) = self.doing();
            let quiet_at = self.epoch + since + self.worth_telling(doing);
            let now = Instant::now();
            if now < quiet_at {
                // A handshake may be over before.
                sleep_until(quiet_at.min(now + WORTH_TELLING)).await;
                continue;
            }
            let reclaim = self.tell(doing, since);
            tokio::select! {
                biased;
                Ok(evidence) = reclaim => {
                    jam = self.jammed().map(|bytes| Jam::goes_on(jam, bytes, since));
                    let may_go = match jam {
                        Some(jam) if jam.since.elapsed() >= self.pauses.stalled => Some(Evidence::Stalled),
                        Some(_) => None,
                        None if evidence == Evidence::Stalled => Some(evidence),
                        None => self.nothing_speaks_against_it().then_some(evidence),
                    };
                    if let Some(evidence) = may_go.filter(|_| self.doing().1 == since) {
                        if evidence != Evidence::Stalled {
                            // At once: whatever is done before widens the gap through which a request may slip.
                            let _ = tcp::finish(self.client);
                        }
                        return evidence;
                    }
                    // Somebody else's turn; this one tells again when it is quiet again.
                    self.go_on();
                    sleep_until(Instant::now() + pause).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
                () = self.moved.notified() => {
                    self.go_on();
                    pause = WORTH_TELLING;
                }
            }
        }
    }

    /// From when on a silence is worth a word.
    fn worth_telling(&self, doing: Doing) -> Duration {
        let handshaking = doing == Doing::InFlight && self.handshaking.load(Ordering::Acquire);
        if handshaking { LONGEST_HANDSHAKE } else { WORTH_TELLING }
    }

    /// The tunnel does not lie quiet any more: whatever was asked of it meanwhile is answered with that.
    fn go_on(&self) {
        if self.told.swap(false, Ordering::AcqRel) {
            self.registry.tell(SlotEvent::Entered(self.state()));
        }
    }

    /// Whether nothing was under way when the last byte passed.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.doing().0, Doing::Unused | Doing::Idle | Doing::Closing)
    }

    /// What is known of its records, for who reads on.
    pub fn into_follower(self) -> Follower {
        self.follower.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn doing(&self) -> (Doing, Duration) {
        let follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        let doing = match follower.doing() {
            // It may be that no session ticket came, and what looked like one was the answer.
            Doing::InFlight if follower.perhaps_answered() => Doing::Unsure,
            doing => doing,
        };
        (doing, follower.since())
    }

    /// Tells the gate that the tunnel lies quiet. What comes back completes when the gate wants it closed.
    fn tell(&self, doing: Doing, since: Duration) -> oneshot::Receiver<Evidence> {
        let (evidence, pause) = match doing {
            Doing::Unused => (Evidence::Unused, self.pauses.unused),
            Doing::Idle | Doing::Closing => (Evidence::Idle, self.pauses.idle),
            Doing::Unsure => (Evidence::Unsure, self.pauses.unsure),
            Doing::InFlight => (Evidence::Stalled, self.pauses.stalled),
        };
        let from = Moment(since + pause);
        let quiet = Quiet { evidence, since: Moment(since), from, from_for_own: from };
        let (reclaim, reclaimed) = oneshot::channel();
        self.told.store(true, Ordering::Release);
        self.registry.quiet(
            quiet,
            Box::new(move |evidence| {
                // The tunnel may have moved, or ended, in this very moment.
                let _ = reclaim.send(evidence);
            }),
        );
        reclaimed
    }

    /// Bytes that the client does not take, in the kernel or before it; how many there are before it is not known.
    fn jammed(&self) -> Option<u32> {
        let in_kernel = kernel::unacknowledged(self.client).unwrap_or_default();
        (in_kernel > 0 || self.handing.load(Ordering::Acquire)).then_some(in_kernel)
    }

    fn nothing_speaks_against_it(&self) -> bool {
        // The client's socket last: what comes after this look is cut.
        !tcp::has_unread(self.registry.stream()) && !tcp::has_unread(self.client)
    }
}

impl Jam {
    /// The same jam as before, or one that begins now.
    fn goes_on(before: Option<Jam>, bytes: u32, behind: Duration) -> Jam {
        let same = before.filter(|jam| (jam.bytes, jam.behind) == (bytes, behind));
        same.unwrap_or_else(|| Jam { bytes, behind, since: Instant::now() })
    }
}
