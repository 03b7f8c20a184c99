//! The image model: references, OCI and Docker documents, layers and archives.
//!
//! Values and bytes in and out over `Read` and `Write`: no file system walks, no network, no async, no clock.

pub mod archive;
mod document;
mod error;
pub mod layer;
pub mod reference;

pub use document::*;
pub use error::Error;
pub use layer::{BadAttribute, Compression, CompressionOptions};
pub use reference::{Reference, ReferenceError};
