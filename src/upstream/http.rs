//! HTTP/1.1 to the registry, on connections that are pooled and reused.
//!
//! hyper speaks on each connection; the gate decides which connection is used, pooled or closed. (hyper-util's
//! client races a dial against its pool and keeps the loser, which would break the cap.)

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    TRANSFER_ENCODING, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, Version};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::cluster::NodePermit;
use super::connect::{ConnectionTerms, Established, socket_of};
use super::early_answer::EarlyAnswer;
use super::request_body::{RequestBody, Upload};
use super::socket::{Ending, Glance, Manner};
use super::stall::{Lookout, Pending, PendingRequest};
use crate::admission::{Gate, ReuseKey, SlotId};
use crate::metrics::Reclaimed;
use crate::reclaim::ClientDebt;

/// How long the last bytes of a request may take to the registry after its answer was read to the end.
const LONGEST_REST_OF_REQUEST: Duration = Duration::from_secs(1);

/// The headers that an answer may have.
const MAX_ANSWER_HEADERS: usize = 512;

/// The most that is buffered of a body on each side of it, and the longest head. hyper would take six times as much for a
/// body that flows, and memory would follow the number of downloads.
pub const BUFFER: usize = 64 * 1024;

/// A connection on which a request can be sent. Dropping it closes the connection.
#[derive(Debug)]
pub struct PooledConnection {
    sender: SendRequest<RequestBody>,
    ending: Ending,
    slot: SlotId,
    pending: Pending,
    glance: Glance,
    /// The task that reads and writes. It ends by itself once what was written is taken; a registry that takes nothing
    /// would keep it for ever.
    task: AbortHandle,
    pub node: Option<usize>,
    terms: ConnectionTerms,
    pub used: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum SendError {
    /// The connection, which had been pooled, was closed before a byte of the request was sent; here it is back.
    Unsent(Box<Request<RequestBody>>),
    /// Its connection was cut for a request that waits, since no answer began: it may be sent again.
    Cut,
    /// The connection ended before the head of the answer.
    Died {
        cause: hyper::Error,
        /// Whether the connection had been pooled, so that the registry may have closed it before it saw the request.
        was_pooled: bool,
    },
    /// The framing of the answer cannot be trusted (RFC 9112, section 6.3).
    Malformed(&'static str),
}

impl PooledConnection {
    /// Starts HTTP/1.1 on a connection that stands. Fails when hyper refuses the connection; it does not at present.
    pub async fn start(
        established: Established,
        gate: &Gate<PooledConnection>,
        terms: ConnectionTerms,
    ) -> Result<PooledConnection, hyper::Error> {
        let socket = socket_of(&established);
        let (ending, glance, metrics) = (socket.ending().clone(), socket.glance(), socket.metrics.clone());
        let (slot, pending) = (socket.slot().id(), Pending::default());
        let node = socket.node_permit().map(NodePermit::index);
        let activity = socket.slot().activity();
        let lookout =
            Lookout { pending: pending.clone(), activity, slot, gate: gate.clone(), longest: terms.stall_timeout };
        ending.set(Manner::InOrder);
        let (sender, connection) = Builder::new()
            .max_buf_size(BUFFER)
            .max_headers(MAX_ANSWER_HEADERS)
            .preserve_header_case(true)
            .handshake(TokioIo::new(EarlyAnswer::new(established)))
            .await?;
        let cut = ending.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "connection to the registry ended");
                },
                () = lookout.reclaimed() => {
                    metrics.reclaimed(Reclaimed::Stalled);
                    cut.set(Manner::Cut);
                }
            }
        });
        let task = task.abort_handle();
        Ok(PooledConnection { sender, ending, slot, pending, glance, node, task, terms, used: false })
    }

    /// Ends it at once, whatever is under way.
    fn cut(&self) {
        self.ending.set(Manner::Cut);
        self.task.abort();
    }

    /// Whether the registry has not ended it, as far as the kernel knows at this moment.
    pub fn is_fresh(&self) -> bool {
        !self.sender.is_closed() && self.glance.is_fresh()
    }

    /// Sends a request. The answer's body keeps the connection until it was read to its end; then the connection is
    /// parked at the gate for `key`.
    /// Fails when the connection was closed before the request or the head of the answer came through.
    pub async fn send(
        mut self,
        request: Request<RequestBody>,
        gate: Gate<PooledConnection>,
        key: ReuseKey,
    ) -> Result<Response<AnswerBody>, SendError> {
        let was_pooled = std::mem::replace(&mut self.used, true);
        let is_personal = binds_connection(request.headers());
        let upload = request.body().upload();
        upload.begin(ClientDebt::new(self.terms.least_rate, self.terms.stall_timeout));
        let is_safe = [Method::GET, Method::HEAD].contains(request.method()) && request.body().is_end_stream();
        *self.pending.lock() = Some(PendingRequest {
            began: gate.now(),
            upload: upload.clone(),
            is_safe,
            is_answered: false,
            is_cut: false,
        });
        let pending = self.pending.clone();
        let mut underway = Underway { connection: Some(self), gate, key, upload, is_final: false, is_reusable: false };
        match underway.sender().try_send_request(request).await {
            Ok(answer) => {
                pending.lock().iter_mut().for_each(|pending| pending.is_answered = true);
                check_framing(answer.headers()).map_err(SendError::Malformed)?;
                underway.is_final = answer.status().as_u16() >= 300;
                // RFC 9112, section 9.3: HTTP/1.0 has no persistent connections, whatever the registry says. hyper would
                // send the next request in 1.0, and a body of unknown length not at all.
                let ends = is_personal || binds_connection(answer.headers()) || says_close(answer.headers());
                underway.is_reusable = answer.version() == Version::HTTP_11 && !ends;
                Ok(answer.map(|body| AnswerBody::new(body, underway)))
            }
            Err(mut failed) => Err(match failed.take_message() {
                Some(request) if was_pooled => SendError::Unsent(Box::new(request)),
                _ if pending.lock().as_ref().is_some_and(|pending| pending.is_cut) => SendError::Cut,
                // A registry that closes each new connection at once must not be dialled over and over.
                Some(_) | None => SendError::Died { cause: failed.into_error(), was_pooled },
            }),
        }
    }
}

/// Whether the body of an answer ends where these headers say (RFC 9112, section 6.3): a coding that we do not know, or two
/// statements about the length, would let us and the client see different ends. hyper reads a list of equal lengths as one,
/// and would pass the list on (RFC 9110, section 8.6).
fn check_framing(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let is_number = |length: &HeaderValue| !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
    if lengths.next().is_some_and(|first| !is_number(first) || lengths.any(|length| length != first)) {
        return Err("a Content-Length that is no number, or several");
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            if headers.contains_key(CONTENT_LENGTH) { Err("Transfer-Encoding and Content-Length") } else { Ok(()) }
        }
        _ => Err("a Transfer-Encoding other than chunked"),
    }
}

/// Whether the connection ends with this message (RFC 9112, section 9.6). hyper overlooks it in a value with other than ASCII.
pub fn says_close(headers: &HeaderMap) -> bool {
    tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case(b"close"))
}

/// The elements of a list. By bytes: one element that is no ASCII leaves the others as they are.
pub fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    let values = headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    let tokens = values.flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    tokens.filter(|token| !token.is_empty())
}

/// Whether credentials or a challenge bind the connection to one user (NTLM, Negotiate): others must not be sent on it.
fn binds_connection(headers: &HeaderMap) -> bool {
    let binds = |value: &HeaderValue| {
        let scheme = value.as_bytes().split(|byte| *byte == b' ').next().unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate")
    };
    [AUTHORIZATION, WWW_AUTHENTICATE, PROXY_AUTHENTICATE].iter().any(|name| headers.get_all(name).iter().any(binds))
}

/// A request is on its way: dropped before the end, it cuts the connection.
struct Underway {
    connection: Option<PooledConnection>,
    gate: Gate<PooledConnection>,
    key: ReuseKey,
    upload: Upload,
    /// Whether the answer says that the registry wants no more of the request.
    is_final: bool,
    /// Whether others may be sent on the connection.
    is_reusable: bool,
}

impl Underway {
    fn sender(&mut self) -> &mut SendRequest<RequestBody> {
        &mut self.connection.as_mut().expect("there until completed").sender
    }

    /// The answer was read to its end: the connection is free again as soon as hyper says so. A registry that has refused
    /// or redirected an upload is rid of it at once; one that has accepted it early still gets the rest.
    fn complete(mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let is_whole = self.upload.is_whole();
        if self.is_final && !is_whole {
            return connection.cut();
        }
        let (gate, key, is_reusable) = (self.gate.clone(), self.key.clone(), self.is_reusable);
        let free = move |connection: PooledConnection| {
            *connection.pending.lock() = None;
            if is_reusable {
                gate.park(connection.slot, key, connection);
            }
        };
        // A refusal may be a sign of overload, which is judged before the slot is free.
        if !self.is_final && connection.sender.is_ready() {
            return free(connection);
        }
        tokio::spawn(async move {
            let ready = connection.sender.ready();
            let ready = if is_whole { timeout(LONGEST_REST_OF_REQUEST, ready).await } else { Ok(ready.await) };
            match ready {
                Ok(Ok(())) => free(connection),
                Ok(Err(_)) => {}
                Err(_) => connection.cut(),
            }
        });
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.cut();
        }
    }
}

/// The body of an answer, as it comes from the registry.
pub struct AnswerBody {
    body: Incoming,
    underway: Option<Underway>,
    /// The bytes of the last frame.
    handed_on: usize,
}

impl AnswerBody {
    fn new(body: Incoming, underway: Underway) -> AnswerBody {
        AnswerBody { body, underway: Some(underway), handed_on: 0 }
    }

    fn note(&self, owes: bool, moved: usize) {
        if let Some(underway) = &self.underway {
            underway.upload.note(owes, moved);
        }
    }

    fn check_end(&mut self) {
        if self.body.is_end_stream() {
            self.complete();
        }
    }

    fn complete(&mut self) {
        if let Some(underway) = self.underway.take() {
            underway.complete();
        }
    }
}

/// A body without bytes may never be read, and has ended all the same.
impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.check_end();
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        // Nobody asks for more before the client has taken what came before.
        let taken = std::mem::take(&mut this.handed_on);
        this.note(false, taken);
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            this.handed_on = frame.data_ref().map_or(0, Bytes::len);
            this.note(true, 0);
        }
        match &frame {
            // Nobody polls again after trailers.
            Some(Ok(frame)) if frame.is_trailers() => this.complete(),
            Some(Ok(_)) => this.check_end(),
            Some(Err(_)) => {}
            None => this.complete(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
