//! A response: the head at once, the body as it comes, each wait bounded.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use url::Url;

use crate::Error;
use crate::retry::retry_after;

/// A response whose body has not been read yet.
#[derive(Debug)]
pub struct Response {
    inner: reqwest::Response,
    url: Url,
    idle: Duration,
}

impl Response {
    pub(crate) fn new(inner: reqwest::Response, idle: Duration) -> Response {
        let url = inner.url().clone();
        Response { inner, url, idle }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.inner.status()
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        self.inner.headers()
    }

    /// A header as text; none when absent or not text.
    pub fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// What the server announced as `Content-Length`, HEAD included.
    pub fn content_length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH)?.trim().parse().ok()
    }

    /// How long the server asks to wait (`Retry-After`).
    pub fn retry_after(&self) -> Option<Duration> {
        retry_after(self.headers())
    }

    /// Where it came from, after redirects.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The next bytes of the body; none at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match tokio::time::timeout(self.idle, self.inner.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(Error::from_reqwest(&error, &self.url, None)),
            Err(_) => Err(Error::Timeout {
                url: base::redact_url(self.url.as_str()),
                what: "data",
                seconds: self.idle.as_secs(),
            }),
        }
    }

    /// The whole body, if it is no larger than `limit`.
    pub async fn bytes(mut self, limit: u64) -> Result<Bytes, Error> {
        let too_large = |url: &Url| Error::TooLarge { url: base::redact_url(url.as_str()), limit };
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(too_large(&self.url));
        }
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if (whole.len() + chunk.len()) as u64 > limit {
                return Err(too_large(&self.url));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    /// The beginning of the body, as far as it can be had: for the text of errors.
    pub async fn bytes_lossy(mut self, limit: usize) -> Bytes {
        let mut whole = BytesMut::new();
        while whole.len() < limit {
            match self.chunk().await {
                Ok(Some(chunk)) => whole.extend_from_slice(&chunk),
                Ok(None) | Err(_) => break,
            }
        }
        whole.truncate(limit);
        whole.freeze()
    }
}
