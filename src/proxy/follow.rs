//! The record follower: what is a tunnel doing, told from the outside of its TLS records?
//!
//! It is fed every byte of both directions, in any pieces, with the time at which they pass, and answers at any moment
//! whether something is in flight. Of encrypted records it sees type and length (RFC 8446, section 5; RFC 5246, section
//! 6.2), of the handshake also the two hellos. It never decrypts, keeps no payload, reads no clock and never fails:
//! whatever it does not understand is at best [`Doing::Unsure`], and while the client spoke last [`Doing::InFlight`].
//! Every doubt is decided against taking the connection away. It presumes HTTP/1.1 without pipelining inside the TLS.

mod framing;
mod handshake;
mod hello;
mod lengths;
mod sizes;
mod talk;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::framing::{Framing, Header, Kind, Piece};
use self::handshake::{Handshake, Meaning};
use self::talk::Talk;

/// What a tunnel is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doing {
    /// The client has asked nothing: no byte passed at all, or the handshake is over and at most session tickets came
    /// since.
    Unused,
    /// The client asked, and the server spoke last, on a complete record that looks like the last one of an answer.
    Idle,
    /// The server spoke last, but perhaps not to the end; or it cannot be told who is to speak next.
    Unsure,
    /// The client spoke last, or the handshake is under way: somebody waits for the server.
    InFlight,
    /// One side said goodbye while nothing was in flight, or the server did, so that nothing will be answered.
    Closing,
}

/// A silence that has just ended, for those who learn how long silences last. None has length zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The client's, from the last byte of the handshake (or of the tickets after it) to its first request.
    BeforeFirstRequest(Duration),
    /// The client's, from what looked like the end of an answer to its next request.
    BeforeNextRequest(Duration),
    /// The registry's, from the last byte of a request to the first of its answer.
    BeforeAnswer(Duration),
    /// The registry's, within one answer.
    InAnswer {
        /// What the tunnel seemed to be doing meanwhile: `Idle` if the answer seemed to be over, else `Unsure`.
        looked: Doing,
        /// How long.
        lasted: Duration,
    },
}

/// A side of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// Follows one tunnel. A few hundred bytes, allocates nothing.
#[derive(Debug)]
pub struct Follower {
    stage: Stage,
    talk: Talk,
    client: Framing,
    server: Framing,
    /// When the last byte passed, of either side; or when the tunnel began.
    last_byte: Duration,
    /// When the client's last byte passed.
    client_byte: Duration,
    /// Whose byte the last one was; meaningless before the first.
    last_side: Side,
}

/// How far the tunnel has come.
#[derive(Debug)]
enum Stage {
    /// Up to the last Finished. Also before the first byte.
    Handshake(Handshake),
    /// Requests and answers.
    Open,
    /// Not TLS, or not any TLS that is understood. Nothing but the direction of bytes is known, for good.
    Lost,
}

impl Follower {
    /// A tunnel that begins now. All times count from one epoch of the caller's, and should not go back.
    #[must_use]
    pub fn new(now: Duration) -> Follower {
        Follower {
            stage: Stage::Handshake(Handshake::new()),
            talk: Talk::default(),
            client: Framing::default(),
            server: Framing::default(),
            last_byte: now,
            client_byte: now,
            last_side: Side::Server,
        }
    }

    /// The client sent these bytes. To be told before they are handed on: a request must not be overlooked.
    pub fn client_sent(&mut self, bytes: &[u8], now: Duration) -> Option<Pause> {
        self.sent(Side::Client, bytes, now)
    }

    /// The server sent these bytes.
    pub fn server_sent(&mut self, bytes: &[u8], now: Duration) -> Option<Pause> {
        self.sent(Side::Server, bytes, now)
    }

    /// What the tunnel is doing.
    #[must_use]
    pub fn doing(&self) -> Doing {
        match &self.stage {
            Stage::Lost if self.last_side == Side::Client => Doing::InFlight,
            Stage::Lost => Doing::Unsure,
            Stage::Open if self.client.inside() => Doing::InFlight,
            Stage::Open => self.talk.doing(self.server.inside()),
            Stage::Handshake(_) if self.talk.has_parted() => Doing::Closing,
            Stage::Handshake(_) if self.client.inside() || self.talk.is_asked() => Doing::InFlight,
            Stage::Handshake(handshake) => handshake.doing(self.server.inside()),
        }
    }

    /// Whether client and server are shaking hands. Not yet before the first byte.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        matches!(self.stage, Stage::Handshake(_)) && self.doing() == Doing::InFlight && !self.talk.is_asked()
    }

    /// Whether a request that is in flight may have been answered after all: in TLS 1.3 the server has sent something
    /// since, which is presumed to be session tickets, and is the whole answer if this server sends none.
    #[must_use]
    pub fn perhaps_answered(&self) -> bool {
        matches!(self.stage, Stage::Open) && !self.client.inside() && self.talk.is_perhaps_answered()
    }

    /// When the last byte of either side passed; before the first, when the tunnel began.
    #[must_use]
    pub fn since(&self) -> Duration {
        self.last_byte
    }

    fn sent(&mut self, side: Side, mut bytes: &[u8], now: Duration) -> Option<Pause> {
        if bytes.is_empty() {
            return None;
        }
        let mut quiet = now.saturating_sub(self.last_byte);
        let mut pause = None;
        if side == Side::Server && self.server.inside() && matches!(self.stage, Stage::Open) {
            pause = self.talk.answer_paused(quiet, true);
        }
        self.last_byte = now;
        self.last_side = side;
        if side == Side::Client {
            self.client_byte = now;
        }
        while !matches!(self.stage, Stage::Lost) {
            let framing = self.framing(side);
            if !framing.inside() && !bytes.is_empty() {
                framing.begin(now, quiet);
            }
            // What follows in the same breath follows no silence.
            quiet = Duration::ZERO;
            match framing.next(&mut bytes) {
                None => break,
                Some(Piece::Header(header)) => pause = self.header(side, header).filter(Pause::is_some).or(pause),
                Some(Piece::Body(body)) => self.body(side, body),
                Some(Piece::Garbage) => self.stage = Stage::Lost,
            }
        }
        pause.filter(Pause::is_some)
    }

    fn framing(&mut self, side: Side) -> &mut Framing {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// A record of `side` begins. All moves between stages are made here.
    fn header(&mut self, side: Side, header: Header) -> Option<Pause> {
        let Stage::Handshake(handshake) = &mut self.stage else {
            return self.spoken(side, header);
        };
        match handshake.record(side, header) {
            Meaning::Handshake => self.talk.goes_on(),
            Meaning::Early => {
                self.spoken(side, header);
            }
            Meaning::Over => {
                self.talk.goes_on();
                self.stage = Stage::Open;
            }
            Meaning::WasOver { asked } => {
                self.stage = Stage::Open;
                if let Some(length) = asked {
                    self.talk.client_said(length, Duration::ZERO, false);
                }
                return self.spoken(side, header);
            }
            Meaning::Unexpected => self.stage = Stage::Lost,
        }
        None
    }

    /// A record that is not, or no longer, of the handshake.
    fn spoken(&mut self, side: Side, header: Header) -> Option<Pause> {
        let framing = self.framing(side);
        let (began, quiet) = (framing.began(), framing.quiet());
        match (header.kind, side) {
            (Kind::Data, Side::Client) => self.talk.client_said(header.length, quiet, self.server.inside()),
            (Kind::Data, Side::Server) => {
                let waited = began.saturating_sub(self.client_byte);
                self.talk.server_said(header.length, began, quiet, waited)
            }
            (Kind::Alert, _) => {
                self.talk.alert(side);
                None
            }
            (Kind::Handshake | Kind::ChangeCipherSpec, _) => {
                self.talk.oddity(side);
                None
            }
        }
    }

    /// Bytes inside a record of `side`: of interest as long as hellos are read.
    fn body(&mut self, side: Side, bytes: &[u8]) {
        let is_handshake = self.framing(side).kind() == Some(Kind::Handshake);
        let Stage::Handshake(handshake) = &mut self.stage else { return };
        if !is_handshake {
            return;
        }
        match handshake.read(side, bytes) {
            Ok(None) => {}
            Ok(Some(terms)) => self.talk.agree(terms),
            Err(hello::Malformed) => self.stage = Stage::Lost,
        }
    }
}

impl Pause {
    /// How long it was.
    #[must_use]
    pub fn lasted(self) -> Duration {
        match self {
            Pause::BeforeFirstRequest(lasted)
            | Pause::BeforeNextRequest(lasted)
            | Pause::BeforeAnswer(lasted)
            | Pause::InAnswer { lasted, .. } => lasted,
        }
    }

    /// Whether there was any.
    fn is_some(&self) -> bool {
        !self.lasted().is_zero()
    }
}
