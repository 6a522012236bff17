//! The load of the benches: an origin that answers what it is asked for, and the cost of a process by the kernel's count.
//!
//! Blocking sockets and threads: whatever the machine spends on them is the same for every proxy between the two ends.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;
use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// The content of a small answer, in bytes.
pub const SMALL: usize = 512;

/// Starts an origin on loopback: `/small` has [`SMALL`] bytes, `/bulk/N` has N, on connections that are kept.
///
/// # Panics
/// When there is no port for it.
#[must_use]
pub fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whatever fails there is seen by the client.
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let unit = vec![0xA5; 128 * 1024];
    loop {
        let lines = head_of(&mut reader)?;
        let Some(first) = lines.first() else { return Ok(()) };
        let bytes = first.split(' ').nth(1).and_then(|path| path.rsplit_once("/bulk/")).map(|(_, bytes)| bytes.parse());
        let mut left = bytes.unwrap_or(Ok(SMALL)).unwrap_or_default();
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {left}\r\n\r\n");
        let begin = left.min(SMALL);
        stream.write_all(&[head.as_bytes(), &unit[..begin]].concat())?;
        left -= begin;
        while left > 0 {
            let piece = left.min(unit.len());
            stream.write_all(&unit[..piece])?;
            left -= piece;
        }
    }
}

/// The lines of a head; none at the end of the connection.
fn head_of(reader: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim_end().is_empty() {
            return Ok(lines);
        }
        lines.push(line.trim_end().to_owned());
    }
}

/// A client's connection, which is kept.
#[derive(Debug)]
pub struct Caller {
    stream: BufReader<TcpStream>,
    buffer: Vec<u8>,
}

impl Caller {
    /// Connects.
    ///
    /// # Errors
    /// When nobody takes the connection.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: BufReader::with_capacity(64 * 1024, stream), buffer: vec![0; 1 << 20] })
    }

    /// Sends this head, which ends with an empty line.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn send(&mut self, head: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(head.as_bytes())
    }

    /// Reads an answer to its end, and tells how many bytes its content has.
    ///
    /// # Errors
    /// When it is no 200, or ends early.
    pub fn receive(&mut self, has_content: bool) -> io::Result<usize> {
        let lines = head_of(&mut self.stream)?;
        if !lines.first().is_some_and(|status| status.contains(" 200")) {
            return Err(io::Error::other(format!("answered {:?}", lines.first())));
        }
        let mut headers = lines.iter().filter_map(|line| line.split_once(':'));
        let length = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0);
        let mut left = if has_content { length } else { 0 };
        while left > 0 {
            let most = left.min(self.buffer.len());
            match self.stream.read(&mut self.buffer[..most])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => left -= read,
            }
        }
        Ok(length)
    }
}

/// User and system time of a process and its children, in seconds, as the scheduler counts them (`clock_getcpuclockid(3)`).
#[must_use]
pub fn cpu_seconds(pid: u32) -> f64 {
    let time = |pid: u32| clock_getcpuclockid(Pid::from_raw(pid.try_into().ok()?)).ok()?.now().ok();
    family(pid).into_iter().filter_map(time).map(|time| Duration::from(time).as_secs_f64()).sum()
}

/// The memory of a process and its children, in KiB.
#[must_use]
pub fn resident_kib(pid: u32) -> f64 {
    family(pid).into_iter().filter_map(rss_kib::<f64>).sum()
}

/// The memory of one process, in KiB; `None` if it is gone.
pub(crate) fn rss_kib<T: FromStr>(pid: u32) -> Option<T> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// The fields behind the name in a process' line, state first.
fn stat(pid: u32) -> Option<Vec<String>> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(line.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for other in processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if stat(other).is_some_and(|fields| fields[1] == pid.to_string()) {
            family.push(other);
        }
    }
    family
}

/// The middle one.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
