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

pub use self::framing::Side;
use self::framing::{ContentType, Framing, Piece, RecordHeader};
use self::handshake::{Handshake, HandshakePart};
use self::talk::Talk;
use crate::adapt::timer::AnswerTimer;
pub use crate::reclaim::Doing;
use crate::reclaim::{Lesson, Observation, Opening};
use crate::splice::HEADER;

/// Follows one tunnel. A few hundred bytes, allocates nothing.
#[derive(Clone, Debug)]
pub struct Follower {
    phase: Phase,
    talk: Talk,
    client: Framing,
    server: Framing,
    /// When the last byte passed, of either side; or when the tunnel began.
    last_byte: Duration,
    /// Whose byte the last one was; `None` before the first.
    last_side: Option<Side>,
    /// From the last record of a request to the first of its answer.
    pub timer: AnswerTimer,
    /// Whether the server is known to send no session tickets.
    ticketless: bool,
}

/// How far the tunnel has come.
#[derive(Clone, Debug)]
enum Phase {
    /// Up to the last Finished. Also before the first byte.
    Handshake(Handshake),
    /// Requests and answers.
    Open,
    /// Not TLS, or not any TLS that is understood. Nothing but the direction of bytes is known, for good.
    Lost,
}

impl Follower {
    /// A tunnel that begins now. All times count from one epoch of the caller's, and should not go back. `ticketless` says that
    /// other tunnels to this server have shown that it sends no session tickets.
    pub fn new(now: Duration, ticketless: bool) -> Follower {
        Follower {
            phase: Phase::Handshake(Handshake::new()),
            talk: Talk::default(),
            client: Framing::default(),
            server: Framing::default(),
            last_byte: now,
            last_side: None,
            timer: AnswerTimer::default(),
            ticketless,
        }
    }

    /// How many of this side's next bytes tell nothing: they are inside a record, or there are none to be told apart.
    pub fn unseen(&self, side: Side) -> usize {
        match (&self.phase, side) {
            (Phase::Lost, _) => usize::MAX,
            (Phase::Handshake(_), _) => 0,
            (Phase::Open, Side::Client) => self.client.left(),
            (Phase::Open, Side::Server) => self.server.left(),
        }
    }

    /// This side sent so many of them.
    pub fn passing_unseen(&mut self, side: Side, bytes: usize, now: Duration) {
        (self.last_byte, self.last_side) = (now, Some(side));
        self.framing(side).pass(bytes);
    }

    pub fn doing(&self) -> Doing {
        match &self.phase {
            Phase::Lost if self.last_side == Some(Side::Client) => Doing::InFlight,
            Phase::Lost => Doing::Unsure,
            Phase::Open if self.client.inside() => Doing::InFlight,
            Phase::Open => self.talk.doing(self.server.inside()),
            Phase::Handshake(_) if self.talk.has_parted() => Doing::Closing,
            Phase::Handshake(_) if self.client.inside() || self.talk.is_asked() => Doing::InFlight,
            Phase::Handshake(handshake) => handshake.doing(self.server.inside()),
        }
    }

    /// Whether client and server are shaking hands. Not yet before the first byte.
    pub fn is_handshaking(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_)) && self.doing() == Doing::InFlight && !self.talk.is_asked()
    }

    /// Whether the client has sent half a record.
    pub fn is_request_cut(&self) -> bool {
        self.client.inside()
    }

    /// All that is known of the tunnel.
    pub fn observe(&self) -> Observation {
        let is_open = matches!(self.phase, Phase::Open) && !self.client.inside();
        Observation {
            doing: self.doing(),
            opening: match self.last_side {
                None => Opening::Untouched,
                Some(_) if self.is_handshaking() => Opening::Handshaking,
                Some(_) => Opening::Over,
            },
            request_is_cut: self.is_request_cut(),
            // In TLS 1.3 the server has sent something since the request: tickets, or the whole answer if it sends none.
            perhaps_answered: is_open && self.talk.is_perhaps_answered(),
            exchange: self.talk.exchange(self.server.inside()).filter(|_| is_open),
            ends_short: is_open && !self.server.inside() && self.talk.ends_short(),
        }
    }

    /// Takes what other tunnels to this server can learn from what passed last.
    pub fn take_lesson(&mut self) -> Option<Lesson> {
        self.talk.take_lesson()
    }

    /// Content of the answer that passes, or passed last; counted when a record of it begins.
    pub fn answered(&self) -> u32 {
        self.talk.answered()
    }

    /// Whether a record of the server's has begun that has not ended.
    pub fn is_inside_servers_record(&self) -> bool {
        self.server.inside()
    }

    /// When the last byte of either side passed; before the first, when the tunnel began.
    pub fn since(&self) -> Duration {
        self.last_byte
    }

    /// The last bytes were taken only now: it is quiet from here on.
    pub fn taken(&mut self, now: Duration) {
        self.last_byte = now;
    }

    /// This side sent these bytes. To be told before they are handed on: a request must not be overlooked.
    pub fn sent(&mut self, side: Side, mut bytes: &[u8], now: Duration) {
        if bytes.is_empty() {
            return;
        }
        (self.last_byte, self.last_side) = (now, Some(side));
        while !matches!(self.phase, Phase::Lost) {
            let framing = self.framing(side);
            if !framing.inside() && !bytes.is_empty() {
                framing.begin(now);
            }
            match framing.next(&mut bytes) {
                None => break,
                Some(Piece::Header(header)) => self.header(side, header),
                Some(Piece::Body(body)) => self.body(side, body),
                Some(Piece::Garbage) => self.phase = Phase::Lost,
            }
        }
    }

    /// The length of this side's next records, with their headers, where they repeat.
    pub fn stride(&self, side: Side) -> Option<usize> {
        let framing = if side == Side::Client { &self.client } else { &self.server };
        let repeated = framing.repeats().filter(|_| matches!(self.phase, Phase::Open))?;
        Some(HEADER + usize::from(repeated.length))
    }

    /// This side sent so many records like its last, and these bytes: false if they cannot be a header.
    pub fn passing_alike(&mut self, side: Side, records: usize, next: [u8; HEADER], now: Duration) -> bool {
        let framing = self.framing(side);
        let Some(header) = framing.repeats().filter(|_| framing.can_go_on(next)) else { return false };
        framing.begin(now);
        (0..records).for_each(|_| self.header(side, header));
        self.sent(side, &next, now);
        true
    }

    fn framing(&mut self, side: Side) -> &mut Framing {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// A record of `side` begins. All moves between phases are made here.
    fn header(&mut self, side: Side, header: RecordHeader) {
        let Phase::Handshake(handshake) = &mut self.phase else {
            return self.talked(side, header);
        };
        match handshake.record(side, header) {
            HandshakePart::Middle => self.talk.goes_on(),
            HandshakePart::None => self.talked(side, header),
            HandshakePart::Last => {
                self.talk.goes_on();
                self.phase = Phase::Open;
            }
            HandshakePart::WasOver { asked } => {
                self.phase = Phase::Open;
                if let Some(length) = asked {
                    self.talk.client_said(length, false);
                }
                self.talked(side, header);
            }
            HandshakePart::Unexpected => self.phase = Phase::Lost,
        }
    }

    /// A record that is not, or no longer, of the handshake.
    fn talked(&mut self, side: Side, header: RecordHeader) {
        match (header.content, side) {
            (ContentType::Data, Side::Client) => {
                self.timer.next(self.talk.sizes());
                self.talk.client_said(header.length, self.server.inside());
            }
            (ContentType::Data, Side::Server) => {
                let (is_in_turn, began) = (self.talk.is_in_turn(), self.server.began());
                self.talk.server_said(header.length, began);
                if is_in_turn && !self.talk.is_asked() {
                    self.timer.answer(self.talk.sizes().0, began.saturating_sub(self.client.began()));
                }
            }
            (ContentType::Alert, _) => self.talk.alert(side),
            (ContentType::Handshake | ContentType::ChangeCipherSpec, _) => self.talk.oddity(side),
        }
    }

    /// Bytes inside a record of `side`: of interest as long as hellos are read.
    fn body(&mut self, side: Side, bytes: &[u8]) {
        let is_handshake = self.framing(side).content() == Some(ContentType::Handshake);
        let Phase::Handshake(handshake) = &mut self.phase else { return };
        if !is_handshake {
            return;
        }
        match handshake.read(side, bytes) {
            Ok(None) => {}
            Ok(Some(agreement)) => self.talk.agree(agreement, self.ticketless),
            Err(hello::Malformed) => self.phase = Phase::Lost,
        }
    }
}
