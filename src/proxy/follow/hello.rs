//! A `ClientHello` or `ServerHello`, read byte by byte as it passes, across records and reads, without keeping it.
//!
//! RFC 8446, sections 4.1.2 and 4.1.3; TLS 1.2 has the same shape (RFC 5246, section 7.4.1). What it finds it tells at
//! once; who asks what it means is another matter.

use super::Side;

/// No hello is this long: with post-quantum key shares and a session ticket they have some thousand bytes.
const LONGEST: u32 = 1 << 16;

/// Version, random, an empty session id, suite and compression.
const SHORTEST: u32 = 38;

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
pub(super) enum Finding {
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
    /// What else is offered may be hidden in an encrypted hello (RFC 9849).
    Hidden,
}

/// What was fed is not the hello of that side.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Whether there is more to read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Done,
}

/// How far the reading of one hello has come.
#[derive(Debug)]
pub(super) struct Hello {
    step: Step,
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
enum Step {
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
        Hello { step: Step::Type, value: 0, have: 0, skip: 0, message: None, extension: 0 }
    }

    /// Reads on. Bytes after the end of the hello are left alone.
    pub fn read(&mut self, from: Side, bytes: &[u8], mut found: impl FnMut(Finding)) -> Result<Progress, Malformed> {
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
        let whole = matches!(self.step, Step::ExtensionsLength | Step::ExtensionType) && self.have == 0;
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

    /// What comes after the field that `step` names, given its value.
    fn after(&mut self, from: Side, value: u32, found: &mut impl FnMut(Finding)) -> Result<Step, Malformed> {
        Ok(match (self.step, from) {
            (Step::Type, Side::Client) if value == 1 => Step::Length,
            (Step::Type, Side::Server) if value == 2 => Step::Length,
            (Step::Type, _) => return Err(Malformed),
            (Step::Length, _) if !(SHORTEST..=LONGEST).contains(&value) => return Err(Malformed),
            (Step::Length, _) => {
                self.message = Some(value);
                Step::Version
            }
            (Step::Version, _) => Step::Random(0, true),
            (Step::Random(7, true), Side::Server) if value == RETRY[7] => {
                found(Finding::Retry);
                Step::SessionIdLength
            }
            (Step::Random(7, _), _) => Step::SessionIdLength,
            (Step::Random(at, so_far), _) => Step::Random(at + 1, so_far && value == RETRY[usize::from(at)]),
            (Step::SessionIdLength, Side::Client) => self.over(value, Step::SuitesLength),
            (Step::SessionIdLength, Side::Server) => self.over(value, Step::Suite),
            (Step::SuitesLength, _) => self.over(value, Step::CompressionsLength),
            (Step::CompressionsLength, _) => self.over(value, Step::ExtensionsLength),
            (Step::Suite, _) => {
                found(Finding::Suite(value));
                self.over(1, Step::ExtensionsLength)
            }
            (Step::ExtensionsLength, _) => Step::ExtensionType,
            (Step::ExtensionType, _) => Step::ExtensionLength(value),
            (Step::ExtensionLength(extension), _) => self.extension(from, extension, value, found),
            (Step::AlpnListLength, _) => self.within_extension(Step::AlpnNameLength),
            (Step::AlpnNameLength, _) if value == 2 => self.within_extension(Step::AlpnName),
            (Step::AlpnNameLength, _) if value >= self.extension => self.over(self.extension, Step::ExtensionType),
            (Step::AlpnNameLength, _) => self.over(value, Step::AlpnNameLength),
            (Step::AlpnName, _) => {
                if value == u32::from(u16::from_be_bytes(*b"h2")) {
                    found(Finding::Http2);
                }
                self.within_extension(Step::AlpnNameLength)
            }
            (Step::SelectedVersion, _) => {
                found(Finding::NewVersion);
                self.over(self.extension, Step::ExtensionType)
            }
        })
    }

    /// An extension begins.
    fn extension(&mut self, from: Side, extension: u32, length: u32, found: &mut impl FnMut(Finding)) -> Step {
        match (extension, from) {
            (EARLY_DATA, Side::Client) => found(Finding::EarlyData),
            (POST_HANDSHAKE_AUTH, Side::Client) => found(Finding::LaterAuthentication),
            (ENCRYPTED_CLIENT_HELLO, Side::Client) => found(Finding::Hidden),
            _ => {}
        }
        self.extension = length;
        match (extension, from) {
            (ALPN, _) if length > 2 => Step::AlpnListLength,
            (SUPPORTED_VERSIONS, Side::Server) if length >= 2 => Step::SelectedVersion,
            _ => self.over(length, Step::ExtensionType),
        }
    }

    /// Passes over `bytes`, then goes on with `step`.
    fn over(&mut self, bytes: u32, step: Step) -> Step {
        self.skip = bytes;
        step
    }

    /// Goes on with `step` if the extension does.
    fn within_extension(&self, step: Step) -> Step {
        if self.extension > 0 { step } else { Step::ExtensionType }
    }
}

impl Step {
    /// How many bytes the field has.
    fn width(self) -> u8 {
        match self {
            Step::Type | Step::SessionIdLength | Step::CompressionsLength | Step::AlpnNameLength => 1,
            Step::Version
            | Step::SuitesLength
            | Step::Suite
            | Step::ExtensionsLength
            | Step::ExtensionType
            | Step::ExtensionLength(_)
            | Step::AlpnListLength
            | Step::AlpnName
            | Step::SelectedVersion => 2,
            Step::Length => 3,
            Step::Random(..) => 4,
        }
    }
}
