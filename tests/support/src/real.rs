//! Real servers and what they need, for tests against the software that nodes really meet.
//!
//! Every server runs on a free loopback port with its configuration, data and log in a temporary folder, and is
//! ended by its id when its value is dropped. Nothing is ever skipped: a program that is missing or does not come
//! up fails the test, with the program's own log in the message. `tests/run` fetches what is missing.

mod certificates;
mod docker_registry;
mod loopback_name;
mod nginx;
mod oci_image;
mod program;

pub use certificates::Certificates;
pub use docker_registry::DockerRegistry;
pub use loopback_name::LoopbackName;
pub use nginx::{Nginx, NginxSettings, TlsVersion};
pub use oci_image::OciImage;
pub use program::find_program;
