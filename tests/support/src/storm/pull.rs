//! One pull: a connection, a manifest, a blob, and the cut where one is due.

use std::net::SocketAddr;

use super::Destination;
use super::cut::{Cut, Point};
use crate::http::{Framing, Head, request};
use crate::{Wire, blob_of, manifest_of};

/// A client with its own repository.
pub(super) struct Pull {
    name: String,
    registry: SocketAddr,
    way: Destination,
    blob: usize,
    cut: Option<Cut>,
    completed: usize,
}

/// Why a pull ends early: a failure, or the cut that was wanted.
enum Stop {
    Failed(String),
    Cut,
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Pull {
    pub(super) fn new(number: usize, registry: SocketAddr, way: Destination, blob: usize, cut: Option<Cut>) -> Self {
        Self { name: format!("storm/image-{number}"), registry, way, blob, cut, completed: 0 }
    }

    /// Requests seen through to their end, as a proxy counts them.
    pub(super) fn completed(&self) -> usize {
        self.completed
    }

    /// Pulls, or says why not. A cut on purpose is `Ok`.
    pub(super) async fn run(&mut self) -> Result<(), String> {
        let mut wire = Wire::open(self.entrance()).await.map_err(|error| format!("connect: {error}"))?;
        match self.pull(&mut wire).await {
            Ok(()) => Ok(()),
            Err(Stop::Failed(reason)) => Err(reason),
            Err(Stop::Cut) => {
                if self.cut.is_some_and(|cut| cut.reset) {
                    wire.reset();
                }
                Ok(())
            }
        }
    }

    fn entrance(&self) -> SocketAddr {
        match self.way {
            Destination::Direct => self.registry,
            Destination::AbsoluteForm(entrance) | Destination::Mirror(entrance) | Destination::Connect(entrance) => {
                entrance
            }
        }
    }

    async fn pull(&mut self, wire: &mut Wire) -> Result<(), Stop> {
        let authority = self.registry.to_string();
        if let Destination::Connect(_) = self.way {
            let head = self.ask(wire, "CONNECT", &authority).await?;
            expect_200("CONNECT", &head, wire).await?;
        }
        let base =
            if let Destination::AbsoluteForm(_) = self.way { format!("http://{authority}") } else { String::new() };
        self.manifest(wire, &base).await?;
        self.blob(wire, &base).await?;
        if let Destination::Connect(_) = self.way {
            self.completed = 1;
        }
        Ok(())
    }

    async fn manifest(&mut self, wire: &mut Wire, base: &str) -> Result<(), Stop> {
        let path = format!("/v2/{}/manifests/latest", self.name);
        let head = self.ask(wire, "GET", &format!("{base}{path}")).await?;
        let head = expect_200("manifest", &head, wire).await?;
        let manifest = wire.body(Framing::of_answer(head, "GET")).collect().await?;
        if manifest != manifest_of(&self.name, self.blob) {
            return Err(Stop::Failed("manifest: not the bytes of this repository".into()));
        }
        self.exchange_completed();
        Ok(())
    }

    async fn blob(&mut self, wire: &mut Wire, base: &str) -> Result<(), Stop> {
        let path = format!("/v2/{}/blobs/sha256:layer", self.name);
        let head = self.ask(wire, "GET", &format!("{base}{path}")).await?;
        let head = expect_200("blob", &head, wire).await?;
        let wanted = blob_of(&path, self.blob);
        let mut body = wire.body(Framing::of_answer(head, "GET"));
        let mut length = 0;
        while let Some(piece) = body.next().await? {
            if wanted.get(length..length + piece.len()) != Some(&piece[..]) {
                return Err(Stop::Failed(format!("blob: wrong bytes at {length}")));
            }
            length += piece.len();
            if self.cuts_in_blob_at(length) {
                return Err(Stop::Cut);
            }
        }
        if length != wanted.len() {
            return Err(Stop::Failed(format!("blob: {length} bytes of {}", wanted.len())));
        }
        self.exchange_completed();
        Ok(())
    }

    /// Sends a request and waits for its answer's head, or cuts meanwhile.
    async fn ask(&self, wire: &mut Wire, method: &str, target: &str) -> Result<Head, Stop> {
        wire.send(request(method, target, &[]).as_bytes()).await?;
        match self.cut.map(|cut| cut.point) {
            Some(Point::Sent) => Err(Stop::Cut),
            Some(Point::Queued(wait)) => match tokio::time::timeout(wait, wire.read_answer()).await {
                Ok(answer) => Ok(answer?),
                Err(_) => Err(Stop::Cut),
            },
            Some(Point::Blob(_)) | None => Ok(wire.read_answer().await?),
        }
    }

    fn cuts_in_blob_at(&self, length: usize) -> bool {
        match self.cut.map(|cut| cut.point) {
            Some(Point::Blob(at)) => length > at,
            // It was answered each time before it lost its patience: it leaves here at the latest.
            Some(_) => true,
            None => false,
        }
    }

    fn exchange_completed(&mut self) {
        if let Destination::AbsoluteForm(_) | Destination::Mirror(_) = self.way {
            self.completed += 1;
        }
    }
}

/// Passes a head with status 200 on; of any other, the start of the body tells why.
async fn expect_200<'head>(what: &str, head: &'head Head, wire: &mut Wire) -> Result<&'head Head, Stop> {
    if head.status() == 200 {
        return Ok(head);
    }
    let body = wire.body(Framing::of_answer(head, "GET")).next().await;
    let body = body.ok().flatten().unwrap_or_default();
    let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
    Err(Stop::Failed(format!("{what}: {} {} {text}", head.status(), head.reason())))
}
