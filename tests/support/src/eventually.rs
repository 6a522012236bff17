//! Waiting without sleeping: a condition is asked every few milliseconds until it holds or its time is over.
//!
//! A test that gives up here says what it waited for and what it saw last. Tests never sleep in any other way.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(3);

/// Asks `probe` until it is `Ok`, and hands out what it holds.
///
/// # Panics
/// When `within` has passed; the message names `what` and the value of the last `Err`.
pub async fn eventually<T, Seen: Debug>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, Seen>,
) -> T {
    let started = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(seen) if started.elapsed() >= within => {
                panic!("{what}: not within {within:?}; last seen: {seen:?}")
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Asks `probe` until it answers `wanted`.
///
/// # Panics
/// When `within` has passed; the message names `what` and the last answer.
pub async fn eventually_is<T: Debug + PartialEq>(
    what: &str,
    within: Duration,
    wanted: T,
    mut probe: impl AsyncFnMut() -> T,
) {
    eventually(what, within, async || match probe().await {
        seen if seen == wanted => Ok(()),
        seen => Err(seen),
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_comes_true_ends_the_wait() {
        let mut looks = 0;
        let found = eventually("the third look", Duration::from_secs(5), async || {
            looks += 1;
            if looks == 3 { Ok("here") } else { Err(looks) }
        });
        assert_eq!(found.await, "here");
    }

    #[tokio::test]
    #[should_panic(expected = "a miracle: not within 10ms; last seen: 7")]
    async fn a_condition_that_never_holds_names_what_was_seen_last() {
        eventually_is("a miracle", Duration::from_millis(10), 8, async || 7).await;
    }
}
