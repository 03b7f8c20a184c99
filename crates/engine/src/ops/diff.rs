//! What leads from one tree to another.

use base::Fault;
use llb::pb;

use super::OpContext;
use crate::core::{blocking, store_fault};
use crate::tree::Tree;

/// The difference of the inputs, lower and upper; those that are empty trees are none.
pub(super) async fn run(ctx: &OpContext, op: &pb::DiffOp, inputs: &[Tree]) -> Result<Vec<Tree>, Fault> {
    let mut given = inputs.iter();
    let mut next = |input: Option<i64>| match input {
        None | Some(-1) => Ok(Tree::Empty),
        Some(input) => given.next().cloned().ok_or_else(|| Fault::user(format!("diff op reads input {input}"))),
    };
    let (lower, upper) = (next(op.lower.map(|l| l.input))?, next(op.upper.map(|u| u.input))?);
    let Some(below) = ctx.core.snapshot(ctx, &lower).await? else { return Ok(vec![upper]) };
    let above = ctx.core.snapshot(ctx, &upper).await?;
    if above.as_ref().is_some_and(|above| above.id() == below.id()) {
        return Ok(vec![Tree::Empty]);
    }
    let (store, cancel) = (ctx.core.store.clone(), ctx.blocking_cancel());
    let description = ctx.op.label.name.clone();
    let difference = blocking(move || {
        let above = above.map(|above| (above.id(), above));
        let above = above.as_ref().map(|(id, _)| id);
        store.with_room(0, || store.snapshots().difference(&below.id(), above, &description, &cancel))
    });
    let difference = difference.await.map_err(|e| store_fault("cannot compare snapshots", e))?;
    Ok(vec![difference.map_or(Tree::Empty, Tree::snapshot)])
}
