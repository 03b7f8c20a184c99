//! Whom we trust, and who we are: certificates and keys, of clients and of servers.
//!
//! Webpki decides, and where it says no, Go's rules have the last word (`certificate`): people's certificates were made for clients
//! and servers in Go, by a few lines of `openssl`. Those are of version 1 of X.509, or call themselves an authority, or are
//! their own.

mod certificate;
mod clients;
mod files;
mod handshake;
mod roots;
mod servers;

pub use clients::Clients;
pub use files::{Error, KeyPair, read_certificates};
pub use handshake::Handshake;
pub use roots::{Roots, system_roots};
pub use servers::Servers;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// What all connections are encrypted by.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
