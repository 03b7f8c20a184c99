//! The image model: references, OCI and Docker documents, layers and archives.
//!
//! Values and bytes in and out over `Read` and `Write`: no file system walks, no network, no async, no clock.

pub mod reference;

pub use reference::{Reference, ReferenceError};
