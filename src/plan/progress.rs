//! A run that is watched: a bar on a terminal, and an end by Ctrl-C.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use super::scenario::Scenario;
use super::simulation::simulate;
use super::tally::Tally;

/// Runs the scenario; `None` if it was interrupted. The bar is drawn on standard error, if that is a terminal.
pub fn watched(scenario: &Scenario) -> Option<Tally> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    // It ends with the process. Without it, a signal ends the process as it does any other.
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            flag.store(true, Ordering::Relaxed);
            Ok::<(), std::io::Error>(())
        })
    });
    let bar = ProgressBar::new(scenario.requests() as u64);
    let style = ProgressStyle::with_template("{bar:40.} {pos} of {len} requests, {eta} left");
    bar.set_style(style.expect("the template is well formed").progress_chars("##-"));
    let tally = simulate(scenario, &mut |served| {
        bar.set_position(served as u64);
        !interrupted.load(Ordering::Relaxed)
    });
    bar.finish_and_clear();
    if tally.is_none() {
        // Standard error may be closed.
        let _ = writeln!(std::io::stderr(), "roadstead: interrupted");
    }
    tally
}
