//! Names that never resolve, beside one that does; names whose addresses change with each answer.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use roadstead_test_support::real::LoopbackName;
use roadstead_test_support::{
    Sidecar, StubRegistry, Wire, config, connect_through, eventually, eventually_is, get_through,
};

/// More than there are threads for look-ups, by far.
const DEAD_NAMES: usize = 1500;
/// Names that are looked up at once, which the resolver of the system may ask for by two questions each.
const BUSY_THREADS: usize = 32;

/// The dead names are covered by a suffix of `hosts`, or by no registry at all. The known name is answered in its own time, at
/// the first request, too.
#[tokio::test]
async fn a_known_name_never_waits_for_names_that_never_resolve() {
    for suffix in ["roadstead.test", "other.test"] {
        let name = LoopbackName::new().with_silent_name_server();
        let stub = StubRegistry::builder().start().await;
        let registry = format!(
            "[registries.stub]\nhosts = [\"{}\", \"*.roadstead.test\"]\ncap = 4\nshare = 1\n[other_hosts]\npolicy = \"direct\"\n",
            name.name()
        );
        let sidecar = Sidecar::start(&name.program(env!("CARGO_BIN_EXE_roadstead")), &config(&registry)).await;
        let mut dead = Vec::new();
        for number in 0..DEAD_NAMES {
            let mut wire = Wire::open(sidecar.proxy()).await.unwrap();
            let head = format!("CONNECT n{number}.{suffix}:443 HTTP/1.1\r\nHost: n{number}.{suffix}:443\r\n\r\n");
            wire.send(head.as_bytes()).await.unwrap();
            dead.push(wire);
        }
        let mut unanswered = 0;
        eventually("look-ups that get no answer", Duration::from_secs(20), async || {
            unanswered += name.unanswered();
            if unanswered >= BUSY_THREADS { Ok(()) } else { Err(unanswered) }
        })
        .await;
        for _ in 0..3 {
            let began = Instant::now();
            let url = format!("http://{}:{}/v2/", name.name(), stub.address().port());
            assert_eq!(get_through(sidecar.proxy(), &url, &[]).await.status(), 200);
            assert!(began.elapsed() < Duration::from_secs(2), "{suffix}: {:?}", began.elapsed());
        }
        let ends = async || {
            let lines = sidecar.finished();
            lines.iter().take(3).filter(|line| line["outcome"] == "served").count()
        };
        eventually_is("three ends, none of a name that never resolves", Duration::from_secs(5), 3, ends).await;
    }
}

/// A registry of two machines whose name gives them in turn, with a third one that is down, and whose other names give one each:
/// the cap holds over all addresses, by name and by address, and each request finds a machine that is up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cap_holds_over_all_addresses_of_names_that_rotate() {
    const MACHINES: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 53, 1, 1), Ipv4Addr::new(127, 53, 1, 2)];
    const DOWN: Ipv4Addr = Ipv4Addr::new(127, 53, 1, 3);
    let [both, one, other] = ["both", "one", "other"].map(|name| format!("{name}.rotating.test"));
    let name = LoopbackName::new().with_rotating_names(&[
        (&both, &[MACHINES[0], DOWN, MACHINES[1]]),
        (&one, &MACHINES[..1]),
        (&other, &MACHINES[1..]),
    ]);
    // Neither keeps a connection, which would hold a slot.
    let machine = StubRegistry::builder().close_each(true);
    let first = machine.clone().start_at((MACHINES[0], 0).into()).await;
    let port = first.address().port();
    let second = machine.start_at((MACHINES[1], port).into()).await;
    let registry = format!(
        "[registries.stub]\nhosts = [\"{both}\", \"{one}\", \"{other}\"]\ncap = 2\nshare = 1\n\
         [registries.stub.queue]\ndepth = 0\n[other_hosts]\npolicy = \"direct\"\n"
    );
    let sidecar = Sidecar::start(&name.program(env!("CARGO_BIN_EXE_roadstead")), &config(&registry)).await;
    let get = async |authority: &str| {
        let url = format!("http://{authority}/v2/");
        get_through(sidecar.proxy(), &url, &[]).await.status()
    };
    let at = |name: &str| format!("{name}:{port}");
    let tunnel = async |authority: String| connect_through(sidecar.proxy(), &authority, &[]).await;
    for _ in 0..20 {
        drop(tunnel(at(&both)).await.expect("a tunnel to a machine that is up"));
        sidecar.until("stub", "open", 0).await;
        assert_eq!(get(&at(&both)).await, 200);
        sidecar.until("stub", "open", 0).await;
    }
    let holders = [tunnel(at(&one)).await, tunnel(at(&other)).await];
    assert!(holders.iter().all(Result::is_ok), "each machine has a tunnel");
    let addresses = MACHINES.map(|machine| SocketAddr::new(machine.into(), port).to_string());
    let mapped = MACHINES.map(|machine| format!("[::ffff:{machine}]:{port}"));
    for authority in [at(&both), at(&one), at(&other)].into_iter().chain(addresses).chain(mapped) {
        assert_eq!(get(&authority).await, 503, "{authority}");
        assert_eq!(tunnel(authority.clone()).await.expect_err("a refusal").status(), 503, "{authority}");
        assert_eq!((first.open(), second.open()), (1, 1), "{authority}");
    }
    drop(holders);
    sidecar.until("stub", "open", 0).await;
    assert_eq!(get(&SocketAddr::new(MACHINES[0].into(), port).to_string()).await, 200);
    assert!(first.peak() <= 2 && second.peak() <= 2);
}
