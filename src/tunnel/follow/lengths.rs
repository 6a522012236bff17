//! How long the small records of TLS 1.3 are, by cipher suite.
//!
//! An encrypted record holds its content, one byte of type, and the tag (RFC 8446, section 5.2). Padding is allowed and
//! nobody pads, so these lengths are hints: whoever uses them must be safe when they are wrong.

/// The bytes that a cipher suite adds, and the size of its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    /// The type byte and the tag.
    sealing: u16,
    /// The hash, which is the content of a Finished; 0 for a suite that is not known.
    hash: u16,
}

/// The bytes that a cipher suite of TLS 1.2 adds to a record: GCM and CCM an explicit nonce and a tag (RFC 5288, RFC 6655), `ChaCha20`
/// a tag (RFC 7905). Of CBC it varies, and the usual is told.
pub(super) fn added_before_1_3(suite: u32) -> u16 {
    match suite {
        0xCCA8..=0xCCAE => 16,
        0x009C..=0x00AD | 0xC02B..=0xC032 | 0xC09C..=0xC0AF => 24,
        _ => 48,
    }
}

/// Type and length of a handshake message.
const MESSAGE: u16 = 4;

/// Two empty lists in it.
const EMPTY_CERTIFICATE: u16 = MESSAGE + 4;

impl Lengths {
    /// Those of a suite of TLS 1.3 (RFC 8446, appendix B.4; RFC 8998).
    pub fn of(suite: u32) -> Lengths {
        match suite {
            0x1302 => Lengths { sealing: 17, hash: 48 },
            0x1301 | 0x1303 | 0x1304 | 0x00C6 | 0x00C7 => Lengths { sealing: 17, hash: 32 },
            0x1305 => Lengths { sealing: 9, hash: 32 },
            _ => Lengths { sealing: 17, hash: 0 },
        }
    }

    /// The bytes added to the content of a record.
    pub fn sealing(self) -> u16 {
        self.sealing
    }

    /// An alert, so most likely a `close_notify`; or two bytes of data.
    pub fn is_alert(self, length: u16) -> bool {
        length == self.sealing + 2
    }

    /// A `KeyUpdate` (RFC 8446, section 4.6.3); or five bytes of data.
    pub fn is_key_update(self, length: u16) -> bool {
        length == self.sealing + MESSAGE + 1
    }

    /// An `EndOfEarlyData` (section 4.5).
    pub fn is_end_of_early_data(self, length: u16) -> bool {
        length == self.sealing + MESSAGE
    }

    /// A Finished (section 4.4.4) alone.
    pub fn is_finished(self, length: u16) -> bool {
        self.hash > 0 && length == self.sealing + MESSAGE + self.hash
    }

    /// The Certificate of a client that has none (section 4.4.2) alone.
    pub fn is_empty_certificate(self, length: u16) -> bool {
        length == self.sealing + EMPTY_CERTIFICATE
    }

    /// The same and the Finished in one record, as rustls writes them.
    pub fn is_empty_certificate_and_finished(self, length: u16) -> bool {
        length.checked_sub(EMPTY_CERTIFICATE).is_some_and(|finished| self.is_finished(finished))
    }

    /// A `CertificateVerify` (section 4.4.3) alone: algorithm, length, and one of the usual signatures.
    pub fn is_certificate_verify(self, length: u16) -> bool {
        matches!(
            length.saturating_sub(self.sealing + MESSAGE + 4),
            // Ed25519 and Ed448; ECDSA over P-256, P-384, P-521, in DER that is some bytes shorter at times; RSA.
            64 | 114 | 66..=72 | 98..=104 | 132..=139 | 256 | 384 | 512
        )
    }
}
