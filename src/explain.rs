//! The requests that wait, in words: for what, for how long still, and why. Pure text from the JSON of `/queue` and `/status`.
//!
//! `cli` prints it, and `proxy` names by it what a visible request wants.

pub mod answer;
pub mod code_class;
pub mod command;
pub mod processes;
pub mod queue;
pub mod wanted;
pub mod why;
pub mod words;

/// Columns that a line may take.
const WIDTH: usize = 80;
