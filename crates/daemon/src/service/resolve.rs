//! What clients that drive a build ask about sources before they read them.

use base::{Fault, Platform};
use proto::moby::buildkit::v1::frontend as wire;

use super::gateway::ClientBuild;
use super::images;

/// An image's digest and config.
pub(super) async fn image_config(
    build: &ClientBuild,
    request: wire::ResolveImageConfigRequest,
) -> Result<wire::ResolveImageConfigResponse, Fault> {
    let mut source = images::asked(&request);
    build.bridge.judge(&mut source, &request.source_policies)?;
    let platform = request.platform.as_ref().map(platform);
    let found = images::find(&build.bridge, &source, platform, &request.resolve_mode, &request.log_name).await?;
    let Some(found) = found else {
        let shown = base::redact_url(&source.identifier);
        return Err(Fault::user(format!(
            "a policy puts `{shown}`, which is no image, in the place of {}",
            request.r#ref
        )));
    };
    Ok(wire::ResolveImageConfigResponse {
        digest: found.digest.to_string(),
        config: found.config,
        r#ref: found.reference,
    })
}

/// What is known about a source: of local directories nothing before they are read.
pub(super) async fn source(
    build: &ClientBuild,
    request: wire::ResolveSourceMetaRequest,
) -> Result<wire::ResolveSourceMetaResponse, Fault> {
    let mut source = request.source.ok_or_else(|| Fault::user("source is required"))?;
    build.bridge.judge(&mut source, &request.source_policies)?;
    let mut response = wire::ResolveSourceMetaResponse::default();
    match source.identifier.split_once("://") {
        Some(("docker-image" | "oci-layout", _)) => {
            let platform = request.platform.as_ref().map(platform);
            let found = images::find(&build.bridge, &source, platform, &request.resolve_mode, &request.log_name);
            let wants_config = !request.image.is_some_and(|image| image.no_config);
            response.image = found.await?.map(|found| wire::ResolveSourceImageResponse {
                digest: found.digest.to_string(),
                config: if wants_config { found.config } else { Vec::new() },
                attestation_chain: None,
            });
        }
        Some(("git", _)) => {
            let wants_objects = request.git.is_some_and(|git| git.return_object);
            let found = build.bridge.resolve_git(&source, wants_objects, &request.log_name).await?;
            response.git = Some(wire::ResolveSourceGitResponse {
                checksum: found.object,
                r#ref: found.reference,
                commit_checksum: found.commit,
                commit_object: found.commit_object,
                tag_object: found.tag_object,
            });
        }
        Some(("http" | "https", _)) => {
            if let Some(wanted) = request.http.and_then(|http| http.checksum_request)
                && (wanted.algo != 0 || !wanted.suffix.is_empty())
            {
                return Err(Fault::user(
                    "digests of downloads with a suffix, or other than sha256, are not supported yet",
                ));
            }
            let found = build.bridge.resolve_http(&source, &request.log_name).await?;
            response.http = Some(wire::ResolveSourceHttpResponse {
                checksum: found.digest.to_string(),
                filename: found.filename,
                last_modified: found.modified.map(super::status::time),
                checksum_response: None,
            });
        }
        Some(("local", _)) => {}
        _ => {
            let shown = base::redact_url(&source.identifier);
            return Err(Fault::user(format!("source `{shown}` is not resolved for clients yet")));
        }
    }
    response.source = Some(source);
    Ok(response)
}

fn platform(platform: &proto::pb::Platform) -> Platform {
    let mut own = Platform::new(&platform.os, &platform.architecture, &platform.variant);
    own.os_version.clone_from(&platform.os_version);
    own.os_features.clone_from(&platform.os_features);
    own
}
