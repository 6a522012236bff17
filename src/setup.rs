//! `roadstead setup`: the files that lead a puller of this node to the sidecar.
//!
//! Planning reads files and says how they should be; it writes nothing ([`containerd`], [`docker`], [`podman`], [`dfdaemon`]).
//! [`originals`] remembers what was there before, so that `--undo` restores it; [`disk`] changes all files or none. The
//! command line prints what [`run`] answers.

pub mod aim;
pub mod containerd;
pub mod dfdaemon;
mod diff;
mod disk;
pub mod docker;
pub mod error;
pub mod files;
mod originals;
pub mod podman;

use std::fmt::Write;
use std::path::PathBuf;

use aim::{Aim, Plan};
use error::SetupError;
use files::Files;
use originals::Originals;

use crate::config::{Config, LoadError};

/// The order to `roadstead setup`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// The puller that is led here.
    #[arg(value_enum)]
    pub puller: LedPuller,

    /// Write the files, all of them or none; without it they are only shown.
    #[arg(long, conflicts_with = "undo")]
    pub write: bool,

    /// Restore the files as they were before `--write`, and keep what others changed since.
    #[arg(long)]
    pub undo: bool,

    /// Leave the puller a way to the registry that goes around the sidecar, and so around the cap, for when the sidecar
    /// refuses or is down.
    #[arg(long)]
    pub allow_bypass: bool,

    /// The folder that has the node's /etc, such as /host in a container.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,

    /// Where the original files are kept [default: /var/lib/roadstead/setup, below --root].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// containerd's own config, which names the folder of hosts.toml.
    #[arg(long, value_name = "FILE", default_value = containerd::CONFIG)]
    pub containerd_config: PathBuf,

    /// dfdaemon's config.
    #[arg(long, value_name = "FILE", default_value = dfdaemon::CONFIG)]
    pub dfdaemon_config: PathBuf,
}

const AFTER_HELP: &str = "\
See what would change, change it, and take it back:
  roadstead setup containerd
  roadstead setup containerd --write
  roadstead setup containerd --undo

containerd  certs.d/HOST/hosts.toml names the mirror, and its `server`, too: containerd has no other address to fall back to
docker      a drop-in of the service, with the proxy: docker mirrors Docker Hub only
podman      registries.conf.d/roadstead.conf; for CRI-O and skopeo as well. Credentials go by the mirror's address
dfdaemon    its registryMirror, and in containerd's hosts.toml the header X-Dragonfly-Registry

What others wrote in these files stays. Run twice, it changes nothing.

In the init container of a DaemonSet, with the node's /etc and /var/lib/roadstead mounted below /host:
  roadstead setup containerd --write --root /host";

/// A program that pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LedPuller {
    /// containerd, by its hosts.toml.
    Containerd,
    /// docker, by a drop-in of its service.
    Docker,
    /// podman, CRI-O and skopeo, by registries.conf.d.
    Podman,
    /// Dragonfly's dfdaemon, and containerd in front of it.
    Dfdaemon,
}

impl LedPuller {
    fn name(self) -> &'static str {
        match self {
            LedPuller::Containerd => "containerd",
            LedPuller::Docker => "docker",
            LedPuller::Podman => "podman",
            LedPuller::Dfdaemon => "dfdaemon",
        }
    }
}

/// Does what the arguments say, and answers what to print. The config is read only where it is needed.
/// Fails when a file cannot be read or written, or does not allow the change; then nothing was changed.
pub fn run(arguments: &Arguments, config: impl FnOnce() -> Result<Config, LoadError>) -> Result<String, SetupError> {
    let state = arguments.state_dir.clone().unwrap_or_else(|| arguments.root.join("var/lib/roadstead/setup"));
    let mut originals = Originals::open(&state, arguments.puller.name())?;
    let plan = if arguments.undo {
        Plan::default()
    } else {
        let aim = Aim::of(&config()?, arguments.allow_bypass);
        let files = Files::new(&arguments.root, &originals);
        match arguments.puller {
            LedPuller::Containerd => containerd::plan(&aim, &files, &arguments.containerd_config)?,
            LedPuller::Docker => docker::plan(&aim, &files)?,
            LedPuller::Podman => podman::plan(&aim, &files)?,
            LedPuller::Dfdaemon => {
                dfdaemon::plan(&aim, &files, &arguments.dfdaemon_config, &arguments.containerd_config)?
            }
        }
    };
    let changes = originals.changes(&arguments.root, &plan)?;
    let mut shown: String = changes.iter().map(|change| diff::shown(change, !arguments.undo)).collect();
    if arguments.write || arguments.undo {
        originals.apply(&arguments.root, &changes, &plan)?;
    }
    if changes.is_empty() {
        shown += if arguments.undo { "nothing to restore\n" } else { "nothing to change\n" };
    } else if arguments.write || arguments.undo {
        let _ = writeln!(shown, "{} files written", changes.len());
    } else {
        shown += "nothing is written yet: add --write\n";
    }
    for note in &plan.notes {
        let _ = writeln!(shown, "note: {note}");
    }
    Ok(shown)
}
