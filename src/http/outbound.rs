//! A request as it goes to the registry.

use hyper::body::{Body, Incoming};
use hyper::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, RANGE,
};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Uri, Version};

use super::hop_by_hop::strip_request;
use crate::admission::{Lane, ReuseKey};
use crate::metrics::Reason;
use crate::proxy::Proxy;
use crate::proxy::mirror::Mirror;
use crate::proxy::record::Carried;
use crate::proxy::respond::Answer;
use crate::target::Origin;
use crate::upstream::request_body::RequestBody;

/// The longest form in which a token is asked for.
const MAX_FORM: usize = 16 * 1024;

/// A request on its way out, without its body: it does not change from one try to the next.
#[derive(Clone, Debug)]
pub struct Outbound {
    head: Box<Parts>,
    key: ReuseKey,
    lane: Lane,
    /// Whether it may be sent more than once: nothing changes by it, or it is a form that asks for a token, of which a copy is kept.
    repeatable: bool,
    /// Whether it asks for the rest of a blob that broke off.
    is_rest: bool,
}

impl Outbound {
    /// The request for an absolute URL, and where it goes.
    pub fn of_absolute(
        request: Request<Incoming>,
        proxy: &Proxy,
        carried: Carried,
    ) -> Result<(Outbound, RequestBody, Origin), Answer> {
        let origin = origin_of(request.uri()).map_err(bad)?;
        // RFC 9112, section 3.2.2: the Host that came with an absolute URL is ignored.
        let host = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        let host = host.ok_or_else(|| bad("the URL names no host"))?;
        let key = ReuseKey::from(origin.to_string());
        let (outbound, body) = Outbound::of(request, proxy, host, key, carried)?;
        Ok((outbound, body, origin))
    }

    /// The request that came to a mirror.
    pub fn of_origin_form(
        request: Request<Incoming>,
        proxy: &Proxy,
        mirror: &Mirror,
        carried: Carried,
    ) -> Result<(Outbound, RequestBody), Answer> {
        if !request.uri().path().starts_with('/') {
            return Err(bad("this is a registry mirror: ask it for /v2/..., and point HTTP_PROXY at listen.proxy"));
        }
        if let Some(objection) = mirror.objection(&request) {
            return Err(Answer::plain(Reason::DestinationDenied, objection));
        }
        Outbound::of(request, proxy, mirror.host().clone(), mirror.key().clone(), carried)
    }

    fn of(
        request: Request<Incoming>,
        proxy: &Proxy,
        host: HeaderValue,
        key: ReuseKey,
        carried: Carried,
    ) -> Result<(Outbound, RequestBody), Answer> {
        if proxy.has_signed(request.headers()) {
            return Err(Answer::plain(Reason::LoopDetected, "this request came through this proxy before"));
        }
        let (mut head, body) = request.into_parts();
        strip_request(&mut head.headers);
        proxy.sign(&mut head.headers);
        head.headers.insert(HOST, host);
        head.uri = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")).into();
        head.version = Version::HTTP_11;
        let safe = head.method == Method::GET || head.method == Method::HEAD;
        let repeatable = safe && body.is_end_stream() || asks_for_token(&head);
        let lane = lane_of(head.uri.path());
        let head = Box::new(head);
        Ok((Outbound { head, key, lane, repeatable, is_rest: false }, RequestBody::new(body, carried.up, repeatable)))
    }

    /// The same as a GET, where it is a HEAD of a manifest or a blob, to tell what a denial means. It asks for the first byte only, which registries
    /// heed for blobs, so that little comes and the connection can be kept.
    pub fn as_look(&self) -> Option<Outbound> {
        let path = self.head.uri.path();
        let is_content = path.contains("/manifests/") || path.contains("/blobs/");
        let mut head = (self.head.method == Method::HEAD && is_content).then(|| self.head.clone())?;
        head.method = Method::GET;
        head.headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        let look = Outbound { head, key: self.key.clone(), lane: self.lane, repeatable: true, is_rest: false };
        Some(look.unpacked())
    }

    /// The same, asking for an answer that is not packed, so that it can be looked into.
    pub fn unpacked(mut self) -> Outbound {
        self.head.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        self
    }

    /// The same for the rest of its blob: these bytes, the last one included.
    pub fn with_range(&self, first: u64, last: u64) -> Outbound {
        let mut part = self.clone();
        let range = HeaderValue::try_from(format!("bytes={first}-{last}")).expect("digits are visible ASCII");
        part.is_rest = true;
        part.head.headers.insert(RANGE, range);
        // Its first request has answered the client's own conditions.
        for name in [IF_RANGE, IF_NONE_MATCH, IF_MODIFIED_SINCE] {
            part.head.headers.remove(name);
        }
        part
    }

    pub fn lane(&self) -> Lane {
        self.lane
    }

    pub fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    pub fn is_rest(&self) -> bool {
        self.is_rest
    }

    pub fn method(&self) -> &Method {
        &self.head.method
    }

    pub fn uri(&self) -> &Uri {
        &self.head.uri
    }

    pub fn credentials(&self) -> Option<&HeaderValue> {
        let headers: &HeaderMap = &self.head.headers;
        headers.get(AUTHORIZATION)
    }

    /// Whether a password is among its credentials.
    pub fn has_password(&self) -> bool {
        let credentials = self.credentials().map(HeaderValue::as_bytes).unwrap_or_default();
        credentials.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic "))
    }

    /// The key of its pooled connections: its target.
    pub fn key(&self) -> &ReuseKey {
        &self.key
    }

    pub fn request(&self, body: RequestBody) -> Request<RequestBody> {
        Request::from_parts((*self.head).clone(), body)
    }
}

fn bad(message: impl Into<String>) -> Answer {
    Answer::plain(Reason::BadRequest, message)
}

/// Blobs are what is large; everything else is small, and a blob cannot start without it.
fn lane_of(path: &str) -> Lane {
    if path.contains("/blobs/") { Lane::Blob } else { Lane::Small }
}

/// Whether this form may be sent again: it asks by a password, or says nothing of it. A code holds once, and a refresh token may be
/// replaced when it is used (RFC 6749, sections 4.1.2 and 6).
pub fn may_ask_again(form: &[u8]) -> bool {
    form_urlencoded::parse(form).filter(|(key, _)| key == "grant_type").all(|(_, grant)| grant == "password")
}

/// Whether a POST asks for a token, as containerd does before it tries GET.
fn asks_for_token(head: &Parts) -> bool {
    let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse().ok());
    head.method == Method::POST
        && head.uri.path().ends_with("/token")
        && text(CONTENT_TYPE).is_some_and(|form| form.starts_with("application/x-www-form-urlencoded"))
        && length.is_some_and(|length: usize| length <= MAX_FORM)
}

fn origin_of(uri: &Uri) -> Result<Origin, String> {
    let secure = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        Some(_) => return Err("the URL is neither http nor https".to_owned()),
        None => {
            return Err("this is a forward proxy: point HTTP_PROXY at it, and ask for an absolute URL".to_owned());
        }
    };
    let authority = uri.authority().ok_or("the URL names no host")?;
    Origin::of(secure, authority.as_str()).map_err(|error| format!("the URL: {error}"))
}
