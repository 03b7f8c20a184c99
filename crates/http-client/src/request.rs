//! A request as a value: it can be sent again, since its body can be opened again.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, Method, header};
use url::Url;

use crate::retry::{Retry, Retrying};

/// Bytes on their way out.
pub type BodyStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Told about every further try.
pub type Notify = Arc<dyn Fn(&Retrying) + Send + Sync>;

/// What to send.
#[derive(Clone)]
pub enum Body {
    /// Nothing.
    Empty,
    /// A small document.
    Bytes(Bytes),
    /// So many bytes, from a stream that `open` begins anew for every try and redirect.
    Stream {
        /// `Content-Length`.
        length: u64,
        /// Begins the stream.
        open: Arc<dyn Fn() -> BodyStream + Send + Sync>,
    },
}

/// Whether 3xx answers are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirects {
    /// Up to ten, without credentials as soon as the host changes.
    Follow,
    /// The same as long as they stay with the server; one that leads elsewhere is an error, because the body holds a login.
    Home,
    /// They are the caller's.
    Keep,
}

/// One request.
#[derive(Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Where to. Credentials in it are not sent; use [`Request::headers`].
    pub url: Url,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Body,
    /// What to do about 3xx.
    pub redirects: Redirects,
    /// How often to try instead of the pool's policy. By default a POST is never repeated, the rest is.
    pub retry: Option<Retry>,
    /// Told about every further try.
    pub notify: Option<Notify>,
}

impl Request {
    /// A request without headers and body.
    pub fn new(method: Method, url: Url) -> Request {
        Request {
            method,
            url,
            headers: HeaderMap::new(),
            body: Body::Empty,
            redirects: Redirects::Follow,
            retry: None,
            notify: None,
        }
    }

    /// A GET.
    pub fn get(url: Url) -> Request {
        Request::new(Method::GET, url)
    }

    /// Sets a header. Values that are no header value (line breaks) are left out, since they come from documents.
    #[must_use]
    pub fn header(mut self, name: header::HeaderName, value: &str) -> Request {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: Body) -> Request {
        self.body = body;
        self
    }

    /// Sets how often to try.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Request {
        self.retry = Some(retry);
        self
    }

    /// Sets who hears of further tries.
    #[must_use]
    pub fn notify(mut self, notify: Option<Notify>) -> Request {
        self.notify = notify;
        self
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers carry credentials, URLs may.
        write!(f, "{} {}", self.method, base::redact_url(self.url.as_str()))
    }
}
