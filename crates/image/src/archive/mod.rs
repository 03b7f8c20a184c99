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
pub use write::{ArchiveKind, name_manifests, write_archive};

const INDEX: &str = "index.json";
const LAYOUT: &str = "oci-layout";
const LAYOUT_CONTENT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const DOCKER_MANIFEST: &str = "manifest.json";
