//! roadstead
pub mod address;
pub mod admin;
pub mod admission;
pub mod app;
pub mod cli;
pub mod config;
pub mod metrics;
pub mod proxy;
pub mod target;
pub mod upstream;
