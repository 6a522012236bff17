//! One visible request from its first try to the answer that is handed on.
//!
//! There is one loop, and one deadline. Each turn of it takes one step toward the registry, and once it is connected it
//! sends the request and judges the answer: handed on, or asked for again before a byte of it went to the client. Between
//! two tries the request holds nothing: slot and connection went back with the answer, and it waits in its old place. When
//! its deadline comes the client gets the registry's own last answer. [`forward`](super::forward) calls it.

use std::time::{Duration, SystemTime};

use hyper::header::{HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Response, StatusCode};
use tokio::time::timeout_at;

use super::buffered_body::BufferedBody;
use super::exchange::Exchange;
use super::outbound::{Outbound, may_ask_again};
use crate::admission::{Lane, Moment};
use crate::backoff::chance;
use crate::distress::Cause;
use crate::metrics::{Label, Sign};
use crate::repair::credentials::{Doubt, TOKEN_HOLD};
use crate::repair::memory::{Key, MEMORY};
use crate::repair::signs::{self, ObservedAnswer};
use crate::repair::tokens::{self, RequestedAccess, TokenFound};
use crate::repair::{Repair, Tries};
use crate::upstream::http::AnswerBody;
use crate::upstream::request_body::RequestBody;
use crate::upstream::{Attempt, Failure, Upstream};

/// How much is read of a token to find out what it allows, and of what is asked for only to be looked at.
const MAX_LOOKED_AT: usize = 64 * 1024;
/// How much of any other answer is kept while a better one is asked for. A longer one is handed on.
const MAX_KEPT: usize = 4 * 1024;
/// How much of a manifest is read before it is handed on: one that breaks off can be asked for again.
const MAX_MANIFEST: usize = 1024 * 1024;

/// Gets the request to the registry and brings back an answer that is worth handing on, and how often it was asked for
/// again. Cancel-safe: a caller whose client has left drops the future.
/// Fails when there is none.
pub async fn exchange(
    (outbound, body): (&Outbound, RequestBody),
    upstream: &Upstream,
    attempt: &mut Attempt,
) -> Result<(Response<BufferedBody>, u32), Failure> {
    let repair = Some(&*upstream.repair).filter(|repair| repair.enabled && outbound.is_repeatable());
    let token = repair.and_then(|_| requested_access(outbound));
    let unpacked = token.as_ref().map(|_| outbound.clone().unpacked());
    let outbound = unpacked.as_ref().unwrap_or(outbound);
    let mut exchange = Exchange::new(upstream, outbound, body);
    let Some(repair) = repair else {
        loop {
            if let Some((response, _)) = exchange.turn(attempt).await? {
                return Ok((response.map(BufferedBody::unread), 0));
            }
        }
    };
    let keys = SubjectKeys::of(outbound, repair);
    let (tries, deadline) = (Tries::default(), attempt.deadline);
    let mut repairing = Repairing { exchange, repair, token, keys, look: None, tries, again: 0, deadline, last: None };
    let answer = repairing.run(attempt).await?;
    Ok((answer, repairing.again))
}

/// The client's answer.
type Last = Result<Response<BufferedBody>, Failure>;

/// A request that is asked again where that helps, and what came of it so far.
struct Repairing<'a> {
    exchange: Exchange<'a>,
    repair: &'a Repair,
    /// The requested rights, if it is a request for a token.
    token: Option<RequestedAccess>,
    keys: SubjectKeys,
    /// The GET that is to tell what the denial of a HEAD means, while that is asked.
    look: Option<Box<Outbound>>,
    tries: Tries,
    /// How often it was asked again.
    again: u32,
    /// When its patience ends.
    deadline: Moment,
    /// The client's answer if nothing better comes: the registry's last answer, or the failure.
    last: Option<Box<Last>>,
}

/// The keys of a request in the memory of repair.
struct SubjectKeys {
    /// The requested object, without the client. The rests of blobs that broke off are one object: two that are broken in
    /// storage make no distress.
    subject: Key,
    /// The proofs that its credentials are served well, and that they are those of a user; `None` without any.
    served: Option<Key>,
    named: Option<Key>,
    /// The credentials and the object together.
    denial: Key,
}

impl SubjectKeys {
    fn of(outbound: &Outbound, repair: &Repair) -> SubjectKeys {
        let (origin, uri) = (outbound.key().as_bytes(), outbound.uri().to_string());
        let credentials = outbound.credentials().map(HeaderValue::as_bytes);
        SubjectKeys {
            subject: repair.key(&[origin, if outbound.is_rest() { b"rest" } else { uri.as_bytes() }]),
            served: credentials.map(|credentials| repair.key(&[origin, credentials])),
            named: credentials.map(|credentials| repair.key(&[origin, credentials, b"named"])),
            denial: repair.key(&[origin, credentials.unwrap_or_default(), uri.as_bytes()]),
        }
    }
}

/// The verdict about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The requested object, or any answer without a sign of overload.
    Good,
    /// Worth asking again for.
    Retry(Sign),
    /// A token without what was asked for.
    PoorToken { has_subject: bool },
    /// Not good, but the registry's real answer.
    Real,
}

impl Verdict {
    /// Whether the client may be denied what it asked for, for good.
    fn may_be_denial(self) -> bool {
        match self {
            Verdict::PoorToken { .. } => true,
            Verdict::Retry(sign) => matches!(sign, Sign::Unseen401 | Sign::Ambiguous401),
            Verdict::Good | Verdict::Real => false,
        }
    }
}

/// An answer, or why there is none, and what it is.
struct Judged {
    answer: Last,
    verdict: Verdict,
    retry_after: Option<Duration>,
}

impl Repairing<'_> {
    async fn run(&mut self, attempt: &mut Attempt) -> Last {
        loop {
            let judged = match self.ask(attempt).await {
                Ok(Some(judged)) => judged,
                Ok(None) => continue,
                Err(over) => return over,
            };
            let is_denied = judged.answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::UNAUTHORIZED);
            let verdict = judged.verdict;
            let pause = match verdict {
                Verdict::Good | Verdict::Real if self.look.take().is_some() => {
                    // The GET's answer is not the HEAD's: only a denial proves a denial.
                    if is_denied {
                        return self.believed_denial();
                    }
                    self.tries.vouch();
                    Some((Duration::ZERO, Sign::Unseen401))
                }
                Verdict::Good => return self.good(judged.answer),
                Verdict::Real => return judged.answer,
                Verdict::Retry(sign) if !self.may_send_again(sign) => {
                    self.keep(judged.answer);
                    return self.last_answer();
                }
                Verdict::Retry(sign) => {
                    self.keep(judged.answer);
                    self.pause_after(sign, judged.retry_after).map(|pause| (pause, sign))
                }
                Verdict::PoorToken { has_subject } => {
                    self.keep(judged.answer);
                    self.hold_token(has_subject).await.map(|pause| (pause, Sign::PoisonedToken))
                }
            };
            match pause {
                Some((pause, sign)) if self.wait(pause, sign).await? => {}
                None if verdict.may_be_denial() => return self.believed_denial(),
                Some(_) | None => return self.last_answer(),
            }
        }
    }

    /// A form is not sent again before all of it came, nor where the registry may have used it up without an answer. A token that
    /// allows nothing is always denied a manifest or a blob.
    fn may_send_again(&self, sign: Sign) -> bool {
        let Exchange { outbound, upload, copy, .. } = &self.exchange;
        let is_content = ["/manifests/", "/blobs/"].iter().any(|part| outbound.uri().path().contains(part));
        let is_denial = is_content && matches!(sign, Sign::DatabaseError | Sign::Ambiguous401 | Sign::Unseen401);
        if is_denial && outbound.credentials().is_some_and(|it| tokens::allows_nothing(it.as_bytes())) {
            return false;
        }
        outbound.method() != Method::POST || sign != Sign::Broken && upload.is_whole() && may_ask_again(&copy.so_far())
    }

    /// One attempt. A stored answer is withheld from the client only until the deadline; for a first answer, the client decides
    /// how long it waits. An error is the client's answer.
    async fn ask(&mut self, attempt: &mut Attempt) -> Result<Option<Judged>, Last> {
        let deadline = self.exchange.upstream.instant(self.deadline);
        let has_answer = self.has_answer();
        let asking = self.ask_without_end(attempt);
        let asked = if has_answer { timeout_at(deadline, asking).await.ok() } else { Some(asking.await) };
        match asked {
            Some(Ok(judged)) => Ok(judged),
            Some(Err(failure)) => {
                self.keep(Err(failure));
                Err(self.last_answer())
            }
            None => Err(self.last_answer()),
        }
    }

    /// Whether an answer is stored that the client gets if no better one comes.
    fn has_answer(&self) -> bool {
        matches!(self.last.as_deref(), Some(Ok(_)))
    }

    async fn ask_without_end(&mut self, attempt: &mut Attempt) -> Result<Option<Judged>, Failure> {
        attempt.progress.is_reask = self.again > 0 && self.is_distressed();
        let turn = match &self.look {
            None => self.exchange.turn(attempt).await,
            Some(look) => {
                let upstream = self.exchange.upstream;
                let mut exchange = Exchange::new(upstream, look, RequestBody::empty());
                exchange.is_careful = true;
                Box::pin(exchange.turn(attempt)).await
            }
        };
        // It is longer where the request was cut meanwhile.
        self.deadline = attempt.deadline;
        let judged = match turn {
            Ok(None) => return Ok(None),
            Ok(Some((response, took))) => self.judge(response, took).await,
            // An answer that cannot be parsed now cannot be parsed later.
            Err(Failure::Died(error)) if !error.is_parse() => self.broken(error),
            Err(failure) => return Err(failure),
        };
        attempt.progress.permit = None;
        Ok(Some(judged))
    }

    fn broken(&self, error: hyper::Error) -> Judged {
        self.note(Verdict::Retry(Sign::Broken));
        Judged { answer: Err(Failure::Died(error)), verdict: Verdict::Retry(Sign::Broken), retry_after: None }
    }

    /// Looks at an answer, and notes what it says of the registry.
    async fn judge(&self, response: Response<AnswerBody>, took: Duration) -> Judged {
        let status = response.status();
        let outbound = self.look.as_deref().unwrap_or(self.exchange.outbound);
        let authorized = outbound.credentials().is_some();
        let mut response = response.map(BufferedBody::unread);
        let is_token = self.token.is_some() && status == StatusCode::OK;
        let is_manifest = is_manifest(outbound, status);
        let is_suspicious = signs::is_suspicious(status, authorized);
        let most = match () {
            () if is_token || self.look.is_some() => MAX_LOOKED_AT,
            () if is_manifest => MAX_MANIFEST,
            () => MAX_KEPT,
        };
        if is_token || is_manifest || is_suspicious || self.look.is_some() {
            let reading = response.body_mut().read(most);
            let deadline = self.exchange.upstream.instant(self.deadline);
            // A first answer that does not come whole in time is handed on as far as it came.
            let read = if self.has_answer() { Ok(reading.await) } else { timeout_at(deadline, reading).await };
            if let Ok(Err(error)) = read {
                return self.broken(error);
            }
        }
        let retry_after = signs::retry_after(response.headers(), SystemTime::now());
        let (headers, body) = (response.headers(), response.body());
        // Harbor's errors have an empty challenge. A denial without any may be another registry's own, and one of a password
        // is not asked for twice.
        let is_bare = status == StatusCode::UNAUTHORIZED && !headers.contains_key(WWW_AUTHENTICATE);
        let access = self.token.as_ref().filter(|_| is_token && body.is_whole());
        let token = access.and_then(|access| access.look_at(body.so_far()));
        let verdict = match token {
            _ if is_bare && (outbound.has_password() || self.look.is_some()) => Verdict::Real,
            Some(TokenFound::Poor { has_subject }) => Verdict::PoorToken { has_subject },
            Some(TokenFound::Whole { .. }) => {
                self.repair.whole_token(self.keys.denial, self.keys.subject, self.exchange.upstream.gate.now());
                Verdict::Good
            }
            _ if !is_suspicious => Verdict::Good,
            _ if !body.is_whole() => Verdict::Real,
            _ => {
                let (method, body) = (outbound.method(), body.so_far());
                let sign = signs::of(&ObservedAnswer { method, authorized, status, headers, body, retry_after });
                sign.map_or(Verdict::Real, Verdict::Retry)
            }
        };
        if !is_bare {
            self.note(verdict);
        }
        // A wrong password gets a token without a user, which allows what everybody may.
        let is_proof = token != Some(TokenFound::Whole { has_subject: false });
        let is_slow = verdict == Verdict::Good && status.is_success() && self.served_well(took, is_proof);
        if !is_slow && matches!(verdict, Verdict::Good | Verdict::Real) {
            let upstream = self.exchange.upstream;
            upstream.adapt.good(Some(took), &upstream.gate);
        }
        Judged { answer: Ok(response), verdict, retry_after }
    }

    /// Reports the verdict to the distress of the registry.
    fn note(&self, verdict: Verdict) {
        let (upstream, at) = (self.exchange.upstream, self.exchange.upstream.gate.now());
        let SubjectKeys { subject, served, named, .. } = self.keys;
        let (sign, needs, subject) = match verdict {
            Verdict::Good | Verdict::Real => return,
            Verdict::PoorToken { has_subject: true } => (Sign::PoisonedToken, served, subject),
            // Harbor locks a user name for 1.5 s after a wrong password: it counts once, whatever was asked for.
            Verdict::PoorToken { has_subject: false } => (Sign::PoisonedToken, named, served.unwrap_or(subject)),
            Verdict::Retry(sign @ (Sign::Ambiguous401 | Sign::Unseen401)) => (sign, served, subject),
            Verdict::Retry(sign) => return upstream.note(Cause::Answer(sign), subject),
        };
        upstream.observed.iter().for_each(|observed| observed.sign(Cause::Answer(sign)));
        if let Some(needs) = needs {
            self.repair.doubt(Doubt { sign, subject, needs, at });
        }
        if verdict == (Verdict::PoorToken { has_subject: true }) {
            self.repair.poor_token(self.keys.denial, at);
            self.prove([named], at);
        }
    }

    fn prove(&self, proofs: impl IntoIterator<Item = Option<Key>>, now: Moment) {
        proofs.into_iter().flatten().for_each(|proof| self.repair.prove(proof, now));
    }

    /// Notes that this registry is well, and its credentials, where the answer proves it. Tells whether the answer was slow, which
    /// is a sign.
    fn served_well(&self, took: Duration, is_proof: bool) -> bool {
        let upstream = self.exchange.upstream;
        let now = upstream.gate.now();
        if is_proof {
            self.prove([self.keys.named, self.keys.served], now);
        }
        let is_small = self.exchange.outbound.lane() == Lane::Small;
        let is_slow = is_small && upstream.adapt.answered(took, now);
        if is_slow {
            upstream.note(Cause::SlowAnswer, self.keys.subject);
        }
        is_slow
    }

    fn good(&self, answer: Last) -> Last {
        if let Some(first) = self.tries.first() {
            self.exchange.upstream.metrics.repaired(first);
        }
        if self.token.is_some() || self.exchange.outbound.method() == Method::HEAD {
            self.repair.denials.lock().forget(self.keys.denial, self.exchange.upstream.gate.now());
        }
        answer
    }

    /// Keeps an answer for the client. A failure of ours says less than any answer of the registry, and what a GET said of a
    /// HEAD is not its answer.
    fn keep(&mut self, answer: Last) {
        let is_worse = answer.is_err() && matches!(self.last.as_deref(), Some(Ok(_)));
        if self.look.is_none() && !is_worse {
            self.last = Some(Box::new(answer));
        }
    }

    /// Whether no answer that could be a sign is believed: in distress, and near the limit that the slots in force yield to.
    fn is_distressed(&self) -> bool {
        let upstream = self.exchange.upstream;
        self.repair.is_distressed(upstream.gate.now()) || upstream.adapt.is_near_limit(upstream.gate.now())
    }

    /// The stored answer.
    fn last_answer(&mut self) -> Last {
        *self.last.take().expect("the first answer is kept before it is given up")
    }

    /// The stored answer, a denial that is remembered for a while.
    fn believed_denial(&mut self) -> Last {
        self.repair.denials.lock().remember(self.keys.denial, MEMORY, self.exchange.upstream.gate.now());
        self.last_answer()
    }

    /// How long to wait before it is asked again; `None` when the answer is believed.
    fn pause_after(&mut self, sign: Sign, retry_after: Option<Duration>) -> Option<Duration> {
        let now = self.exchange.upstream.gate.now();
        let is_distressed = self.is_distressed();
        if self.look.take().is_none() && self.tries.is_unexplained(sign) {
            // The answer to a HEAD does not tell why it is a denial; the same as a GET does.
            self.look = self.exchange.outbound.as_look().map(Box::new);
            if self.look.is_none() || !is_distressed && self.repair.denials.lock().knows(self.keys.denial, now) {
                return None;
            }
        }
        self.tries.pause_after(sign, is_distressed, retry_after, chance())
    }

    /// A poor token is held for a moment, unasked: where distress begins meanwhile it is asked for again. Without, one that
    /// names a user is asked for once more; one that names none is that of a wrong password, unless the same credentials
    /// named their user not long ago.
    async fn hold_token(&mut self, has_subject: bool) -> Option<Duration> {
        let now = || self.exchange.upstream.gate.now();
        if !self.is_distressed() {
            if self.repair.denials.lock().knows(self.keys.denial, now()) {
                return None;
            }
            let begins = self.repair.distress_begins(now);
            let has_begun = tokio::time::timeout(TOKEN_HOLD, begins).await.is_ok();
            let is_user = has_subject
                || self.keys.named.is_some_and(|named| self.repair.credentials.lock().proofs.knows(named, now()));
            if !has_begun && !is_user {
                return None;
            }
        }
        self.pause_after(Sign::PoisonedToken, None)
    }

    /// Waits until the time has come to ask again, and notes that it is asked again. Tells whether there is time left for it.
    async fn wait(&mut self, pause: Duration, sign: Sign) -> Result<bool, Failure> {
        let upstream = self.exchange.upstream;
        let due = upstream.gate.now() + pause;
        if due > self.deadline {
            return Ok(false);
        }
        if !pause.is_zero() && upstream.pause_until(due).await.is_err() {
            return Ok(false);
        }
        self.again += 1;
        upstream.metrics.retried(sign);
        tracing::debug!(registry = upstream.name, sign = sign.as_str(), times = self.again, "asks again");
        Ok(true)
    }
}

/// A manifest is small: it is read before it is handed on, so that one that breaks off can be asked for again.
fn is_manifest(outbound: &Outbound, status: StatusCode) -> bool {
    status == StatusCode::OK && outbound.method() == Method::GET && outbound.uri().path().contains("/manifests/")
}

/// The rights that a request for a token asks for; `None` for any other request.
fn requested_access(outbound: &Outbound) -> Option<RequestedAccess> {
    let uri = outbound.uri();
    let query = uri.query().filter(|_| outbound.method() == Method::GET && uri.path().ends_with("/token"))?;
    RequestedAccess::of_query(query)
}
