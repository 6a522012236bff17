//! The proxy and mirror listeners: accept connections, read the first head of each, and hand it to [`tunnel`] or to
//! [`http`].
//!
//! Nothing is decided here but who may come and how many clients stand at once. Called by `app`, once for each listener.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::http;
use crate::metrics::{OTHER_HOSTS, Reason};
use crate::proxy::client::Client;
use crate::proxy::head::{self, FirstHead, HeadError};
use crate::proxy::record::Kind;
use crate::proxy::respond::Answer;
use crate::proxy::{Asking, ClientTerms, Entry, Proxy};
use crate::tunnel;

/// The pause after a connection could not be accepted: out of descriptors, mostly. The connection stays in the backlog.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a first head may take once draining has begun: a connection that was opened ahead of its use must not keep the
/// process.
const LAST_HEAD: Duration = Duration::from_secs(1);

/// Accepts connections until draining begins; then the listener is closed.
pub async fn accept(proxy: Arc<Proxy>, listener: TcpListener, entry: Entry) {
    let _accepting = Asking::new(proxy.clone());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = proxy.draining() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let asking = Asking::new(proxy.clone());
                proxy.tasks().spawn(serve(proxy.clone(), stream, peer, entry.clone(), asking));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(proxy: Arc<Proxy>, stream: TcpStream, peer: SocketAddr, entry: Entry, asking: Asking) {
    let client = Client::new(stream, peer);
    let terms = proxy.settings().terms.clone();
    if let Err(answer) = welcome(&terms, peer.ip()) {
        return turn_away(&proxy, &client, answer).await;
    }
    let Some(_counted) = proxy.count_client(terms.max_clients) else {
        let message = format!("too many client connections (listen.max_clients = {})", terms.max_clients);
        return turn_away(&proxy, &client, Answer::plain(Reason::TooManyClients, message)).await;
    };
    let answer = match (first_head(&proxy, &client, terms.head_timeout).await, &entry) {
        (Ok(FirstHead::Connect(connect)), Entry::Proxy) => {
            return tunnel::serve(&proxy, client, connect, asking).await;
        }
        (Ok(FirstHead::Connect(_)), Entry::Mirror(_)) => {
            Answer::plain(Reason::BadRequest, "this is a registry mirror: point HTTPS_PROXY at listen.proxy")
        }
        (Ok(FirstHead::Other(bytes)), _) => {
            let lingers = http::serve(&proxy, entry, &client, bytes).await;
            drop(asking);
            if lingers {
                proxy.lingering_close(&client).await;
            }
            return;
        }
        (Err(HeadError::Closed | HeadError::Silent), _) => return,
        (Err(error @ HeadError::Crowded), _) => Answer::plain(Reason::TooManyClients, error.to_string()),
        (Err(error @ HeadError::TimedOut(_)), _) => Answer::plain(Reason::HeadTimeout, error.to_string()),
        (Err(error @ HeadError::Malformed(_)), _) => Answer::plain(Reason::BadRequest, error.to_string()),
    };
    drop(asking);
    if tell(&proxy, &client, answer).await {
        proxy.lingering_close(&client).await;
    }
}

async fn first_head(proxy: &Proxy, client: &Client, head_timeout: Duration) -> Result<FirstHead, HeadError> {
    tokio::select! {
        head = head::read(client.stream(), head_timeout) => head,
        () = async { proxy.draining().await; tokio::time::sleep(LAST_HEAD).await } => Err(HeadError::Silent),
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
