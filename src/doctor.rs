//! `roadstead doctor`: everything between the config and the first byte, tried once, each step with its cure.
//!
//! It changes nothing. It opens one connection at a time, beside those of a running sidecar, and asks for `/v2/` without
//! credentials. No secret of a file that it reads is shown. `cli` runs it and prints the [`Findings`].

pub mod checkup;
mod exchange;
mod node;
mod proxies;
mod pullers;
mod registry;
mod report;
mod services;
mod sidecar;

use std::path::Path;
use std::sync::Arc;

use crate::app;
use crate::config::Config;
use crate::setup::files::Files;
use crate::upstream::tls::{Tls, TlsTerms};
use checkup::Checkup;
use report::{ExaminedStep, Findings};

/// Tries everything, and answers the report as text or JSON, and the exit status.
/// Fails when no runtime can be had.
pub fn run(checkup: &Checkup, file: &Path) -> std::io::Result<(String, u8)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let findings = runtime.block_on(examine(checkup, file));
    // A look-up may hang in the system's resolver.
    runtime.shutdown_background();
    let shown = if checkup.json { findings.json() } else { findings.text() };
    Ok((shown, u8::from(findings.problems() > 0)))
}

async fn examine(checkup: &Checkup, file: &Path) -> Findings {
    let mut report = Findings::default();
    let subject = file.display().to_string();
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => {
            let cure = "correct it; `roadstead check` prints the same, and sidecar.toml in the package shows every key";
            report.add(ExaminedStep::problem("config", &subject, error, cure));
            return report;
        }
    };
    for warning in &config.warnings {
        report.add(ExaminedStep::problem(
            "config",
            &subject,
            warning,
            "change the setting as it says, or expect what it says",
        ));
    }
    if config.warnings.is_empty() {
        let slots = config.registries.iter().map(|registry| format!("{}: {} slots", registry.name, registry.slots));
        report.add(ExaminedStep::fine("config", &subject, slots.collect::<Vec<_>>().join(", ")));
    }
    let tls = match app::read_tls(&config) {
        Ok(tls) => tls,
        Err(error) => {
            let cure = "name a file in PEM that the sidecar's user can read";
            report.add(ExaminedStep::problem("tls_files", &subject, error, cure));
            return report;
        }
    };
    let proc = checkup.root.join("proc");
    let sidecars = services::sidecars(&proc);
    report.add(node::descriptors(&config, &sidecars));
    report.add(node::second_sidecar(&sidecars));
    report.add(node::lease_store(&config).await);
    for registry in &config.registries {
        let tls = tls.get(&registry.name).cloned();
        let tls = tls.unwrap_or_else(|| Arc::new(Tls::new(TlsTerms::default())));
        registry::examine(&config, registry, &tls, &mut report).await;
    }
    sidecar::examine(&config, &mut report).await;
    let files = Files::as_they_are(&checkup.root);
    pullers::examine(&config, &files, checkup, &proc, &mut report);
    report
}
