//! Records after the handshake: requests, answers, and records that are neither.
//!
//! Type and length of each record are known, and that requests and answers alternate in HTTP/1.1.

use std::time::Duration;

use super::framing::Side;
use super::lengths::Lengths;
use super::sizes::Sizes;
use crate::reclaim::{AnswerShape, Doing, Lesson};

/// How long after the first session ticket others like it may come. They are written at once.
const TICKET_BURST: Duration = Duration::from_secs(1);

/// How much the tickets of one burst differ in length. The least difference between a ticket and a whole answer that
/// was seen is 17.
const TICKETS_ALIKE: u16 = 8;

/// `HTTP/1.1 100 Continue` and an empty line. No answer that ends is shorter: it has a line of status and one of length,
/// at least.
const INTERIM: u32 = 25;

/// How much two requests of one client differ in length, at most, that are told apart from the parts of one request.
const REQUESTS_ALIKE: u16 = 64;

/// The facts of both hellos that matter for the records after the handshake.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Agreement {
    /// Lengths of small records; none before TLS 1.3, which hides what they are.
    pub lengths: Option<Lengths>,
    /// The bytes that encryption adds to a record.
    pub added: u16,
    /// The two may not take turns: HTTP/2, or a server that may ask for a certificate at any time.
    pub unclear: bool,
}

/// The talk of one tunnel.
#[derive(Clone, Debug, Default)]
pub(super) struct Talk {
    agreement: Agreement,
    turn: Speaker,
    tickets: Tickets,
    /// Records that were presumed to be tickets.
    tickets_seen: u8,
    /// The side that said goodbye, as long as nothing came after it that contradicts.
    parted: Option<Side>,
    /// Something happened after which a tunnel is never again believed to be idle.
    odd: bool,
    /// Records of the request.
    request: Sizes,
    /// Whether the last of them looks like one of more.
    request_goes_on: bool,
    /// Records of the answer.
    answer: Sizes,
    /// The lesson for other tunnels from the last exchange.
    lesson: Option<Lesson>,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Speaker {
    /// The client's, which has asked nothing so far.
    #[default]
    Unasked,
    /// The same, yet the server has said what is no session ticket.
    Unprompted,
    /// The server's: it has been asked, and has said nothing since.
    Asked,
    /// The same, but for what is presumed to be tickets.
    Ticketed,
    /// The client's, if the answer is over.
    Answered,
    /// The server's, by the look of the last record; perhaps the client's.
    Answering,
}

/// The knowledge about session tickets: in TLS 1.3 they look like answers (RFC 8446, section 4.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tickets {
    /// None are to come.
    #[default]
    Over,
    /// The server's next record is presumed to be one.
    Awaited,
    /// The first record was that long and began at that time; others like it, soon after, are presumed to be tickets.
    Burst { length: u16, began: Duration },
}

impl Talk {
    /// The hellos are complete; `ticketless` servers were seen to send no session tickets.
    pub fn agree(&mut self, agreement: Agreement, ticketless: bool) {
        // Also of a client that cannot use them and offers no PSK mode: OpenSSL sends it two all the same.
        let awaited = agreement.lengths.is_some() && !ticketless;
        self.tickets = if awaited { Tickets::Awaited } else { Tickets::Over };
        self.agreement = agreement;
    }

    /// The state of the tunnel while no record of the client is incomplete; `server_inside`: one of the server is.
    pub fn doing(&self, server_inside: bool) -> Doing {
        let sound = !server_inside && !self.odd;
        match self.turn {
            _ if self.has_parted() => Doing::Closing,
            Speaker::Unasked if sound => Doing::Unused,
            Speaker::Answered if sound && !self.agreement.unclear => Doing::Idle,
            Speaker::Unasked | Speaker::Unprompted | Speaker::Answered | Speaker::Answering => Doing::Unsure,
            Speaker::Asked | Speaker::Ticketed => Doing::InFlight,
        }
    }

    /// The content of the answer so far.
    pub fn answered(&self) -> u32 {
        self.answer.content()
    }

    /// Takes what the others can learn from the last exchange.
    pub fn take_lesson(&mut self) -> Option<Lesson> {
        self.lesson.take()
    }

    /// The last request and its answer, if that may be over; `server_inside` tells whether a record of it is cut.
    pub fn exchange(&self, server_inside: bool) -> Option<AnswerShape> {
        let may_be_over = matches!(self.turn, Speaker::Answered | Speaker::Answering)
            && !(server_inside || self.odd || self.agreement.unclear)
            && self.answer.content() > INTERIM;
        may_be_over.then(|| AnswerShape {
            request: self.request.content(),
            answer: self.answer.content(),
            head: self.answer.head(),
        })
    }

    /// Whether the answer ends with a short record where those are rare in the middle.
    pub fn ends_short(&self) -> bool {
        self.turn == Speaker::Answered && self.answer.ends_short()
    }

    /// Whether one side said goodbye and nothing is in flight.
    pub fn has_parted(&self) -> bool {
        self.parted.is_some()
    }

    /// Whether the server has been asked and has not begun to answer.
    pub fn is_asked(&self) -> bool {
        matches!(self.turn, Speaker::Asked | Speaker::Ticketed)
    }

    /// Whether the next answer is to the last request, as far as can be told.
    pub fn is_in_turn(&self) -> bool {
        self.is_asked() && !self.odd && !self.agreement.unclear
    }

    /// The content of the request, and of the answer so far.
    pub fn sizes(&self) -> (u32, u32) {
        (self.request.content(), self.answer.content())
    }

    /// Whether it may have answered, if what is presumed to be tickets was the answer.
    pub fn is_perhaps_answered(&self) -> bool {
        self.turn == Speaker::Ticketed
    }

    /// A data record of the client's begins; `server_inside` if it breaks into one of the server's.
    pub fn client_said(&mut self, length: u16, server_inside: bool) {
        if self.is(Lengths::is_alert, length) && self.nothing_in_flight() && self.parted != Some(Side::Client) {
            self.parted = Some(Side::Client);
            return;
        }
        self.parted = None;
        if self.is(Lengths::is_key_update, length) && !self.is_asked() {
            return self.interrupt();
        }
        if self.turn == Speaker::Ticketed && self.tickets_seen == 1 && self.request.is_one_like(length, REQUESTS_ALIKE)
        {
            // A next request, so what was taken for a ticket was the answer.
            self.lesson = Some(Lesson::NoTickets);
            self.request.next();
        }
        if matches!(self.turn, Speaker::Answered | Speaker::Answering) {
            self.lesson = self.exchange(server_inside).map(Lesson::Answer);
            self.request.next();
            self.answer.next();
            // A client that cannot have read the answer does not take turns.
            self.odd |= server_inside;
        }
        self.request_goes_on = self.request.note(length, self.agreement.added);
        self.turn = Speaker::Asked;
    }

    /// A data record of the server's begins at `began`.
    pub fn server_said(&mut self, length: u16, began: Duration) {
        if self.is(Lengths::is_alert, length) {
            // While something is in flight it may as well be data. If it is a goodbye, the FIN tells soon.
            if self.nothing_in_flight() {
                self.parted = Some(Side::Server);
            }
            return;
        }
        // In an answer that long a record is the last chunk, `0\r\n\r\n`; no server is known to update its keys there.
        let in_answer = matches!(self.turn, Speaker::Answered | Speaker::Answering);
        if self.is(Lengths::is_key_update, length) && !in_answer {
            return self.interrupt();
        }
        if self.presume_ticket(length, began) {
            self.tickets_seen = self.tickets_seen.saturating_add(1);
            if !self.is_asked() || self.tickets_seen > 1 {
                self.lesson = Some(Lesson::Tickets);
            }
            self.turn = if self.is_asked() { Speaker::Ticketed } else { self.turn };
            return;
        }
        if matches!(self.turn, Speaker::Unasked | Speaker::Unprompted) {
            return self.interrupt();
        }
        self.parted = None;
        let goes_on =
            self.answer.note(length, self.agreement.added) || self.request_goes_on || self.answer.content() <= INTERIM;
        self.turn = if goes_on { Speaker::Answering } else { Speaker::Answered };
    }

    /// The handshake goes on: what had been said was no goodbye.
    pub fn goes_on(&mut self) {
        self.parted = None;
    }

    /// An alert that is visible as such. They are closing ones and fatal ones, the harmless ones have died out.
    pub fn alert(&mut self, side: Side) {
        // After the server's goodbye comes no answer. The client's may leave its reading side open (RFC 8446, section
        // 6.1); if it does not, its end of the connection soon tells so.
        if side == Side::Server || self.nothing_in_flight() {
            self.parted = Some(side);
        }
    }

    /// A record that has no business after the handshake: renegotiation, say. None of it is an answer.
    pub fn oddity(&mut self, side: Side) {
        self.odd = true;
        self.parted = None;
        match side {
            Side::Client => self.turn = Speaker::Asked,
            Side::Server => self.interrupt(),
        }
    }

    /// The server said something that is neither answer nor end of one.
    fn interrupt(&mut self) {
        self.turn = match self.turn {
            Speaker::Unasked | Speaker::Unprompted => Speaker::Unprompted,
            Speaker::Asked | Speaker::Ticketed => self.turn,
            Speaker::Answered | Speaker::Answering => Speaker::Answering,
        };
    }

    /// Whether neither a request nor an answer is on its way, by all signs.
    fn nothing_in_flight(&self) -> bool {
        matches!(self.turn, Speaker::Unasked | Speaker::Unprompted | Speaker::Answered)
    }

    /// Whether a record of the server's is presumed to be a session ticket; notes that the tickets are over where not.
    fn presume_ticket(&mut self, length: u16, began: Duration) -> bool {
        let presumed = match self.tickets {
            Tickets::Over => false,
            Tickets::Awaited => {
                self.tickets = Tickets::Burst { length, began };
                return true;
            }
            Tickets::Burst { length: first, began: at } => {
                length.abs_diff(first) <= TICKETS_ALIKE && began.saturating_sub(at) <= TICKET_BURST
            }
        };
        if !presumed {
            self.tickets = Tickets::Over;
        }
        presumed
    }

    /// Whether `length` is that of such a record; before TLS 1.3 none needs to be guessed.
    fn is(&self, such: fn(Lengths, u16) -> bool, length: u16) -> bool {
        self.agreement.lengths.is_some_and(|lengths| such(lengths, length))
    }
}
