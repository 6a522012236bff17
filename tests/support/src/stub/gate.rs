//! The test's hand on the stub's answers: hold them, let some through, release all.
//!
//! A test that holds the answers knows who is being served and who waits, without any clock.

use tokio::sync::watch;

/// Whether answers may leave.
#[derive(Debug)]
pub(super) struct Gate {
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Held, but for so many.
    Held(usize),
}

impl Default for Gate {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::Free) }
    }
}

impl Gate {
    pub(super) fn hold(&self) {
        self.state.send_replace(State::Held(0));
    }

    pub(super) fn let_through(&self, answers: usize) {
        self.state.send_modify(|state| {
            if let State::Held(allowed) = state {
                *allowed += answers;
            }
        });
    }

    pub(super) fn release(&self) {
        self.state.send_replace(State::Free);
    }

    /// Waits until one answer may leave.
    pub(super) async fn pass(&self) {
        let mut changes = self.state.subscribe();
        while !self.try_pass() {
            // The sender is ours, so it cannot be gone.
            let _ = changes.changed().await;
        }
    }

    fn try_pass(&self) -> bool {
        let mut passed = false;
        self.state.send_if_modified(|state| match state {
            State::Free => {
                passed = true;
                false
            }
            State::Held(0) => false,
            State::Held(allowed) => {
                *allowed -= 1;
                passed = true;
                true
            }
        });
        passed
    }
}
