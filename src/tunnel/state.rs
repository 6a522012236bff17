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

use super::follow::{Follower, Side};
use super::passing::{ByteCounters, Passing};
use super::relay::{Broken, Flow, interest, ready};
use super::told::{Told, asked, evidence_of};
use crate::admission::{Moment, Quiet, SlotEvent, SlotState};
use crate::kernel;
use crate::metrics::Direction;
use crate::reclaim::{AnswerShape, ClientDebt, Doing, Grade, Pulse, ReclaimPolicy};
use crate::tcp;
use crate::upstream::Upstream;
use crate::upstream::socket::{Manner, Socket};

/// Shorter silences are not told to the gate.
const WORTH_TELLING: Duration = Duration::from_millis(50);
/// Nor are shorter ones in a handshake, which counts as connecting meanwhile.
const HANDSHAKE_WORTH_TELLING: Duration = Duration::from_secs(10);
/// The longest pause before a tunnel that could not go is looked at again; it doubles from [`WORTH_TELLING`].
const MAX_RETRY: Duration = Duration::from_secs(1);
/// For so long after a byte in one tunnel of a client a request of it may come in another.
const LIVELY: Duration = Duration::from_millis(25);
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

#[derive(Debug)]
pub(super) struct TunnelState<'a> {
    client: &'a TcpStream,
    pub registry: Socket,
    pub follower: Follower,
    counters: ByteCounters<'a>,
    policy: &'a ReclaimPolicy,
    /// Whose pauses hold.
    client_name: &'a str,
    upstream: &'a Upstream,
    /// The zero of the gate's time.
    epoch: Instant,
    up: Flow,
    down: Flow,
    /// The side that ended first, and when.
    first_end: Option<(Side, Instant)>,
    /// Whether the registry takes no more bytes of the client's.
    up_refused: bool,
    told: Told,
    /// The bytes that the client had not taken when the gate asked last, behind which byte, and since when it is the same.
    jam: Option<((u32, Duration), Instant)>,
    debt: ClientDebt,
    /// When any tunnel of its client moved last.
    pulse: Pulse,
    /// When a tunnel that could not go is looked at again, and the pause after that.
    retry: Option<Instant>,
    retry_pause: Duration,
}

/// Moves bytes one way.
type Advance<'a> = fn(&mut TunnelState<'a>) -> Option<End>;

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
        upstream: &'a Upstream,
        counters: ByteCounters<'a>,
    ) -> TunnelState<'a> {
        let epoch = upstream.gate.epoch();
        let mut state = TunnelState {
            client,
            registry,
            follower: Follower::new(epoch.elapsed(), policy.is_ticketless()),
            counters,
            policy,
            client_name,
            upstream,
            epoch,
            up: Flow::starting_with(early),
            down: Flow::default(),
            first_end: None,
            up_refused: false,
            told: Told::Opened,
            jam: None,
            debt: policy.debt(),
            pulse: policy.pulse(client_name),
            retry: None,
            retry_pause: WORTH_TELLING,
        };
        if !early.is_empty() {
            state.follower.sent(Side::Client, early, epoch.elapsed());
            state.counters.count(state.registry.slot(), Direction::Up, early.len());
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

    fn on_ready(&mut self, ready: Ready, from_it: Advance<'a>, to_it: Advance<'a>) -> Option<End> {
        let written = if ready.is_writable() { to_it(self) } else { None };
        written.or_else(|| if ready.is_readable() { from_it(self) } else { None })
    }

    fn advance_up(&mut self) -> Option<End> {
        if self.up.has_ended() {
            return None;
        }
        match self.advance(Side::Client) {
            Err(Broken::Source(_)) => return Some(self.client_broke()),
            Err(Broken::Sink(kind)) => {
                // Bytes that the registry has sent come through.
                self.up.abandon();
                self.up_refused = true;
                self.down.source_is_reset = tcp::is_reset(kind);
                self.registry.ending().met(kind);
            }
            Ok(()) => {}
        }
        self.ended(Side::Client, self.up.has_ended())
    }

    fn advance_down(&mut self) -> Option<End> {
        if self.down.has_ended() {
            return None;
        }
        self.down.source_is_reset |= self.registry.ending().is_cut();
        match self.advance(Side::Server) {
            Err(Broken::Sink(_)) => return Some(self.client_broke()),
            Err(Broken::Source(kind)) => {
                self.registry.ending().met(kind);
                return Some(self.registry_broke());
            }
            Ok(()) => {}
        }
        self.ended(Side::Server, self.down.has_ended())
    }

    /// Moves bytes of this side.
    fn advance(&mut self, side: Side) -> Result<(), Broken> {
        let (registry, now) = (&self.registry, self.epoch.elapsed());
        let (flow, source, sink, other) = match side {
            Side::Client => (&mut self.up, self.client, registry.stream(), &mut self.down),
            Side::Server => (&mut self.down, registry.stream(), self.client, &mut self.up),
        };
        let (follower, counters, slot) = (&mut self.follower, &self.counters, registry.slot());
        let mut passing = Passing { side, follower, counters, slot, now, moved: 0 };
        let held_bytes = flow.holds_bytes();
        let advanced = flow.advance(source, sink, &mut passing);
        let moved = passing.moved;
        if moved > 0 {
            other.turn();
            match side {
                Side::Client => self.registry.went(moved),
                Side::Server => self.registry.came(),
            }
            self.moved(side);
        } else if held_bytes && !flow.holds_bytes() {
            self.drained(now);
        }
        advanced
    }

    /// The last bytes of a side were taken, later than they came: the tunnel lies quiet from now on, by other evidence.
    fn drained(&mut self, now: Duration) {
        self.follower.taken(now);
        let stays_slow = self.told.is_slow() && self.is_too_slow();
        if matches!(self.told, Told::Quiet { .. }) && !stays_slow {
            self.entered(self.state());
        }
        self.told.set_looked(false);
    }

    /// Notes that a side has ended; the end of the tunnel once both have.
    fn ended(&mut self, side: Side, has_ended: bool) -> Option<End> {
        if has_ended && self.first_end.is_none() {
            self.first_end = Some((side, Instant::now()));
            self.told.set_looked(false);
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
            Some((Side::Server, _)) => self.finished(),
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
        self.pulse.beat(self.follower.since());
        if let Some(lesson) = self.follower.take_lesson() {
            self.policy.learn(lesson);
        }
        if let Some(took) = self.follower.timer.take() {
            self.upstream.tunnel_answered(took, self.registry.slot().id());
        }
        if self.told.is_slow() && self.is_too_slow() {
            return;
        }
        let state = self.state();
        match &mut self.told {
            Told::Busy { state: told, looked } if *told == state => *looked = false,
            told => {
                if let Told::Quiet { answered: Some(answered), .. } = told
                    && side == Side::Server
                    && self.follower.answered() > answered.answer
                {
                    self.policy.went_on(*answered);
                }
                if let Told::Quiet { grade: Grade::Unused, since, .. } = told
                    && side == Side::Client
                {
                    self.policy.unasked(self.client_name, self.follower.since().saturating_sub(*since), true);
                }
                self.entered(state);
            }
        }
        (self.retry, self.retry_pause) = (None, WORTH_TELLING);
    }

    fn state(&self) -> SlotState {
        if self.follower.is_handshaking() { SlotState::Connecting } else { SlotState::Active }
    }

    /// Tells the gate that the tunnel does not lie quiet.
    fn entered(&mut self, state: SlotState) {
        self.told = Told::Busy { state, looked: false };
        self.registry.slot().tell(SlotEvent::Entered(state));
    }

    /// When the tunnel is to be looked at next, if nothing moves before.
    fn next_look(&self) -> Option<Instant> {
        let half_closed = match self.first_end {
            Some((Side::Server, at)) => Some(at + AFTER_REGISTRY_END),
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
            Some((Side::Server, at)) if now >= at + AFTER_REGISTRY_END => return Some(self.finished()),
            Some((Side::Client, _)) if tcp::is_broken(self.client) => return Some(End::ClientBroke),
            Some((Side::Client, at)) if self.silence().min(at.elapsed()) >= self.policy.pauses().stalled => {
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

    /// Tells the gate that the tunnel lies quiet, if it may ever be taken.
    fn tell_quiet(&mut self) {
        let seen = self.follower.observe();
        let grade = match self.policy.grade(&seen) {
            _ if self.down.holds_bytes() => Grade::Stuck,
            // The registry has yet to take the end of a request.
            _ if self.up.holds_bytes() => Grade::InFlight,
            Grade::Untouched if self.first_end.is_some() => Grade::Unused,
            grade => grade,
        };
        let Some(pause) = self.policy.pause(grade, self.client_name) else {
            return self.told.set_looked(true);
        };
        self.tell(grade, pause, seen.exchange.filter(|_| matches!(grade, Grade::Answered | Grade::Silent)));
    }

    fn tell(&mut self, grade: Grade, pause: Duration, answered: Option<AnswerShape>) {
        let since = self.follower.since();
        let (reclaim, asked) = oneshot::channel();
        self.told = Told::Quiet { grade, since, answered, asked: Some(asked) };
        self.registry.slot().quiet(
            Quiet { evidence: evidence_of(grade), since: Moment(since), from: Moment(since + pause) },
            Box::new(move || _ = reclaim.send(())),
        );
    }

    /// The gate asks for the slot: the last look before the tunnel goes.
    fn answer_reclaim(&mut self) -> Option<End> {
        let Told::Quiet { grade, .. } = self.told else { return None };
        self.jam = self.jammed().map(|bytes| {
            let jam = (bytes, self.follower.since());
            self.jam.filter(|(before, _)| *before == jam).unwrap_or_else(|| (jam, Instant::now()))
        });
        let is_lively = self.pulse.age(self.epoch.elapsed()) < LIVELY;
        let may_go = match (self.jam, grade) {
            (_, Grade::Slow) => self.is_too_slow().then_some(End::Reclaimed(Grade::Slow)),
            (Some((_, since)), _) if since.elapsed() >= self.policy.pauses().stalled => {
                Some(End::Reclaimed(Grade::Stuck))
            }
            (Some(_), _) => None,
            (None, _) if self.up.holds_bytes() => None,
            // Twice at most: a client with transfers under way always moves.
            (None, grade) if grade != Grade::Untouched && self.retry_pause <= 2 * WORTH_TELLING && is_lively => None,
            (None, _) if [self.registry.stream(), self.client].into_iter().any(kernel::holds_out_of_order) => None,
            (None, grade) if !grade.cuts() && self.is_client_behind() => {
                // Once it has read it may ask at once.
                self.retry_pause = MAX_RETRY;
                None
            }
            // The client's socket last: what comes after this look is cut.
            (None, _) if tcp::has_unread(self.registry.stream()) || tcp::has_unread(self.client) => None,
            (None, Grade::Stuck) => Some(End::Reclaimed(Grade::Stuck)),
            (None, Grade::Untouched) if self.upstream.gate.snapshot().longest_busy < MAX_BUSY => Some(End::Parked),
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
            self.entered(SlotState::Active);
            self.retry = Some(Instant::now() + self.retry_pause);
            self.retry_pause = MAX_RETRY.min(self.retry_pause * 2);
        }
        may_go
    }

    /// Whether the client's process has yet to read what came, or to send what it wrote: it is busy, and not idle. Some read nothing
    /// before they ask, so that this is not believed for longer than a stall.
    fn is_client_behind(&self) -> bool {
        self.silence() < self.policy.pauses().unsure && kernel::is_other_end_at_rest(self.client) == Some(false)
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
