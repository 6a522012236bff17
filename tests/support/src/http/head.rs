//! The head of a request or an answer: its first line and its headers, with the raw text kept.
//!
//! Tests look at what really went over the connection, so nothing is folded, sorted or put into another case.

use std::io;

/// A head as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    raw: String,
}

/// How many bytes the first head in `bytes` takes, its empty line included; `None` while it is not whole.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

impl Head {
    /// Takes a whole head.
    ///
    /// # Errors
    /// When it is not text, or its first line is a single word.
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        let raw = String::from_utf8(bytes.to_vec()).map_err(invalid)?;
        let head = Self { raw };
        if head.first_line().splitn(3, ' ').count() < 2 {
            return Err(invalid(format!("not a head: {:?}", head.first_line())));
        }
        Ok(head)
    }

    /// The bytes as they came.
    #[must_use]
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// The request line or the status line.
    #[must_use]
    pub fn first_line(&self) -> &str {
        self.raw.split("\r\n").next().unwrap_or_default()
    }

    /// One of the first line's three parts, empty where it is missing.
    fn part(&self, index: usize) -> &str {
        self.first_line().splitn(3, ' ').nth(index).unwrap_or_default()
    }

    /// The method of a request.
    #[must_use]
    pub fn method(&self) -> &str {
        self.part(0)
    }

    /// The target of a request, in whatever form it has.
    #[must_use]
    pub fn target(&self) -> &str {
        self.part(1)
    }

    /// The status code of an answer; 0 where there is none.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.part(1).parse().unwrap_or(0)
    }

    /// The reason phrase of an answer.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.part(2)
    }

    /// All headers in their order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.raw.split("\r\n").skip(1);
        lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim()))
    }

    /// The value of the first header of this name, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Whether a header of this name lists `token`.
    #[must_use]
    pub fn lists(&self, name: &str, token: &str) -> bool {
        let values = self.headers().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        values.flat_map(|(_, value)| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 503 Queue Full\r\nretry-after: 7\r\nConnection: Keep-Alive, close\r\n\r\nrest";

    #[test]
    fn an_answer_shows_its_parts() {
        let end = length(ANSWER).unwrap();
        assert_eq!(&ANSWER[end..], b"rest");
        let head = Head::parse(&ANSWER[..end]).unwrap();
        assert_eq!((head.status(), head.reason()), (503, "Queue Full"));
        assert_eq!(head.header("Retry-After"), Some("7"));
        assert_eq!(head.header("Content-Length"), None);
        assert!(head.lists("connection", "close"));
        assert!(!head.lists("connection", "upgrade"));
    }

    #[test]
    fn half_a_head_is_none_yet() {
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nA: b\r\n"), None);
        assert!(Head::parse(b"nonsense\r\n\r\n").is_err());
    }
}
