//! The handshake: which record of the client's is the last one before its first request?
//!
//! That decides whether a tunnel is unused or has a request in flight, and the record types alone do not tell: TLS 1.3
//! sends its Finished and all requests as data. See RFC 8446, section 2 and appendix D.4, and RFC 5246, section 7.3.

use super::framing::{ContentType, RecordHeader, Side};
use super::hello::{Hello, HelloFact, Malformed, Progress};
use super::lengths::{Lengths, added_before_1_3};
use super::talk::Agreement;
use crate::reclaim::Doing;

/// How far it has come.
#[derive(Clone, Debug)]
pub(super) enum Handshake {
    /// No record has begun.
    Untouched,
    /// The `ClientHello` has begun; a `ServerHello` that is no `HelloRetryRequest` has not yet been read to its end.
    Greeting(Greeting),
    /// TLS 1.2 or older was chosen. Over when both sides have sent a Finished, in either order.
    Old { client: Half, server: Half },
    /// TLS 1.3 was chosen, and the client's Finished has not been seen for sure.
    New { flight: Flight, lengths: Lengths },
}

/// The hellos, while they are read.
#[derive(Clone, Debug)]
pub(super) struct Greeting {
    /// The first `ClientHello`; none once it has been read to its end. The second only repeats it (RFC 8446, section
    /// 4.1.2).
    client: Option<Hello>,
    /// Whether it offered early data.
    early_data: bool,
    /// Whether it offered HTTP/2.
    http2: bool,
    /// The `ServerHello`, and what it has said.
    server: Hello,
    choice: Choice,
    /// Whether there was a `HelloRetryRequest`.
    retried: bool,
    agreement: Agreement,
}

/// The content of a `ServerHello`.
#[derive(Clone, Debug, Default)]
struct Choice {
    /// It is a `HelloRetryRequest`.
    retry: bool,
    /// The version is 1.3.
    new_version: bool,
    /// The cipher suite.
    suite: u32,
}

/// One side of a handshake of TLS 1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// It sends plaintext.
    Plain,
    /// It has sent its `ChangeCipherSpec`: the next handshake record is its Finished.
    Changed,
    /// It has sent its Finished.
    Finished,
}

/// The records of a TLS 1.3 client since the `ServerHello`, without `ChangeCipherSpec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flight {
    /// Nothing: the rest of the server's flight is on its way.
    Awaited,
    /// It offered early data and may be sending it, accepted or not.
    Early,
    /// The `EndOfEarlyData`: nothing but the Finished may follow.
    EarlyEnded,
    /// A Certificate without certificates: the Finished follows.
    NoCertificate,
    /// One record that is no Finished alone: a Certificate, or all of a flight in one record. Nothing was asked so far.
    Certificate,
    /// After that one a record of this length that may be a `CertificateVerify`; or a request, if the flight was
    /// complete.
    CertificateVerify(u16),
}

/// The role of a record in the handshake.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HandshakePart {
    /// A part of it that is not the last.
    Middle,
    /// Not a part of it, though it is not over: an alert, early data, a request sent before the server's Finished.
    None,
    /// Its last record.
    Last,
    /// It had been over before this record, and the client had even sent a request of the length `asked`.
    WasOver { asked: Option<u16> },
    /// A record that must not come here.
    Unexpected,
}

impl Handshake {
    pub fn new() -> Handshake {
        Handshake::Untouched
    }

    /// The state of the tunnel while no record of the client is incomplete; `server_inside`: one of the server is.
    pub fn doing(&self, server_inside: bool) -> Doing {
        match self {
            Handshake::Untouched if server_inside => Doing::Unsure,
            Handshake::Untouched => Doing::Unused,
            // Complete or not, it holds no request.
            Handshake::New { flight: Flight::Certificate, .. } => Doing::Unsure,
            Handshake::Greeting(_) | Handshake::Old { .. } | Handshake::New { .. } => Doing::InFlight,
        }
    }

    /// A record begins. All moves but that of a complete `ServerHello` are made here.
    pub fn record(&mut self, side: Side, header: RecordHeader) -> HandshakePart {
        match self {
            Handshake::Untouched if (side, header.content) == (Side::Client, ContentType::Handshake) => {
                *self = Handshake::Greeting(Greeting::new());
                HandshakePart::Middle
            }
            Handshake::Untouched => HandshakePart::Unexpected,
            Handshake::Greeting(greeting) => greeting.record(side, header.content),
            Handshake::Old { client, server } => {
                let half = if side == Side::Client { &mut *client } else { &mut *server };
                let meaning = half.record(side, header.content);
                let over = (*client, *server) == (Half::Finished, Half::Finished);
                if over { HandshakePart::Last } else { meaning }
            }
            Handshake::New { flight, lengths } => match (header.content, side) {
                (ContentType::ChangeCipherSpec, _) => HandshakePart::Middle,
                (ContentType::Alert, _) => HandshakePart::None,
                (ContentType::Handshake, _) => HandshakePart::Unexpected,
                (ContentType::Data, Side::Client) => flight.client(header.length, *lengths),
                (ContentType::Data, Side::Server) => flight.server(header.length, *lengths),
            },
        }
    }

    /// Bytes of a handshake record. Returns the agreement once both sides have sent theirs.
    pub fn read(&mut self, side: Side, bytes: &[u8]) -> Result<Option<Agreement>, Malformed> {
        let Handshake::Greeting(greeting) = self else { return Ok(None) };
        if !greeting.read(side, bytes)? {
            return Ok(None);
        }
        let agreement = greeting.agreement;
        let flight = greeting.flight();
        *self = match agreement.lengths {
            Some(lengths) => Handshake::New { flight, lengths },
            None => Handshake::Old { client: Half::Plain, server: Half::Plain },
        };
        Ok(Some(agreement))
    }
}

impl Greeting {
    fn new() -> Greeting {
        Greeting {
            client: Some(Hello::new()),
            early_data: false,
            http2: false,
            server: Hello::new(),
            choice: Choice::default(),
            retried: false,
            agreement: Agreement::default(),
        }
    }

    fn record(&self, side: Side, content: ContentType) -> HandshakePart {
        match (content, side) {
            // A second ClientHello, and what stands beside it in appendix D.4 of RFC 8446.
            (ContentType::Handshake | ContentType::ChangeCipherSpec, _) => HandshakePart::Middle,
            (ContentType::Alert, _) => HandshakePart::None,
            // A request, whatever the server will make of it.
            (ContentType::Data, Side::Client) if self.early_data => HandshakePart::None,
            (ContentType::Data, _) => HandshakePart::Unexpected,
        }
    }

    /// Reads on; true when the `ServerHello` is complete and final.
    fn read(&mut self, side: Side, bytes: &[u8]) -> Result<bool, Malformed> {
        match (side, &mut self.client) {
            (Side::Client, Some(_)) => self.read_client(bytes).map(|()| false),
            (Side::Client, None) => Ok(false),
            (Side::Server, Some(_)) => Err(Malformed),
            (Side::Server, None) => self.read_server(bytes),
        }
    }

    fn read_client(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let Some(hello) = &mut self.client else { return Ok(()) };
        let (agreement, early_data, http2) = (&mut self.agreement, &mut self.early_data, &mut self.http2);
        let progress = hello.read(Side::Client, bytes, |finding| match finding {
            HelloFact::EarlyData => *early_data = true,
            HelloFact::Http2 => *http2 = true,
            HelloFact::LaterAuthentication | HelloFact::Hidden => agreement.unclear = true,
            HelloFact::Retry | HelloFact::Suite(_) | HelloFact::NewVersion => {}
        })?;
        if progress == Progress::Done {
            self.client = None;
        }
        Ok(())
    }

    fn read_server(&mut self, bytes: &[u8]) -> Result<bool, Malformed> {
        let (agreement, choice) = (&mut self.agreement, &mut self.choice);
        let progress = self.server.read(Side::Server, bytes, |finding| match finding {
            HelloFact::Retry => choice.retry = true,
            HelloFact::NewVersion => choice.new_version = true,
            HelloFact::Suite(suite) => choice.suite = suite,
            HelloFact::Http2 => agreement.unclear = true,
            HelloFact::EarlyData | HelloFact::LaterAuthentication | HelloFact::Hidden => {}
        })?;
        if progress == Progress::More {
            return Ok(false);
        }
        let Choice { retry, new_version, suite } = std::mem::take(&mut self.choice);
        if retry && !self.retried {
            self.retried = true;
            self.server = Hello::new();
            return Ok(false);
        }
        // In TLS 1.2 the server's hello says which protocol was chosen; in 1.3 that is encrypted.
        self.agreement.unclear |= new_version && self.http2;
        self.agreement.lengths = new_version.then(|| Lengths::of(suite));
        self.agreement.added = self.agreement.lengths.map_or_else(|| added_before_1_3(suite), Lengths::sealing);
        Ok(true)
    }

    /// The client's first records after the final `ServerHello`.
    fn flight(&self) -> Flight {
        // A retry voids early data. The request in it comes again, so what was asked stays asked (RFC 8446, section
        // 4.1.2).
        if self.early_data && !self.retried { Flight::Early } else { Flight::Awaited }
    }
}

impl Half {
    fn record(&mut self, side: Side, content: ContentType) -> HandshakePart {
        match (content, *self) {
            (ContentType::Alert, _) => return HandshakePart::None,
            // False start (RFC 7918): the client need not wait for the server's Finished.
            (ContentType::Data, Half::Finished) if side == Side::Client => return HandshakePart::None,
            (ContentType::Handshake, Half::Plain) => {}
            (ContentType::ChangeCipherSpec, Half::Plain) => *self = Half::Changed,
            (ContentType::Handshake, Half::Changed) => *self = Half::Finished,
            _ => return HandshakePart::Unexpected,
        }
        HandshakePart::Middle
    }
}

impl Flight {
    /// A data record of the client's.
    fn client(&mut self, length: u16, lengths: Lengths) -> HandshakePart {
        match *self {
            Flight::Awaited | Flight::EarlyEnded | Flight::NoCertificate if lengths.is_finished(length) => {
                return HandshakePart::Last;
            }
            // It does not like the server's certificate, say.
            Flight::Awaited | Flight::Certificate if lengths.is_alert(length) => return HandshakePart::None,
            Flight::Awaited if lengths.is_empty_certificate_and_finished(length) => return HandshakePart::Last,
            Flight::Awaited if lengths.is_empty_certificate(length) => *self = Flight::NoCertificate,
            Flight::Awaited => *self = Flight::Certificate,
            Flight::Early if lengths.is_end_of_early_data(length) => *self = Flight::EarlyEnded,
            // The Finished of a client whose early data was refused; or early data of the same length.
            Flight::Early if lengths.is_finished(length) => return HandshakePart::Unexpected,
            Flight::Early => return HandshakePart::None,
            Flight::EarlyEnded | Flight::NoCertificate => return HandshakePart::Unexpected,
            Flight::Certificate if lengths.is_certificate_verify(length) => *self = Flight::CertificateVerify(length),
            Flight::Certificate => return HandshakePart::WasOver { asked: None },
            // Or a request of just that length and a second record of just this one, after a flight in one record.
            Flight::CertificateVerify(_) if lengths.is_finished(length) => return HandshakePart::Last,
            Flight::CertificateVerify(before) => return HandshakePart::WasOver { asked: Some(before) },
        }
        HandshakePart::Middle
    }

    /// A data record of the server's. Until it has the client's Finished it sends nothing after its own, early data
    /// apart, and the client sends none of its flight before it has that: so the order here tells.
    fn server(self, length: u16, lengths: Lengths) -> HandshakePart {
        match self {
            Flight::Awaited if lengths.is_alert(length) => HandshakePart::None,
            Flight::Awaited | Flight::Early | Flight::EarlyEnded | Flight::NoCertificate => HandshakePart::Middle,
            Flight::Certificate => HandshakePart::WasOver { asked: None },
            Flight::CertificateVerify(before) => HandshakePart::WasOver { asked: Some(before) },
        }
    }
}
