//! Uploading one blob: not at all if the registry has it, by a mount if a neighbour has it, else its bytes.
//!
//! An upload that fails on the way begins anew with a new session, since nobody knows what the old one holds; only
//! chunked uploads ask the registry how far they came. The registry verifies the digest before it keeps the blob.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, future};
use http::{Method, header};
use http_client::{Body, BodyStream, Request, Response, Retry, Verdict, retry};
use image::Descriptor;
use url::Url;

use super::{Pushed, UploadMode};
use crate::auth::Scopes;
use crate::progress::Progress;
use crate::{BlobSource, Class, Error, Repository};

/// The piece for registries behind something that refuses large bodies. Well below what proxies commonly allow (100 MB).
const FALLBACK_PIECE: u64 = 64 << 20;

impl Repository {
    /// Makes the registry have a blob. `mount_from` are paths of repositories in the same registry that may have it.
    pub async fn push_blob(
        &self,
        descriptor: &Descriptor,
        source: Arc<dyn BlobSource>,
        mount_from: &[String],
        mode: UploadMode,
    ) -> Result<Pushed, Error> {
        let began = Instant::now();
        let subject = self.subject_of(&descriptor.digest);
        let push = Push { repository: self, descriptor, source, subject };
        let _permit = self.shared.pushes.blob(&self.registry().host).await;
        let policy = self.retry.clone();
        let mode = Mutex::new(mode);
        let mode_now = || *mode.lock().unwrap_or_else(PoisonError::into_inner);
        let notify = |retrying: &_| self.progress.retrying(&push.subject, retrying);
        let result = retry(&policy, notify, |_| async {
            let result = push.run(mount_from, mode_now()).await;
            if let (Err(error), UploadMode::Whole) = (&result, mode_now())
                && error.class() == Class::TooLarge
            {
                *mode.lock().unwrap_or_else(PoisonError::into_inner) = UploadMode::Chunked { piece: FALLBACK_PIECE };
                return again(result, None);
            }
            match &result {
                Err(Error::Answer(answer)) if push.is_worth_another_session(answer) => {
                    let wait = answer.retry_after;
                    again(result, wait)
                }
                Err(error) if error.is_transient() => again(result, None),
                _ => Verdict::Done(result),
            }
        })
        .await;
        if let Ok(pushed) = &result {
            let outcome = match pushed {
                Pushed::Existed => "was there",
                Pushed::Mounted(_) => "mounted",
                Pushed::Uploaded => "uploaded",
            };
            let (host, digest, bytes) = (&self.registry().host, &descriptor.digest, descriptor.size);
            tracing::debug!(host, %digest, bytes, outcome, ms = began.elapsed().as_millis() as u64, "a blob was pushed");
            self.progress.moved(&descriptor.digest, descriptor.size, descriptor.size);
        }
        result
    }
}

fn again(result: Result<Pushed, Error>, after: Option<Duration>) -> Verdict<Result<Pushed, Error>> {
    let cause = result.as_ref().err().map(Error::summary).unwrap_or_default();
    Verdict::Again { last: result, cause, after }
}

struct Push<'a> {
    repository: &'a Repository,
    descriptor: &'a Descriptor,
    source: Arc<dyn BlobSource>,
    subject: String,
}

/// What the registry says to the wish to upload.
enum Begun {
    Mounted(String),
    Session { location: Url, smallest_piece: u64 },
}

impl Push<'_> {
    /// One try: whoever calls this tries again, and what is tried again here as well would take minutes to fail.
    async fn run(&self, mount_from: &[String], mode: UploadMode) -> Result<Pushed, Error> {
        // Registries that refuse the question may still take the blob; those that do not will say why.
        let head = self.repository.head_blob(&self.descriptor.digest, Retry::NEVER, &self.subject).await?;
        if head.status().is_success() {
            return Ok(Pushed::Existed);
        }
        let (location, smallest_piece) = match self.begin(mount_from).await? {
            Begun::Mounted(from) => return Ok(Pushed::Mounted(from)),
            Begun::Session { location, smallest_piece } => (location, smallest_piece),
        };
        match mode {
            UploadMode::Whole => self.upload_whole(location).await?,
            UploadMode::Chunked { piece } => self.upload_pieces(location, piece.max(smallest_piece).max(1)).await?,
        }
        Ok(Pushed::Uploaded)
    }

    /// A session that the registry has lost, or an overloaded registry.
    fn is_worth_another_session(&self, answer: &crate::Answer) -> bool {
        answer.code == "BLOB_UPLOAD_UNKNOWN"
            || answer.code == "BLOB_UPLOAD_INVALID"
            || answer.status.as_u16() == 416
            || matches!(answer.class(), Class::RateLimited | Class::Unavailable)
    }

    async fn begin(&self, mount_from: &[String]) -> Result<Begun, Error> {
        let scopes = Scopes::push(self.repository.path());
        for from in mount_from.iter().filter(|from| *from != self.repository.path()) {
            let query = [("mount", self.descriptor.digest.to_string()), ("from", from.clone())];
            let response = self.post(&query, scopes.clone().and_pull(from)).await?;
            match response.status().as_u16() {
                201 => return Ok(Begun::Mounted(from.clone())),
                // Not mounted, but here is a session: the usual answer when the neighbour lacks the blob.
                202 => return self.session(response),
                // Not ours to read, or a registry that does not mount: go on without.
                _ => {}
            }
        }
        let response = self.post(&[], scopes).await?;
        match response.status().as_u16() {
            200..=299 => self.session(response),
            _ => Err(self.refusal(response).await),
        }
    }

    async fn post(&self, query: &[(&str, String)], scopes: Scopes) -> Result<Response, Error> {
        let endpoint = self.repository.registry();
        let mut url = self.repository.url(endpoint, "blobs/uploads/", &self.subject).await?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = Request::new(Method::POST, url).retry(Retry::NEVER);
        self.repository.call(endpoint, request, scopes, &self.subject).await
    }

    fn session(&self, response: Response) -> Result<Begun, Error> {
        let smallest_piece = response.header("oci-chunk-min-length").and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        Ok(Begun::Session { location: self.location(&response)?, smallest_piece })
    }

    /// Where to go on: absolute, a path, or relative; always with the session's own query kept.
    fn location(&self, response: &Response) -> Result<Url, Error> {
        let malformed = |cause: String| Error::Malformed {
            subject: self.subject.clone(),
            host: self.repository.registry().host.clone(),
            cause,
        };
        let from = response.url();
        let text =
            response.header(header::LOCATION).ok_or_else(|| malformed("no location for the upload".to_owned()))?;
        let shown = base::redact_url(text);
        let mut url = from.join(text).map_err(|error| malformed(format!("upload location `{shown}`: {error}")))?;
        // A registry behind a proxy that ends TLS often believes that it is spoken to in plain HTTP.
        if from.scheme() == "https" && url.scheme() == "http" && url.host_str() == from.host_str() {
            let port = url.port().filter(|port| *port != 80).or(from.port());
            let moved = url.set_scheme("https").and_then(|()| url.set_port(port));
            moved.map_err(|()| malformed(format!("upload location `{shown}`")))?;
        }
        match url.scheme() {
            "http" | "https" => Ok(url),
            _ => Err(malformed(format!("upload location `{shown}`"))),
        }
    }

    async fn upload_whole(&self, location: Url) -> Result<(), Error> {
        let body = self.body(0, self.descriptor.size);
        let request = Request::new(Method::PUT, self.with_digest(location))
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(body)
            .retry(Retry::NEVER);
        let response = self.send(request).await?;
        self.expect_success(response).await.map(drop)
    }

    async fn upload_pieces(&self, mut location: Url, piece: u64) -> Result<(), Error> {
        let size = self.descriptor.size;
        let policy = &self.repository.retry;
        let (mut offset, mut failures) = (0_u64, 0);
        while offset < size {
            let end = size.min(offset.saturating_add(piece));
            let request = Request::new(Method::PATCH, location.clone())
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_RANGE, &format!("{offset}-{}", end - 1))
                .body(self.body(offset, end - offset))
                .retry(Retry::NEVER);
            let result = match self.send(request).await {
                Ok(response) => self.expect_success(response).await,
                Err(error) => Err(error),
            };
            let response = match result {
                Ok(response) => {
                    failures = 0;
                    response
                }
                Err(error) if error.is_transient() && failures + 1 < policy.attempts => {
                    failures += 1;
                    tokio::time::sleep(policy.delay(failures)).await;
                    // How far did it come?
                    let request = Request::get(location.clone());
                    let response = self.send(request).await?;
                    self.expect_success(response).await?
                }
                Err(error) => return Err(error),
            };
            let reached = received_until(response.header(header::RANGE)).unwrap_or(match failures {
                0 => end,
                _ => offset,
            });
            if failures == 0 && reached <= offset || reached > size {
                return Err(Error::Malformed {
                    subject: self.subject.clone(),
                    host: self.repository.registry().host.clone(),
                    cause: format!("it claims to have {reached} bytes after {end} were sent"),
                });
            }
            offset = reached;
            if response.headers().contains_key(header::LOCATION) {
                location = self.location(&response)?;
            }
        }
        let request = Request::new(Method::PUT, self.with_digest(location)).retry(Retry::NEVER);
        let response = self.send(request).await?;
        self.expect_success(response).await.map(drop)
    }

    fn with_digest(&self, mut location: Url) -> Url {
        location.query_pairs_mut().append_pair("digest", &self.descriptor.digest.to_string());
        location
    }

    /// Bytes of the source, counted for the progress.
    fn body(&self, offset: u64, length: u64) -> Body {
        let (source, progress) = (self.source.clone(), self.repository.progress.clone());
        let (digest, total) = (self.descriptor.digest, self.descriptor.size);
        let open = move || -> BodyStream {
            let (progress, mut left, mut done): (Arc<dyn Progress>, _, _) = (progress.clone(), length, offset);
            let limited = source.open(offset).scan((), move |(), chunk| {
                if left == 0 {
                    return future::ready(None);
                }
                let chunk = chunk.map(|mut bytes: Bytes| {
                    bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    left -= bytes.len() as u64;
                    done += bytes.len() as u64;
                    progress.moved(&digest, done, total);
                    bytes
                });
                future::ready(Some(chunk))
            });
            limited.boxed()
        };
        Body::Stream { length, open: Arc::new(open) }
    }

    /// Sends to the upload's location: with a login as long as that is the registry itself.
    async fn send(&self, request: Request) -> Result<Response, Error> {
        let endpoint = self.repository.registry();
        let home = self.repository.url(endpoint, "", &self.subject).await?;
        let result = if home.origin() == request.url.origin() {
            self.repository.call(endpoint, request, Scopes::push(self.repository.path()), &self.subject).await
        } else {
            let transport = |source| Error::Transport { subject: self.subject.clone(), source };
            let client = self.repository.shared.pools.client(&endpoint.identity).map_err(transport)?;
            client.send(&request).await.map_err(transport)
        };
        result.map_err(|error| match error {
            Error::Transport { source: http_client::Error::Source(source), .. } => {
                Error::Source { subject: format!("blob {}", self.descriptor.digest), source }
            }
            other => other,
        })
    }

    async fn expect_success(&self, response: Response) -> Result<Response, Error> {
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    async fn refusal(&self, response: Response) -> Error {
        self.repository.refusal(self.repository.registry(), &self.subject, response).await
    }
}

/// `0-499` means 500 bytes are there; registries write `0-0` for none as for one.
fn received_until(range: Option<&str>) -> Option<u64> {
    let (_, last) = range?.trim().trim_start_matches("bytes=").split_once('-')?;
    match last.trim().parse::<u64>().ok()? {
        0 => Some(0),
        last => last.checked_add(1),
    }
}
