//! One tunnel: one task, one loop, and all that is known of it in one place.
//!
//! The loop moves bytes, feeds the follower, and tells the gate when the tunnel lies quiet: only of silences that have lasted
//! a little, so that a tunnel that moves costs the gate nothing. A reclaim is answered after a last look at both sockets and
//! at what the client has not acknowledged. While client and registry shake hands, the slot counts as connecting: handshakes
//! are what burdens a server most. Half-close is kept: one side's FIN is handed on, and the other direction goes on.

use std::pin::pin;
use std::time::Duration;

use tokio::io::Ready;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until};

use super::follow::Follower;
use super::relay::{Broken, Flow, interest, ready};
use super::told::{Told, asked, evidence_of};
use crate::admission::{Gate, Moment, Quiet, SlotEvent, SlotState};
use crate::kernel;
use crate::metrics::{Direction, RegistryMetrics};
use crate::proxy::record::Carried;
use crate::reclaim::{AnswerShape, ClientDebt, Doing, Grade, ReclaimPolicy};
use crate::tcp;
use crate::upstream::http::PooledConnection;
use crate::upstream::socket::{Manner, Socket};

/// Shorter silences are not told to the gate.
const WORTH_TELLING: Duration = Duration::from_millis(50);
/// Nor are shorter ones in a handshake, which counts as connecting meanwhile.
const HANDSHAKE_WORTH_TELLING: Duration = Duration::from_secs(10);
/// The longest pause before a tunnel that could not go is looked at again; it doubles from [`WORTH_TELLING`].
const MAX_RETRY: Duration = Duration::from_secs(1);
/// No tunnel is parked while a slot has been busy for so long: there might be none for it when its client speaks.
const MAX_BUSY: Duration = Duration::from_secs(5);
/// How long a client may stay silent after the registry's FIN. The connection is of no more use to it by then, but holds a
/// slot.
const AFTER_REGISTRY_END: Duration = Duration::from_secs(10);

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides ended in order.
    Finished,
    /// The client's connection broke.
    ClientBroke,
    /// The registry's connection broke.
    RegistryBroke,
    /// Its slot goes to a request that waits. The client has been sent our FIN, unless the grade [cuts](Grade::cuts); the
    /// registry's socket does not know yet how to close.
    Reclaimed(Grade),
    /// Its slot goes to a request that waits, and the client need not know: no byte went either way.
    Parked,
    /// `drain_timeout` was over.
    CutShort,
}

/// Where a tunnel counts its bytes.
#[derive(Clone, Debug)]
pub(super) struct ByteCounters<'a> {
    pub metrics: &'a RegistryMetrics,
    pub carried: &'a Carried,
}

#[derive(Debug)]
pub(super) struct TunnelState<'a> {
    client: &'a TcpStream,
    pub registry: Socket,
    pub follower: Follower,
    counters: ByteCounters<'a>,
    policy: &'a ReclaimPolicy,
    /// Whose pauses hold.
    client_name: &'a str,
    gate: &'a Gate<PooledConnection>,
    /// The zero of the gate's time.
    epoch: Instant,
    up: Flow,
    down: Flow,
    /// The side that ended first, and when.
    first_end: Option<(Side, Instant)>,
    /// Whether the registry takes no more bytes of the client's.
    up_refused: bool,
    told: Told,
    jam: Option<Jam>,
    debt: ClientDebt,
    /// When a tunnel that could not go is looked at again, and the pause after that.
    retry: Option<Instant>,
    retry_pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Registry,
}

/// Bytes that a client does not take.
#[derive(Clone, Copy, Debug)]
struct Jam {
    bytes: u32,
    /// When the last byte had moved: what moves after it is another jam.
    behind: Duration,
    since: Instant,
}

/// The event that woke the loop.
enum Woken {
    Reclaim,
    Client(Ready),
    Registry(Ready),
    Timer,
}

impl<'a> TunnelState<'a> {
    /// A tunnel that stands now; `early` are bytes that the client sent before.
    pub fn new(
        client: &'a TcpStream,
        registry: Socket,
        early: &[u8],
        (policy, client_name): (&'a ReclaimPolicy, &'a str),
        gate: &'a Gate<PooledConnection>,
        counters: ByteCounters<'a>,
    ) -> TunnelState<'a> {
        let epoch = gate.epoch();
        let mut state = TunnelState {
            client,
            registry,
            follower: Follower::new(epoch.elapsed(), policy.is_ticketless()),
            counters,
            policy,
            client_name,
            gate,
            epoch,
            up: Flow::starting_with(early),
            down: Flow::default(),
            first_end: None,
            up_refused: false,
            told: Told::Opened,
            jam: None,
            debt: policy.debt(),
            retry: None,
            retry_pause: WORTH_TELLING,
        };
        if !early.is_empty() {
            state.follower.client_sent(early, epoch.elapsed());
            state.counters.count(&state.registry, Direction::Up, early.len());
            state.moved(Side::Client);
        }
        state
    }

    /// Carries bytes until the tunnel ends.
    pub async fn run(&mut self) -> End {
        let mut timer = pin!(sleep_until(Instant::now() + WORTH_TELLING));
        let mut armed = true;
        if let Some(end) = self.advance_up() {
            return end;
        }
        loop {
            self.note_debt();
            if let Some(next) = self.next_look()
                && (!armed || next < timer.deadline())
            {
                timer.as_mut().reset(next);
                armed = true;
            }
            let (of_client, of_registry) = (interest(&self.up, &self.down), interest(&self.down, &self.up));
            let woken = tokio::select! {
                biased;
                () = asked(&mut self.told) => Woken::Reclaim,
                ready = ready(self.registry.stream(), of_registry) => Woken::Registry(ready),
                ready = ready(self.client, of_client) => Woken::Client(ready),
                () = timer.as_mut(), if armed => Woken::Timer,
            };
            let end = match woken {
                Woken::Reclaim => self.answer_reclaim(),
                Woken::Client(ready) => self.on_ready(ready, Self::advance_up, Self::advance_down),
                Woken::Registry(ready) => self.on_ready(ready, Self::advance_down, Self::advance_up),
                Woken::Timer => {
                    armed = false;
                    self.look()
                }
            };
            if let Some(end) = end {
                return end;
            }
            consume_budget().await;
        }
    }

    fn on_ready(
        &mut self,
        ready: Ready,
        from_it: fn(&mut Self) -> Option<End>,
        to_it: fn(&mut Self) -> Option<End>,
    ) -> Option<End> {
        let written = if ready.is_writable() { to_it(self) } else { None };
        written.or_else(|| if ready.is_readable() { from_it(self) } else { None })
    }

    fn advance_up(&mut self) -> Option<End> {
        if self.up.has_ended() {
            return None;
        }
        let (follower, counters, registry, now) =
            (&mut self.follower, &self.counters, &self.registry, self.epoch.elapsed());
        let mut moved = false;
        let advanced = self.up.advance(self.client, registry.stream(), |bytes| {
            moved = true;
            follower.client_sent(bytes, now);
            counters.count(registry, Direction::Up, bytes.len());
        });
        if moved {
            self.moved(Side::Client);
        }
        match advanced {
            Err(Broken::Source) => return Some(self.client_broke()),
            Err(Broken::Sink) => {
                // Bytes that the registry still sends come through.
                self.up.abandon();
                self.up_refused = true;
            }
            Ok(()) => {}
        }
        self.ended(Side::Client, self.up.has_ended())
    }

    fn advance_down(&mut self) -> Option<End> {
        if self.down.has_ended() {
            return None;
        }
        let (follower, counters, registry, now) =
            (&mut self.follower, &self.counters, &self.registry, self.epoch.elapsed());
        let mut moved = false;
        let advanced = self.down.advance(registry.stream(), self.client, |bytes| {
            moved = true;
            follower.server_sent(bytes, now);
            counters.count(registry, Direction::Down, bytes.len());
        });
        if moved {
            self.moved(Side::Registry);
        }
        match advanced {
            Err(Broken::Sink) => return Some(self.client_broke()),
            Err(Broken::Source) => return Some(self.registry_broke()),
            Ok(()) => {}
        }
        self.ended(Side::Registry, self.down.has_ended())
    }

    /// Notes that a side has ended; the end of the tunnel once both have.
    fn ended(&mut self, side: Side, has_ended: bool) -> Option<End> {
        if has_ended && self.first_end.is_none() {
            self.first_end = Some((side, Instant::now()));
            self.told.look_again();
        }
        (self.up.has_ended() && self.down.has_ended()).then(|| self.finished())
    }

    fn finished(&self) -> End {
        match self.first_end {
            Some((Side::Client, _)) if !self.up_refused => self.registry.ending().set(Manner::Confirmed),
            _ => self.registry.ending().set(Manner::InOrder),
        }
        End::Finished
    }

    fn client_broke(&self) -> End {
        match self.first_end {
            // The registry has said all that it will: how the client ends changes nothing.
            Some((Side::Registry, _)) => self.finished(),
            _ => End::ClientBroke,
        }
    }

    /// A registry that closes with the client's last bytes unread (a TLS goodbye, mostly) resets; all that it said came
    /// through.
    fn registry_broke(&self) -> End {
        let was_at_rest = matches!(self.follower.doing(), Doing::Unused | Doing::Idle | Doing::Closing);
        match self.first_end {
            Some(_) if !self.up_refused => self.finished(),
            _ if was_at_rest => End::Finished,
            _ => End::RegistryBroke,
        }
    }

    /// Bytes of this side moved: whatever the gate asked meanwhile is answered with that.
    fn moved(&mut self, side: Side) {
        if let Some(lesson) = self.follower.take_lesson() {
            self.policy.learn(lesson);
        }
        if self.told.is_slow() && self.is_too_slow() {
            return;
        }
        let state = if self.follower.is_handshaking() { SlotState::Connecting } else { SlotState::Active };
        match &mut self.told {
            Told::Busy { state: told, looked } if *told == state => *looked = false,
            told => {
                if let Told::Quiet { answered: Some(answered), .. } = told
                    && side == Side::Registry
                    && self.follower.answered() > answered.answer
                {
                    self.policy.went_on(*answered);
                }
                if let Told::Quiet { grade: Grade::Unused, since, .. } = told
                    && side == Side::Client
                {
                    self.policy.unasked(self.client_name, self.follower.since().saturating_sub(*since), true);
                }
                *told = Told::Busy { state, looked: false };
                self.registry.slot().tell(SlotEvent::Entered(state));
            }
        }
        (self.retry, self.retry_pause) = (None, WORTH_TELLING);
    }

    /// When the tunnel is to be looked at next, if nothing moves before.
    fn next_look(&self) -> Option<Instant> {
        let half_closed = match self.first_end {
            Some((Side::Registry, at)) => Some(at + AFTER_REGISTRY_END),
            // No event tells that a client that has ended its side is gone.
            Some((Side::Client, _)) => Some(Instant::now() + tcp::LOOK_AGAIN),
            None => None,
        };
        let pause = if self.follower.is_handshaking() { HANDSHAKE_WORTH_TELLING } else { WORTH_TELLING };
        let quiet = self.told.is_untold().then(|| self.retry.unwrap_or(self.epoch + self.follower.since() + pause));
        let too_slow = if self.told.is_slow() { None } else { self.debt.left(self.epoch.elapsed()) };
        half_closed.into_iter().chain(quiet).chain(too_slow.map(|left| Instant::now() + left)).min()
    }

    fn look(&mut self) -> Option<End> {
        let now = Instant::now();
        match self.first_end {
            Some((Side::Registry, at)) if now >= at + AFTER_REGISTRY_END => return Some(self.finished()),
            Some((Side::Client, _)) if tcp::is_broken(self.client) => return Some(End::ClientBroke),
            Some((Side::Client, at)) if self.silent_since(at) >= self.policy.pauses().stalled => {
                // It has our FIN already, and is asked for its own once more.
                self.registry.ending().set(Manner::InOrder);
                return Some(End::RegistryBroke);
            }
            _ => {}
        }
        if self.is_too_slow() && !self.told.is_slow() {
            self.tell(Grade::Slow, Duration::ZERO, None);
            return None;
        }
        let pause = if self.follower.is_handshaking() { HANDSHAKE_WORTH_TELLING } else { WORTH_TELLING };
        let due = self.retry.unwrap_or(self.epoch + self.follower.since() + pause);
        if self.told.is_untold() && due <= now {
            self.tell_quiet();
        }
        None
    }

    /// How long nothing has moved.
    fn silence(&self) -> Duration {
        self.epoch.elapsed().saturating_sub(self.follower.since())
    }

    /// How long nothing has moved since then.
    fn silent_since(&self, at: Instant) -> Duration {
        self.registry.slot().silence().map_or(at.elapsed(), |silence| silence.min(at.elapsed()))
    }

    /// Tells the gate that the tunnel lies quiet, if it may ever be taken.
    fn tell_quiet(&mut self) {
        let seen = self.follower.observe();
        let grade = match self.policy.grade(&seen) {
            _ if self.down.holds_bytes() => Grade::Stuck,
            Grade::Untouched if self.first_end.is_some() => Grade::Unused,
            grade => grade,
        };
        let Some(pause) = self.policy.pause(grade, self.client_name) else {
            return self.told.looked();
        };
        self.tell(grade, pause, seen.exchange.filter(|_| grade == Grade::Answered));
    }

    fn tell(&mut self, grade: Grade, pause: Duration, answered: Option<AnswerShape>) {
        let since = self.follower.since();
        let (reclaim, asked) = oneshot::channel();
        self.told = Told::Quiet { grade, since, answered, asked: Some(asked) };
        self.registry.slot().quiet(
            Quiet { evidence: evidence_of(grade), since: Moment(since), from: Moment(since + pause) },
            // The tunnel may have moved, or ended, in this very moment.
            Box::new(move || {
                let _ = reclaim.send(());
            }),
        );
    }

    /// The gate asks for the slot: the last look before the tunnel goes.
    fn answer_reclaim(&mut self) -> Option<End> {
        let Told::Quiet { grade, .. } = self.told else { return None };
        self.jam = self.jammed().map(|bytes| Jam::goes_on(self.jam, bytes, self.follower.since()));
        let may_go = match (self.jam, grade) {
            (_, Grade::Slow) => self.is_too_slow().then_some(End::Reclaimed(Grade::Slow)),
            (Some(jam), _) if jam.since.elapsed() >= self.policy.pauses().stalled => Some(End::Reclaimed(Grade::Stuck)),
            (Some(_), _) => None,
            (None, Grade::Stuck) => Some(End::Reclaimed(Grade::Stuck)),
            (None, _) if kernel::holds_out_of_order(self.registry.stream()) => None,
            // The client's socket last: what comes after this look is cut.
            (None, _) if tcp::has_unread(self.registry.stream()) || tcp::has_unread(self.client) => None,
            (None, Grade::Untouched) if self.gate.snapshot().longest_busy < MAX_BUSY => Some(End::Parked),
            // A client that meant to shake hands has given up by then.
            (None, Grade::Untouched) if self.silence() < self.policy.pauses().unsure => None,
            (None, grade) => {
                // At once: whatever is done before widens the gap through which a request may slip.
                let _ = tcp::finish(self.client);
                if grade == Grade::Unused {
                    self.policy.unasked(self.client_name, self.silence(), false);
                }
                Some(End::Reclaimed(grade))
            }
        };
        if may_go.is_none() {
            // Another tunnel's turn; this one is told of again.
            let state = SlotState::Active;
            self.told = Told::Busy { state, looked: false };
            self.registry.slot().tell(SlotEvent::Entered(state));
            self.retry = Some(Instant::now() + self.retry_pause);
            self.retry_pause = MAX_RETRY.min(self.retry_pause * 2);
        }
        may_go
    }

    /// Counts the time in which the client does not take what is held for it, or has sent half a record and is asked for more.
    fn note_debt(&mut self) {
        let owes_rest = self.up.reads() && self.follower.is_request_cut() && !self.follower.is_handshaking();
        let owes = self.down.holds_bytes() || owes_rest;
        let moved = self.up.take_taken() + self.down.take_taken();
        self.debt.note(owes, moved, self.epoch.elapsed());
    }

    fn is_too_slow(&self) -> bool {
        self.debt.left(self.epoch.elapsed()).is_some_and(|left| left.is_zero())
    }

    /// Bytes that the client does not take, in the kernel or before it; how many there are before it is not counted.
    fn jammed(&self) -> Option<u32> {
        let in_kernel = kernel::unacknowledged(self.client).unwrap_or_default();
        (in_kernel > 0 || self.down.holds_bytes()).then_some(in_kernel)
    }
}

impl ByteCounters<'_> {
    fn count(&self, registry: &Socket, direction: Direction, bytes: usize) {
        registry.slot().carried(direction, bytes);
        self.metrics.relayed(direction, bytes);
        self.carried.add(direction, bytes);
    }
}

impl Jam {
    /// The same jam as before, or one that begins now.
    fn goes_on(before: Option<Jam>, bytes: u32, behind: Duration) -> Jam {
        let same = before.filter(|jam| (jam.bytes, jam.behind) == (bytes, behind));
        same.unwrap_or_else(|| Jam { bytes, behind, since: Instant::now() })
    }
}
