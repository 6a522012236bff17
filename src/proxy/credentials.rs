//! The name that a client gives itself: the user name of the proxy URL.
//!
//! Credentials come in, a name goes out; the password is never stored, logged or compared.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Longest name that is taken; longer ones are cut.
const MOST_CHARS: usize = 64;

/// The user name in a `Proxy-Authorization: Basic` header. `None` when there is none, or none that can be read: where
/// no password is asked for, bad credentials are no reason to refuse.
pub fn user_name(proxy_authorization: &[u8]) -> Option<String> {
    let (scheme, encoded) = std::str::from_utf8(proxy_authorization).ok()?.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let name = text.split_once(':').map_or(text.as_str(), |(name, _)| name);
    let printable: String = name.chars().filter(|char| !char.is_control()).take(MOST_CHARS).collect();
    (!printable.is_empty()).then_some(printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(credentials: &str) -> Vec<u8> {
        format!("Basic {}", BASE64_STANDARD.encode(credentials)).into_bytes()
    }

    #[test]
    fn the_name_is_read_and_the_password_is_not() {
        for (credentials, name) in [
            ("kubelet:x", Some("kubelet")),
            ("kubelet:", Some("kubelet")),
            ("kubelet", Some("kubelet")),
            ("a:b:c", Some("a")),
            (":x", None),
            ("line\nbreak:x", Some("linebreak")),
        ] {
            assert_eq!(user_name(&basic(credentials)).as_deref(), name, "{credentials:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_no_name() {
        for value in [&b"Bearer abc"[..], b"Basic", b"Basic ***", b"\xff\xfe", b""] {
            assert_eq!(user_name(value), None);
        }
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(user_name(&basic(&"n".repeat(1000))).unwrap().len(), MOST_CHARS);
    }
}
