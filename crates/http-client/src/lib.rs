//! HTTPS for registries, caches and http sources: one connection pool per TLS identity, and the manners
//! that every caller needs (proxies, roots, timeouts, retries, redirects, limits).
//!
//! The room knows no registry and no credential. It reads no environment variable of ours: proxies come in as
//! [`Proxies`]. The one exception is `rustls-native-certs`, which honours `SSL_CERT_FILE` and `SSL_CERT_DIR` as every
//! TLS program does.
//!
//! A status is not an error here: after the retries the last response is the caller's to judge.

mod client;
mod error;
mod identity;
mod proxy;
mod request;
mod response;
mod retry;

#[cfg(test)]
mod tests;

pub use ::http::{Method, StatusCode, header};
pub use ::tls::KeyPair;
pub use ::url::Url;
pub use client::{Client, Pools, Protocol, Settings, Timeouts, is_same_server};
pub use error::{ConnectFailure, Error, Way};
pub use identity::{TlsIdentity, Verify};
pub use proxy::Proxies;
pub use request::{Body, BodyStream, Notify, Redirects, Request};
pub use response::Response;
pub use retry::{Retry, Retrying, Verdict, retry};

/// What servers see in `User-Agent`.
pub const USER_AGENT: &str = concat!("hullworks/", env!("CARGO_PKG_VERSION"));
