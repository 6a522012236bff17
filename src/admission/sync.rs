//! The lock of the hand-over. It stands alone because the models in `tests/models` put another in its place: one that
//! tries every order in which threads can meet.

pub(super) use std::sync::{Mutex, MutexGuard};
