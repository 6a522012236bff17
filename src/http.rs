//! Requests that are visible as HTTP: a client's connection to the proxy, in absolute-form, or to a mirror.
//!
//! It owns the client's side of such a connection, served by hyper, and everything between a request and its answer: hop by
//! hop headers, the request as it goes out, repair, the answer's body. It never dials, and never decides who is admitted:
//! `upstream` and the gate do. Called by `listener`, once for each connection, with the bytes of its first head.

pub mod buffered_body;
mod checks;
mod forward;
mod hop_by_hop;
mod outbound;
mod repairing;
mod reply;
mod request_phase;
mod resuming;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use self::request_phase::RequestPhase;
use crate::metrics::Reason;
use crate::proxy::client::{Client, ClientIo};
use crate::proxy::connections::CountedClient;
use crate::proxy::record::Kind;
use crate::proxy::{Entry, Proxy};
use crate::upstream::http::BUFFER;

/// How long a client's connection may lie idle, or take to send a further head.
const IDLE_CLIENT: Duration = Duration::from_secs(75);

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
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_CLIENT)
            .half_close(true)
            .max_buf_size(BUFFER)
            .preserve_header_case(true)
            .serve_connection(io, service)
            .with_upgrades()
    );
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
            }
        }
    };
    match served {
        // hyper has answered 400 by itself.
        Err(error) if error.is_parse() => {
            proxy.record(&client.peer().ip().to_string(), Kind::Unknown).answered(Reason::BadRequest);
        }
        Err(error) => tracing::debug!(peer = %client.peer(), %error, "client connection ended"),
        Ok(()) => {}
    }
    !told && client.is_finished()
}
