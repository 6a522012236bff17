//! Asks again for answers that show the registry's overload, before a byte of them went to the client.
//!
//! Between two tries the request holds nothing: slot and connection went back with the answer, and it waits in its old
//! place for the next. Its own deadline bounds all of it; then the client gets the registry's own last answer.

use std::collections::BTreeSet;
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::{Duration, SystemTime};

use hyper::{Method, Response, StatusCode};
use tokio::time::timeout_at;

use super::buffered_body::BufferedBody;
use super::outbound::Outbound;
use crate::admission::Moment;
use crate::backoff::chance;
use crate::metrics::{Label, Sign};
use crate::repair::denials::Denial;
use crate::repair::room::Taken;
use crate::repair::signs::{self, Exchange};
use crate::repair::tokens::{Access, Asked};
use crate::repair::{Repair, Tries};
use crate::upstream::http::AnswerBody;
use crate::upstream::{Attempt, Failure, Upstream};

/// How much of an answer is read to find out what it means. A longer one is none of those that can be repaired.
const MOST: usize = 64 * 1024;

/// Gets the request to the registry and brings back an answer that is worth handing on, and how often it was asked for
/// again.
///
/// # Errors
/// When there is none.
pub async fn exchange(
    outbound: &mut Outbound,
    upstream: &Upstream,
    attempt: &mut Attempt,
) -> Result<(Response<BufferedBody>, u32), Failure> {
    let Some(repair) = upstream.repair.as_deref().filter(|_| outbound.is_repeatable()) else {
        let response = outbound.send(upstream, attempt).await?;
        return Ok((response.map(BufferedBody::unread), 0));
    };
    repair.request(upstream.gate.now());
    let deadline = attempt.deadline;
    let mut mending = Mending { upstream, repair, deadline, tries: Tries::default(), again: 0, last: None, room: None };
    let answer = mending.run(outbound, attempt).await?;
    Ok((answer, mending.again))
}

/// What the client gets.
type Outcome = Result<Response<BufferedBody>, Failure>;

/// One request and what came of it so far.
struct Mending<'a> {
    upstream: &'a Upstream,
    repair: &'a Repair,
    deadline: Moment,
    tries: Tries,
    /// How often it was asked again.
    again: u32,
    /// What the client gets if nothing better comes: the registry's last answer, or why there is none.
    last: Option<Outcome>,
    /// The room that it takes.
    room: Option<Taken<'a>>,
}

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// What was asked for, or any answer that says nothing of overload.
    Good,
    /// Worth asking again for.
    Sick(Sign),
    /// Not good, but the registry's real answer.
    Real,
}

/// An answer, or why there is none.
struct Seen {
    answer: Outcome,
    finding: Finding,
    retry_after: Option<Duration>,
}

impl Mending<'_> {
    async fn run(&mut self, outbound: &mut Outbound, attempt: &mut Attempt) -> Outcome {
        let mut token = Token::asked_by(outbound, self.repair);
        if token.is_some() {
            outbound.forgo_encodings();
        }
        loop {
            if let Break(outcome) = self.step(outbound, &mut token, attempt).await {
                return outcome;
            }
        }
    }

    /// Asks, and does what the answer demands. It goes on where the same is to be asked again.
    async fn step(
        &mut self,
        outbound: &mut Outbound,
        token: &mut Option<Token>,
        attempt: &mut Attempt,
    ) -> ControlFlow<Outcome> {
        let seen = self.ask(outbound, token, attempt).await?;
        let sign = match seen.finding {
            Finding::Sick(sign) => sign,
            Finding::Good => {
                if let Some(first) = self.tries.first() {
                    self.upstream.metrics.repaired(first);
                }
                if outbound.method() == Method::HEAD {
                    self.repair.forget(denial_of(self.repair, outbound));
                }
                return Break(seen.answer);
            }
            Finding::Real => return Break(seen.answer),
        };
        if !self.keep(seen.answer) {
            return self.give_up();
        }
        let is_unexplained = self.tries.is_unexplained(sign);
        self.wait_after(sign, seen.retry_after).await?;
        if is_unexplained {
            self.look_closer(outbound, attempt).await?;
        }
        Continue(())
    }

    /// Keeps an answer for the client. A failure of ours says less than any answer of the registry. Tells whether there is
    /// room to keep it for long.
    fn keep(&mut self, answer: Outcome) -> bool {
        match answer {
            Ok(answer) => {
                self.room = self.repair.room.take(answer.body().so_far().len());
                self.last = Some(Ok(answer));
                self.room.is_some()
            }
            Err(failure) => {
                if !matches!(self.last, Some(Ok(_))) {
                    self.last = Some(Err(failure));
                }
                true
            }
        }
    }

    /// What was kept.
    fn give_up<T>(&mut self) -> ControlFlow<Outcome, T> {
        Break(self.last.take().expect("it is asked again only after an answer or a failure"))
    }

    /// Asks once, and looks at the answer. What was kept is withheld from the client for no longer than its time lasts; a
    /// first answer is the client's to wait for.
    async fn ask(
        &mut self,
        outbound: &mut Outbound,
        token: &mut Option<Token>,
        attempt: &mut Attempt,
    ) -> ControlFlow<Outcome, Seen> {
        attempt.deadline = self.deadline;
        attempt.renewable = self.again == 0;
        let asking = self.ask_without_end(outbound, token, attempt);
        let asked = match &self.last {
            Some(Ok(_)) => timeout_at(self.upstream.instant(self.deadline), asking).await.ok(),
            _ => Some(asking.await),
        };
        match asked {
            Some(Ok(seen)) => Continue(seen),
            Some(Err(failure)) => {
                self.keep(Err(failure));
                self.give_up()
            }
            None => self.give_up(),
        }
    }

    async fn ask_without_end(
        &self,
        outbound: &mut Outbound,
        token: &mut Option<Token>,
        attempt: &mut Attempt,
    ) -> Result<Seen, Failure> {
        match outbound.send(self.upstream, attempt).await {
            Ok(response) => Ok(self.look(response, outbound, token).await),
            // What cannot be read now cannot be read later.
            Err(Failure::Died(error)) if !error.is_parse() => {
                let finding = Finding::Sick(Sign::Broken);
                Ok(Seen { answer: Err(Failure::Died(error)), finding, retry_after: None })
            }
            Err(failure) => Err(failure),
        }
    }

    /// The answer to a HEAD does not tell why it is a denial; the same as a GET does. A real one is handed on, and believed
    /// for a while. Whatever else the GET says, the HEAD will say as well.
    async fn look_closer(&mut self, outbound: &Outbound, attempt: &mut Attempt) -> ControlFlow<Outcome> {
        let Some(mut probe) = outbound.as_probe() else { return self.give_up() };
        let mut seen = self.ask(&mut probe, &mut None, attempt).await?;
        if let Ok(answer) = &mut seen.answer {
            // Where it is short: its connection is kept, then.
            let _ = timeout_at(self.upstream.instant(self.deadline), answer.body_mut().read(MOST)).await;
        }
        let is_denied = seen.answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::UNAUTHORIZED);
        drop(seen.answer);
        match seen.finding {
            Finding::Sick(sign) => self.wait_after(sign, seen.retry_after).await,
            Finding::Good | Finding::Real if is_denied => {
                self.repair.remember(denial_of(self.repair, outbound), self.upstream.gate.now());
                self.give_up()
            }
            Finding::Good | Finding::Real => {
                self.tries.vouch();
                self.wait(Duration::ZERO, Sign::Unseen401).await
            }
        }
    }

    /// Waits as long as an answer with this sign demands. It breaks off where it is not worth asking again.
    async fn wait_after(&mut self, sign: Sign, retry_after: Option<Duration>) -> ControlFlow<Outcome> {
        match self.tries.pause_after(sign, self.repair.ambiguous_401, retry_after, chance()) {
            Some(pause) => self.wait(pause, sign).await,
            None => self.give_up(),
        }
    }

    /// Waits until the time has come to ask again, and notes that it is asked again. It breaks off where no time is left.
    async fn wait(&mut self, pause: Duration, sign: Sign) -> ControlFlow<Outcome> {
        match self.wait_for_budget(pause, sign).await {
            Ok(true) => {}
            Ok(false) => return self.give_up(),
            Err(failure) => return Break(Err(failure)),
        }
        self.again += 1;
        self.upstream.metrics.retried(sign);
        tracing::debug!(registry = self.upstream.name, sign = sign.as_str(), times = self.again, "asks again");
        Continue(())
    }

    /// Waits for the pause, and in turn for the budget. Tells whether there is time left to ask again.
    async fn wait_for_budget(&self, pause: Duration, sign: Sign) -> Result<bool, Failure> {
        let now = || self.upstream.gate.now();
        if !self.pause_until(now() + pause).await? {
            return Ok(false);
        }
        if self.tries.is_doubtful(sign) {
            // Nobody is kept waiting to find out that it is a real denial.
            return Ok(self.repair.take(now()).is_ok());
        }
        let _turn = tokio::select! {
            turn = self.repair.turn() => turn,
            over = self.pause_until(self.deadline) => return over.map(|_| false),
        };
        while let Err(later) = self.repair.take(now()) {
            if !self.pause_until(later).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits, where there is time for it.
    async fn pause_until(&self, due: Moment) -> Result<bool, Failure> {
        if due <= self.upstream.gate.now() || due > self.deadline {
            return Ok(due <= self.deadline);
        }
        match self.upstream.pause_until(due).await {
            Ok(()) => Ok(true),
            Err(Failure::Draining) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    async fn look(&self, response: Response<AnswerBody>, outbound: &Outbound, token: &mut Option<Token>) -> Seen {
        let status = response.status();
        let authorized = outbound.credentials().is_some();
        let mut response = response.map(BufferedBody::unread);
        let is_token = token.is_some() && status == StatusCode::OK;
        if !is_token && !signs::is_suspicious(status, authorized) {
            return Seen { answer: Ok(response), finding: Finding::Good, retry_after: None };
        }
        let reading = response.body_mut().read(MOST);
        let read = match &self.last {
            // One that does not come whole is no better than what is kept, which is handed out then.
            Some(Ok(_)) => Ok(reading.await),
            _ => timeout_at(self.upstream.instant(self.deadline), reading).await,
        };
        if let Ok(Err(error)) = read {
            let finding = Finding::Sick(Sign::Broken);
            return Seen { answer: Err(Failure::Died(error)), finding, retry_after: None };
        }
        let retry_after = signs::retry_after(response.headers(), SystemTime::now());
        let body = response.body();
        let finding = match token.as_mut().filter(|_| is_token) {
            _ if !body.is_whole() => Finding::Real,
            Some(token) => token.look(body.so_far(), self.repair, self.upstream.gate.now()),
            None => {
                let method = outbound.method();
                let headers = response.headers();
                let sign = signs::of(&Exchange { method, authorized, status, headers, body: body.so_far() });
                match sign {
                    Some(Sign::Unseen401) if !self.is_worth_a_look(outbound) => Finding::Real,
                    Some(sign) => Finding::Sick(sign),
                    None => Finding::Real,
                }
            }
        };
        Seen { answer: Ok(response), finding, retry_after }
    }

    /// Whether a denial without a reason is looked at with a GET: not one that was found real not long ago.
    fn is_worth_a_look(&self, outbound: &Outbound) -> bool {
        let known = self.repair.knows(denial_of(self.repair, outbound), self.upstream.gate.now());
        outbound.as_probe().is_some() && !known
    }
}

fn denial_of(repair: &Repair, outbound: &Outbound) -> Denial {
    let credentials = outbound.credentials().map_or(&b""[..], |value| value.as_bytes());
    repair.denial_of(credentials, &outbound.uri().to_string())
}

/// What is asked for by a request for a token.
struct Token {
    asked: Asked,
    denial: Denial,
    /// What the token before lacked.
    lacked: Option<BTreeSet<Access>>,
}

impl Token {
    /// `None` for any other request.
    fn asked_by(outbound: &Outbound, repair: &Repair) -> Option<Token> {
        let uri = outbound.uri();
        let query = uri.query().filter(|_| outbound.method() == Method::GET && uri.path().ends_with("/token"))?;
        Some(Token { asked: Asked::of_query(query)?, denial: denial_of(repair, outbound), lacked: None })
    }

    /// Whether the token in this answer should be asked for once more. One that lacks the same as the one before is the
    /// registry's real answer.
    fn look(&mut self, body: &[u8], repair: &Repair, now: Moment) -> Finding {
        let Some(lacks) = self.asked.missing_in(body) else { return Finding::Good };
        if lacks.is_empty() {
            repair.forget(self.denial);
            return Finding::Good;
        }
        if repair.knows(self.denial, now) {
            return Finding::Real;
        }
        if self.lacked.as_ref() == Some(&lacks) {
            repair.remember(self.denial, now);
            return Finding::Real;
        }
        self.lacked = Some(lacks);
        Finding::Sick(Sign::PoisonedToken)
    }
}
