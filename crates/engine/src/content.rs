//! Content digests of trees: BuildKit's, remembered beside the snapshots.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use base::{Digest, Fault, Kind};
use files::checksum::{self, Env, Place, content_key};
use llb::key::Selector;
use store::SnapshotId;
use sys::mount::{FsView, Mounted};
use sys::path::Root;

use crate::core::{Core, blocking, joined};
use crate::ops::OpContext;
use crate::tree::Tree;

/// Where digests of snapshots are kept, by snapshot.
const NAMESPACE: &str = "content-digests";

/// The trees in use: equal questions at once share one.
#[derive(Default)]
pub(crate) struct ContentTrees(Mutex<HashMap<SnapshotId, Weak<checksum::Tree>>>);

impl ContentTrees {
    fn of(&self, core: &Core, id: SnapshotId) -> Arc<checksum::Tree> {
        let mut trees = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tree) = trees.get(&id).and_then(Weak::upgrade) {
            return tree;
        }
        trees.retain(|_, tree| tree.strong_count() > 0);
        // A record that cannot be read costs only the time to make it again.
        let kept = core.store.kv(NAMESPACE).get(id.to_string()).ok().flatten();
        let kept = kept.and_then(|bytes| checksum::Tree::from_bytes(&bytes).ok());
        let tree = Arc::new(kept.unwrap_or_else(checksum::Tree::of_snapshot));
        trees.insert(id, Arc::downgrade(&tree));
        tree
    }
}

impl Core {
    /// Digests what `selectors` select of a tree.
    pub(crate) async fn content_digest(
        self: &Arc<Self>,
        ctx: &OpContext,
        tree: &Tree,
        selectors: Vec<Selector>,
    ) -> Result<Digest, Fault> {
        let selectors: Vec<checksum::Selector> = selectors.into_iter().map(selector).collect();
        let (core, cancel) = (self.clone(), ctx.blocking_cancel());
        let failed = |e: files::Error| {
            let changed = e.is_changed();
            let kind = if e.is_not_found() || changed { Kind::User } else { Kind::Environment };
            let fault = Fault::because(kind, "failed to calculate checksum of ref", e);
            if changed { fault.hint(crate::local::AT_REST) } else { fault }
        };
        match tree {
            Tree::Empty => {
                let env = Env { cancel: Some(&cancel), ..Env::default() };
                content_key(&selectors, None, &env).map_err(|error| match error {
                    // Where there is nothing at all, BuildKit says it in these words.
                    files::Error::NotFound(path) => failed(files::Error::Missing(path)),
                    error => failed(error),
                })
            }
            Tree::Local(local) => {
                let local = local.clone();
                let (tell, told) = tokio::sync::oneshot::channel();
                let thread = self.threads.spawn_blocking("reading the client's files", move || {
                    let failed = |error: files::Error| {
                        let missed = selectors.iter().filter(|_| error.is_not_found());
                        let hint = missed.filter_map(|selector| local.why_missing(&selector.path)).next();
                        hint.into_iter().fold(failed(error), Fault::hint)
                    };
                    let env = Env { memo: Some(&local.memo), cancel: Some(&cancel), ..Env::default() };
                    let place = Place::at(local.root.clone());
                    let digest = content_key(&selectors, Some((&local.tree, &place)), &env);
                    // A mirror is in use as long as we have it, and the next build would make another.
                    if local.is_mirror() {
                        local.memo.save();
                    }
                    // Who has gone is told nothing.
                    _ = tell.send(digest.map_err(failed));
                    local.memo.save();
                });
                match told.await {
                    Ok(digest) => digest,
                    Err(_) => {
                        // Its panic is ours.
                        joined(thread).await;
                        Err(Fault::new(Kind::Internal, "a digest got lost"))
                    }
                }
            }
            Tree::Snapshot(hold) => {
                self.fill(ctx.job(), &ctx.tasks, &ctx.cancel, hold).await?;
                let view = self.view(hold)?;
                let id = hold.id();
                blocking(move || core.digest_snapshot(id, &view, &selectors, &cancel)).await.map_err(failed)
            }
        }
    }

    fn digest_snapshot(
        &self,
        id: SnapshotId,
        view: &FsView,
        selectors: &[checksum::Selector],
        cancel: &base::Cancel,
    ) -> Result<Digest, files::Error> {
        let tree = self.content_trees.of(self, id);
        let before = tree.to_bytes().len();
        let mounted: Mutex<Option<Mounted>> = Mutex::new(None);
        let mount = || -> io::Result<Arc<Root>> {
            let mount = Mounted::new(view, &self.scratch).map_err(io::Error::other)?;
            let root = Root::open(mount.path())?;
            *mounted.lock().unwrap_or_else(PoisonError::into_inner) = Some(mount);
            Ok(Arc::new(root))
        };
        let env = Env { cancel: Some(cancel), ..Env::default() };
        let place = Place::when_needed(&mount);
        let digest = content_key(selectors, Some((&tree, &place)), &env)?;
        let bytes = tree.to_bytes();
        if bytes.len() != before {
            let kept = self.store.kv(NAMESPACE).put_with(id.to_string(), bytes, &id);
            if let Err(error) = kept {
                tracing::debug!(%error, snapshot = %id, "content digests were not kept");
            }
        }
        Ok(digest)
    }
}

fn selector(selector: Selector) -> checksum::Selector {
    checksum::Selector {
        path: selector.path,
        wildcard: selector.wildcard,
        follow_links: selector.follow_links,
        include: selector.include_patterns,
        exclude: selector.exclude_patterns,
        required: selector.required_paths,
    }
}
