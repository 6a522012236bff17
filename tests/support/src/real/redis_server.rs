//! Redis: Debian's `redis-server`, without a file of its own unless asked.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::program::{NotUp, Program, find_program, free_address, on_free_port};

/// A running server, empty at first. Dropping it ends the process.
pub struct RedisServer {
    address: SocketAddr,
    arguments: Vec<String>,
    program: Program,
    folder: TempDir,
}

impl RedisServer {
    /// Starts a server on a free port of 127.0.0.1, whose data end with it.
    ///
    /// # Panics
    /// When it does not come up; the message holds its log.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&["--appendonly", "no"])
    }

    /// The same with `appendonly yes`.
    ///
    /// # Panics
    /// When it does not come up; the message holds its log.
    #[must_use]
    pub fn start_kept() -> Self {
        Self::start_with(&["--appendonly", "yes"])
    }

    /// The same with settings of its own, as arguments.
    ///
    /// # Panics
    /// When it does not come up; the message holds its log.
    #[must_use]
    pub fn start_with(arguments: &[&str]) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let (address, program) = on_free_port("redis-server", || {
            let address = free_address();
            Ok((address, run(address, &arguments, &folder)?))
        });
        Self { address, arguments, program, folder }
    }

    /// Starts a server that follows this one.
    ///
    /// # Panics
    /// When it does not come up; the message holds its log.
    #[must_use]
    pub fn replica(&self) -> Self {
        Self::start_with(&["--replicaof", "127.0.0.1", &self.address.port().to_string()])
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    /// Sends it a signal: STOP freezes it, CONT lets it go on, KILL ends it.
    pub fn signal(&mut self, signal: Signal) {
        self.program.signal(signal);
    }

    /// Removes all records.
    ///
    /// # Panics
    /// When the server does not do it.
    pub fn flush(&self) {
        assert_eq!(self.order("FLUSHALL"), "+OK\r\n");
    }

    /// The answer to one order, as the server writes it.
    ///
    /// # Panics
    /// When the server does not answer.
    #[must_use]
    pub fn order(&self, words: &str) -> String {
        let mut server = TcpStream::connect(self.address).expect("the server listens");
        server.write_all(format!("{words}\r\nQUIT\r\n").as_bytes()).expect("an order to the server");
        let mut answer = String::new();
        server.read_to_string(&mut answer).expect("an answer of the server");
        answer.strip_suffix("+OK\r\n").expect("the answer to QUIT").to_owned()
    }

    /// Ends it by `kill -9`, and starts another one at the same address: with the data where they are kept, else empty.
    ///
    /// # Panics
    /// When it does not come up; the message holds its log.
    pub fn restart(&mut self) {
        self.program.signal(Signal::KILL);
        self.program.await_end();
        self.program = run(self.address, &self.arguments, &self.folder)
            .unwrap_or_else(|error| panic!("redis-server does not come up again: {error}"));
    }
}

/// `redis-server`, `redis-sentinel` and `redis-check-rdb` are one program, which looks at its name. Debian's package of the server would
/// start a service; that of the tools has the program.
fn run(address: SocketAddr, arguments: &[String], folder: &TempDir) -> Result<Program, NotUp> {
    let mut command = Command::new(find_program("redis-check-rdb"));
    command.arg0("redis-server").current_dir(folder.path());
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""]).args(arguments);
    let mut program = Program::start(&mut command, folder.path().join("log"));
    program.await_listening(address)?;
    Ok(program)
}

/// The file that a Sentinel reads and writes.
const SENTINEL_CONFIG: &str = "sentinel.conf";

/// A Sentinel that watches one server by the name `main`, and lets a replica of it follow within seconds.
pub struct RedisSentinel {
    address: SocketAddr,
    _program: Program,
    folder: TempDir,
}

impl RedisSentinel {
    /// Starts it on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// When it does not come up; the message holds its log.
    #[must_use]
    pub fn start(server: &RedisServer) -> Self {
        on_free_port("redis-sentinel", || Self::try_start(server))
    }

    fn try_start(server: &RedisServer) -> Result<Self, NotUp> {
        let folder = TempDir::new().expect("a temporary folder");
        let address = free_address();
        let file = folder.path().join(SENTINEL_CONFIG);
        let (own, port) = (address.port(), server.address.port());
        let settings = format!(
            "bind 127.0.0.1\nport {own}\nsentinel monitor main 127.0.0.1 {port} 1\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
        );
        std::fs::write(&file, settings).expect("writing its config");
        let mut command = Command::new(find_program("redis-check-rdb"));
        command.arg0("redis-sentinel").arg(&file).current_dir(folder.path());
        let mut program = Program::start(&mut command, folder.path().join("log"));
        program.await_listening(address)?;
        Ok(Self { address, _program: program, folder })
    }

    /// The config as it is now: the Sentinel writes into it what it finds.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn knows(&self) -> String {
        std::fs::read_to_string(self.folder.path().join(SENTINEL_CONFIG)).expect("its config")
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/main/0", self.address)
    }
}
