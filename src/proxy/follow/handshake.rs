//! The handshake: which record of the client's is the last one before its first request?
//!
//! That decides whether a tunnel is unused or has a request in flight, and the record types alone do not tell: TLS 1.3
//! sends its Finished and all requests as data. See RFC 8446, section 2 and appendix D.4, and RFC 5246, section 7.3.

use super::hello::{Finding, Hello, Malformed, Progress};
use super::lengths::Lengths;
use super::talk::Terms;
use super::{Doing, Header, Kind, Side};

/// How far it has come.
#[derive(Debug)]
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
#[derive(Debug)]
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
    terms: Terms,
}

/// What a `ServerHello` says.
#[derive(Debug, Default)]
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

/// What the client of TLS 1.3 has sent since the `ServerHello`, not counting `ChangeCipherSpec`.
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

/// What a record is, seen from the handshake.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A part of it that is not the last.
    Handshake,
    /// Not a part of it, though it is not over: an alert, early data, a request sent before the server's Finished.
    Early,
    /// Its last record.
    Over,
    /// It had been over before this record, and the client had even sent a request of the length `asked`.
    WasOver { asked: Option<u16> },
    /// What must not come here.
    Unexpected,
}

impl Handshake {
    pub fn new() -> Handshake {
        Handshake::Untouched
    }

    /// What the tunnel is doing when no record of the client's is cut; `server_inside` tells of the server's.
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
    pub fn record(&mut self, side: Side, header: Header) -> Meaning {
        match self {
            Handshake::Untouched if (side, header.kind) == (Side::Client, Kind::Handshake) => {
                *self = Handshake::Greeting(Greeting::new());
                Meaning::Handshake
            }
            Handshake::Untouched => Meaning::Unexpected,
            Handshake::Greeting(greeting) => greeting.record(side, header.kind),
            Handshake::Old { client, server } => {
                let half = if side == Side::Client { &mut *client } else { &mut *server };
                let meaning = half.record(side, header.kind);
                let over = (*client, *server) == (Half::Finished, Half::Finished);
                if over { Meaning::Over } else { meaning }
            }
            Handshake::New { flight, lengths } => match (header.kind, side) {
                (Kind::ChangeCipherSpec, _) => Meaning::Handshake,
                (Kind::Alert, _) => Meaning::Early,
                (Kind::Handshake, _) => Meaning::Unexpected,
                (Kind::Data, Side::Client) => flight.client(header.length, *lengths),
                (Kind::Data, Side::Server) => flight.server(header.length, *lengths),
            },
        }
    }

    /// Bytes of a handshake record. The terms once both sides have said which they are.
    pub fn read(&mut self, side: Side, bytes: &[u8]) -> Result<Option<Terms>, Malformed> {
        let Handshake::Greeting(greeting) = self else { return Ok(None) };
        if !greeting.read(side, bytes)? {
            return Ok(None);
        }
        let terms = greeting.terms;
        let flight = greeting.flight();
        *self = match terms.lengths {
            Some(lengths) => Handshake::New { flight, lengths },
            None => Handshake::Old { client: Half::Plain, server: Half::Plain },
        };
        Ok(Some(terms))
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
            terms: Terms::default(),
        }
    }

    fn record(&self, side: Side, kind: Kind) -> Meaning {
        match (kind, side) {
            // A second ClientHello, and what stands beside it in appendix D.4 of RFC 8446.
            (Kind::Handshake | Kind::ChangeCipherSpec, _) => Meaning::Handshake,
            (Kind::Alert, _) => Meaning::Early,
            // A request, whatever the server will make of it.
            (Kind::Data, Side::Client) if self.early_data => Meaning::Early,
            (Kind::Data, _) => Meaning::Unexpected,
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
        let (terms, early_data, http2) = (&mut self.terms, &mut self.early_data, &mut self.http2);
        let progress = hello.read(Side::Client, bytes, |finding| match finding {
            Finding::EarlyData => *early_data = true,
            Finding::Http2 => *http2 = true,
            Finding::LaterAuthentication | Finding::Hidden => terms.unclear = true,
            Finding::Retry | Finding::Suite(_) | Finding::NewVersion => {}
        })?;
        if progress == Progress::Done {
            self.client = None;
        }
        Ok(())
    }

    fn read_server(&mut self, bytes: &[u8]) -> Result<bool, Malformed> {
        let (terms, choice) = (&mut self.terms, &mut self.choice);
        let progress = self.server.read(Side::Server, bytes, |finding| match finding {
            Finding::Retry => choice.retry = true,
            Finding::NewVersion => choice.new_version = true,
            Finding::Suite(suite) => choice.suite = suite,
            Finding::Http2 => terms.unclear = true,
            Finding::EarlyData | Finding::LaterAuthentication | Finding::Hidden => {}
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
        self.terms.unclear |= new_version && self.http2;
        self.terms.lengths = new_version.then(|| Lengths::of(suite));
        Ok(true)
    }

    /// What the client sends first after the final `ServerHello`.
    fn flight(&self) -> Flight {
        // A retry voids early data. The request in it comes again, so what was asked stays asked (RFC 8446, section
        // 4.1.2).
        if self.early_data && !self.retried { Flight::Early } else { Flight::Awaited }
    }
}

impl Half {
    fn record(&mut self, side: Side, kind: Kind) -> Meaning {
        match (kind, *self) {
            (Kind::Alert, _) => return Meaning::Early,
            // False start (RFC 7918): the client need not wait for the server's Finished.
            (Kind::Data, Half::Finished) if side == Side::Client => return Meaning::Early,
            (Kind::Handshake, Half::Plain) => {}
            (Kind::ChangeCipherSpec, Half::Plain) => *self = Half::Changed,
            (Kind::Handshake, Half::Changed) => *self = Half::Finished,
            _ => return Meaning::Unexpected,
        }
        Meaning::Handshake
    }
}

impl Flight {
    /// A data record of the client's.
    fn client(&mut self, length: u16, lengths: Lengths) -> Meaning {
        match *self {
            Flight::Awaited | Flight::EarlyEnded | Flight::NoCertificate if lengths.is_finished(length) => {
                return Meaning::Over;
            }
            // It does not like the server's certificate, say.
            Flight::Awaited | Flight::Certificate if lengths.is_alert(length) => return Meaning::Early,
            Flight::Awaited if lengths.is_empty_certificate_and_finished(length) => return Meaning::Over,
            Flight::Awaited if lengths.is_empty_certificate(length) => *self = Flight::NoCertificate,
            Flight::Awaited => *self = Flight::Certificate,
            Flight::Early if lengths.is_end_of_early_data(length) => *self = Flight::EarlyEnded,
            // The Finished of a client whose early data was refused; or early data of the same length.
            Flight::Early if lengths.is_finished(length) => return Meaning::Unexpected,
            Flight::Early => return Meaning::Early,
            Flight::EarlyEnded | Flight::NoCertificate => return Meaning::Unexpected,
            Flight::Certificate if lengths.is_certificate_verify(length) => *self = Flight::CertificateVerify(length),
            Flight::Certificate => return Meaning::WasOver { asked: None },
            // Or a request of just that length and a second record of just this one, after a flight in one record.
            Flight::CertificateVerify(_) if lengths.is_finished(length) => return Meaning::Over,
            Flight::CertificateVerify(before) => return Meaning::WasOver { asked: Some(before) },
        }
        Meaning::Handshake
    }

    /// A data record of the server's. Until it has the client's Finished it sends nothing after its own, early data
    /// apart, and the client sends none of its flight before it has that: so the order here tells.
    fn server(self, length: u16, lengths: Lengths) -> Meaning {
        match self {
            Flight::Awaited if lengths.is_alert(length) => Meaning::Early,
            Flight::Awaited | Flight::Early | Flight::EarlyEnded | Flight::NoCertificate => Meaning::Handshake,
            Flight::Certificate => Meaning::WasOver { asked: None },
            Flight::CertificateVerify(before) => Meaning::WasOver { asked: Some(before) },
        }
    }
}
