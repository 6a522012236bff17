//! `roadstead queue` and `roadstead why`: asks for `/queue` and `/status`, and puts them into words.

use serde_json::Value;

use crate::control::ask;

#[derive(Debug, clap::Args)]
pub struct Queue {
    /// One registry, as the config names it [default: all].
    registry: Option<String>,

    /// Where the sidecar's admin listener is: http://HOST:PORT [default: listen.admin of the config].
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,

    /// Print /queue unchanged, as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct Why {
    /// The image as a pod names it, or the repository.
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    image: String,

    /// Where the sidecar's admin listener is: http://HOST:PORT [default: listen.admin of the config].
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
}

impl Queue {
    /// Fails without the answers of a sidecar, or when it has no such registry.
    pub fn answer(&self, admin: &str) -> Result<String, String> {
        if self.json {
            return ask::picture(admin, "/queue").map(|(_, text)| text);
        }
        let (queue, status) = pictures(admin)?;
        super::queue::render(&queue, &status, self.registry.as_deref())
    }
}

impl Why {
    /// Fails without the answers of a sidecar.
    pub fn answer(&self, admin: &str) -> Result<String, String> {
        let (queue, status) = pictures(admin)?;
        Ok(super::why::render(&queue, &status, &self.image))
    }
}

fn pictures(admin: &str) -> Result<(Value, Value), String> {
    Ok((ask::picture(admin, "/queue")?.0, ask::picture(admin, "/status")?.0))
}
