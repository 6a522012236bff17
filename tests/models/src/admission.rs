//! The files of the core, as `src/admission.rs` has them, without what needs tokio.
#![expect(dead_code, reason = "what only the gate uses is not used here")]

#[path = "../../../src/admission/activity.rs"]
mod activity;
#[path = "../../../src/admission/books.rs"]
mod books;
#[path = "../../../src/admission/change_tests.rs"]
mod change_tests;
#[path = "../../../src/admission/client_counts.rs"]
mod client_counts;
#[path = "../../../src/admission/core.rs"]
mod core;
#[path = "../../../src/admission/core_tests.rs"]
mod core_tests;
#[path = "../../../src/admission/decision.rs"]
mod decision;
#[path = "../../../src/admission/fair_histories_tests.rs"]
mod fair_histories_tests;
#[path = "../../../src/admission/fair_queue.rs"]
mod fair_queue;
#[path = "../../../src/admission/fair_round.rs"]
mod fair_round;
#[path = "../../../src/admission/fairness_tests.rs"]
mod fairness_tests;
#[path = "../../../src/admission/handover.rs"]
mod handover;
mod handover_models;
#[path = "../../../src/admission/ledger.rs"]
mod ledger;
#[path = "../../../src/admission/maps.rs"]
mod maps;
#[path = "../../../src/admission/moment.rs"]
mod moment;
#[path = "../../../src/admission/occupancy.rs"]
mod occupancy;
#[path = "../../../src/admission/outages.rs"]
mod outages;
#[path = "../../../src/admission/pooled.rs"]
mod pooled;
#[path = "../../../src/admission/queue.rs"]
mod queue;
#[path = "../../../src/admission/quiet.rs"]
mod quiet;
#[path = "../../../src/admission/rate.rs"]
mod rate;
#[path = "../../../src/admission/reclaim.rs"]
mod reclaim;
#[path = "../../../src/admission/request.rs"]
mod request;
#[path = "../../../src/admission/slot.rs"]
mod slot;
#[path = "../../../src/admission/tickets.rs"]
mod tickets;
#[path = "../../../src/admission/usage.rs"]
mod usage;
#[path = "../../../src/admission/view.rs"]
mod view;
#[path = "../../../src/admission/wait_estimate.rs"]
mod wait_estimate;
#[path = "../../../src/admission/witness.rs"]
mod witness;

/// Random histories of the core that are lived through, of the fair queue as well.
fn history_count() -> u32 {
    crate::scale::scale(10_000, 100_000)
}

/// In place of `src/admission/sync.rs`.
mod sync {
    pub use loom::sync::{Mutex, MutexGuard};
}
