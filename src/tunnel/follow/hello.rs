//! A `ClientHello` or `ServerHello`, read byte by byte as it passes, across records and reads, without keeping it.
//!
//! RFC 8446, sections 4.1.2 and 4.1.3; TLS 1.2 has the same shape (RFC 5246, section 7.4.1). It reports
//! each fact at once; another file interprets it.

use super::framing::Side;

/// No hello is this long: with post-quantum key shares and a session ticket they have some thousand bytes.
const MAX_HELLO: u32 = 1 << 16;

/// Version, random, an empty session id, suite and compression.
const MIN_HELLO: u32 = 38;

/// The random of a `ServerHello` that is a `HelloRetryRequest` (RFC 8446, section 4.1.3).
const RETRY: [u32; 8] =
    [0xCF21_AD74, 0xE59A_6111, 0xBE1D_8C02, 0x1E65_B891, 0xC2A2_1116, 0x7ABB_8C5E, 0x079E_09E2, 0xC8A8_339C];

const ALPN: u32 = 16;
const EARLY_DATA: u32 = 42;
const SUPPORTED_VERSIONS: u32 = 43;
const POST_HANDSHAKE_AUTH: u32 = 49;
const ENCRYPTED_CLIENT_HELLO: u32 = 0xFE0D;

/// Something that a hello says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HelloFact {
    /// The server asks for another `ClientHello`.
    Retry,
    /// The server chose this cipher suite.
    Suite(u32),
    /// The server chose a version that has to be named in an extension: TLS 1.3 or later.
    NewVersion,
    /// HTTP/2 is among the protocols that the client offers, or is the one that the server chose.
    Http2,
    /// The client may send application data before the server has answered (RFC 8446, section 4.2.10).
    EarlyData,
    /// The client lets itself be asked for a certificate at any time (RFC 8446, section 4.2.6).
    LaterAuthentication,
    /// Further offers may be hidden in an encrypted hello (RFC 9849).
    Hidden,
}

/// The bytes are not the hello of that side.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Whether there is more to read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Done,
}

/// How far the reading of one hello has come.
#[derive(Clone, Debug)]
pub(super) struct Hello {
    step: HelloField,
    /// The field that is being read, as far as it has come, and how many bytes of it have.
    value: u32,
    have: u8,
    /// Bytes to pass over before the next field.
    skip: u32,
    /// Bytes left in the message, once its length is known.
    message: Option<u32>,
    /// Bytes left in the extension, inside one.
    extension: u32,
}

/// The field that comes next.
#[derive(Clone, Copy, Debug)]
enum HelloField {
    /// The type of the handshake message.
    Type,
    /// The length of the message.
    Length,
    /// The version of old; TLS 1.3 says 1.2 here.
    Version,
    /// The nth word of the random; whether all before were those of a `HelloRetryRequest`.
    Random(u8, bool),
    SessionIdLength,
    /// Client only: the length of its list of suites.
    SuitesLength,
    /// Client only: the length of its list of compression methods.
    CompressionsLength,
    /// Server only: its suite, and a byte of compression.
    Suite,
    ExtensionsLength,
    ExtensionType,
    /// The length of an extension of this type.
    ExtensionLength(u32),
    AlpnListLength,
    AlpnNameLength,
    /// A protocol's name that has two bytes.
    AlpnName,
    /// Server only: the version it chose.
    SelectedVersion,
}

impl Hello {
    pub fn new() -> Hello {
        Hello { step: HelloField::Type, value: 0, have: 0, skip: 0, message: None, extension: 0 }
    }

    /// Reads on. Bytes after the end of the hello are left alone.
    pub fn read(&mut self, from: Side, bytes: &[u8], mut found: impl FnMut(HelloFact)) -> Result<Progress, Malformed> {
        let mut at = 0;
        while self.message != Some(0) {
            let Some(byte) = bytes.get(at) else { return Ok(Progress::More) };
            if self.skip > 0 {
                let span = (bytes.len() - at).min(self.skip as usize);
                // No longer than `skip`, which is a u32.
                let passed = u32::try_from(span).unwrap_or(self.skip);
                self.skip -= passed;
                self.pass(passed)?;
                at += span;
                continue;
            }
            self.value = self.value << 8 | u32::from(*byte);
            self.have += 1;
            at += 1;
            self.pass(1)?;
            if self.have == self.step.width() {
                let value = std::mem::take(&mut self.value);
                self.have = 0;
                self.step = self.after(from, value, &mut found)?;
            }
        }
        // A hello may end where extensions could begin, and after any of them (RFC 5246, section 7.4.1.2).
        let whole = matches!(self.step, HelloField::ExtensionsLength | HelloField::ExtensionType) && self.have == 0;
        if whole { Ok(Progress::Done) } else { Err(Malformed) }
    }

    /// Counts bytes off the message and the extension that they are in.
    fn pass(&mut self, bytes: u32) -> Result<(), Malformed> {
        self.extension = self.extension.saturating_sub(bytes);
        if let Some(left) = &mut self.message {
            *left = left.checked_sub(bytes).ok_or(Malformed)?;
        }
        Ok(())
    }

    /// The step after the field of `step`, given its value.
    fn after(&mut self, from: Side, value: u32, found: &mut impl FnMut(HelloFact)) -> Result<HelloField, Malformed> {
        Ok(match (self.step, from) {
            (HelloField::Type, Side::Client) if value == 1 => HelloField::Length,
            (HelloField::Type, Side::Server) if value == 2 => HelloField::Length,
            (HelloField::Type, _) => return Err(Malformed),
            (HelloField::Length, _) if !(MIN_HELLO..=MAX_HELLO).contains(&value) => return Err(Malformed),
            (HelloField::Length, _) => {
                self.message = Some(value);
                HelloField::Version
            }
            (HelloField::Version, _) => HelloField::Random(0, true),
            (HelloField::Random(7, true), Side::Server) if value == RETRY[7] => {
                found(HelloFact::Retry);
                HelloField::SessionIdLength
            }
            (HelloField::Random(7, _), _) => HelloField::SessionIdLength,
            (HelloField::Random(at, so_far), _) => {
                HelloField::Random(at + 1, so_far && value == RETRY[usize::from(at)])
            }
            (HelloField::SessionIdLength, Side::Client) => self.over(value, HelloField::SuitesLength),
            (HelloField::SessionIdLength, Side::Server) => self.over(value, HelloField::Suite),
            (HelloField::SuitesLength, _) => self.over(value, HelloField::CompressionsLength),
            (HelloField::CompressionsLength, _) => self.over(value, HelloField::ExtensionsLength),
            (HelloField::Suite, _) => {
                found(HelloFact::Suite(value));
                self.over(1, HelloField::ExtensionsLength)
            }
            (HelloField::ExtensionsLength, _) => HelloField::ExtensionType,
            (HelloField::ExtensionType, _) => HelloField::ExtensionLength(value),
            (HelloField::ExtensionLength(extension), _) => self.extension(from, extension, value, found),
            (HelloField::AlpnListLength, _) => self.within_extension(HelloField::AlpnNameLength),
            (HelloField::AlpnNameLength, _) if value == 2 => self.within_extension(HelloField::AlpnName),
            (HelloField::AlpnNameLength, _) if value >= self.extension => {
                self.over(self.extension, HelloField::ExtensionType)
            }
            (HelloField::AlpnNameLength, _) => self.over(value, HelloField::AlpnNameLength),
            (HelloField::AlpnName, _) => {
                if value == u32::from(u16::from_be_bytes(*b"h2")) {
                    found(HelloFact::Http2);
                }
                self.within_extension(HelloField::AlpnNameLength)
            }
            (HelloField::SelectedVersion, _) => {
                found(HelloFact::NewVersion);
                self.over(self.extension, HelloField::ExtensionType)
            }
        })
    }

    /// An extension begins.
    fn extension(&mut self, from: Side, extension: u32, length: u32, found: &mut impl FnMut(HelloFact)) -> HelloField {
        match (extension, from) {
            (EARLY_DATA, Side::Client) => found(HelloFact::EarlyData),
            (POST_HANDSHAKE_AUTH, Side::Client) => found(HelloFact::LaterAuthentication),
            (ENCRYPTED_CLIENT_HELLO, Side::Client) => found(HelloFact::Hidden),
            _ => {}
        }
        self.extension = length;
        match (extension, from) {
            (ALPN, _) if length > 2 => HelloField::AlpnListLength,
            (SUPPORTED_VERSIONS, Side::Server) if length >= 2 => HelloField::SelectedVersion,
            _ => self.over(length, HelloField::ExtensionType),
        }
    }

    /// Passes over `bytes`, then goes on with `step`.
    fn over(&mut self, bytes: u32, step: HelloField) -> HelloField {
        self.skip = bytes;
        step
    }

    /// Goes on with `step` if the extension does.
    fn within_extension(&self, step: HelloField) -> HelloField {
        if self.extension > 0 { step } else { HelloField::ExtensionType }
    }
}

impl HelloField {
    /// How many bytes the field has.
    fn width(self) -> u8 {
        match self {
            HelloField::Type
            | HelloField::SessionIdLength
            | HelloField::CompressionsLength
            | HelloField::AlpnNameLength => 1,
            HelloField::Version
            | HelloField::SuitesLength
            | HelloField::Suite
            | HelloField::ExtensionsLength
            | HelloField::ExtensionType
            | HelloField::ExtensionLength(_)
            | HelloField::AlpnListLength
            | HelloField::AlpnName
            | HelloField::SelectedVersion => 2,
            HelloField::Length => 3,
            HelloField::Random(..) => 4,
        }
    }
}
