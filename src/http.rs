//! Requests that are visible as HTTP: a client's connection to the proxy, in absolute-form, or to a mirror.
//!
//! It owns the client's side of such a request, served by hyper, and everything between a request and its answer: hop by
//! hop headers, the request as it goes out, repair, the answer's body. It never dials, and never decides who is admitted:
//! `upstream` and the gate do. Called by `listener`, once for each request, with its head.

pub mod buffered_body;
mod exchange;
mod forward;
mod hop_by_hop;
mod last_hop;
mod outbound;
mod queued;
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

use self::queued::Queued;
use self::request_io::RequestIo;
use crate::metrics::Reason;
use crate::proxy::client::Client;
use crate::proxy::clients;
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

/// Serves one request with hyper, starting with the bytes that were read of it. While the request waits, hyper is not there:
/// its buffers are larger than all that a waiter needs. It reads the request again when that has its turn.
pub async fn serve(proxy: &Arc<Proxy>, entry: &Entry, client: &Arc<Client>, read: Bytes, end: RequestEnd) -> Served {
    tokio::select! {
        served = serve_in_turn(proxy, entry, client, read, end) => served,
        // Dropping the connection drops the request under way, and records it.
        () = client.gone() => Served::Gone,
        () = proxy.cut_short() => {
            client.cut();
            Served::Gone
        }
    }
}

async fn serve_in_turn(
    proxy: &Arc<Proxy>,
    entry: &Entry,
    client: &Arc<Client>,
    read: Bytes,
    end: RequestEnd,
) -> Served {
    let mut io = RequestIo::new(client.clone(), read, end, None);
    loop {
        let (mut queued, read, end) = match Box::pin(converse(proxy, entry, &io)).await {
            Conversation::Ended(served) => return served,
            Conversation::PutBack(queued, read, end) => (queued, read, end),
        };
        drop(io);
        queued.turn().await;
        io = RequestIo::new(client.clone(), read, end, Some(queued));
    }
}

/// How hyper's part came to its end.
enum Conversation {
    Ended(Served),
    /// The request waits; these are its bytes and their end.
    PutBack(Box<Queued>, Bytes, RequestEnd),
}

async fn converse(proxy: &Arc<Proxy>, entry: &Entry, io: &RequestIo) -> Conversation {
    let client = io.client();
    let service = service_fn(|request| forward::answer(proxy, entry, io, request));
    let mut connection = pin!(
        http1::Builder::new()
            .half_close(true)
            .max_buf_size(BUFFER)
            .preserve_header_case(true)
            .serve_connection(TokioIo::new(io.clone()), service)
    );
    let served = std::future::poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Pending if io.is_over() => Poll::Ready(Err(Conversation::Ended(Served::Kept(io.take_unread())))),
        Poll::Pending => match io.begin_anew() {
            Some((queued, read, end)) => Poll::Ready(Err(Conversation::PutBack(queued, read, end))),
            None => Poll::Pending,
        },
        Poll::Ready(served) => Poll::Ready(Ok(served)),
    });
    match served.await {
        Err(conversation) => return conversation,
        // hyper has answered 400 by itself.
        Ok(Err(error)) if error.is_parse() => {
            proxy.record(clients::by_address(client), Kind::Unknown).answered(Reason::BadRequest);
        }
        Ok(Err(error)) => tracing::debug!(peer = %client.peer(), %error, "client connection ended"),
        // hyper leaves the end of the connection to the caller where a request asks for an upgrade, which none gets here.
        Ok(Ok(())) if io.is_flushed() && !client.is_finished() => _ = client.finish(),
        Ok(Ok(())) => {}
    }
    Conversation::Ended(if client.is_finished() { Served::Last } else { Served::Gone })
}
