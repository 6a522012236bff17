//! What does roadstead cost beside what one would put there instead?
//!
//! Each kind of work goes through each proxy in turn, round by round, so that a noisy machine is noisy for all. The load and the
//! origin are those of the tests. The figures are medians; only ratios within one table mean something.
//!
//! `bench/run`, or `bench/run --quick` for a look; `--write` puts the result into docs/performance.md

// No count here needs more than 52 bits.
#![allow(clippy::cast_precision_loss)]

mod proxies;
mod report;
mod splice_loop;
mod work;

use std::collections::BTreeMap;
use std::fs;
use std::io::IsTerminal;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use roadstead_test_support::load;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;

use self::proxies::{Form, Found, Setting, Way};
use self::report::{Line, Section};
use self::work::Figures;

/// More than any work needs.
const NO_CAP: usize = 1000;
/// Of the storm.
const CAP: usize = 10;

#[derive(Clone, Copy)]
struct Scale {
    rounds: usize,
    requests: usize,
    tunnels: usize,
    bytes: usize,
    pulls: usize,
    waiters: usize,
}

const FULL: Scale = Scale { rounds: 5, requests: 16_000, tunnels: 4_000, bytes: 1 << 30, pulls: 500, waiters: 5_000 };
const QUICK: Scale = Scale { rounds: 3, requests: 4_000, tunnels: 1_200, bytes: 1 << 28, pulls: 100, waiters: 1_000 };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, address, origin, ..] = arguments.as_slice()
        && first == "--splice-loop"
    {
        return splice_loop::run(address.parse().expect("an address"), origin.parse().expect("an address"));
    }
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let bench = Bench { scale: if has("--quick") { QUICK } else { FULL }, progress: Progress::new() };
    let sections = bench.all();
    bench.progress.bar.finish_and_clear();
    let table = format!("{}{}", conditions(&bench.scale), report::markdown(&sections));
    println!("{table}");
    if has("--write") {
        write(&table, &report::plot(&sections));
    }
}

/// As many as a process may have here, with a part for all else.
fn most_waiters() -> usize {
    const MOST: usize = 50_000;
    getrlimit(Resource::Nofile).current.map_or(MOST, |limit| usize::try_from(limit / 4 * 3).unwrap_or(MOST).min(MOST))
}

/// What a reader must know of the machine and the build.
fn conditions(scale: &Scale) -> String {
    let build = if cfg!(debug_assertions) {
        "roadstead is a build of the tests' profile (`PROFILE=dev`), with assertions and little optimization; a release costs less CPU. "
    } else {
        ""
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let rounds = scale.rounds;
    format!("{build}{cores} cores, loopback, {rounds} rounds; the load of the machine at the end was {load}.\n\n")
}

struct Bench {
    scale: Scale,
    progress: Progress,
}

impl Bench {
    fn all(&self) -> Vec<Section> {
        let runtime = Runtime::new().expect("a runtime");
        let mut sections = vec![self.small_requests(), self.set_ups()];
        sections.extend([1, 8].map(|tunnels| self.bulk(tunnels)));
        sections.push(self.storm(&runtime));
        sections.push(self.turns(&runtime));
        sections.push(self.waiters(&runtime, self.scale.waiters, true));
        if self.scale.waiters == FULL.waiters {
            sections.push(self.waiters(&runtime, most_waiters(), false));
        }
        sections
    }

    fn small_requests(&self) -> Section {
        let origin = load::origin();
        let setting = Setting { origin, cap: NO_CAP };
        let closes = "it closes a connection after each request".to_owned();
        let ways = || {
            let mut ways = setting.roadstead(&[Form::Absolute, Form::Origin]);
            ways.extend([setting.traffic_server(Form::Absolute), Setting::squid(Form::Absolute)]);
            ways.extend([setting.haproxy(Form::Origin, false), setting.nginx(), setting.envoy(Form::Absolute)]);
            ways.extend([Err(("tinyproxy".to_owned(), closes.clone())), Ok(Way::direct("direct", origin))]);
            ways
        };
        let units = &["CPU us each", "p50 us", "p99 us"];
        let run = |way: &Way| work::small_requests(way, origin, self.scale.requests);
        self.measure("Small requests on kept connections", units, ways, run, false)
    }

    fn set_ups(&self) -> Section {
        let origin = load::origin();
        let setting = Setting { origin, cap: NO_CAP };
        let ways = || {
            let mut ways = setting.roadstead(&[Form::Connect]);
            ways.extend([Setting::tinyproxy(), setting.traffic_server(Form::Connect), Setting::squid(Form::Connect)]);
            ways.extend([setting.envoy(Form::Connect), setting.haproxy(Form::Tcp, false), setting.splice_loop()]);
            ways.push(Ok(Way::direct("direct", origin)));
            ways
        };
        let run = |way: &Way| work::set_ups(way, origin, self.scale.tunnels);
        self.measure("Tunnels with one small request", &["CPU us each", "us each"], ways, run, false)
    }

    fn bulk(&self, tunnels: usize) -> Section {
        let origin = load::origin();
        let setting = Setting { origin, cap: NO_CAP };
        let ways = || {
            let mut ways = setting.roadstead(&[Form::Connect]);
            ways.extend([setting.haproxy(Form::Tcp, true), setting.haproxy(Form::Tcp, false)]);
            ways.extend([Setting::tinyproxy(), setting.traffic_server(Form::Connect), Setting::squid(Form::Connect)]);
            ways.extend([setting.envoy(Form::Connect), setting.splice_loop(), Ok(Way::direct("direct", origin))]);
            ways
        };
        let title =
            if tunnels == 1 { "Bulk in one tunnel".to_owned() } else { format!("Bulk in {tunnels} tunnels at once") };
        let run = |way: &Way| work::bulk(way, origin, tunnels, self.scale.bytes);
        self.measure(&title, &["CPU s/GiB", "GiB/s (more is better)"], ways, run, false)
    }

    fn storm(&self, runtime: &Runtime) -> Section {
        let names = [
            "roadstead, absolute-form",
            "roadstead, CONNECT",
            "Traffic Server",
            "HAProxy, http",
            "HAProxy, tcp",
            "Envoy",
            "Envoy, CONNECT",
            "direct",
        ];
        let registries: BTreeMap<&str, _> = names.iter().map(|name| (*name, work::registry(runtime))).collect();
        let at = |name: &str| Setting { origin: registries[name].address(), cap: CAP };
        let no_cap = |name: &str| Err((name.to_owned(), "it cannot hold a cap and let others wait".to_owned()));
        let ways = || {
            let mut ways = at(names[0]).roadstead(&[Form::Absolute]);
            ways.extend(at(names[1]).roadstead(&[Form::Connect]));
            ways.extend([at(names[2]).traffic_server(Form::Absolute), at(names[3]).haproxy(Form::Origin, false)]);
            ways.extend([
                at(names[4]).haproxy(Form::Tcp, false),
                at(names[5]).envoy(Form::Absolute),
                at(names[6]).envoy(Form::Connect),
                no_cap("Squid"),
                no_cap("nginx"),
                no_cap("tinyproxy"),
            ]);
            ways.push(Ok(Way::direct("direct", at("direct").origin)));
            ways
        };
        let title = format!("{} pulls at a registry with {CAP} connections", self.scale.pulls);
        let run = |way: &Way| work::storm(way, runtime, &registries[way.name.as_str()], self.scale.pulls, CAP);
        self.measure(&title, &["s", "CPU s", "connections"], ways, run, false)
    }

    fn turns(&self, runtime: &Runtime) -> Section {
        let names = ["roadstead, CONNECT", "HAProxy, tcp", "Envoy, CONNECT"];
        let registries: BTreeMap<&str, _> = names.iter().map(|name| (*name, work::one_by_one())).collect();
        let at = |name: &str| Setting { origin: registries[name].0, cap: 1 };
        let ways = || {
            let mut ways = at(names[0]).roadstead(&[Form::Connect]);
            ways.extend([at(names[1]).haproxy(Form::Tcp, false), at(names[2]).envoy(Form::Connect)]);
            ways
        };
        let title = format!("From a closed connection to the next one, while {} clients wait", self.scale.waiters);
        let run = |way: &Way| work::turns(way, runtime, &registries[way.name.as_str()], self.scale.waiters);
        self.measure(&title, &["us", "p99 us"], ways, run, true)
    }

    /// With or without the peers, which are set up for fewer.
    fn waiters(&self, runtime: &Runtime, clients: usize, peers: bool) -> Section {
        let registry = work::registry(runtime);
        registry.hold();
        let setting = Setting { origin: registry.address(), cap: 1 };
        let ways = || {
            let mut ways: Vec<Found> = [Form::Connect, Form::Absolute].map(|form| setting.roadstead(&[form])).concat();
            if peers {
                ways.extend([setting.haproxy(Form::Tcp, false), setting.haproxy(Form::Origin, false)]);
                ways.extend([Form::Connect, Form::Absolute].map(|form| setting.envoy(form)));
            }
            ways
        };
        let run = |way: &Way| work::waiters(way, runtime, registry.address(), clients);
        let title = format!("{clients} clients that wait for one connection");
        self.measure(&title, &["KiB each", "KiB each, 10 s after they left"], ways, run, true)
    }

    /// All ways in turn, round by round; `anew`: in new processes.
    fn measure(
        &self,
        title: &str,
        units: &'static [&'static str],
        ways: impl Fn() -> Vec<Found>,
        run: impl Fn(&Way) -> Figures,
        anew: bool,
    ) -> Section {
        let mut found = ways();
        let mut figures = vec![Ok(vec![Vec::new(); units.len()]); found.len()];
        for round in 0..self.scale.rounds {
            if anew && round > 0 {
                found.clear();
                found = ways();
            }
            for (way, figures) in found.iter().zip(&mut figures) {
                let result = way.as_ref().map_err(|(_, cause)| format!("NOT RUN: {cause}")).and_then(|way| {
                    self.progress.shows(title, &way.name, round);
                    run(way).map_err(|cause| format!("FAILED: {cause}"))
                });
                match (result, figures) {
                    (Ok(result), Ok(all)) => all.iter_mut().zip(result).for_each(|(all, one)| all.push(one)),
                    (Err(cause), figures) => *figures = Err(cause),
                    (Ok(_), Err(_)) => {}
                }
            }
        }
        let name = |found: &Found| match found {
            Ok(way) => way.name.clone(),
            Err((name, _)) => name.clone(),
        };
        let medians = figures.into_iter().map(|all| all.map(|all| all.into_iter().map(load::median).collect()));
        let lines = found.iter().zip(medians).map(|(found, medians)| Line { name: name(found), medians });
        Section { title: title.to_owned(), units, lines: lines.collect() }
    }
}

/// On standard error: a bar where somebody watches, else lines.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    fn new() -> Progress {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}").expect("a template"));
        Progress { bar }
    }

    fn shows(&self, work: &str, name: &str, round: usize) {
        let text = format!("{work}: {name}, round {}", round + 1);
        if std::io::stderr().is_terminal() {
            self.bar.set_message(text);
            self.bar.tick();
        } else {
            eprintln!("{text}");
        }
    }
}

/// Puts the table between its marks in the page, and the plot beside it.
fn write(table: &str, plot: &str) {
    const MARKS: [&str; 2] = ["<!-- bench/run writes from here -->\n", "<!-- to here -->"];
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let page = fs::read_to_string(docs.join("performance.md")).expect("docs/performance.md");
    let (before, rest) = page.split_once(MARKS[0]).expect("the first mark");
    let (_, after) = rest.split_once(MARKS[1]).expect("the second mark");
    fs::write(docs.join("performance.md"), format!("{before}{}\n{table}{}{after}", MARKS[0], MARKS[1]))
        .expect("writing");
    fs::write(docs.join("performance.svg"), plot).expect("writing");
}
