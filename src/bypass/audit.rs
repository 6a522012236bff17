//! Our own sockets against the slots, as the kernel counts them.
//!
//! After a reload to fewer slots, those that stand may end in peace: then no more may stand than did before.

#[derive(Debug, Default)]
pub struct Audit {
    allowed: usize,
}

impl Audit {
    /// The sockets beyond what is allowed, of `ours`.
    pub fn excess(&mut self, slots: usize, ours: usize) -> usize {
        self.allowed = slots.max(self.allowed.min(ours));
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
            assert_eq!(audit.excess(slots, ours), excess, "{ours} of {slots}");
        }
    }
}
