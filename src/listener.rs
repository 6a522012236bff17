//! The proxy and mirror listeners: accept connections, read the head of each request, and hand it to [`tunnel`] or to
//! [`http`].
//!
//! Nothing is decided here but who may come and how many clients stand at once. Called by `app`, once for each listener.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use crate::http::{self, Served};
use crate::metrics::{OTHER_HOSTS, Reason};
use crate::proxy::client::Client;
use crate::proxy::clients;
use crate::proxy::connections::CountedClient;
use crate::proxy::head::{self, Head, HeadError};
use crate::proxy::record::Kind;
use crate::proxy::respond::Answer;
use crate::proxy::{Entry, Proxy};
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
    proxy.tasks().spawn(serve_client(proxy.clone(), Client::new(stream, peer), entry, descriptor));
}

/// The futures of a head, of a tunnel and of a request live on the heap, each while it runs: a connection that waits costs
/// little.
async fn serve_client(proxy: Arc<Proxy>, client: Arc<Client>, entry: Entry, _descriptor: Option<OwnedSemaphorePermit>) {
    let (counted, head_timeout) = match welcome(&proxy, &client) {
        Ok(welcome) => welcome,
        Err(answer) => return Box::pin(turn_away(&proxy, &client, answer)).await,
    };
    let (mut unread, mut silence) = (Bytes::new(), head_timeout);
    loop {
        counted.set_idle(true);
        let serving = {
            let head = Box::pin(next_head(&proxy, &client, &counted, unread, (silence, head_timeout))).await;
            counted.set_idle(false);
            match (head, &entry) {
                (Some(Ok(Head::Connect(connect))), Entry::Proxy) => {
                    Serving::Tunnel(Box::pin(tunnel::serve(&proxy, &client, &counted, connect)))
                }
                (Some(Ok(Head::Connect(_))), Entry::Mirror(_)) => {
                    let hint = "this is a registry mirror: point HTTPS_PROXY at listen.proxy";
                    Serving::Request(Box::pin(tell_last(&proxy, &client, Answer::plain(Reason::BadRequest, hint))))
                }
                (Some(Ok(Head::Other(read, end))), _) => {
                    Serving::Request(Box::pin(http::serve(&proxy, &entry, &client, read, end)))
                }
                (Some(Err(HeadError::Refused(reason, message))), _) => {
                    Serving::Request(Box::pin(tell_last(&proxy, &client, Answer::plain(reason, message))))
                }
                (Some(Err(HeadError::Left)) | None, _) => return,
            }
        };
        let served = match serving {
            Serving::Tunnel(tunnel) => return tunnel.await,
            Serving::Request(request) => request.await,
        };
        match served {
            Served::Kept(more) => (unread, silence) = (more, IDLE_CLIENT),
            Served::Last => return Box::pin(proxy.lingering_close(&client, &counted)).await,
            Served::Gone => return,
        }
    }
}

/// The service that a head leads to.
enum Serving<'a> {
    Tunnel(Pin<Box<dyn Future<Output = ()> + Send + 'a>>),
    /// A request, or a last answer.
    Request(Pin<Box<dyn Future<Output = Served> + Send + 'a>>),
}

/// The next head, which may begin after so much silence and take so long. `None`: it is not waited for any more.
async fn next_head(
    proxy: &Proxy,
    client: &Client,
    counted: &CountedClient,
    unread: Bytes,
    (silence, within): (Duration, Duration),
) -> Option<Result<Head, HeadError>> {
    tokio::select! {
        biased;
        head = head::read(client.stream(), unread, silence, within) => Some(head),
        () = counted.closes() => None,
        () = async { proxy.draining().await; sleep(LAST_HEAD).await } => None,
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
    proxy.record(clients::by_address(client), Kind::Unknown).answered(answer.reason);
    client.write_all(&answer.to_bytes(OTHER_HOSTS)).await.is_ok()
}

/// The answer to the last request of a connection.
async fn tell_last(proxy: &Proxy, client: &Client, answer: Answer) -> Served {
    if tell(proxy, client, answer).await { Served::Last } else { Served::Gone }
}

/// Counts a client that may connect. Tells also how long its heads may take.
fn welcome(proxy: &Proxy, client: &Arc<Client>) -> Result<(Arc<CountedClient>, Duration), Answer> {
    let settings = proxy.settings();
    let (terms, ip) = (&settings.terms, client.peer().ip().to_canonical());
    if !ip.is_loopback() && !terms.allow_clients.iter().any(|range| range.contains(&ip)) {
        return Err(Answer::plain(Reason::ClientDenied, format!("listen.allow_clients does not list {ip}")));
    }
    let counted = proxy.count_client(client, terms.max_clients).ok_or_else(|| {
        let message = format!("too many client connections (listen.max_clients = {})", terms.max_clients);
        Answer::plain(Reason::TooManyClients, message)
    })?;
    Ok((counted, terms.head_timeout))
}
