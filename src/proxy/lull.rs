//! The moment after an answer, in which clients ask.
//!
//! Who has been answered asks for the next piece at once, and on any of its connections, also on one that has long lain
//! quiet. Such a request and our FIN pass each other on the way, and no look at the socket tells. Of 14,453 tunnels taken
//! back from a puller in a hurry 4 were cut so, all within 0.3 ms of the end of an answer on another tunnel. So a tunnel
//! is taken back a little later, when no answer has just ended; but not much later, where answers end all the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Clients have asked so long after an answer, if they do at once.
const LULL: Duration = Duration::from_millis(5);
/// For so long a lull is waited for.
const PATIENCE: Duration = Duration::from_millis(25);

/// When the last answer of a registry ended.
#[derive(Debug, Default)]
pub struct LastAnswer {
    /// In microseconds of the registry's time.
    at: AtomicU64,
}

impl LastAnswer {
    /// An answer ended at `now`, as far as can be told.
    pub fn ended(&self, now: Duration) {
        self.at.fetch_max(u64::try_from(now.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When a tunnel that was asked to close at `asked` may do so, unless another answer ends before.
    #[must_use]
    pub fn lull(&self, asked: Duration) -> Duration {
        let calm = Duration::from_micros(self.at.load(Ordering::Relaxed)) + LULL;
        calm.clamp(asked, asked + PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn it_begins_when_no_answer_has_just_ended() {
        let last = LastAnswer::default();
        assert_eq!(last.lull(ms(1000)), ms(1000), "none ever ended");
        last.ended(ms(999));
        assert_eq!(last.lull(ms(1000)), ms(1004));
        last.ended(ms(1003));
        assert_eq!(last.lull(ms(1000)), ms(1008), "another ended meanwhile");
        assert_eq!(last.lull(ms(2000)), ms(2000), "long after the last one");
    }

    #[test]
    fn it_is_not_waited_for_in_vain() {
        let last = LastAnswer::default();
        for now in 1000..1100 {
            last.ended(ms(now));
        }
        assert_eq!(last.lull(ms(1000)), ms(1025));
    }

    #[test]
    fn an_answer_that_is_told_late_does_not_shorten_it() {
        let last = LastAnswer::default();
        last.ended(ms(10));
        last.ended(ms(9));
        assert_eq!(last.lull(ms(10)), ms(15));
    }
}
