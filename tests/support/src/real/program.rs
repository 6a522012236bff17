//! Finding a real program, and one running server: started, watched until it listens, ended on Drop.

use std::env;
use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take until it listens: generous, the machine may be busy with a build.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How many ports are tried.
const ATTEMPTS: usize = 5;
/// The pause between two looks at a server that is starting.
const PAUSE: Duration = Duration::from_millis(10);
/// Where Debian keeps servers, which is not on every user's PATH.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];
/// Where `tests/run` puts what is not installed: servers from Debian, Python tools.
const UNPACKED_FOLDERS: [&str; 3] = ["usr/bin", "usr/sbin", "python/bin"];

/// The path of a real program: on `PATH`, among the system's servers, or unpacked by `tests/run`.
///
/// # Panics
/// When it is nowhere: a test never goes on without its real part.
#[must_use]
pub fn find_program(name: &str) -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_FOLDERS.map(PathBuf::from))
        .chain(UNPACKED_FOLDERS.map(|folder| unpacked.join(folder)))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("the program {name} is missing: tests/run fetches it"))
}

/// Runs a program to its end, and hands out what it printed.
///
/// # Panics
/// When it cannot be started or fails; the message holds its standard error.
pub(super) fn run(command: &mut Command) -> String {
    let output =
        command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{printed}{complaint}", output.status);
    printed
}

/// Why a server that was started is not there.
pub(super) enum NotUp {
    /// It ended by itself, for instance because its port was taken meanwhile; with its log.
    Ended(ExitStatus, String),
    /// It runs, but did not do what was awaited in time; with its log.
    TooSlow(String),
}

impl Display for NotUp {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(status, log) => write!(out, "it ended ({status}), and said:\n{log}"),
            Self::TooSlow(log) => write!(out, "not in {START_TIMEOUT:?}; it says:\n{log}"),
        }
    }
}

/// A server process. Dropping it kills and reaps exactly this process.
pub(super) struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `command` with both outputs at the end of the file `log`.
    pub(super) fn start(command: &mut Command, log: PathBuf) -> Self {
        let file = File::options().create(true).append(true).open(&log).expect("the log lies in a temporary folder");
        let same_file = file.try_clone().expect("a file handle can be doubled");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(same_file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        Self { child, log }
    }

    /// The output of the program so far.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks `probe` until it answers, the program ends, or the time for starting is over.
    pub(super) fn await_start<T>(&mut self, mut probe: impl FnMut(&Self) -> Option<T>) -> Result<T, NotUp> {
        let started = Instant::now();
        loop {
            if let Some(found) = probe(self) {
                return Ok(found);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(NotUp::Ended(status, self.log()));
            }
            if started.elapsed() >= START_TIMEOUT {
                return Err(NotUp::TooSlow(self.log()));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The processes that it has started and that still live.
    pub(super) fn children(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.id());
        let list = fs::read_to_string(path).unwrap_or_default();
        list.split_whitespace().filter_map(|id| id.parse().ok()).collect()
    }

    /// Sends it a signal; nothing happens where it has ended.
    pub(super) fn signal(&mut self, signal: Signal) {
        if let Ok(None) = self.child.try_wait() {
            signal_process(self.id(), signal);
        }
    }

    /// Waits until it has ended.
    pub(super) fn await_end(&mut self) {
        let started = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            assert!(started.elapsed() < START_TIMEOUT, "it does not end:\n{}", self.log());
            thread::sleep(PAUSE);
        }
    }

    /// Waits until somebody listens on `address`.
    pub(super) fn await_listening(&mut self, address: SocketAddr) -> Result<(), NotUp> {
        self.await_start(|_| TcpStream::connect(address).ok().map(drop))
    }
}

/// Sends a signal to a process, if it is still there.
pub(super) fn signal_process(id: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // It may have ended meanwhile, and then nothing is to be done.
        let _ = kill_process(pid, signal);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Either fails only when the process has ended already, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server that looks for a free port, or is given one: again while somebody else took it meanwhile.
///
/// # Panics
/// When it does not come up, or finds no port in five attempts.
pub(super) fn on_free_port<T>(name: &str, start: impl FnMut() -> Result<T, NotUp>) -> T {
    std::iter::repeat_with(start)
        .take(ATTEMPTS)
        .find_map(|started| unless_port_is_taken(name, started))
        .unwrap_or_else(|| panic!("{name} found no free port in {ATTEMPTS} attempts"))
}

/// The server that was started; nothing where its port was taken.
///
/// # Panics
/// When it does not come up for another reason.
pub(super) fn unless_port_is_taken<T>(name: &str, started: Result<T, NotUp>) -> Option<T> {
    match started {
        Ok(server) => Some(server),
        Err(NotUp::Ended(_, log)) if log.contains("Address already in use") => None,
        Err(reason) => panic!("{name} is not up: {reason}"),
    }
}

/// A loopback address that nobody listens on at this moment.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr()).expect("a free loopback port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_whose_port_is_taken_is_started_again() {
        let taken = || NotUp::Ended(ExitStatus::default(), "bind() failed: Address already in use (98)".to_owned());
        let mut starts = [Err(taken()), Err(taken()), Ok("up")].into_iter();
        assert_eq!(on_free_port("a server", || starts.next().expect("no further start")), "up");
        assert!(starts.next().is_none());
    }
}
