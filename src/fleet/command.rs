//! The orders to the store: `roadstead lease init`, and what concerns all nodes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::overview::{FleetNode, FleetOverview};
use super::store::StoreAddress;
use crate::config::{Config, LoadError, Share};
use crate::lease::message::FleetOrder;
use crate::lease::settings::LeaseConfig;

/// How long nodes may take to say that they obey. They hear of it at once; one whose connection was lost, when it is back.
const OBEDIENCE: Duration = Duration::from_secs(10);
/// How often they are looked at meanwhile.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// Before the first start of a fleet: say that no connection to the leased registries is open, so that the store lends at
    /// once, and not after the time of the longest lease. It is refused if anything is lent.
    Init,
}

/// The reason why a command did nothing.
#[derive(Debug, thiserror::Error)]
pub enum FleetProblem {
    /// By this config it cannot.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
}

impl From<LoadError> for FleetProblem {
    fn from(error: LoadError) -> FleetProblem {
        Usage(error.to_string())
    }
}

use FleetProblem::{Failed, Usage};

/// The store of a fleet.
struct Fleet<'a> {
    lease: &'a LeaseConfig,
    address: StoreAddress,
}

impl LeaseCommand {
    /// Done for each leased registry; the lines that tell so.
    pub fn run(&self, file: &Path) -> Result<String, FleetProblem> {
        let config = Config::load(file)?;
        let fleet = Fleet::of(&config)?;
        let mut told = String::new();
        for registry in config.leased() {
            let name = &registry.name;
            let answer = block_on(fleet.address.operate(name, "init"))?.map_err(|error| Failed(error.to_string()))?;
            if answer != [1] {
                return Err(Failed(format!(
                    "{told}registry {name}: slots are lent now, so the store is in use: nothing was changed there"
                )));
            }
            let _ = writeln!(told, "registry {name}: nothing is open, and the store lends from now on");
        }
        Ok(told)
    }
}

/// Pauses this registry on all nodes, or resumes it, and waits until they say so.
pub fn order(file: &Path, registry: &str, action: &str) -> Result<String, FleetProblem> {
    let config = Config::load(file)?;
    let fleet = Fleet::of(&config)?;
    let Some(of_config) = config.registries.iter().find(|known| known.name == registry) else {
        return Err(Usage(format!("no such registry: {registry}; there is {}", config.names())));
    };
    if of_config.share != Share::LEASED {
        return Err(Usage(format!(
            "registry {registry} has a fixed share (registries.{registry}.share), so its nodes have no store in common: \
             write share = \"lease\", or run `roadstead {action} {registry}` on each node"
        )));
    }
    block_on(fleet.order(registry, action))?
}

/// All nodes of each leased registry, as a table or as JSON.
pub fn status(file: &Path, as_json: bool) -> Result<String, FleetProblem> {
    let config = Config::load(file)?;
    let fleet = Fleet::of(&config)?;
    let mut all = BTreeMap::new();
    for registry in config.leased() {
        all.insert(registry.name.clone(), (registry, block_on(fleet.look(&registry.name))??));
    }
    if as_json {
        let all: BTreeMap<_, _> = all.iter().map(|(name, (_, overview))| (name, overview)).collect();
        return Ok(format!("{}\n", json!({ "registries": all })));
    }
    let tables = all.iter().map(|(name, (registry, overview))| {
        let mut table = overview.table(name, fleet.lease.pool(registry.cap));
        for node in overview.shared_names(fleet.lease.away_after()) {
            let _ = writeln!(table, "several sidecars go by the name {node}: give each its own lease.node_id");
        }
        table
    });
    Ok(tables.collect::<Vec<_>>().join("\n"))
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T, FleetProblem> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(|error| Failed(error.to_string()))?.block_on(future))
}

impl<'a> Fleet<'a> {
    fn of(config: &'a Config) -> Result<Fleet<'a>, FleetProblem> {
        let is_leased = config.leased().next().is_some();
        let Some(lease) = config.lease.as_ref().filter(|_| is_leased) else {
            return Err(Usage(
                "no registry of the config has share = \"lease\", so its nodes have no store in common".to_owned(),
            ));
        };
        let address = StoreAddress::new(lease).map_err(|error| Usage(error.to_string()))?;
        Ok(Fleet { lease, address })
    }

    async fn look(&self, registry: &str) -> Result<FleetOverview, FleetProblem> {
        let records = self.address.records(registry).await;
        let records = records.map_err(|error| Failed(format!("lease.redis {}: {error}", self.lease.redis)))?;
        Ok(FleetOverview::of(&records))
    }

    async fn order(&self, registry: &str, action: &str) -> Result<String, FleetProblem> {
        let away = |error| {
            Failed(format!(
                "lease.redis {}: {error}; nodes may hear of the order when the store answers again: order it anew then, or run \
                 `roadstead {action} {registry}` on each node",
                self.lease.redis
            ))
        };
        let style = ProgressStyle::with_template("{bar:40.} {pos} of {len} nodes");
        let bar = ProgressBar::new(0);
        bar.set_style(style.expect("the template is well formed").progress_chars("##-"));
        let began = Instant::now();
        let mut given = self.address.order_all(registry, action).await.map_err(away)?;
        let mut is_repeated = false;
        loop {
            let records = self.address.records(registry).await.map_err(away)?;
            let overview = FleetOverview::of(&records);
            if overview.order > given && overview.order.is_pause() == given.is_pause() {
                given = overview.order;
            } else if overview.order > given && overview.order.is_ahead_of(records.time) && !is_repeated {
                // It was given at a server whose clock was ahead, and a node brought it back.
                is_repeated = true;
                given = self.address.order_all(registry, action).await.map_err(away)?;
            } else if overview.order > given {
                bar.finish_and_clear();
                return Err(overruled(registry, &overview));
            }
            let there = self.lease.away_after();
            let (there, away): (Vec<&FleetNode>, Vec<&FleetNode>) =
                overview.nodes.iter().partition(|node| node.last_seen_seconds < there.as_secs_f64());
            let late: Vec<&str> = there
                .iter()
                .filter(|node| FleetOrder(node.report.order) < given)
                .map(|node| node.node.as_str())
                .collect();
            bar.set_length(there.len() as u64);
            bar.set_position((there.len() - late.len()) as u64);
            if late.is_empty() {
                bar.finish_and_clear();
                return Ok(obeyed(registry, action, there.len(), &away));
            }
            if began.elapsed() > OBEDIENCE {
                bar.finish_and_clear();
                return Err(Failed(format!(
                    "registry {registry}: the store has the order, but {} of {} nodes have not said within {} s that they obey: {}; \
                     see `roadstead status --fleet`, and their logs",
                    late.len(),
                    there.len(),
                    OBEDIENCE.as_secs(),
                    late.join(", ")
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Another operator has ordered the opposite.
fn overruled(registry: &str, overview: &FleetOverview) -> FleetProblem {
    let state = if overview.paused { "paused" } else { "resumed" };
    Failed(format!(
        "registry {registry}: another order was given since, and all nodes are being {state}: ask who gave it, and order it anew if \
         it has to be"
    ))
}

/// The lines of an order that was carried out.
fn obeyed(registry: &str, action: &str, nodes: usize, away: &[&FleetNode]) -> String {
    let mut told = match nodes {
        0 => format!("registry {registry}: {action}d; no node is there now\n"),
        1 => format!("registry {registry}: {action}d on its only node\n"),
        _ => format!("registry {registry}: {action}d on all {nodes} nodes\n"),
    };
    for node in away {
        let _ = writeln!(
            told,
            "node {} was last heard of {:.0} s ago: it hears of it when it comes back",
            node.node, node.last_seen_seconds
        );
    }
    told
}
