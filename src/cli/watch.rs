//! Asks for the status once, or each second until Ctrl-C, and prints it.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde_json::Value;

use super::ask;
use super::status::{Paint, render};

/// Puts the cursor on top, and clears what was there.
const REDRAW: &str = "\x1b[H\x1b[2J";

/// How the picture is shown.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// `/status` as it is, instead of a table.
    pub json: bool,
    /// Whether standard output is a terminal.
    terminal: bool,
    paint: Paint,
}

impl Look {
    /// As standard output and `NO_COLOR` (<https://no-color.org>) ask for.
    pub fn new(json: bool) -> Look {
        let terminal = io::stdout().is_terminal();
        let plain = !terminal || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Look { json, terminal, paint: if plain { Paint::Plain } else { Paint::Coloured } }
    }
}

/// Shows the picture once.
///
/// # Errors
/// When nobody answers there, or not as a sidecar does.
pub fn once(admin: &str, look: Look) -> Result<(), String> {
    let picture = picture(admin, look)?;
    print(&picture).map_err(|error| error.to_string())
}

/// Shows the picture each second, until Ctrl-C, or until nobody reads it any more. A sidecar that is away is told, and
/// asked again.
///
/// # Errors
/// When signals cannot be awaited.
pub fn until_interrupted(admin: &str, look: Look) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let shown = runtime.and_then(|runtime| {
        let shown = runtime.block_on(each_second(admin, look));
        // An answer that does not come must not keep who has pressed Ctrl-C.
        runtime.shutdown_background();
        shown
    });
    shown.map_err(|error| error.to_string())
}

async fn each_second(admin: &str, look: Look) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let asked = admin.to_owned();
        let round = async {
            seconds.tick().await;
            tokio::task::spawn_blocking(move || picture(&asked, look)).await
        };
        let picture = tokio::select! {
            picture = round => picture?.unwrap_or_else(|error| format!("{error}\n")),
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        };
        let start = if look.terminal && !look.json { REDRAW } else { "" };
        if print(&format!("{start}{picture}")).is_err() {
            return Ok(());
        }
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn picture(admin: &str, look: Look) -> Result<String, String> {
    let (status, body) = ask::get(admin, "/status").map_err(|error| format!("{admin}: {error}"))?;
    if status != 200 {
        return Err(format!("{admin} answered {status}: {}", body.trim()));
    }
    let parsed: Value =
        serde_json::from_str(&body).map_err(|error| format!("{admin}: no status of a sidecar: {error}"))?;
    Ok(if look.json { body } else { render(&parsed, look.paint) })
}
