//! The tools of roadstead's tests, its example and its benches. Each answers one question:
//!
//! * [`Sidecar`]: what does the real binary do? A child process with its ports, logs, status and metrics.
//! * [`StubRegistry`]: what did the registry see? It counts its own open connections, accepts and heads, and
//!   can refuse above a cap as Harbor does, hold its answers back, go away, or speak a test's own bytes.
//! * [`StubHarbor`]: does it survive Harbor's bad days? Tokens and manifests that fail as Harbor's do, at random.
//! * [`SocketWatch`]: what does the kernel say? The sidecar's sockets toward one registry, sampled throughout.
//! * [`Storm`]: does a whole fleet get its images? Many pulls at once, every byte checked, some cut on purpose.
//! * [`Wire`]: what exactly went over the connection? A raw HTTP/1.1 client that adds nothing of its own.
//! * [`Puller`]: does a daemon that keeps its connections get its blobs? As dfdaemon: 32 clients, ranges at once.
//! * [`real`]: does it hold with the software that nodes meet? The distribution registry, nginx, an image for skopeo.
//! * [`load`]: what does a proxy cost? An origin, a client that keeps its connection, the kernel's count of a process.
//! * [`scale()`]: how often is it tried? A tenth of the whole count, all of it in `tests/run --soak`.
//! * [`deafen()`]: what does a broken link cost? Nothing comes to one socket any more.
//! * [`eventually()`]: has it happened yet? The only way for a test to wait.

#![forbid(unsafe_code)]

mod broken_link;
mod eventually;
mod harbor;
pub mod http;
mod kernel;
pub mod load;
mod look;
mod metrics;
mod planned;
mod puller;
mod random;
pub mod real;
mod scale;
mod sidecar;
mod sources;
mod storm;
mod stub;
mod terminal;

pub use broken_link::{deafen, undeafen};
pub use eventually::{eventually, eventually_is};
pub use harbor::{Illness, PASSWORD, StubHarbor, USER};
pub use http::{Head, Response, Wire, connect_through, get_through};
pub use kernel::{Peak, SocketWatch};
pub use look::Outcomes;
pub use metrics::Metrics;
pub use planned::{assert_as_planned, service_ms};
pub use puller::{Load, Puller, Reclaims};
pub use random::Random;
pub use scale::scale;
pub use sidecar::{KEEP_TUNNELS, Sidecar, Signal, config, order};
pub use sources::rust_files;
pub use storm::{Cuts, Destination, Progress, Storm, Tally};
pub use stub::{StubBuilder, StubConnection, StubRegistry, blob_of, digest_of, manifest_of};
pub use terminal::{on_terminal, on_terminal_that_answers};
