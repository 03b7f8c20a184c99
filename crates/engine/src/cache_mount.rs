//! `RUN --mount=type=cache`: which instance of a cache directory a step gets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use base::{Fault, Kind};
use llb::pb;
use store::{CacheMountRequest, Sharing, SnapshotId};
use sys::mount::{FsView, Mounted};

use crate::core::{Core, blocking, store_fault};
use crate::ops::OpContext;
use crate::tree::Tree;

/// A cache directory in use. Dropping the last clone gives it back.
#[derive(Clone)]
pub(crate) struct CacheDir(Arc<Inner>);

struct Inner {
    /// Overlays have one writer: they are mounted once here and bound by all who share them.
    mounted: Option<Mounted>,
    view: FsView,
    // Given back after it is unmounted: fields drop in this order.
    _mount: store::CacheMount,
}

impl CacheDir {
    pub(crate) fn view(&self) -> FsView {
        match &self.0.mounted {
            Some(mounted) => FsView::Dir { path: mounted.path().to_owned(), read_only: false },
            None => self.0.view.clone(),
        }
    }
}

/// What `du` says of a cache mount, in BuildKit's words: filters look for them.
fn describe(user: &str, dest: &str, id: &str) -> String {
    let named = if id == dest { String::new() } else { format!(" with id {}", base::gotext::quote(id)) };
    format!("cached mount {dest} from {user}{named}")
}

/// The overlays that are mounted for sharing.
#[derive(Default)]
pub(crate) struct CacheMounts(Mutex<HashMap<SnapshotId, Weak<Inner>>>);

impl Core {
    /// The directory that a cache mount of `user` stands for; waits where it is locked by another step.
    pub(crate) async fn cache_mount(
        self: &Arc<Self>,
        ctx: &OpContext,
        user: &str,
        mount: &pb::Mount,
        from: &Tree,
    ) -> Result<CacheDir, Fault> {
        let opt = mount.cache_opt.as_ref();
        let opt = opt.ok_or_else(|| Fault::user(format!("cache mount `{}` has no options", mount.dest)))?;
        let base = self.snapshot(ctx, from).await?;
        let request = CacheMountRequest {
            id: opt.id.clone(),
            from: base.as_ref().map(|hold| hold.id()),
            sharing: match opt.sharing() {
                pb::CacheSharingOpt::Shared => Sharing::Shared,
                pb::CacheSharingOpt::Private => Sharing::Private,
                pb::CacheSharingOpt::Locked => Sharing::Locked,
            },
            kind: store::RecordKind::CacheMount,
            description: describe(user, &mount.dest, &opt.id),
        };
        let snapshots = self.store.snapshots();
        let taken = loop {
            let (wake, woken) = tokio::sync::oneshot::channel();
            let (snapshots, request) = (snapshots.clone(), request.clone());
            let taken = blocking(move || snapshots.cache_mount(&request, move || wake.send(()).unwrap_or(()))).await;
            match taken.map_err(|e| store_fault("cannot open a cache mount", e))? {
                Some(mount) => break mount,
                None => {
                    let _waiting = ctx.tasks.start(format!("waiting for cache mount {}", opt.id), 0);
                    tokio::select! {
                        // Sent or closed, it is time to ask again.
                        _ = woken => {}
                        () = ctx.cancel.cancelled() => return Err(Fault::cancelled()),
                    }
                }
            }
        };
        self.share(taken).await
    }

    /// Has the next steps that name a cache mount begin with an empty one. Whoever uses it now goes on with it.
    pub(crate) async fn retire_cache_mount(&self, (id, on_snapshot): crate::job::CacheMountName) -> Result<(), Fault> {
        let snapshots = self.store.snapshots();
        let retired = blocking(move || snapshots.retire_cache_mounts(&id, on_snapshot));
        retired.await.map_err(|e| store_fault("cannot empty a cache mount", e))
    }

    async fn share(&self, mount: store::CacheMount) -> Result<CacheDir, Fault> {
        let id = mount.id();
        let known = |mounts: &CacheMounts| {
            mounts.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).and_then(Weak::upgrade)
        };
        if let Some(inner) = known(&self.cache_mounts) {
            return Ok(CacheDir(inner));
        }
        let view = mount.view().map_err(|e| store_fault("cannot open a cache mount", e))?;
        let mounted = match &view {
            FsView::Dir { .. } => None,
            FsView::Overlay(_) => {
                let (view, scratch) = (view.clone(), self.scratch.clone());
                let mounted = blocking(move || Mounted::new(&view, &scratch)).await;
                Some(mounted.map_err(|e| Fault::because(Kind::Environment, "cannot mount a cache mount", e))?)
            }
        };
        let inner = Arc::new(Inner { mounted, view, _mount: mount });
        let mut mounts = self.cache_mounts.0.lock().unwrap_or_else(PoisonError::into_inner);
        mounts.retain(|_, inner| inner.strong_count() > 0);
        mounts.insert(id, Arc::downgrade(&inner));
        Ok(CacheDir(inner))
    }
}
