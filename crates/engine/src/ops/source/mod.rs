//! FROM, files of the web, blobs, git repositories, and the client's directories.

mod blob;
mod git;
mod http;
mod http_answer;
mod identifier;
mod one_file;
mod time;

use std::sync::Arc;

use base::Fault;
use llb::pb;
use solver::{KeyDigest, Last};

use super::{OpContext, StatedKey};
use crate::images::{ResolvedImage, chain_id};
use crate::local::LocalTree;
use crate::room::with_room;
use crate::tree::Tree;

pub use git::GitDescription;
pub(crate) use git::{Asking, Commit, Surroundings};
pub(crate) use http::Download;
pub use http::HttpDescription;
pub(crate) use identifier::{ImageSource, LayoutSource, LocalSource, ResolveMode, Source};

/// Whether the op is a source at all.
pub(crate) fn is_source(op: &pb::Op) -> bool {
    matches!(&op.op, Some(pb::op::Op::Source(_)))
}

/// Whether the op is a directory of the client.
pub(crate) fn is_local(op: &pb::Op) -> bool {
    matches!(&op.op, Some(pb::op::Op::Source(source)) if source.identifier.starts_with("local://"))
}

pub(super) async fn key(ctx: &OpContext, op: &pb::SourceOp, index: u32) -> Result<StatedKey, Fault> {
    let stated = |digest, last| Ok(StatedKey { digest, inputs: Vec::new(), last });
    match Source::read(op)? {
        Source::Image(source) => {
            let image = resolve(ctx, &source).await?;
            let (digest, last) = image_key(ctx, &image, source.layer_limit, index);
            stated(digest, last)
        }
        Source::Layout(source) => {
            let image = resolve_layout(ctx, &source).await?;
            let (digest, last) = image_key(ctx, &image, source.layer_limit, index);
            stated(digest, last)
        }
        Source::Http(source) => {
            let key = http::key(ctx, &source).await?;
            stated(KeyDigest::Stable(llb::key::source(&key.to_string())), Last::Yes)
        }
        Source::Git(source) => {
            let key = git::key(ctx, &source).await?;
            stated(KeyDigest::Stable(llb::key::source(&key)), Last::Yes)
        }
        Source::Blob(source) => stated(KeyDigest::Stable(llb::key::source(&source.key().to_string())), Last::Yes),
        Source::Local(source) => {
            let session = source.session.clone().unwrap_or_else(|| ctx.job().session.id().to_owned());
            let lists = [&source.include, &source.exclude, &source.follow_paths].map(Option::as_deref);
            let key = llb::key::local(&session, lists[0], lists[1], lists[2], source.chosen.as_deref());
            let mut text = format!("session:{}:{key}", source.name);
            if ctx.op.reading > 0 {
                // It stands for what was read, which is not the same the next time.
                text.push_str(&format!(":{}", ctx.op.reading));
            }
            let digest = llb::key::source(&text);
            stated(KeyDigest::Random(digest), Last::Yes)
        }
    }
}

fn image_key(ctx: &OpContext, image: &ResolvedImage, layer_limit: Option<usize>, index: u32) -> (KeyDigest, Last) {
    let manifest = || llb::key::image_manifest(image.root.digest, &ctx.op.platform, layer_limit).to_string();
    if index == 0 {
        return (KeyDigest::Stable(llb::key::source(&manifest())), Last::No);
    }
    // What the image consists of, whatever it is called: another name for the same layers matches.
    let count = layer_limit.unwrap_or(usize::MAX);
    let chain = image.diff_ids.iter().take(count).fold(None, |chain, diff_id| Some(chain_id(chain, *diff_id)));
    let key = chain.map_or_else(manifest, |chain| chain.to_string());
    (KeyDigest::Stable(llb::key::source(&key)), Last::Yes)
}

pub(super) async fn run(ctx: &OpContext, op: &pb::SourceOp) -> Result<Tree, Fault> {
    match Source::read(op)? {
        Source::Image(source) => {
            let image = resolve(ctx, &source).await?;
            image_tree(ctx, &image, source.layer_limit, &format!("pulled from {}", image.reference)).await
        }
        Source::Layout(source) => {
            let image = resolve_layout(ctx, &source).await?;
            image_tree(ctx, &image, source.layer_limit, &format!("read from an OCI layout as {}", image.reference))
                .await
        }
        Source::Http(source) => http::run(ctx, &source).await,
        Source::Git(source) => git::run(ctx, &source).await,
        Source::Blob(source) => blob::run(ctx, &source).await,
        Source::Local(source) => with_room(&ctx.core.store, &ctx.tasks, || LocalTree::open(ctx, &source)).await,
    }
}

async fn image_tree(
    ctx: &OpContext,
    image: &ResolvedImage,
    layer_limit: Option<usize>,
    description: &str,
) -> Result<Tree, Fault> {
    let tree = || async { ctx.core.images.tree(image, layer_limit, description) };
    let tree = with_room(&ctx.core.store, &ctx.tasks, tree).await?;
    if let Tree::Snapshot(top) = &tree {
        let layers = ctx.core.store.snapshots().chain(&top.id());
        let layers = layers.map_err(|e| crate::core::store_fault("cannot read a snapshot", e))?;
        ctx.jobs.iter().for_each(|job| job.add_pull(layers.iter().copied(), ctx.op.label.digest));
    }
    Ok(tree)
}

async fn resolve_layout(ctx: &OpContext, source: &LayoutSource) -> Result<Arc<ResolvedImage>, Fault> {
    tokio::select! {
        image = ctx.core.images.resolve_layout(&ctx.jobs, &source.store, &source.reference, &ctx.op.platform) => image,
        () = ctx.cancel.cancelled() => Err(Fault::cancelled()),
    }
}

async fn resolve(ctx: &OpContext, source: &ImageSource) -> Result<Arc<ResolvedImage>, Fault> {
    let images = &ctx.core.images;
    let image = tokio::select! {
        image = images.resolve(ctx.job(), &source.reference, &ctx.op.platform, source.mode) => image?,
        () = ctx.cancel.cancelled() => return Err(Fault::cancelled()),
    };
    match source.checksum {
        Some(wanted) if wanted != image.root.digest => {
            let text = format!(
                "image digest {} for {} does not match expected checksum {wanted}",
                image.root.digest, image.reference
            );
            Err(Fault::user(text))
        }
        _ => Ok(image),
    }
}
