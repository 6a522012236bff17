//! The way of the log to standard error: a thread of its own writes it, the lines of some milliseconds at a time.
//!
//! A reader of the log that stops, as behind a full disk, costs lines and never a pull: a thread that logs hands its line over and
//! goes on. Lines that found no room are counted, and the log tells their number when it moves again.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

/// Lines that come within this time are written together. A process that is killed loses no more than these.
const BATCH: Duration = Duration::from_millis(10);
/// Lines that wait at most, one for each request.
const MAX_WAITING: usize = 4096;
/// The kernel writes so much whole, beside another process that writes to the same pipe (`PIPE_BUF`).
const MAX_PIECE: usize = 4096;
/// How long the end of the process waits for its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Takes whole lines, at once.
pub struct LogWriter {
    lines: SyncSender<Vec<u8>>,
    state: Arc<LogState>,
}

#[derive(Default)]
struct LogState {
    lost: AtomicU64,
    is_over: AtomicBool,
}

/// Waits for the last lines when it is dropped.
#[must_use]
pub struct LogEnd {
    lines: SyncSender<Vec<u8>>,
    state: Arc<LogState>,
    /// Hangs up when all is written.
    written: Receiver<()>,
}

impl LogWriter {
    /// Begins to write to `out`; `tell` logs how many lines were lost.
    pub fn start(out: impl Write + Send + 'static, tell: impl Fn(u64) + Send + 'static) -> io::Result<(Self, LogEnd)> {
        let (lines, waiting) = mpsc::sync_channel(MAX_WAITING);
        let (hangs_up, written) = mpsc::channel();
        let state = Arc::<LogState>::default();
        let log = state.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            let _hangs_up: mpsc::Sender<()> = hangs_up;
            log.write_out(&waiting, out, tell);
        })?;
        Ok((LogWriter { lines: lines.clone(), state: state.clone() }, LogEnd { lines, state, written }))
    }
}

impl LogState {
    fn write_out(&self, lines: &Receiver<Vec<u8>>, mut out: impl Write, tell: impl Fn(u64)) {
        while !self.is_over.load(Ordering::Acquire)
            && let Ok(mut text) = lines.recv()
        {
            thread::sleep(BATCH);
            add_waiting(lines, &mut text);
            if self.write(&text, &mut out).is_ok() {
                match self.lost.swap(0, Ordering::Relaxed) {
                    0 => {}
                    lost => tell(lost),
                }
            }
        }
        let mut last = Vec::new();
        add_waiting(lines, &mut last);
        let _ = self.write(&last, &mut out);
    }

    /// Counts the lines that cannot be written.
    fn write(&self, text: &[u8], out: &mut impl Write) -> io::Result<()> {
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(piece_end(rest));
            out.write_all(piece).inspect_err(|_| {
                let lines = rest.split_inclusive(|byte| *byte == b'\n').count();
                self.lost.fetch_add(lines as u64, Ordering::Relaxed);
            })?;
            rest = others;
        }
        Ok(())
    }
}

/// Where the first lines end that are written together.
fn piece_end(text: &[u8]) -> usize {
    let is_end = |byte: &u8| *byte == b'\n';
    let fits = text.iter().take(MAX_PIECE).rposition(is_end);
    fits.or_else(|| text.iter().position(is_end)).map_or(text.len(), |at| at + 1)
}

fn add_waiting(lines: &Receiver<Vec<u8>>, text: &mut Vec<u8>) {
    for line in lines.try_iter().take(MAX_WAITING) {
        text.extend_from_slice(&line);
    }
}

impl Write for &LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lines.try_send(line.to_vec()).is_err() {
            self.state.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogEnd {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Release);
        // It wakes the thread; where there is no room for it, there is no need.
        let _ = self.lines.try_send(Vec::new());
        let _ = self.written.recv_timeout(LAST_LINES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that takes a text only when it is asked for.
    struct Pipe(SyncSender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = &bytes[..bytes.len().min(10_000)];
            self.0.send(taken.to_vec()).map(|()| taken.len()).map_err(io::Error::other)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn started() -> (LogWriter, LogEnd, Receiver<Vec<u8>>, Receiver<u64>) {
        let ((written, texts), (told, losses)) = (mpsc::sync_channel(0), mpsc::channel());
        let (writer, end) = LogWriter::start(Pipe(written), move |lost| told.send(lost).unwrap()).unwrap();
        (writer, end, texts, losses)
    }

    fn rest(texts: &Receiver<Vec<u8>>) -> String {
        String::from_utf8(texts.iter().flatten().collect()).unwrap()
    }

    #[test]
    fn lines_come_whole_and_in_order_and_the_last_ones_at_the_end() {
        let (writer, end, texts, losses) = started();
        let reader = thread::spawn(move || rest(&texts));
        for number in 0..MAX_WAITING {
            (&writer).write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        drop(end);
        let text = reader.join().unwrap();
        assert!(text.lines().enumerate().all(|(number, line)| line == format!("line {number}")), "{text}");
        assert_eq!(text.lines().count(), MAX_WAITING);
        assert!(losses.try_recv().is_err());
    }

    #[test]
    fn a_reader_that_stops_costs_lines_that_are_counted_and_delays_nobody() {
        // Of these one batch is on its way, and as many wait.
        const LINES: usize = 3 * MAX_WAITING;
        let (writer, end, texts, losses) = started();
        let line = [[b'x'; 99].as_slice(), b"\n"].concat();
        for _ in 0..LINES {
            (&writer).write_all(&line).unwrap();
        }
        let reader = thread::spawn(move || rest(&texts));
        let lost = usize::try_from(losses.recv().unwrap()).unwrap();
        drop(end);
        assert!(lost >= MAX_WAITING - 1, "{lost}");
        assert_eq!(reader.join().unwrap().lines().count(), LINES - lost);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_told_when_others_are() {
        struct FullDisk(mpsc::Sender<Vec<u8>>, bool);

        impl Write for FullDisk {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let was_full = std::mem::take(&mut self.1);
                self.0.send(bytes.to_vec()).unwrap();
                if was_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(bytes.len()) }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let ((written, texts), (told, losses)) = (mpsc::channel(), mpsc::channel());
        let tell = move |lost| told.send(lost).unwrap();
        let (writer, _end) = LogWriter::start(FullDisk(written, true), tell).unwrap();
        (&writer).write_all(b"lost\n").unwrap();
        assert_eq!(texts.recv().unwrap(), b"lost\n");
        (&writer).write_all(b"written\n").unwrap();
        assert_eq!((texts.recv().unwrap(), losses.recv().unwrap()), (b"written\n".to_vec(), 1));
    }

    #[test]
    fn what_is_written_at_once_ends_where_a_line_ends() {
        let line = |length: usize| [vec![b'x'; length - 1], vec![b'\n']].concat();
        for (lengths, end) in
            [(&[10, 20][..], 30), (&[4000, 96, 1], 4096), (&[4000, 97], 4000), (&[5000, 10], 5000), (&[1, 5000], 1)]
        {
            let text = lengths.iter().flat_map(|length| line(*length)).collect::<Vec<u8>>();
            assert_eq!(piece_end(&text), end, "{lengths:?}");
        }
    }

    #[test]
    fn an_end_that_nobody_reads_does_not_last() {
        let (writer, end, texts, _losses) = started();
        (&writer).write_all(b"the last line\n").unwrap();
        drop(end);
        assert_eq!(texts.recv().unwrap(), b"the last line\n");
    }
}
