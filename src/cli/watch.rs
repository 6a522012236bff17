//! Asks for the status once, or each second until Ctrl-C, and prints it.

use std::io::{self, IsTerminal};
use std::time::Duration;

use anstream::adapter::strip_str;
use rustix::termios::tcgetwinsize;
use serde_json::Value;

use super::output;
use super::status::{Window, render, render_in};
use crate::control::ask;

/// Puts the cursor on top, and clears what was there.
const REDRAW: &str = "\x1b[H\x1b[2J";

/// How the picture is shown.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// `/status` unchanged, instead of a table.
    pub json: bool,
    /// Whether standard output is a terminal that can put the cursor somewhere.
    terminal: bool,
    /// Whether colours are left out.
    plain: bool,
}

impl Look {
    /// As standard output, `TERM` and `NO_COLOR` (<https://no-color.org>) ask for.
    pub fn new(json: bool) -> Look {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = io::stdout().is_terminal() && !dumb;
        let plain = !terminal || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Look { json, terminal, plain }
    }

    /// The picture with its colours, or without.
    fn coloured(self, picture: String) -> String {
        if self.plain { strip_str(&picture).to_string() } else { picture }
    }

    /// The window in which one picture takes the place of the other; none where they follow each other.
    fn window(self) -> Option<Window> {
        let size = tcgetwinsize(io::stdout()).ok().filter(|_| self.terminal && !self.json)?;
        let (columns, rows) = (size.ws_col.into(), size.ws_row.into());
        // A terminal that does not know its size reports 0.
        (columns > 0 && rows > 0).then_some(Window { columns, rows })
    }
}

/// Fails without the answer of a sidecar.
pub fn once(admin: &str, look: Look) -> Result<(), String> {
    let (status, body) = status(admin)?;
    let picture = if look.json { body } else { look.coloured(render(&status)) };
    output::print(picture.as_bytes()).map(|_| ())
}

/// Shows the picture each second, until Ctrl-C, or until it is not read any more. A sidecar that is away is reported,
/// and asked again.
/// Fails when signals cannot be awaited, or nothing can be printed.
pub fn until_interrupted(admin: &str, look: Look) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let shown = runtime.block_on(each_second(admin, look));
    // A missing answer must not delay Ctrl-C.
    runtime.shutdown_background();
    shown
}

async fn each_second(admin: &str, look: Look) -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let signal = |kind| signal(kind).map_err(|error| error.to_string());
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let asked = admin.to_owned();
        let round = async {
            seconds.tick().await;
            tokio::task::spawn_blocking(move || status(&asked)).await
        };
        let status = tokio::select! {
            status = round => status.map_err(|error| error.to_string())?,
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        };
        let picture = match status {
            Ok((status, _)) => next(&status, look),
            // One object a line is all that a program reads there.
            Err(error) if look.json => {
                output::say(&error);
                continue;
            }
            Err(error) => start(look) + &error + "\n",
        };
        if !output::print(picture.as_bytes())? {
            return Ok(());
        }
    }
}

fn next(status: &Value, look: Look) -> String {
    if look.json {
        return format!("{status}\n");
    }
    match look.window() {
        Some(window) => start(look) + &look.coloured(render_in(status, window)),
        None => start(look) + &look.coloured(render(status)),
    }
}

fn start(look: Look) -> String {
    if look.terminal && !look.json { REDRAW.to_owned() } else { String::new() }
}

fn status(admin: &str) -> Result<(Value, String), String> {
    ask::picture(admin, "/status")
}
