//! One socket toward a registry, with the slot that it lives in.
//!
//! The slot is taken before `socket()` and goes back only when the registry, too, had the chance to see the end:
//! dropping a [`Socket`], wherever and why ever that happens, starts the closing, and the slot goes with that. A
//! connection that did its work is closed in order: our FIN, then the registry's, awaited up to `linger`. One that was
//! cut in the middle, or that lingers too long, is reset, and the slot is held for two round trips more.
//!
//! Where slots are leased, the registry is asked first: nothing acknowledges a reset, so a FIN goes before it. A registry that has
//! acknowledged that has a path from us, and whatever it sends after the reset is answered by a reset of the kernel's. Where no
//! acknowledgement comes, or the kernel gave the connection up by itself, the slot is held for as long as the registry may count it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::cluster::NodePermit;
use crate::admission::{Slot, SlotEvent, SlotState};
use crate::fleet::claim::Ghost;
use crate::kernel;
use crate::lease::borrowed::Cut;
use crate::metrics::{Direction, RegistryMetrics};
use crate::tcp::{self, Linger};

/// How long at least the slot of a connection is held whose end the registry does not confirm.
const LEAST_HOLD: Duration = Duration::from_millis(10);
/// The longest hold: a `connect()` that had to be repeated says little about the round trip.
const LONGEST_HOLD: Duration = Duration::from_millis(500);
/// The kernel gives up so much later than `linger` (which is less than `registry_drops`) and `registry_drops` together: sooner would look like the registry's end.
const LATER: Duration = Duration::from_secs(120);
/// Bytes without an answer that are an upload: no request is so long, and a registry's kernel takes so many before it closes its window.
const UPLOAD: usize = 64 * 1024;

/// A socket toward a registry. Dropping it closes the connection and then gives the slot back.
#[derive(Debug)]
pub struct Socket {
    /// `None` only while being dropped.
    inner: Option<Inner>,
    /// Bytes that went since the last that came.
    unanswered: usize,
    ending: Ending,
    terms: ClosingTerms,
    /// Of its `connect()`, once that has succeeded.
    pub(super) round_trip: Duration,
    pub(super) metrics: Arc<RegistryMetrics>,
}

/// The bounds of a closing.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClosingTerms {
    pub linger: Duration,
    pub registry_drops: Option<Duration>,
}

/// The fields drop in this order: the socket closes before the slot of its node, and that of the gate, return.
#[derive(Debug)]
struct Inner {
    /// Shared only with a [`Glance`], for as long as that looks.
    stream: Arc<TcpStream>,
    /// To which node it leads, where there is a choice.
    node_permit: Option<NodePermit>,
    slot: Slot,
}

/// A look at a socket that somebody else owns.
#[derive(Clone, Debug)]
pub struct Glance(Weak<TcpStream>);

impl Glance {
    /// Whether the socket is still open, with nothing to read and no end from the other side; asks the kernel.
    pub fn is_fresh(&self) -> bool {
        self.0.upgrade().is_some_and(|stream| !tcp::has_unread(&stream) && !tcp::has_ended(&stream))
    }
}

/// Cuts a socket that somebody else owns.
#[derive(Clone, Debug)]
pub struct Shears {
    glance: Glance,
    ending: Ending,
    /// Where its slot is leased.
    registry_drops: Option<Duration>,
}

impl Shears {
    /// Resets it; where slots are leased, the registry is asked first. Its owner meets an error.
    pub async fn apply(self) {
        let socket = &self.glance.0;
        if let Some(registry_drops) = self.registry_drops {
            self.ending.change(|now| now.is_cut = true);
            if let Some(stream) = socket.upgrade() {
                self.ending.stand_by(&stream, registry_drops);
                let _ = tcp::finish(&stream);
            }
            let is_heard = || socket.upgrade().is_none_or(|stream| is_acknowledged(&stream));
            if timeout(LONGEST_HOLD, tcp::until(is_heard)).await.is_err() {
                self.ending.change(|now| now.is_lost = true);
            }
        }
        let _ = socket.upgrade().map(rustix::net::connect_unspec);
    }
}

impl Cut for Shears {
    fn cut(&self) {
        if !self.ending.is_cut() {
            tokio::spawn(self.clone().apply());
        }
    }
}

/// Says how a socket is to be closed when it is dropped, and can be held apart from it: hyper owns the socket, but only
/// the reader of the answer knows whether the work is done.
#[derive(Clone, Debug, Default)]
pub struct Ending(Arc<Mutex<KnownEnd>>);

#[derive(Clone, Copy, Debug, Default)]
struct KnownEnd {
    manner: Manner,
    /// A lease that is over ends it: what looks like the registry's end is none.
    is_cut: bool,
    /// It is over here, and the registry may not know.
    is_lost: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub enum Manner {
    /// With a reset: the transfer is abandoned in the middle.
    #[default]
    Cut,
    /// Our FIN, then the registry's.
    InOrder,
    /// Both have been exchanged already, ours first.
    Confirmed,
    /// The `connect()` failed, so there is nothing to close.
    NeverStood,
}

impl Ending {
    /// From now on a drop closes so.
    pub fn set(&self, manner: Manner) {
        self.change(|now| now.manner = manner);
    }

    /// Its owner has met this error. The kernel tells each once.
    pub fn met(&self, error: io::ErrorKind) {
        self.change(|now| now.is_lost |= tcp::has_given_up(error));
    }

    /// Whether a lease that is over ends it.
    pub fn is_cut(&self) -> bool {
        self.now().is_cut
    }

    fn now(&self) -> KnownEnd {
        *self.0.lock()
    }

    fn change(&self, change: impl FnOnce(&mut KnownEnd)) {
        change(&mut self.0.lock());
    }

    /// From now on the kernel gives the connection up later than anybody here does. It may have done so before.
    fn stand_by(&self, stream: &TcpStream, registry_drops: Duration) {
        let _ = tcp::wait_for(stream, registry_drops * 2 + LATER);
        // That of one that stands is the word of some host between: it goes on.
        if let Ok(Some(error)) = stream.take_error()
            && stream.peer_addr().is_err()
        {
            self.met(error.kind());
        }
    }
}

impl Socket {
    /// A socket whose `connect()` is under way or done.
    pub(super) fn new(
        stream: TcpStream,
        slot: Slot,
        mut node_permit: Option<NodePermit>,
        terms: ClosingTerms,
        metrics: Arc<RegistryMetrics>,
    ) -> Socket {
        if let Some(node_permit) = &mut node_permit {
            node_permit.lives_in(slot.id());
        }
        let activity = slot.activity();
        let inner = Some(Inner { stream: Arc::new(stream), node_permit, slot });
        let socket =
            Socket { inner, unanswered: 0, ending: Ending::default(), terms, round_trip: Duration::ZERO, metrics };
        let _ = activity.cutter.0.set(Box::new(socket.shears()));
        socket
    }

    /// Closes it in order, and shows what the registry still says until its own end.
    pub async fn lingering_close(self, show: impl FnMut(&[u8])) {
        self.ending.set(Manner::InOrder);
        self.slot().tell(SlotEvent::Entered(SlotState::Closing));
        if let Some(registry_drops) = self.terms.registry_drops {
            self.ending.stand_by(self.stream(), registry_drops);
        }
        let confirmed = close_in_order(self.stream(), Instant::now() + self.terms.linger, show).await;
        self.ending.set(if confirmed { Manner::Confirmed } else { Manner::Cut });
    }

    /// The slot that it lives in.
    pub fn slot(&self) -> &Slot {
        &self.inner().slot
    }

    /// To which node it leads, where there is a choice.
    pub(super) fn node_permit(&self) -> Option<&NodePermit> {
        self.inner().node_permit.as_ref()
    }

    /// So many bytes went. From an upload on, the kernel's own timeouts hold: a registry that is busy with its disk may take nothing for
    /// longer than it may leave a request unacknowledged, and only they let it, as long as it tells of its closed window.
    pub fn went(&mut self, bytes: usize) {
        let before = self.unanswered;
        self.unanswered = before.saturating_add(bytes);
        if before < UPLOAD && self.unanswered >= UPLOAD && !self.ending.is_cut() {
            let _ = tcp::wait_for(self.stream(), Duration::ZERO);
        }
    }

    /// Bytes came: an upload is over.
    pub fn came(&mut self) {
        if std::mem::take(&mut self.unanswered) >= UPLOAD && !self.ending.is_cut() {
            let _ = tcp::wait_for(self.stream(), tcp::REGISTRY_USER_TIMEOUT);
        }
    }

    /// A handle to look at it without owning it.
    pub fn glance(&self) -> Glance {
        Glance(Arc::downgrade(&self.inner().stream))
    }

    /// A handle to cut it without owning it.
    pub fn shears(&self) -> Shears {
        Shears { glance: self.glance(), ending: self.ending.clone(), registry_drops: self.terms.registry_drops }
    }

    pub fn stream(&self) -> &TcpStream {
        &self.inner().stream
    }

    pub fn ending(&self) -> &Ending {
        &self.ending
    }

    fn inner(&self) -> &Inner {
        self.inner.as_ref().expect("there until the drop")
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        if let Manner::NeverStood = self.ending.now().manner {
            return;
        }
        inner.slot.tell(SlotEvent::Entered(SlotState::Closing));
        let hold = (self.round_trip * 2).clamp(LEAST_HOLD, LONGEST_HOLD);
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(close(inner, self.ending.clone(), self.terms, hold))),
            // The runtime is gone, and soon the process: nobody will ask for the slot.
            Err(_) => tcp::reset_on_close(&inner.stream),
        }
    }
}

/// Closes the connection, then gives the slot back.
async fn close(inner: Inner, ending: Ending, terms: ClosingTerms, hold: Duration) {
    let Inner { stream, slot, node_permit } = inner;
    let deadline = Instant::now() + terms.linger;
    if let Some(registry_drops) = terms.registry_drops {
        ending.stand_by(&stream, registry_drops);
    }
    let ended = match ending.now().manner {
        Manner::Cut | Manner::NeverStood => false,
        Manner::InOrder => close_in_order(&stream, deadline, |_| ()).await,
        Manner::Confirmed => timeout_at(deadline, tcp::fin_acknowledged(&stream)).await.is_ok(),
    };
    let confirmed = ended && !ending.now().is_lost;
    if !confirmed {
        if let Some(registry_drops) = terms.registry_drops {
            heard(&stream, &ending, deadline, registry_drops).await;
        }
        tcp::reset_on_close(&stream);
    }
    drop(unshared(stream).await);
    if !confirmed {
        sleep(hold).await;
    }
    drop(node_permit);
    drop(slot);
}

/// Sends our FIN. Completes when the registry has heard of it, or does not count the connection any more. After the deadline, or once the
/// connection is lost, nobody takes this process over meanwhile.
async fn heard(stream: &TcpStream, ending: &Ending, deadline: Instant, registry_drops: Duration) {
    let _ = tcp::finish(stream);
    // In this order: one that is lost may be reset at any moment, and then looks like one that has ended.
    let is_heard = || is_acknowledged(stream) && !ending.now().is_lost;
    let _ = timeout_at(deadline, tcp::until(|| is_heard() || ending.now().is_lost)).await;
    if !is_heard() {
        let _ghost = Ghost::new(registry_drops);
        // The kernel would go on when this process ends, and the next one would wait for that.
        tcp::reset_on_close(stream);
        let _ = timeout(registry_drops, tcp::until(is_heard)).await;
    }
}

/// Whether the registry has acknowledged what was sent, a FIN included. The kernel tells nothing of a connection that has ended.
fn is_acknowledged(stream: &TcpStream) -> bool {
    stream.peer_addr().is_err() || kernel::unacknowledged(stream) == Some(0)
}

/// The stream alone: a glance takes microseconds, and after this none can begin.
async fn unshared(mut stream: Arc<TcpStream>) -> TcpStream {
    loop {
        match Arc::try_unwrap(stream) {
            Ok(stream) => return stream,
            Err(shared) => stream = shared,
        }
        tokio::task::yield_now().await;
    }
}

/// Our FIN, and the registry's. True when it confirmed ours with its own; false when it had ended first, and so may not
/// have seen our end yet, or when it does not answer in time.
async fn close_in_order(stream: &TcpStream, deadline: Instant, show: impl FnMut(&[u8])) -> bool {
    let registry_was_first = tcp::has_ended(stream);
    let longest = deadline - Instant::now();
    let linger = Linger { most_bytes: usize::MAX, longest, longest_silence: longest };
    tcp::lingering_close(stream, linger, show).await
        && timeout_at(deadline, tcp::fin_acknowledged(stream)).await.is_ok()
        && !registry_was_first
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = ready!(tcp::poll_read(&this.inner().stream, cx, buffer));
        let read = read.inspect_err(|error| this.ending.met(error.kind()))?;
        if read == 0 && this.ending.is_cut() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        this.metrics.relayed(Direction::Down, read);
        this.slot().carried(Direction::Down, read);
        this.came();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(tcp::poll_write_vectored(&this.inner().stream, cx, slices));
        let written = written.inspect_err(|error| this.ending.met(error.kind()))?;
        this.metrics.relayed(Direction::Up, written);
        this.slot().carried(Direction::Up, written);
        this.went(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Leaves the FIN to the drop, which sends it with the registry's in view.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
