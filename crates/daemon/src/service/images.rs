//! What a client asks about images before it builds from them: of registries, and of content stores that clients offer.

use base::{Fault, Platform};
use engine::{Bridge, ImageConfig};
use proto::moby::buildkit::v1::frontend as wire;

/// A policy says how an image is looked up, whoever asks.
const RESOLVE_MODE: &str = "image.resolvemode";
/// A question about the config of an image of a client's store, not of a registry.
const OCI_LAYOUT: i32 = 1;

/// The source that a question about an image's config is about.
pub(super) fn asked(request: &wire::ResolveImageConfigRequest) -> proto::pb::SourceOp {
    let name = &request.r#ref;
    if request.resolver_type != OCI_LAYOUT {
        return proto::pb::SourceOp { identifier: format!("docker-image://{name}"), ..Default::default() };
    }
    let attrs = [("oci.session", &request.session_id), ("oci.store", &request.store_id)];
    let attrs = attrs.into_iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    proto::pb::SourceOp { identifier: format!("oci-layout://{name}"), attrs }
}

/// The image that a source names; none: it names something else.
pub(super) async fn find(
    bridge: &Bridge,
    source: &proto::pb::SourceOp,
    platform: Option<Platform>,
    mode: &str,
    log_name: &str,
) -> Result<Option<ImageConfig>, Fault> {
    let mode = source.attrs.get(RESOLVE_MODE).map_or(mode, String::as_str);
    match source.identifier.split_once("://") {
        Some(("docker-image", name)) => bridge.resolve_image(name, platform, mode, log_name).await.map(Some),
        Some(("oci-layout", _)) => bridge.resolve_layout(source, platform, log_name).await.map(Some),
        _ => Ok(None),
    }
}
