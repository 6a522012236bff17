//! A witness of everything that happens at a gate: it sees each event, and decides nothing.

use super::request::{AdmissionRequest, Place};
use super::slot::{Counts, SlotEvent, SlotId};

/// Told of all that happens as it happens, with the slots as they are; under the lock of the gate, so it must be quick.
pub trait Witness: std::fmt::Debug + Send + Sync {
    fn saw(&self, seen: Occurrence, open: Counts);
}

#[derive(Clone, Debug)]
pub enum Occurrence {
    Asked(AdmissionRequest),
    /// The request at this place got a slot, with a connection that was pooled or for a new one.
    Admitted {
        place: Place,
        slot: SlotId,
        pooled: bool,
    },
    /// The request at this place got none: it was refused, or has left.
    Ended(Place),
    Slot(SlotId, SlotEvent),
}
