//! One direction of a tunnel: bytes from one socket to the other, up to and with the FIN.
//!
//! It holds a buffer only while bytes are moving, so a tunnel that lies idle costs its two sockets and no more. It waits for
//! nothing: its owner calls it when a socket is ready.

use std::io::{self, ErrorKind};

use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use crate::tcp;

/// Bytes read at once. Large enough that system calls do not dominate a blob, small enough for many tunnels at once.
const BUFFER: usize = 64 * 1024;

/// Reads in a row before the other direction has its turn.
const READS_AT_ONCE: usize = 16;

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    buffer: Vec<u8>,
    /// Bytes of the buffer that the kernel has taken.
    written: usize,
    /// Bytes that the sink has taken since they were asked for last.
    taken: u64,
    ended: bool,
}

/// The socket that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Source,
    Sink,
}

impl Flow {
    /// A direction that begins with these bytes.
    pub fn starting_with(early: &[u8]) -> Flow {
        Flow { buffer: early.to_vec(), ..Flow::default() }
    }

    /// Whether it waits for the sink to take bytes.
    pub fn holds_bytes(&self) -> bool {
        self.written < self.buffer.len()
    }

    /// Bytes that the sink has taken since the last call.
    pub fn take_taken(&mut self) -> u64 {
        std::mem::take(&mut self.taken)
    }

    /// Whether it waits for bytes of the source.
    pub fn reads(&self) -> bool {
        !self.ended && !self.holds_bytes()
    }

    /// Whether the source has ended, and the sink has been told.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Ends the direction: its sink takes nothing any more.
    pub fn abandon(&mut self) {
        *self = Flow { ended: true, taken: self.taken, ..Flow::default() };
    }

    /// Moves bytes until a socket has to be waited for, or for a while. `passing` is shown all bytes before they are written.
    pub fn advance(
        &mut self,
        source: &TcpStream,
        sink: &TcpStream,
        mut passing: impl FnMut(&[u8]),
    ) -> Result<(), Broken> {
        for _ in 0..READS_AT_ONCE {
            if !self.write(sink).map_err(|_| Broken::Sink)? || self.ended {
                return Ok(());
            }
            self.buffer.clear();
            self.written = 0;
            self.buffer.reserve_exact(BUFFER);
            match source.try_read_buf(&mut self.buffer) {
                Ok(0) => {
                    self.abandon();
                    return tcp::finish(sink).map_err(|_| Broken::Sink);
                }
                Ok(_) => passing(&self.buffer),
                Err(error) => {
                    self.buffer = Vec::new();
                    return if error.kind() == ErrorKind::WouldBlock { Ok(()) } else { Err(Broken::Source) };
                }
            }
        }
        self.write(sink).map(|_| ()).map_err(|_| Broken::Sink)
    }

    /// Writes what it holds. False when the sink takes no more for now.
    fn write(&mut self, sink: &TcpStream) -> io::Result<bool> {
        while self.holds_bytes() {
            match sink.try_write(&self.buffer[self.written..]) {
                Ok(written) => {
                    self.written += written;
                    self.taken += written as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// The readiness to wait for at a socket: that it has bytes to read, or takes some.
pub(super) fn interest(from_it: &Flow, to_it: &Flow) -> Option<Interest> {
    match (from_it.reads(), to_it.holds_bytes()) {
        (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
        (true, false) => Some(Interest::READABLE),
        (false, true) => Some(Interest::WRITABLE),
        (false, false) => None,
    }
}

/// Completes when the socket is ready for one of these; never without any.
pub(super) async fn ready(stream: &TcpStream, interest: Option<Interest>) -> Ready {
    if let Some(interest) = interest
        && let Ok(ready) = stream.ready(interest).await
    {
        return ready;
    }
    std::future::pending().await
}
