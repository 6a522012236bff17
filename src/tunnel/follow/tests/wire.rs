//! Bytes as TLS would put them on the wire. Bodies of encrypted records are zeros: nobody looks at them.

/// Lengths of records in TLS 1.3 with `TLS_AES_128_GCM_SHA256`.
pub const FINISHED: usize = 53;
pub const CLOSE_NOTIFY: usize = 19;
pub const KEY_UPDATE: usize = 22;
pub const END_OF_EARLY_DATA: usize = 21;
pub const NO_CERTIFICATE: usize = 25;
/// A `CertificateVerify` with an RSA key of 2,048 bits.
pub const CERTIFICATE_VERIFY: usize = 281;
/// A full record.
pub const FULL: usize = 16_401;

pub fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 3, 3];
    bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

pub fn change_cipher_spec() -> Vec<u8> {
    record(20, &[1])
}

pub fn alert() -> Vec<u8> {
    record(21, &[0; 26])
}

pub fn handshake(length: usize) -> Vec<u8> {
    record(22, &vec![0; length])
}

pub fn data(length: usize) -> Vec<u8> {
    record(23, &vec![0; length])
}

/// An extension of a hello.
pub type Extension = (u16, Vec<u8>);

pub fn alpn(names: &[&str]) -> Extension {
    let list: Vec<u8> = names.iter().flat_map(|name| with_length(1, name.as_bytes())).collect();
    (16, with_length(2, &list))
}

pub fn early_data() -> Extension {
    (42, Vec::new())
}

pub fn post_handshake_auth() -> Extension {
    (49, Vec::new())
}

pub fn client_hello_message(extensions: &[Extension]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend(with_length(1, &[9; 32]));
    body.extend(with_length(2, &[0x13, 1, 0x13, 2, 0xC0, 0x2F]));
    body.extend(with_length(1, &[0]));
    // Server name, a key share of a post-quantum size, and versions, as everybody sends them.
    let usual = [(0, vec![0; 14]), (51, vec![5; 1222]), (43, vec![4, 3, 4, 3, 3])];
    body.extend(with_length(2, &extension_bytes(usual.iter().chain(extensions))));
    message(1, &body)
}

pub fn client_hello(extensions: &[Extension]) -> Vec<u8> {
    record(22, &client_hello_message(extensions))
}

/// A `ServerHello` of TLS 1.2, and in the same record `rest` bytes of what follows it.
pub fn old_server_hello(extensions: &[Extension], rest: usize) -> Vec<u8> {
    let mut bytes = server_hello_message(0xC02F, [7; 32], extensions.iter());
    bytes.extend(vec![0; rest]);
    record(22, &bytes)
}

/// A `ServerHello` of TLS 1.3.
pub fn server_hello(suite: u16) -> Vec<u8> {
    let chosen = [(43, vec![3, 4]), (51, vec![5; 1124])];
    record(22, &server_hello_message(suite, [7; 32], chosen.iter()))
}

pub fn hello_retry_request() -> Vec<u8> {
    let random: [u8; 32] = [
        0xCF, 0x21, 0xAD, 0x74, 0xE5, 0x9A, 0x61, 0x11, 0xBE, 0x1D, 0x8C, 0x02, 0x1E, 0x65, 0xB8, 0x91, 0xC2, 0xA2,
        0x11, 0x16, 0x7A, 0xBB, 0x8C, 0x5E, 0x07, 0x9E, 0x09, 0xE2, 0xC8, 0xA8, 0x33, 0x9C,
    ];
    let chosen = [(43, vec![3, 4]), (51, vec![0, 29])];
    record(22, &server_hello_message(0x1301, random, chosen.iter()))
}

fn server_hello_message<'a>(suite: u16, random: [u8; 32], extensions: impl Iterator<Item = &'a Extension>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend(random);
    body.extend(with_length(1, &[9; 32]));
    body.extend(suite.to_be_bytes());
    body.push(0);
    body.extend(with_length(2, &extension_bytes(extensions)));
    message(2, &body)
}

fn extension_bytes<'a>(extensions: impl Iterator<Item = &'a Extension>) -> Vec<u8> {
    extensions.flat_map(|(kind, body)| [kind.to_be_bytes().to_vec(), with_length(2, body)].concat()).collect()
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [vec![kind], with_length(3, body)].concat()
}

/// `body` behind its length in `width` bytes.
fn with_length(width: usize, body: &[u8]) -> Vec<u8> {
    [&body.len().to_be_bytes()[8 - width..], body].concat()
}
