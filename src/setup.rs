//! `roadstead setup`: the files that lead a puller of this node to the sidecar.
//!
//! Planning reads files and says how they should be; it writes nothing ([`containerd`], [`docker`], [`podman`], [`dfdaemon`]).
//! [`originals`] remembers what was there before, so that `--undo` restores it; [`disk`] changes all files or none. The
//! command line prints what [`run`] answers.

pub mod aim;
pub mod containerd;
pub mod dfdaemon;
pub mod diff;
mod disk;
pub mod docker;
pub mod error;
pub mod files;
mod originals;
pub mod podman;
mod unit;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use aim::{Aim, Plan};
use error::SetupError;
use files::Files;
use originals::Originals;

use crate::config::{Config, LoadError};

/// The order to `roadstead setup`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// The puller that is led here; `--undo` alone restores the files of all.
    #[arg(value_enum, required_unless_present = "undo")]
    pub puller: Option<LedPuller>,

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

/// Where the original files are kept on the node.
const STATE: &str = "/var/lib/roadstead/setup";

const AFTER_HELP: &str = "\
See what would change, change it, and take it back:
  roadstead setup containerd
  roadstead setup containerd --write
  roadstead setup containerd --undo

Before roadstead is removed from the node: restore the files of all pullers, the last one written first:
  roadstead setup --undo

containerd  certs.d/HOST/hosts.toml names the mirror, and its `server`, too: containerd has no other address to fall back to
docker      a drop-in of the service, with the proxy: docker mirrors Docker Hub only
podman      registries.conf.d/roadstead.conf; for CRI-O and skopeo as well. Credentials go by the mirror's address
dfdaemon    its registryMirror, and in containerd's hosts.toml the header X-Dragonfly-Registry

What others wrote in these files stays. Run twice, it changes nothing.

In the init container of a DaemonSet, with the node's /etc and /var/lib/roadstead mounted below /host:
  roadstead setup containerd --write --root /host";

/// A program that pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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

    /// The step that the operator takes after its files were restored.
    fn after_undo(self) -> Option<&'static str> {
        match self {
            LedPuller::Containerd => None,
            LedPuller::Docker => {
                Some("docker keeps the proxy until `systemctl daemon-reload && systemctl restart docker`")
            }
            LedPuller::Podman => Some("CRI-O reads the files on `systemctl reload crio`, podman and skopeo each time"),
            LedPuller::Dfdaemon => Some("dfdaemon keeps the mirror until `systemctl restart dfdaemon`"),
        }
    }
}

/// Does what the arguments say, and answers what to print. The config is read only where it is needed.
/// Fails when a file cannot be read or written, or does not allow the change; then nothing was changed for this puller.
pub fn run(arguments: &Arguments, config: impl FnOnce() -> Result<Config, LoadError>) -> Result<String, SetupError> {
    let state = match &arguments.state_dir {
        Some(folder) => folder.clone(),
        None => disk::below(&arguments.root, Path::new(STATE))?,
    };
    let Some(puller) = arguments.puller else { return undo_all(arguments, &state) };
    if arguments.undo {
        return undo(arguments, &state, puller);
    }
    let mut originals = Originals::open(&state, puller.name())?;
    let aim = Aim::of(&config()?, arguments.allow_bypass);
    let files = Files::new(&arguments.root, &originals);
    let plan = match puller {
        LedPuller::Containerd => containerd::plan(&aim, &files, &arguments.containerd_config),
        LedPuller::Docker => docker::plan(&aim, &files),
        LedPuller::Podman => podman::plan(&aim, &files),
        LedPuller::Dfdaemon => dfdaemon::plan(&aim, &files, &arguments.dfdaemon_config, &arguments.containerd_config),
    };
    // A file that another puller's setup wrote since may be what was refused.
    let plan = plan.or_else(|refused| originals.lie_open(&arguments.root).and(Err(refused)))?;
    let changes = originals.changes(&arguments.root, &plan)?;
    let mut shown: String = changes.iter().map(|change| diff::shown(change, true)).collect();
    if arguments.write {
        originals.apply(&arguments.root, &changes, &plan)?;
    }
    match changes.len() {
        0 => shown += "nothing to change\n",
        written if arguments.write => shown += &told(written),
        _ => shown += "nothing is written yet: add --write\n",
    }
    for note in &plan.notes {
        let _ = writeln!(shown, "note: {note}");
    }
    Ok(shown)
}

fn told(written: usize) -> String {
    format!("{written} file{} written\n", if written == 1 { "" } else { "s" })
}

/// Restores the files of one puller.
fn undo(arguments: &Arguments, state: &Path, puller: LedPuller) -> Result<String, SetupError> {
    let mut originals = Originals::open(state, puller.name())?;
    let plan = Plan::default();
    let changes = originals.changes(&arguments.root, &plan)?;
    originals.apply(&arguments.root, &changes, &plan)?;
    if changes.is_empty() {
        return Ok("nothing to restore\n".to_owned());
    }
    let shown: String = changes.iter().map(|change| diff::shown(change, false)).collect();
    let note = puller.after_undo().map(|note| format!("note: {note}\n"));
    Ok(shown + &told(changes.len()) + &note.unwrap_or_default())
}

/// Restores the files of all pullers. One that lies below another's waits for it.
fn undo_all(arguments: &Arguments, state: &Path) -> Result<String, SetupError> {
    let mut left = Vec::new();
    for puller in LedPuller::value_variants() {
        if !Originals::open(state, puller.name())?.is_empty() {
            left.push(*puller);
        }
    }
    let mut shown = String::new();
    while !left.is_empty() {
        let (count, mut refused) = (left.len(), String::new());
        left.retain(|puller| {
            let (name, undone) = (puller.name(), undo(arguments, state, *puller));
            let _ = match &undone {
                Ok(text) => write!(shown, "{name}:\n{text}"),
                Err(error) => write!(refused, "\n{name}: {error}"),
            };
            undone.is_err()
        });
        if left.len() == count {
            return Err(SetupError::Refused(format!("not all was restored\n{shown}{}", refused.trim_start())));
        }
    }
    Ok(if shown.is_empty() { "nothing to restore\n".to_owned() } else { shown })
}
