//! Real servers and what they need, for tests against the software that nodes really meet.
//!
//! Every server runs on a free loopback port with its configuration, data and log in a temporary folder, and is
//! ended by its id when its value is dropped. Nothing is ever skipped: a program that is missing or does not come
//! up fails the test, with the program's own log in the message. `tests/run` fetches what is missing. Only a puller that
//! this machine forbids (podman, containerd) is told as not run, aloud, with the cause.

use std::io::Write;

mod browser;
mod certificates;
mod containerd;
mod docker_registry;
mod guarded_registry;
mod loopback_name;
mod nginx;
mod oci_image;
mod podman;
mod program;
mod redis_cluster;
mod redis_server;
mod rotating_names;
mod skopeo;
mod token_service;

pub use browser::Browser;
pub use certificates::Certificates;
pub use containerd::Containerd;
pub use docker_registry::DockerRegistry;
pub use guarded_registry::GuardedRegistry;
pub use loopback_name::LoopbackName;
pub use nginx::{Nginx, NginxSettings, TlsVersion};
pub use oci_image::OciImage;
pub use podman::Podman;
pub use program::{find_program, free_address};
pub use redis_cluster::RedisCluster;
pub use redis_server::{RedisSentinel, RedisServer};
pub use skopeo::Skopeo;
pub use token_service::TokenService;

/// Says that a part of the tests could not run on this machine, and why. Not by `println!`, which a test that passes
/// keeps to itself: `tests/run` shows these lines again at its end.
pub fn not_run(cause: &str) {
    let cause = cause.trim().replace('\n', " | ");
    // Without a standard error there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "\nNOT RUN: {cause}");
}
