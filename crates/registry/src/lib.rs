//! A client of the distribution API (OCI distribution-spec 1.1, Docker Registry v2): pull, push, log in.
//!
//! [`Client`] is one per process: connections, tokens, what it learned about hosts. [`Repository`] is one image name
//! with the credentials of one build. Everything that comes from a registry is verified against its descriptor before
//! (documents) or while (blobs) it is handed on. The room stores nothing and runs nothing in parallel by itself; it
//! only bounds how many transfers a host sees at once.

mod auth;
mod client;
mod config;
mod error;
mod gate;
mod progress;
mod pull;
mod push;
mod repository;
mod source;

#[cfg(test)]
mod tests;

pub use auth::{Anonymous, BoxError, Credential, CredentialSource, FetchedToken, TokenRequest, fetch_token};
pub use client::{Client, Limits};
pub use config::{Registries, RegistryConfig};
pub use error::{Answer, Class, Error, Role};
pub use http_client::{Retry, Retrying};
pub use progress::{Aloud, Progress, Silent};
pub use pull::{BlobStart, BlobStream, BlockingBlob, Resolved, Stopper};
pub use push::{Pushed, Target, UploadMode};
pub use repository::Repository;
pub use source::{BlobSource, FileSource, ReadSource};
