//! The labels of metrics that come from closed sets, each with its values. Logs and refusals use the same words.

use std::fmt::Debug;

/// A label whose values are the variants of an enum, in their order.
pub trait Label: Copy + Debug + 'static {
    /// The words, in the order of the variants.
    const WORDS: &'static [&'static str];

    fn index(self) -> usize;

    fn as_str(self) -> &'static str {
        Self::WORDS[self.index()]
    }
}

/// How a request ended. Each accepted request ends in exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The registry's answer, or the tunnel, was carried to its end.
    Served,
    /// Answered by roadstead itself, because of load, policy or a malformed request.
    Refused,
    /// The registry could not be reached, or failed in the middle.
    UpstreamFailed,
    /// The client was gone before the end.
    ClientLeft,
}

impl Label for Outcome {
    const WORDS: &'static [&'static str] = &["served", "refused", "upstream_failed", "client_left"];

    fn index(self) -> usize {
        self as usize
    }
}

/// The end of a wait. Waits of clients that left are measured like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    Admitted,
    Refused,
    /// The client left while it waited.
    ClientLeft,
}

impl Label for WaitOutcome {
    const WORDS: &'static [&'static str] = &["admitted", "refused", "client_left"];

    fn index(self) -> usize {
        self as usize
    }
}

/// Why a request was answered by roadstead itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The queue holds `queue.depth` waiters.
    QueueFull,
    /// `queue.tunnel_timeout` or `queue.request_timeout` was over.
    QueueTimeout,
    /// The process goes down, and its `drain_timeout` was over.
    Draining,
    /// `listen.max_clients` connections are open.
    TooManyClients,
    /// The destination may not be reached through here.
    DestinationDenied,
    /// `listen.allow_clients` does not list the peer.
    ClientDenied,
    /// Nothing answered at the registry's addresses, or its name was not known.
    UpstreamUnreachable,
    /// The other host did not take the connection within `connect_timeout`.
    UpstreamTimeout,
    /// The request was malformed.
    BadRequest,
    /// The head of the request did not come within `listen.head_timeout`.
    HeadTimeout,
    /// The request came from, or leads to, this very process.
    LoopDetected,
}

impl Label for Reason {
    const WORDS: &'static [&'static str] = &[
        "queue_full",
        "queue_timeout",
        "draining",
        "too_many_clients",
        "destination_denied",
        "client_denied",
        "upstream_unreachable",
        "upstream_timeout",
        "bad_request",
        "head_timeout",
        "loop_detected",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

/// The evidence that a connection was idle when it was reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaimed {
    /// A pooled HTTP connection: known to be idle.
    Pooled,
    /// A tunnel that never carried a request.
    Unused,
    /// A tunnel whose last request was answered.
    Idle,
    /// A tunnel that lay still, though an answer may have been under way.
    Unsure,
    /// A request that did not move for `reclaim.stall_timeout`, or whose client was slower than `queue.least_rate`.
    Stalled,
}

impl Label for Reclaimed {
    const WORDS: &'static [&'static str] = &["pooled", "unused", "idle", "unsure", "stalled"];

    fn index(self) -> usize {
        self as usize
    }
}

/// Why an answer is worth asking again for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A database error dressed as 401.
    DatabaseError,
    /// The same to a HEAD, whose answer has no body that would tell a real denial from it: a GET is asked for it.
    Unseen401,
    /// A denial, or a database error that was swallowed.
    Ambiguous401,
    /// A token that lacks an action that was asked for.
    PoisonedToken,
    /// 500.
    InternalError,
    /// 502.
    BadGateway,
    /// 503.
    Unavailable,
    /// 504.
    GatewayTimeout,
    /// 429, with the time when to come back.
    TooManyRequests,
    /// The connection ended before the answer did.
    Broken,
}

impl Label for Sign {
    const WORDS: &'static [&'static str] = &[
        "database_error",
        "unseen_401",
        "ambiguous_401",
        "poisoned_token",
        "internal_error",
        "bad_gateway",
        "unavailable",
        "gateway_timeout",
        "too_many_requests",
        "broken",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the registry.
    Up,
    /// From the registry to the client.
    Down,
}

impl Label for Direction {
    const WORDS: &'static [&'static str] = &["up", "down"];

    fn index(self) -> usize {
        self as usize
    }
}

/// Whether a request went out on a connection that had carried others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// On a new one.
    Dialled,
    /// On a pooled one.
    Reused,
}

impl Label for Connection {
    const WORDS: &'static [&'static str] = &["dialled", "reused"];

    fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words in the order of the variants, as the variants are called.
    fn assert_words<L: Label>(variants: &[L]) {
        assert_eq!(variants.len(), L::WORDS.len());
        for variant in variants {
            let name = format!("{variant:?}");
            let mut word = String::new();
            for (at, char) in name.char_indices() {
                let begins =
                    char.is_ascii_uppercase() || char.is_ascii_digit() && !word.ends_with(|c: char| c.is_ascii_digit());
                if at > 0 && begins {
                    word.push('_');
                }
                word.push(char.to_ascii_lowercase());
            }
            assert_eq!(variant.as_str(), word);
        }
    }

    #[test]
    fn each_variant_has_its_own_word() {
        assert_words(&[Outcome::Served, Outcome::Refused, Outcome::UpstreamFailed, Outcome::ClientLeft]);
        assert_words(&[WaitOutcome::Admitted, WaitOutcome::Refused, WaitOutcome::ClientLeft]);
        assert_words(&[
            Reason::QueueFull,
            Reason::QueueTimeout,
            Reason::Draining,
            Reason::TooManyClients,
            Reason::DestinationDenied,
            Reason::ClientDenied,
            Reason::UpstreamUnreachable,
            Reason::UpstreamTimeout,
            Reason::BadRequest,
            Reason::HeadTimeout,
            Reason::LoopDetected,
        ]);
        assert_words(&[Reclaimed::Pooled, Reclaimed::Unused, Reclaimed::Idle, Reclaimed::Unsure, Reclaimed::Stalled]);
        assert_words(&[
            Sign::DatabaseError,
            Sign::Unseen401,
            Sign::Ambiguous401,
            Sign::PoisonedToken,
            Sign::InternalError,
            Sign::BadGateway,
            Sign::Unavailable,
            Sign::GatewayTimeout,
            Sign::TooManyRequests,
            Sign::Broken,
        ]);
        assert_words(&[Direction::Up, Direction::Down]);
        assert_words(&[Connection::Dialled, Connection::Reused]);
    }
}
