//! The live page, in a real Chromium.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use roadstead_test_support::http::request;
use roadstead_test_support::real::{Browser, RedisServer};
use roadstead_test_support::{
    KEEP_TUNNELS, PASSWORD, Sidecar, StubHarbor, StubRegistry, USER, Wire, config, connect_through, eventually,
    eventually_is, get_through,
};
use serde_json::{Value, json};

/// Long enough for the slowest machine; nothing waits for it unless it fails.
const SOON: Duration = Duration::from_secs(30);

const BINARY: &str = env!("CARGO_BIN_EXE_roadstead");

fn registries(stub: &StubRegistry, slots: usize) -> String {
    let host = stub.address();
    format!(
        "[registries.stub]\nhosts = [\"{host}\"]\ncap = {slots}\nshare = 1\n{KEEP_TUNNELS}\n\
         [classes.interactive]\nusers = [\"kubelet\"]\nweight = 8\n"
    )
}

async fn stage(slots: usize) -> (StubRegistry, Sidecar, Browser) {
    let stub = StubRegistry::builder().start().await;
    let (sidecar, browser) = shown(&registries(&stub, slots)).await;
    (stub, sidecar, browser)
}

/// A sidecar with these registries, and its page.
async fn shown(registries: &str) -> (Sidecar, Browser) {
    let sidecar = Sidecar::start(BINARY, &config(registries)).await;
    let browser = Browser::start();
    browser.look(1280, 1000, false);
    browser.open(&format!("http://{}/", sidecar.admin()));
    (sidecar, browser)
}

fn named(user: &str) -> String {
    format!("Proxy-Authorization: Basic {}", BASE64_STANDARD.encode(format!("{user}:x")))
}

/// A client that has asked, and was not answered yet.
async fn asking(sidecar: &Sidecar, stub: &StubRegistry, user: &str) -> Wire {
    let mut wire = Wire::open(sidecar.proxy()).await.unwrap();
    let url = format!("http://{}/v2/", stub.address());
    wire.send(request("GET", &url, &[&named(user)]).as_bytes()).await.unwrap();
    wire
}

/// The text of what this selector finds, each.
fn texts(browser: &Browser, selector: &str) -> Value {
    browser.run(&format!("return [...document.querySelectorAll({selector:?})].map((one) => one.textContent)"))
}

/// The numbers of the legend: active, dialling, idle, closing, free.
fn legend(browser: &Browser) -> Value {
    texts(browser, ".legend b")
}

/// The words under the numbers, each with its number.
fn number(browser: &Browser, title: &str) -> String {
    let script = format!(
        "const all = [...document.querySelectorAll('.numbers div')];\
         return all.find((one) => one.querySelector('span').textContent === {title:?})?.querySelector('b').textContent"
    );
    browser.run(&script).as_str().unwrap_or_default().to_owned()
}

async fn until_live(browser: &Browser, word: &str) {
    eventually_is("the page to be connected", SOON, json!([word]), async || texts(browser, "#live")).await;
}

/// The page shows events within seconds, in the strip, the numbers, the tables and the plots. The page's own policy forbids
/// nothing, and no script fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_follows_the_load() {
    let (stub, sidecar, browser) = stage(4).await;
    until_live(&browser, "live").await;
    assert_eq!(texts(&browser, "section h2"), json!(["stub"]));
    assert_eq!(legend(&browser), json!(["0", "0", "0", "0", "4"]));
    assert_eq!(texts(&browser, ".card .none:not([hidden])"), json!(vec!["Nobody."; 3]));

    stub.hold();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(asking(&sidecar, &stub, "dfdaemon").await);
    }
    sidecar.until("stub", "active", 4).await;
    for user in ["dfdaemon", "dfdaemon", "dfdaemon", "dfdaemon", "dfdaemon", "kubelet", "kubelet"] {
        clients.push(asking(&sidecar, &stub, user).await);
    }
    sidecar.until("stub", "waiting", 7).await;
    eventually_is("the strip", SOON, json!(["4", "0", "0", "0", "0"]), async || legend(&browser)).await;
    eventually_is("who waits", SOON, "7".to_owned(), async || number(&browser, "waiting")).await;
    assert_eq!(
        browser.run("return [...document.querySelectorAll('.strip i')].map((one) => one.className)"),
        json!(vec!["active"; 4])
    );
    assert_eq!(texts(&browser, ".top .pill"), json!(["no slot is free"]));
    assert_eq!(texts(&browser, "title"), json!(["7 waiting · roadstead"]));
    let rows = |table: &str| texts(&browser, &format!(".{table} tbody tr"));
    assert_eq!(rows("holders").as_array().unwrap().len(), 4, "holders");
    let waiters = rows("waiters");
    assert_eq!(waiters.as_array().unwrap().len(), 7, "waiters");
    for waiter in waiters.as_array().unwrap() {
        assert!(waiter.as_str().unwrap().contains(&stub.address().to_string()), "{waiter}");
    }
    assert_eq!(texts(&browser, ".classes tbody tr td:first-child"), json!(["default", "interactive"]));
    assert_eq!(texts(&browser, ".classes tbody tr td:nth-child(2)"), json!(["5", "2"]));
    assert_eq!(texts(&browser, ".clients tbody tr"), json!(["dfdaemon54", "kubelet20"]), "waiting and holding");
    // The wait grows while one looks.
    let oldest = number(&browser, "oldest wait");
    eventually("the oldest wait to grow", SOON, async || match number(&browser, "oldest wait") {
        later if later != oldest && later.ends_with(" s") => Ok(()),
        later => Err(later),
    })
    .await;

    stub.release();
    for client in &mut clients {
        assert_eq!(client.read_answer().await.unwrap().status(), 200);
    }
    eventually_is("nobody to wait", SOON, "0".to_owned(), async || number(&browser, "waiting")).await;
    eventually_is("nothing at work", SOON, json!("0"), async || legend(&browser)[0].take()).await;
    eventually("waits of the last minute", SOON, async || match number(&browser, "wait p99") {
        wait if wait.ends_with('s') => Ok(()),
        wait => Err(wait),
    })
    .await;
    let peaks = texts(&browser, ".plot h3 span");
    let (admitted, waiting) = (peaks[0].as_str().unwrap(), peaks[2].as_str().unwrap());
    assert!(admitted.starts_with("peak ") && waiting.starts_with("peak 7"), "{peaks}");
    assert!(browser.run("return document.querySelector('.plot .stroke').getAttribute('d').length").as_u64() > Some(20));
    assert_eq!(browser.console(), [""; 0]);
}

/// While the sidecar is away the page says so; when another one stands at its address, it goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_survives_a_restart() {
    let stub = StubRegistry::builder().start().await;
    // Free a moment ago; nobody else is given it so soon.
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let at = |admin: SocketAddr, slots| {
        let config = config(&registries(&stub, slots));
        config.replace("admin = \"127.0.0.1:0\"", &format!("admin = \"{admin}\""))
    };
    let mut sidecar = Sidecar::start(BINARY, &at(admin, 3)).await;
    let browser = Browser::start();
    browser.open(&format!("http://{admin}/"));
    until_live(&browser, "live").await;
    assert_eq!(texts(&browser, "#away:not([hidden])"), json!([]));

    sidecar.terminate();
    assert!(sidecar.wait().await.success());
    until_live(&browser, "away").await;
    let told = texts(&browser, "#away:not([hidden])");
    assert!(told[0].as_str().unwrap().contains("does not answer"), "{told}");

    let _next = Sidecar::start(BINARY, &at(admin, 5)).await;
    until_live(&browser, "live").await;
    assert_eq!(texts(&browser, "#away:not([hidden])"), json!([]));
    assert_eq!(legend(&browser), json!(["0", "0", "0", "0", "5"]), "the new one's slots");
}

/// A config file that does not hold any more is told on the page, as text, for as long as it does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_that_does_not_hold_is_told_on_the_page() {
    let (stub, sidecar, browser) = stage(2).await;
    until_live(&browser, "live").await;
    let told = async || texts(&browser, "#problem:not([hidden])");
    assert_eq!(told().await, json!([]));
    let good = std::fs::read_to_string(sidecar.config_path()).unwrap();
    std::fs::write(sidecar.config_path(), format!("{good}\n[classes.\"<b>\"]\n")).unwrap();
    let problem = eventually("the problem", SOON, async || {
        let told = told().await;
        told[0].as_str().map(str::to_owned).ok_or(told)
    })
    .await;
    assert!(problem.contains("was refused") && problem.contains("<b>"), "{problem}");
    assert_eq!(legend(&browser)[4], json!("2"), "what it said before goes on");
    std::fs::write(sidecar.config_path(), config(&registries(&stub, 5))).unwrap();
    eventually_is("no problem", SOON, json!([]), told).await;
    assert_eq!(browser.console(), [""; 0]);
}

/// Connections around the sidecar are told in red above the registry, with their owner as text, and no longer than they stand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_around_the_cap_are_told_in_red() {
    let (stub, _sidecar, browser) = stage(2).await;
    until_live(&browser, "live").await;
    let told = async || texts(&browser, "#bypass:not([hidden])");
    assert_eq!(told().await, json!([]));
    let around = [TcpStream::connect(stub.address()).unwrap(), TcpStream::connect(stub.address()).unwrap()];
    let banner = eventually("the banner", SOON, async || {
        let told = told().await;
        told[0].as_str().map(str::to_owned).ok_or(told)
    })
    .await;
    let command = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert!(banner.contains("2 connections") && banner.contains(command.trim()), "{banner}");
    assert_eq!(texts(&browser, "#bypass[role=alert]").as_array().unwrap().len(), 1, "it is read aloud");
    for dark in [false, true] {
        browser.look(1280, 1000, dark);
        // Colours fade over. Red is the most of what is red.
        let red = "const [red, green, blue] = getComputedStyle(document.getElementById('bypass')).color.match(/[0-9]+/g).map(Number);\
                   return red > green + 40 && red > blue + 40";
        eventually_is("red letters", SOON, json!(true), async || browser.run(red)).await;
    }
    drop(around);
    eventually_is("no banner", SOON, json!([]), told).await;
    assert_eq!(browser.console(), [""; 0]);
}

fn leased(stub: &StubRegistry, redis: &RedisServer) -> String {
    let (host, store) = (stub.address(), redis.url());
    format!(
        "[registries.stub]\nhosts = [\"{host}\"]\ncap = 8\nshare = \"lease\"\n\
         [lease]\nredis = \"{store}\"\nnode_id = \"n0\"\nnodes = 1\n"
    )
}

/// The line of the lease, once it is as wanted.
async fn until_lease(browser: &Browser, is_wanted: impl Fn(&str) -> bool) -> String {
    eventually("the lease", SOON, async || {
        let told = texts(browser, ".lease:not([hidden])");
        let line = told[0].as_str().unwrap_or_default().to_owned();
        if is_wanted(&line) { Ok(line) } else { Err(line) }
    })
    .await
}

/// A store that is new lends nothing for a while. Then it is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_tells_of_a_store_that_is_new_and_of_one_that_is_away() {
    let (redis, stub) = (RedisServer::start(), StubRegistry::builder().start().await);
    let (sidecar, browser) = shown(&leased(&stub, &redis)).await;
    let words = ["lease: 0 lent, 0 wished, 0 held", "; the store lends nothing new for", "; the store answers in"];
    until_lease(&browser, |line| words.iter().all(|words| line.contains(words))).await;
    drop(redis);
    until_lease(&browser, |line| line.contains("; the store has not answered the last ")).await;
    let line = until_lease(&browser, |line| line.ends_with(" requests")).await;
    assert!(!line.contains("answers in"), "{line}");
    assert_eq!(browser.console(), [""; 0]);
    drop(sidecar);
}

/// A store that never answered: what it takes to answer is not known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_never_answered_is_told_on_the_page() {
    let stub = StubRegistry::builder().start().await;
    let redis = RedisServer::start();
    let settings = leased(&stub, &redis);
    drop(redis);
    let (_sidecar, browser) = shown(&settings).await;
    let line = until_lease(&browser, |line| line.contains("has not answered")).await;
    assert!(!line.contains('–') && line.contains("no lease now; the store has not answered"), "{line}");
}

/// The store lends the spare slots, too: more than is wished for. Idle connections are held, and not wished for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_tells_what_is_lent_wished_and_held() {
    let (redis, stub) = (RedisServer::start(), StubRegistry::builder().start().await);
    let settings = leased(&stub, &redis);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    std::fs::write(&file, config(&settings)).unwrap();
    let init = std::process::Command::new(BINARY).args(["lease", "init", "--config"]).arg(&file).output().unwrap();
    assert!(init.status.success(), "{init:?}");
    let (sidecar, browser) = shown(&settings).await;
    let busy = async |requests: usize| {
        stub.hold();
        let mut clients = Vec::new();
        for _ in 0..requests {
            clients.push(asking(&sidecar, &stub, "kubelet").await);
        }
        sidecar.until("stub", "active", requests as u64).await;
        clients
    };
    for mut client in busy(5).await {
        stub.release();
        assert_eq!(client.read_answer().await.unwrap().status(), 200);
    }
    let _clients = busy(3).await;
    let lease = eventually("three numbers", SOON, async || {
        let lease = sidecar.status().await["registries"]["stub"]["lease"].clone();
        if (&lease["wished"], &lease["held"]) == (&json!(3), &json!(5)) { Ok(lease) } else { Err(lease) }
    })
    .await;
    assert!(lease["granted"].as_u64() > Some(5), "{lease}");
    let words = format!("lease: {} lent, 3 wished, 5 held, for ", lease["granted"]);
    until_lease(&browser, |line| line.starts_with(&words) && line.contains(" more; the store answers in ")).await;
    assert_eq!(browser.console(), [""; 0]);
    stub.release();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_only_observed_says_so() {
    let stub = StubRegistry::builder().start().await;
    let observed = registries(&stub, 2).replace("share = 1\n", "share = 1\nmode = \"observe\"\n");
    let (sidecar, browser) = shown(&observed).await;
    let url = format!("http://{}/v2/", stub.address());
    assert_eq!(get_through(sidecar.proxy(), &url, &[]).await.status(), 200);
    let words = "observed, nothing is held: 0 of 1 requests would have waited with 2 slots; at most 1 busy at once";
    eventually_is("the pill", SOON, json!([words]), async || texts(&browser, ".top .pill")).await;
    assert_eq!(browser.console(), [""; 0]);
}

/// Pullers at a mirror whose registry has a database of 4 connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_tells_how_many_slots_are_in_force_and_the_last_sign() {
    let harbor = StubHarbor::limited(4, Duration::from_millis(30)).await;
    let settings = format!(
        "[registries.stub]\nhosts = [\"registry.test\"]\ncap = 20\nshare = 1\n\
         [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{}\"\n",
        harbor.address()
    );
    let (sidecar, browser) = shown(&settings).await;
    let mirror = sidecar.listener("mirror").unwrap();
    let basic = format!("Authorization: Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let pullers: Vec<_> = (0..20)
        .map(|puller| (puller, basic.clone()))
        .map(|(puller, basic)| {
            tokio::spawn(async move {
                let path = "/service/token?service=harbor-registry&scope=repository:team/app:pull";
                for number in 0.. {
                    let (mut wire, name) = (Wire::open(mirror).await.unwrap(), format!("X-Pull: {puller}-{number}"));
                    let token = wire.get(path, &[&name, &basic]).await.unwrap().json()["token"].clone();
                    let bearer = format!("Authorization: Bearer {}", token.as_str().unwrap_or_default());
                    let _ = wire.get("/v2/team/app/manifests/v1", &[&name, &bearer]).await;
                }
            })
        })
        .collect();
    let pill = eventually("slots that yield", SOON, async || {
        let pill = texts(&browser, ".top .pill")[0].as_str().unwrap_or_default().to_owned();
        if pill.contains(" in force") { Ok(pill) } else { Err(pill) }
    })
    .await;
    assert!(pill.contains(" in force (last sign: database error)"), "{pill}");
    assert_eq!(browser.console(), [""; 0]);
    pullers.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Names of clients are text, whatever they hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_client_name_is_shown_as_it_is() {
    const HOLDER: &str = "<img src=x onerror=\"document.body.id='owned'\">";
    const WAITER: &str = "</td><script>document.body.id='owned'</script>";
    let (stub, sidecar, browser) = stage(1).await;
    let address = stub.address().to_string();
    let _holder = connect_through(sidecar.proxy(), &address, &[&named(HOLDER)]).await.unwrap();
    let _waiter = asking(&sidecar, &stub, WAITER).await;
    sidecar.until("stub", "waiting", 1).await;
    let cells = async || texts(&browser, ".holders td, .waiters td");
    let shown = eventually("both names", SOON, async || {
        let cells = cells().await;
        let all = cells.as_array().unwrap();
        // Behind the name stands the process of the waiter, which is this one.
        let waiter = format!("{WAITER} · ");
        let waits = |cell: &Value| cell.as_str().unwrap().starts_with(&waiter);
        if all.contains(&json!(HOLDER)) && all.iter().any(waits) { Ok(cells.clone()) } else { Err(cells) }
    })
    .await;
    let found = browser.run("return [document.querySelectorAll('img, td script').length, document.body.id]");
    assert_eq!(found, json!([0, ""]), "{shown}");
    assert_eq!(browser.console(), [""; 0]);
    // And if a script ever did make markup of text, the policy would not let it.
    let caught =
        browser.run("try { document.createElement('p').innerHTML = '<b>x</b>' } catch (error) { return error.name }");
    assert_eq!(caught, "TypeError");
}

/// A search for a repository finds the request that waits for it, also one far down the queue, and each registry has a link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_for_a_repository_finds_who_waits_for_it() {
    let (stub, sidecar, browser) = stage(1).await;
    until_live(&browser, "live").await;
    stub.hold();
    let mut clients = vec![asking(&sidecar, &stub, "dfdaemon").await];
    sidecar.until("stub", "active", 1).await;
    for number in 0..40 {
        let image =
            if number == 35 { "library/<i>wanted</i>".replace(['<', '>'], "%3c") } else { format!("other/{number}") };
        let mut wire = Wire::open(sidecar.proxy()).await.unwrap();
        let url = format!("http://{}/v2/{image}/manifests/1.25", stub.address());
        wire.send(request("GET", &url, &[&named("kubelet")]).as_bytes()).await.unwrap();
        clients.push(wire);
    }
    sidecar.until("stub", "waiting", 40).await;
    eventually_is("the rows", SOON, 25, async || texts(&browser, ".waiters tbody tr").as_array().unwrap().len()).await;
    let search = |word: &str| {
        let _ = browser.run(&format!(
            "const input = document.getElementById('search'); input.value = {word:?}; \
             input.dispatchEvent(new Event('input')); return null"
        ));
    };
    search("WANTED 1.25");
    let wanted = json!(["library/%3ci%3cwanted%3c/i%3c:1.25"]);
    assert_eq!(texts(&browser, ".waiters tbody td:nth-child(5)"), wanted);
    assert_eq!(texts(&browser, "#found"), json!(["1 waiting request found"]));
    // It stays found while the page goes on.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(texts(&browser, ".waiters tbody td:nth-child(5)"), wanted);
    search("kubelet");
    assert_eq!(texts(&browser, "#found"), json!(["40 waiting requests found"]));
    search("nothing-like-it");
    assert_eq!(texts(&browser, ".waiters tbody tr"), json!([]));
    search("");
    assert_eq!(texts(&browser, "#found"), json!([""]));
    assert_eq!(texts(&browser, ".waiters tbody tr").as_array().unwrap().len(), 25);
    assert_eq!(texts(&browser, "nav a"), json!(["stub"]));
    assert_eq!(
        browser.run("return document.querySelector(document.querySelector('nav a').hash).dataset.registry"),
        json!("stub")
    );
    assert_eq!(browser.console(), [""; 0]);
    stub.release();
}

/// Every text has the contrast that WCAG 2.1 asks for (4.5, large ones 3), in both schemes; every picture and field has a name;
/// nothing comes from another host, and nothing can be sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_can_be_read_by_everybody_and_needs_nobody_else() {
    const CONTRAST: &str = r"
        const rgb = (text) => text.match(/[\d.]+/g).map(Number);
        const light = (colour) => colour.slice(0, 3).map((part) => part / 255)
            .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
            .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
        const behind = (one) => {
            for (; one; one = one.parentElement) {
                const colour = rgb(getComputedStyle(one).backgroundColor);
                if (colour.length === 3 || colour[3] === 1) return colour;
            }
            return [255, 255, 255];
        };
        const poor = [];
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        for (let node; (node = walker.nextNode());) {
            const one = node.parentElement, style = getComputedStyle(one);
            if (!node.data.trim() || !one.getClientRects().length || ['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(one.tagName)) continue;
            const [front, back] = [light(rgb(style.color)), light(behind(one))];
            const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
            const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
            if (contrast < (large ? 3 : 4.5)) poor.push(`${node.data.trim()}: ${contrast.toFixed(2)}`);
        }
        return [...new Set(poor)]";
    const UNNAMED: &str = r"
        const named = (one) => one.getAttribute('aria-label') || one.labels?.length || one.textContent.trim();
        const fields = [...document.querySelectorAll('input, button, a, select, [role=img], nav')];
        const ids = [...document.querySelectorAll('[id]')].map((one) => one.id);
        return [document.documentElement.lang, fields.filter((one) => !named(one)).map((one) => one.outerHTML),
            ids.filter((id, at) => ids.indexOf(id) !== at), document.querySelectorAll('h1').length,
            [...document.querySelectorAll('button, form, dialog')].length]";
    const FOREIGN: &str = "return performance.getEntriesByType('resource').map((entry) => entry.name)\
        .filter((name) => !name.startsWith(location.origin))";
    let (stub, sidecar, browser) = stage(2).await;
    stub.hold();
    let mut clients = Vec::new();
    for user in ["dfdaemon", "dfdaemon", "kubelet", "kubelet"] {
        clients.push(asking(&sidecar, &stub, user).await);
    }
    sidecar.until("stub", "waiting", 2).await;
    eventually_is("the queue", SOON, "2".to_owned(), async || number(&browser, "waiting")).await;
    for dark in [false, true] {
        browser.look(1280, 1000, dark);
        // Colours fade over.
        eventually_is("texts that can be read", SOON, json!([]), async || browser.run(CONTRAST)).await;
    }
    assert_eq!(browser.run(UNNAMED), json!(["en", [], [], 1, 0]));
    assert_eq!(browser.run(FOREIGN), json!([]));
    assert_eq!(browser.console(), [""; 0]);
    stub.release();
}

/// At 1280 and at 400 pixels, light and dark, all is within the width. With `ROADSTEAD_PICTURES=FOLDER`, what is seen is
/// kept there, after `ROADSTEAD_PICTURE_SECONDS` of load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_fits_a_desk_and_a_phone() {
    let folder = std::env::var_os("ROADSTEAD_PICTURES");
    let length = std::env::var("ROADSTEAD_PICTURE_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(3);
    let length = Duration::from_secs(length);
    let stub = StubRegistry::builder().answer_delay(Duration::from_millis(400)).start().await;
    if folder.is_some() {
        // The page names the process of each waiter, and the name of this one is longer than those of pullers.
        std::fs::write("/proc/self/comm", "puller").unwrap();
    }
    // With the usual patience and pauses, as on a node: they queue, and nobody is refused.
    let harbor = registries(&stub, 20).replace(KEEP_TUNNELS, "");
    let harbor = harbor.replace("registries.stub", "registries.harbor");
    assert!(!harbor.contains("reclaim"), "{harbor}");
    let sidecar = Arc::new(Sidecar::start(BINARY, &config(&harbor)).await);
    let load = Waves::start(&sidecar, stub.address(), length);
    let browser = Browser::start();
    browser.open(&format!("http://{}/", sidecar.admin()));
    eventually("the load to have lasted, and a queue on the page", length + SOON, async || {
        let waiting: usize = number(&browser, "waiting").parse().unwrap_or(0);
        if load.since.elapsed() >= length && waiting >= 10 { Ok(()) } else { Err(waiting) }
    })
    .await;
    for (width, height) in [(1280, 1400), (400, 1700)] {
        for dark in [true, false] {
            browser.look(width, height, dark);
            let beyond = "return [...[...document.querySelectorAll('main *')]\
                 .filter((one) => one.getBoundingClientRect().right > document.documentElement.clientWidth).map((one) => one.outerHTML)]";
            let wide = browser.run(beyond);
            assert_eq!(wide, json!([]), "at {width}");
            let scheme = browser.run("return getComputedStyle(document.body).backgroundColor");
            assert_eq!(scheme, if dark { "rgb(14, 21, 27)" } else { "rgb(243, 245, 247)" });
            let picture = browser.screenshot();
            assert_eq!(&picture[1..4], b"PNG");
            if let Some(folder) = &folder {
                let name = format!("page-{width}{}.png", if dark { "-dark" } else { "" });
                std::fs::write(Path::new(folder).join(name), picture).unwrap();
            }
        }
    }
    load.ended.store(true, Ordering::Relaxed);
    assert!(load.served.load(Ordering::Relaxed) > 10);
    assert_eq!(texts(&browser, ".plot h3 span")[1], "none", "refused");
    assert_eq!(browser.console(), [""; 0]);
}

/// Clients that come in waves, under several names.
struct Waves {
    since: Instant,
    ended: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
}

impl Waves {
    fn start(sidecar: &Arc<Sidecar>, registry: SocketAddr, length: Duration) -> Waves {
        const USERS: [&str; 5] = ["dfdaemon", "dfdaemon", "containerd", "skopeo-ci", "kubelet"];
        let waves = Waves { since: Instant::now(), ended: Arc::default(), served: Arc::default() };
        for number in 0..90_u32 {
            let sidecar = sidecar.clone();
            let (since, ended, served) = (waves.since, waves.ended.clone(), waves.served.clone());
            tokio::spawn(async move {
                let credentials = named(USERS[number as usize % USERS.len()]);
                while !ended.load(Ordering::Relaxed) {
                    // Three waves until the pictures are taken, on the crest of the last.
                    let phase = (since.elapsed().as_secs_f64() / length.as_secs_f64()).min(1.0) * 2.25;
                    let crowd = 42.0 + 42.0 * (phase * std::f64::consts::TAU).sin();
                    if f64::from(number) < crowd {
                        let is_served = pull(&sidecar, registry, &credentials, number).await;
                        served.fetch_add(usize::from(is_served), Ordering::Relaxed);
                    } else {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            });
        }
        waves
    }
}

/// Digits that look like those of a digest.
fn digest(number: u32) -> String {
    format!("{:016x}", u64::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(4)
}

/// One request, in a tunnel that is kept for a moment, or seen by the sidecar with what it wants; whether it was served.
async fn pull(sidecar: &Sidecar, registry: SocketAddr, credentials: &str, number: u32) -> bool {
    const IMAGES: [&str; 5] = ["library/nginx", "platform/payments-api", "library/redis", "ml/trainer", "platform/web"];
    if number.is_multiple_of(3) {
        let tunnel = connect_through(sidecar.proxy(), &registry.to_string(), &[credentials]).await;
        let Ok(mut tunnel) = tunnel else { return false };
        let is_served = tunnel.get("/v2/", &[]).await.is_ok_and(|answer| answer.status() == 200);
        tokio::time::sleep(Duration::from_millis(150)).await;
        return is_served;
    }
    let Ok(mut wire) = Wire::open(sidecar.proxy()).await else { return false };
    let image = IMAGES[number as usize / IMAGES.len() % IMAGES.len()];
    // One kind for each client: small requests would pass the blobs of the same one, which then wait for too long.
    let is_kubelet = number % 5 == 4;
    let wants = if is_kubelet { "manifests/1.27".to_owned() } else { format!("blobs/sha256:{}", digest(number)) };
    let url = format!("http://{registry}/v2/{image}/{wants}");
    wire.get(&url, &[credentials]).await.is_ok_and(|answer| answer.status() == 200)
}
