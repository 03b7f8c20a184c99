//! Media types of OCI and Docker documents and layers, and what they say.

use crate::layer::Compression;

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, not compressed.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// The two bytes `{}` where a config is not used.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker schema 2 manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, not compressed (or so it says).
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer, zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
/// Docker schema 1, which nothing makes any more; known to be refused by name.
pub const DOCKER_MANIFEST_V1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// An in-toto attestation.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";

const OCI_FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
const OCI_FOREIGN_GZIP: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
const DOCKER_FOREIGN_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// What to ask a registry for, best first.
pub const ACCEPT_MANIFESTS: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];

/// The pairs that convert into each other: OCI, Docker.
const LAYER_PAIRS: [(&str, &str); 5] = [
    (OCI_LAYER, DOCKER_LAYER),
    (OCI_LAYER_GZIP, DOCKER_LAYER_GZIP),
    (OCI_LAYER_ZSTD, DOCKER_LAYER_ZSTD),
    (OCI_FOREIGN, DOCKER_FOREIGN),
    (OCI_FOREIGN_GZIP, DOCKER_FOREIGN_GZIP),
];

/// Which family of types an image is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Flavor {
    /// `application/vnd.oci…`
    #[default]
    Oci,
    /// `application/vnd.docker…`, schema 2.
    Docker,
}

impl Flavor {
    /// The type of manifests.
    pub fn manifest(self) -> &'static str {
        match self {
            Flavor::Oci => OCI_MANIFEST,
            Flavor::Docker => DOCKER_MANIFEST,
        }
    }

    /// The type of indexes.
    pub fn index(self) -> &'static str {
        match self {
            Flavor::Oci => OCI_INDEX,
            Flavor::Docker => DOCKER_INDEX,
        }
    }

    /// The type of configs.
    pub fn config(self) -> &'static str {
        match self {
            Flavor::Oci => OCI_CONFIG,
            Flavor::Docker => DOCKER_CONFIG,
        }
    }

    /// The type of a layer of this compression.
    pub fn layer(self, compression: Compression) -> &'static str {
        let (oci, docker) = match compression {
            Compression::Uncompressed => LAYER_PAIRS[0],
            Compression::Gzip => LAYER_PAIRS[1],
            Compression::Zstd => LAYER_PAIRS[2],
        };
        match self {
            Flavor::Oci => oci,
            Flavor::Docker => docker,
        }
    }

    /// A layer's type in this family; a type that has no twin stays.
    pub fn convert_layer(self, media_type: &str) -> &str {
        let pair = LAYER_PAIRS.iter().find(|(oci, docker)| media_type == *oci || media_type == *docker);
        match (pair, self) {
            (Some((oci, _)), Flavor::Oci) => oci,
            (Some((_, docker)), Flavor::Docker) => docker,
            (None, _) => media_type,
        }
    }
}

/// Whether it is an image manifest, OCI or Docker.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether it is an index or manifest list.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}

/// Whether it is an image config.
pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// Whether it is a file system layer of any kind, known compression or not.
pub fn is_layer(media_type: &str) -> bool {
    let base = media_type.split('+').next().unwrap_or_default();
    media_type.starts_with("application/vnd.oci.image.layer.") || LAYER_PAIRS.iter().any(|(_, docker)| base == *docker)
}

/// The media type of the same layer where it is passed on as any other.
pub fn distributable(media_type: &str) -> String {
    media_type.replace(".nondistributable.", ".").replace(".foreign.", ".")
}

/// Whether its licence may forbid pushing it (Windows base layers).
pub fn is_foreign(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}

/// The compression that a layer's type states. The bytes decide: Docker's plain type often holds gzip.
pub fn layer_compression(media_type: &str) -> Option<Compression> {
    match Flavor::Oci.convert_layer(media_type) {
        OCI_LAYER | OCI_FOREIGN => Some(Compression::Uncompressed),
        OCI_LAYER_GZIP | OCI_FOREIGN_GZIP => Some(Compression::Gzip),
        OCI_LAYER_ZSTD => Some(Compression::Zstd),
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd" => Some(Compression::Zstd),
        _ => None,
    }
}
