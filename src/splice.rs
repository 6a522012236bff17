//! Bytes from one socket to another that never leave the kernel: `splice(2)`, through a pipe.
//!
//! A tunnel has to see the headers of TLS records, whenever they pass, or it does not know when its answers end. So what lies in
//! a pipe is doubled by `tee(2)`, which copies no bytes, and the double is walked through: bodies are dropped unread, and
//! headers are read, before the pipe is emptied into the other socket. Nothing is known later, or less, than with copying.
//!
//! Bulk comes in records of one length (4,096 or 16,384 bytes of content at a Harbor). After two of them the walk strides: it
//! presumes that all have that length, and reads the header after the last. Where one begins there, of the same type and
//! version, they had. If one was longer or shorter, that place lies amid encrypted bytes, which look like a header once in
//! 50 million times, and the walk is done again, record by record.
//!
//! Pipes are few, and of the whole process: each costs two descriptors, and memory of the kernel while it holds bytes. A
//! direction has one only while bulk moves. Where there is none, its owner copies.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice, tee};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Pipes at once, each with its double. A few tunnels in bulk keep a node's cores busy; a stuck client holds one.
const MAX_PIPES: usize = 16;
/// Descriptors of one pipe and its double.
const DESCRIPTORS: usize = 4;
/// A process that may open fewer descriptors has no pipes: they are for clients and slots.
const ENOUGH_DESCRIPTORS: usize = 1024;
/// Bytes that a pipe holds at most. The kernel gives a user without privileges 64 MiB for all of them.
const CAPACITY: usize = 256 * 1024;
/// Headers read in one walk. Where there are more, the rest is read as a whole, and the next bulk is copied.
const TOO_MANY_STEPS: usize = 16;
/// Of a TLS record: type, version, length (RFC 8446, section 5.1).
pub const HEADER: usize = 5;

static UNUSED: Mutex<Vec<Ends>> = Mutex::new(Vec::new());
static LEFT: AtomicUsize = AtomicUsize::new(0);
static NOWHERE: LazyLock<Option<File>> = LazyLock::new(|| File::options().write(true).open("/dev/null").ok());

/// A tunnel's view of the bytes that pass.
pub trait Sight {
    /// These bytes pass next.
    fn passing(&mut self, bytes: &[u8]);
    /// How many of the bytes after those tell nothing.
    fn unseen(&self) -> usize;
    /// So many of them pass next.
    fn passing_unseen(&mut self, bytes: usize);
    /// Where records of one length pass, and one has just ended: that length, with its header.
    fn stride(&self) -> Option<usize>;
    /// So many records of that length pass next, and the bytes after them, if another record can begin with these. False if
    /// none can.
    fn passing_alike(&mut self, records: usize, next: [u8; HEADER]) -> bool;
}

/// The descriptors that pipes take at most, of so many that the process may open.
pub fn descriptors(limit: usize) -> usize {
    if limit < ENOUGH_DESCRIPTORS { 0 } else { MAX_PIPES * DESCRIPTORS }
}

/// Allows as many pipes as a process gets that may open so many descriptors. Before this call there are none.
pub fn allow(limit: usize) {
    LEFT.store(descriptors(limit) / DESCRIPTORS, Ordering::Relaxed);
}

/// A pipe with its double, and the bytes in them.
#[derive(Debug)]
pub struct Pipe {
    /// None only while it is dropped.
    ends: Option<Ends>,
    held: usize,
    /// Bytes that are left in the double: the last ones of those that are held.
    doubled: usize,
    /// Headers that were read in the last walk.
    steps: usize,
}

#[derive(Debug)]
struct Ends {
    output: OwnedFd,
    input: OwnedFd,
    double_output: OwnedFd,
    double_input: OwnedFd,
    nowhere: &'static File,
}

impl Pipe {
    /// One that nobody uses; `None` if there is none left.
    pub fn take() -> Option<Pipe> {
        let unused = UNUSED.lock().pop();
        let ends = unused.or_else(|| {
            LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).ok()?;
            let made = Ends::make().ok();
            if made.is_none() {
                LEFT.fetch_add(1, Ordering::Relaxed);
            }
            made
        })?;
        Some(Pipe { ends: Some(ends), held: 0, doubled: 0, steps: 0 })
    }

    /// Bytes that the sink has not taken.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether its bytes were seen with less work than copying them is.
    pub fn is_worth_it(&self) -> bool {
        self.steps <= TOO_MANY_STEPS
    }

    /// Fills an empty pipe with bytes of the source, and shows them; how many. 0 is the source's end, and `None` a kernel that
    /// does not splice what comes.
    /// Fails like a read of the source.
    pub fn fill(&mut self, source: &TcpStream, sight: &mut impl Sight) -> io::Result<Option<usize>> {
        let ends = self.ends()?;
        let read = || match splice(source, None, &ends.input, None, CAPACITY, SpliceFlags::NONBLOCK) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
            // It stops before an urgent byte, which a read passes over.
            Ok(0) | Err(Errno::AGAIN) if has_bytes(source)? => Ok(None),
            length => Ok(Some(length?)),
        };
        let length = source.try_io(Interest::READABLE, read)?;
        self.held = length.unwrap_or_default();
        self.show(sight)?;
        Ok(length)
    }

    /// Hands on bytes that it holds; how many. Fails like a write to the sink.
    pub fn empty(&mut self, sink: &TcpStream) -> io::Result<usize> {
        let ends = self.ends()?;
        let write = || Ok(splice(&ends.output, None, sink, None, self.held, SpliceFlags::NONBLOCK)?);
        let length = sink.try_io(Interest::WRITABLE, write)?;
        self.held -= length;
        Ok(length)
    }

    /// Shows all that it holds.
    fn show(&mut self, sight: &mut impl Sight) -> io::Result<()> {
        (self.steps, self.doubled) = (0, 0);
        let (mut shown, mut may_stride) = (0, true);
        while shown < self.held {
            let (left, unseen) = (self.held - shown, sight.unseen());
            if unseen > 0 {
                sight.passing_unseen(unseen.min(left));
                shown += unseen.min(left);
                continue;
            }
            self.steps += 1;
            if self.steps > TOO_MANY_STEPS {
                let mut rest = vec![0; left];
                let length = self.look(shown, &mut rest)?;
                sight.passing(&rest[..length]);
                shown += length;
                continue;
            }
            let mut head = [0; HEADER];
            let alike =
                sight.stride().filter(|_| may_stride).map(|stride| (stride, left.saturating_sub(HEADER) / stride));
            if let Some((stride, records @ 2..)) = alike {
                self.look(shown + stride * records, &mut head)?;
                if sight.passing_alike(records, head) {
                    shown += stride * records + HEADER;
                    continue;
                }
                may_stride = false;
            }
            let length = self.look(shown, &mut head)?;
            sight.passing(&head[..length]);
            shown += length;
        }
        self.discard(self.doubled)
    }

    /// Reads at this position of what it holds, where it stays; how many bytes.
    fn look(&mut self, position: usize, into: &mut [u8]) -> io::Result<usize> {
        if self.doubled == 0 || position < self.held - self.doubled {
            self.discard(self.doubled)?;
            let ends = self.ends()?;
            self.doubled = tee(&ends.output, &ends.double_input, self.held, SpliceFlags::NONBLOCK)?;
            if self.doubled < self.held {
                return Err(ErrorKind::OutOfMemory.into());
            }
        }
        self.discard(position - (self.held - self.doubled))?;
        let length = rustix::io::read(&self.ends()?.double_output, into)?;
        self.doubled -= length;
        Ok(length)
    }

    /// Drops so many bytes of the double.
    fn discard(&mut self, mut bytes: usize) -> io::Result<()> {
        while bytes > 0 {
            let ends = self.ends()?;
            let dropped = splice(&ends.double_output, None, ends.nowhere, None, bytes, SpliceFlags::NONBLOCK)?;
            bytes -= dropped;
            self.doubled -= dropped;
        }
        Ok(())
    }

    fn ends(&self) -> io::Result<&Ends> {
        self.ends.as_ref().ok_or_else(|| ErrorKind::NotConnected.into())
    }
}

/// Whether a read finds bytes. The kernel tells of a reset once: it may be here.
fn has_bytes(stream: &TcpStream) -> io::Result<bool> {
    match recv(stream, &mut [0_u8; 1], RecvFlags::PEEK) {
        Ok((_, length)) => Ok(length > 0),
        Err(Errno::AGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Drop for Pipe {
    /// Another direction may use it, unless bytes are left in it.
    fn drop(&mut self) {
        if self.held == 0 && self.doubled == 0 {
            UNUSED.lock().extend(self.ends.take());
        } else {
            LEFT.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Ends {
    /// Fails when no descriptor is left, no memory for pipes of this user, or where a sandbox forbids these calls.
    fn make() -> io::Result<Ends> {
        let nowhere = NOWHERE.as_ref().ok_or(ErrorKind::NotFound)?;
        let (output, input) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let (double_output, double_input) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&input, CAPACITY)?;
        fcntl_setpipe_size(&double_input, CAPACITY)?;
        // A byte on the way that all will take.
        rustix::io::write(&input, b"?")?;
        tee(&output, &double_input, 1, SpliceFlags::NONBLOCK)?;
        for end in [&output, &double_output] {
            splice(end, None, nowhere, None, 1, SpliceFlags::NONBLOCK)?;
        }
        Ok(Ends { output, input, double_output, double_input, nowhere })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream as Blocking};

    use rustix::net::{SendFlags, send};

    use super::*;

    /// Sees nothing: neither so many bytes that it does not ask for, nor those that it is shown.
    pub struct Blind(pub usize);

    impl Sight for Blind {
        fn passing(&mut self, _: &[u8]) {}
        fn unseen(&self) -> usize {
            self.0
        }
        fn passing_unseen(&mut self, _: usize) {}
        fn stride(&self) -> Option<usize> {
            None
        }
        fn passing_alike(&mut self, _: usize, _: [u8; HEADER]) -> bool {
            false
        }
    }

    impl Pipe {
        fn discard_all(&mut self) -> usize {
            let mut bytes = vec![0; self.held];
            let length = rustix::io::read(&self.ends.as_ref().unwrap().output, &mut bytes[..]).unwrap();
            self.held -= length;
            length
        }
    }

    /// One side for tokio, one that blocks.
    fn connected() -> (TcpStream, Blocking) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = Blocking::connect(listener.local_addr().unwrap()).unwrap();
        let near = listener.accept().unwrap().0;
        near.set_nonblocking(true).unwrap();
        (TcpStream::from_std(near).unwrap(), far)
    }

    #[tokio::test]
    async fn a_pipe_with_bytes_left_is_not_used_again() {
        allow(4096);
        for text in ["of a tunnel that broke", "of another"] {
            let ((source, mut origin), (sink, mut client)) = (connected(), connected());
            origin.write_all(text.as_bytes()).unwrap();
            source.readable().await.unwrap();
            let mut pipe = Pipe::take().unwrap();
            assert_eq!(pipe.fill(&source, &mut Blind(usize::MAX)).unwrap(), Some(text.len()));
            if text == "of another" {
                sink.writable().await.unwrap();
                pipe.empty(&sink).unwrap();
                drop(sink);
                let mut arrived = String::new();
                client.read_to_string(&mut arrived).unwrap();
                assert_eq!(arrived, text);
            }
        }
    }

    #[tokio::test]
    async fn bytes_after_an_urgent_one_are_left_to_a_read() {
        allow(4096);
        let (source, mut origin) = connected();
        origin.write_all(b"before").unwrap();
        send(&origin, b"!", SendFlags::OOB).unwrap();
        origin.write_all(b"after").unwrap();
        drop(origin);
        source.readable().await.unwrap();
        let mut pipe = Pipe::take().unwrap();
        assert_eq!(pipe.fill(&source, &mut Blind(usize::MAX)).unwrap(), Some(6));
        assert_eq!(pipe.discard_all(), 6);
        assert_eq!(pipe.fill(&source, &mut Blind(usize::MAX)).unwrap(), None);
        let mut rest = [0; 10];
        assert_eq!(source.try_read(&mut rest).unwrap(), 5);
    }

    /// Sees that no stride fits, again and again.
    struct Short(usize);

    impl Sight for Short {
        fn passing(&mut self, bytes: &[u8]) {
            self.0 += bytes.len();
        }
        fn unseen(&self) -> usize {
            0
        }
        fn passing_unseen(&mut self, _: usize) {}
        fn stride(&self) -> Option<usize> {
            Some(7)
        }
        fn passing_alike(&mut self, _: usize, _: [u8; HEADER]) -> bool {
            false
        }
    }

    #[tokio::test]
    async fn a_walk_ends_after_some_steps() {
        allow(4096);
        let (source, mut origin) = connected();
        origin.write_all(&[1; 10_000]).unwrap();
        source.readable().await.unwrap();
        let (mut pipe, mut short) = (Pipe::take().unwrap(), Short(0));
        let filled = pipe.fill(&source, &mut short).unwrap().unwrap();
        assert_eq!((short.0, pipe.steps, pipe.is_worth_it()), (filled, TOO_MANY_STEPS + 1, false));
        pipe.discard_all();
    }

    #[test]
    fn a_process_with_few_descriptors_has_no_pipes() {
        assert_eq!([100, 1023, 1024, 1_000_000].map(descriptors), [0, 0, 64, 64]);
    }
}
