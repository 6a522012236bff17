//! Looks at a running sidecar that many tests take: one count of `/status`, the outcomes, a silent connection.
//!
//! Everything here asks through [`Sidecar`] and [`Wire`]; it knows no more than any scraper or client.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Sidecar, Wire, eventually, eventually_is};

/// Long enough for the slowest machine; nothing waits for it unless it fails.
const SOON: Duration = Duration::from_secs(10);

/// How many requests ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Carried to their end.
    pub served: u64,
    /// Answered by the sidecar itself.
    pub refused: u64,
    /// Failed behind the sidecar.
    pub upstream_failed: u64,
    /// Given up by their clients.
    pub client_left: u64,
}

impl Sidecar {
    /// One number of a registry in `/status`, `waiting` for instance.
    ///
    /// # Panics
    /// When there is none.
    pub async fn count(&self, registry: &str, key: &str) -> u64 {
        let status = self.status().await;
        status["registries"][registry][key].as_u64().unwrap_or_else(|| panic!("no {key} of {registry}: {status}"))
    }

    /// Waits until `/status` shows `wanted` as a number of a registry.
    ///
    /// # Panics
    /// When it does not within 10 s.
    pub async fn until(&self, registry: &str, key: &str, wanted: u64) {
        let what = format!("{registry}.{key} = {wanted}");
        eventually_is(&what, SOON, wanted, async || self.count(registry, key).await).await;
    }

    /// How the requests of a registry ended so far.
    pub async fn outcomes(&self, registry: &str) -> Outcomes {
        let metrics = self.metrics().await;
        let of = |outcome| metrics.count("roadstead_outcomes_total", &[("registry", registry), ("outcome", outcome)]);
        Outcomes {
            served: of("served"),
            refused: of("refused"),
            upstream_failed: of("upstream_failed"),
            client_left: of("client_left"),
        }
    }

    /// Waits until the requests of a registry have ended so.
    ///
    /// # Panics
    /// When they have not within 10 s.
    pub async fn until_outcomes(&self, registry: &str, wanted: Outcomes) {
        eventually_is("the outcomes", SOON, wanted, async || self.outcomes(registry).await).await;
    }

    /// Waits until the log holds these words. Its lines come up to 10 ms late.
    ///
    /// # Panics
    /// When it does not within 10 s; the message holds the log.
    pub async fn until_logged(&self, words: &str) {
        eventually(words, SOON, async || {
            let log = self.log_text();
            if log.contains(words) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// How often the sidecar itself answered for this reason.
    pub async fn refused(&self, registry: &str, reason: &str) -> u64 {
        let labels = [("registry", registry), ("reason", reason)];
        self.metrics().await.count("roadstead_refused_total", &labels)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Whether nothing comes for this long, neither a byte nor an end.
    pub async fn is_silent(&mut self, span: Duration) -> bool {
        tokio::time::timeout(span, self.receive()).await.is_err()
    }
}
