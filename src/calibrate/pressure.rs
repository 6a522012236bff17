//! The pressure that the operator asked for.

use std::time::Duration;

/// The thing to ask for, and how hard.
#[derive(Clone, Debug)]
pub struct Pressure {
    pub registry: String,
    pub repository: String,
    /// The tag or digest of the manifest.
    pub reference: String,
    /// User and password, if it needs them.
    pub credentials: Option<(String, String)>,
    /// The most connections at once.
    pub max: usize,
    /// How long each step lasts.
    pub step: Duration,
}
