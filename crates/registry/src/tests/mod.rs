//! The client against the misbehaving registry of `testkit`, and against Debian's with other clients beside.

mod auth;
mod hosts;
mod mirrors;
mod pull;
mod push;
mod real;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base::{Digest, Secret};
use bytes::{Bytes, BytesMut};
use http_client::{Pools, Retry, Retrying, Settings, Timeouts};
use image::{Descriptor, Reference};

use crate::*;

pub(crate) const LAYER: &str = image::media_type::OCI_LAYER;

/// Tries as often as in real life, but without the waits.
pub(crate) fn settings() -> Settings {
    let retry = Retry {
        attempts: 4,
        first_delay: Duration::from_millis(1),
        longest_delay: Duration::from_millis(4),
        longest_retry_after: Duration::from_secs(2),
    };
    Settings { retry, ..Settings::default() }
}

/// Gives up on a silent server almost at once.
pub(crate) fn impatient() -> Settings {
    let timeouts =
        Timeouts { connect: Duration::from_millis(500), idle: Duration::from_millis(500), ..Timeouts::default() };
    Settings { timeouts, retry: Retry { attempts: 2, ..settings().retry }, ..settings() }
}

pub(crate) fn client(registries: Registries) -> Client {
    Client::new(Pools::new(settings()), registries, Limits::default())
}

pub(crate) fn plain(host: &str) -> Registries {
    let config = RegistryConfig { http: Some(true), ..RegistryConfig::default() };
    Registries([(host.to_owned(), config)].into())
}

pub(crate) fn reference(text: &str) -> Reference {
    Reference::parse(text).expect("tests use good references")
}

/// A repository of a plain registry, without credentials.
pub(crate) fn open(host: &str, path: &str) -> Repository {
    open_with(client(plain(host)), host, path)
}

pub(crate) fn open_with(client: Client, host: &str, path: &str) -> Repository {
    client.repository(&reference(&format!("{host}/{path}")), Arc::new(Anonymous)).expect("a repository")
}

pub(crate) fn tag(name: &str) -> Target {
    Target::Tag(name.to_owned())
}

pub(crate) fn layer(bytes: &Bytes) -> Descriptor {
    Descriptor::of(LAYER, bytes)
}

/// All bytes of a blob.
pub(crate) async fn read(repository: &Repository, descriptor: &Descriptor) -> Result<Bytes, Error> {
    let mut stream = repository.fetch_blob(descriptor, BlobStart::Beginning).await?;
    let mut whole = BytesMut::new();
    while let Some(chunk) = stream.chunk().await? {
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

/// The cause chain as a user sees it.
pub(crate) fn chain(error: &Error) -> String {
    error.summary()
}

/// Credentials that count how often they are asked for.
#[derive(Default)]
pub(crate) struct Keys {
    pub known: Mutex<HashMap<String, Credential>>,
    pub asked: Mutex<Vec<String>>,
}

impl Keys {
    pub fn of(host: &str, credential: Credential) -> Arc<Keys> {
        Arc::new(Keys { known: Mutex::new([(host.to_owned(), credential)].into()), asked: Mutex::default() })
    }

    pub fn password(host: &str) -> Arc<Keys> {
        Keys::of(host, login("hull", "works"))
    }

    pub fn asked(&self) -> usize {
        self.asked.lock().expect("not poisoned").len()
    }
}

pub(crate) fn login(user: &str, password: &str) -> Credential {
    Credential::Basic { username: user.to_owned(), password: Secret::new(password) }
}

#[async_trait]
impl CredentialSource for Keys {
    async fn get(&self, host: &str) -> Result<Option<Credential>, BoxError> {
        self.asked.lock().expect("not poisoned").push(host.to_owned());
        Ok(self.known.lock().expect("not poisoned").get(host).cloned())
    }
}

/// Remembers what moved.
#[derive(Default)]
pub(crate) struct Moves {
    pub moved: Mutex<Vec<(Digest, u64, u64)>>,
    pub retries: Mutex<Vec<String>>,
}

impl Progress for Moves {
    fn moved(&self, blob: &Digest, current: u64, total: u64) {
        self.moved.lock().expect("not poisoned").push((*blob, current, total));
    }

    fn retrying(&self, subject: &str, retrying: &Retrying) {
        self.retries.lock().expect("not poisoned").push(format!("{subject}: {retrying}"));
    }
}

#[test]
fn futures_can_be_spawned() {
    fn is_send<T: Send>(_: T) {}
    let repository = open("localhost:1", "x");
    let descriptor = layer(&Bytes::new());
    is_send(repository.resolve(&tag("x")));
    is_send(repository.fetch_manifest(&descriptor));
    is_send(repository.fetch_blob(&descriptor, BlobStart::Beginning));
    is_send(repository.push_blob(&descriptor, Arc::new(Bytes::new()), &[], UploadMode::Whole));
    is_send(repository.push_manifest(&tag("x"), "", Bytes::new()));
    is_send(repository.blob_exists(&descriptor.digest));
}
