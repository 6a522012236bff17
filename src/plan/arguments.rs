//! The arguments of `roadstead plan`.

use std::path::PathBuf;
use std::time::Duration;

use super::units;

/// Nodes, pulls and connections at most: beyond it, a plan is a slip of the pen.
const MOST: i64 = 1_000_000;
/// Say what would happen if so many nodes pulled so much at once: by the real scheduler, in virtual time.
#[derive(Debug, clap::Args)]
pub struct PlanArguments {
    /// Nodes, each with a sidecar of its own [default: one for each --trace].
    #[arg(long, value_name = "N", required_unless_present = "trace", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    pub(super) nodes: Option<u32>,

    /// Connections that the registry can serve, all nodes together [default: that of the config].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    pub(super) cap: Option<u32>,

    /// Each node's part of the cap: `static` for equal parts, a fraction such as 1/20, or `lease` [default: that of the
    /// config, else static].
    #[arg(long, value_name = "SHARE")]
    pub(super) share: Option<String>,

    /// The registry of the config whose cap, share, rate and queue are taken; not needed if there is only one.
    #[arg(long, value_name = "NAME")]
    pub(super) registry: Option<String>,

    /// A recorded load instead of pulls: the log of a node's sidecar, in JSON; several for several nodes, which nodes take in
    /// turn. Without --bandwidth, each request takes as long as it took.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["images", "layers", "layer_size", "small", "parallel", "within", "class", "tunnels"])]
    pub(super) trace: Vec<PathBuf>,

    /// Images that each node pulls.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    pub(super) images: u32,

    /// Layers of an image.
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u32).range(0..=MOST))]
    pub(super) layers: u32,

    /// Bytes of a layer.
    #[arg(long, value_name = "SIZE", default_value = "50MiB", value_parser = units::size)]
    pub(super) layer_size: u64,

    /// Layers of one image at once, as containerd has it.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    pub(super) parallel: u32,

    /// Small requests before the layers, one after the other: token, manifest, config.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(0..=MOST))]
    pub(super) small: u32,

    /// The pulls of the nodes begin evenly over this time [default: all at once].
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(super) within: Duration,

    /// Bytes a second that the registry sends, all transfers together [default: no bound].
    #[arg(long, value_name = "RATE", value_parser = units::rate)]
    pub(super) bandwidth: Option<u64>,

    /// From a request to the first byte of its answer.
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = humantime::parse_duration)]
    pub(super) service_time: Duration,

    /// A round trip to the registry; a dial takes three, a close one.
    #[arg(long, value_name = "TIME", default_value = "1ms", value_parser = humantime::parse_duration)]
    pub(super) round_trip: Duration,

    /// Connections above which the registry fails requests [default: the cap].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    pub(super) stands: Option<u32>,

    /// The requests are tunnels (`HTTPS_PROXY`), one connection for each, and not visible ones (the mirror).
    #[arg(long)]
    pub(super) tunnels: bool,

    /// The puller, whose patience counts; NAME=PULLER for one class.
    #[arg(long, value_name = "PULLER")]
    pub(super) puller: Vec<String>,

    /// The part of the pulls that a class has, such as interactive=20%; the rest is of the class default.
    #[arg(long, value_name = "NAME=PART")]
    pub(super) class: Vec<String>,

    /// The weight of a class [default: that of the config, else 1].
    #[arg(long, value_name = "NAME=N")]
    pub(super) weight: Vec<String>,

    /// Longest wait in the queue, for all classes [default: that of the config, else the sidecar's default].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) queue_timeout: Option<Duration>,

    /// The plan ends so long after the last pull began, whatever is under way.
    #[arg(long, value_name = "TIME", default_value = "1day", value_parser = humantime::parse_duration)]
    pub(super) until: Duration,

    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The two parts of `NAME=VALUE`.
pub fn pair<'a>(option: &str, text: &'a str) -> Result<(&'a str, &'a str), String> {
    let pair = text.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty());
    pair.ok_or_else(|| format!("{option} {text}: write NAME=VALUE, such as interactive=20%"))
}
