//! Pushing: blobs first, then the manifests that name them, then the index.

mod blob;

use std::fmt;

use base::Digest;
use bytes::Bytes;
use http::{Method, header};
use http_client::{Body, Request, Retry};
use image::Reference;

use crate::auth::Scopes;
use crate::{Error, Repository};

/// The `<reference>` of the distribution API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A name that may move.
    Tag(String),
    /// The content itself.
    Digest(Digest),
}

impl Target {
    /// What a reference asks for: its digest, else its tag, else `latest`.
    pub fn of(reference: &Reference) -> Target {
        match reference.digest() {
            Some(digest) => Target::Digest(digest),
            None => Target::Tag(reference.object()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tag(tag) => f.write_str(tag),
            Target::Digest(digest) => digest.fmt(f),
        }
    }
}

/// How a blob came to be in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it over from this repository.
    Mounted(String),
    /// Its bytes went over the network.
    Uploaded,
}

/// How bytes go up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UploadMode {
    /// One PUT; pieces of 64 MiB where something on the way refuses its size (413).
    #[default]
    Whole,
    /// PATCH by PATCH, resumed where one broke.
    Chunked {
        /// Bytes per PATCH.
        piece: u64,
    },
}

impl Repository {
    /// Puts a manifest or index under a tag or its digest. What it names must have been pushed before.
    pub async fn push_manifest(&self, target: &Target, media_type: &str, document: Bytes) -> Result<Digest, Error> {
        let endpoint = self.registry();
        let subject = self.subject(target);
        let _permit = self.shared.pushes.document(&endpoint.host).await;
        let url = self.url(endpoint, &format!("manifests/{target}"), &subject).await?;
        let digest = Digest::of(&document);
        let request =
            Request::new(Method::PUT, url).header(header::CONTENT_TYPE, media_type).body(Body::Bytes(document));
        let response = self.call(endpoint, request, Scopes::push(self.path()), &subject).await?;
        if !response.status().is_success() {
            return Err(self.refusal(endpoint, &subject, response).await);
        }
        match response.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok()) {
            Some(found) if found != digest => Err(Error::BadDigest { subject, host: endpoint.host.clone(), found }),
            _ => {
                tracing::debug!(host = endpoint.host, %target, %digest, "a manifest was pushed");
                Ok(digest)
            }
        }
    }

    /// Whether the registry itself (no mirror) has a blob in this repository.
    pub async fn blob_exists(&self, digest: &Digest) -> Result<bool, Error> {
        let endpoint = self.registry();
        let subject = self.subject_of(digest);
        let _permit = self.shared.pushes.document(&endpoint.host).await;
        let patience = self.retry.clone();
        let response = self.head_blob(digest, patience, &subject).await?;
        match response.status().as_u16() {
            200..=299 => Ok(true),
            404 => Ok(false),
            _ => Err(self.refusal(endpoint, &subject, response).await),
        }
    }

    async fn head_blob(&self, digest: &Digest, patience: Retry, subject: &str) -> Result<http_client::Response, Error> {
        let endpoint = self.registry();
        let url = self.url(endpoint, &format!("blobs/{digest}"), subject).await?;
        let request = Request::new(Method::HEAD, url).retry(patience);
        self.call(endpoint, request, Scopes::push(self.path()), subject).await
    }
}
