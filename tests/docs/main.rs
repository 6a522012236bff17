//! The pages in `docs`, against the code: every statement here that a program can check is checked.

mod architecture;
mod configuration;
mod examples;
mod metrics;
mod operations;
mod page;
mod translation;
