//! A registry for tests that judges the cap by itself: it counts its open connections, and keeps the peak.
//!
//! It runs on a thread and a runtime of its own, so that a busy test cannot make it look away. One accept is followed
//! by a look at all that came before it, as nginx does: an end that reached the kernel first is counted first.

mod answer;
mod content;
mod count;
mod gate;
mod pace;
mod serve;

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::timeout;

pub use content::{blob_of, digest_of, manifest_of};
pub use count::StubConnection;

use count::Count;
use gate::Gate;
use pace::Pace;

use crate::Random;

/// More than any storm of ours, so that nobody is lost before `accept()`.
const BACKLOG: u32 = 4096;

/// A counting registry on a free loopback port; it ends when dropped.
#[derive(Debug)]
pub struct StubRegistry {
    address: SocketAddr,
    seen: Arc<Seen>,
    /// The state that the test wants.
    wanted: watch::Sender<Endpoint>,
    /// The state that it has.
    door: watch::Receiver<Endpoint>,
    /// Its end, by being dropped.
    _end: oneshot::Sender<()>,
}

/// How a stub registry behaves; each has a default that is harmless.
#[derive(Clone, Debug)]
pub struct StubBuilder {
    cap: Option<usize>,
    answer_delay: Duration,
    close_each: bool,
    blob_size: usize,
    first_delay: Duration,
    stall: Duration,
    steady_stall: Duration,
    drop_silent: Duration,
    bytes_per_second: Option<u64>,
}

/// How the stub treats new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    /// They are accepted.
    Open,
    /// It listens, and accepts nobody: the kernel lets a few in, and leaves the others without an answer.
    Stuck,
    /// It does not listen: the kernel refuses them.
    Shut,
}

/// The counts of the stub, shared by all its connections.
#[derive(Debug)]
struct Seen {
    count: Arc<Count>,
    gate: Gate,
    pace: Pace,
    accepts: Mutex<Vec<Instant>>,
    /// Each with the time at which it had come whole.
    heads: Mutex<Vec<(Instant, String)>>,
    /// Ends all connections, as the death of a process does.
    killed: Notify,
    /// Targets that were asked for.
    targets: Mutex<HashSet<String>>,
    /// Where and how long answers stall.
    random: Mutex<Random>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            count: Arc::default(),
            gate: Gate::default(),
            pace: Pace::default(),
            accepts: Mutex::default(),
            heads: Mutex::default(),
            killed: Notify::default(),
            targets: Mutex::default(),
            random: Mutex::new(Random::new(3)),
        }
    }
}

impl StubBuilder {
    /// Above `cap` open connections, requests on the youngest of them are answered as Harbor answers when its database
    /// refuses: 401 with an empty `Www-Authenticate`. Without it, all are served.
    #[must_use]
    pub fn cap(mut self, cap: usize) -> Self {
        self.cap = Some(cap);
        self
    }

    /// Every answer takes at least this long, as the database work of a real registry does. Default: none.
    #[must_use]
    pub fn answer_delay(mut self, delay: Duration) -> Self {
        self.answer_delay = delay;
        self
    }

    /// The first answer about each target takes at least this long, as when the registry has to fetch it first. Default:
    /// none.
    #[must_use]
    pub fn first_delay(mut self, delay: Duration) -> Self {
        self.first_delay = delay;
        self
    }

    /// Every other answer stalls once, for any time up to this long: half of these between head and body, the others
    /// anywhere. Default: none does.
    #[must_use]
    pub fn stall(mut self, longest: Duration) -> Self {
        self.stall = longest;
        self
    }

    /// Every answer stalls for so long between head and body.
    #[must_use]
    pub fn steady_stall(mut self, lasts: Duration) -> Self {
        self.steady_stall = lasts;
        self
    }

    /// A connection is closed when its peer sends nothing, or takes nothing of an answer, for so long while the stub waits
    /// for that, as nginx does by its keep-alive and write timeouts. Default: none is.
    #[must_use]
    pub fn drop_silent(mut self, after: Duration) -> Self {
        self.drop_silent = after;
        self
    }

    /// Whether the connection is closed after each answer. Default: kept alive.
    #[must_use]
    pub fn close_each(mut self, close: bool) -> Self {
        self.close_each = close;
        self
    }

    /// Bytes of answers that go out in a second, over all connections, as where a registry's processor or storage is the
    /// bound; the first of each answer, and answers that stall, go at once. Default: as many as the machine can.
    #[must_use]
    pub fn bytes_per_second(mut self, bytes: u64) -> Self {
        self.bytes_per_second = Some(bytes);
        self
    }

    /// Bytes of every blob. Default: 64 KiB.
    #[must_use]
    pub fn blob_size(mut self, bytes: usize) -> Self {
        self.blob_size = bytes;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When no loopback port is free.
    pub async fn start(self) -> StubRegistry {
        self.start_at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Starts it at this address, within 127.0.0.0/8.
    ///
    /// # Panics
    /// If it cannot listen there.
    pub async fn start_at(self, address: SocketAddr) -> StubRegistry {
        let seen = Arc::new(Seen::default());
        let (settings, shared) = (Arc::new(self), seen.clone());
        let handler = move |connection| serve::connection(connection, settings.clone(), shared.clone());
        StubRegistry::launch(address, seen, handler).await
    }
}

impl StubRegistry {
    /// A registry that answers as registries do: `/v2/`, manifests, blobs with ranges, uploads.
    #[must_use]
    pub fn builder() -> StubBuilder {
        StubBuilder {
            cap: None,
            answer_delay: Duration::ZERO,
            close_each: false,
            blob_size: 64 * 1024,
            first_delay: Duration::ZERO,
            stall: Duration::ZERO,
            steady_stall: Duration::ZERO,
            drop_silent: Duration::MAX,
            bytes_per_second: None,
        }
    }

    /// A server whose every connection is handed to `handler`, for tests of single bytes. Connections are counted until
    /// the handler drops them, or says that it has seen their end ([`StubConnection::seen_end`]).
    ///
    /// # Panics
    /// When no loopback port is free.
    pub async fn raw<Handling>(handler: impl Fn(StubConnection) -> Handling + Send + Sync + 'static) -> Self
    where
        Handling: Future<Output = ()> + Send + 'static,
    {
        Self::raw_at(Ipv4Addr::LOCALHOST, handler).await
    }

    /// The same at an address of its own, within 127.0.0.0/8: no other test's sockets go there.
    ///
    /// # Panics
    /// If it cannot listen there.
    pub async fn raw_at<Handling>(
        ip: Ipv4Addr,
        handler: impl Fn(StubConnection) -> Handling + Send + Sync + 'static,
    ) -> Self
    where
        Handling: Future<Output = ()> + Send + 'static,
    {
        Self::launch((ip, 0).into(), Arc::new(Seen::default()), handler).await
    }

    async fn launch<Handling>(
        at: SocketAddr,
        seen: Arc<Seen>,
        handler: impl Fn(StubConnection) -> Handling + Send + Sync + 'static,
    ) -> Self
    where
        Handling: Future<Output = ()> + Send + 'static,
    {
        let (bound, address) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let (wanted, wish) = watch::channel(Endpoint::Open);
        let (state, door) = watch::channel(Endpoint::Open);
        let shared = seen.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime for the stub").block_on(async move {
                let listener = listen(at, BACKLOG);
                // A test that is gone already needs no stub.
                let _ = bound.send(listener.local_addr().expect("the address just bound"));
                // A task like its connections, so that they take turns in the order of the kernel's news.
                tokio::spawn(accept_when_wanted(listener, wish, state, shared, handler));
                let _ = ended.await;
            });
        });
        let address = address.await.expect("the stub listens");
        Self { address, seen, wanted, door, _end: end }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections open right now: from `accept()` until it has seen the peer's end, or closed them itself.
    #[must_use]
    pub fn open(&self) -> usize {
        self.seen.count.open()
    }

    /// The most connections that were open at one instant.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.seen.count.peak()
    }

    /// Requests whose head has come whole.
    #[must_use]
    pub fn requests(&self) -> usize {
        locked(&self.seen.heads).len()
    }

    /// The heads of all requests as they came, in their order.
    #[must_use]
    pub fn seen_requests(&self) -> Vec<String> {
        locked(&self.seen.heads).iter().map(|(_, head)| head.clone()).collect()
    }

    /// When the head of each request with this target had come whole, in their order.
    #[must_use]
    pub fn arrivals(&self, target: &str) -> Vec<Instant> {
        let is_wanted = |head: &str| head.split(' ').nth(1) == Some(target);
        locked(&self.seen.heads).iter().filter(|(_, head)| is_wanted(head)).map(|(at, _)| *at).collect()
    }

    /// The time of each accept, in order.
    #[must_use]
    pub fn accept_log(&self) -> Vec<Instant> {
        locked(&self.seen.accepts).clone()
    }

    /// Holds all answers back from now on; requests are still read and counted.
    pub fn hold(&self) {
        self.seen.gate.hold();
    }

    /// Lets `answers` of those held back go, and holds on to the others.
    pub fn let_through(&self, answers: usize) {
        self.seen.gate.let_through(answers);
    }

    /// Lets all answers go, those held back and those to come.
    pub fn release(&self) {
        self.seen.gate.release();
    }

    /// Stops listening: new connections are refused by the kernel, those that came before live on.
    pub async fn refuse(&self) {
        self.set(Endpoint::Shut).await;
    }

    /// Stops listening and ends every connection, in the middle of an answer too, as the death of a process does.
    pub async fn kill(&self) {
        self.refuse().await;
        self.seen.killed.notify_waiters();
    }

    /// Listens again, on the same port.
    pub async fn accept_again(&self) {
        self.set(Endpoint::Open).await;
    }

    /// Listens on the same port but accepts no connection, like a server that still starts: the kernel completes two
    /// connections and does not answer the others. [`StubRegistry::accept_again`] accepts those two.
    pub async fn listen_without_accepting(&self) {
        self.set(Endpoint::Stuck).await;
    }

    async fn set(&self, wanted: Endpoint) {
        self.wanted.send_replace(wanted);
        let mut door = self.door.clone();
        door.wait_for(|state| *state == wanted).await.expect("the stub still runs");
    }
}

/// Nobody panics with a lock in hand: each is held for one line.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic under a lock")
}

/// Binds with `SO_REUSEADDR`, so that the port can be taken again while old connections live.
fn listen(address: SocketAddr, backlog: u32) -> TcpListener {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("SO_REUSEADDR");
    socket.bind(address).unwrap_or_else(|error| panic!("bind {address}: {error}"));
    socket.listen(backlog).unwrap_or_else(|error| panic!("listen on {address}: {error}"))
}

/// Treats new connections as the test wants it.
async fn accept_when_wanted<Handling>(
    listener: TcpListener,
    mut wish: watch::Receiver<Endpoint>,
    state: watch::Sender<Endpoint>,
    seen: Arc<Seen>,
    handler: impl Fn(StubConnection) -> Handling,
) where
    Handling: Future<Output = ()> + Send + 'static,
{
    let address = listener.local_addr().expect("the address of the listener");
    let (mut listener, mut door) = (Some(listener), Endpoint::Open);
    loop {
        let was_open = door == Endpoint::Open;
        let accepting = async {
            match &listener {
                Some(listener) if door == Endpoint::Open => accept_all(listener, &seen, &handler).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = accepting => {}
            change = wish.wait_for(|wanted| *wanted != door) => match change {
                Ok(wanted) => door = *wanted,
                Err(_) => return,
            },
        }
        if let Some(open) = listener.as_ref().filter(|_| was_open) {
            // Connections that the kernel has completed are served: closing the listener would reset them.
            let _ = timeout(Duration::from_millis(1), accept_all(open, &seen, &handler)).await;
            accept_the_rest(open, &seen, &handler);
        }
        listener = turn(listener, door, address);
        state.send_replace(door);
    }
}

/// The listener behind a door that was turned.
fn turn(before: Option<TcpListener>, door: Endpoint, address: SocketAddr) -> Option<TcpListener> {
    match (before, door) {
        (Some(stuck), Endpoint::Open) => {
            // The same socket, with room for everybody: what stands already is kept.
            rustix::net::listen(&stuck, BACKLOG.cast_signed()).expect("a listener can be given another backlog");
            Some(stuck)
        }
        (before, door) => {
            if let Some(listener) = before {
                // Closing alone may leave it listening for a moment: a child that another test is about to start has a
                // copy of the descriptor until its exec.
                rustix::net::shutdown(&listener, rustix::net::Shutdown::Read).expect("a listener can be shut down");
            }
            match door {
                Endpoint::Open => Some(listen(address, BACKLOG)),
                Endpoint::Stuck => Some(listen(address, 1)),
                Endpoint::Shut => None,
            }
        }
    }
}

async fn accept_all<Handling>(listener: &TcpListener, seen: &Arc<Seen>, handler: &impl Fn(StubConnection) -> Handling)
where
    Handling: Future<Output = ()> + Send + 'static,
{
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: it shows as failures of the storm, and may pass.
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        serve(stream, seen, handler);
        // Asks the kernel for news before the next accept: see the top of this file.
        tokio::task::yield_now().await;
    }
}

/// Those who came since the kernel was last asked for news: right before the listener closes.
fn accept_the_rest<Handling>(listener: &TcpListener, seen: &Arc<Seen>, handler: &impl Fn(StubConnection) -> Handling)
where
    Handling: Future<Output = ()> + Send + 'static,
{
    while let Ok(socket) = rustix::net::accept(listener) {
        let stream = std::net::TcpStream::from(socket);
        stream.set_nonblocking(true).expect("a socket");
        serve(TcpStream::from_std(stream).expect("in a runtime"), seen, handler);
    }
}

fn serve<Handling>(stream: TcpStream, seen: &Arc<Seen>, handler: &impl Fn(StubConnection) -> Handling)
where
    Handling: Future<Output = ()> + Send + 'static,
{
    locked(&seen.accepts).push(Instant::now());
    let connection = StubConnection::new(stream, seen.count.clone());
    let (handling, seen) = (handler(connection), seen.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = handling => {}
            () = seen.killed.notified() => {}
        }
    });
}

#[cfg(test)]
mod tests;
