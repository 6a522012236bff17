//! `roadstead debug dump`: asks the admin pages, and writes the report where it is asked for.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::control::ask;
use crate::debug_dump;

#[derive(Debug, clap::Subcommand)]
pub enum Debug {
    /// Write a tar for a bug report: status, queue, history, metrics, settings and limits, without secrets.
    Dump(Dump),
}

#[derive(Debug, clap::Args)]
pub struct Dump {
    /// Where the sidecar's admin listener is: http://HOST:PORT [default: listen.admin of the config].
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,

    /// The file to write, which must not be there yet [default: roadstead-debug-SECONDS.tar].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Writes the report, and returns the words about it. A sidecar that does not answer is told in the report.
/// Fails when the file cannot be made.
pub fn write(asked: &Dump, admin: &Result<String, String>, config: &Path) -> Result<String, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let page = |path: &str| match ask::get(admin.as_ref().map_err(Clone::clone)?, path)? {
        (200, page) => Ok(page),
        (status, body) => Err(format!("{path} was answered with {status}: {}", body.trim())),
    };
    let files = debug_dump::files(env!("ROADSTEAD_VERSION"), config, page);
    let mut tar = Vec::new();
    let path = asked.output.clone().unwrap_or_else(|| PathBuf::from(format!("roadstead-debug-{now}.tar")));
    let told = |error: std::io::Error| format!("{}: {error}", path.display());
    debug_dump::write(&files, now, &mut tar).map_err(told)?;
    // For its owner alone: it names repositories and clients.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(&tar)).map_err(told)?;
    Ok(format!("{}: look through it before you publish it; add the log\n", path.display()))
}
