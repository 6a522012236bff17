//! Connections to an admin or metrics listener: how many there may be, and how long one may last.
//!
//! Each costs a descriptor that the proxy may need, so no observer keeps one for ever, whether it reads or not.
//! Beyond the bound the oldest is closed, not the newest: the newest may be a probe of the kubelet.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::HttpService;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Connections to one listener at one time.
const MAX_CONNECTIONS: usize = 64;
/// A client that is slower than this with a request has lost interest.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How old a connection may get; the page and scrapers come back on another one.
const MAX_AGE: Duration = Duration::from_secs(30);
/// Time for an answer that is under way then.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections of one listener, the oldest first.
#[derive(Debug, Default)]
pub struct AdminConnections {
    tasks: VecDeque<AbortHandle>,
}

impl AdminConnections {
    /// One more, the newest; beyond the bound the oldest is closed.
    pub fn add(&mut self, task: AbortHandle) {
        self.tasks.retain(|task| !task.is_finished());
        self.tasks.push_back(task);
        if self.tasks.len() > MAX_CONNECTIONS
            && let Some(oldest) = self.tasks.pop_front()
        {
            oldest.abort();
        }
    }
}

/// Serves one connection, until it ends, is too old, or another process answers here. Gives it back to close lingeringly,
/// where its last answer was sent.
pub async fn serve<S, Io>(io: Io, service: S, handed_over: &CancellationToken) -> Result<Io, hyper::Error>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    S: HttpService<Incoming, ResBody = Full<Bytes>> + Unpin,
    S::Future: Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(io), service);
    let served = tokio::select! {
        served = &mut connection => Some(served),
        // The client's next connection goes to the process that serves now.
        () = handed_over.cancelled() => None,
        () = sleep(MAX_AGE) => None,
    };
    if let Some(served) = served {
        served?;
    } else {
        Pin::new(&mut connection).graceful_shutdown();
        timeout(LAST_ANSWER_TIMEOUT, &mut connection).await.unwrap_or(Ok(()))?;
    }
    Ok(connection.into_parts().io.into_inner())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::ready;

    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    /// A connection to a listener that answers with a KiB; the task ends with the time that it took.
    fn served() -> (DuplexStream, tokio::task::JoinHandle<Duration>) {
        let (ours, theirs) = duplex(512);
        let task = tokio::spawn(async move {
            let since = Instant::now();
            let service = service_fn(|_: Request<Incoming>| {
                ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b'x'; 1024])))))
            });
            let _ = serve(theirs, service, &CancellationToken::new()).await;
            since.elapsed()
        });
        (ours, task)
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_reads_is_let_go() {
        let (mut peer, task) = served();
        let asked = tokio::spawn(async move { while peer.write_all(REQUEST).await.is_ok() {} });
        let lasted = task.await.unwrap();
        assert!((MAX_AGE..=MAX_AGE + LAST_ANSWER_TIMEOUT).contains(&lasted), "{lasted:?}");
        asked.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_nothing_more_is_let_go_early() {
        let (mut peer, task) = served();
        peer.write_all(REQUEST).await.unwrap();
        let mut answer = String::new();
        peer.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(task.await.unwrap() <= HEAD_TIMEOUT);
    }

    /// A client that asks each second, like the page, is closed in order after a while: between two answers.
    #[tokio::test(start_paused = true)]
    async fn an_old_connection_ends_between_two_answers() {
        let (mut peer, task) = served();
        let mut answers = 0;
        loop {
            let asked = peer.write_all(REQUEST).await;
            let (mut got, mut part) = (Vec::new(), [0; 2048]);
            while !got.ends_with(&[b'x'; 1024]) {
                match peer.read(&mut part).await.unwrap() {
                    0 => break,
                    read => got.extend_from_slice(&part[..read]),
                }
            }
            if got.is_empty() {
                break;
            }
            asked.unwrap();
            assert!(got.ends_with(&[b'x'; 1024]), "a whole answer");
            answers += 1;
            sleep(Duration::from_secs(1)).await;
        }
        assert!((30..=31).contains(&answers), "{answers}");
        assert!(task.await.unwrap() <= MAX_AGE + LAST_ANSWER_TIMEOUT);
    }

    #[tokio::test]
    async fn beyond_the_bound_the_oldest_gives_way() {
        let mut open = AdminConnections::default();
        let tasks: Vec<_> = (0..MAX_CONNECTIONS + 2).map(|_| tokio::spawn(std::future::pending::<()>())).collect();
        for task in &tasks {
            open.add(task.abort_handle());
        }
        tokio::task::yield_now().await;
        let ended: Vec<_> =
            (0..).zip(&tasks).filter(|(_, task)| task.is_finished()).map(|(number, _)| number).collect();
        assert_eq!(ended, [0, 1]);
        tasks[40].abort();
        tokio::task::yield_now().await;
        let one_more = tokio::spawn(std::future::pending::<()>());
        open.add(one_more.abort_handle());
        tokio::task::yield_now().await;
        assert!(!tasks[2].is_finished(), "one had ended by itself: there was room");
    }
}
