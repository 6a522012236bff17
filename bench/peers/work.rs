//! The kinds of work: what a client does through a way, and what that cost.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use roadstead_test_support::load::{Caller, cpu_seconds, resident_kib};
use roadstead_test_support::{Destination, Storm, StubRegistry, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::proxies::{Form, Way};

pub type Figures = Result<Vec<f64>, String>;

const GIB: f64 = 1_073_741_824.0;
/// The blob of a storm, and what the registry takes for each answer.
const BLOB: usize = 1 << 20;
const ANSWER_DELAY: Duration = Duration::from_millis(20);

/// Requests for something small on 8 connections that are kept: microseconds of CPU each; half of them took so long, and 99 of 100.
pub fn small_requests(way: &Way, origin: SocketAddr, requests: usize) -> Figures {
    const CALLERS: usize = 8;
    let head = head(way, origin, "/small");
    let cost = Cost::begin(way);
    let times = together(CALLERS, || {
        let mut caller = open(way, origin)?;
        (0..requests / CALLERS)
            .map(|_| {
                let began = Instant::now();
                caller.send(&head)?;
                caller.receive(true)?;
                Ok(began.elapsed())
            })
            .collect::<io::Result<Vec<_>>>()
    })?;
    let mut times: Vec<Duration> = times.into_iter().flatten().collect();
    times.sort_unstable();
    Ok(vec![cost.seconds() * 1e6 / times.len() as f64, at(&times, 50), at(&times, 99)])
}

/// Microseconds that so many of a hundred sorted times do not exceed.
fn at(times: &[Duration], percent: usize) -> f64 {
    times[times.len() * percent / 100].as_secs_f64() * 1e6
}

/// Tunnels that carry one small request each: microseconds of CPU each, and of time where four are set up at once.
pub fn set_ups(way: &Way, origin: SocketAddr, tunnels: usize) -> Figures {
    const CALLERS: usize = 4;
    let head = head(way, origin, "/small");
    let (cost, began) = (Cost::begin(way), Instant::now());
    together(CALLERS, || {
        for _ in 0..tunnels / CALLERS {
            let mut caller = open(way, origin)?;
            caller.send(&head)?;
            caller.receive(true)?;
        }
        Ok(())
    })?;
    Ok(vec![cost.seconds() * 1e6 / tunnels as f64, began.elapsed().as_secs_f64() * 1e6 / tunnels as f64])
}

/// So many bytes in all in so many tunnels at once: seconds of CPU for each GiB, and GiB a second.
pub fn bulk(way: &Way, origin: SocketAddr, tunnels: usize, bytes: usize) -> Figures {
    let head = head(way, origin, &format!("/bulk/{}", bytes / tunnels));
    let (cost, began) = (Cost::begin(way), Instant::now());
    together(tunnels, || {
        let mut caller = open(way, origin)?;
        caller.send(&head)?;
        caller.receive(true)
    })?;
    let gib = bytes as f64 / GIB;
    Ok(vec![cost.seconds() / gib, gib / began.elapsed().as_secs_f64()])
}

/// A registry as a storm meets it.
pub fn registry(runtime: &Runtime) -> StubRegistry {
    runtime.block_on(StubRegistry::builder().answer_delay(ANSWER_DELAY).blob_size(BLOB).start())
}

/// A manifest and a blob for each of so many clients: seconds, those of CPU, and the most connections that the registry saw.
pub fn storm(way: &Way, runtime: &Runtime, registry: &StubRegistry, clients: usize, cap: usize) -> Figures {
    let destination = match way.form {
        Form::Direct => Destination::Direct,
        Form::Absolute => Destination::AbsoluteForm(way.address),
        Form::Connect => Destination::Connect(way.address),
        Form::Origin | Form::Tcp => Destination::Mirror(way.address),
    };
    let (cost, began) = (Cost::begin(way), Instant::now());
    // Direct clients come ten at a time: nothing holds them back otherwise.
    let (turns, at_once) = if way.form == Form::Direct { (clients / cap, cap) } else { (1, clients) };
    for _ in 0..turns {
        let storm = Storm { clients: at_once, blob: BLOB, ..Storm::new(destination) };
        let tally = runtime.block_on(storm.run(registry.address()));
        if let Some(failure) = tally.failed.first() {
            return Err(format!("{} of {at_once} pulls failed: {failure}", tally.failed.len()));
        }
    }
    Ok(vec![began.elapsed().as_secs_f64(), cost.seconds(), registry.peak() as f64])
}

/// So many clients that wait while the only connection is taken: KiB of memory for each, and what is left of it a while after
/// they went.
pub fn waiters(way: &Way, runtime: &Runtime, origin: SocketAddr, clients: usize) -> Figures {
    const SETTLE: Duration = Duration::from_millis(1500);
    const GIVEN_BACK: Duration = Duration::from_secs(10);
    let pid = way.pid().ok_or("there is no process")?;
    let ask = match way.form {
        Form::Connect => format!("CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n\r\n"),
        _ => head(way, origin, "/v2/app/manifests/latest"),
    };
    runtime.block_on(async {
        let open = async |number: usize| {
            let mut wire = Wire::new(connect(way.address, number).await.map_err(|error| error.to_string())?);
            wire.send(ask.as_bytes()).await.map_err(|error| error.to_string())?;
            Ok::<_, String>(wire)
        };
        let holder = open(0).await?;
        tokio::time::sleep(SETTLE).await;
        let before = resident_kib(pid);
        let mut waiting = Vec::new();
        for number in 0..clients {
            waiting.push(open(number).await?);
        }
        tokio::time::sleep(SETTLE).await;
        let with = resident_kib(pid);
        drop((waiting, holder));
        tokio::time::sleep(GIVEN_BACK).await;
        let each = |kib: f64| (kib - before).max(0.0) / clients as f64;
        Ok(vec![each(with), each(resident_kib(pid))])
    })
}

/// A registry with one connection at a time: it sends a byte, and closes when the other side has. What it takes until the next
/// connection is there.
pub fn one_by_one() -> (SocketAddr, Receiver<Duration>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let (sender, gaps) = mpsc::channel();
    std::thread::spawn(move || {
        let mut closed = Instant::now();
        for mut stream in listener.incoming().flatten() {
            let is_over = sender.send(closed.elapsed()).is_err();
            let _ = stream.write_all(b"x").and_then(|()| stream.read_to_end(&mut Vec::new()));
            if is_over {
                return;
            }
            closed = Instant::now();
        }
    });
    (address, gaps)
}

/// So many clients wait while one holds the only connection, and all leave when they have its byte: microseconds between the
/// registry's close and its next connection, for half of them, and for 99 of 100.
pub fn turns(
    way: &Way,
    runtime: &Runtime,
    (origin, gaps): &(SocketAddr, Receiver<Duration>),
    clients: usize,
) -> Figures {
    const SETTLE: Duration = Duration::from_secs(1);
    let ask = match way.form {
        Form::Connect => format!("CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n\r\n"),
        _ => String::new(),
    };
    runtime.block_on(async {
        let open = async |number: usize| {
            let mut stream = connect(way.address, number).await?;
            stream.write_all(ask.as_bytes()).await?;
            io::Result::Ok(stream)
        };
        let mut waiting = JoinSet::new();
        let holder = open(0).await.map_err(|error| error.to_string())?;
        tokio::time::sleep(SETTLE).await;
        for number in 0..clients {
            let stream = open(number).await.map_err(|error| error.to_string())?;
            waiting.spawn(until_its_byte(stream));
        }
        tokio::time::sleep(SETTLE).await;
        // Those of the probes that found the proxy ready, and of the holder.
        gaps.try_iter().for_each(drop);
        drop(holder);
        while let Some(ended) = waiting.join_next().await {
            ended.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(())
    })?;
    let mut gaps: Vec<Duration> = gaps.try_iter().collect();
    gaps.sort_unstable();
    if gaps.len() == clients {
        Ok(vec![at(&gaps, 50), at(&gaps, 99)])
    } else {
        Err(format!("{} connections for {clients} clients", gaps.len()))
    }
}

/// Reads an answer to CONNECT, if there is one, and the registry's byte.
async fn until_its_byte(mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = [0; 256];
    loop {
        let length = stream.read(&mut bytes).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes[..length].contains(&b'x') {
            return Ok(());
        }
    }
}

/// The clients have several addresses, and those of the load have another: one has too few ports for all, as ports of
/// connections that ended stay taken for a minute.
async fn connect(to: SocketAddr, number: usize) -> io::Result<TcpStream> {
    const EACH: usize = 1000;
    let socket = TcpSocket::new_v4()?;
    let last = u8::try_from(2 + number / EACH).map_err(io::Error::other)?;
    socket.bind(SocketAddr::from(([127, 0, 1, last], 0)))?;
    socket.connect(to).await
}

/// CPU time from a moment on.
struct Cost<'a>(&'a Way, f64);

impl Cost<'_> {
    fn begin(way: &Way) -> Cost<'_> {
        Cost(way, way.pid().map_or(0.0, cpu_seconds))
    }

    fn seconds(&self) -> f64 {
        self.0.pid().map_or(0.0, cpu_seconds) - self.1
    }
}

/// Opens a connection on which the origin can be asked.
fn open(way: &Way, origin: SocketAddr) -> io::Result<Caller> {
    let mut caller = Caller::open(way.address)?;
    if way.form == Form::Connect {
        caller.send(&format!("CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n\r\n"))?;
        caller.receive(false)?;
    }
    Ok(caller)
}

fn head(way: &Way, origin: SocketAddr, path: &str) -> String {
    let target = if way.form == Form::Absolute { format!("http://{origin}{path}") } else { path.to_owned() };
    format!(
        "GET {target} HTTP/1.1\r\nHost: {origin}\r\nUser-Agent: containerd/1.7\r\nAccept: */*\r\n\
         Authorization: Bearer 0123456789abcdef\r\n\r\n"
    )
}

/// Does the same in so many threads at once.
fn together<T: Send>(threads: usize, act: impl Fn() -> io::Result<T> + Sync) -> Result<Vec<T>, String> {
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(&act)).collect();
        all.into_iter()
            .map(|thread| thread.join().map_err(|_| "a client panicked".to_owned())?.map_err(|error| error.to_string()))
            .collect()
    })
}
