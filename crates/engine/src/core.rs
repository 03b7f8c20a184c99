//! What all builds of an engine share, and the few things that every op needs from it.

use std::path::PathBuf;
use std::sync::Arc;

use base::hint::no_space;
use base::{Fault, Kind, Platform};
use executor::Executor;
use export::Unfinished;
use store::{Active, CommitOptions, PrepareOptions, Store};
use sys::mount::{FsView, Mounted};
use sys::path::Root;

use crate::fill::Fills;
use crate::images::Images;
use crate::ops::OpContext;
use crate::tree::Tree;

/// Shared by all builds.
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) images: Images,
    /// For files of the web.
    pub(crate) http: http_client::Pools,
    pub(crate) fills: Fills,
    /// Work on threads that ends soon when it is cancelled, but not at once.
    pub(crate) threads: Unfinished,
    pub(crate) cache_mounts: crate::cache_mount::CacheMounts,
    /// A single id is mapped: what the kernel refuses is recorded beside the files.
    pub(crate) shadow: bool,
    /// Where views are mounted for a moment.
    pub(crate) scratch: PathBuf,
    pub(crate) content_trees: crate::content::ContentTrees,
    /// Name servers and the like of steps, in place of the machine's.
    pub(crate) resolver: executor::Resolver,
    /// The cgroup below which steps get theirs, where their op names none.
    pub(crate) cgroup_parent: Option<String>,
    /// What git is run with.
    pub(crate) surroundings: crate::ops::source::Surroundings,
    /// Devices that steps may have.
    pub(crate) devices: crate::devices::Devices,
    /// How much of a step's output is shown.
    pub(crate) step_log: crate::step_log::LogLimits,
    /// What this machine runs, the preferred one first; never empty.
    pub(crate) platforms: Vec<Platform>,
}

impl Core {
    /// Begins a tree on a snapshot that is filled, or an empty one.
    pub(crate) async fn prepare(&self, base: Option<&Arc<store::Hold>>, description: &str) -> Result<Active, Fault> {
        let snapshots = self.store.snapshots();
        let options = PrepareOptions { description: description.to_owned(), ..PrepareOptions::default() };
        let base = base.cloned();
        // The copy driver copies the whole parent here.
        blocking(move || snapshots.prepare(base.as_ref().map(|b| b.id()).as_ref(), options))
            .await
            .map_err(|e| store_fault("cannot begin a snapshot", e))
    }

    /// Makes a tree immutable.
    pub(crate) async fn commit(&self, active: Active) -> Result<Tree, Fault> {
        let snapshots = self.store.snapshots();
        blocking(move || snapshots.commit(active, CommitOptions::default()))
            .await
            .map(Tree::snapshot)
            .map_err(|e| store_fault("cannot commit a snapshot", e))
    }

    /// A tree as a snapshot that can be read: lazy layers are unpacked, local directories copied.
    pub(crate) async fn snapshot(
        self: &Arc<Self>,
        ctx: &OpContext,
        tree: &Tree,
    ) -> Result<Option<Arc<store::Hold>>, Fault> {
        match tree {
            Tree::Empty => Ok(None),
            Tree::Snapshot(hold) => {
                self.fill(ctx.job(), &ctx.tasks, &ctx.cancel, hold).await?;
                Ok(Some(hold.clone()))
            }
            Tree::Local(local) => local.copied(self, ctx.blocking_cancel()).await.map(Some),
        }
    }

    /// How to read a filled snapshot.
    pub(crate) fn view(&self, hold: &store::Hold) -> Result<FsView, Fault> {
        self.store.snapshots().view(&hold.id()).map_err(|e| store_fault("cannot read a snapshot", e))
    }

    /// What an empty tree is read as.
    pub(crate) fn empty_root(&self) -> Result<Root, Fault> {
        let nothing = self.scratch.join("empty");
        let made = std::fs::create_dir_all(&nothing).and_then(|()| Root::open(&nothing));
        made.map_err(|e| Fault::because(Kind::Environment, "cannot make a directory", e))
    }

    /// A view as a directory of this process; overlays are mounted until the answer is dropped.
    pub(crate) fn mount(&self, view: &FsView) -> Result<Mounted, Fault> {
        Mounted::new(view, &self.scratch).map_err(|e| Fault::because(Kind::Environment, "cannot mount a snapshot", e))
    }
}

/// How to write a tree that is under construction.
pub(crate) fn active_view(active: &Active) -> Result<FsView, Fault> {
    active.view().map_err(|e| store_fault("cannot open a snapshot", e))
}

/// Runs code that waits for disks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work)).await
}

/// What a thread came to. Its panic is ours.
pub(crate) async fn joined<T>(thread: tokio::task::JoinHandle<T>) -> T {
    match thread.await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only at shutdown, when nobody waits any more.
            Err(_) => std::future::pending().await,
        },
    }
}

/// The program that keeps its state directory until it is told to end.
pub(crate) const DAEMON: &str = "buildkitd";

/// A failure of the store in the words of a fault.
pub fn store_fault(doing: &str, error: store::Error) -> Fault {
    let (full, in_use) = (error.is_no_space(), error.is_in_use());
    let by_daemon = error.is_in_use_by(DAEMON);
    let denied = error.is_denied();
    let fault = Fault::because(Kind::Environment, doing, error);
    match () {
        () if full => fault.hint(no_space()),
        () if by_daemon => fault.hint(
            "the daemon keeps it: use `buildctl du`, `buildctl prune`, and build with `buildctl build` or `docker buildx`",
        ),
        () if denied => fault.hint("it belongs to somebody else: take another state directory (`--root`)"),
        () if in_use => fault.hint("try again when it has ended, or take another state directory (`--root`)"),
        () => fault,
    }
}
