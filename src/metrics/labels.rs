//! The labels of metrics that come from closed sets, each with its values. Logs and refusals use the same words.

use std::fmt::Debug;

/// A label whose values are the variants of an enum, in their order.
pub trait Label: Copy + Debug + 'static {
    /// The variants, for tests.
    #[cfg(test)]
    const ALL: &'static [Self];
    /// Their words.
    const WORDS: &'static [&'static str];

    fn index(self) -> usize;

    fn as_str(self) -> &'static str {
        Self::WORDS[self.index()]
    }
}

/// Defines labels: each variant with its word.
macro_rules! labels {
    ($($(#[$about:meta])* $label:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ })+) => {
        $(
            $(#[$about])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum $label {
                $($(#[$doc])* $variant,)+
            }

            impl Label for $label {
                #[cfg(test)]
                const ALL: &'static [$label] = &[$($label::$variant),+];
                const WORDS: &'static [&'static str] = &[$($word),+];

                fn index(self) -> usize {
                    self as usize
                }
            }
        )+
    };
}

labels! {
    /// How a request ended. Each accepted request ends in exactly one.
    Outcome {
        /// The registry's answer, or the tunnel, was carried to its end.
        Served = "served",
        /// Answered by roadstead itself, because of load, policy or a malformed request.
        Refused = "refused",
        /// The registry could not be reached, or failed in the middle.
        UpstreamFailed = "upstream_failed",
        /// The client was gone before the end.
        ClientLeft = "client_left",
    }

    /// The kind of a request.
    Kind {
        /// A CONNECT.
        Tunnel = "tunnel",
        /// A request that is visible as HTTP.
        Request = "request",
        /// A connection whose first head never became a request.
        Unknown = "unknown",
    }

    /// How sure it is that nothing is under way in a quiet tunnel; `reclaim` has a table of the evidence for each.
    Grade {
        Untouched = "untouched",
        Goodbye = "goodbye",
        Unused = "unused",
        Answered = "answered",
        Silent = "silent",
        ShortEnd = "short_end",
        Unsure = "unsure",
        Handshaking = "handshaking",
        MaybeAnswered = "maybe_answered",
        Stuck = "stuck",
        Slow = "slow",
        InFlight = "in_flight",
    }

    /// The class of an answer's status.
    CodeClass {
        Informational = "1xx",
        Successful = "2xx",
        Redirection = "3xx",
        ClientError = "4xx",
        ServerError = "5xx",
    }

    /// The end of a wait. Waits of clients that left are measured like any other.
    WaitOutcome {
        Admitted = "admitted",
        Refused = "refused",
        /// The client left while it waited.
        ClientLeft = "client_left",
    }

    /// Why a request was answered by roadstead itself.
    Reason {
        /// The queue holds `queue.depth` waiters.
        QueueFull = "queue_full",
        /// `queue.tunnel_timeout` or `queue.request_timeout` was over.
        QueueTimeout = "queue_timeout",
        /// The same, while the store of leases lends nothing.
        LeaseLost = "lease_lost",
        /// The process goes down, and its `drain_timeout` was over.
        Draining = "draining",
        /// `listen.max_clients` connections are open.
        TooManyClients = "too_many_clients",
        /// The destination may not be reached through here.
        DestinationDenied = "destination_denied",
        /// `listen.allow_clients` does not list the peer.
        ClientDenied = "client_denied",
        /// Nothing answered at the registry's addresses, or its name was not known.
        UpstreamUnreachable = "upstream_unreachable",
        /// The other host did not take the connection within `connect_timeout`.
        UpstreamTimeout = "upstream_timeout",
        /// The request was malformed.
        BadRequest = "bad_request",
        /// The head of the request did not come within `listen.head_timeout`.
        HeadTimeout = "head_timeout",
        /// The request came from, or leads to, this very process.
        LoopDetected = "loop_detected",
    }

    /// The evidence that a connection was idle when it was reclaimed.
    Reclaimed {
        /// A pooled HTTP connection: known to be idle.
        Pooled = "pooled",
        /// A tunnel that never carried a request.
        Unused = "unused",
        /// A tunnel whose last request was answered.
        Idle = "idle",
        /// A tunnel that lay still, though an answer may have been under way.
        Unsure = "unsure",
        /// A request that did not move for `reclaim.stall_timeout`, or whose client was slower than `queue.least_rate`.
        Stalled = "stalled",
    }

    /// Why an answer is worth asking again for.
    Sign {
        /// A database error dressed as 401.
        DatabaseError = "database_error",
        /// The same to a HEAD, whose answer has no body that would tell a real denial from it: a GET is asked for it.
        Unseen401 = "unseen_401",
        /// A denial, or a database error that was swallowed.
        Ambiguous401 = "ambiguous_401",
        /// A token that lacks an action that was asked for.
        PoisonedToken = "poisoned_token",
        /// 500.
        InternalError = "internal_error",
        /// 502.
        BadGateway = "bad_gateway",
        /// 503.
        Unavailable = "unavailable",
        /// 504.
        GatewayTimeout = "gateway_timeout",
        /// 429, with the time when to come back.
        TooManyRequests = "too_many_requests",
        /// The connection ended before the answer did.
        Broken = "broken",
    }

    Direction {
        /// From the client to the registry.
        Up = "up",
        /// From the registry to the client.
        Down = "down",
    }

    /// Whether a request went out on a connection that had carried others.
    Connection {
        /// On a new one.
        Dialled = "dialled",
        /// On a pooled one.
        Reused = "reused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words in the order of the variants, as the variants are called.
    fn assert_words<L: Label>() {
        for variant in L::ALL {
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
        assert_words::<Outcome>();
        assert_words::<WaitOutcome>();
        assert_words::<Reason>();
        assert_words::<Reclaimed>();
        assert_words::<Sign>();
        assert_words::<Direction>();
        assert_words::<Connection>();
    }
}
