//! One direction of a tunnel: bytes from one socket to the other, up to and with the FIN.
//!
//! It holds a buffer only while bytes are moving, so a tunnel that lies idle costs its two sockets and no more. Bulk passes
//! within the kernel, while pipes are left. It waits for nothing: its owner calls it when a socket is ready.

use std::io::{self, ErrorKind};

use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use crate::splice::{Pipe, Sight};
use crate::tcp;

/// Bytes read at once. Large enough that system calls do not dominate a blob, small enough for many tunnels at once.
const BUFFER: usize = 64 * 1024;

/// Bytes in a row, without one of the other side's, from which on they are bulk.
const BULK: u64 = 256 * 1024;

/// Reads in a row before the other direction has its turn.
const READS_AT_ONCE: usize = 16;

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    buffer: Vec<u8>,
    /// Bytes of the buffer that the kernel has taken.
    written: usize,
    /// Holds bytes after those of the buffer.
    pipe: Option<Pipe>,
    /// Bytes that it took since the other side's last.
    in_a_row: u64,
    /// Bytes that the sink has taken since they were asked for last.
    taken: u64,
    ended: bool,
    /// The source was reset, which a write met: what looks like its end is none.
    pub source_is_reset: bool,
}

/// The socket that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Source(ErrorKind),
    Sink(ErrorKind),
}

impl Flow {
    /// A direction that begins with these bytes.
    pub fn starting_with(early: &[u8]) -> Flow {
        Flow { buffer: early.to_vec(), ..Flow::default() }
    }

    /// Whether it waits for the sink to take bytes.
    pub fn holds_bytes(&self) -> bool {
        self.written < self.buffer.len() || self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0)
    }

    /// The other side speaks: what comes now may be a short answer.
    pub fn turn(&mut self) {
        self.in_a_row = 0;
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

    /// Moves bytes until a socket has to be waited for, or for a while. `sight` is shown all bytes before they are written.
    pub fn advance(&mut self, source: &TcpStream, sink: &TcpStream, sight: &mut impl Sight) -> Result<(), Broken> {
        for _ in 0..READS_AT_ONCE {
            if !self.write(sink)? || self.ended {
                return Ok(());
            }
            match self.read(source, sight) {
                Ok(0) if self.source_is_reset => return Err(Broken::Source(ErrorKind::ConnectionReset)),
                Ok(0) => {
                    self.abandon();
                    return tcp::finish(sink).map_err(|error| Broken::Sink(error.kind()));
                }
                Ok(_) => {}
                Err(error) => {
                    // A pipe that cannot show its bytes has lost them.
                    let lost = self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0);
                    (self.buffer, self.pipe) = (Vec::new(), None);
                    let is_empty = error.kind() == ErrorKind::WouldBlock && !lost;
                    return if is_empty { Ok(()) } else { Err(Broken::Source(error.kind())) };
                }
            }
        }
        self.write(sink).map(|_| ())
    }

    /// Takes bytes of the source; it holds none.
    fn read(&mut self, source: &TcpStream, sight: &mut impl Sight) -> io::Result<usize> {
        if self.pipe.take_if(|pipe| !pipe.is_worth_it()).is_some() {
            self.in_a_row = 0;
        }
        if self.pipe.is_none() && self.in_a_row >= BULK {
            self.pipe = Pipe::take();
            self.in_a_row = if self.pipe.is_some() { BULK } else { 0 };
        }
        let spliced = self.pipe.as_mut().map(|pipe| pipe.fill(source, sight)).transpose()?.flatten();
        let length = if let Some(length) = spliced {
            (self.buffer, self.written) = (Vec::new(), 0);
            length
        } else {
            self.pipe = None;
            self.copy(source, sight)?
        };
        self.in_a_row += length as u64;
        Ok(length)
    }

    fn copy(&mut self, source: &TcpStream, sight: &mut impl Sight) -> io::Result<usize> {
        self.written = 0;
        self.buffer.clear();
        self.buffer.reserve_exact(BUFFER);
        tcp::try_read_buf(source, &mut self.buffer).inspect(|_| sight.passing(&self.buffer))
    }

    /// Writes what it holds. False when the sink takes no more for now.
    fn write(&mut self, sink: &TcpStream) -> Result<bool, Broken> {
        while self.holds_bytes() {
            let from_buffer = &self.buffer[self.written..];
            let done = match &mut self.pipe {
                Some(pipe) if from_buffer.is_empty() => pipe.empty(sink),
                _ => sink.try_write(from_buffer).inspect(|written| self.written += written),
            };
            match done {
                Ok(written) => self.taken += written as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(Broken::Sink(error.kind())),
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::splice::tests::Blind;
    use crate::tcp::tests::pair;

    /// Bytes that the registry sent before come through in any case.
    #[tokio::test]
    async fn a_write_tells_a_reset_behind_an_end_from_one_without() {
        for ends_first in [false, true] {
            let ((registry, mut far), (client, _near)) = (pair().await, pair().await);
            far.write_all(b"answer").await.unwrap();
            if ends_first {
                far.shutdown().await.unwrap();
            }
            far.set_zero_linger().unwrap();
            drop(far);
            registry.ready(Interest::READABLE).await.unwrap();
            registry.ready(Interest::WRITABLE).await.unwrap();
            let told = Flow::starting_with(b"request").advance(&client, &registry, &mut Blind(0)).unwrap_err();
            let kind = if ends_first { ErrorKind::BrokenPipe } else { ErrorKind::ConnectionReset };
            assert_eq!(told, Broken::Sink(kind));
            let mut down = Flow { source_is_reset: !ends_first, ..Flow::default() };
            let ended = down.advance(&registry, &client, &mut Blind(0));
            let reset = Broken::Source(ErrorKind::ConnectionReset);
            assert_eq!((ended, down.take_taken()), (if ends_first { Ok(()) } else { Err(reset) }, 6));
        }
    }
}
