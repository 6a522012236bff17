//! The command line of `roadstead doctor`.

use std::path::PathBuf;

use crate::setup::{containerd, dfdaemon};

/// The order to `roadstead doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Checkup {
    /// Print the steps as JSON.
    #[arg(long)]
    pub json: bool,

    /// The folder that has the node's /etc and /proc, such as /host in a container.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,

    /// containerd's own config.
    #[arg(long, value_name = "FILE", default_value = containerd::CONFIG)]
    pub containerd_config: PathBuf,

    /// dfdaemon's config.
    #[arg(long, value_name = "FILE", default_value = dfdaemon::CONFIG)]
    pub dfdaemon_config: PathBuf,
}

const AFTER_HELP: &str = "\
Each line is a step: fine, PROBLEM with its cure, or skipped with the reason. Run it on the node, as root to see every service; beside
a running sidecar it also tries the mirror and the proxy. It changes nothing.

Exit status: 0 no problem, 1 a problem.";
