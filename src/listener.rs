//! The proxy and mirror listeners: accept connections, read the head of each request, and hand it to [`tunnel`] or to
//! [`http`].
//!
//! Nothing is decided here but who may come and how many clients stand at once. Called by `app`, once for each listener.

use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use crate::http::{self, Served};
use crate::metrics::{OTHER_HOSTS, Reason};
use crate::proxy::client::Client;
use crate::proxy::head::{self, Head, HeadError};
use crate::proxy::record::Kind;
use crate::proxy::respond::Answer;
use crate::proxy::{ClientTerms, Entry, Proxy};
use crate::tunnel;

/// The pause where there is no descriptor for another client, though there should be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection may lie idle between two requests.
const IDLE_CLIENT: Duration = Duration::from_secs(75);

/// How long a head may take once draining has begun: a connection that is kept or opened ahead of its use must not keep the
/// process, though a request may be under way to us.
const LAST_HEAD: Duration = Duration::from_secs(1);

/// Accepts connections until draining begins; then the listener is closed. All listeners share the descriptors that clients
/// may take. The rest is for dials: a client that cannot be served is worse off than one that waits in the backlog.
pub async fn accept(proxy: Arc<Proxy>, listener: TcpListener, entry: Entry, descriptors: Arc<Semaphore>) {
    loop {
        let accepted = async {
            let descriptor = descriptors.clone().acquire_owned().await.ok();
            listener.accept().await.map(|(stream, peer)| (stream, peer, descriptor))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = proxy.draining() => return,
        };
        match accepted {
            Ok((stream, peer, descriptor)) => serve(&proxy, stream, peer, entry.clone(), descriptor),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed: it waits in the backlog");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves those who wait in the backlog of a listener that is about to be closed: the kernel would reset them.
pub fn serve_backlog(proxy: &Arc<Proxy>, listener: &StdListener, entry: &Entry) {
    while let Ok((stream, peer)) = listener.accept() {
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            serve(proxy, stream, peer, entry.clone(), None);
        }
    }
}

fn serve(
    proxy: &Arc<Proxy>,
    stream: TcpStream,
    peer: SocketAddr,
    entry: Entry,
    descriptor: Option<OwnedSemaphorePermit>,
) {
    proxy.tasks().spawn(serve_client(proxy.clone(), stream, peer, entry, descriptor));
}

/// The futures of a tunnel and of a request live on the heap, each while it runs: a connection that lies idle costs little.
async fn serve_client(
    proxy: Arc<Proxy>,
    stream: TcpStream,
    peer: SocketAddr,
    entry: Entry,
    _descriptor: Option<OwnedSemaphorePermit>,
) {
    let client = Client::new(stream, peer);
    let terms = proxy.settings().terms.clone();
    if let Err(answer) = welcome(&terms, peer.ip()) {
        return Box::pin(turn_away(&proxy, &client, answer)).await;
    }
    let Some(counted) = proxy.count_client(&client, terms.max_clients) else {
        let message = format!("too many client connections (listen.max_clients = {})", terms.max_clients);
        return Box::pin(turn_away(&proxy, &client, Answer::plain(Reason::TooManyClients, message))).await;
    };
    let (mut unread, mut silence) = (Bytes::new(), terms.head_timeout);
    let answer = loop {
        counted.set_idle(true);
        let head = tokio::select! {
            biased;
            head = head::read(client.stream(), unread, silence, terms.head_timeout) => head,
            () = counted.closes() => return,
            () = async { proxy.draining().await; sleep(LAST_HEAD).await } => return,
        };
        counted.set_idle(false);
        match (head, &entry) {
            (Ok(Head::Connect(connect)), Entry::Proxy) => {
                return Box::pin(tunnel::serve(&proxy, client, &counted, connect)).await;
            }
            (Ok(Head::Connect(_)), Entry::Mirror(_)) => {
                break Answer::plain(
                    Reason::BadRequest,
                    "this is a registry mirror: point HTTPS_PROXY at listen.proxy",
                );
            }
            (Ok(Head::Other(read, end)), _) => match Box::pin(http::serve(&proxy, &entry, &client, read, end)).await {
                Served::Kept(more) => (unread, silence) = (more, IDLE_CLIENT),
                Served::Last => return Box::pin(proxy.lingering_close(&client, &counted)).await,
                Served::Gone => return,
            },
            (Err(HeadError::Left), _) => return,
            (Err(HeadError::Refused(reason, message)), _) => break Answer::plain(reason, message),
        }
    };
    if Box::pin(tell(&proxy, &client, answer)).await {
        Box::pin(proxy.lingering_close(&client, &counted)).await;
    }
}

/// Answers a connection that does not count as a client.
async fn turn_away(proxy: &Proxy, client: &Client, answer: Answer) {
    if tell(proxy, client, answer).await {
        client.brief_lingering_close(|_| ()).await;
    }
}

/// Answers a connection on which no request is served. Whether the answer was sent.
async fn tell(proxy: &Proxy, client: &Client, answer: Answer) -> bool {
    proxy.record(&client.peer().ip().to_string(), Kind::Unknown).answered(answer.reason);
    client.write_all(&answer.to_bytes(OTHER_HOSTS)).await.is_ok()
}

fn welcome(terms: &ClientTerms, ip: IpAddr) -> Result<(), Answer> {
    let ip = ip.to_canonical();
    if ip.is_loopback() || terms.allow_clients.iter().any(|range| range.contains(&ip)) {
        return Ok(());
    }
    Err(Answer::plain(Reason::ClientDenied, format!("listen.allow_clients does not list {ip}")))
}
