//! Trees laid over each other: `COPY --link`. The one at the bottom need not be here: nobody may ever read it.

use base::Fault;
use llb::pb;

use super::OpContext;
use crate::core::store_fault;
use crate::tree::Tree;

/// How many layers are stacked: more than twice those that overlayfs mounts, and many times those of images. A merge of
/// merges of the same input, each twice, has 2^n.
const MOST_LAYERS: usize = 1024;

/// Lays the inputs over each other, the first one at the bottom.
pub(super) async fn run(ctx: &OpContext, op: &pb::MergeOp, inputs: &[Tree]) -> Result<Vec<Tree>, Fault> {
    let mut merged: Option<std::sync::Arc<store::Hold>> = None;
    for input in &op.inputs {
        let tree = usize::try_from(input.input).ok().and_then(|index| inputs.get(index));
        let tree = tree.ok_or_else(|| Fault::user(format!("merge op reads input {}", input.input)))?;
        let upper = match tree {
            Tree::Snapshot(bottom) if merged.is_none() => Some(bottom.clone()),
            tree => ctx.core.snapshot(ctx, tree).await?,
        };
        let Some(upper) = upper else { continue };
        merged = Some(match merged {
            None => upper,
            Some(lower) => stack(ctx, lower, upper).await?,
        });
    }
    Ok(vec![merged.map_or(Tree::Empty, Tree::Snapshot)])
}

/// Stacks all layers of `upper` on `lower`, one snapshot for each, so that their blobs are used again.
async fn stack(
    ctx: &OpContext,
    lower: std::sync::Arc<store::Hold>,
    upper: std::sync::Arc<store::Hold>,
) -> Result<std::sync::Arc<store::Hold>, Fault> {
    let snapshots = ctx.core.store.snapshots();
    let mut layers = snapshots.chain(&upper.id()).map_err(|e| store_fault("cannot read a snapshot", e))?;
    let below = snapshots.chain(&lower.id()).map_err(|e| store_fault("cannot read a snapshot", e))?;
    let count = below.len() + layers.len();
    if count > MOST_LAYERS {
        return Err(Fault::user(format!(
            "a merge has {count} layers, more than the {MOST_LAYERS} that can be stacked"
        ))
        .hint("merge fewer trees, or copy some of them into one"));
    }
    if !snapshots.is_stackable() {
        ctx.core.fill(ctx.job(), &ctx.tasks, &ctx.cancel, &lower).await?;
    }
    layers.reverse();
    let mut top = lower;
    for layer in layers {
        let (store, cancel, parent) = (ctx.core.store.clone(), ctx.blocking_cancel(), top.id());
        let stack = move || store.with_room(0, || store.snapshots().restack(&parent, &layer, &cancel));
        let stacked = crate::core::blocking(stack).await;
        top = std::sync::Arc::new(stacked.map_err(|e| store_fault("cannot merge snapshots", e))?);
    }
    Ok(top)
}
