//! Our own sockets against the slots, as the kernel counts them.
//!
//! After a reload to fewer slots, those that stand may end in peace: then no more may stand than did before. Leased slots shrink only
//! once they are not used, and end with a cut.

/// The most connections that were right at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allowed {
    Fixed(usize),
    Leased(usize),
}

#[derive(Debug, Default)]
pub struct Audit {
    allowed: usize,
}

impl Audit {
    /// The sockets beyond what is allowed, of `ours`.
    pub fn excess(&mut self, slots: Allowed, ours: usize) -> usize {
        self.allowed = match slots {
            Allowed::Fixed(slots) => slots.max(self.allowed.min(ours)),
            Allowed::Leased(slots) => slots,
        };
        ours.saturating_sub(self.allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_beyond_the_slots_are_excess_unless_they_stood_before_a_reload() {
        let mut audit = Audit::default();
        for (slots, ours, excess) in
            [(10, 10, 0), (10, 11, 1), (10, 10, 0), (4, 10, 0), (4, 9, 0), (4, 10, 1), (4, 4, 0), (4, 5, 1)]
        {
            assert_eq!(audit.excess(Allowed::Fixed(slots), ours), excess, "{ours} of {slots}");
        }
    }

    #[test]
    fn connections_that_outlive_their_lease_are_excess() {
        let mut audit = Audit::default();
        assert_eq!([10, 4, 0].map(|slots| audit.excess(Allowed::Leased(slots), 4)), [0, 0, 4]);
    }
}
