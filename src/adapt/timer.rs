//! The time of answers in one tunnel, of which only the lengths and the moments are known.
//!
//! Looked at are short answers to short requests: in a longer request the client's speed tells in the time, too, and a longer
//! answer may be a blob that the registry fetches first. The next request after an upload may be its commit, which takes long.

use std::time::Duration;

/// The bytes of a short request or answer; an alert has fewer than any request.
const MAX_SHORT: u32 = 16 * 1024;
const MAX_ALERT: u32 = 15;

/// The last exchange of a tunnel.
#[derive(Clone, Debug, Default)]
pub struct AnswerTimer {
    time: Option<Duration>,
    /// Whether the answer is over.
    is_over: bool,
    is_after_upload: bool,
}

impl AnswerTimer {
    /// The answer begins to a request of so many bytes, after so long.
    pub fn answer(&mut self, request: u32, time: Duration) {
        let counts = !self.is_after_upload && (MAX_ALERT + 1..=MAX_SHORT).contains(&request);
        (self.time, self.is_over) = (counts.then_some(time), false);
    }

    /// The client says something after a request and an answer of so many bytes; none of them while it still asks.
    pub fn next(&mut self, (request, answer): (u32, u32)) {
        if answer > 0 {
            self.is_after_upload = request > MAX_SHORT;
        }
        self.time = self.time.filter(|_| answer <= MAX_SHORT);
        self.is_over = true;
    }

    /// Takes the time of an answer that is over.
    pub fn take(&mut self) -> Option<Duration> {
        self.time.take_if(|_| self.is_over)
    }
}
