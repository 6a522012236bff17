//! What systemd is told (`sd_notify(3)`). Without systemd, nothing is.

use std::time::Duration;

use sd_notify::NotifyState;

/// Everything is bound and accepts.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The order to stop was heard.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Another process is the service from now on.
pub fn replaced_by(pid: u32) {
    tell(&[NotifyState::MainPid(pid), NotifyState::Ready]);
}

/// How often systemd wants to hear that this process lives; `None`: it does not care.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|longest| longest / 2)
}

/// This process lives: its runtime still runs tasks, or it could not say so.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}
