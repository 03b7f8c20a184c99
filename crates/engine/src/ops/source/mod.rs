//! FROM, and the client's directories.

mod identifier;

use base::Fault;
use llb::pb;
use solver::{KeyDigest, Last};

use super::{OpContext, StatedKey};
use crate::images::chain_id;
use crate::local::LocalTree;
use crate::tree::Tree;

pub(crate) use identifier::{ImageSource, LocalSource, ResolveMode, Source};

/// Whether the op is a directory of the client.
pub(crate) fn is_local(op: &pb::Op) -> bool {
    matches!(&op.op, Some(pb::op::Op::Source(source)) if source.identifier.starts_with("local://"))
}

pub(super) async fn key(ctx: &OpContext, op: &pb::SourceOp, index: u32) -> Result<StatedKey, Fault> {
    let stated = |digest, last| Ok(StatedKey { digest, inputs: Vec::new(), last });
    match Source::read(op)? {
        Source::Image(source) => {
            let image = resolve(ctx, &source).await?;
            if index == 0 {
                let key = llb::key::image_manifest(image.root.digest, &ctx.op.platform);
                return stated(KeyDigest::Stable(llb::key::source(&key.to_string())), Last::No);
            }
            // What the image consists of, whatever it is called: another name for the same layers matches.
            let count = source.layer_limit.unwrap_or(usize::MAX);
            let chain = image.diff_ids.iter().take(count).fold(None, |chain, diff_id| Some(chain_id(chain, *diff_id)));
            let key = match chain {
                Some(chain) => chain.to_string(),
                None => llb::key::image_manifest(image.root.digest, &ctx.op.platform).to_string(),
            };
            stated(KeyDigest::Stable(llb::key::source(&key)), Last::Yes)
        }
        Source::Local(source) => {
            let session = source.session.clone().unwrap_or_else(|| ctx.job().session.id().to_owned());
            let lists = [&source.include, &source.exclude, &source.follow_paths].map(Option::as_deref);
            let key = llb::key::local(&session, lists[0], lists[1], lists[2]);
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

pub(super) async fn run(ctx: &OpContext, op: &pb::SourceOp) -> Result<Tree, Fault> {
    match Source::read(op)? {
        Source::Image(source) => {
            let image = resolve(ctx, &source).await?;
            let description = format!("pulled from {}", image.reference);
            let tree = ctx.core.images.tree(&image, source.layer_limit, &description)?;
            if let Tree::Snapshot(top) = &tree {
                let layers = ctx.core.store.snapshots().chain(&top.id());
                let layers = layers.map_err(|e| crate::core::store_fault("cannot read a snapshot", e))?;
                ctx.jobs.iter().for_each(|job| job.add_pull(layers.iter().copied(), ctx.op.label.digest));
            }
            Ok(tree)
        }
        Source::Local(source) => LocalTree::open(ctx, &source).await,
    }
}

async fn resolve(ctx: &OpContext, source: &ImageSource) -> Result<std::sync::Arc<crate::images::ResolvedImage>, Fault> {
    let images = &ctx.core.images;
    let image = tokio::select! {
        image = images.resolve(ctx.job(), &source.reference, &ctx.op.platform, source.mode) => image?,
        () = ctx.cancel.cancelled() => return Err(Fault::cancelled()),
    };
    match source.checksum {
        Some(wanted) if wanted != image.root.digest => {
            let text =
                format!("image digest {} of {} does not match checksum {wanted}", image.root.digest, image.reference);
            Err(Fault::user(text))
        }
        _ => Ok(image),
    }
}
