//! The story in ten seconds: a registry with a small cap, a storm of pulls, first directly, then through the sidecar.
//!
//! The registry is a stub that answers above its cap as Harbor does when its database has no connection left: with
//! `401 Unauthorized`. Everything runs in this process, on loopback; nothing is left behind.
//!
//! `cargo run --release --example pull_storm -- --clients 300 --cap 10`

use std::error::Error;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use roadstead::app::inherited::Inherited;
use roadstead::app::{self, Start};
use roadstead::config::Config;
use roadstead_test_support::{Destination, Progress, Storm, StubRegistry, Tally};

const BLOB: usize = 1024 * 1024;
/// What the registry takes for each answer: some database work.
const ANSWER_DELAY: Duration = Duration::from_millis(100);

/// Sends a storm of pulls to a capped registry, directly and then through the sidecar, and shows both side by side.
#[derive(Clone, Copy, Parser)]
struct Options {
    /// Pulls, all at once; each is a manifest and a blob of 1 MiB
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Connections that the registry can serve; on those above it answers 401
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    cap: u32,
}

/// One run of the storm.
struct Run {
    tally: Tally,
    /// The most connections that the registry saw at once.
    peak: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    tokio::select! {
        result = story(options) => result.unwrap_or_else(|error| {
            eprintln!("pull_storm: {error}");
            ExitCode::FAILURE
        }),
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted");
            ExitCode::from(130)
        }
    }
}

async fn story(options: Options) -> Result<ExitCode, Box<dyn Error>> {
    let Options { clients, cap } = options;
    println!("A registry that can serve {cap} connections, and {clients} pulls of 1 MiB at once.\n");
    let direct = directly(options).await;
    let sidecar = through_the_sidecar(options).await?;
    println!("{}", table(&direct, &sidecar));
    println!("{}", closing_sentence(options, &direct, &sidecar));
    let whole = sidecar.tally.failed.is_empty();
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn directly(options: Options) -> Run {
    let registry = registry(options.cap).await;
    run("directly", options, Destination::Direct, &registry).await
}

async fn through_the_sidecar(options: Options) -> Result<Run, Box<dyn Error>> {
    let registry = registry(options.cap).await;
    let config = Config::parse(&sidecar_toml(options, &registry))?;
    let start = Start { file: Path::new("the example's own"), config, inherited: Inherited::default() };
    let running = app::start(start, Box::new(|_| {})).await?;
    let result = run("through roadstead", options, Destination::Connect(running.addresses().proxy()), &registry).await;
    running.drain().await;
    Ok(result)
}

async fn registry(cap: u32) -> StubRegistry {
    let stub = StubRegistry::builder().cap(cap as usize).answer_delay(ANSWER_DELAY).blob_size(BLOB);
    stub.start().await
}

fn sidecar_toml(options: Options, registry: &StubRegistry) -> String {
    format!(
        r#"
        [listen]
        proxy = "127.0.0.1:0"
        admin = "127.0.0.1:0"

        [registries.harbor]
        hosts = ["{}"]
        cap = {}
        share = 1

        [registries.harbor.queue]
        tunnel_timeout = "100s"
        "#,
        registry.address(),
        options.cap
    )
}

async fn run(name: &'static str, options: Options, way: Destination, registry: &StubRegistry) -> Run {
    let storm = Storm { clients: options.clients as usize, blob: BLOB, ..Storm::new(way) };
    let bar = bar(name, u64::from(options.clients));
    let shown = bar.clone();
    let plain = !std::io::stderr().is_terminal();
    let tally = storm
        .run_with(registry.address(), move |progress| {
            show(name, progress, &shown, plain);
        })
        .await;
    bar.finish_and_clear();
    Run { tally, peak: registry.peak() }
}

/// Hidden by itself where standard error is no terminal.
fn bar(name: &'static str, clients: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:18} {bar:40} {pos}/{len} pulls, {elapsed}");
    ProgressBar::new(clients).with_style(style.expect("a valid template")).with_message(name)
}

fn show(name: &str, progress: Progress, bar: &ProgressBar, plain: bool) {
    bar.inc(1);
    let Progress { ended, clients } = progress;
    let quarter = clients.div_ceil(4);
    if plain && (ended.is_multiple_of(quarter) || ended == clients) {
        eprintln!("{name}: {ended} of {clients} pulls have ended");
    }
}

fn table(direct: &Run, sidecar: &Run) -> String {
    let mut table = format!("{:28} {:>12} {:>18}\n", "", "directly", "through roadstead");
    let mut row = |name: &str, show: fn(&Run) -> String| {
        let line = writeln!(table, "{name:28} {:>12} {:>18}", show(direct), show(sidecar));
        line.expect("writing to a string");
    };
    row("pulls", |run| (run.tally.ok + run.tally.failed.len()).to_string());
    row("failed", |run| run.tally.failed.len().to_string());
    row("most connections at once", |run| run.peak.to_string());
    row("p50 of the good pulls", |run| seconds(run.tally.p50()));
    row("p99 of the good pulls", |run| seconds(run.tally.p99()));
    row("total time", |run| seconds(Some(run.tally.total)));
    table
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or("-".into(), |time| format!("{:.2} s", time.as_secs_f64()))
}

fn closing_sentence(options: Options, direct: &Run, sidecar: &Run) -> String {
    let (failed, peak) = (sidecar.tally.failed.len(), sidecar.peak);
    match sidecar.tally.reasons().first() {
        Some((reason, _)) => {
            format!("{failed} pulls failed through the sidecar, most often so: {reason}")
        }
        None => format!(
            "Directly, {} of {} pulls failed; through roadstead all were served, on {peak} connections at most.",
            direct.tally.failed.len(),
            options.clients
        ),
    }
}
