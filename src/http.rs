//! Requests that are visible as HTTP: a client's connection to the proxy, in absolute-form, or to a mirror.
//!
//! It owns the client's side of such a request, served by hyper, and everything between a request and its answer: hop by
//! hop headers, the request as it goes out, repair, the answer's body. It never dials, and never decides who is admitted:
//! `upstream` and the gate do. Called by `listener`, once for each request, with its head.

pub mod buffered_body;
mod forward;
mod hop_by_hop;
mod last_hop;
mod outbound;
mod repairing;
mod reply;
mod request_io;
mod resuming;

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use self::request_io::RequestIo;
use crate::metrics::Reason;
<<<<<<< HEAD
use crate::proxy::client::{Client, ClientIo};
use crate::proxy::connections::CountedClient;
=======
use crate::proxy::client::Client;
>>>>>>> 3bd20f4 (Read and check every head of a connection in one place, and pass informational answers on)
use crate::proxy::record::Kind;
use crate::proxy::request_end::RequestEnd;
use crate::proxy::{Entry, Proxy};
use crate::upstream::http::BUFFER;

/// The state of a connection after one request.
pub enum Served {
    /// It is kept, and these bytes behind the request were read.
    Kept(Bytes),
    /// The answer was the last, and the client may still be sending: it is left to close lingeringly.
    Last,
    /// The client is gone, or is to be reset.
    Gone,
}

<<<<<<< HEAD
/// How long it may lie idle once draining has begun. A request may be under way to us, and would be lost; whoever asks is
/// told that the connection ends.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// Serves a client's connection with hyper, starting with the bytes that were read already. Whether it is left to close
/// lingeringly: an answer was the last, and the client may still be sending.
pub async fn serve(
    proxy: &Arc<Proxy>,
    entry: Entry,
    client: &Arc<Client>,
    counted: Arc<CountedClient>,
    replay: Bytes,
) -> bool {
    let io = TokioIo::new(ClientIo::new(client.clone(), replay));
    let phase = RequestPhase::new(counted.clone());
    let service =
        service_fn(|request| forward::answer(proxy.clone(), entry.clone(), client.clone(), phase.clone(), request));
=======
/// Serves one request with hyper, starting with the bytes that were read of it.
pub async fn serve(proxy: &Arc<Proxy>, entry: &Entry, client: &Arc<Client>, read: Bytes, end: RequestEnd) -> Served {
    let io = RequestIo::new(client.clone(), read, end);
    let service = service_fn(|request| forward::answer(proxy, entry, &io, request));
>>>>>>> 3bd20f4 (Read and check every head of a connection in one place, and pass informational answers on)
    let mut connection = pin!(
        http1::Builder::new()
            .half_close(true)
            .max_buf_size(BUFFER)
            .preserve_header_case(true)
            .serve_connection(TokioIo::new(io.clone()), service)
    );
<<<<<<< HEAD
    let mut told = false;
    let served = loop {
        tokio::select! {
            served = connection.as_mut() => break served,
            () = async {
                tokio::select! {
                    () = async { proxy.draining().await; phase.idle_for(LAST_CHANCE).await } => {}
                    () = counted.closes() => {}
                }
            }, if !told => {
                connection.as_mut().graceful_shutdown();
                told = true;
            }
            // Dropping the connection drops the request under way, and records it.
            () = client.gone() => return false,
            () = proxy.cut_short() => {
                client.cut();
                return false;
=======
    let served = std::future::poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Pending if io.is_over() => Poll::Ready(None),
        served => served.map(Some),
    });
    tokio::select! {
        served = served => match served {
            None => return Served::Kept(io.take_unread()),
            // hyper has answered 400 by itself.
            Some(Err(error)) if error.is_parse() => {
                proxy.record(&client.peer().ip().to_string(), Kind::Unknown).answered(Reason::BadRequest);
>>>>>>> 3bd20f4 (Read and check every head of a connection in one place, and pass informational answers on)
            }
            Some(Err(error)) => tracing::debug!(peer = %client.peer(), %error, "client connection ended"),
            Some(Ok(())) => {}
        },
        // Dropping the connection drops the request under way, and records it.
        () = client.gone() => return Served::Gone,
        () = proxy.cut_short() => {
            client.cut();
            return Served::Gone;
        }
    }
    if client.is_finished() { Served::Last } else { Served::Gone }
}
