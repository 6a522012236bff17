//! The command line: it parses arguments, reads the config, and turns signals into orders for `app`.
//!
//! It owns standard output, the log and the exit status. It never serves a request. `main` calls it.

mod log_line;
mod log_writer;
mod man;
mod output;
mod status;
mod watch;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tokio_util::sync::CancellationToken;
use tracing::subscriber::set_global_default;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, reload};

use self::log_line::PlainLine;
use self::log_writer::{LogEnd, LogWriter};
use crate::app::inherited::Inherited;
use crate::app::systemd::{Notice, Systemd};
use crate::app::takeover::process::{Program, Successor};
use crate::app::{self, SetLevel, Start};
use crate::calibrate::command::{self as calibrate, CalibrateArguments};
use crate::config::{Config, LogFormat, RegistryConfig, Service};
use crate::control::address::{admin_of, config_file};
use crate::control::order::{OrderTarget, RegistryOrder, Unsent};
use crate::control::signals::{HANGUP, Order, Signals};
use crate::control::token;
use crate::debug_dump::{self, command::Debug};
use crate::doctor;
use crate::explain::command::{Queue, Why};
use crate::fleet::command::{self as fleet, LeaseCommand};
use crate::kernel;
use crate::lease::checks::summary;
use crate::plan::{self, arguments::PlanArguments};
use crate::setup;

/// Exit status for wrong usage, an invalid config, or a listener that cannot be bound.
const EXIT_USAGE: u8 = 2;
/// Exit status for a failure while running.
const EXIT_FAILURE: u8 = 1;

/// An admission queue for container registries: a mirror and forward proxy that opens no more connections to a registry
/// than this node's share of what it can serve. Further requests wait.
#[derive(Debug, Parser)]
#[command(name = "roadstead", version = env!("ROADSTEAD_VERSION"), after_help = AFTER_HELP)]
struct Arguments {
    /// The config file [default: sidecar.toml in the working directory, else /etc/roadstead/sidecar.toml]; commands
    /// that ask a running sidecar read only its addresses of listeners, or take the defaults if there is none.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the sidecar (the default).
    Run,
    /// Check the config: print the slots of each registry and where each value came from, or every problem at once.
    Check {
        /// Also print the values that are set nowhere: their defaults.
        #[arg(long)]
        values: bool,
    },
    /// Show what a running sidecar does: slots, waiting requests and holders.
    Status(Status),
    /// Show which requests wait, by their turns: for what, for how long still, and what limits them.
    Queue(Queue),
    /// Say in words why an image or a repository waits.
    Why(Why),
    /// Hold all admissions to a registry, for its maintenance; the queue stays.
    Pause(RegistryOrder),
    /// Resume admissions after a pause, in order.
    Resume(RegistryOrder),
    /// Find out how many connections a registry can serve, by a bounded pressure test.
    Calibrate(CalibrateArguments),
    /// Let a running sidecar read its config again, and wait for the result.
    Reload(OrderTarget),
    /// Try everything from the config to the first byte; each problem comes with its cure. Nothing is changed.
    Doctor(doctor::checkup::Checkup),
    /// Lead a puller of this node here: print, write or undo the changes of its files.
    Setup(setup::Arguments),
    /// Say what would happen if so many nodes pulled so much at once.
    Plan(Box<PlanArguments>),
    /// Speak to the store of leases.
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Help with a bug report.
    #[command(subcommand)]
    Debug(Debug),
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

    /// Print /status unchanged, as JSON.
    #[arg(long)]
    json: bool,

    /// Refresh it each second, until Ctrl-C.
    #[arg(long)]
    watch: bool,

    /// Show all nodes instead, as the store of leases knows them.
    #[arg(long, conflicts_with_all = ["admin", "watch"])]
    fleet: bool,
}

const AFTER_HELP: &str = "\
Point the pullers at it:
  HTTP_PROXY=http://127.0.0.1:4128 HTTPS_PROXY=http://127.0.0.1:4128

See what it does, here or at http://127.0.0.1:4129/ in a browser:
  roadstead status --watch
  curl http://127.0.0.1:4129/status
  curl http://127.0.0.1:4129/metrics

SIGTERM or Ctrl-C drains: accepted requests are served for up to drain_timeout, new ones are not accepted; a second signal ends at once.
SIGHUP reads the config again; if the binary was replaced, or on SIGUSR2, a new process takes over without a failed pull.
RUST_LOG overrides log.level.

Exit status: 0 fine, 1 failed while running, 2 wrong usage, config or listen address.";

/// The exit status of a command that failed, and the reason.
struct Failure(u8, String);

fn usage(reason: impl Display) -> Failure {
    Failure(EXIT_USAGE, reason.to_string())
}

fn failed(reason: impl Display) -> Failure {
    Failure(EXIT_FAILURE, reason.to_string())
}

pub fn main() -> ExitCode {
    execute(&Arguments::parse()).unwrap_or_else(|Failure(status, reason)| {
        output::say(&format_args!("roadstead: {reason}"));
        ExitCode::from(status)
    })
}

fn execute(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let named = arguments.config.as_deref();
    match &arguments.command {
        Some(Command::Pause(order)) => return sent(order.give("pause", named)),
        Some(Command::Resume(order)) => return sent(order.give("resume", named)),
        Some(Command::Reload(to)) => return sent(to.reload(named)),
        Some(Command::Status(asked)) => return status(asked, named),
        Some(Command::Doctor(checkup)) => {
            let (report, status) = doctor::run(checkup, config_file(named)).map_err(failed)?;
            return print(report.as_bytes()).map(|_| ExitCode::from(status));
        }
        Some(Command::Setup(asked)) => {
            let config = || Config::load(config_file(named));
            return printed(setup::run(asked, config));
        }
        Some(Command::Plan(asked)) => {
            let config = named.map(Config::load).transpose().map_err(usage)?;
            let planned = plan::answer(asked, config.as_ref()).map_err(usage)?;
            return print(planned.text.as_bytes()).map(|_| ExitCode::from(planned.status));
        }
        Some(Command::Queue(asked)) => return printed(asked.answer(&asked_admin(asked.admin.as_deref(), named)?)),
        Some(Command::Why(asked)) => return printed(asked.answer(&asked_admin(asked.admin.as_deref(), named)?)),
        Some(Command::Debug(Debug::Dump(asked))) => {
            let admin = asked_admin(asked.admin.as_deref(), named).map_err(|Failure(_, reason)| reason);
            return printed(debug_dump::command::write(asked, &admin, config_file(named)));
        }
        Some(Command::Lease(asked)) => return sent(asked.run(config_file(named))),
        Some(Command::Completions { shell }) => return completions(*shell),
        Some(Command::Man) => return print(&man::page(Arguments::command()).map_err(failed)?),
        Some(Command::Calibrate(asked)) => return sent(calibrate::on_this_node(asked, named)),
        Some(Command::Run | Command::Check { .. }) | None => {}
    }
    // The binary may be replaced later, and the inherited descriptors are read before threads run.
    let program = Program::of_this_process();
    let inherited = Inherited::from_env();
    let file = config_file(named);
    let is_absent = named.is_none() && !file.exists();
    let hint = if is_absent { "; nor is there /etc/roadstead/sidecar.toml: name the file with --config" } else { "" };
    let config = Config::load(file).map_err(|error| usage(format!("{error}{hint}")))?;
    if let Some(Command::Check { values }) = arguments.command {
        return check(&config, file, values);
    }
    let handed_over = |error| usage(format!("cannot use the descriptors from the start: {error}"));
    run(config, file, inherited.map_err(handed_over)?, &program.map_err(handed_over)?)
}

fn status(asked: &Status, file: Option<&Path>) -> Result<ExitCode, Failure> {
    if asked.fleet {
        return sent(fleet::status(config_file(file), asked.json));
    }
    let admin = admin_of(asked.admin.as_deref(), file).map_err(usage)?;
    let look = watch::Look::new(asked.json);
    let shown = if asked.watch { watch::until_interrupted(&admin, look) } else { watch::once(&admin, look) };
    shown.map_err(failed).map(|()| ExitCode::SUCCESS)
}

fn completions(shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "roadstead", &mut script);
    print(&script)
}

fn sent(answer: Result<String, impl Into<Unsent>>) -> Result<ExitCode, Failure> {
    let status = |unsent: Unsent| Failure(if unsent.is_usage { EXIT_USAGE } else { EXIT_FAILURE }, unsent.told);
    print(answer.map_err(|unsent| status(unsent.into()))?.as_bytes())
}

fn printed(answer: Result<String, impl Display>) -> Result<ExitCode, Failure> {
    print(answer.map_err(failed)?.as_bytes())
}

fn print(text: &[u8]) -> Result<ExitCode, Failure> {
    output::print(text).map_err(failed).map(|_| ExitCode::SUCCESS)
}

fn asked_admin(named: Option<&str>, file: Option<&Path>) -> Result<String, Failure> {
    admin_of(named, file).map_err(usage)
}

fn check(config: &Config, file: &Path, values: bool) -> Result<ExitCode, Failure> {
    app::read_tls(config).map_err(|error| usage(format!("{}: {error}", file.display())))?;
    config.listen.control_token_file.as_deref().map(token).transpose().map_err(usage)?;
    let line = |registry: &RegistryConfig| format!("registry {}: {}\n", registry.name, summary(config, registry));
    let lines = config.registries.iter().map(line);
    let settings = debug_dump::settings(config, &format!("{}:", file.display()), values);
    let printed = print(lines.chain([settings]).collect::<String>().as_bytes());
    for warning in config.warnings.iter().map(ToString::to_string).chain(app::descriptors::warning(config)) {
        output::say(&format_args!("warning: {}: {warning}", file.display()));
    }
    printed
}

fn run(config: Config, file: &Path, inherited: Inherited, program: &Program) -> Result<ExitCode, Failure> {
    let (set_level, _end_of_log) = start_logging(&config).map_err(failed)?;
    for warning in &config.warnings {
        tracing::warn!(file = %file.display(), "{warning}");
    }
    if let Err(error) = kernel::raise_descriptor_limit() {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    if let Some(warning) = app::descriptors::warning(&config) {
        tracing::warn!(file = %file.display(), "{warning}");
    }
    let mut runtime = match config.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(config.threads).enable_all().build().map_err(failed)?;
    let status = runtime.block_on(serve(Start { file, config, inherited }, set_level, program));
    // A lookup that hangs in the system's resolver must not keep the process.
    runtime.shutdown_background();
    status
}

async fn serve(start: Start<'_>, set_level: SetLevel, program: &Program) -> Result<ExitCode, Failure> {
    let mut signals = Signals::new().map_err(failed)?;
    for registry in &start.config.registries {
        tracing::info!(registry = registry.name, slots = registry.slots, cap = registry.cap, share = %registry.share, "registry");
    }
    let mut running = app::start(start, set_level).await.map_err(usage)?;
    // The proxy is the last: then everything listens.
    for (service, address) in running.addresses().0.iter().rev() {
        match service {
            Service::Mirror(registry) => tracing::info!(listener = "mirror", registry, %address, "listening"),
            Service::Proxy => tracing::info!(listener = "proxy", %address, pid = std::process::id(), "listening"),
            other => tracing::info!(listener = other.name(), %address, "listening"),
        }
    }
    let systemd = Systemd::new();
    systemd.say(Notice::Ready);
    loop {
        let order = tokio::select! {
            order = signals.next() => order,
            why = running.config_changed() => Order::Reload(why),
        };
        let is_reload = matches!(order, Order::Reload(_));
        match order {
            Order::Reload(why) if why == HANGUP && program.is_replaced() => {
                tracing::info!("the binary was replaced: a new process takes over");
            }
            Order::Reload(why) => match reload(&mut running, why, &mut signals).await {
                Ok(()) => continue,
                Err(signal) => return Ok(end(running, signal, &mut signals, systemd).await),
            },
            Order::HandOver => {}
            Order::End(signal) => return Ok(end(running, signal, &mut signals, systemd).await),
        }
        // An order to end also ends the process that was about to take over.
        let found = tokio::select! {
            found = running.find_successor(program) => Ok(found),
            signal = signals.end() => Err(signal),
        };
        match found {
            Ok(Ok(successor)) => return Ok(hand_over(running, successor, &mut signals, systemd).await),
            Ok(Err(error)) => {
                tracing::error!("no process took over, this one continues: {error}");
                if is_reload && let Err(signal) = reload(&mut running, HANGUP, &mut signals).await {
                    return Ok(end(running, signal, &mut signals, systemd).await);
                }
            }
            Err(signal) => return Ok(end(running, signal, &mut signals, systemd).await),
        }
    }
}

/// Reads the config again, unless a signal to end comes before its files were read.
async fn reload(running: &mut app::Running, why: &str, signals: &mut Signals) -> Result<(), &'static str> {
    tokio::select! {
        () = running.reload(why) => Ok(()),
        signal = signals.end() => Err(signal),
    }
}

async fn end(running: app::Running, signal: &'static str, signals: &mut Signals, systemd: Systemd) -> ExitCode {
    let drain_timeout = running.drain_timeout();
    tracing::info!(signal, ?drain_timeout, "draining; a second signal ends at once");
    systemd.say(Notice::Stopping);
    let drained = async {
        running.drain().await;
        systemd.end().await;
    };
    unless_ended(drained, signals.end(), "drained").await
}

async fn hand_over(running: app::Running, successor: Successor, signals: &mut Signals, systemd: Systemd) -> ExitCode {
    tracing::info!(pid = successor.pid, "another process takes over; clients of this one are served here");
    systemd.say(Notice::ReplacedBy(successor.pid));
    // A service manager tells all processes of a service to stop: this one is about to.
    let stop = CancellationToken::new();
    let ended_at_once = async {
        let signal = signals.end().await;
        tracing::info!(signal, "draining already; a second signal ends at once");
        stop.cancel();
        signals.end().await
    };
    // If it ended before systemd knows the successor, the service would count as ended.
    let served = async {
        tokio::join!(running.hand_over(successor, stop.clone()), systemd.end());
    };
    unless_ended(served, ended_at_once, "handed over").await
}

/// Completes the work, unless a signal ends it at once.
async fn unless_ended(
    work: impl Future<Output = ()>,
    signal: impl Future<Output = &'static str>,
    done: &str,
) -> ExitCode {
    tokio::select! {
        () = work => {
            tracing::info!("{done}");
            ExitCode::SUCCESS
        }
        signal = signal => {
            tracing::warn!(signal, "ended at once");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// Begins to log, and returns the way to set another level, and the end of the log. `RUST_LOG` overrides the config.
fn start_logging(config: &Config) -> std::io::Result<(SetLevel, LogEnd)> {
    let from_env = EnvFilter::try_from_default_env();
    let is_fixed = from_env.is_ok();
    let filter = from_env.unwrap_or_else(|_| EnvFilter::new(config.log.level));
    let (filter, handle) = reload::Layer::new(filter);
    let tell = |lines| tracing::warn!(lines, "lines of the log are lost: standard error was not read");
    let (writer, end) = LogWriter::start(std::io::stderr(), tell)?;
    let logs = tracing_subscriber::fmt::layer().with_writer(std::sync::Arc::new(writer));
    let registry = tracing_subscriber::registry().with(filter);
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // Not `init`: with some features of the library it also logs what libraries say, which may hold words of a server.
    match config.log.format {
        LogFormat::Text if colours => set_global_default(registry.with(logs.with_target(false))),
        LogFormat::Text => set_global_default(registry.with(logs.event_format(PlainLine::Text))),
        LogFormat::Json => set_global_default(registry.with(logs.event_format(PlainLine::Json))),
    }
    .map_err(std::io::Error::other)?;
    let set_level: SetLevel = Box::new(move |level| {
        if is_fixed {
            tracing::warn!(level, "log.level has no effect while RUST_LOG is set");
        } else if let Err(error) = handle.reload(EnvFilter::new(level)) {
            tracing::error!(%error, "log.level cannot be changed");
        }
    });
    Ok((set_level, end))
}
