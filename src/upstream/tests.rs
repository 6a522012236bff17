//! A place that was kept, on the way to the registry: it is used up by asking, and by nothing before.

use roadstead_test_support::{deafen, undeafen};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::connect::{ConnectionTerms, DialError, Endpoint, dial, socket_of};
use super::lookup::NODE_LOOKUP;
use super::reach::Connected;
use super::resolve::Resolver;
use super::socket::{Manner, Socket};
use super::tls::{Tls, TlsTerms};
use super::*;
use crate::adapt::Adapt;
use crate::admission::{Admission, AdmissionRequest, ClassId, Gate, Lane, Limits, Principal, SlotState, SlotUse};
use crate::metrics::Metrics;
use crate::target::{Origin, Target};
use crate::tcp;

/// One slot, one class.
pub(crate) fn upstream() -> Upstream {
    let limits = Limits {
        slots: 1,
        depth: 10,
        rate: None,
        idle_timeout: Duration::from_secs(60),
        max_lifetime: Duration::from_secs(600),
        max_connecting: 1,
        keep_place: Duration::from_secs(30),
        weights: vec![1],
    };
    let metrics = Metrics::new().of_registry("test", &["default".to_owned()]);
    Upstream {
        name: "test".to_owned(),
        gate: Gate::new(limits, metrics.clone()),
        metrics,
        terms: ConnectionTerms {
            connect_timeout: Duration::from_secs(5),
            linger: Duration::from_secs(1),
            registry_drops: None,
            stall_timeout: Duration::from_secs(300),
            least_rate: None,
            send_buffer: None,
        },
        addresses: AddressPolicy::default(),
        queue: QueueTerms { depth: 10, tunnel_timeout: Vec::new(), request_timeout: Vec::new() },
        classes: Arc::new(["default".to_owned()]),
        tls: Arc::new(Tls::new(TlsTerms::default())),
        repair: Arc::default(),
        adapt: Arc::new(Adapt::new(false, 1)),
        observed: None,
        lease: None,
        slots_of_each: None,
        sized: Arc::default(),
        resolver: Arc::new(Resolver::new(std::iter::empty())),
        ended: CancellationToken::new(),
    }
}

/// A tunnel's way to `pinned`.
pub(crate) fn attempt(upstream: &Upstream, pinned: SocketAddr, patience: Duration) -> Attempt {
    let target = Target::from_connect("registry.test:5000").expect("a target");
    let destination =
        Destination { target, secure: false, pinned: Some(vec![pinned]), listed_host: true, cluster: None, node: None };
    let principal = Principal { class: ClassId::default(), client: "client".into() };
    upstream.attempt(
        destination,
        principal,
        (SlotUse::Tunnel, Lane::Blob),
        None,
        Patience { limit: patience, setting: "queue.tunnel_timeout" },
    )
}

#[tokio::test]
async fn a_kept_place_is_used_up_by_asking_and_not_by_an_address_that_is_denied() {
    let registry = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (there, denied) = (registry.local_addr().unwrap(), SocketAddr::from(([169, 254, 1, 1], 5000)));
    let (upstream, long) = (upstream(), Duration::from_secs(50));
    let mut first = attempt(&upstream, there, long);
    let held = upstream.reach(&mut first).await.unwrap();
    let mut gave_up = attempt(&upstream, there, Duration::ZERO);
    assert!(matches!(upstream.reach(&mut gave_up).await, Err(Failure::Refused(_))));

    let mut astray = attempt(&upstream, denied, long);
    assert_eq!(astray.place, gave_up.place);
    assert!(matches!(upstream.reach(&mut astray).await, Err(Failure::Denied(..))));
    drop(astray);

    let mut back = attempt(&upstream, there, long);
    assert_eq!(
        (back.place, back.progress.ticket.is_some()),
        (gave_up.place, true),
        "its place was kept, since it never asked"
    );
    drop(held);
    assert!(upstream.reach(&mut back).await.is_ok());
    drop(back);
    assert_ne!(attempt(&upstream, there, long).place, gave_up.place, "it was served");
}

/// A registry that acknowledges nothing, as one behind a broken link, may count a connection until it gives up. One that takes our
/// bytes, and never ends, has seen the reset.
#[tokio::test]
async fn the_slot_of_a_connection_whose_end_nobody_acknowledges_is_held_until_the_registry_gives_up() {
    let registry_drops = Duration::from_millis(1_500);
    for (is_leased, takes_bytes) in [(true, false), (true, true), (false, false)] {
        let registry = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut upstream = upstream();
        upstream.terms.linger = Duration::from_millis(200);
        upstream.terms.registry_drops = is_leased.then_some(registry_drops);
        let mut first = attempt(&upstream, registry.local_addr().unwrap(), Duration::from_secs(5));
        let Ok(Connected::New(established)) = upstream.reach(&mut first).await else { panic!("a connection") };
        let (mut there, _) = registry.accept().await.unwrap();
        while socket_of(&established).stream().try_write(&vec![7; 1 << 16]).is_ok() {}
        if takes_bytes {
            tokio::spawn(async move { while there.read(&mut vec![0; 1 << 16]).await.is_ok_and(|read| read > 0) {} });
        } else {
            tokio::spawn(async move {
                std::future::pending::<()>().await;
                drop(there);
            });
        }
        let ended = std::time::Instant::now();
        drop(established);
        while upstream.gate.snapshot().open.open() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(ended.elapsed() >= registry_drops, is_leased && !takes_bytes, "{is_leased} {takes_bytes}");
    }
}

/// A connection whose slots are leased, and the registry's end of it, which sends as fast as it can.
async fn downloading(upstream: &mut Upstream, registry_drops: Duration) -> (Socket, Arc<TcpStream>) {
    let registry = TcpListener::bind("127.0.0.1:0").await.unwrap();
    upstream.terms.linger = Duration::from_millis(700);
    upstream.terms.registry_drops = Some(registry_drops);
    let mut first = attempt(upstream, registry.local_addr().unwrap(), Duration::from_secs(5));
    let Ok(Connected::New(Either::Left(socket))) = upstream.reach(&mut first).await else { panic!("a connection") };
    let there = Arc::new(registry.accept().await.unwrap().0);
    // One that is deaf would stand for long after the test.
    tcp::reset_on_close(&there);
    let sends = there.clone();
    tokio::spawn(async move { while tcp::write_all(&sends, &[7; 4096]).await.is_ok() {} });
    (socket, there)
}

/// How long the slot stays taken from now on.
async fn until_free(upstream: &Upstream) -> Duration {
    let ended = std::time::Instant::now();
    while upstream.gate.snapshot().open.open() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ended.elapsed()
}

/// Nothing acknowledges a reset; the FIN before it is acknowledged, if it comes there. A lease that is over cuts under the owner.
#[tokio::test]
async fn the_slot_of_a_download_that_is_cut_is_held_unless_the_registry_hears_of_it() {
    let registry_drops = Duration::from_millis(1_500);
    // The owner leaves before it meets the cut, or reads until then.
    let cuts = [None, Some(true), Some(false)].into_iter().flat_map(|cut| [(true, cut), (false, cut)]);
    for (is_deaf, by_lease) in cuts {
        let mut upstream = upstream();
        let (mut socket, there) = downloading(&mut upstream, registry_drops).await;
        socket.read_exact(&mut [0; 4096]).await.unwrap();
        if is_deaf {
            deafen(&there);
        }
        if let Some(leaves) = by_lease {
            let activity = socket.slot().activity();
            let cutter = activity.cutter.0.get().unwrap();
            cutter.cut();
            cutter.cut();
            tokio::task::yield_now().await;
            socket.ending().set(if leaves { Manner::InOrder } else { Manner::Cut });
            let mut scratch = vec![0; 1 << 16];
            let mut is_over = async || {
                socket.read(&mut scratch).await.inspect_err(|_| scratch.clear()).map_or(true, |read| read == 0)
            };
            while !leaves && !is_over().await {}
            assert_eq!(scratch.is_empty(), !leaves, "it looks like an end in order");
        }
        drop(socket);
        let held = until_free(&upstream).await;
        assert_eq!(held >= registry_drops, is_deaf, "{is_deaf} {by_lease:?} {held:?}");
    }
}

/// The kernel says it again and again, and the registry hears of it once it can.
#[tokio::test]
async fn the_slot_of_a_connection_is_free_once_a_broken_link_is_mended() {
    let mut upstream = upstream();
    let (mut socket, there) = downloading(&mut upstream, Duration::from_secs(60)).await;
    socket.read_exact(&mut [0; 4096]).await.unwrap();
    deafen(&there);
    let linger = upstream.terms.linger;
    drop(socket);
    let free = until_free(&upstream);
    let mended = async {
        tokio::time::sleep(linger + Duration::from_millis(300)).await;
        undeafen(&there);
    };
    let (held, ()) = tokio::join!(free, mended);
    assert!((linger..Duration::from_secs(10)).contains(&held), "{held:?}");
}

/// The kernel gives up by itself, and tells it once: to whoever reads, or nobody. A reset by the registry is an end that it knows.
#[tokio::test]
async fn the_slot_of_a_connection_that_the_kernel_gave_up_is_held_until_the_registry_does() {
    let registry_drops = Duration::from_millis(1_500);
    for (is_reset, is_read) in [(false, true), (false, false), (true, true), (true, false)] {
        let mut upstream = upstream();
        let (mut socket, there) = downloading(&mut upstream, registry_drops).await;
        if is_reset {
            rustix::net::connect_unspec(&there).unwrap();
        } else {
            deafen(&there);
            rustix::net::sockopt::set_tcp_user_timeout(socket.stream(), 300).unwrap();
            socket.write_all(b"more").await.unwrap();
        }
        tcp::until(|| tcp::is_broken(socket.stream())).await;
        if is_read {
            while socket.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {}
        }
        // A tunnel may take it for an end in order.
        socket.ending().set(Manner::Confirmed);
        drop(socket);
        let held = until_free(&upstream).await;
        assert_eq!(held >= registry_drops, !is_reset, "{is_reset} {is_read} {held:?}");
    }
}

/// A lease may end while the packets of a dial are on their way: the connection is closed as it comes up, before a byte of TLS.
#[tokio::test]
async fn a_connection_that_comes_up_too_late_is_closed_unused() {
    let registry = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = registry.local_addr().unwrap();
    let upstream = upstream();
    for secure in [None, Some(Target::from_connect("registry.test:5000").unwrap().host().clone())] {
        let (principal, target) = (Principal { class: ClassId::default(), client: "client".into() }, Arc::from("test"));
        let (place, _) = upstream.gate.place(&principal.client, &target);
        let request = AdmissionRequest::new(place, upstream.gate.now() + Duration::from_secs(5), principal, target);
        let Ok(Admission::New(slot)) = upstream.gate.admit(request).await else { panic!("there is a slot") };
        let endpoint = Endpoint { address, secure, node_permit: None };
        let (terms, tools) = (upstream.terms, (&*upstream.tls, &upstream.metrics));
        let failed = |error: &DialError, _: &_, _: Option<&_>| panic!("{error}");
        let dialled = dial(slot, endpoint, SlotState::Active, terms, tools, || false, failed).await;
        assert!(dialled.unwrap().is_none());
        let mut seen = Vec::new();
        // It ends in order, or by a reset.
        let _ = registry.accept().await.unwrap().0.read_to_end(&mut seen).await;
        assert_eq!(seen, b"");
        while upstream.gate.snapshot().open.open() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A request that was under way before a reload finds that a node is out: what counts is what holds now.
#[tokio::test]
async fn the_slots_of_nodes_follow_from_the_config_that_holds() {
    let nodes = || Cluster::new(["http://a:1", "http://b:1"].map(|url| Origin::parse(url).unwrap()).to_vec());
    let destination = |cluster: &Arc<Cluster>| Destination {
        target: cluster.origins()[0].target.clone(),
        secure: false,
        pinned: None,
        listed_host: true,
        cluster: Some(cluster.clone()),
        node: None,
    };
    let (cluster, others) = (nodes(), nodes());
    let before = Upstream { slots_of_each: Some(10), ..upstream() };
    let (gate, sized) = (before.gate.clone(), before.sized.clone());
    let after = Upstream { slots_of_each: Some(2), gate, sized, ..upstream() };
    let reload = |nodes: &Arc<Cluster>| {
        *after.sized.lock() = Some(NodeSlots { of_each: 2, nodes: nodes.clone() });
        after.gate.happen(|core, now| core.resize(4, now));
    };
    reload(&cluster);
    assert!(cluster.leave_out(0, before.gate.now()));
    before.nodes_changed(&destination(&cluster));
    assert_eq!(after.gate.snapshot().slots, 2);
    reload(&others);
    before.nodes_changed(&destination(&cluster));
    assert_eq!(after.gate.snapshot().slots, 4, "these nodes are not asked any more");
}

/// Names that nobody answers for keep a request waiting once, not one after another, and the next request not at all.
#[tokio::test(start_paused = true)]
async fn silent_names_of_nodes_cost_their_patience_once() {
    let hosts = ["127.0.0.1", "one.test", "two.test", "three.test"];
    let cluster = Cluster::new(hosts.map(|host| Origin::parse(&format!("http://{host}:1")).unwrap()).to_vec());
    let upstream = upstream();
    let mut silence = Vec::new();
    for host in &hosts[1..] {
        silence.push(upstream.resolver.silence(host));
    }
    let target = cluster.origins()[0].target.clone();
    let destination = Destination {
        target,
        secure: false,
        pinned: None,
        listed_host: true,
        cluster: Some(cluster.clone()),
        node: None,
    };
    let principal = Principal { class: ClassId::default(), client: "client".into() };
    let patience = Patience { limit: Duration::from_secs(25), setting: "queue.request_timeout" };
    let attempt = upstream.attempt(destination, principal, (SlotUse::Request, Lane::Small), None, patience);
    for expected in [NODE_LOOKUP, Duration::ZERO] {
        let began = Instant::now();
        assert!(upstream.endpoints(&attempt).await.unwrap().any_left());
        let took = began.elapsed();
        assert!(took >= expected && took < expected + Duration::from_millis(10), "{took:?}, not {expected:?}");
    }
    assert_eq!(cluster.living(), 1);
}
