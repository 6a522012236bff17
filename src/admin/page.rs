//! The live page: one file, and a policy that lets nothing else in.
//!
//! Script and style are named by their hash, so that nothing that reaches the page as text could ever run.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY};
use hyper::{Response, StatusCode};
use ring::digest::{SHA256, digest};

use super::answer::response;

const PAGE: &str = include_str!("page.html");

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        hash_of("script"),
        hash_of("style"),
    );
    HeaderValue::try_from(policy).expect("a policy is plain text")
});

pub fn page() -> Response<Full<Bytes>> {
    let mut page = response(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    let headers = page.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    page
}

/// The source in the policy for the content of the one element of this kind.
fn hash_of(element: &str) -> String {
    let (_, rest) = PAGE.split_once(&format!("<{element}>")).expect("the page has one");
    let (inner, _) = rest.split_once(&format!("</{element}>")).expect("it is closed");
    format!("'sha256-{}'", BASE64_STANDARD.encode(digest(&SHA256, inner.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_makes_no_markup_of_text() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
        }
        let namespace = "http://www.w3.org/2000/svg";
        let text = PAGE.replace(namespace, "");
        for foreign in ["http://", "https://", "//cdn", "@import", "innerHTML", "outerHTML", "insertAdjacent", "eval("]
        {
            assert!(!text.contains(foreign), "{foreign}");
        }
    }
}
