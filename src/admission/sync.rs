//! The lock of the hand-over. It has its own file because the models in `tests/models` replace it by one that
//! tries every order in which threads can meet.

pub(super) use std::sync::{Mutex, MutexGuard};
