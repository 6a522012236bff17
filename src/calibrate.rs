//! `roadstead calibrate`: a bounded pressure test that finds how many connections a registry can serve.
//!
//! [`ladder`] says which number of connections is next and which cap it comes to; [`pull`] asks the registry, straight and
//! without repair; [`report`] prints it. The command line calls [`run`], after it has paused a sidecar that runs here.

pub mod command;
mod direct;
mod ladder;
pub mod pressure;
mod pull;
mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::ladder::{Ladder, Step};
use self::pressure::Pressure;
use self::pull::{ManifestPuller, Pulled};
pub use self::report::Calibration;
use crate::config::Config;

/// The pause after a step, and after one in which the registry showed distress.
const PAUSE: Duration = Duration::from_millis(500);
const BACK_OFF: Duration = Duration::from_secs(5);

/// Asks the registry with more and more connections until it shows distress, and finds the number just below. `told` hears
/// of each step.
/// Fails when the registry does not serve what is asked for, even with one connection.
pub async fn run(config: &Config, pressure: &Pressure, mut told: impl FnMut(&Step)) -> Result<Calibration, String> {
    let puller = Arc::new(ManifestPuller::new(config, pressure).await?);
    let mut ladder = Ladder::new(pressure.max);
    while let Some(connections) = ladder.next() {
        let step = climb(&puller, connections, pressure.step).await;
        told(&step);
        let pause = pause_after(&step, pressure.step);
        ladder.took(step);
        sleep(pause).await;
    }
    Ok(Calibration::of(&pressure.registry, &ladder))
}

/// The pause after a step: long enough for a registry in distress to serve those that wait for it.
fn pause_after(step: &Step, length: Duration) -> Duration {
    if step.signs == 0 { PAUSE } else { BACK_OFF.min(length * 2) }
}

/// One step: so many connections at once, each with one pull after the other, until the time is over or a sign comes.
async fn climb(puller: &Arc<ManifestPuller>, connections: usize, length: Duration) -> Step {
    let began = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        let (puller, stop) = (puller.clone(), stop.clone());
        workers.spawn(async move {
            let (mut times, mut sign) = (Vec::new(), None);
            while sign.is_none() && !stop.load(Ordering::Relaxed) && began.elapsed() < length {
                match puller.pull().await {
                    Pulled::Well(took) => times.extend(took),
                    Pulled::Sign(seen) => sign = Some(seen),
                }
            }
            if sign.is_some() {
                stop.store(true, Ordering::Relaxed);
            }
            (times, sign)
        });
    }
    let (mut times, mut signs) = (Vec::new(), Vec::new());
    while let Some(worked) = workers.join_next().await {
        let (took, sign) = worked.expect("a worker does not panic");
        times.extend(took);
        signs.extend(sign);
    }
    Step::new(connections, times, began.elapsed(), &signs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_in_distress_is_left_alone_for_twice_the_length_of_a_step() {
        let seconds = Duration::from_secs;
        for (length, signs, pause) in [(2, &[][..], PAUSE), (2, &["broken"], seconds(4)), (60, &["broken"], BACK_OFF)] {
            let step = Step::new(8, Vec::new(), seconds(length), signs);
            assert_eq!(pause_after(&step, seconds(length)), pause, "{length}, {signs:?}");
        }
    }
}
