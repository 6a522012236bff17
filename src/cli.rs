//! The command line.

mod ask;
mod man;
mod output;
mod status;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

use crate::app::inherited::Inherited;
use crate::app::systemd::Systemd;
use crate::app::takeover::process::{Program, Successor};
use crate::app::{self, SetLevel, Start};
use crate::config::{Config, LoadError, LogFormat, Service};
use crate::kernel;

/// Exit status for wrong usage, a config that does not hold, or a listener that cannot be bound.
const EXIT_USAGE: u8 = 2;
/// Exit status for a failure while running.
const EXIT_FAILURE: u8 = 1;

/// Where the config is looked for, in this order, when no argument names it.
const KNOWN_FILES: [&str; 2] = ["sidecar.toml", "/etc/roadstead/sidecar.toml"];
/// Where the admin listener is when no config tells.
const USUAL_ADMIN: &str = "127.0.0.1:4129";

/// An admission queue for container registries: a forward proxy that never opens more connections to a registry than
/// this node's share of what it can serve, and lets the rest wait their turn.
#[derive(Debug, Parser)]
#[command(name = "roadstead", version = env!("ROADSTEAD_VERSION"), after_help = AFTER_HELP)]
struct Arguments {
    /// The config file [default: sidecar.toml in the working directory, else /etc/roadstead/sidecar.toml]; `status`,
    /// `pause` and `resume` read only listen.admin of it, and ask 127.0.0.1:4129 if there is none.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the sidecar (the default).
    Run,
    /// Check the config: print the slots of each registry, or every problem at once.
    Check,
    /// Show what a running sidecar does: slots, who waits and who holds.
    Status(Status),
    /// Hold all admissions to a registry, for its maintenance; the queue stays.
    Pause(Control),
    /// Go on after a pause, in order.
    Resume(Control),
    /// Print completions for a shell, to be put where it looks for them.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in the form that `man` reads.
    Man,
}

#[derive(Debug, clap::Args)]
struct Status {
    /// Where the sidecar's admin listener is: http://HOST:PORT [default: listen.admin of the config].
    #[arg(long, value_name = "URL")]
    admin: Option<String>,

    /// Print /status as it is.
    #[arg(long)]
    json: bool,

    /// Show it anew each second, until Ctrl-C.
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, clap::Args)]
struct Control {
    /// The registry, as the config names it.
    registry: String,

    /// Where the sidecar's admin listener is: http://HOST:PORT [default: listen.admin of the config].
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
}

const AFTER_HELP: &str = "\
Point the pullers at it:
  HTTP_PROXY=http://127.0.0.1:4128 HTTPS_PROXY=http://127.0.0.1:4128

See what it does, here or at http://127.0.0.1:4129/ in a browser:
  roadstead status --watch
  curl http://127.0.0.1:4129/status
  curl http://127.0.0.1:4129/metrics

SIGTERM or Ctrl-C drains: nobody new is accepted, who came is served for up to drain_timeout; a second one ends at once.
SIGHUP reads the config again; if the binary was replaced, or on SIGUSR2, a new process takes over without a failed pull.
RUST_LOG overrides log.level.

Exit status: 0 fine, 1 failed while running, 2 wrong usage, config or listen address.";

pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.command {
        Some(Command::Pause(control)) => return tell(control, "pause", arguments.config.as_deref()),
        Some(Command::Resume(control)) => return tell(control, "resume", arguments.config.as_deref()),
        Some(Command::Status(asked)) => return status(asked, arguments.config.as_deref()),
        Some(Command::Completions { shell }) => return completions(*shell),
        Some(Command::Man) => return manual(),
        Some(Command::Run | Command::Check) | None => {}
    }
    // How it was started is to be known before the binary may be replaced, and what it inherited before threads run.
    let program = Program::of_this_process();
    let inherited = Inherited::from_env();
    let file = arguments.config.as_deref().or_else(|| readable(&KNOWN_FILES));
    let file = file.unwrap_or(Path::new(KNOWN_FILES[0]));
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => return fail(EXIT_USAGE, &error),
    };
    match arguments.command {
        Some(Command::Check) => check(&config, file),
        _ => match (program, inherited) {
            (Ok(program), Ok(inherited)) => run(config, file, inherited, &program),
            (Err(error), _) | (_, Err(error)) => {
                fail(EXIT_USAGE, &format!("what was handed over at the start: {error}"))
            }
        },
    }
}

fn status(asked: &Status, file: Option<&Path>) -> ExitCode {
    let admin = match admin_of(asked.admin.as_deref(), file, &KNOWN_FILES) {
        Ok(admin) => admin,
        Err(error) => return fail(EXIT_USAGE, &error),
    };
    let look = watch::Look::new(asked.json);
    let shown = if asked.watch { watch::until_interrupted(&admin, look) } else { watch::once(&admin, look) };
    shown.map_or_else(|error| fail(EXIT_FAILURE, &error), |()| ExitCode::SUCCESS)
}

fn completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "roadstead", &mut script);
    print(&script)
}

fn manual() -> ExitCode {
    match man::page(Arguments::command()) {
        Ok(page) => print(&page),
        Err(error) => fail(EXIT_FAILURE, &error),
    }
}

fn print(text: &[u8]) -> ExitCode {
    output::print(text).map_or_else(|error| fail(EXIT_FAILURE, &error), |_| ExitCode::SUCCESS)
}

/// Where the sidecar's admin listener is, as `host:port`: as it was named, or as a config says. It needs nothing but that
/// address of the config, so that it works while a reload is refused.
fn admin_of(named: Option<&str>, file: Option<&Path>, known: &[&str]) -> Result<String, String> {
    if let Some(url) = named {
        return ask::authority(url).map(str::to_owned);
    }
    let hint = |error: LoadError| format!("{error}\nname the sidecar with --admin URL");
    match file.or_else(|| readable(known)) {
        Some(file) => Config::admin_address(file).map(|admin| admin.to_string()).map_err(hint),
        None => Ok(USUAL_ADMIN.to_owned()),
    }
}

/// The first of these files that is there.
fn readable<'a>(files: &[&'a str]) -> Option<&'a Path> {
    files.iter().copied().map(Path::new).find(|file| file.exists())
}

fn tell(control: &Control, action: &str, file: Option<&Path>) -> ExitCode {
    let Control { registry, admin } = control;
    // Nothing else is a registry's name, and not every other text would be one path.
    if registry.is_empty() || !registry.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')) {
        return fail(EXIT_USAGE, &format!("{registry:?} is no registry's name: those have a-z, 0-9, _ and - only"));
    }
    let admin = match admin_of(admin.as_deref(), file, &KNOWN_FILES) {
        Ok(admin) => admin,
        Err(error) => return fail(EXIT_USAGE, &error),
    };
    match ask::post(&admin, &format!("/registries/{registry}/{action}")) {
        Ok((200, _)) => print(format!("registry {registry}: {action}d\n").as_bytes()),
        Ok((status, body)) => fail(EXIT_FAILURE, &format!("{admin} answered {status}: {}", body.trim())),
        Err(error) => fail(EXIT_FAILURE, &error),
    }
}

fn fail(status: u8, error: &dyn std::fmt::Display) -> ExitCode {
    output::say(&format_args!("roadstead: {error}"));
    ExitCode::from(status)
}

fn check(config: &Config, file: &Path) -> ExitCode {
    if let Err(error) = app::read_tls(config) {
        return fail(EXIT_USAGE, &format!("{}: {error}", file.display()));
    }
    let lines = config.registries.iter().map(|registry| {
        let (name, slots, cap, share) = (&registry.name, registry.slots, registry.cap, registry.share);
        format!("registry {name}: {slots} slots (cap {cap} x share {share})\n")
    });
    let printed = print(lines.collect::<String>().as_bytes());
    let warnings = config.warnings.iter().map(ToString::to_string);
    for warning in warnings.chain(app::descriptors::warning(config)) {
        output::say(&format_args!("warning: {}: {warning}", file.display()));
    }
    printed
}

fn run(config: Config, file: &Path, inherited: Inherited, program: &Program) -> ExitCode {
    let set_level = start_logging(&config);
    for warning in &config.warnings {
        tracing::warn!(file = %file.display(), "{warning}");
    }
    if let Err(error) = kernel::raise_descriptor_limit() {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    if let Some(warning) = app::descriptors::warning(&config) {
        tracing::warn!(file = %file.display(), "{warning}");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(EXIT_FAILURE, &error),
    };
    let status = runtime.block_on(serve(Start { file, config, inherited }, set_level, program));
    // A lookup that hangs in the system's resolver must not keep the process.
    runtime.shutdown_background();
    status
}

/// A node's processors belong to its pods; moving bytes for one registry takes few of them.
fn workers() -> usize {
    const MOST: usize = 4;
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST)
}

async fn serve(start: Start<'_>, set_level: SetLevel, program: &Program) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return fail(EXIT_FAILURE, &error),
    };
    for registry in &start.config.registries {
        tracing::info!(registry = registry.name, slots = registry.slots, cap = registry.cap, share = %registry.share, "registry");
    }
    let mut running = match app::start(start, set_level).await {
        Ok(running) => running,
        Err(error) => return fail(EXIT_USAGE, &error),
    };
    // The proxy is the last: then everything listens.
    for (service, address) in running.addresses().0.iter().rev() {
        match service {
            Service::Mirror(registry) => tracing::info!(listener = "mirror", registry, %address, "listening"),
            Service::Proxy => tracing::info!(listener = "proxy", %address, pid = std::process::id(), "listening"),
            other => tracing::info!(listener = other.name(), %address, "listening"),
        }
    }
    let systemd = Systemd::new();
    systemd.ready();
    loop {
        let order = tokio::select! {
            order = signals.next() => order,
            () = running.config_changed() => Order::Reload("a file has changed"),
        };
        let is_reload = matches!(order, Order::Reload(_));
        match order {
            Order::Reload(why) if why == HANGUP && program.is_replaced() => {
                tracing::info!("the binary was replaced: a new process takes over");
            }
            Order::Reload(why) => {
                running.reload(why);
                continue;
            }
            Order::HandOver => {}
            Order::End(signal) => return end(running, signal, &mut signals, systemd).await,
        }
        // Told to end meanwhile, it ends, and so does whoever was about to take over.
        let found = tokio::select! {
            found = running.find_successor(program) => Ok(found),
            signal = signals.end() => Err(signal),
        };
        match found {
            Ok(Ok(successor)) => return hand_over(running, successor, &mut signals, systemd).await,
            Ok(Err(error)) => {
                tracing::error!("nobody took over, this process goes on: {error}");
                if is_reload {
                    running.reload(HANGUP);
                }
            }
            Err(signal) => return end(running, signal, &mut signals, systemd).await,
        }
    }
}

async fn end(running: app::Running, signal: &'static str, signals: &mut Signals, systemd: Systemd) -> ExitCode {
    let drain_timeout = running.drain_timeout();
    tracing::info!(signal, ?drain_timeout, "draining; a second signal ends at once");
    systemd.stopping();
    let drained = async {
        running.drain().await;
        systemd.end().await;
    };
    tokio::select! {
        () = drained => {
            tracing::info!("drained");
            ExitCode::SUCCESS
        }
        signal = signals.end() => {
            tracing::warn!(signal, "ended at once");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

async fn hand_over(running: app::Running, successor: Successor, signals: &mut Signals, systemd: Systemd) -> ExitCode {
    tracing::info!(pid = successor.pid, "another process takes over; who came to this one is served here");
    systemd.replaced_by(successor.pid);
    // A service manager tells all processes of a service to stop: this one is about to.
    let stop = CancellationToken::new();
    let ended_at_once = async {
        let signal = signals.end().await;
        tracing::info!(signal, "draining already; a second signal ends at once");
        stop.cancel();
        signals.end().await
    };
    // Were it gone before it was heard who takes over, the service would count as ended.
    let served = async { tokio::join!(running.hand_over(successor, stop.clone()), systemd.end()) };
    tokio::select! {
        _ = served => {
            tracing::info!("handed over");
            ExitCode::SUCCESS
        }
        signal = ended_at_once => {
            tracing::warn!(signal, "ended at once");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

enum Order {
    /// Read the config again; why.
    Reload(&'static str),
    /// Let another process take over.
    HandOver,
    /// Drain and end; which signal said so.
    End(&'static str),
}

const TERMINATE: &str = "SIGTERM";
const INTERRUPT: &str = "SIGINT";
const HANGUP: &str = "SIGHUP";

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user2: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::End(TERMINATE),
            _ = self.interrupt.recv() => Order::End(INTERRUPT),
            _ = self.hangup.recv() => Order::Reload(HANGUP),
            _ = self.user2.recv() => Order::HandOver,
        }
    }

    /// The next signal that ends the process; others wait.
    async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => TERMINATE,
            _ = self.interrupt.recv() => INTERRUPT,
        }
    }
}

/// Begins to log; what comes back sets another level. `RUST_LOG` goes before the config.
fn start_logging(config: &Config) -> SetLevel {
    let from_env = EnvFilter::try_from_default_env();
    let is_fixed = from_env.is_ok();
    let filter = from_env.unwrap_or_else(|_| EnvFilter::new(config.log.level));
    let (filter, handle) = reload::Layer::new(filter);
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    match config.log.format {
        LogFormat::Text => registry.with(logs.with_target(false).with_ansi(colours)).init(),
        LogFormat::Json => registry.with(logs.json()).init(),
    }
    Box::new(move |level| {
        if is_fixed {
            tracing::warn!(level, "log.level has no effect while RUST_LOG is set");
        } else if let Err(error) = handle.reload(EnvFilter::new(level)) {
            tracing::error!(%error, "log.level cannot be changed");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_nothing_asks_the_first_sidecar_that_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let with = |port: u16| {
            format!(
                "[listen]\nadmin = '127.0.0.1:{port}'\n[registries.a]\nhosts = ['a.example.com']\ncap = 1\nshare = 1\n"
            )
        };
        let (here, installed, broken) = (
            file("here", &with(1)),
            file("installed", &with(2)),
            file("broken", &format!("{}cap = 0\n[x]\n", with(3))),
        );
        let absent = folder.path().join("absent").to_str().unwrap().to_owned();
        let admin = |known: &[&String]| {
            let known: Vec<&str> = known.iter().map(|file| file.as_str()).collect();
            admin_of(None, None, &known)
        };
        assert_eq!(admin(&[&here, &installed]).unwrap(), "127.0.0.1:1");
        assert_eq!(admin(&[&absent, &installed]).unwrap(), "127.0.0.1:2");
        assert_eq!(admin(&[&absent, &absent]).unwrap(), "127.0.0.1:4129");
        // A sidecar that refused this file goes on with the one before.
        assert_eq!(admin(&[&broken, &installed]).unwrap(), "127.0.0.1:3");
        // A given file counts alone.
        assert!(admin_of(None, Some(Path::new(&absent)), &[&here]).unwrap_err().contains(&absent));
        assert_eq!(admin_of(Some("http://[::1]:7/"), Some(Path::new(&absent)), &[&here]).unwrap(), "[::1]:7");
    }
}
