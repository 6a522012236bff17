//! The result of a run: waits, refusals, and the levels over time.

use std::time::Duration;

use super::timeline::Timeline;
use crate::admission::{ClassId, Moment, SlotUse};

#[derive(Debug)]
pub struct Tally {
    /// Of each class, that of its visible requests and that of its tunnels.
    classes: Vec<[ClassTally; 2]>,
    /// How long each pull took from its start to its last byte.
    pub pulls: Vec<Duration>,
    pub timeline: Timeline,
    /// Connections at once.
    pub most_open: usize,
    /// When the last request was served.
    pub last_served: Moment,
}

#[derive(Clone, Debug, Default)]
pub struct ClassTally {
    /// From the arrival of each request to the admission with which it was served.
    pub waits: Vec<Duration>,
    pub refused: usize,
    /// Requests whose puller left before.
    pub left: usize,
    /// Requests that the registry failed because more connections were open than it stands.
    pub overloaded: usize,
}

impl Tally {
    pub fn new(classes: usize) -> Tally {
        Tally {
            classes: vec![Default::default(); classes],
            pulls: Vec::new(),
            timeline: Timeline::new(),
            most_open: 0,
            last_served: Moment::default(),
        }
    }

    /// The tally of this class and kind.
    pub fn of(&mut self, class: ClassId, slot_use: SlotUse) -> &mut ClassTally {
        &mut self.classes[class.0][usize::from(slot_use == SlotUse::Tunnel)]
    }

    /// All of them, each with the number of its class.
    pub fn all(&self) -> impl Iterator<Item = (usize, SlotUse, &ClassTally)> {
        let kinds = [SlotUse::Request, SlotUse::Tunnel];
        let of_class =
            move |(class, tallies)| kinds.into_iter().zip(tallies).map(move |(kind, tally)| (class, kind, tally));
        self.classes.iter().enumerate().flat_map(of_class)
    }

    pub fn served(&self) -> usize {
        self.all().map(|(_, _, tally)| tally.waits.len()).sum()
    }
}

impl ClassTally {
    /// Whether it has a request.
    pub fn happened(&self) -> bool {
        !self.waits.is_empty() || self.refused + self.left + self.overloaded > 0
    }
}
