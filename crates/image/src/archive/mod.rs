//! Images as files: OCI layouts and `docker save` archives, written and read.
//!
//! ```text
//! blobs/sha256/<hex>   every blob by its digest
//! index.json           an index of the images, with their names as annotations
//! oci-layout           {"imageLayoutVersion":"1.0.0"}
//! manifest.json        what `docker load` reads; archives for Docker only
//! ```

mod layout;
#[cfg(test)]
mod tests;
mod write;

pub use layout::{Layout, LayoutFiles, TarFiles};
pub use write::{ArchiveKind, index_json, list_blobs, name_manifests, write_archive};

/// Path of the index in a layout.
pub const INDEX: &str = "index.json";
/// Path of the file that says what a layout is.
pub const LAYOUT: &str = "oci-layout";
/// Its content.
pub const LAYOUT_CONTENT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const DOCKER_MANIFEST: &str = "manifest.json";
