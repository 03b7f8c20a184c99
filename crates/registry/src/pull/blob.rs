//! Blobs as streams that verify themselves and survive broken connections.
//!
//! Whoever reads to the end without an error has exactly the descriptor's bytes. A connection that breaks is made again
//! where it broke (`Range`), at the same host first, then at the next one. Bytes once handed on cannot be taken back, so
//! a digest that does not match ends the stream; the host that sent them is avoided when the blob is fetched again.

use std::io::{self, Read};
use std::time::Instant;

use base::{Digest, Hasher};
use bytes::{Buf, Bytes};
use futures_util::{Stream, stream};
use http::header;
use http_client::{Request, Response, Retry, Retrying, TlsIdentity};
use image::{Descriptor, media_type};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use url::Url;

use crate::config::Endpoint;
use crate::error::{Answer, Role};
use crate::gate::Permit;
use crate::{Error, Repository};

/// A connection that moved this much was worth making: the count of failures begins anew.
const GOOD_RUN: u64 = 64 << 10;
/// Pieces that a [`BlockingBlob`] reads ahead.
const AHEAD: usize = 16;

/// Where to begin.
#[derive(Clone)]
pub enum BlobStart {
    /// At the first byte.
    Beginning,
    /// After bytes that the caller has kept from an earlier try.
    At {
        /// How many there are.
        offset: u64,
        /// What digested them.
        hasher: Hasher,
    },
}

/// The bytes of a blob on their way in.
pub struct BlobStream {
    repository: Repository,
    descriptor: Descriptor,
    subject: String,
    /// Hosts not given up yet, the current one first.
    places: Vec<Place>,
    connection: Option<Connection>,
    /// None once the end was reached, for good or bad.
    hasher: Option<Hasher>,
    verified: bool,
    received: u64,
    /// Broken connections since the last good run, and where that run began.
    failures: u32,
    run_start: u64,
    /// For the log: how much an earlier try had left, and when this one began.
    resumed_at: Option<u64>,
    began: Instant,
}

struct Connection {
    response: Response,
    /// Bytes that come again because the server ignores `Range`.
    skip: u64,
    _permit: Permit,
}

#[derive(Clone, Debug)]
enum Place {
    Host(Endpoint),
    /// A URL that the manifest names (non-distributable layers).
    Foreign(Url),
}

impl Place {
    fn host(&self) -> &str {
        match self {
            Place::Host(endpoint) => &endpoint.host,
            Place::Foreign(url) => url.host_str().unwrap_or_default(),
        }
    }
}

impl Repository {
    /// Begins to download a blob. Resolves once a host has it.
    pub async fn fetch_blob(&self, descriptor: &Descriptor, start: BlobStart) -> Result<BlobStream, Error> {
        let (received, hasher) = match start {
            BlobStart::Beginning => (0, Digest::hasher()),
            BlobStart::At { offset, hasher } => (offset, hasher),
        };
        let mut stream = BlobStream {
            subject: self.subject_of(&descriptor.digest),
            places: self.places(descriptor),
            repository: self.clone(),
            descriptor: descriptor.clone(),
            connection: None,
            hasher: Some(hasher),
            verified: false,
            received,
            failures: 0,
            run_start: received,
            resumed_at: Some(received).filter(|received| *received > 0),
            began: Instant::now(),
        };
        if received < descriptor.size {
            stream.connect().await?;
        }
        Ok(stream)
    }

    fn places(&self, descriptor: &Descriptor) -> Vec<Place> {
        let hosts = self.shared.in_order(self.endpoints());
        let (good, spoiled): (Vec<_>, Vec<_>) =
            hosts.into_iter().cloned().partition(|endpoint| !self.shared.is_spoiled(&endpoint.host, descriptor.digest));
        let hosts = good.into_iter().chain(spoiled).map(Place::Host);
        let web = |url: &Url| matches!(url.scheme(), "http" | "https");
        let foreign = descriptor.urls.iter().filter_map(|url| Url::parse(url).ok()).filter(web).map(Place::Foreign);
        if media_type::is_foreign(&descriptor.media_type) {
            foreign.chain(hosts).collect()
        } else {
            hosts.chain(foreign).collect()
        }
    }
}

impl BlobStream {
    /// The next bytes; none at the end, when all of them are verified.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let Some(connection) = &mut self.connection else { return self.finish().map(|()| None) };
            let cause = match connection.response.chunk().await {
                Ok(Some(mut bytes)) => {
                    let skipped = connection.skip.min(bytes.len() as u64);
                    connection.skip -= skipped;
                    bytes.advance(skipped as usize);
                    if bytes.is_empty() {
                        continue;
                    }
                    self.take(&bytes)?;
                    return Ok(Some(bytes));
                }
                Ok(None) if self.received == self.descriptor.size => {
                    self.connection = None;
                    continue;
                }
                Ok(None) => "connection closed early".to_owned(),
                // All bytes are there: how the connection ends does not matter.
                Err(_) if self.received == self.descriptor.size => {
                    self.connection = None;
                    continue;
                }
                Err(error) if error.is_transient() => error.to_string(),
                Err(source) => return Err(Error::Transport { subject: self.subject.clone(), source }),
            };
            self.resume(cause).await?;
        }
    }

    /// The stream as a `Stream`.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        stream::try_unfold(self, |mut this| async move { Ok(this.chunk().await?.map(|bytes| (bytes, this))) })
    }

    /// The stream as a reader for a thread that blocks. A task moves the bytes; dropping the reader stops it.
    pub fn into_blocking(mut self) -> BlockingBlob {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let task = tokio::spawn(async move {
            loop {
                let piece = self.chunk().await;
                let last = !matches!(piece, Ok(Some(_)));
                if sender.send(piece).await.is_err() || last {
                    return;
                }
            }
        });
        BlockingBlob { receiver, current: Bytes::new(), ended: false, stopper: Stopper(task.abort_handle()) }
    }

    /// Bytes handed on so far, those of an earlier try included.
    pub fn received(&self) -> u64 {
        self.received
    }

    fn take(&mut self, bytes: &Bytes) -> Result<(), Error> {
        let received = self.received + bytes.len() as u64;
        if received > self.descriptor.size {
            self.hasher = None;
            return Err(self.bad_size(received));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.received = received;
        if received - self.run_start >= GOOD_RUN {
            (self.failures, self.run_start) = (0, received);
        }
        self.repository.progress.moved(&self.descriptor.digest, received, self.descriptor.size);
        Ok(())
    }

    /// Verifies, once. Asking again after an error never gives an end.
    fn finish(&mut self) -> Result<(), Error> {
        if self.verified {
            return Ok(());
        }
        let host = self.host();
        let Some(hasher) = self.hasher.take().filter(|_| self.received == self.descriptor.size) else {
            return Err(self.truncated("an earlier failure".to_owned()));
        };
        let found = hasher.finish();
        if found != self.descriptor.digest {
            self.repository.shared.spoil(&host, self.descriptor.digest);
            return Err(Error::BadDigest { subject: self.subject.clone(), host, found });
        }
        self.verified = true;
        tracing::debug!(
            host,
            %found,
            bytes = self.received,
            resumed_at = self.resumed_at,
            ms = self.began.elapsed().as_millis() as u64,
            "a blob was pulled"
        );
        Ok(())
    }

    fn truncated(&self, cause: String) -> Error {
        Error::Truncated {
            subject: self.subject.clone(),
            host: self.host(),
            received: self.received,
            expected: self.descriptor.size,
            cause,
        }
    }

    /// Connects again after a break.
    async fn resume(&mut self, cause: String) -> Result<(), Error> {
        self.connection = None;
        self.failures += 1;
        let retry = self.repository.retry.clone();
        if self.failures >= retry.attempts {
            return Err(self.truncated(cause));
        }
        let delay = retry.delay(self.failures);
        let retrying = Retrying { attempt: self.failures, attempts: retry.attempts, delay, cause };
        self.repository.progress.retrying(&self.subject, &retrying);
        tokio::time::sleep(delay).await;
        self.connect().await
    }

    /// Asks the hosts in order for what is missing. A host that says no is given up.
    async fn connect(&mut self) -> Result<(), Error> {
        let mut worst = None;
        while let Some(place) = self.places.first().cloned() {
            let patience = match self.places.len() {
                1 => self.repository.retry.clone(),
                _ => Retry::NEVER,
            };
            let error = match self.open(&place, patience).await {
                Ok(connection) => {
                    self.connection = Some(connection);
                    return Ok(());
                }
                Err(error) => error,
            };
            if let Place::Host(endpoint) = &place {
                self.repository.note_failure(endpoint, &error);
            }
            let is_registry = matches!(&place, Place::Host(endpoint) if endpoint == self.repository.registry());
            if is_registry || worst.is_none() {
                worst = Some(error);
            }
            if self.places.len() == 1 {
                break;
            }
            self.places.remove(0);
        }
        Err(worst.expect("there is always the registry itself"))
    }

    async fn open(&self, place: &Place, patience: Retry) -> Result<Connection, Error> {
        let permit = self.repository.shared.pulls.blob(place.host()).await;
        let response = match place {
            Place::Host(endpoint) => {
                let below = format!("blobs/{}", self.descriptor.digest);
                let url = self.repository.url(endpoint, &below, &self.subject).await?;
                let request = self.request(url, patience);
                let scopes = self.repository.pull_scopes(endpoint);
                let response = self.repository.call(endpoint, request, scopes, &self.subject).await?;
                if !response.status().is_success() {
                    return Err(self.repository.refusal(endpoint, &self.subject, response).await);
                }
                response
            }
            Place::Foreign(url) => {
                let transport = |source| Error::Transport { subject: self.subject.clone(), source };
                let client = self.repository.shared.pools.client(&TlsIdentity::default()).map_err(transport)?;
                let response = client.send(&self.request(url.clone(), patience)).await.map_err(transport)?;
                if !response.status().is_success() {
                    let answer = Answer::read(&self.subject, place.host(), Role::ForeignUrl, response).await;
                    return Err(Error::Answer(answer));
                }
                response
            }
        };
        let skip = self.check_head(place.host(), &response)?;
        Ok(Connection { response, skip, _permit: permit })
    }

    fn request(&self, url: Url, patience: Retry) -> Request {
        // Stored bytes, not re-encoded ones: their digest is the point.
        let request = Request::get(url).header(header::ACCEPT_ENCODING, "identity").retry(patience);
        match self.received {
            0 => request,
            offset => request.header(header::RANGE, &format!("bytes={offset}-")),
        }
    }

    /// Whether the answer can be the rest of the blob; how many bytes of it are known already.
    fn check_head(&self, host: &str, response: &Response) -> Result<u64, Error> {
        let size = self.descriptor.size;
        let bad_size =
            |found| Error::BadSize { subject: self.subject.clone(), host: host.to_owned(), expected: size, found };
        if response.status().as_u16() != 206 {
            return match response.content_length() {
                Some(length) if length != size => Err(bad_size(length)),
                _ => Ok(self.received),
            };
        }
        // A server may send less than asked; what is missing then is asked for again.
        let range = response.header(header::CONTENT_RANGE).unwrap_or_default();
        match parse_content_range(range) {
            Some((first, total)) if first == self.received => match total {
                Some(total) if total != size => Err(bad_size(total)),
                _ => Ok(0),
            },
            _ => Err(Error::Malformed {
                subject: self.subject.clone(),
                host: host.to_owned(),
                cause: format!("content-range `{range}` where bytes from {} on were asked for", self.received),
            }),
        }
    }

    fn host(&self) -> String {
        self.places.first().map(|place| place.host().to_owned()).unwrap_or_default()
    }

    fn bad_size(&self, found: u64) -> Error {
        let (subject, expected) = (self.subject.clone(), self.descriptor.size);
        Error::BadSize { subject, host: self.host(), expected, found }
    }
}

/// `bytes 5-9/10` is (5, 10); the total may be `*`.
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-')?.0.trim().parse().ok()?;
    Some((first, total.trim().parse().ok()))
}

/// A blob that blocks while it waits. Errors are [`Error`]s inside `io::Error`; the end means all is verified.
///
/// Must be read outside the runtime's own threads (`spawn_blocking` or a plain thread).
pub struct BlockingBlob {
    /// Nothing is the end. A channel that closes before it is none.
    receiver: mpsc::Receiver<Result<Option<Bytes>, Error>>,
    current: Bytes,
    ended: bool,
    stopper: Stopper,
}

/// Ends a [`BlockingBlob`] from outside, also while its reader waits: reading fails then.
#[derive(Clone, Debug)]
pub struct Stopper(AbortHandle);

impl Stopper {
    /// Stops the download. Does nothing to one that has ended.
    pub fn stop(&self) {
        self.0.abort();
    }
}

impl BlockingBlob {
    /// What stops it.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }
}

impl Read for BlockingBlob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Ok(Some(bytes))) => self.current = bytes,
                Some(Ok(None)) => self.ended = true,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Err(io::Error::other("the download was stopped")),
            }
        }
        let n = buf.len().min(self.current.len());
        self.current.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}
