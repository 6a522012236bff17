//! The repository, and the tag or digest, that a visible request wants, from its path. Nothing of it is secret.
//!
//! Paths: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#endpoints>. A request for a token names the
//! repository in its scope.

use std::sync::Arc;

use hyper::Uri;

/// The longest text of one waiter.
const MAX_BYTES: usize = 512;

/// `library/app:1.25`, `library/app@sha256:...`, or `library/app`; `None` where no repository is named.
pub fn wanted(uri: &Uri) -> Option<Arc<str>> {
    let text = of_path(uri.path()).or_else(|| of_scope(uri.query()?))?;
    (!text.is_empty()).then(|| bounded(text).into())
}

/// Repository, and tag or digest, of such a text.
pub fn parts(wanted: &str) -> (&str, Option<&str>) {
    let end = wanted.find(['@', ':']).unwrap_or(wanted.len());
    (&wanted[..end], wanted.get(end + 1..).filter(|reference| !reference.is_empty()))
}

fn of_path(path: &str) -> Option<String> {
    const PARTS: [(&str, bool); 5] =
        [("/manifests/", true), ("/blobs/uploads", false), ("/blobs/", true), ("/tags/", false), ("/referrers/", true)];
    let path = path.strip_prefix("/v2/")?;
    let (at, (part, is_reference)) = path
        .rmatch_indices('/')
        .find_map(|(at, _)| Some((at, PARTS.iter().find(|(part, _)| path[at..].starts_with(part))?)))?;
    let (repository, reference) = (&path[..at], &path[at + part.len()..]);
    // A colon is in digests alone.
    let mark = if reference.contains(':') { '@' } else { ':' };
    let reference = reference.split('/').next().filter(|reference| *is_reference && !reference.is_empty());
    Some(reference.map_or_else(|| repository.to_owned(), |it| format!("{repository}{mark}{it}")))
}

/// `repository:library/app:pull`, the first of several.
fn of_scope(query: &str) -> Option<String> {
    let mut scopes = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "scope");
    let scope = scopes.find_map(|(_, scope)| Some(scope.strip_prefix("repository:")?.to_owned()))?;
    let name = scope.split(' ').next()?.rsplit_once(':')?.0.to_owned();
    // The query was decoded: what is no repository's name is not shown.
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte)).then_some(name)
}

/// The tail tells images apart.
fn bounded(text: String) -> String {
    let chars: Vec<char> = text.chars().collect();
    let (mut kept, mut start) = (0, chars.len());
    while start > 0 && kept + chars[start - 1].len_utf8() <= MAX_BYTES {
        start -= 1;
        kept += chars[start].len_utf8();
    }
    if start == 0 { text } else { chars[start..].iter().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_endpoint_names_its_repository() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (uri, expected) in [
            ("/v2/library/app/manifests/1.25", Some("library/app:1.25".to_owned())),
            (&*format!("/v2/app/manifests/{digest}"), Some(format!("app@{digest}"))),
            (&*format!("http://harbor/v2/a/b/c/blobs/{digest}?x=secret"), Some(format!("a/b/c@{digest}"))),
            ("/v2/a/blobs/uploads/", Some("a".to_owned())),
            ("/v2/a/blobs/uploads/3f2?_state=secret", Some("a".to_owned())),
            ("/v2/a/b/tags/list?n=3", Some("a/b".to_owned())),
            (&*format!("/v2/a/referrers/{digest}"), Some(format!("a@{digest}"))),
            ("/v2/blobs/manifests/manifests/1", Some("blobs/manifests:1".to_owned())),
            ("/v2/manifests/blobs/x", Some("manifests:x".to_owned())),
            (
                "/service/token?service=harbor&scope=repository%3Alibrary%2Fapp%3Apull&account=secret",
                Some("library/app".to_owned()),
            ),
            ("/service/token?scope=repository:a/b:pull+repository:c:pull", Some("a/b".to_owned())),
            ("/service/token?scope=registry:catalog:*", None),
            ("/service/token?scope=repository:%1b[2J:pull", None),
            ("/service/token?account=secret", None),
            ("/v2/", None),
            ("/v2/_catalog", None),
            ("/", None),
        ] {
            let found = wanted(&uri.parse().unwrap());
            assert_eq!(found.as_deref(), expected.as_deref(), "{uri}");
            assert!(!found.is_some_and(|found| found.contains("secret")), "{uri}");
        }
    }

    #[test]
    fn the_text_is_bounded_and_taken_apart() {
        let long = format!("/v2/{}/manifests/{}", "a/".repeat(2000), "t".repeat(200));
        let found = wanted(&long.parse().unwrap()).unwrap();
        assert!(found.len() <= MAX_BYTES && found.ends_with(&format!(":{}", "t".repeat(200))), "{found}");
        for (text, expected) in [
            ("a/b:1", ("a/b", Some("1"))),
            ("a/b@sha256:00", ("a/b", Some("sha256:00"))),
            ("a/b", ("a/b", None)),
            ("a:", ("a", None)),
        ] {
            assert_eq!(parts(text), expected);
        }
    }
}
