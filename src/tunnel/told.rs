//! The gate's picture of a tunnel.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::admission::{Evidence, SlotState};
use crate::reclaim::{AnswerShape, Grade};

/// The gate's picture.
#[derive(Debug)]
pub(super) enum Told {
    /// It was opened just now.
    Opened,
    /// It moves; `looked` if nothing is to be told of the present silence.
    Busy { state: SlotState, looked: bool },
    /// It lies quiet; `answered` is the answer that is believed to be over.
    Quiet { grade: Grade, since: Duration, answered: Option<AnswerShape>, asked: Option<oneshot::Receiver<()>> },
}

impl Told {
    /// Whether the present silence is still to be told.
    pub fn is_untold(&self) -> bool {
        matches!(self, Told::Opened | Told::Busy { looked: false, .. })
    }

    /// Whether the gate knows that the client is too slow.
    pub fn is_slow(&self) -> bool {
        matches!(self, Told::Quiet { grade: Grade::Slow, .. })
    }

    /// Nothing is to be told of the present silence, or something has changed in it.
    pub fn set_looked(&mut self, is_looked: bool) {
        if let Told::Busy { looked, .. } = self {
            *looked = is_looked;
        }
    }
}

/// The word of the gate for a grade.
pub(super) fn evidence_of(grade: Grade) -> Evidence {
    match grade {
        Grade::Untouched | Grade::Unused => Evidence::Unused,
        Grade::Goodbye | Grade::Answered | Grade::Silent | Grade::ShortEnd => Evidence::Idle,
        Grade::Unsure | Grade::Handshaking | Grade::MaybeAnswered => Evidence::Unsure,
        Grade::Stuck | Grade::Slow | Grade::InFlight => Evidence::Stalled,
    }
}

/// Completes when the gate asks for the slot.
pub(super) async fn asked(told: &mut Told) {
    if let Told::Quiet { asked, .. } = told
        && let Some(asking) = asked
    {
        let is_asked = asking.await.is_ok();
        *asked = None;
        if is_asked {
            return;
        }
    }
    std::future::pending::<()>().await;
}
