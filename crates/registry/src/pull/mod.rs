//! Pulling: names to descriptors, documents whole and verified, blobs as verified streams.

mod blob;

use base::Digest;
use bytes::Bytes;
use http::{Method, header};
use http_client::{Request, Response, Retry};
use image::{Descriptor, media_type};

use crate::config::Endpoint;
use crate::push::Target;
use crate::{Error, Repository};

pub use blob::{BlobStart, BlobStream, BlockingBlob, Stopper};

/// The largest manifest or index that is read; distribution's own limit for what clients may push.
const DOCUMENT_LIMIT: u64 = 4 << 20;

/// What a name points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The manifest or index.
    pub descriptor: Descriptor,
    /// Its bytes, verified, if they came along.
    pub document: Option<Bytes>,
}

/// The hosts of a pull in order, each tried once: patiently only the last one, since the others have a stand-in.
struct Hosts<'a> {
    repository: &'a Repository,
    left: std::vec::IntoIter<Endpoint>,
    /// What came of the registry itself, and of its mirrors.
    error: Option<Error>,
    mirrors: Vec<String>,
    /// Whether a mirror answered that it has no such thing.
    missed: bool,
}

impl<'a> Hosts<'a> {
    fn of(repository: &'a Repository) -> Hosts<'a> {
        let hosts: Vec<Endpoint> = repository.shared.in_order(repository.endpoints()).into_iter().cloned().collect();
        Hosts { repository, left: hosts.into_iter(), error: None, mirrors: Vec::new(), missed: false }
    }

    fn next(&mut self) -> Option<(Endpoint, Retry)> {
        let endpoint = self.left.next()?;
        let patience = match self.left.len() {
            0 => self.repository.retry.clone(),
            _ => Retry::NEVER,
        };
        Some((endpoint, patience))
    }

    fn failed(&mut self, endpoint: &Endpoint, subject: &str, error: Error) {
        self.repository.note_failure(endpoint, &error);
        if endpoint == self.repository.registry() {
            self.error = Some(error);
        } else {
            let said = error.summary_without(subject);
            let is_named = said.starts_with("mirror ");
            self.mirrors.push(if is_named { said } else { format!("mirror `{}`: {said}", endpoint.host) });
            self.missed |= error.is_not_found();
        }
    }

    /// The registry's own error is the one that counts; that of a mirror, which was asked first, may be the one to mend.
    fn into_error(self, subject: &str) -> Error {
        let error = self.error.expect("there is always the registry itself");
        match self.mirrors.is_empty() {
            true => error,
            false => Error::Everywhere {
                subject: subject.to_owned(),
                mirrors: self.mirrors.join("; "),
                missed: self.missed,
                registry: Box::new(error),
            },
        }
    }
}

/// What HEAD tells about a tag.
enum Head {
    Found(Box<Descriptor>),
    /// GET may know more, or why not.
    Unclear,
    /// HEAD was tried with all patience: GET only fetches the words.
    Overloaded,
}

impl Repository {
    /// Finds what a tag or digest points to: HEAD for a tag (registries count GETs), GET where that does not suffice.
    pub async fn resolve(&self, target: &Target) -> Result<Resolved, Error> {
        let subject = self.subject(target);
        let mut hosts = Hosts::of(self);
        while let Some((endpoint, patience)) = hosts.next() {
            match self.resolve_at(&endpoint, target, &subject, patience).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => hosts.failed(&endpoint, &subject, error),
            }
        }
        Err(hosts.into_error(&subject))
    }

    /// The bytes of a manifest, index or other small document, verified against its descriptor.
    pub async fn fetch_manifest(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        let subject = self.subject_of(&descriptor.digest);
        let mut hosts = Hosts::of(self);
        while let Some((endpoint, patience)) = hosts.next() {
            match self.fetch_at(&endpoint, descriptor, &subject, patience).await {
                Ok(document) => return Ok(document),
                Err(error) => hosts.failed(&endpoint, &subject, error),
            }
        }
        Err(hosts.into_error(&subject))
    }

    /// How large a blob is of which only the digest is known.
    pub async fn blob_size(&self, digest: &Digest) -> Result<u64, Error> {
        let subject = self.subject_of(digest);
        let mut hosts = Hosts::of(self);
        while let Some((endpoint, patience)) = hosts.next() {
            match self.blob_size_at(&endpoint, digest, &subject, patience).await {
                Ok(size) => return Ok(size),
                Err(error) => hosts.failed(&endpoint, &subject, error),
            }
        }
        Err(hosts.into_error(&subject))
    }

    async fn blob_size_at(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        subject: &str,
        patience: Retry,
    ) -> Result<u64, Error> {
        let url = self.url(endpoint, &format!("blobs/{digest}"), subject).await?;
        let request = Request::new(Method::HEAD, url).retry(patience);
        let response = self.call(endpoint, request, self.pull_scopes(endpoint), subject).await?;
        if !response.status().is_success() {
            return Err(self.refusal(endpoint, subject, response).await);
        }
        response.content_length().ok_or_else(|| Error::Malformed {
            subject: subject.to_owned(),
            host: endpoint.host.clone(),
            cause: "it does not say how large the blob is".to_owned(),
        })
    }

    async fn resolve_at(
        &self,
        endpoint: &Endpoint,
        target: &Target,
        subject: &str,
        patience: Retry,
    ) -> Result<Resolved, Error> {
        let mut patience = patience;
        if let Target::Tag(_) = target {
            match self.head(endpoint, target, subject, patience.clone()).await? {
                Head::Found(descriptor) => return Ok(Resolved { descriptor: *descriptor, document: None }),
                Head::Unclear => {}
                Head::Overloaded => patience = Retry::NEVER,
            }
        }
        let accept = accept(&media_type::ACCEPT_MANIFESTS);
        let (descriptor, document) = self.get(endpoint, target, &accept, subject, patience).await?;
        Ok(Resolved { descriptor, document: Some(document) })
    }

    async fn fetch_at(
        &self,
        endpoint: &Endpoint,
        descriptor: &Descriptor,
        subject: &str,
        patience: Retry,
    ) -> Result<Bytes, Error> {
        let target = Target::Digest(descriptor.digest);
        let accept = accept(&[&descriptor.media_type]);
        let (found, document) = self.get(endpoint, &target, &accept, subject, patience).await?;
        if descriptor.size != found.size {
            return Err(Error::BadSize {
                subject: subject.to_owned(),
                host: endpoint.host.clone(),
                expected: descriptor.size,
                found: found.size,
            });
        }
        Ok(document)
    }

    /// What HEAD tells.
    async fn head(&self, endpoint: &Endpoint, target: &Target, subject: &str, patience: Retry) -> Result<Head, Error> {
        let accept = accept(&media_type::ACCEPT_MANIFESTS);
        let response = self.ask(Method::HEAD, endpoint, target, &accept, subject, patience).await?;
        if !response.status().is_success() {
            let overloaded = response.status().as_u16() == 429 || response.status().is_server_error();
            return Ok(if overloaded { Head::Overloaded } else { Head::Unclear });
        }
        let digest = response.header("docker-content-digest").and_then(|text| text.parse().ok());
        let media_type = content_type(&response);
        let (Some(digest), Some(size)) = (digest, response.content_length()) else { return Ok(Head::Unclear) };
        // Zero is what servers say that do not know the length.
        if size == 0
            || size > DOCUMENT_LIMIT
            || !(media_type::is_manifest(&media_type) || media_type::is_index(&media_type))
        {
            return Ok(Head::Unclear);
        }
        Ok(Head::Found(Box::new(Descriptor::new(media_type, digest, size))))
    }

    async fn get(
        &self,
        endpoint: &Endpoint,
        target: &Target,
        accept: &str,
        subject: &str,
        patience: Retry,
    ) -> Result<(Descriptor, Bytes), Error> {
        let response = self.ask(Method::GET, endpoint, target, accept, subject, patience).await?;
        if !response.status().is_success() {
            return Err(self.refusal(endpoint, subject, response).await);
        }
        let announced = response.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let stated_type = content_type(&response);
        let document = response
            .bytes(DOCUMENT_LIMIT)
            .await
            .map_err(|source| Error::Transport { subject: subject.to_owned(), source })?;
        let found = Digest::of(&document);
        let expected = match target {
            Target::Digest(digest) => Some(*digest),
            Target::Tag(_) => announced,
        };
        if expected.is_some_and(|expected| expected != found) {
            return Err(Error::BadDigest { subject: subject.to_owned(), host: endpoint.host.clone(), found });
        }
        let media_type = document_type(&document, stated_type);
        if media_type.starts_with("application/vnd.docker.distribution.manifest.v1+") {
            let what = "it is a Docker schema 1 image, which is not supported; push it again with a current tool";
            return Err(Error::Unsupported { subject: subject.to_owned(), what: what.to_owned() });
        }
        Ok((Descriptor::new(media_type, found, document.len() as u64), document))
    }

    async fn ask(
        &self,
        method: Method,
        endpoint: &Endpoint,
        target: &Target,
        accept: &str,
        subject: &str,
        patience: Retry,
    ) -> Result<Response, Error> {
        let _permit = self.shared.pulls.document(&endpoint.host).await;
        let url = self.url(endpoint, &format!("manifests/{target}"), subject).await?;
        let request = Request::new(method, url).header(header::ACCEPT, accept).retry(patience);
        self.call(endpoint, request, self.pull_scopes(endpoint), subject).await
    }
}

fn accept(media_types: &[&str]) -> String {
    // The last one makes registries answer with what they have, which gives better errors than 404.
    let wanted = media_types.iter().copied().filter(|media_type| !media_type.is_empty());
    wanted.chain(["*/*"]).collect::<Vec<_>>().join(", ")
}

fn content_type(response: &Response) -> String {
    let value = response.header(header::CONTENT_TYPE).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The document's own word counts, then the header, then what the fields look like.
fn document_type(document: &Bytes, stated: String) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        #[serde(default)]
        media_type: String,
        #[serde(default)]
        schema_version: u32,
        manifests: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
    }
    let Ok(head) = serde_json::from_slice::<Head>(document) else { return stated };
    if head.schema_version == 1 {
        return media_type::DOCKER_MANIFEST_V1.to_owned();
    }
    if !head.media_type.is_empty() {
        return head.media_type;
    }
    let known = media_type::is_manifest(&stated) || media_type::is_index(&stated);
    match (known, head.manifests.is_some(), head.config.is_some()) {
        (false, true, _) => media_type::OCI_INDEX.to_owned(),
        (false, false, true) => media_type::OCI_MANIFEST.to_owned(),
        _ => stated,
    }
}
